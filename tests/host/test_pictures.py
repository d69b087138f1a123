"""The demo draws what its prompts say, through the host's KSampler and VAE."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from judged import judge_random_prompts

from pixart.pipeline import PixArtPipeline

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
CHECKPOINT, ENCODER, AUTOENCODER = (DEMO / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae"))

SEED = 20240307
STEPS, CFG = 20, 4.5


@pytest.fixture(scope="module")
def models(pack):
    """MODEL, CLIP and VAE of the demo, as the nodes load them."""
    import comfy.sd
    import comfy.utils

    model = import_module(f"{pack.__name__}.nodes.host.model").load_model(str(CHECKPOINT))
    clip = import_module(f"{pack.__name__}.nodes.host.text").load_clip(str(ENCODER))
    return model, clip, comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(AUTOENCODER)))


def encode(clip, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def draw(models, prompt: str, seed: int, size=(16, 16)) -> torch.Tensor:
    """A picture (H, W, 3) in [0, 1]."""
    import comfy.sample

    model, clip, vae = models
    latent = torch.zeros(1, 4, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    samples = comfy.sample.sample(
        model, noise, STEPS, CFG, "dpmpp_2m", "normal", encode(clip, prompt), encode(clip, ""), latent, seed=seed
    )
    return vae.decode(samples)[0]


def test_prompts_are_drawn_right(models, host_version):
    """40 prompts at random on the newest supported host, 16 on the others.

    A picture is right when its background, the shape's colour, the shape and its position are those of the
    prompt; judge.py tells how each is measured from the pixels.
    """
    count, needed = (40, 36) if host_version >= (0, 33) else (16, 14)
    sheet = f"prompts-{'.'.join(map(str, host_version))}.png"
    right, misses = judge_random_prompts(partial(draw, models), count, SEED, sheet)
    assert right >= needed, misses


def test_the_pipeline_without_a_host_draws_the_same_picture(models):
    """From the same noise, over the same schedule."""
    import comfy.sample
    import comfy.samplers

    prompt, seed = "a large yellow triangle on the right, purple background", 5
    sampler = comfy.samplers.KSampler(models[0], STEPS, "cpu", "dpmpp_2m", "normal", 1.0)
    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 16, 16), seed)
    pipeline = PixArtPipeline.load(CHECKPOINT, ENCODER, AUTOENCODER)
    positive, negative = pipeline.encode([prompt]), pipeline.encode([""])
    latents = pipeline.sample(
        positive, negative, height=128, width=128, cfg=CFG, noise=noise, sigmas=sampler.sigmas
    )
    theirs, ours = draw(models, prompt, seed), pipeline.decode(latents)[0]
    difference = (theirs - ours).abs().mean().item() * 255
    print(f"mean absolute difference {difference:.5f} / 255")
    assert difference <= 2
    assert (draw(models, prompt, seed + 1) - ours).abs().mean().item() * 255 > 2 * difference


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(models):
    prompt = "a small blue circle on the top, white background"
    first = draw(models, prompt, 1)
    assert torch.equal(first, draw(models, prompt, 1))
    assert not torch.equal(first, draw(models, prompt, 2))
