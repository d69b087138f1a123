"""How much memory a forward takes at its peak, so that the host moves other models out in time."""

from __future__ import annotations

import math
from contextvars import ContextVar

import comfy.model_management
import torch

from ...pixart.compression import KVCompression
from ...pixart.config import PixArtConfig
from . import compat

active_compression: ContextVar[KVCompression | None] = ContextVar("pixart_kv", default=None)
"""That of the MODEL being sampled, which the model inside it, shared by all its clones, cannot know."""

MATRIX_BACKENDS = ("attention_sub_quad", "attention_split", "attention_basic")
"""Those that write scores out; all others work through them in tiles."""
QUERY_CHUNKS = (4096, 2048, 1024, 512, 256)
SMALLEST_CHUNK = 512

HELD = 1
"""Token tensors' worth that an allocator keeps between two uses, as holes that nothing fits into."""
SMALL = 4 * 2**20
"""Bytes for all that does not grow with the picture."""


def forward_bytes(config: PixArtConfig, shape, dtype: torch.dtype, device: torch.device) -> float:
    """Bytes at the peak of a forward with latents (B, C, H, W), beside the weights and the latents.

    Either in a block's MLP or in its self-attention. Counted in token tensors (B, N, D): those that the blocks began
    with, the block's input, what attention has made of it once the MLP's turn comes, and the modulated norm, all of
    which wait; and what is listed here. Memory that a run on the processor keeps for results counts as much.
    """
    batch, _, height, width = shape
    rows, columns = (math.ceil(side / config.patch_size) for side in (height, width))
    tokens = rows * columns
    unit = batch * tokens * config.hidden_size * dtype.itemsize
    residual = 2 if dtype == torch.float16 else 1  # summed in float32 where layers compute in fp16
    norm = 3 if dtype == torch.float16 else 1  # in float32, and what layers are given
    mlp = (3 * residual + norm + config.mlp_hidden_size / config.hidden_size + 1) * unit  # hidden layer; output

    keys = most_keys(config, rows, columns)
    attention = (2 * residual + norm + 3 + 2) * unit  # qkv; the output, before and after its projection
    if keys < tokens:
        attention += 2 * keys / tokens * unit
    if compat.attention_backend(device) in MATRIX_BACKENDS:
        copies = 1 + 2 * keys / tokens  # of queries, keys and values, head by head
        attention += copies * unit + score_bytes(batch * config.num_heads, tokens, keys, dtype, device)
    return max(mlp, attention) + HELD * unit + SMALL


def most_keys(config: PixArtConfig, rows: int, columns: int) -> int:
    """Keys of the block that has most of them, as the checkpoint or the MODEL's compression makes them fewer."""
    chosen = active_compression.get()
    most = 0
    for block in range(config.depth):
        if chosen is not None and chosen.covers(block, rows * columns):
            keys = chosen.keys(rows, columns)
        else:
            ratio = config.kv_ratio(block)
            keys = math.ceil(rows / ratio) * math.ceil(columns / ratio)
        most = max(most, keys)
    return most


def score_bytes(heads: int, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> float:
    """Scores before and after the softmax, of as many queries at a time as the host's backend takes.

    ``heads`` counts those of the whole batch. The backends choose by the memory that is free when they run.
    """
    whole = heads * queries * keys * dtype.itemsize
    backend = compat.attention_backend(device)
    if backend == "attention_basic":
        return 2 * whole
    free = max(comfy.model_management.get_free_memory(device), 1)
    if backend == "attention_split":
        parts = 2 ** math.ceil(math.log2(3 * whole / free)) if 3 * whole > free else 1
        return 2 * whole / min(parts, 64)
    room = free / (heads * dtype.itemsize * 4 * keys)
    chunk = next((size for size in QUERY_CHUNKS if size <= room), None)
    if chunk is None:  # and keys are taken in chunks too, of about the square root of their number
        return 2 * heads * SMALLEST_CHUNK * math.isqrt(keys) * dtype.itemsize
    return 2 * heads * min(chunk, queries) * keys * dtype.itemsize
