"""Thresholding of latents, and the second pass of a cascade, number by number."""

from __future__ import annotations

import pytest
import torch

from pixart.cascade import augment, augmentation_sigmas, enlarge
from pixart.guidance import LatentRange, dynamic_threshold, latent_range, static_threshold, threshold

UNIT = LatentRange(torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1))


def latents(seed: int, scale: float = 1.0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * scale


def test_in_the_range_of_pixels_dynamic_thresholding_is_imagens():
    """Against diffusers' own, which has the pixels' range built in."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=100.0)
    for scale in (0.3, 1.0, 5.0):
        x0 = latents(1, scale)
        assert torch.allclose(dynamic_threshold(x0, UNIT, 95.0), scheduler._threshold_sample(x0), atol=1e-6)


def test_static_thresholding_cuts_each_channel_at_its_own_range():
    bounds = LatentRange(torch.tensor([0.0, 1.0, 0.0, -1.0])[None, :, None, None], torch.full((1, 4, 1, 1), 2.0))
    cut = static_threshold(latents(2, 9.0), bounds)
    low, high = cut.movedim(1, 0).flatten(1).aminmax(dim=1)
    assert low.tolist() == [-2.0, -1.0, -2.0, -3.0] and high.tolist() == [2.0, 3.0, 2.0, 1.0]
    inside = latents(2, 0.1)
    assert torch.allclose(static_threshold(inside, UNIT), inside, atol=1e-6)


def test_dynamic_thresholding_draws_in_what_is_too_wide_and_leaves_the_rest():
    wide = dynamic_threshold(latents(3, 8.0), UNIT, 99.5)
    assert wide.abs().max() == pytest.approx(1.0)
    assert wide.flatten(1).std(dim=1).min() > 0.2  # drawn in, not flattened
    narrow = latents(3, 0.1)
    assert torch.allclose(dynamic_threshold(narrow, UNIT, 99.5), narrow, atol=1e-6)


def test_a_range_holds_the_percentile_of_each_pictures_channels_or_of_all_together():
    values = latents(4, 3.0) + torch.tensor([5.0, 0.0, 0.0, 0.0])[None, :, None, None]
    bounds = latent_range(values, 90.0)
    assert bounds.middle.shape == bounds.half.shape == (2, 4, 1, 1)
    inside = ((values - bounds.middle).abs() <= bounds.half + 1e-6).float().mean(dim=(2, 3))
    assert (inside - 0.9).abs().max() < 0.02
    assert bounds.middle[:, 0].mean() == pytest.approx(5.0, abs=0.5)
    together = latent_range(values, 90.0, together=True)
    assert together.half.shape == (1, 4, 1, 1)
    assert ((values - together.middle).abs() <= together.half).float().mean().item() == pytest.approx(0.9, abs=0.02)


def test_without_real_latents_the_models_own_unguided_prediction_is_the_range():
    unguided = latents(5, 2.0)
    kept = threshold(unguided * 10, unguided, "static", 99.5)
    bounds = latent_range(unguided, 99.5)
    assert ((kept - bounds.middle).abs() <= bounds.half + 1e-4).all()
    for mode in ("static", "dynamic"):
        assert threshold(unguided * 10, unguided, mode, 99.5, UNIT).abs().max() <= 1 + 1e-6
    with pytest.raises(ValueError, match="connect reference, or choose static"):
        threshold(unguided, unguided, "dynamic", 99.5)


def test_what_is_no_mode_or_percentile_is_refused():
    x = latents(6)
    with pytest.raises(ValueError, match="'soft'.*static, dynamic"):
        threshold(x, x, "soft", 99.5)
    for percentile in (49.0, 100.5):
        with pytest.raises(ValueError, match="from 50 to 100"):
            latent_range(x, percentile)


def test_a_second_pass_begins_at_its_level_and_ends_without_noise():
    sigmas = augmentation_sigmas(0.4, 10)
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    expected = ((1 - alphas) / alphas).sqrt()[400]
    assert len(sigmas) == 11 and sigmas[0].item() == pytest.approx(expected.item(), rel=1e-5) and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    assert len(augmentation_sigmas(0.0, 10)) == 0
    with pytest.raises(ValueError, match="noise_augmentation is 1.5"):
        augmentation_sigmas(1.5, 10)
    with pytest.raises(ValueError, match="begin from more noise"):
        augmentation_sigmas(0.01, 20)


def test_noise_is_added_at_the_level_and_follows_from_the_seed():
    flat = torch.ones(1, 4, 64, 64)
    noisy = augment(flat, 3.0, seed=1)
    assert (noisy - flat).std().item() == pytest.approx(3.0, rel=0.02)
    assert torch.equal(noisy, augment(flat, 3.0, seed=1)) and not torch.equal(noisy, augment(flat, 3.0, seed=2))
    assert torch.equal(flat, torch.ones(1, 4, 64, 64))


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "nearest-exact"])
def test_enlarging_keeps_the_picture_in_place(method):
    small = latents(7)
    large = enlarge(small, 32, 32, method)
    assert large.shape == (2, 4, 32, 32)
    assert torch.nn.functional.avg_pool2d(large, 2).sub(small).abs().mean() < 0.6 * small.abs().mean()
    assert torch.allclose(enlarge(torch.ones(1, 4, 8, 8), 16, 16, method), torch.ones(1, 4, 16, 16), atol=1e-6)
