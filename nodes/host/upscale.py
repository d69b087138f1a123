"""The second pass of a cascade, in the host's latents."""

from __future__ import annotations

from ...pixart.cascade import augment, augmentation_sigmas, enlarge
from ...pixart.resolution import nearest_bin

PIXELS = 8
PATCH = 2
"""Latent pixels to one token: sides are rounded to whole tokens."""


def target_size(height: int, width: int, target: str, scale: float) -> tuple[int, int]:
    """Latent height and width after enlarging: by ``scale``, or to the trained size of a base nearest in shape.

    Raises ValueError when that is smaller than before.
    """
    if target == "scale":
        high, wide = (max(PATCH, round(side * scale / PATCH) * PATCH) for side in (height, width))
    else:
        chosen = nearest_bin(height * PIXELS, width * PIXELS, int(target))
        high, wide = chosen.height // PIXELS, chosen.width // PIXELS
    if high * wide < height * width:
        raise ValueError(
            f"The latent is {width * PIXELS} × {height * PIXELS} pixels, and target {target} would make it "
            f"{wide * PIXELS} × {high * PIXELS}: choose a larger target or scale."
        )
    return high, wide


def second_pass(patcher, latent: dict, target: str, scale: float, level: float, steps: int, seed: int, method: str):
    """LATENT enlarged and noised, the SIGMAS that take it from there, and its width and height in pixels."""
    samples = latent["samples"]
    if samples.ndim != 4:
        raise ValueError(
            f"latent is of shape {tuple(samples.shape)}, but PixArt's have batch, channels, height, width."
        )
    high, wide = target_size(*samples.shape[-2:], target, scale)
    sigmas = augmentation_sigmas(level, steps)
    samples = enlarge(samples, high, wide, method)
    if len(sigmas):
        model = patcher.model
        samples = model.process_latent_out(augment(model.process_latent_in(samples), float(sigmas[0]), seed))
    return {**latent, "samples": samples}, sigmas, wide * PIXELS, high * PIXELS
