"""Fewer keys and values in self-attention: token compression over the picture's grid.

Chen et al., "PixArt-Σ" (arXiv:2403.04692), section 3.3. Queries stay whole, so every token still gets its own
answer; what they look at is the grid at a lower resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

CONV, AVERAGE, UNIFORM, UNIFORM_EVERY = "conv", "average", "uniform", "uniform_every"
SAMPLINGS = (CONV, AVERAGE, UNIFORM, UNIFORM_EVERY)
"""How tokens are made fewer: a convolution and a norm that a checkpoint has learned; the mean of each
window; one token of each window; every so many tokens of the sequence. The last three need no training.
"""

COMPRESSION = "pixart_kv"
"""Under this key ``transformer_options`` may hold a ``KVCompression``."""
GRID = "pixart_grid"
"""Under this key the transformer tells its blocks the rows and columns of tokens."""

NORM_EPS = 1e-5


@dataclass(frozen=True)
class KVCompression:
    """Which blocks are to look at fewer keys and values, and how these are made.

    sampling: one of ``SAMPLINGS``. ratio: side of the window, in tokens, that becomes one; for
        ``uniform_every`` the stride along the sequence; 1 compresses nothing.
    first_block, last_block: inclusive, counted from 0.
    min_tokens: pictures of fewer tokens are left as the checkpoint has them.
    """

    sampling: str
    ratio: int = 2
    first_block: int = 0
    last_block: int = 1_000_000
    min_tokens: int = 0

    def __post_init__(self):
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"The sampling of keys and values is {self.sampling!r}; it must be one of {SAMPLINGS}.")
        if self.ratio < 1:
            raise ValueError(f"The compression ratio is {self.ratio}; it must be at least 1.")
        if not 0 <= self.first_block <= self.last_block:
            raise ValueError(
                f"Blocks {self.first_block} to {self.last_block} are no range: set first_block to 0 or more, and "
                "last_block to no less than that."
            )

    def covers(self, block: int | None, tokens: int) -> bool:
        return block is not None and self.first_block <= block <= self.last_block and tokens >= self.min_tokens

    def keys(self, rows: int, columns: int) -> int:
        """How many of rows × columns keys are left."""
        if self.sampling == UNIFORM_EVERY:
            return -(-rows * columns // self.ratio)
        return -(-rows // self.ratio) * -(-columns // self.ratio)


def compress(
    tokens: torch.Tensor, grid: tuple[int, int], sampling: str, ratio: int, conv=None, norm=None
) -> torch.Tensor:
    """Keys or values (B, N, D) of a rows × columns grid → (B, M, D), M as ``KVCompression.keys`` tells.

    Windows that reach over the last row or column are made of the tokens that they have; all others are
    what they would be on a grid without them.
    conv, norm: the learned layers of ``conv``; without them, those that tuning starts from: equal weights, which
        make the mean, and a norm that changes no channel's scale.
    """
    if sampling == UNIFORM_EVERY:
        return tokens[:, ::ratio]
    picture = tokens.unflatten(1, grid)  # (B, h, w, D)
    if sampling == UNIFORM:
        return picture[:, ::ratio, ::ratio].flatten(1, 2)
    picture = fill_windows(picture, ratio).movedim(-1, 1)  # (B, D, h, w)
    picture = nn.functional.avg_pool2d(picture, ratio) if conv is None else conv(picture)
    tokens = picture.flatten(2).transpose(1, 2)  # (B, M, D)
    if sampling == AVERAGE:
        return tokens
    return norm(tokens) if norm is not None else nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS)


def fill_windows(picture: torch.Tensor, ratio: int) -> torch.Tensor:
    """(B, h, w, D) → the same with sides that are multiples of ``ratio``.

    What is missing in a window is filled with the mean of what is there: the window's mean stays the mean of its
    tokens, and a convolution sees nothing that was not in the picture.
    """
    for dim in (1, 2):
        size = picture.shape[dim]
        rest = size % ratio
        if rest:
            mean = picture.narrow(dim, size - rest, rest).mean(dim, keepdim=True)
            picture = torch.cat([picture, *[mean] * (ratio - rest)], dim)
    return picture


def spread(tokens: torch.Tensor, grid: tuple[int, int], sampling: str, ratio: int) -> torch.Tensor:
    """The inverse in shape: (B, M, D) → (B, N, D), each token repeated over the window that it stands for."""
    rows, columns = grid
    if sampling == UNIFORM_EVERY:
        return tokens.repeat_interleave(ratio, 1)[:, : rows * columns]
    picture = tokens.unflatten(1, (-(-rows // ratio), -1))
    picture = picture.repeat_interleave(ratio, 1)[:, :rows].repeat_interleave(ratio, 2)[:, :, :columns]
    return picture.flatten(1, 2)
