"""What differs between the ComfyUI versions this pack runs on. All feature detection is here."""

from __future__ import annotations

import comfy.model_patcher


def is_dynamic(patcher) -> bool:
    """Whether the host streams this model's weights (dynamic VRAM) and wants them assigned, not copied."""
    probe = getattr(patcher, "is_dynamic", None)
    return bool(probe and probe())


def core_patcher(model, load_device, offload_device, disable_dynamic: bool = False):
    """The host's own kind of ModelPatcher for a model; never a subclass of ours."""
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    return kind(model, load_device=load_device, offload_device=offload_device)


def remember_loader(patcher, function, arguments: tuple) -> None:
    """Tell hosts that ask (0.15.1 and later) how to load this model anew, for compilation and other cards."""
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (function, arguments)
