"""Aspect-ratio bins: the picture sizes that PixArt was trained on, and which of them fits a wish."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

BASES = (256, 512, 1024, 2048, 2880, 4096)

OTHER_NAMES = {
    "PixArtMS_XL_2": 1024,
    "PixArtMS_Sigma_XL_2": 1024,
    "PixArtMS_Sigma_XL_2_900M": 1024,
    "PixArtMS_Sigma_XL_2_2K": 2048,
    "PixArtMS_Sigma_XL_2_512": 512,
    "PixArt_XL_2": 512,
}
"""Bases as workflows of ComfyUI_ExtraModels name them, by a type of model. Their ratio is width / height."""

_TABLES = Path(__file__).parent / "data" / "aspect_ratios.json"
_COMMON_BASE = 1024
_FAR_AREA = 2.0
_FAR_RATIO = 1.1


@dataclass(frozen=True)
class Bin:
    """One size of a table: pixels, multiples of 16.

    ratio: the table's own key, height / width rounded to two places; a key, not the exact quotient.
    """

    base: int
    ratio: str
    height: int
    width: int

    @property
    def orientation(self) -> str:
        if self.height == self.width:
            return "square"
        return "landscape" if self.width > self.height else "portrait"

    @property
    def size(self) -> str:
        """Width × height, the order in which people and files speak of pictures."""
        return f"{self.width} × {self.height}"

    @property
    def label(self) -> str:
        """E.g. ``0.57 · 1344 × 768 (landscape)``."""
        return f"{float(self.ratio):.2f} · {self.size} ({self.orientation})"

    @property
    def tokens(self) -> int:
        """Length of the transformer's sequence: one token for every 16 × 16 pixels."""
        return (self.height // 16) * (self.width // 16)


@cache
def _tables() -> dict[int, tuple[Bin, ...]]:
    """Every table, in the order of its source.

    Source: PixArt-Σ's 40 sizes for 256 to 2880, and for 4096 the 33 sizes that its code files under the
    name of 2880's test table.
    """
    stored = json.loads(_TABLES.read_text(encoding="utf-8"))
    return {
        base: tuple(Bin(base, ratio, *size) for ratio, size in stored[str(base)].items()) for base in BASES
    }


def bins(base: int) -> tuple[Bin, ...]:
    """The bins of ``base``, widest picture first. Raises ValueError for a base without a table."""
    if base not in BASES:
        raise ValueError(f"There are no aspect-ratio bins for base {base}; choose one of {', '.join(map(str, BASES))}.")
    return _tables()[base]


@cache
def _options() -> dict[str, Bin]:
    """Every ratio of any table, widest first, by its option; the bin is the one whose pixels the option shows."""
    shown: dict[str, Bin] = {}
    for base in (_COMMON_BASE, *BASES):
        for entry in bins(base):
            shown.setdefault(entry.ratio, entry)
    ordered = sorted(shown.values(), key=lambda entry: float(entry.ratio))
    return {f"{entry.ratio} {entry.orientation} · {entry.size} at {entry.base}": entry for entry in ordered}


def ratio_options() -> list[str]:
    """Choices for one list that serves every base, e.g. ``0.57 landscape · 1344 × 768 at 1024``.

    The string starts with height / width, the tables' key, which alone decides; the orientation and the pixels
    (width × height) at base 1024 follow. A ratio that base 1024 lacks shows its pixels at the base that has it.
    """
    return list(_options())


def default_ratio_option() -> str:
    """The square, as ``ratio_options`` writes it."""
    return next(option for option, entry in _options().items() if entry.orientation == "square")


def bin_named(base: int, label_or_ratio: str) -> Bin:
    """The bin of ``base`` that a label, an option of ``ratio_options`` or a bare ratio names.

    Only the leading number counts, so a name made for one base holds for all of them. Where this base's table
    lacks a ratio that another has, the nearest one is taken. Raises ValueError for any other text.
    """
    table = bins(base)
    number = re.match(r"\s*(\d+(?:\.\d+)?)(?!\s*[\d:/x×.])", label_or_ratio)
    if number is None:
        raise ValueError(
            f"{label_or_ratio!r} names no aspect ratio: it must begin with height / width, "
            f"as in {default_ratio_option()!r}."
        )
    wanted = float(number.group(1))
    for entry in table:
        if float(entry.ratio) == wanted:
            return entry
    elsewhere = next((entry for entry in _options().values() if float(entry.ratio) == wanted), None)
    if elsewhere is None:
        near = sorted(table, key=lambda entry: abs(float(entry.ratio) - wanted))[:3]
        raise ValueError(
            f"No table has the ratio {wanted:g} (height / width); near it at base {base}: "
            f"{'; '.join(entry.label for entry in near)}. For any size, use PixArt Nearest Resolution."
        )
    return nearest_bin(elsewhere.height, elsewhere.width, base)


def chosen_bin(base: str, ratio: str) -> Bin:
    """The bin that a node's two choices name: a base and ``bin_named``'s text, or a type of model and its ratio.

    With one of ``OTHER_NAMES`` the same number means the turned picture: 0.25 is 512 × 2048 there, 2048 × 512 here.
    Raises ValueError for choices that name none.
    """
    if base in OTHER_NAMES:
        same = bin_named(OTHER_NAMES[base], ratio)
        return replace(same, height=same.width, width=same.height)
    try:
        number = int(base)
    except ValueError:
        number = 0
    return bin_named(number, ratio)


def size_table() -> dict:
    """What a list of sizes needs, as JSON takes it: the options' numbers, and (width, height, tokens) at every base."""
    return {
        "options": ratio_options(),
        "square": default_ratio_option(),
        "bases": {
            str(base): [
                [entry.width, entry.height, entry.tokens]
                for entry in (bin_named(base, option) for option in ratio_options())
            ]
            for base in BASES
        },
    }


def nearest_base(height: int, width: int) -> int:
    """The base whose square has the area nearest to ``height`` × ``width`` pixels, as a factor."""
    _require_size(height, width)
    return min(BASES, key=lambda base: abs(math.log(height * width) - 2 * math.log(base)))


def nearest_bin(height: int, width: int, base: int | None = None) -> Bin:
    """The bin whose ratio is nearest to ``height`` / ``width``; the first of the table wins a tie.

    base: None takes the base of the nearest area. Raises ValueError for sizes below 1 or an unknown base.
    Source: PixArt-α and PixArt-Σ, get_closest_ratio.
    """
    _require_size(height, width)
    table = bins(nearest_base(height, width) if base is None else base)
    return min(table, key=lambda entry: abs(float(entry.ratio) - height / width))


def advice(height: int, width: int, native_pixels: int) -> str | None:
    """One line when ``height`` × ``width`` is far from what a checkpoint was trained on, else None.

    native_pixels: side of the checkpoint's square picture (``PixArtConfig.native_pixels``). Far is half its
    area or less, twice or more, or an aspect beyond 4:1 by more than a tenth.
    """
    _require_size(height, width)
    area = height * width / native_pixels**2
    stretch = max(height / width, width / height)
    if 1 / _FAR_AREA < area < _FAR_AREA and stretch <= 4 * _FAR_RATIO:
        return None
    fit_height, fit_width = trained_size(height, width, native_pixels)
    said = f"{area:.2g} times the area" if not 1 / _FAR_AREA < area < _FAR_AREA else f"an aspect of {stretch:.2g}:1"
    known = f"trained around {native_pixels} × {native_pixels}" if "area" in said else "trained up to 4:1"
    return f"{width} × {height} is {said} for a checkpoint {known}; {fit_width} × {fit_height} fits."


def trained_size(height: int, width: int, native_pixels: int) -> tuple[int, int]:
    """(height, width) of the bin with the nearest ratio at a checkpoint's own size, which need not be one of BASES.

    Raises ValueError for sizes below 1.
    """
    if native_pixels in BASES:
        entry = nearest_bin(height, width, native_pixels)
        return entry.height, entry.width
    entry = nearest_bin(height, width, _COMMON_BASE)
    scale = native_pixels / _COMMON_BASE / 16
    return max(16, 16 * round(entry.height * scale)), max(16, 16 * round(entry.width * scale))


def _require_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"A picture of {width} × {height} pixels has no aspect ratio; give sizes of at least 1.")
