"""PixArt's samplers, few-step and reference, on the noise levels and timesteps of their published pipelines.

Everything here works on noisy latents ``x = x0 + σ n``, as k-diffusion and ComfyUI do; the transformer's own
variance-preserving latents are ``x / sqrt(1 + σ²)``. A model is ``denoise(x, sigma) → x0`` with sigma a scalar
tensor. ``noise_like(seed, x)`` draws as diffusers' pipelines do, so that a seed means the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Noise = Callable[[], torch.Tensor]
OnStep = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with the step, x and the predicted x0."""

TRAINED = 1000
LCM_GRID = 50
"""Timesteps that an LCM is distilled on: every twentieth of the 1000."""

ONE_STEP = 400
"""The timestep at which DMD and Nitro-1 were trained to draw a picture at once from unit-variance noise."""

DIFFUSERS, ORIGINAL = "diffusers", "original"
LCM, DMD, FLASH, NITRO = "lcm", "dmd", "flash", "nitro"
FEW_STEP_METHODS = (LCM, DMD, FLASH, NITRO)
DPM_SOLVER, SA_SOLVER = "dpm-solver++", "sa-solver"
REFERENCE_METHODS = (DPM_SOLVER, SA_SOLVER)


def table() -> torch.Tensor:
    """Noise level σ of every trained timestep (1000,), in float32 from betas to product as diffusers rounds."""
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TRAINED, dtype=torch.float32), 0)
    return ((1 - alphas) / alphas) ** 0.5


def sigmas_at(timesteps: torch.Tensor, last: float | None = 0.0) -> torch.Tensor:
    """Noise levels σ (n + 1,), float32, at integer timesteps (n,) and at the end; None ends at timestep 0."""
    sigmas = table()
    end = sigmas[:1] if last is None else sigmas.new_tensor([last])
    return torch.cat([sigmas[timesteps], end])


