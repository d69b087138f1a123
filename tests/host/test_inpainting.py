"""Image to image and inpainting through the host's latent masks: what is outside of the mask stays as it was."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

DEMO = Path(__file__).resolve().parents[2] / "demo"
CHECKPOINT, ENCODER, AUTOENCODER = (DEMO / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae"))
REACH = 40
"""Pixels that the demo's decoder looks beyond a latent pixel, at most; measured below."""


@pytest.fixture(scope="module")
def models(pack):
    """MODEL, CLIP and VAE of the demo, as the nodes load them."""
    import comfy.sd
    import comfy.utils

    model = import_module(f"{pack.__name__}.nodes.host.model").load_model(str(CHECKPOINT))
    clip = import_module(f"{pack.__name__}.nodes.host.text").load_clip(str(ENCODER))
    return model, clip, comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(AUTOENCODER)))


@pytest.fixture(scope="module")
def original(models) -> torch.Tensor:
    """A red circle on white, (1, 128, 128, 3), as drawn by hand."""
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    circle = ((x - 34) ** 2 + (y - 64) ** 2 < 17**2)[..., None]
    return torch.where(circle, torch.tensor([0.86, 0.10, 0.12]), torch.tensor([0.97, 0.97, 0.97]))[None]


def encode(clip, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def repaint(models, original, mask, prompt: str, denoise: float = 1.0, differential: bool = False, steps: int = 8):
    """(latents before, latents after, picture) of the host's KSampler over Set Latent Noise Mask."""
    import nodes

    model, clip, vae = models
    latent = {"samples": vae.encode(original)}
    if mask is not None:
        latent["noise_mask"] = mask[None, None]
    if differential:
        module = import_module("comfy_extras.nodes_differential_diffusion")
        model = module.DifferentialDiffusion.execute(model).result[0]
    (drawn,) = nodes.common_ksampler(
        model, 3, steps, 4.5, "dpmpp_2m", "normal", encode(clip, prompt), encode(clip, ""), latent, denoise=denoise
    )
    return latent["samples"], drawn["samples"], vae.decode(drawn["samples"])


def right_half() -> torch.Tensor:
    mask = torch.zeros(128, 128)
    mask[:, 64:] = 1
    return mask


def test_pixels_outside_of_the_mask_are_those_of_the_vaes_round_trip(models, original):
    _, _, vae = models
    before, after, picture = repaint(models, original, right_half(), "a small blue star on the right, white background")
    assert (after[..., :8] - before[..., :8]).abs().max() <= 1e-5
    assert (after[..., 8:] - before[..., 8:]).abs().mean() > 0.1
    round_trip = vae.decode(before)
    changed = ((picture - round_trip).abs().amax(dim=(0, 1, 3)) > 1 / 255).nonzero()  # columns
    print(f"the first column that differs is {changed.min().item()}, the mask begins at 64")
    assert changed.min() >= 64 - REACH
    assert (picture - round_trip)[:, :, : 64 - REACH].abs().max() <= 1 / 255


def test_laid_over_the_original_nothing_outside_of_the_mask_differs(models, original):
    """As the workflow does with Image Composite Masked: to the bit."""
    module = import_module("comfy_extras.nodes_mask")
    mask = right_half()
    *_, picture = repaint(models, original, mask, "a small blue star on the right, white background", steps=4)
    kind = module.ImageCompositeMasked
    call = kind.execute if hasattr(kind, "execute") else kind().composite
    out = call(destination=original, source=picture, x=0, y=0, resize_source=False, mask=mask[None])
    out = (out.result if hasattr(out, "result") else out)[0]
    assert torch.equal(out[:, :, :64], original[:, :, :64])
    assert (out[:, :, 64:] - original[:, :, 64:]).abs().mean() > 0.01


def test_differential_strength_changes_more_where_the_mask_is_stronger(models, original):
    """A mask from 0 to 1, left to right: each quarter moves farther from the original than the one before it."""
    mask = torch.linspace(0, 1, 128).expand(128, 128)
    prompt = "a large green square on the center, purple background"
    before, after, _ = repaint(models, original, mask, prompt, differential=True, steps=12)
    moved = [(after - before)[..., i : i + 4].abs().mean().item() for i in (0, 4, 8, 12)]
    print("mean change of the latents by quarter: " + ", ".join(f"{m:.3f}" for m in moved))
    assert moved[0] < moved[1] < moved[3] and moved[0] < 0.5 * moved[3]


def test_image_to_image_moves_farther_from_the_picture_with_more_denoise(models, original):
    prompt = "a large green square on the left, white background"
    moved = []
    for denoise in (0.2, 0.5, 0.9):
        before, after, _ = repaint(models, original, None, prompt, denoise)
        moved.append((after - before).abs().mean().item())
    print("mean change of the latents at denoise 0.2, 0.5, 0.9: " + ", ".join(f"{m:.3f}" for m in moved))
    assert moved == sorted(moved) and moved[0] < 0.5 * moved[2]
