"""A cascade with one model: a finished picture enlarged, noised to a chosen level, and finished at the larger size.

Imagen (Saharia et al., 2205.11487, section 2.4) noises what its super-resolution models are given and tells them how
much. PixArt has no such models, but it has the same thing in its timestep: the second pass begins at the noise level
that was added, and is told so.
"""

from __future__ import annotations

import torch
from torch import nn

from .sampling import reference_timesteps, sigmas_at

METHODS = ("bicubic", "bilinear", "nearest-exact")


def enlarge(latents: torch.Tensor, height: int, width: int, method: str = "bicubic") -> torch.Tensor:
    """(B, C, h, w) → (B, C, height, width)."""
    corners = {} if method == "nearest-exact" else {"align_corners": False}
    return nn.functional.interpolate(latents.float(), size=(height, width), mode=method, **corners)


def augmentation_sigmas(level: float, steps: int) -> torch.Tensor:
    """Noise levels (steps + 1,) of a second pass that begins at ``level``, 0 … 1 of the timesteps; empty at 0.

    Raises ValueError for a level out of range, or more steps than there are timesteps below it.
    """
    if not 0 <= level <= 1:
        raise ValueError(f"noise_augmentation is {level}, but must be from 0 (no noise) to 1 (noise alone).")
    return sigmas_at(reference_timesteps(steps, level)) if level > 0 else torch.zeros(0)


def augment(latents: torch.Tensor, sigma: torch.Tensor | float, seed: int) -> torch.Tensor:
    """Latents (B, C, h, w) in the transformer's scale with noise at level σ; at the highest the picture is gone."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    return latents + sigma * noise.to(latents)