def lcm_timesteps(steps: int, source: str = DIFFUSERS) -> torch.Tensor:
    """Timesteps (steps,) of a latent consistency model (Luo et al., 2310.04378), out of the 50 it was distilled on.

    source: "diffusers" rounds the place in the 50 down at every step (999, 759, 499, 259 for four); "original",
    as PixArt's and LCM's first code, takes every (50 // steps)-th (999, 759, 519, 279).
    Raises ValueError when there are not so many.
    """
    if not 1 <= steps <= LCM_GRID:
        raise ValueError(f"steps is {steps}, but a consistency model knows {LCM_GRID} timesteps: set steps to 1 … 8.")
    grid = torch.arange(LCM_GRID, 0, -1) * (TRAINED // LCM_GRID) - 1
    if source == ORIGINAL:
        return grid[:: LCM_GRID // steps][:steps]
    return grid[torch.arange(steps) * LCM_GRID // steps]


def one_step_timesteps(steps: int) -> torch.Tensor:
    """Timesteps (steps,) from 400 down in equal parts; a single one is what DMD and Nitro-1 were made for."""
    return torch.arange(steps, 0, -1) * ONE_STEP // steps


def few_step_timesteps(method: str, steps: int, source: str = DIFFUSERS) -> torch.Tensor:
    """Timesteps (steps,) of a few-step model.

    Raises ValueError for a number of steps that the method has not.
    """
    if method in (LCM, FLASH):
        return lcm_timesteps(steps, source)
    if method == DMD and steps != 1:
        raise ValueError(f"steps is {steps}, but DMD draws in a single step: set steps to 1, or choose another method.")
    if method == NITRO and not 1 <= steps <= 8:
        raise ValueError(f"steps is {steps}, but nitro takes 1 to 8: set steps to 1, which it was trained for.")
    return one_step_timesteps(steps)


def reference_timesteps(steps: int, start: float = 1.0) -> torch.Tensor:
    """Timesteps (steps,) of the official pipelines: equal parts of 999 … 0, rounded, without the last.

    start: share of the noise to begin from; below 1 the same number of steps divides what is left.
    Raises ValueError for more steps than there are timesteps, or none.
    """
    top = round((TRAINED - 1) * start)
    most = max(top, 1)  # one more, and two of them would round to the same timestep: a step from a level to itself
    if not 1 <= steps <= most:
        raise ValueError(
            f"steps is {steps}, but between timestep {top} and 0 there are 1 to {most}: set fewer steps"
            + (", or begin from more noise." if start < 1 else ".")
        )
    # NumPy's spacing and rounding, half to even, in double precision: diffusers counts so.
    spaced = torch.linspace(0, top, steps + 1, dtype=torch.float64).round().long()
    return spaced.flip(0)[:-1]


def reference_sigmas(method: str, steps: int, start: float = 1.0) -> torch.Tensor:
    """Noise levels (steps + 1,) of the official pipelines: to 0 for DPM-Solver++, to timestep 0 for SA-Solver.

    start: as in ``reference_timesteps``; there are no levels, and so no steps, at 0.
    """
    if start <= 0:
        return torch.zeros(0)
    return sigmas_at(reference_timesteps(steps, start), None if method == SA_SOLVER else 0.0)


def boundary(timestep: torch.Tensor, sigma_data: float = 0.5, scaling: float = 10.0) -> tuple:
    """c_skip and c_out of a consistency function, which make it the identity at timestep 0 (2310.04378, eq. 9)."""
    scaled = timestep * scaling
    total = scaled**2 + sigma_data**2
    return sigma_data**2 / total, scaled / total**0.5


def noise_like(seed: int | None, x: torch.Tensor) -> Noise:
    """Draws of unit noise like ``x``, as diffusers' pipelines draw them after the first noise of the same seed."""
    generator = torch.Generator().manual_seed(0 if seed is None else seed)

    def draw() -> torch.Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    draw()  # the noise that the picture started from
    return draw


def restart(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise, on_step: OnStep | None = None):
    """Jump to x0 and, but for the last step, back to the next noise level (2310.04378, alg. 3): LCM, Flash, Nitro, DMD.

    x: latents at ``sigmas[0]``; sigmas: (n + 1,), falling. Returns the last x0.
    """
    for i, sigma in enumerate(sigmas[:-1]):
        denoised = denoise(x, sigma)
        if on_step:
            on_step(i, x, denoised)
        x = denoised
        if sigmas[i + 1] > 0:
            x = denoised + sigmas[i + 1] * noise()
    return x


def dpm_solver(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: OnStep | None = None,
    first_order_last: bool = True,
):
    """DPM-Solver++ (2M) of Lu et al. (2211.01095, alg. 2); to σ = 0 the last step is of first order in any case.

    x: latents at ``sigmas[0]``; sigmas: (n + 1,), falling.
    """
    levels = sigmas.tolist()
    previous = None
    for i, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        denoised = denoise(x, sigmas[i])
        if on_step:
            on_step(i, x, denoised)
        direction = denoised
        is_last = i == len(levels) - 2
        if previous is not None and target > 0 and not (is_last and first_order_last):
            r = math.log(levels[i - 1] / sigma) / math.log(sigma / target)
            direction = denoised + (denoised - previous) / (2 * r)
        x = direction + (target / sigma) * (x - direction)
        previous = denoised
    return x


def official_tau(sigma: float) -> float:
    """How stochastic SA-Solver is in PixArt's pipelines: fully between timesteps 200 and 800, else not at all."""
    low, high = table()[[200, 800]].tolist()
    return 1.0 if low <= sigma <= high else 0.0


def sa_solver(
    denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise, on_step: OnStep | None = None
) -> torch.Tensor:
    """SA-Solver (Xue et al., 2309.05019): predictor and corrector of second order, data prediction, PEC.

    x: latents at ``sigmas[0]``; sigmas: (n + 1,), falling, none of them 0.
    One noise is drawn at every step, used or not, as in the official pipelines.
    """
    levels = sigmas.tolist()
    start = earlier = drawn = None
    tau = 0.0
    for i, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        denoised = denoise(x, sigmas[i])
        if on_step:
            on_step(i, x, denoised)
        before = levels[i - 1]
        if i > 0:
            weights = adams_weights(before, sigma, (sigma, before), tau, corrector=True)
            x = adams_step(start, before, sigma, weights, (denoised, earlier), tau, drawn)
        start, drawn, tau = x, noise(), official_tau(sigma)
        if 0 < i < len(levels) - 2:
            nodes, predictions = (sigma, before), (denoised, earlier)
        else:  # at the first step there is no earlier prediction, and the last is of first order
            nodes, predictions = (sigma,), (denoised,)
        weights = adams_weights(sigma, target, nodes, tau)
        x = adams_step(start, sigma, target, weights, predictions, tau, drawn)
        earlier = denoised
    return x


def adams_step(x, sigma: float, target: float, weights, predictions, tau: float, drawn) -> torch.Tensor:
    """x at ``sigma`` carried to ``target`` by weighted predictions and as much noise as ``tau`` lets in."""
    ratio = target / sigma  # e^{-h}
    x = ratio ** (1 + tau**2) * x + target * math.sqrt(1 - ratio ** (2 * tau**2)) * drawn
    return x + sum(weight * prediction for weight, prediction in zip(weights, predictions, strict=True))


def adams_weights(
    sigma: float, target: float, nodes: tuple[float, ...], tau: float, corrector: bool = False
) -> tuple[float, ...]:
    """Weights of the predictions made at the noise levels ``nodes``, in a step from ``sigma`` to ``target``.

    The exact integral of the line through them against the solver's exponential kernel (2309.05019, eq. 14 and 17),
    and with two nodes the official code's term of third order, which turns the line's mean slope into a midpoint's.
    """
    start, end = -math.log(sigma), -math.log(target)  # half log-SNR
    h, rate = end - start, 1 + tau**2
    area = -math.expm1(-rate * h)  # of the kernel rate · e^{-rate (end - λ)} over the step
    if len(nodes) == 1:
        return (area,)
    first, second = (-math.log(node) for node in nodes)
    moment = h - area / rate  # of (λ - start) against the kernel, from which that of any line follows
    weight = (moment + (start - second) * area) / (first - second)
    weight += (rate * h**2 / 2 - moment) / (h if corrector else start - second)
    return weight, area - weight
