"""KV compression on a MODEL: clones side by side, every size there is, and the memory that the host is told of."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from random_models import random_checkpoint

from pixart.compression import COMPRESSION, KVCompression
from pixart.config import PixArtConfig
from pixart.resolution import BASES, bins

TINY = PixArtConfig(
    hidden_size=144, depth=4, num_heads=2, mlp_hidden_size=288, caption_channels=64, base_size=8, pe_interpolation=0.25
)
NARROW = PixArtConfig(hidden_size=24, depth=1, num_heads=1, mlp_hidden_size=24, caption_channels=16, base_size=128)
WIDE = PixArtConfig(depth=2, caption_channels=64)
"""Two blocks of released width."""
MEASURE = Path(__file__).resolve().parents[1] / "harness" / "forward_memory.py"
MEASURED = (512, 640, 768)
"""Pixels."""


@pytest.fixture(scope="module")
def load(pack, tmp_path_factory):
    """Config, weight type → a MODEL with random weights."""
    host_model = import_module(f"{pack.__name__}.nodes.host.model")
    folder = tmp_path_factory.mktemp("kv")

    def of(config: PixArtConfig, weight_dtype: str = "auto"):
        path = folder / f"{abs(hash(config))}.safetensors"
        return host_model.load_model(random_checkpoint(path, config), weight_dtype)

    return of


@pytest.fixture(scope="module")
def dense(load):
    return load(TINY)


@pytest.fixture(scope="module")
def compress(node_classes):
    """The node's output; ranges and sizes that suit the tiny model where the test does not say."""

    def run(model, sampling="average", ratio=2, first_block=1, last_block=3, min_tokens=0):
        node = node_classes["PixArtKVCompression"]
        return node.execute(model, sampling, ratio, first_block, last_block, min_tokens).args[0]

    node_classes["PixArtKVCompression"].hidden = type("Hidden", (), {"unique_id": None})
    return run


def caption(tokens: int, seed: int, width: int = 64) -> list:
    return [[torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed)), {}]]


def sample(model, size=(16, 16), steps=2, cfg=4.5, width=64) -> torch.Tensor:
    import comfy.sample

    noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(3))
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "normal", caption(5, 1, width), caption(2, 2, width),
        torch.zeros_like(noise), seed=3, disable_pbar=True,
    )  # fmt: skip


@pytest.mark.parametrize("sampling", ["conv", "average", "uniform", "uniform_every"])
@pytest.mark.parametrize("weight_dtype", ["auto", "fp8_e4m3fn"])
def test_two_models_of_one_checkpoint_are_sampled_side_by_side(load, compress, sampling, weight_dtype):
    model = load(TINY, weight_dtype)
    plain = sample(model)
    clone = compress(model, sampling)
    first = sample(clone)
    assert first.isfinite().all()
    assert (first - plain).abs().max() > 1e-3
    assert torch.equal(sample(model), plain)
    assert torch.equal(sample(clone), first)
    assert COMPRESSION not in model.model_options["transformer_options"]


def test_the_last_of_two_settings_counts(dense, compress):
    once = sample(compress(dense, "uniform"))
    assert torch.equal(sample(compress(compress(dense, "average", ratio=3), "uniform")), once)
    assert torch.equal(sample(compress(compress(dense, "average"), ratio=1)), sample(dense))


def test_small_pictures_are_left_alone(dense, compress):
    clone = compress(dense, min_tokens=65)
    assert torch.equal(sample(clone), sample(dense))
    assert not torch.equal(sample(clone, (18, 16)), sample(dense, (18, 16)))


def test_a_range_past_the_models_end_is_refused_with_its_number(dense, compress):
    with pytest.raises(ValueError, match="first_block is 14, but the last block of this model is 3.*begins at 2"):
        compress(dense, first_block=14, last_block=27)


