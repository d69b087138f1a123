"""The transformer against the original code's stored results, diffusers' class, and the position formula itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import pixart
import pixart.embeddings
from pixart.checkpoint import detect_config, to_diffusers, to_original
from pixart.compression import COMPRESSION, KVCompression
from pixart.config import PixArtConfig
from pixart.embeddings import position_grid
from pixart.transformer import PixArtTransformer

DATA = Path(__file__).parents[1] / "data"
GOLDEN = (
    "alpha_ms_1024_micro", "alpha_pixart_256", "alpha_pixart_512_cfgmask",
    "sigma_ms_1024", "sigma_ms_1024_micro", "sigma_ms_512", "sigma_pixart_256",
    "sigma_ms_1024_kv_conv2", "sigma_ms_1024_kv_ave2", "sigma_ms_1024_kv_uniform2", "sigma_ms_1024_kv_uniform_every4",
    "sigma_ms_1024_qknorm",
)  # fmt: skip

ROUNDED_OTHERWISE = ((12, 1.0), (106, 1.0))


def read_golden(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(DATA / "golden" / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118


def golden_transformer(tensors: dict[str, torch.Tensor], meta: dict) -> PixArtTransformer:
    state = to_original({key[2:]: tensor for key, tensor in tensors.items() if key.startswith("w.")})
    stated = {
        "pixart.family": meta["repo"],
        "pixart.num_heads": str(meta["num_heads"]),
        "pixart.base_size": str(meta["input_size"] // 2),
        "pixart.pe_interpolation": str(meta["pos_interp"]),
        "pixart.max_caption_tokens": str(meta["model_max_length"]),
    }
    config, _ = detect_config({key: tuple(tensor.shape) for key, tensor in state.items()}, stated)
    model = PixArtTransformer(config, device="meta")
    model.load_state_dict(state, assign=True)
    return model.eval()


def golden_options(meta: dict) -> dict:
    """The training-free compression that a file was made with; a convolution is in its weights."""
    kv = meta.get("kv")
    if not kv or kv["sampling"] == "conv":
        return {}
    sampling = {"ave": "uniform"}.get(kv["sampling"], kv["sampling"])  # "ave" picks the nearest token, like "uniform"
    return {COMPRESSION: KVCompression(sampling, kv["scale_factor"], *kv["kv_compress_layer"])}


@pytest.fixture
def golden_frequencies(monkeypatch):
    """The timestep's frequencies as the processor rounded them that the golden files were made on.

    Its float32 exponential is one unit in the last place off in two of 128 numbers. Other processors are off in
    others, and any of them moves results by up to 1e-4.
    """
    exact = pixart.embeddings.frequencies

    def rounded(count: int) -> torch.Tensor:
        values = exact(count)
        for index, towards in ROUNDED_OTHERWISE:
            values[index] = torch.nextafter(values[index], torch.tensor(towards))
        return values

    monkeypatch.setattr(pixart.embeddings, "frequencies", rounded)


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_results_of_the_original_code_are_reproduced(name, golden_frequencies):
    tensors, meta = read_golden(name)
    model = golden_transformer(tensors, meta)
    x, mask = tensors["in.x"], tensors["in.mask"]
    mask = mask.repeat(x.shape[0] // mask.shape[0], 1)  # the original repeats a mask given for half the CFG batch
    out = model(
        x, tensors["in.t"], tensors["in.y"].squeeze(1), mask,
        size=tensors["in.img_hw"], aspect_ratio=tensors["in.aspect_ratio"], learned_variance=True,
        transformer_options=golden_options(meta),
    )  # fmt: skip
    assert out.shape == tensors["out"].shape
    assert (out - tensors["out"]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", GOLDEN)
def test_position_grid_is_the_original_codes(name):
    tensors, meta = read_golden(name)
    height, width = (side // 2 for side in meta["latent_hw"])
    grid = position_grid(meta["hidden_size"], height, width, meta["input_size"] // 2, meta["pos_interp"])
    # The original rounds coordinates to float32: 1.9e-6 at the far end of [0, 32).
    assert (grid - tensors["mid.pos_embed"][0].double()).abs().max() <= 2e-6


def tiny_pair(family: str):
    """A PixArtTransformer and diffusers' class with the same random weights: width 144, 2 heads, 2 blocks."""
    diffusers = pytest.importorskip("diffusers")
    alpha = family == "alpha"
    torch.manual_seed(7 if alpha else 8)
    reference = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=72, num_layers=2, cross_attention_dim=144, caption_channels=32,
        sample_size=128 if alpha else 64, interpolation_scale=None if alpha else 1,
        use_additional_conditions=None if alpha else False,
    ).eval()  # fmt: skip
    state = to_original(reference.state_dict())
    config, _ = detect_config({key: tuple(tensor.shape) for key, tensor in state.items()}, None, dict(reference.config))
    model = PixArtTransformer(config, device="meta")
    model.load_state_dict(state, assign=True)
    return model.eval(), reference


