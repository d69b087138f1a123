"""The graphs inside the blueprints draw, with the demo's files in place of the released ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixart.resolution import chosen_bin

SOURCES = Path(__file__).resolve().parents[2] / "tools" / "blueprints"
SQUARE = "1.0 square · 1024 × 1024 at 1024"
CHOSEN = {
    "prompt": "a small red star on the left, blue background", "base": "256", "ratio": SQUARE, "steps": 2,
    "checkpoint": "pixart-demo-sigma.safetensors", "t5": "pixart-demo-t5.safetensors",
    "vae": "pixart-demo-vae.safetensors", "controlnet": "pixart-demo-controlnet.safetensors",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "enlarged"), [("PixArt Text to Image", 1), ("PixArt Hires", 2), ("PixArt ControlNet", 1)]
)
def test_a_blueprint_draws_at_the_size_that_it_says(client, name, enlarged):
    source = json.loads((SOURCES / f"{name}.json").read_text(encoding="utf-8"))
    graph = source["graph"]
    graph["picture"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
    for key, entry, label in source["inputs"]:
        if label in CHOSEN:
            graph[key]["inputs"][entry] = CHOSEN[label]
        elif label == "control image":
            graph[key]["inputs"][entry] = ["picture", 0]
    key, slot, _ = source["output"]
    graph["saved"] = {"class_type": "SaveImage", "inputs": {"images": [key, slot], "filename_prefix": "blueprint"}}
    result = client.run(graph)
    assert result.error is None, result.error
    (picture,) = client.images(result, "saved")
    side = chosen_bin("256", SQUARE).width * enlarged
    assert picture.size == (side, side)
