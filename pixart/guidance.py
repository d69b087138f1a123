"""Thresholding of the predicted picture under high guidance, for latents.

Imagen (Saharia et al., 2205.11487, section 2.3) keeps the predicted x0 in the range of real pixels. Latents have no
such range by construction: each channel has its own, which is measured, here from real latents or from the model's
own prediction without guidance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NONE, STATIC, DYNAMIC = "none", "static", "dynamic"
MODES = (STATIC, DYNAMIC)


@dataclass(frozen=True)
class LatentRange:
    """Middle and half-width of each channel's range, (B or 1, C, 1, 1)."""

    middle: torch.Tensor
    half: torch.Tensor

    def to(self, like: torch.Tensor) -> LatentRange:
        return LatentRange(self.middle.to(like), self.half.to(like))


def latent_range(latents: torch.Tensor, percentile: float, together: bool = False) -> LatentRange:
    """The range of each channel in which ``percentile`` percent of the values of latents (B, C, h, w) lie.

    together: one range over the whole batch, as of a collection of real pictures, and not one for each of it.
    Raises ValueError for a percentile outside 50 … 100.
    """
    if not 50 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile}, but must be from 50 to 100: 99.5 is Imagen's.")
    if together:
        latents = latents.movedim(1, 0)[None]  # (1, C, B, h, w)
    values = latents.float().flatten(2)  # (B, C, n)
    tail = (100 - percentile) / 200
    low, high = values.quantile(tail, dim=-1), values.quantile(1 - tail, dim=-1)  # (B, C)
    half = ((high - low) / 2).clamp(min=1e-6)
    return LatentRange(((high + low) / 2)[..., None, None], half[..., None, None])


def static_threshold(x0: torch.Tensor, bounds: LatentRange) -> torch.Tensor:
    """x0 (B, C, h, w) cut off at the ends of each channel's range."""
    bounds = bounds.to(x0)
    return (x0 - bounds.middle).clamp(-bounds.half, bounds.half) + bounds.middle


def dynamic_threshold(x0: torch.Tensor, bounds: LatentRange, percentile: float) -> torch.Tensor:
    """x0 (B, C, h, w) cut off at a percentile of its own values and drawn in until that meets the range's ends.

    With the range [-1, 1] this is Imagen's dynamic thresholding: s is the percentile of the absolute value over the
    whole picture, at least 1; values are cut off at ±s and divided by s.
    """
    bounds = bounds.to(x0)
    unit = (x0 - bounds.middle) / bounds.half
    s = unit.float().abs().flatten(1).quantile(percentile / 100, dim=1).clamp(min=1).to(x0)[:, None, None, None]
    return unit.clamp(-s, s) / s * bounds.half + bounds.middle


def threshold(
    x0: torch.Tensor, unguided: torch.Tensor, mode: str, percentile: float, bounds: LatentRange | None = None
) -> torch.Tensor:
    """Guided x0 (B, C, h, w) kept in the range of real latents, or of the ``unguided`` prediction where that is None.

    Raises ValueError for an unknown mode, a percentile outside 50 … 100, or dynamic without a range of real latents:
    one prediction's own is so narrow, about a middle so far from 0, that drawing the picture in to it destroys it.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, but must be one of {', '.join(MODES)}.")
    if bounds is None and mode == DYNAMIC:
        raise ValueError("Dynamic thresholding needs the range of real latents: connect reference, or choose static.")
    bounds = bounds or latent_range(unguided, percentile)
    return static_threshold(x0, bounds) if mode == STATIC else dynamic_threshold(x0, bounds, percentile)
