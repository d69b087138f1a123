"""The table of a run, a row a picture, from which it goes on where it stopped."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from PIL import Image

from ..files import written

TABLE = "results.csv"
SHEET = "sheet.png"
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Result:
    """One picture that was drawn. file: its name in the run's folder; score: what was right of what was asked, 0 … 1,
    "" where nothing judged it; wrong: what was not, in words."""

    index: int
    category: str
    prompt: str
    seed: int
    file: str
    seconds: str = ""
    settings: str = ""
    score: str = ""
    wrong: str = ""


NAMES = [field.name for field in fields(Result)]


def picture_name(index: int) -> str:
    return f"{index:05}.png"


def part_name(rank: int) -> str:
    """The table that one of several processes writes."""
    return f"results-{rank}.csv"


def append(path: Path, result: Result) -> None:
    """Add a row, and have it on the disk before the next picture begins; half a row of a killed run is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_rows = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    if whole_rows[2]:
        os.truncate(path, len(whole_rows[0]) + len(whole_rows[1]))
    is_new = not whole_rows[1]
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, NAMES)
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(result))
        file.flush()
        os.fsync(file.fileno())


def read_table(path: Path) -> list[Result]:
    """The rows of a table; one that was cut short when a run was killed counts as not there.

    Raises ValueError when the file is another table, or names pictures other than those of a run.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no table of a run is.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if table.fieldnames is not None and list(table.fieldnames) != NAMES:
                raise ValueError(f"its columns are {', '.join(table.fieldnames)[:200]}")
            return [result_of(row) for row in table if all(row[name] is not None for name in NAMES)]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no table of a run: {error}. Give another name for run.") from error


def result_of(row: dict[str, str]) -> Result:
    """A row of a table. It may be another's, so that it must name the picture that its number has, and no other."""
    result = Result(**{name: row[name] for name in NAMES} | {name: int(row[name]) for name in ("index", "seed")})
    if result.index < 0 or result.file != picture_name(result.index):
        raise ValueError(f"number {result.index} names the file {result.file[:80]!r}")
    return result


def recorded(folder: Path) -> dict[int, Result]:
    """Place in the prompt file → result, of every picture of a run that is there with its row."""
    tables = sorted(folder.glob("results*.csv"))
    rows = [row for table in tables for row in read_table(table)]
    return {row.index: row for row in rows if (folder / row.file).is_file()}


def write_table(path: Path, results: Iterable[Result]) -> None:
    """All rows, in the order of the prompt file, put in place at once."""
    with written(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, NAMES)
        writer.writeheader()
        writer.writerows(asdict(result) for result in sorted(results, key=lambda result: result.index))


def save_picture(picture: Image.Image, path: Path) -> None:
    """A PNG, put in place at once: a picture that is there counts as drawn."""
    with written(path) as partial:
        picture.save(partial, format="PNG")


def check_same_run(results: Iterable[Result], settings: str, folder: Path) -> None:
    """Raises ValueError when a folder holds pictures that were drawn with other settings."""
    other = next((result for result in results if result.settings != settings), None)
    if other is not None:
        raise ValueError(
            f"{folder} holds pictures drawn with {other.settings or 'unknown settings'}, not with {settings}: "
            "choose another folder, or empty this one."
        )


def by_category(results: Sequence[Result]) -> list[tuple[str, int, float | None, float]]:
    """(category, pictures, wholly right ones or None, seconds a picture), and last all of them under "all"."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.index):
        groups.setdefault(result.category, []).append(result)
    rows = []
    for name, group in [*groups.items(), ("all", list(results))]:
        judged = [float(result.score) for result in group if result.score != ""]
        seconds = [float(result.seconds) for result in group if result.seconds != ""]
        right = sum(score == 1 for score in judged) if judged else None
        rows.append((name, len(group), right, sum(seconds) / len(seconds) if seconds else 0.0))
    return rows
