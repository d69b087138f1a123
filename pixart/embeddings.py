"""Embeddings of position, timestep, picture size and caption."""

from __future__ import annotations

import math

import torch
from torch import nn

from .workspace import NARROW, WIDE, Workspace, linear


def sincos_1d(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Sine and cosine features of ``positions`` (N,), float64 → (N, dim): ``[sin | cos]``."""
    omega = torch.arange(dim // 2, dtype=torch.float64, device=positions.device) / (dim / 2.0)
    angles = torch.outer(positions, 1.0 / 10000.0**omega)  # (N, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def axis_coordinates(tokens: int, base_size: int, pe_interpolation: float, device=None) -> torch.Tensor:
    """Coordinates of one axis of the position grid: (tokens,), float64.

    A full axis covers ``[0, base_size / pe_interpolation)`` whatever its number of tokens.
    """
    index = torch.arange(tokens, dtype=torch.float64, device=device)
    return index / (tokens / base_size) / pe_interpolation


def position_grid(
    dim: int, height: int, width: int, base_size: int, pe_interpolation: float, device=None
) -> torch.Tensor:
    """The reference's 2-D sin-cos position embedding of a ``height`` × ``width`` token grid.

    Returns (height * width, dim) in float64, rows in row-major order. The first half of the channels
    encodes the column, the second half the row. Source: PixArt-α and PixArt-Σ, get_2d_sincos_pos_embed.
    """
    rows = sincos_1d(axis_coordinates(height, base_size, pe_interpolation, device), dim // 2)  # (h, D/2)
    columns = sincos_1d(axis_coordinates(width, base_size, pe_interpolation, device), dim // 2)  # (w, D/2)
    grid = torch.cat(
        [columns[None, :, :].expand(height, -1, -1), rows[:, None, :].expand(-1, width, -1)], dim=-1
    )  # (h, w, D)
    return grid.reshape(height * width, dim)


def frequencies(count: int) -> torch.Tensor:
    """DDPM's frequencies, from 1 down to nearly 1/10000: (count,), float32.

    The reference's exponents, rounded to float32 as there; the exponential in float64, since processors differ in
    the last digit of a float32 one, and at timestep 999 that shows in the fifth digit of the prediction.
    """
    exponents = -math.log(10000.0) * torch.arange(count, dtype=torch.float32) / count
    return exponents.double().exp().float()


def sinusoid(values: torch.Tensor, dim: int = 256) -> torch.Tensor:
    """DDPM features of ``values`` (N,), computed in float32 → (N, dim): ``[cos | sin]``."""
    half = dim // 2
    angles = values.float()[:, None] * frequencies(half).to(values.device)[None]  # (N, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ScalarEmbedder(nn.Module):
    """A sinusoid of 256 features, then Linear, SiLU, Linear: timesteps, and α's size and aspect ratio."""

    frequencies = 256

    def __init__(self, hidden_size: int, dtype=None, device=None, operations=nn):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(self.frequencies, hidden_size, dtype=dtype, device=device),
            nn.SiLU(),
            operations.Linear(hidden_size, hidden_size, dtype=dtype, device=device),
        )

    def forward(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(B,) or (B, n) → (B, D) or (B, n * D); each column is embedded by itself."""
        features = sinusoid(values.reshape(-1), self.frequencies).to(dtype)
        return self.mlp(features).reshape(values.shape[0], -1)


class PatchEmbed(nn.Module):
    """Latent pixels to tokens: a convolution with kernel and stride ``patch_size``, flattened row by row."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int, dtype=None, device=None, operations=nn):
        super().__init__()
        self.proj = operations.Conv2d(
            in_channels, hidden_size, kernel_size=patch_size, stride=patch_size, dtype=dtype, device=device
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # With its channels last, the convolution writes tokens in the order of their shape.
        return self.proj(x.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)  # (B, N, D)


class Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int, dtype=None, device=None, operations=nn):
        super().__init__()
        self.fc1 = operations.Linear(in_size, hidden_size, dtype=dtype, device=device)
        self.fc2 = operations.Linear(hidden_size, out_size, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor, workspace: Workspace | None = None) -> torch.Tensor:
        """(B, N, in_size) → (B, N, out_size); written into the workspace where there is one."""
        hidden = linear(self.fc1, x, workspace, WIDE)  # (B, N, hidden_size), four times as wide as all else
        if hidden.requires_grad:
            return self.fc2(nn.functional.gelu(hidden, approximate="tanh"))
        hidden = torch.ops.aten.gelu_(hidden, approximate="tanh")  # in place: no second one to be allocated
        return linear(self.fc2, hidden, workspace, NARROW)


class CaptionEmbedder(nn.Module):
    """Projects T5's features to the transformer's width, and holds the learned null caption if there is one."""

    def __init__(
        self,
        caption_channels: int,
        hidden_size: int,
        tokens: int,
        null_caption: bool,
        dtype=None,
        device=None,
        operations=nn,
    ):
        super().__init__()
        self.y_proj = Mlp(caption_channels, hidden_size, hidden_size, dtype, device, operations)
        null = torch.empty(tokens, caption_channels, dtype=dtype, device=device) if null_caption else None
        self.register_buffer("y_embedding", null)  # (L, C)

    def forward(self, caption: torch.Tensor) -> torch.Tensor:
        return self.y_proj(caption)


def pad_tokens(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """(B, L, …) → (B, length, …), zeros after the end; captions of different lengths then share a batch."""
    missing = length - tensor.shape[1]
    if not missing:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])], dim=1)
