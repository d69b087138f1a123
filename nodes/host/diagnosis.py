"""Which layer spoils a picture: looked for only after numbers have gone wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The name of the innermost layer that first gives NaN or infinity while ``run`` calls the model.

    None when every layer's output is finite, or the model is not called. Costs one more forward.
    """
    found: list[str] = []

    def watch(name: str):
        def look(module, arguments, output) -> None:
            if not found and isinstance(output, torch.Tensor) and not output.isfinite().all():
                found.append(name)

        return look

    handles = [layer.register_forward_hook(watch(name)) for name, layer in model.named_modules() if name]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def is_finite(tensor: torch.Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())


def explain(model, x: torch.Tensor, caption: torch.Tensor | None, run: Callable[[], object]) -> str:
    """Why a PixArtModel's prediction for ``x`` is not finite, and what to change. ``run`` makes the prediction."""
    name = model.pixart.name
    if not is_finite(x):
        return (
            f"The latents that the sampler handed to {name} hold NaN or infinity: an earlier node or the sampler made "
            "them, not the model. Check the latent's source, the sampler and its scale of guidance (cfg)."
        )
    if not is_finite(caption):
        return (
            f"The caption handed to {name} holds NaN or infinity: the text encoder overflowed. Load it with dtype bf16 "
            "or fp32 in PixArt Load T5, and encode the prompt again."
        )
    layer = first_not_finite(model.diffusion_model, run) or "no layer alone"
    kept, computed = (str(t).removeprefix("torch.") for t in (model.get_dtype(), model.get_dtype_inference()))
    kind = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}.get(computed, computed)
    where = f"{name} gave NaN or infinity, first not finite in {layer} at {kind}"
    if computed == "float16":
        return f"{where}; choose weight_dtype bf16 or fp32 in PixArt Load Checkpoint."
    if kept.startswith("float8"):
        return f"{where}, weights kept in {kept}; choose weight_dtype bf16 or fp32 in PixArt Load Checkpoint."
    if kind == "bf16":
        return f"{where}; choose weight_dtype fp32 in PixArt Load Checkpoint, or lower the strength of LoRAs."
    return (
        f"{where}, where nothing overflows by itself: the checkpoint's or a LoRA's weights are damaged, or a LoRA's "
        "strength is far too high. Try without LoRAs, then another file."
    )
