"""Our samplers against diffusers' pipelines and schedulers: the same timesteps, noise and latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    SASolverScheduler,
)
from diffusers_twin import pipeline_latents, twin

from pixart import sampling
from pixart.checkpoint import load_transformer, open_checkpoint
from pixart.pipeline import BETAS

DEMO = Path(__file__).resolve().parents[2] / "demo" / "pixart-demo-sigma.safetensors"
SEED, CFG, TOKENS = 11, 4.5, 9


@pytest.fixture(scope="module")
def model():
    return load_transformer(open_checkpoint(DEMO), dtype=torch.float32).requires_grad_(False)


@pytest.fixture(scope="module")
def peer(model):
    """The demo's weights in diffusers' own class."""
    return twin(model)


@pytest.fixture(scope="module")
def captions(model):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 1, TOKENS, model.config.caption_channels, generator=generator)


def first_noise() -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(SEED))


def denoiser(model, captions, cfg: float = 1.0, consistency: bool = False):
    """x0 from x0 + σ n, as a host asks for it: nearest timestep, guidance, and LCM's boundary."""
    table = sampling.table()

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        t = (table - sigma).abs().argmin().float()
        scaled = x / (1 + sigma**2).sqrt()
        noise = model(scaled, t[None], captions[0])
        if cfg != 1:
            unguided = model(scaled, t[None], captions[1])
            noise = unguided + cfg * (noise - unguided)
        denoised = x - sigma * noise
        if consistency:
            skip, out = sampling.boundary(t)
            denoised = out * denoised + skip * scaled
        return denoised

    return denoise


def start(sigmas: torch.Tensor) -> torch.Tensor:
    """Unit noise in the transformer's space, whatever the first level."""
    return first_noise() * (1 + sigmas[0] ** 2).sqrt()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8])
def test_lcm_timesteps_are_those_of_diffusers(steps):
    scheduler = LCMScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    assert sampling.lcm_timesteps(steps).tolist() == scheduler.timesteps.tolist()


def test_lcm_timesteps_of_the_first_code_differ_at_four_steps():
    assert sampling.lcm_timesteps(4, "original").tolist() == [999, 759, 519, 279]
    assert sampling.lcm_timesteps(4, "diffusers").tolist() == [999, 759, 499, 259]
    assert sampling.lcm_timesteps(8, "original").tolist() == [999, 879, 759, 639, 519, 399, 279, 159]


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lcm_draws_the_latents_of_diffusers_pipeline_from_the_same_seed(model, peer, captions, steps):
    theirs = pipeline_latents(PixArtSigmaPipeline, peer, LCMScheduler(**BETAS), captions, steps, 1.0, SEED)
    sigmas = sampling.sigmas_at(sampling.few_step_timesteps("lcm", steps))
    x = start(sigmas)
    noise = sampling.noise_like(SEED, x)
    ours = sampling.restart(denoiser(model, captions, consistency=True), x, sigmas, noise)
    difference = (ours - theirs).abs().max().item()
    print(f"LCM, {steps} steps: largest difference {difference:.2e}, largest latent {theirs.abs().max():.2f}")
    # A single step is taken at σ = 157, where float32 itself resolves x0 to 1e-4 of latents of 4.
    assert difference <= 1e-4 * (theirs.abs().max() if steps == 1 else 1)


def test_every_point_of_lcms_trajectory_is_that_of_diffusers_scheduler(model, captions):
    scheduler = LCMScheduler(**BETAS)
    scheduler.set_timesteps(4)
    sigmas = sampling.sigmas_at(sampling.few_step_timesteps("lcm", 4))
    generator = torch.Generator().manual_seed(SEED)
    theirs, sample = [], torch.randn(1, 4, 16, 16, generator=generator)
    for t in scheduler.timesteps:
        predicted = model(sample, t[None].float(), captions[0])
        theirs.append((sample, scheduler.step(predicted, t, sample, generator=generator)))
        sample = theirs[-1][1].prev_sample
    ours = []
    x = start(sigmas)
    sampling.restart(
        denoiser(model, captions, consistency=True),
        x,
        sigmas,
        sampling.noise_like(SEED, x),
        lambda i, x, denoised: ours.append((x / (1 + sigmas[i] ** 2).sqrt(), denoised)),
    )
    for (sample, step), (x, denoised) in zip(theirs, ours, strict=True):
        assert (sample - x).abs().max() <= 1e-4
        # At σ = 157 float32 itself resolves x0 to 1e-4 of latents of 4, in either form.
        assert (step.denoised - denoised).abs().max() <= 1e-4 * step.denoised.abs().max()


