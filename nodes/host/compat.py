"""What differs between the ComfyUI versions this pack runs on. All feature detection is here."""

from __future__ import annotations

import inspect

import comfy.cli_args
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS

from ...pixart.workspace import Workspace


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


def keeps_files_mapped() -> bool:
    """Whether weights may stay in the file's own memory pages: not where the user started with --disable-mmap."""
    return not getattr(comfy.utils, "DISABLE_MMAP", False)


def quantised_formats() -> frozenset[str]:
    """Names of the quantised formats that this host's layers compute with (fp8, nvfp4; mxfp8, int8 … in later ones)."""
    return frozenset(QUANT_ALGOS)


def archive_dtypes(model: torch.nn.Module) -> None:
    """Tell hosts that stream weights in which types this model's are kept; they noted it before loading."""
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(model)


def make_clip(*arguments, disable_dynamic: bool = False, **keywords):
    """The host's CLIP; ``disable_dynamic`` is known since 0.15.1."""
    if "disable_dynamic" in inspect.signature(comfy.sd.CLIP.__init__).parameters:
        keywords["disable_dynamic"] = disable_dynamic
    return comfy.sd.CLIP(*arguments, **keywords)


def attention(device: torch.device):
    """The attention that the user chose for the host, or else the host's own choice, except on the processor.

    There the host falls back on a slow kernel made for cards without memory-saving attention; PyTorch's needs as
    little memory.
    """
    module = comfy.ldm.modules.attention
    args = comfy.cli_args.args
    flags = ("use_split_cross_attention", "use_quad_cross_attention")
    is_chosen = any(getattr(args, flag, False) for flag in flags)
    if device.type == "cpu" and not is_chosen and module.optimized_attention is module.attention_sub_quad:
        return module.attention_pytorch
    return module.optimized_attention


def weights_in_use(patcher) -> tuple:
    """Changes when the host's hooks change the weights of a MODEL in the middle of a sampling run."""
    hooks = getattr(patcher, "current_hooks", None)
    return () if hooks is None else tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks)


def loaded_weights(model) -> object:
    """Changes when the host loads or unloads a model, with the patches it then has in its weights."""
    return getattr(model, "current_weight_patches_uuid", None)


def workspace() -> Workspace:
    """For layers as this host makes them; interrupted where its own layers are."""
    linear = comfy.ops.disable_weight_init.Linear
    return Workspace((torch.nn.Linear, linear), getattr(comfy.ops, "run_every_op", lambda: None))


def host_version() -> str:
    """ComfyUI's own version, "unknown" for builds that do not carry it."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return "unknown"
    return __version__


def attention_backend(device: torch.device) -> str:
    """The name of the attention function that is used on a device, such as attention_pytorch or attention_sub_quad."""
    return attention(device).__name__
