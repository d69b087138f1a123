"""A LoRA out of the difference of two checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixart.checkpoint import load_transformer, open_checkpoint, state_dict_to_save
from pixart.checkpoint.keys import diffusers_names
from pixart.command import lora_argument
from pixart.config import PixArtConfig
from pixart.lora import open_lora
from pixart.pipeline import PixArtPipeline
from pixart.training.extract import extract, main
from pixart.training.initialise import initialise
from pixart.transformer import PixArtTransformer

CONFIG = PixArtConfig(family="sigma", hidden_size=72, depth=2, num_heads=2, mlp_hidden_size=144, caption_channels=32)
RANK = 4


def model(seed: int = 0) -> PixArtTransformer:
    return initialise(PixArtTransformer(CONFIG), torch.Generator().manual_seed(seed))


def tuned(rank: int) -> PixArtTransformer:
    """The model with a difference of that rank in every projection of every block's linear layers."""
    chance = torch.Generator().manual_seed(3)
    other = model()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if parameter.ndim == 2 and name.startswith("blocks") and name.endswith(".weight"):
                parts = {"qkv.weight": 3, "kv_linear.weight": 2}.get(name.rsplit(".", 2)[-2] + ".weight", 1)
                for rows in parameter.chunk(parts):
                    up, down = (torch.randn(n, rank, generator=chance) for n in rows.shape)
                    rows += 0.01 * up @ down.T
    return other


def merged(base: PixArtTransformer, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {}
    for name, weight in base.named_parameters():
        layers = ["transformer." + part.removesuffix(".weight") for part in diffusers_names(name)]
        if layers and f"{layers[0]}.lora_A.weight" in state:
            added = [state[f"{n}.lora_B.weight"].float() @ state[f"{n}.lora_A.weight"].float() for n in layers]
            weights[name] = weight + torch.cat(added)
    return weights


def test_a_difference_of_the_rank_comes_back_whole_and_a_larger_one_nearly():
    other = dict(tuned(RANK).named_parameters())
    state, lost = extract(model(), tuned(RANK), RANK)
    found = merged(model(), state)
    assert len(found) == 2 * 7  # qkv, proj, q, kv, proj, fc1, fc2 of two blocks
    assert max((found[name] - other[name]).abs().max() for name in found) < 1e-6
    assert lost < 1e-6
    _, half = extract(model(), tuned(RANK), RANK // 2)
    assert 0.1 < half < 0.5


def test_what_no_lora_holds_is_told_as_lost():
    other = tuned(RANK)
    with torch.no_grad():
        other.blocks[0].mlp.fc1.bias += 1
    _, lost = extract(model(), other, RANK)
    total = sum((a - b).pow(2).sum().item() for a, b in zip(other.parameters(), model().parameters(), strict=True))
    assert abs(lost - CONFIG.mlp_hidden_size / total) < 1e-4


def test_the_command_writes_what_the_loader_reads(tmp_path, capsys):
    for name, network in (("base", model()), ("tuned", tuned(RANK))):
        save_file(state_dict_to_save(network.state_dict(), CONFIG), tmp_path / f"{name}.safetensors")
    out = tmp_path / "made.safetensors"
    files = [str(tmp_path / "base.safetensors"), str(tmp_path / "tuned.safetensors")]
    assert main([*files, "--out", str(out), "--rank", str(RANK), "--trigger", "zork"]) == 0
    assert "rank 4 leaves out 0.0%" in capsys.readouterr().out
    with safe_open(out, "pt") as file:
        told = file.metadata()
    assert told["pixart_rank"] == "4" and told["pixart_trigger"] == "zork" and told["pixart_base"] == "base.safetensors"
    lora = open_lora(out)
    assert lora.kinds() == "LoRA" and len(lora.transformer) == 2 * 10 and not lora.leftover
    found = merged(load_transformer(open_checkpoint(tmp_path / "base.safetensors")), load_file(out))
    other = dict(tuned(RANK).named_parameters())
    assert max((found[name] - other[name]).abs().max() for name in found) < 1e-3  # the file is in fp16

    assert main([files[0], files[0], "--out", str(out)]) == 2
    assert "No linear layer" in capsys.readouterr().err
    assert main([*files, "--out", str(out), "--rank", "0"]) == 2
    assert "rank must be 1 or more" in capsys.readouterr().err


def test_the_pipeline_works_a_lora_into_its_weights(tmp_path):
    state, _ = extract(model(), tuned(RANK), RANK)
    save_file(state, tmp_path / "made.safetensors")
    pipeline = PixArtPipeline(model().requires_grad_(False), None, None, None)
    pipeline.add_lora(tmp_path / "made.safetensors", 0.5)
    before, after = dict(model().named_parameters()), dict(tuned(RANK).named_parameters())
    for name, weight in pipeline.transformer.named_parameters():
        assert (weight - (before[name] + after[name]) / 2).abs().max() < 1e-6, name
    small = PixArtTransformer(dataclasses.replace(CONFIG, depth=1))
    with pytest.raises(ValueError, match="made.safetensors.*changes blocks up to number 1"):
        PixArtPipeline(small, None, None, None).add_lora(tmp_path / "made.safetensors")


def test_the_pipeline_says_what_of_a_lora_it_leaves_out(tmp_path, caplog):
    state, _ = extract(model(), tuned(RANK), RANK)
    layer = "text_encoder.encoder.block.0.layer.0.SelfAttention.q"
    state |= {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.ones(32, 2)}
    save_file(state, tmp_path / "made.safetensors")
    PixArtPipeline(model().requires_grad_(False), None, None, None).add_lora(tmp_path / "made.safetensors")
    (said,) = caplog.messages
    assert f"1 of its names have no place, the first: {layer}: no T5 is loaded" in said


def test_a_lora_and_its_strength_on_the_command_line():
    assert lora_argument("some folder/a.safetensors") == (Path("some folder/a.safetensors"), 1.0)
    assert lora_argument("a=b.safetensors=-0.5") == (Path("a=b.safetensors"), -0.5)
    for strength in ("much", "nan", "inf"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{strength}' is no strength"):
            lora_argument(f"a.safetensors={strength}")


def test_a_tuned_checkpoint_without_the_null_caption_is_of_one_model_still():
    """As diffusers saves it. What else a file cannot tell, such as the native size, does not count either."""
    other = PixArtTransformer(dataclasses.replace(CONFIG, null_caption=False, base_size=16))
    other.load_state_dict(tuned(RANK).state_dict(), strict=False)
    state, lost = extract(model(), other, RANK)
    assert lost < 1e-6 and state


def test_a_checkpoint_with_more_layers_is_refused_in_words():
    more = PixArtTransformer(dataclasses.replace(CONFIG, kv_ratios=(2,) * CONFIG.depth))
    with pytest.raises(ValueError, match=r"holds blocks\.0\.attn\.sr\.weight.*which the base lacks"):
        extract(model(), more, RANK)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, capsys):
    other = dataclasses.replace(CONFIG, depth=1)
    save_file(state_dict_to_save(model().state_dict(), CONFIG), tmp_path / "base.safetensors")
    save_file(state_dict_to_save(PixArtTransformer(other).state_dict(), other), tmp_path / "other.safetensors")
    arguments = [str(tmp_path / f"{name}.safetensors") for name in ("base", "other")]
    assert main([*arguments, "--out", str(tmp_path / "made.safetensors")]) == 2
    assert "not of one model" in capsys.readouterr().err and not (tmp_path / "made.safetensors").exists()
