"""KV compression against loops over single tokens, and block by block from a file's weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pixart.attention import SelfAttention, sdpa
from pixart.checkpoint import config_metadata, load_transformer, open_checkpoint
from pixart.checkpoint.fp8 import kept_dtype
from pixart.checkpoint.save import config_from_tensor, config_tensor
from pixart.compression import COMPRESSION, GRID, SAMPLINGS, KVCompression, compress, spread
from pixart.config import PixArtConfig
from pixart.training.initialise import initialise, initialise_compression
from pixart.transformer import PixArtTransformer

TINY = PixArtConfig(
    hidden_size=144, depth=4, num_heads=2, mlp_hidden_size=144, caption_channels=16, max_caption_tokens=300
)
GRIDS = [(8, 8), (6, 10), (7, 9), (5, 12), (1, 5), (3, 2)]
RATIOS = (2, 3, 4)


def of_grid(rows: int, columns: int, width: int = 8) -> torch.Tensor:
    return torch.randn(2, rows * columns, width, generator=torch.Generator().manual_seed(rows * 100 + columns))


def slow(tokens, grid, sampling, ratio, weight=None, bias=None, norm=None) -> torch.Tensor:
    """What each kind of compression is, one key at a time."""
    rows, columns = grid
    if sampling == "uniform_every":
        return torch.stack([tokens[:, i] for i in range(0, rows * columns, ratio)], 1)
    out = []
    for top in range(0, rows, ratio):
        for left in range(0, columns, ratio):
            window = [
                [tokens[:, y * columns + x] for x in range(left, min(left + ratio, columns))]
                for y in range(top, min(top + ratio, rows))
            ]
            flat = [token for line in window for token in line]
            mean = sum(flat) / len(flat)
            if sampling == "uniform":
                key = window[0][0]
            elif sampling == "average":
                key = mean
            else:
                key = torch.zeros_like(mean)
                for i in range(ratio):
                    for j in range(ratio):
                        beside = sum(line[j] if j < len(line) else sum(line) / len(line) for line in window)
                        token = window[i] if i < len(window) else None
                        if token is None:
                            value = beside / len(window)
                        else:
                            value = token[j] if j < len(token) else sum(token) / len(token)
                        key = key + weight[:, 0, i, j] * value
                key = key + bias
                deviation = key - key.mean(-1, keepdim=True)
                key = deviation / (deviation.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm[0] + norm[1]
            out.append(key)
    return torch.stack(out, 1)


def learned_layers(ratio: int, width: int = 8):
    generator = torch.Generator().manual_seed(ratio)
    conv = torch.nn.Conv2d(width, width, ratio, ratio, groups=width)
    norm = torch.nn.LayerNorm(width, eps=1e-5)
    for parameter in (*conv.parameters(), *norm.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return conv.requires_grad_(False), norm.requires_grad_(False)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0]}x{g[1]}")
@pytest.mark.parametrize("sampling", ["average", "uniform", "uniform_every"])
def test_training_free_compression_is_what_a_loop_over_tokens_gives(sampling, grid, ratio):
    tokens = of_grid(*grid)
    ours = compress(tokens, grid, sampling, ratio)
    assert ours.shape[1] == KVCompression(sampling, ratio).keys(*grid)
    assert (ours - slow(tokens, grid, sampling, ratio)).abs().max() <= 1e-6


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0]}x{g[1]}")
def test_a_learned_convolution_is_what_a_loop_over_tokens_gives(grid, ratio):
    tokens = of_grid(*grid)
    conv, norm = learned_layers(ratio)
    ours = compress(tokens, grid, "conv", ratio, conv, norm)
    expected = slow(tokens, grid, "conv", ratio, conv.weight, conv.bias, (norm.weight, norm.bias))
    assert (ours - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("grid", [(8, 8), (7, 9)], ids=["even", "odd"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_convolution_without_weights_is_the_one_that_training_starts_from(grid, ratio):
    tokens = of_grid(*grid, width=144)
    attention = SelfAttention(144, 2, sdpa, ratio)

    initialise_compression(attention)
    with torch.no_grad():
        learned = compress(tokens, grid, "conv", ratio, attention.sr, attention.norm)
    assert (compress(tokens, grid, "conv", ratio) - learned).abs().max() <= 1e-5


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_whole_windows_are_the_same_where_the_grid_goes_on_past_them(sampling):
    conv, norm = learned_layers(2)
    layers = (conv, norm) if sampling == "conv" else (None, None)
    large = of_grid(7, 9).unflatten(1, (7, 9))
    even = compress(large[:, :6, :8].flatten(1, 2), (6, 8), sampling, 2, *layers)
    odd = compress(large.flatten(1, 2), (7, 9), sampling, 2, *layers)
    if sampling == "uniform_every":  # counts along the sequence, which an odd width shifts
        assert odd.shape[1] == 32
    else:
        assert (odd.unflatten(1, (4, 5))[:, :3, :4].flatten(1, 2) - even).abs().max() <= 1e-6


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0]}x{g[1]}")
def test_spreading_gives_a_token_for_each_of_the_window(sampling, grid):
    numbers = torch.arange(grid[0] * grid[1], dtype=torch.float32).reshape(1, -1, 1)
    small = compress(numbers, grid, "uniform" if sampling != "uniform_every" else sampling, 3)
    wide = spread(small, grid, sampling, 3)[0, :, 0]
    for index, value in enumerate(wide.tolist()):
        y, x = divmod(index, grid[1])
        first = index - index % 3 if sampling == "uniform_every" else (y - y % 3) * grid[1] + x - x % 3
        assert value == first


def random_transformer(config: PixArtConfig) -> PixArtTransformer:
    torch.manual_seed(0)
    model = initialise(PixArtTransformer(config)).eval().requires_grad_(False)
    for value in (*model.parameters(), *model.buffers()):
        if not value.any():
            value.normal_(std=0.05)
    return model


def predict(model, latent=(14, 18), **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, *latent, generator=generator)
    caption = torch.randn(2, 6, model.config.caption_channels, generator=generator)
    mask = torch.ones(2, 6)
    mask[1, 3:] = 0
    with torch.no_grad():
        return model(x, torch.tensor([500.0, 500.0]), caption, mask, transformer_options=options)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_each_of_a_batch_is_what_it_is_alone_and_padding_is_not_seen(sampling):
    """At a grid of 7 × 9, where the original code fails."""
    model = random_transformer(TINY)
    chosen = KVCompression(sampling, 2, 1, 3)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 14, 18, generator=generator)
    caption = torch.randn(2, 6, 16, generator=generator)
    mask = torch.ones(2, 6)
    mask[1, 3:] = 0
    t = torch.tensor([500.0, 500.0])
    with torch.no_grad():
        both = model(x, t, caption, mask, transformer_options={COMPRESSION: chosen})
        first = model(x[:1], t[:1], caption[:1], None, transformer_options={COMPRESSION: chosen})
        second = model(x[1:], t[1:], caption[1:, :3], None, transformer_options={COMPRESSION: chosen})
        dense = model(x, t, caption, mask)
    assert (both - torch.cat([first, second])).abs().max() <= 1e-5
    assert (both - dense).abs().max() > 1e-3


def test_only_the_blocks_of_the_range_are_compressed_and_only_large_pictures():
    model = random_transformer(TINY)
    seen = []

    def record(q, k, v, heads, mask=None, transformer_options=None):
        seen.append(k.shape[1])
        return sdpa(q, k, v, heads, mask)

    for block in model.blocks:
        block.attn.attention = record
    predict(model, **{COMPRESSION: KVCompression("average", 2, 1, 2, min_tokens=63)})
    assert seen == [63, 20, 20, 63]
    seen.clear()
    predict(model, **{COMPRESSION: KVCompression("average", 2, 1, 2, min_tokens=64)})
    assert seen == [63] * 4
    seen.clear()
    predict(model, **{COMPRESSION: KVCompression("uniform_every", 5, 3)})
    assert seen == [63, 63, 63, 13]


def test_what_takes_the_place_of_the_kernel_gets_a_key_for_every_token():
    model = random_transformer(replace(TINY, kv_ratios=(1, 1, 2, 2)))
    shapes = []

    def values(q, k, v, options):
        shapes.append((q.shape[1], k.shape[1], v.shape[1]))
        return v

    out = predict(model, patches_replace={"attn1": {("middle", 0): values}})
    assert shapes == [(63, 63, 63)] and out.isfinite().all()


def test_a_block_that_is_told_no_grid_says_so():
    attention = random_transformer(replace(TINY, kv_ratios=(2,))).blocks[0].attn
    with pytest.raises(ValueError, match="there are 12 tokens, and their grid is given as None"):
        attention(torch.zeros(1, 12, 144), {})
    with pytest.raises(ValueError, match=r"12 tokens, and their grid is given as \(3, 3\)"):
        attention(torch.zeros(1, 12, 144), {GRID: (3, 3)})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sampling": "ave"}, "'ave'; it must be one of"),
        ({"ratio": 0}, "ratio is 0; it must be at least 1"),
        ({"first_block": 5, "last_block": 4}, "Blocks 5 to 4 are no range"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        KVCompression(**{"sampling": "average", **change})


COMPRESSED = replace(TINY, kv_ratios=(1, 2, 1, 3), qk_norm=True)


def test_a_file_tells_its_compression_block_by_block(tmp_path):
    model = random_transformer(COMPRESSED)
    save_file(model.state_dict(), tmp_path / "kv.safetensors", metadata=config_metadata(COMPRESSED))
    checkpoint = open_checkpoint(tmp_path / "kv.safetensors")
    assert checkpoint.config == COMPRESSED
    assert "Keys and values compressed 2 × 2 in blocks 1: these hold attn.sr." in checkpoint.evidence
    assert "Keys and values compressed 3 × 3 in blocks 3: these hold attn.sr." in checkpoint.evidence
    assert "qk_norm: the blocks hold attn.q_norm." in checkpoint.evidence
    assert torch.equal(predict(load_transformer(checkpoint)), predict(model))
    assert config_from_tensor(config_tensor(COMPRESSED)) == COMPRESSED


def test_a_compressed_file_saved_in_part_is_refused(tmp_path):
    state = random_transformer(COMPRESSED).state_dict()
    cut = {name: value for name, value in state.items() if name != "blocks.3.attn.norm.bias"}
    save_file(cut, tmp_path / "cut.safetensors", metadata=config_metadata(COMPRESSED))
    with pytest.raises(ValueError, match="1 of the transformer's tensors are missing, the first: blocks.3.attn.norm"):
        open_checkpoint(tmp_path / "cut.safetensors")
    cut = {name: value for name, value in state.items() if not name.startswith("blocks.2.attn.q_norm")}
    save_file(cut, tmp_path / "cut2.safetensors", metadata=config_metadata(COMPRESSED))
    with pytest.raises(ValueError, match="Only blocks 0–1, 3 hold attn.q_norm"):
        open_checkpoint(tmp_path / "cut2.safetensors")


def test_a_learned_convolution_is_left_out_where_another_ratio_is_asked_for():
    model = random_transformer(replace(TINY, kv_ratios=(1, 1, 2, 2)))
    own = predict(model)
    assert torch.equal(own, predict(model, **{COMPRESSION: KVCompression("conv", 2, 2, 3)}))
    assert torch.equal(own, predict(model, **{COMPRESSION: KVCompression("average", 2, 0, 3, min_tokens=10_000)}))
    assert not torch.equal(own, predict(model, **{COMPRESSION: KVCompression("conv", 3, 2, 3)}))
    assert not torch.equal(own, predict(model, **{COMPRESSION: KVCompression("average", 2, 2, 3)}))


def test_fp8_keeps_only_matrices():
    e4m3, half = torch.float8_e4m3fn, torch.bfloat16
    for name in ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj", "mlp.fc1"):
        assert kept_dtype(f"blocks.3.{name}.weight", e4m3, half) == e4m3
    for name in ("attn.sr", "attn.norm", "attn.q_norm", "attn.k_norm"):
        assert kept_dtype(f"blocks.3.{name}.weight", e4m3, half) == half
