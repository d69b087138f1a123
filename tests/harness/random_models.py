"""Transformers of random weights, no tensor of which is all zeros: a zero would hide what it is multiplied by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pixart.checkpoint import config_metadata
from pixart.config import PixArtConfig
from pixart.training.initialise import initialise
from pixart.transformer import PixArtTransformer

SMALL = PixArtConfig(
    hidden_size=144, depth=3, num_heads=2, mlp_hidden_size=288, caption_channels=64, base_size=8, pe_interpolation=0.25
)


@torch.no_grad()
def random_transformer(config: PixArtConfig, seed: int = 0) -> PixArtTransformer:
    """The same for the same seed."""
    torch.manual_seed(seed)
    model = initialise(PixArtTransformer(config))
    for value in (*model.parameters(), *model.buffers()):
        if not value.any():
            value.normal_(std=0.05)
    return model


def random_checkpoint(
    path: Path, config: PixArtConfig, seed: int = 0, metadata: Mapping[str, str] | None = None
) -> str:
    """``random_transformer`` as a file that is detected as ``config``; its path. metadata: what else it tells."""
    told = config_metadata(config) | dict(metadata or {})
    save_file(random_transformer(config, seed).state_dict(), path, metadata=told)
    return str(path)
