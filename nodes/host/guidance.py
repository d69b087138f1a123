"""Thresholding and guidance by noise level, as patches of the host's MODEL."""

from __future__ import annotations

import comfy.samplers
import torch

from ...pixart.guidance import DYNAMIC, LatentRange, latent_range, threshold


def thresholded(patcher, mode: str, percentile: float, reference=None):
    """A clone of a MODEL whose guided predictions are kept in the range of latents.

    reference: LATENT of real pictures; None measures the model's own prediction without guidance at every step.
    Raises ValueError for a percentile that is none, a reference of another number of channels, or dynamic without one.
    """
    if reference is None and mode == DYNAMIC:
        raise ValueError(
            "The mode dynamic needs the range of real latents: connect some pictures, encoded with the checkpoint's "
            "VAE, to reference, or choose the mode static."
        )
    bounds = None if reference is None else measured(patcher, reference["samples"], percentile)
    patched = patcher.clone()

    def keep_in_range(args: dict):
        if args["uncond"] is None or torch.equal(args["uncond_denoised"], args["cond_denoised"]):
            return args["denoised"]  # nothing is guided here
        return threshold(args["denoised"], args["cond_denoised"], mode, percentile, bounds)

    patched.set_model_sampler_post_cfg_function(keep_in_range)
    return patched


def measured(patcher, samples, percentile: float) -> LatentRange:
    """The range of real latents in the model's own scale."""
    channels = patcher.model.latent_format.latent_channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(
            f"reference is of shape {tuple(samples.shape)}, but the model's latents have {channels} channels: encode "
            "the pictures with the VAE that belongs to the checkpoint."
        )
    return latent_range(patcher.model.process_latent_in(samples.float()), percentile, together=True)


def guided_within(patcher, start_percent: float, end_percent: float):
    """A clone of a MODEL that is guided between two points of sampling, and elsewhere draws the positive alone.

    Raises ValueError when the interval ends before it starts.
    """
    if end_percent < start_percent:
        raise ValueError(
            f"end_percent ({end_percent:g}) is before start_percent ({start_percent:g}): set it to at least that."
        )
    patched = patcher.clone()
    model_sampling = patched.get_model_object("model_sampling")
    high, low = (model_sampling.percent_to_sigma(percent) for percent in (start_percent, end_percent))
    before = patched.model_options.get("sampler_calc_cond_batch_function")

    def calculate(args: dict) -> list:
        conds, sigma = list(args["conds"]), float(args["sigma"].max())
        inside = low <= sigma <= high
        if not inside and conds[1] is not None:
            conds[1] = None
        predicted = list(run_conds(before, args, conds))
        if not inside:
            predicted[1] = predicted[0]  # guidance of any scale between two equal predictions changes nothing
        return predicted

    patched.set_model_sampler_calc_cond_batch_function(calculate)
    return patched


def run_conds(before, args: dict, conds: list):
    """The predictions for conditions, by what another node has put there or else by the host."""
    if before is not None:
        return before({**args, "conds": conds})
    return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])
