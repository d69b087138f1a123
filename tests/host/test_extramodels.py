"""Workflows of ComfyUI_ExtraModels run on this pack's nodes where that pack is not installed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixart.resolution import OTHER_NAMES, chosen_bin

OLD = Path(__file__).resolve().parents[1] / "data" / "extramodels"

WIDTH = 216  # of the demo's transformer

SIZES = {
    ("PixArtMS_XL_2", "0.25"): (512, 2048),
    ("PixArtMS_XL_2", "0.52"): (704, 1344),
    ("PixArtMS_XL_2", "1.46"): (1216, 832),
    ("PixArtMS_Sigma_XL_2_2K", "0.57"): (1536, 2688),
    ("PixArtMS_Sigma_XL_2_512", "4.00"): (1024, 256),
    ("PixArt_XL_2", "1.00"): (512, 512),
}
"""What that pack's node gave as (width, height): its ratio is width / height."""


def test_presets_keep_their_meaning_and_not_their_letters():
    found = {old: (chosen_bin(*old).width, chosen_bin(*old).height) for old in SIZES}
    assert found == SIZES
    assert {base for base, _ in SIZES} <= set(OTHER_NAMES)


@pytest.mark.parametrize("name", ["sigma", "alpha_reference", "simple"])
def test_an_old_workflow_runs_through_the_hosts_own_replacement(client, name):
    graph = json.loads((OLD / f"{name}_api.json").read_text(encoding="utf-8"))
    result = client.run(graph)
    assert result.error is None, result.error
    (picture,) = client.images(result, "9")
    assert picture.size == {"sigma": (384, 672), "alpha_reference": (128, 128), "simple": (128, 128)}[name]


def test_a_preset_that_never_was_is_refused_with_the_ones_near_it(client):
    graph = json.loads((OLD / "sigma_api.json").read_text(encoding="utf-8"))
    wrong = copy.deepcopy(graph)
    wrong["4"]["inputs"]["ratio"] = "0.99"
    with pytest.raises(Exception, match="No table has the ratio 0.99"):
        client.run(wrong)


@pytest.fixture(scope="module")
def lora(server) -> str:
    """A LoRA for the demo, as diffusers names its layers, in the server's folder."""
    generator = torch.Generator().manual_seed(3)
    rows = {
        f"transformer.transformer_blocks.{block}.attn1.{layer}.lora_{part}.weight": shape
        for block in range(5)
        for layer in ("to_q", "to_v")
        for part, shape in (("A", (4, WIDTH)), ("B", (WIDTH, 4)))
    }
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in rows.items()}
    save_file(tensors, folder / "of-old-workflows.safetensors")
    return "of-old-workflows.safetensors"


def test_an_old_lora_loader_becomes_ours_at_its_strength(client, lora):
    """The replaced graph draws what the same graph with this pack's own node draws, and that is not the bare model."""
    bare = json.loads((OLD / "simple_api.json").read_text(encoding="utf-8"))
    old, new = copy.deepcopy(bare), copy.deepcopy(bare)
    for graph in (old, new):
        graph["10"]["inputs"]["model"] = ["20", 0]
    old["20"] = {
        "class_type": "PixArtLoraLoader",
        "inputs": {"model": ["1", 0], "lora_name": lora, "strength": 0.6},
        "_meta": {"title": "PixArt Load LoRA"},
    }
    new["20"] = {
        "class_type": "PixArtLoadLora",
        "inputs": {"model": ["1", 0], "lora_name": lora, "strength_model": 0.6, "strength_clip": 0.0},
        "_meta": {"title": "PixArt Load LoRA"},
    }
    results = [client.run(graph) for graph in (bare, old, new)]
    assert [result.error for result in results] == [None] * 3
    plain, replaced, own = (client.images(result, "9")[0].tobytes() for result in results)
    assert replaced == own
    assert replaced != plain
