"""The transformer as the denoiser that samplers ask, with guidance; and its samplers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import sampling
from .text.batch import Captions
from .transformer import PixArtTransformer

OnPrediction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Changes the guided x0, given it and the unguided one."""


@dataclass(frozen=True)
class Denoiser:
    """x0 (B, C, h, w) from ``x = x0 + σ n`` for captions of the same batch; see ``pixart.sampling``.

    embeddings, mask: of the captions alone, or followed by as many negative ones where cfg is not 1.
    consistency: predict as a consistency model does, exact at timestep 0. after: what thresholding does.
    """

    transformer: PixArtTransformer
    embeddings: torch.Tensor
    mask: torch.Tensor
    cfg: float = 1.0
    consistency: bool = False
    after: OnPrediction | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        t = (sampling.table().log() - sigma.log()).abs().argmin().float()
        scaled = x / (1 + sigma**2).sqrt()
        dtype = self.transformer.x_embedder.proj.weight.dtype
        batch = scaled.repeat(len(self.embeddings) // len(x), 1, 1, 1).to(dtype)
        timesteps = t.to(x.device).expand(len(batch))
        noise = self.transformer(batch, timesteps, self.embeddings, self.mask).float()
        if self.cfg == 1:
            denoised = x - sigma * noise
        else:
            conditional, unconditional = (x - sigma * part for part in noise.chunk(2))
            denoised = unconditional + self.cfg * (conditional - unconditional)
            if self.after:
                denoised = self.after(denoised, conditional)
        if self.consistency:
            skip, out = sampling.boundary(t)
            denoised = out * denoised + skip * scaled
        return denoised


@dataclass(frozen=True)
class Recipe:
    """How to draw: a method of ``pixart.sampling``, its steps, and the guidance scale.

    start: share of the noise to begin from, for the reference methods.
    """

    method: str = sampling.DPM_SOLVER
    steps: int = 20
    cfg: float = 4.5
    start: float = 1.0
    source: str = sampling.DIFFUSERS

    @property
    def few_step(self) -> bool:
        return self.method in sampling.FEW_STEP_METHODS

    def sigmas(self) -> torch.Tensor:
        """Noise levels (steps + 1,). Raises ValueError for steps that the method has not, or an unknown method."""
        if self.few_step:
            return sampling.sigmas_at(sampling.few_step_timesteps(self.method, self.steps, self.source))
        if self.method in sampling.REFERENCE_METHODS:
            return sampling.reference_sigmas(self.method, self.steps, self.start)
        known = ", ".join((*sampling.REFERENCE_METHODS, *sampling.FEW_STEP_METHODS))
        raise ValueError(f"There is no sampler {self.method!r}: choose one of {known}.")


@torch.no_grad()
def draw(
    transformer: PixArtTransformer,
    captions: Captions,
    negatives: Captions | None,
    recipe: Recipe,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    latents: torch.Tensor | None = None,
    after: OnPrediction | None = None,
) -> torch.Tensor:
    """Latents (B, C, h, w), float32, in the transformer's own space.

    seed: as in diffusers and ComfyUI. size: height and width of the latents, from unit noise alone; or latents to
    begin from, already as noisy as the recipe's first level. negatives: as many as captions, None where cfg is 1.
    """
    from .pipeline import join

    sigmas = recipe.sigmas()
    device = transformer.x_embedder.proj.weight.device
    if latents is None:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(captions), transformer.config.in_channels, *size)
        x = torch.randn(shape, generator=generator).to(device) * (1 + sigmas[0] ** 2).sqrt()
    else:
        x = latents.to(device, torch.float32)
    guided = recipe.cfg != 1 and negatives is not None
    embeddings, mask = join([captions, negatives] if guided else [captions])
    consistency = recipe.method in (sampling.LCM, sampling.FLASH)
    denoise = Denoiser(transformer, embeddings, mask, recipe.cfg if guided else 1.0, consistency, after)
    if recipe.few_step:
        return sampling.restart(denoise, x, sigmas, sampling.noise_like(seed, x))
    if recipe.method == sampling.SA_SOLVER:
        x = sampling.sa_solver(denoise, x, sigmas, sampling.noise_like(seed, x))
        return x / (1 + sigmas[-1] ** 2).sqrt()
    return sampling.dpm_solver(denoise, x, sigmas)