def test_a_trained_convolution_draws_by_itself_and_the_node_says_where_one_is_missing(load, pack):
    host = import_module(f"{pack.__name__}.nodes.host.compression")
    model = load(replace(TINY, kv_ratios=(1, 1, 2, 2)))
    own = sample(model)
    same, said = host.compressed(model, KVCompression("conv", 2, 2, 3))
    assert said == "Blocks 2–3: conv, ratio 2"
    assert torch.equal(sample(same), own)
    wider, said = host.compressed(model, KVCompression("conv", 2, 1, 27))
    assert said.startswith("Blocks 1–3: conv, ratio 2. Blocks 1 hold no trained convolution of this ratio")
    assert not torch.equal(sample(wider), own)


def test_a_compressed_model_is_saved_under_the_original_names_and_reads_back(load, tmp_path, pack):
    from comfy_extras.nodes_model_merging import save_checkpoint
    from safetensors import safe_open

    config = replace(TINY, kv_ratios=(1, 1, 2, 2), qk_norm=True)
    model = load(config)
    save_checkpoint(model, filename_prefix="saved", output_dir=str(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        names = {name.removeprefix("model.diffusion_model.") for name in opened.keys()}  # noqa: SIM118
    assert {"blocks.2.attn.sr.weight", "blocks.3.attn.norm.bias", "blocks.0.attn.q_norm.weight"} <= names
    again = import_module(f"{pack.__name__}.nodes.host.model").load_model(str(file))
    assert again.model.pixart.config == model.model.pixart.config
    assert torch.equal(sample(again), sample(model))


def test_perturbed_attention_guidance_goes_with_compression(dense, compress):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    clone = compress(dense)
    guided = sample(PerturbedAttentionGuidance.execute(clone, 3.0).args[0])
    assert guided.isfinite().all() and (guided - sample(clone)).abs().max() > 1e-3


@pytest.mark.parametrize("base", BASES)
def test_every_bin_of_every_table_is_sampled(base, load, compress):
    """All 233 sizes, 4:1 included, through the host's sampler; compressed, or 65 536 tokens would take minutes."""
    model = compress(load(NARROW), "average", ratio=16 if base > 512 else 3, first_block=0, last_block=0)
    for entry in bins(base):
        size = (entry.height // 8, entry.width // 8)
        out = sample(model, size, steps=1, cfg=1.0, width=16)
        assert out.shape == (1, 4, *size) and out.isfinite().all(), entry


def test_a_far_size_is_said_once_a_run_with_the_bin_that_fits(dense, caplog):
    with caplog.at_level(logging.WARNING):
        sample(dense, (16, 16))
        assert not [r for r in caplog.records if "fits" in r.message]
        sample(dense, (32, 40))
    (line,) = [r.message for r in caplog.records if "fits" in r.message]
    assert line.endswith("320 × 256 is 5 times the area for a checkpoint trained around 128 × 128; 128 × 112 fits.")


@pytest.fixture(scope="module")
def told_and_taken(host, tmp_path_factory) -> list[dict]:
    """Of forwards at released width, by a process whose allocator hides nothing."""
    path = random_checkpoint(tmp_path_factory.mktemp("wide") / "wide.safetensors", WIDE)
    command = [sys.executable, str(MEASURE), str(host.path), path, *map(str, MEASURED)]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("pixels", MEASURED)
@pytest.mark.parametrize("is_compressed", [False, True], ids=["dense", "compressed"])
def test_memory_required_is_what_a_forward_takes(pixels, is_compressed, told_and_taken):
    """Within a fifth."""
    (case,) = [c for c in told_and_taken if (c["pixels"], c["compressed"]) == (pixels, is_compressed)]
    print(case)
    assert case["told"] == pytest.approx(case["taken"], rel=0.2)


def test_the_run_knows_of_its_compression_and_forgets_it(dense, compress, pack):
    memory = import_module(f"{pack.__name__}.nodes.host.memory")
    seen = []
    inner = memory.most_keys

    def note(*args):
        seen.append(memory.active_compression.get())
        return inner(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "most_keys", note)
        sample(compress(dense, "uniform", ratio=3))
        assert {chosen.ratio for chosen in seen} == {3}
        seen.clear()
        sample(dense)
        assert set(seen) == {None}
    assert memory.active_compression.get() is None
