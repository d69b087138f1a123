"""A full fine-tune laid over a MODEL as its difference from the base."""

from __future__ import annotations

import logging

import torch

from ...pixart.checkpoint import open_checkpoint
from ...pixart.checkpoint.keys import list_names
from .lora import MODEL_PREFIX
from .model import pixart_model
from .patches import TABLE, BaseWeights, patched

log = logging.getLogger(__name__)

NULL_CAPTION = "y_embedder.y_embedding"
"""Not trained by anybody, and not read by the transformer."""

STRANGE = 0.7
"""Relative difference above which two models are hardly base and fine-tune: unrelated weights are at 1.4."""


def load_dreambooth(model, path: str, strength: float):
    """A MODEL whose weights are base + strength × (fine-tune − base); with strength 0 the very same object.

    path: any file or folder that ``pixart.checkpoint`` reads. Raises ValueError as the reader does, and when the
    fine-tune is of another shape than the base.
    """
    base = pixart_model(model)
    if strength == 0:
        return model
    fine = open_checkpoint(path)
    check_same_shape(base.pixart, fine)
    differences, relative = difference(model, fine)
    name = fine.path.name
    if relative > STRANGE:
        log.warning(
            "%s differs from %s by %.0f %% of its weights' size: it hardly was trained from it. Choose the checkpoint "
            "that the fine-tune began with as the model.", name, base.pixart.name, 100 * relative,
        )  # fmt: skip
    log.info("%s: %d parameters differ from %s, by %.2g %%", name, len(differences), base.pixart.name, 100 * relative)
    return patched(model, differences, strength)


def check_same_shape(base, fine) -> None:
    if base.config.null_caption and fine.config.null_caption and base.config.family != fine.config.family:
        raise ValueError(
            f"{fine.path.name} is PixArt-{fine.config.family}, {base.name} is PixArt-{base.config.family}: it is no "
            "fine-tune of it. Choose the checkpoint that it was trained from as the model."
        )
    if wrong := base.config.other_shape(fine.config):
        raise ValueError(
            f"{fine.path.name} is no fine-tune of {base.name}: it has {wrong}. Choose the checkpoint that it was "
            "trained from as the model, or open it by itself with PixArt Load Checkpoint."
        )


def difference(model, fine) -> tuple[dict, float]:
    """The host's patches for what differs, and the relative size of the difference.

    Each is kept in the type that both have where that is a half one, in fp32 otherwise.
    """
    base = BaseWeights(model)
    kept = {name: parameter.dtype for name, parameter in model.model.diffusion_model.named_parameters()}
    if extra := [name for name in fine.state_dict if name not in kept and name != NULL_CAPTION]:
        raise ValueError(
            f"{fine.path.name} holds {list_names(extra)}, which the model has no layer for. Choose the checkpoint that "
            "it was trained from as the model."
        )
    patches, squares, whole = {}, 0.0, 0.0
    for name, dtype in kept.items():
        if name not in fine.state_dict:
            continue  # the model has layers that the fine-tune was trained without, such as those of KV compression
        key = MODEL_PREFIX + name
        stored = fine.state_dict[name].dtype
        own = base[key].cpu()
        change = fine.tensor(name, torch.float32) - own
        squares += change.pow(2).sum().item()
        whole += own.pow(2).sum().item()
        if change.any():
            is_half = stored == dtype and dtype in (torch.float16, torch.bfloat16) and not name.endswith(TABLE)
            patches[key] = ("diff", (change.to(dtype) if is_half else change,))
    return patches, (squares / whole) ** 0.5 if whole else 0.0
