"""A change that breaks saved workflows is found before it is merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import node_diff
from tools.schemas import read_nodes

ROOT = Path(__file__).resolve().parents[2]

SOURCE = """
class Node(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Node", display_name="Node", description="Does it.",
            inputs=[io.Model.Input("model", tooltip="It."), io.Int.Input("steps", default=4, tooltip="How many.")],
            outputs=[io.Model.Output(tooltip="It."), io.Int.Output(display_name="left", tooltip="Rest.")],
        )
"""


def nodes(folder: Path, source: str):
    folder.mkdir()
    (folder / "node.py").write_text(source)
    return read_nodes(folder)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('node_id="Node"', 'node_id="Other"', ["Node is gone."]),
        ('"steps"', '"count"', ["Node: input 1 was steps (io.Int) and is count (io.Int)."]),
        ("io.Int.Input", "io.Float.Input", ["Node: input 1 was steps (io.Int) and is steps (io.Float)."]),
        (
            ', io.Int.Output(display_name="left", tooltip="Rest.")',
            "",
            ["Node: output 1 was left (io.Int) and is nothing."],
        ),
        (
            'inputs=[io.Model.Input("model", tooltip="It."), ',
            'inputs=[io.Model.Input("model", tooltip="It."), io.Int.Input("seed", tooltip="New."), ',
            ["Node: input 1 was steps (io.Int) and is seed (io.Int)."],
        ),
    ],
    ids=["another id", "a renamed input", "another type", "an output less", "a new input between old ones"],
)
def test_what_old_workflows_would_miss_is_named(tmp_path, old, new, expected):
    assert old in SOURCE
    before, after = nodes(tmp_path / "before", SOURCE), nodes(tmp_path / "after", SOURCE.replace(old, new))
    assert node_diff.breaks(before, after) == expected


def test_new_inputs_at_the_end_new_words_and_new_nodes_break_nothing(tmp_path):
    longer = SOURCE.replace('"How many.")]', '"How many steps."), io.Int.Input("seed", tooltip="New.")]')
    more = longer + SOURCE.replace("Node", "Another")
    assert longer != SOURCE
    assert node_diff.breaks(nodes(tmp_path / "before", SOURCE), nodes(tmp_path / "after", more)) == []


def test_a_checkout_does_not_break_itself_and_another_folder_is_refused(tmp_path, capsys):
    assert node_diff.main([str(ROOT)]) == 0
    with pytest.raises(SystemExit):
        node_diff.main([str(tmp_path)])
    assert "is no folder: name a checkout of this pack" in capsys.readouterr().err
