"""PixArt's samplers as the host's SAMPLER, and the consistency model's prediction as its model sampling."""

from __future__ import annotations

import comfy.model_sampling
import comfy.samplers
import torch

from ...pixart import sampling


class ConsistencySampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """The host's schedule with a consistency model's prediction: x0 and, towards timestep 0, x itself."""

    def calculate_denoised(self, sigma, model_output, model_input):
        x0 = super().calculate_denoised(sigma, model_output, model_input)
        level = comfy.model_sampling.reshape_sigma(sigma, model_input.ndim)
        skip, out = sampling.boundary(self.timestep(sigma).view(level.shape).float())
        return out * x0 + skip * model_input / (1 + level**2) ** 0.5


class UnitNoiseSampler(comfy.samplers.KSAMPLER):
    """Starts from noise of unit variance in the model's space at any level, as one-step models were trained.

    The host does so at the highest level alone. A latent that is not empty begins where the host would.
    """

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *more, **named):
        empty = latent_image is None or not torch.count_nonzero(latent_image)
        if empty and not self.max_denoise(model_wrap, sigmas):
            noise = noise * (1 + sigmas[0] ** 2).sqrt() / sigmas[0]
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, *more, **named)


def adapted(solver, uses_noise: bool):
    """One of ``pixart.sampling``'s solvers with the call that the host makes of k-diffusion's."""

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        extra_args = extra_args or {}

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return model(x, sigma * x.new_ones(x.shape[0]), **extra_args)

        def on_step(i: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
            if callback is not None:
                callback({"i": i, "x": x, "denoised": denoised, "sigma": sigmas[i], "sigma_hat": sigmas[i]})

        noise = (sampling.noise_like(extra_args.get("seed"), x),) if uses_noise else ()
        return solver(denoise, x, sigmas, *noise, on_step)

    return sample


def sa_solver(denoise, x, sigmas, noise, on_step=None) -> torch.Tensor:
    """SA-Solver, and its latents as the reference pipeline hands them on: those of the transformer's space."""
    x = sampling.sa_solver(denoise, x, sigmas, noise, on_step)
    return x / (1 + sigmas[-1] ** 2).sqrt()


def few_step(patcher, method: str, steps: int, source: str):
    """A clone of a MODEL that predicts as the method needs it, SIGMAS and SAMPLER.

    Raises ValueError for steps that the method has not.
    """
    sigmas = sampling.sigmas_at(sampling.few_step_timesteps(method, steps, source))
    patched = patcher.clone()
    if method in (sampling.LCM, sampling.FLASH):
        patched.add_object_patch("model_sampling", ConsistencySampling(patched.model.model_config))
    return patched, sigmas, UnitNoiseSampler(adapted(sampling.restart, uses_noise=True))


def reference(method: str, steps: int, start: float = 1.0):
    """SIGMAS and SAMPLER of the official pipelines.

    Raises ValueError for steps that the method has not.
    """
    sigmas = sampling.reference_sigmas(method, steps, start)
    if method == sampling.SA_SOLVER:
        return sigmas, comfy.samplers.KSAMPLER(adapted(sa_solver, uses_noise=True))
    return sigmas, comfy.samplers.KSAMPLER(adapted(sampling.dpm_solver, uses_noise=False))
