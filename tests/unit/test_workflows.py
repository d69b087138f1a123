"""Templates name the files that they need, from where and to where, as the front end's offer to fetch wants it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "PixArtLoadCheckpoint": "checkpoints", "PixArtLoadT5": "text_encoders", "VAELoader": "vae",
    "PixArtLoadControlNet": "controlnet",
}  # fmt: skip
FETCHED = re.compile(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/.+\.(safetensors|sft|ckpt|pth|pt)$")
"""What the front end fetches: huggingface.co or civitai, and these suffixes alone."""

EXTRAS = json.loads((ROOT / "tools" / "workflow_extras.json").read_text(encoding="utf-8"))
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))


def loaders(workflow: dict) -> list[dict]:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return [node for graph in graphs for node in graph["nodes"] if node["type"] in FOLDERS]


@pytest.mark.parametrize("path", [*TEMPLATES, *sorted((ROOT / "subgraphs").glob("*.json"))], ids=lambda path: path.stem)
def test_every_file_that_is_not_the_demos_can_be_fetched(path):
    for node in loaders(json.loads(path.read_text(encoding="utf-8"))):
        file = node["widgets_values"][0]
        offered = node["properties"].get("models", [])
        if (ROOT / "demo" / file).is_file():
            assert offered == []
            continue
        (entry,) = offered
        assert (entry["name"], entry["directory"]) == (file, FOLDERS[node["type"]])
        assert FETCHED.match(entry["url"]) and entry["url"].endswith(f"/{file}")


def test_every_graph_is_there_for_the_demo_and_every_twin_for_released_files():
    made = {path.stem for path in TEMPLATES}
    scripts = {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}
    twins = EXTRAS["twins"]
    assert set(twins) <= made <= scripts | set(twins)
    assert {spec["of"] for spec in twins.values()} <= scripts
    assert not scripts & set(twins), "one would overwrite the other"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_says_what_it_is_and_shows_a_picture(path):
    notes = [n for n in json.loads(path.read_text(encoding="utf-8"))["nodes"] if n["type"] == "MarkdownNote"]
    assert notes and notes[0]["widgets_values"][0].startswith("## ")
    assert path.with_suffix(".jpg").stat().st_size < 200_000
