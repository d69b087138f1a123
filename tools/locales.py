"""``python3 tools/locales.py``: English translations and fallback help pages, from the nodes as they are.

Writes ``locales/en/nodeDefs.json`` from the schemas in nodes/ and ``js/docs/<id>.md``, the page for languages without
one of their own, from ``js/docs/<id>/en.md``. Then it lists what other languages lack, or have too much.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.terminal import leave
from tools.environment import ROOT, say
from tools.schemas import NodeText, SchemaError, read_nodes

LOCALES = ROOT / "locales"
DOCS = ROOT / "js" / "docs"
NODE_FILES = "nodeDefs.json"


def english(nodes: Sequence[NodeText]) -> dict[str, dict]:
    """The schemas' words in the front end's form.

    Options are left out: the front end does not translate a node's choices, and they are values in workflows. So are
    names of outputs that have none of their own: the front end shows the translated type instead.
    """
    return {
        node.node_id: {
            "display_name": node.display_name,
            "description": node.description,
            "inputs": {entry.name: {"name": entry.name, "tooltip": entry.tooltip} for entry in node.inputs},
            "outputs": {
                str(index): {"name": entry.name, "tooltip": entry.tooltip} if entry.name else {"tooltip": entry.tooltip}
                for index, entry in enumerate(node.outputs)
            },
        }
        for node in nodes
    }


def strings(tree: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string of a translation, by the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from strings(value, (*path, key))
        else:
            yield (*path, key), value


def compare(expected: dict, found: dict) -> tuple[list[str], list[str]]:
    """Keys that a translation lacks, and keys that no node has any more, dotted."""
    wanted, given = (dict(strings(tree)) for tree in (expected, found))
    untranslated = [".".join(path) for path in wanted if not given.get(path, "").strip()]
    return untranslated, [".".join(path) for path in given if path not in wanted]


def read(language: str) -> dict:
    file = LOCALES / language / NODE_FILES
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def languages() -> list[str]:
    """Those that have a folder, English among them."""
    return sorted(folder.name for folder in LOCALES.iterdir() if folder.is_dir())


def main() -> int:
    try:
        nodes = read_nodes(ROOT / "nodes")
    except SchemaError as error:
        print(error, file=sys.stderr)
        return 2
    words = english(nodes)
    target = LOCALES / "en" / NODE_FILES
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(words, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    for page in sorted(DOCS.glob("*/en.md")):
        shutil.copyfile(page, DOCS / f"{page.parent.name}.md")
    trouble = 0
    for language in languages():
        untranslated, stale = compare(words, read(language))
        say(f"{language}: {len(untranslated)} untranslated, {len(stale)} stale")
        for key in [*untranslated, *stale]:
            say(f"  {key}")
        trouble += len(untranslated) + len(stale)
    return 1 if trouble else 0


if __name__ == "__main__":
    leave(main)
