"""A LoRA file on the host's MODEL and CLIP, and what to tell about it."""

from __future__ import annotations

import logging

import comfy.model_base

from ...pixart.lora import Lora, blocks_reached, fit, open_lora
from . import text
from .model import pixart_model
from .patches import adapter_patches, patched

log = logging.getLogger(__name__)

MODEL_PREFIX = "diffusion_model."
TEXT_PREFIX = f"{text.NAME}.transformer."

LISTED = 12
"""How many names of layers without a place a report holds."""


def load_lora(model, clip, path: str, strength_model: float, strength_clip: float) -> tuple:
    """MODEL and CLIP with a LoRA, and a report. With strength 0 they are the very same objects.

    clip: None leaves the LoRA's text encoder part out. Raises ValueError, naming the file, when it is no LoRA for
    this model, or holds nothing that can be applied to what is connected.
    """
    lora = open_lora(path)
    try:
        return apply_lora(model, clip, lora, strength_model, strength_clip)
    except ValueError as error:
        raise ValueError(f"{lora.path.name}: {error}") from error


def apply_lora(model, clip, lora: Lora, strength_model: float, strength_clip: float) -> tuple:
    if not isinstance(getattr(model, "model", None), comfy.model_base.PixArt):
        pixart_model(model)  # says what it is instead
    shapes = shapes_of(model.model.diffusion_model)
    fitting, unplaced = fit(lora.transformer, shapes, "PixArt model")
    encoder = t5_of(clip) if clip is not None and lora.text else None
    fitting_text, unplaced_text = fit(lora.text, shapes_of(encoder), "T5") if encoder is not None else ([], [])
    unplaced = [*unplaced, *unplaced_text, *lora.leftover]
    if not fitting and not fitting_text:
        raise ValueError(nothing_matched(lora, clip, unplaced))
    if fitting and strength_model:
        model = patched(model, adapter_patches(fitting, MODEL_PREFIX, model), strength_model)
    if fitting_text and strength_clip:
        patches = adapter_patches(fitting_text, TEXT_PREFIX, clip.patcher)
        clip = clip.clone()
        clip.patcher = patched(clip.patcher, patches, strength_clip)
    lines = [
        f"{lora.path.name}: {lora.dialect}, {lora.kinds()}",
        scale_line(lora),
        placed_line("transformer", lora.transformer, fitting, strength_model),
    ]
    if lora.text and clip is None:
        lines.append(f"text encoder: {len(lora.text)} modules left out, since no clip is connected")
    else:
        lines.append(placed_line("text encoder", lora.text, fitting_text, strength_clip))
    lines += notes(lora, shapes)
    if unplaced:
        lines.append(f"without a place: {len(unplaced)}")
        lines += [f"· {name}: {why}" for name, why in unplaced[:LISTED]]
        if len(unplaced) > LISTED:
            lines.append(f"· and {len(unplaced) - LISTED} more")
        log.warning("%s: %d of its names have no place, the first: %s", lora.path.name, len(unplaced), unplaced[0][0])
    return model, clip, "\n".join(lines)


def shapes_of(module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def t5_of(clip):
    """The T5 inside a CLIP; ValueError where it holds another encoder."""
    encoder = getattr(getattr(clip, "cond_stage_model", None), text.NAME, None)
    if encoder is None:
        raise ValueError(
            "The LoRA has a part for T5, but the CLIP that is connected holds none. Connect PixArt Load T5, or nothing."
        )
    return encoder.transformer


def nothing_matched(lora: Lora, clip, unplaced: list[tuple[str, str]]) -> str:
    if lora.text and clip is None and not lora.transformer:
        return (
            f"The LoRA changes only the text encoder ({len(lora.text)} modules), and no clip is connected. Connect the "
            "CLIP of PixArt Load T5."
        )
    return (
        f"None of the LoRA's {len(lora.transformer) + len(lora.text)} modules has a place in this model. "
        f"The first: {unplaced[0][0]}: {unplaced[0][1]}. Choose a LoRA that was trained on this model."
    )


def scale_line(lora: Lora) -> str:
    ranked = [adapter for adapter in (*lora.transformer, *lora.text) if adapter.rank]
    if not ranked:
        return "rank and alpha: this kind has none"
    ranks = span({adapter.rank for adapter in ranked})
    return f"rank {ranks}, alpha {span({a.alpha for a in ranked})} (scale {span({a.scale for a in ranked})}): " + (
        lora.scale_rule
    )


def span(values: set) -> str:
    low, high = f"{min(values):.6g}", f"{max(values):.6g}"
    return low if low == high else f"{low} to {high}"


def placed_line(part: str, modules, fitting: list, strength: float) -> str:
    if not modules:
        return f"{part}: nothing in the file"
    return f"{part}: {len(fitting)} of {len(modules)} modules matched, strength {strength:g}"


def notes(lora: Lora, shapes: dict) -> list[str]:
    """What the user may want to know, and what makes a LoRA suspect without being an error."""
    said, metadata = [], lora.metadata
    depth, reached = depth_of(shapes), blocks_reached(lora.transformer)
    if 0 < reached < depth:
        said.append(
            f"its blocks end at {reached - 1}, the model's at {depth - 1}: it may be made for a model of {reached}"
        )
    trigger = metadata.get("pixart_trigger") or metadata.get("modelspec.trigger_phrase")
    if trigger:
        said.append(f"trigger: {trigger[:200]}")
    base = metadata.get("pixart_base_sha")
    if base:
        said.append(f"trained on the base {base[:16]}")
    training = [f"{key} {metadata[f'pixart_{key}'][:20]}" for key in ("steps", "seed") if metadata.get(f"pixart_{key}")]
    if training:
        said.append("training: " + ", ".join(training))
    return said


def depth_of(shapes: dict) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
