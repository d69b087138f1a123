"""The page on faults says what the tests do."""

from __future__ import annotations

import ast
from pathlib import Path

import faults

ROOT = Path(__file__).resolve().parents[2]
PLAYED = [ROOT / "tests" / "host" / name for name in ("test_faults.py", "test_killed.py")]


def test_the_page_is_the_table_of_the_tests():
    page = (ROOT / "tests" / "FAULTS.md").read_text(encoding="utf-8")
    assert page == faults.render(), "write it anew: python tests/harness/faults.py > tests/FAULTS.md"


def test_every_story_is_acted_out_by_a_test():
    functions = {
        node.name
        for path in PLAYED
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    told = [row.test for _, rows in faults.GROUPS for row in rows if isinstance(row, faults.Story)]
    assert sorted(set(told)) == sorted(told)
    assert [name for name in told if name.partition("[")[0] not in functions] == []
    kinds = [name.partition("[")[2].rstrip("]") for name in told if "[" in name]
    assert kinds == ["caption", "lora", "state", "features", "sheet"]


def test_every_fault_is_a_row_of_the_page_and_no_two_are_the_same():
    shown = [row for _, rows in faults.GROUPS for row in rows if isinstance(row, faults.Fault)]
    assert shown == faults.FAULTS
    assert len({(row.at, row.do, row.workflow, row.call, row.times) for row in shown}) == len(shown)
    assert all(row.node or row.sees in (faults.PICTURE, faults.NEARLY, faults.STOPPED) for row in shown)
