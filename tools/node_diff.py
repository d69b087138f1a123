"""``python3 tools/node_diff.py FOLDER``: what of the nodes in another checkout this one would break.

Saved workflows hold node ids, inputs by name and by position, and outputs by position. FOLDER is a checkout of the
version that people have; the exit code is 1 where one of their workflows would not open as it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.terminal import leave
from tools.environment import ROOT, say
from tools.schemas import NodeText, SchemaError, Slot, read_nodes


def breaks(before: Sequence[NodeText], after: Sequence[NodeText]) -> list[str]:
    """One sentence for everything that saved workflows rely on and that is no longer so."""
    now = {node.node_id: node for node in after}
    found = []
    for old in before:
        new = now.get(old.node_id)
        if new is None:
            found.append(f"{old.node_id} is gone.")
            continue
        found += changed_slots(old.node_id, "input", old.inputs, new.inputs)
        found += changed_slots(old.node_id, "output", old.outputs, new.outputs)
    return found


def changed_slots(node_id: str, what: str, before: Sequence[Slot], after: Sequence[Slot]) -> list[str]:
    """Every old slot must be at its place; what is new comes after."""
    found = []
    for position, old in enumerate(before):
        new = after[position] if position < len(after) else None
        if new is None or (old.name, old.kind) != (new.name, new.kind):
            there = "nothing" if new is None else described(new)
            found.append(f"{node_id}: {what} {position} was {described(old)} and is {there}.")
    return found


def described(slot: Slot) -> str:
    return f"{slot.name} ({slot.kind})" if slot.name else slot.kind


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Compares the nodes of another checkout with those of this one.")
    parser.add_argument("folder", type=Path, help="a checkout of the version that people have")
    nodes = parser.parse_args(arguments).folder / "nodes"
    if not nodes.is_dir():
        parser.error(f"{nodes} is no folder: name a checkout of this pack.")
    try:
        found = breaks(read_nodes(nodes), read_nodes(ROOT / "nodes"))
    except SchemaError as error:
        print(error, file=sys.stderr)
        return 2
    for line in found:
        say(line)
    say(f"{len(found)} changes that break saved workflows")
    return 1 if found else 0


if __name__ == "__main__":
    leave(lambda: main(sys.argv[1:]))
