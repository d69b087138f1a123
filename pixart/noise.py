"""The diffusion process that PixArt is trained on."""

from __future__ import annotations

import torch


class NoiseSchedule:
    """1000 steps, betas linear from 1e-4 to 0.02 (float64), noise prediction."""

    def __init__(self, steps: int = 1000):
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.snr = self.alphas_cumprod / (1 - self.alphas_cumprod)

    def add(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """q(x_t | x_0): latents and noise (B, …), t (B,) integer."""
        shape = (-1, *[1] * (latents.ndim - 1))
        alpha = self.alphas_cumprod[t].view(shape)
        return (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).to(latents.dtype)

    def min_snr_weights(self, gamma: float = 5.0) -> torch.Tensor:
        """Loss weight of each timestep for noise prediction: min(SNR, γ) / SNR (Hang et al., 2303.09556)."""
        return (self.snr.clamp(max=gamma) / self.snr).float()

    def layout_weights(self, contrast: float, gamma: float = 5.0, ceiling: float = 20.0) -> torch.Tensor:
        """Min-SNR, raised where noise hides all but the layout.

        A flat background is visible long before an edge is: what the caption decides is decided where the noise
        is strongest, and there the plain noise loss hardly rewards it. SNR^-½ up to ``ceiling`` makes up for it.
        contrast: standard deviation of the latents, which raises the SNR.
        """
        snr = self.snr * contrast**2
        return (snr.clamp(max=gamma) / snr * snr.rsqrt().clamp(1.0, ceiling)).float()
