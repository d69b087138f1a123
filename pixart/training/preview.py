"""Pictures of what a model has learned so far."""

from __future__ import annotations

import torch

from ..noise import NoiseSchedule


def ddim(predict, x: torch.Tensor, steps: int) -> torch.Tensor:
    """Deterministic DDIM over equal timesteps (Song et al., 2010.02502, eq. 12 with σ = 0), in float32.

    predict: (x, t) → noise, t a whole timestep; x: noise (B, C, h, w) → latents of that shape.
    """
    alphas = NoiseSchedule().alphas_cumprod
    times = torch.linspace(len(alphas) - 1, 0, steps + 1).round().long().tolist()
    for t, following in zip(times[:-1], times[1:], strict=True):
        now, then = float(alphas[t]), float(alphas[following])
        noise = predict(x, t)
        clean = (x - (1 - now) ** 0.5 * noise) / now**0.5
        x = then**0.5 * clean + (1 - then) ** 0.5 * noise
    return clean


def pad(captions) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions (L, C) of any lengths → (B, L, C), zeros past each end, and their mask (B, L)."""
    length = max(len(caption) for caption in captions)
    mask = torch.stack([torch.arange(length) < len(caption) for caption in captions]).long()
    return torch.nn.utils.rnn.pad_sequence(list(captions), batch_first=True), mask