@pytest.mark.parametrize("latent", [(64, 64), (72, 128), (40, 56)], ids=lambda hw: f"{hw[0]}x{hw[1]}")
@pytest.mark.parametrize("family", ["alpha", "sigma"])
@torch.no_grad()
def test_diffusers_computes_the_same(family, latent):
    model, reference = tiny_pair(family)
    assert model.config.family == family
    assert model.config.micro_condition == (family == "alpha")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, *latent, generator=generator)
    caption = torch.randn(2, 12, 32, generator=generator)
    mask = torch.ones(2, 12)
    mask[0, 5:] = 0  # captions of 5 and 12 tokens
    timesteps = torch.tensor([999.0, 321.0])
    size = torch.tensor([[768.0, 1344.0], [1024.0, 960.0]])
    ratio = torch.tensor([[0.57], [1.07]])
    ours = model(x, timesteps, caption, mask, size=size, aspect_ratio=ratio, learned_variance=True)
    micro = model.config.micro_condition
    conditions = {"resolution": size if micro else None, "aspect_ratio": ratio if micro else None}
    theirs = reference(
        x, encoder_hidden_states=caption, timestep=timesteps, added_cond_kwargs=conditions,
        encoder_attention_mask=mask, return_dict=False,
    )[0]  # fmt: skip
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["alpha", "sigma"])
def test_diffusers_loads_our_weights_under_its_names(family):
    model, reference = tiny_pair(family)
    reference.load_state_dict(to_diffusers(model.state_dict()), strict=True)


def reference_grid(dim: int, height: int, width: int, base_size: int, interpolation: float) -> np.ndarray:
    """The published formula, written out in float64: column features first, each half [sin | cos]."""
    quarter = dim // 4
    omega = 10000.0 ** (-np.arange(quarter) / quarter)

    def axis(n: int) -> np.ndarray:
        angles = (np.arange(n) / (n / base_size) / interpolation)[:, None] * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    out = np.empty((height, width, dim))
    out[..., : dim // 2] = axis(width)[None]
    out[..., dim // 2 :] = axis(height)[:, None]
    return out.reshape(height * width, dim)


TABLES = json.loads((Path(pixart.__file__).parent / "data" / "aspect_ratios.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", TABLES)
def test_position_grid_is_exact_at_every_bin(table):
    base_size = int(table) // 16
    bins = [(height // 16, width // 16) for height, width in TABLES[table].values()]
    assert len(bins) >= 33
    for height, width in bins:
        grid = position_grid(48, height, width, base_size, base_size / 32)
        assert grid.dtype == torch.float64
        expected = torch.from_numpy(reference_grid(48, height, width, base_size, base_size / 32))
        assert (grid - expected).abs().max() <= 1e-6, f"{height}x{width}"


@pytest.mark.parametrize("table", ["2048", "2880", "4096"])
@pytest.mark.parametrize("base_size, interpolation", [(32, 1.0), (64, 2.0), (128, 4.0)], ids=["512", "1024", "2K"])
def test_position_grid_is_exact_at_large_bins_for_checkpoints_of_smaller_ones(table, base_size, interpolation):
    """ComfyUI's own grid follows the picture there: at 3840 × 2160 a 2K file's columns end at 47.6 and not 31.9."""
    for height, width in TABLES[table].values():
        grid = position_grid(48, height // 16, width // 16, base_size, interpolation)
        expected = torch.from_numpy(reference_grid(48, height // 16, width // 16, base_size, interpolation))
        assert (grid - expected).abs().max() <= 1e-6, f"{height}x{width}"


@pytest.mark.parametrize("base_size, interpolation", [(16, 1.0), (16, 0.5), (32, 1.0), (64, 2.0), (128, 4.0)])
def test_position_grid_is_exact_at_the_released_width(base_size, interpolation):
    for height, width in [(base_size, base_size), (48, 84), (84, 48), (13, 57)]:
        grid = position_grid(1152, height, width, base_size, interpolation)
        expected = torch.from_numpy(reference_grid(1152, height, width, base_size, interpolation))
        assert (grid - expected).abs().max() <= 1e-6, f"{height}x{width}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_low_precision_models_add_the_float64_grid_cast_once(dtype):
    config = PixArtConfig(hidden_size=144, num_heads=2, depth=1, mlp_hidden_size=576, caption_channels=32)
    model = PixArtTransformer(config, dtype=dtype)
    for parameter in model.parameters():
        parameter.zero_()
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.ones(1, 4, 72, 128, dtype=dtype), torch.tensor([500.0]), torch.zeros(1, 3, 32, dtype=dtype))
    exact = torch.from_numpy(reference_grid(144, 36, 64, 64, 2.0))
    ours = position_grid(144, 36, 64, 64, 2.0)
    assert torch.equal(seen[0][0], ours.to(dtype))
    assert (seen[0][0].double() - exact).abs().max() <= torch.finfo(dtype).eps / 2
