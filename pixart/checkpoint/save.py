"""Writing a transformer so that it reads back as the same model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import torch

from ..config import PixArtConfig
from ..embeddings import position_grid
from .detect import detect_config

CONFIG_KEY = "pixart_config"
"""A tensor of UTF-8 JSON beside the weights, for what they cannot tell; safetensors metadata may be out of reach."""

MAX_CONFIG = 65_536
"""Bytes that such a tensor may have: as Python numbers they take many times their size."""


def config_tensor(config: PixArtConfig) -> torch.Tensor:
    """``config`` as uint8 JSON."""
    return torch.frombuffer(bytearray(json.dumps(dataclasses.asdict(config)).encode()), dtype=torch.uint8)


def config_from_tensor(tensor: torch.Tensor) -> PixArtConfig:
    """The inverse of ``config_tensor``; ValueError when the bytes are no such thing."""
    if tensor.dtype != torch.uint8 or tensor.numel() > MAX_CONFIG:
        raise ValueError(
            f"The tensor {CONFIG_KEY!r} in the file holds {tensor.numel()} numbers of {tensor.dtype}, where a PixArt "
            f"configuration is at most {MAX_CONFIG} bytes of JSON. Choose another save of the model."
        )
    try:
        fields = json.loads(bytes(tensor.tolist()).decode())
        return PixArtConfig(**fields)
    except (TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"The tensor {CONFIG_KEY!r} in the file does not hold a PixArt configuration. "
            "Choose another save of the model."
        ) from error


def state_dict_to_save(state: Mapping[str, torch.Tensor], config: PixArtConfig) -> dict[str, torch.Tensor]:
    """A transformer's own state dict, with what makes the file whole.

    Adds ``pos_embed`` as the released files have it, whose length tells the native size; and where weights
    still would not be read back as ``config``, the configuration itself under ``CONFIG_KEY``.
    """
    out = dict(state)
    like = out["x_embedder.proj.weight"]
    grid = position_grid(
        config.hidden_size, config.base_size, config.base_size, config.base_size, config.pe_interpolation
    )
    dtype = like.dtype if like.dtype.itemsize > 1 else torch.float16
    out["pos_embed"] = grid[None].to(dtype)  # (1, base², D)
    if not tells_itself(out, config):
        out[CONFIG_KEY] = config_tensor(config)
    return out


def tells_itself(state: Mapping[str, torch.Tensor], config: PixArtConfig) -> bool:
    """Whether ``config`` can be detected from these weights alone, with nothing guessed."""
    if not config.null_caption:
        return False
    try:
        detected, _ = detect_config({key: tuple(value.shape) for key, value in state.items()})
    except ValueError:
        return False
    return detected == config
