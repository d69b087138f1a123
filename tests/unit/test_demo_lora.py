"""The demo's LoRAs in diffusers with PEFT: the same prediction as ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers_twin import twin
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from pixart.checkpoint import load_transformer, open_checkpoint
from pixart.pipeline import PixArtPipeline

DEMO = Path(__file__).resolve().parents[2] / "demo"


@pytest.mark.parametrize("name", ["pixart-demo-lora", "pixart-demo-lcm-lora"])
@torch.no_grad()
def test_diffusers_and_peft_predict_what_we_do_from_the_files_own_metadata(name):
    file = DEMO / f"{name}.safetensors"
    ours = load_transformer(open_checkpoint(DEMO / "pixart-demo-sigma.safetensors"), dtype=torch.float32)
    theirs = twin(ours)
    with safe_open(file, framework="pt") as opened:
        told = json.loads(opened.metadata()["lora_adapter_metadata"])
    told = {key.removeprefix("transformer."): value for key, value in told.items()}
    assert told.pop("peft_type") == "LORA"
    config = LoraConfig(**told)
    inject_adapter_in_model(config, theirs)
    state = {key.removeprefix("transformer."): tensor.float() for key, tensor in load_file(file).items()}
    result = set_peft_model_state_dict(theirs, state)
    assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora" in key]

    chance = torch.Generator().manual_seed(4)
    x, t = torch.randn(2, 4, 16, 16, generator=chance), torch.tensor([37, 812])
    caption = torch.randn(2, 6, ours.config.caption_channels, generator=chance)
    none = {"resolution": None, "aspect_ratio": None}
    expected = theirs(x, caption, t, added_cond_kwargs=none, return_dict=False)[0][:, :4]
    before = ours(x, t, caption)
    PixArtPipeline(ours.requires_grad_(False), None, None, None).add_lora(file)
    difference = (ours(x, t, caption) - expected).abs().max().item()
    print(f"{name}: largest difference {difference:.2e}, change by the LoRA {(expected - before).abs().max():.2e}")
    assert difference <= 1e-5
    assert (expected - before).abs().max() > 1e-2
