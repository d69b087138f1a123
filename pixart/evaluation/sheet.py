"""A contact sheet: pictures in rows under the names of their categories, each with its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, LINES = 12, 8, 3
PAPER, INK, FAINT = (250, 250, 248), (24, 24, 24), (110, 110, 110)
MAX_SIDE = 16384


@dataclass(frozen=True)
class Entry:
    """A picture with what is said of it: its label (a prompt), a note (seed, time), and its category."""

    picture: Image.Image
    label: str = ""
    note: str = ""
    category: str = ""


def draw_sheet(entries: Sequence[Entry], columns: int, title: str = "", cell: int = 0) -> Image.Image:
    """All entries, category by category in the order of their first picture.

    columns: pictures a row; title: settings, written at the top; cell: side of a picture's place in pixels, 0 takes
    the largest picture's. Raises ValueError for no entries, or when the sheet would be larger than 16384 pixels.
    """
    if not entries:
        raise ValueError("There is no picture for a sheet.")
    if columns < 1:
        raise ValueError(f"columns is {columns}, but must be at least 1.")
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.category, []).append(entry)
    columns = min(columns, max(map(len, groups.values())))
    wide = cell or max(entry.picture.width for entry in entries)
    high = cell or max(entry.picture.height for entry in entries)
    size = max(10, min(22, wide // 12))
    small, large = font(size), font(size + 4)
    line = round(size * 1.3)
    words = (LINES + 1) * line
    width = 2 * MARGIN + columns * wide + (columns - 1) * GAP
    headed = [name for name in groups if name]
    rows = sum(-(-len(group) // columns) for group in groups.values())
    title_lines = wrap(title, large, width - 2 * MARGIN, 4) if title else []
    heading = round(1.8 * line)
    height = 2 * MARGIN + len(title_lines) * round(1.4 * line) + len(headed) * heading + rows * (high + words + GAP)
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"The sheet would be {width} × {height} pixels: set more columns, or draw fewer or smaller pictures on it."
        )
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    y = MARGIN
    for text in title_lines:
        pen.text((MARGIN, y), text, INK, large)
        y += round(1.4 * line)
    for name, group in groups.items():
        if name:
            pen.text((MARGIN, y), name, INK, large)
            y += heading
        for start in range(0, len(group), columns):
            for column, entry in enumerate(group[start : start + columns]):
                x = MARGIN + column * (wide + GAP)
                place(sheet, pen, entry, (x, y, wide, high), small, line)
            y += high + words + GAP
    return sheet


def place(sheet, pen, entry: Entry, box: tuple[int, int, int, int], small, line: int) -> None:
    """One picture in its place, smaller where it must be, and its words below."""
    x, y, wide, high = box
    picture = entry.picture.convert("RGB")
    if picture.width > wide or picture.height > high:
        picture.thumbnail((wide, high))
    sheet.paste(picture, (x + (wide - picture.width) // 2, y + (high - picture.height) // 2))
    y += high + 2
    for text in wrap(entry.label, small, wide, LINES):
        pen.text((x, y), text, INK, small)
        y += line
    for text in wrap(entry.note, small, wide, 1):
        pen.text((x, y), text, FAINT, small)


def font(size: int):
    """Pillow's own, which is everywhere the same."""
    return ImageFont.load_default(size)


def wrap(text: str, letters, width: int, most: int) -> list[str]:
    """Words in lines no wider than ``width`` pixels; the last one ends in … where there is more to say."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most:
        count = 1
        while count < len(words) and letters.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(" ".join(words[:count]))
        words = words[count:]
    if lines and (words or letters.getlength(lines[-1]) > width):
        while lines[-1] and letters.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = lines[-1].rstrip() + "…"
    return lines