def test_dmd_is_its_published_formula(model, captions):
    """x0 = (x - sqrt(1 - a) eps) / sqrt(a) at t = 400, x being noise of unit variance."""
    sigmas = sampling.sigmas_at(sampling.few_step_timesteps("dmd", 1))
    x = start(sigmas)
    ours = sampling.restart(denoiser(model, captions), x, sigmas, sampling.noise_like(SEED, x))
    noise = first_noise()
    predicted = model(noise, torch.tensor([400.0]), captions[0])
    published = (noise - 0.8980133575472881 * predicted) / 0.43996819165326784
    difference = (ours - published).abs().max().item()
    print(f"DMD: largest difference {difference:.2e}")
    assert difference <= 1e-5


def test_dmd_draws_the_latents_of_diffusers_pipeline(model, peer, captions):
    theirs = pipeline_latents(
        PixArtAlphaPipeline, peer, DDPMScheduler(**BETAS, clip_sample=False), captions, 1, 1.0, SEED, timesteps=[400]
    )
    sigmas = sampling.sigmas_at(sampling.few_step_timesteps("dmd", 1))
    x = start(sigmas)
    ours = sampling.restart(denoiser(model, captions), x, sigmas, sampling.noise_like(SEED, x))
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("steps", [1, 5, 14, 20, 25, 37])
@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, SASolverScheduler])
def test_reference_timesteps_and_levels_are_those_of_diffusers(kind, steps):
    scheduler = kind(**BETAS)
    scheduler.set_timesteps(steps)
    method = "sa-solver" if kind is SASolverScheduler else "dpm-solver++"
    assert sampling.reference_timesteps(steps).tolist() == scheduler.timesteps.tolist()
    assert torch.allclose(sampling.reference_sigmas(method, steps), scheduler.sigmas, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("start", "most"), [(1.0, 999), (0.3, 300), (0.01, 10), (0.0001, 1)])
def test_as_many_reference_steps_as_there_are_timesteps_and_no_more(start, most):
    for steps in {1, most // 2 or 1, most - 1 or 1, most}:
        levels = sampling.reference_sigmas("dpm-solver++", steps, start)
        assert len(levels) == steps + 1 and (levels.diff() < 0).all()
    with pytest.raises(ValueError, match=rf"steps is {most + 1}, .* there are 1 to {most}: set fewer steps"):
        sampling.reference_sigmas("dpm-solver++", most + 1, start)


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_draws_the_latents_of_diffusers_pipeline(model, peer, captions, steps):
    theirs = pipeline_latents(
        PixArtSigmaPipeline, peer, DPMSolverMultistepScheduler(**BETAS), captions, steps, CFG, SEED
    )
    sigmas = sampling.reference_sigmas("dpm-solver++", steps)
    ours = sampling.dpm_solver(denoiser(model, captions, CFG), start(sigmas), sigmas)
    difference = (ours - theirs).abs().max().item()
    print(f"DPM-Solver++, {steps} steps: largest difference {difference:.2e}, largest latent {theirs.abs().max():.2f}")
    assert difference <= 1e-3


@pytest.mark.parametrize("steps", [5, 20])
def test_sa_solver_draws_the_latents_of_diffusers_pipeline_from_the_same_seed(model, peer, captions, steps):
    theirs = pipeline_latents(PixArtSigmaPipeline, peer, SASolverScheduler(**BETAS), captions, steps, CFG, SEED)
    sigmas = sampling.reference_sigmas("sa-solver", steps)
    x = start(sigmas)
    ours = sampling.sa_solver(denoiser(model, captions, CFG), x, sigmas, sampling.noise_like(SEED, x))
    ours = ours / (1 + sigmas[-1] ** 2).sqrt()
    difference = (ours - theirs).abs().max().item()
    print(f"SA-Solver, {steps} steps: largest difference {difference:.2e}, largest latent {theirs.abs().max():.2f}")
    assert difference <= 1e-3 * (1 if steps == 20 else theirs.abs().max())


def test_a_number_of_steps_that_a_method_has_not_is_refused():
    for method, steps in (("lcm", 0), ("lcm", 51), ("dmd", 4), ("nitro", 9)):
        with pytest.raises(ValueError, match=f"steps is {steps}.* set steps to 1"):
            sampling.few_step_timesteps(method, steps)
