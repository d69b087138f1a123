"""Files of prompts with categories: CSV, TSV, JSON and TXT, as DrawBench, PartiPrompts and their like have them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..plain_text import read_text

SUFFIXES = (".csv", ".tsv", ".json", ".txt")

PROMPT_NAMES = ("prompt", "prompts", "caption", "text")
CATEGORY_NAMES = ("category", "categories", "tag")

MAX_BYTES = 16 * 2**20
MAX_PROMPTS = 100_000
MAX_CHARACTERS = 20_000
"""Of one prompt; T5 reads its first 300 tokens."""

MAX_CATEGORY = 200
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Prompt:
    """One of a file: its place there from 0, its text, its category ("" where there is none), its own seed."""

    index: int
    text: str
    category: str = ""
    seed: int | None = None

    def seed_from(self, first: int) -> int:
        """Its own seed, or else ``first`` plus its place in the file, whatever else of the file is drawn.

        After the highest seed comes 0.
        """
        return (first + self.index) % (MAX_SEED + 1) if self.seed is None else self.seed


def read_prompts(path: str | Path) -> list[Prompt]:
    """Every prompt of a file.

    CSV and TSV need a header with a column "prompt" or "prompts"; "category" and "seed" are read too. JSON is a list
    of texts or of objects with such keys, one such object, or an object of lists by category. TXT has a prompt a line;
    a line that begins with # names the category of those after it. The text is UTF-8, or UTF-16 that says so.

    Raises ValueError when it is none of these, and for a table whose quotation marks are not in pairs: rows would be
    lost between them.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name} is no prompt file: its name must end in {', '.join(SUFFIXES)}.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_BYTES >> 20} MiB, which no file of prompts is.")
    text = read_text(path)
    reader = {".csv": csv_rows, ".tsv": tsv_rows, ".json": json_rows, ".txt": text_rows}[path.suffix.lower()]
    try:
        rows = ((one_line(words), one_line(category), seed) for words, category, seed in reader(text, path.name))
        prompts = [Prompt(index, *row) for index, row in enumerate(row for row in rows if row[0])]
    except csv.Error as error:
        raise ValueError(
            f"{path.name} is no table that can be read ({error}). A prompt with a comma or a quotation mark stands in "
            'quotation marks, and each within it is written twice: "a ""red"" cat".'
        ) from error
    check_sizes(prompts, path.name)
    return prompts


def one_line(text: str) -> str:
    return " ".join(text.split())


def check_sizes(prompts: Sequence[Prompt], name: str) -> None:
    """Raises ValueError for no prompt, too many, or one that is too long."""
    if not prompts:
        raise ValueError(f"{name} holds no prompt: write one on every line.")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"{name} holds {len(prompts)} prompts, more than {MAX_PROMPTS}: split it.")
    for number, prompt in enumerate(prompts, start=1):
        for what, text, most in (("", prompt.text, MAX_CHARACTERS), ("category of ", prompt.category, MAX_CATEGORY)):
            if len(text) > most:
                found = f"{name}: the {what}prompt number {number} has {len(text)} characters"
                raise ValueError(f"{found}, more than {most}. Shorten it.")


def choose(prompts: Iterable[Prompt], category: str = "", limit: int = 0) -> list[Prompt]:
    """Those of one or more categories, separated by commas (all where empty), and at most ``limit`` (all where 0).

    Raises ValueError for a category that no prompt has.
    """
    prompts = list(prompts)
    wanted = [name.strip().lower() for name in category.split(",") if name.strip()]
    known = list(dict.fromkeys(prompt.category for prompt in prompts))
    for name in wanted:
        if name not in (other.lower() for other in known):
            listed = ", ".join(repr(other) for other in known)
            raise ValueError(f"There is no category {name!r} in the file; it has {listed}.")
    chosen = [prompt for prompt in prompts if not wanted or prompt.category.lower() in wanted]
    return chosen[:limit] if limit > 0 else chosen


Row = tuple[str, str, int | None]


def csv_rows(text: str, name: str, delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> list[Row]:
    """Raises ValueError for a table without a column of prompts, and csv.Error for one that is none."""
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    columns = {(column or "").strip().lower(): column for column in table.fieldnames or ()}
    prompt = next((columns[known] for known in PROMPT_NAMES if known in columns), None)
    if prompt is None:
        raise ValueError(
            f"{name} has the columns {', '.join(map(repr, columns)) or 'none'}: its first line must name one "
            "“prompt”, and may name “category” and “seed”."
        )
    category = next((columns[known] for known in CATEGORY_NAMES if known in columns), None)
    seed = columns.get("seed")
    return [
        (
            row[prompt] or "",
            (row[category] or "") if category else "",
            whole(row[seed], f"{name}, line {table.line_num}") if seed else None,
        )
        for row in table
    ]


def tsv_rows(text: str, name: str) -> list[Row]:
    """Spreadsheets quote a prompt that holds a quotation mark; published sets quote none, and take it as it is."""
    try:
        return csv_rows(text, name, "\t")
    except csv.Error:
        return csv_rows(text, name, "\t", csv.QUOTE_NONE)


def json_rows(text: str, name: str) -> list[Row]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}.") from error
    if isinstance(data, dict) and not any(isinstance(value, list | dict) for value in data.values()):
        if any(str(key).lower() in PROMPT_NAMES for key in data):
            data = [data]
    if isinstance(data, dict):
        data = [
            {"category": category, **(entry if isinstance(entry, dict) else {"prompt": entry})}
            for category, entries in data.items()
            for entry in (entries if isinstance(entries, list) else [entries])
        ]
    if not isinstance(data, list):
        raise ValueError(f"{name} holds a {type(data).__name__}: a list, or lists by category, is needed.")
    return [json_row(entry, f"{name}, entry {number}") for number, entry in enumerate(data, start=1)]


def json_row(entry: object, where: str) -> Row:
    if isinstance(entry, str):
        return entry, "", None
    if isinstance(entry, dict):
        values = {str(key).lower(): value for key, value in entry.items()}
        prompt = next((values[known] for known in PROMPT_NAMES if known in values), None)
        category = next((values[known] for known in CATEGORY_NAMES if known in values), "")
        if isinstance(prompt, str):
            return prompt, str(category or ""), whole(values.get("seed"), where)
    raise ValueError(f"{where} is neither a text nor an object with a “prompt”.")


def text_rows(text: str, name: str) -> list[Row]:
    rows, category = [], ""
    for line in text.splitlines():
        if line.startswith("#"):
            category = line.lstrip("#").strip()
        else:
            rows.append((line, category, None))
    return rows


def whole(value: object, where: str) -> int | None:
    """A seed, or None where there is none."""
    if value is None or str(value).strip() == "":
        return None
    try:
        seed = int(str(value))
    except ValueError:
        seed = -1
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{where}: the seed {str(value)[:40]!r} is no whole number from 0 to 2^64 - 1.")
    return seed
