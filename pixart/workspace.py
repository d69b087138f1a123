"""Memory that linear layers write into again and again, on the processor.

Results of a megabyte and more are handed back to the operating system when they are dropped, and the next one begins
with its pages being mapped and cleared anew: at 1024 × 1024 pixels some 300,000 page faults a prediction, a good
twentieth of its time. A sampling run that keeps two such results' memory has none of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

WIDE, NARROW = "wide", "narrow"
"""Two results that are needed at the same time: queries, keys and values or the MLP's hidden layer, and any other."""


class Workspace:
    """One slot of memory for wide results and one for narrow ones. What is in a slot holds until its next use.

    It belongs to one run of one model, as ``SamplingRun`` does. What another than the block may keep is not to be
    written here.

    plain: classes of layers whose ``forward`` is ``nn.functional.linear`` of their own weights, so long as nobody has
        put anything around it.
    before: called before each layer; a host's check for an interruption.
    """

    def __init__(self, plain: tuple[type, ...] = (nn.Linear,), before: Callable[[], None] = lambda: None):
        self.plain, self.before = plain, before
        self.slots: dict[str, torch.Tensor] = {}

    def linear(self, layer: nn.Module, x: torch.Tensor, slot: str) -> torch.Tensor:
        """``layer(x)`` for x (B, N, C), in ``slot`` where that is possible and the same to the last bit."""
        if not self.serves(layer, x):
            return layer(x)
        self.before()
        batch, tokens, width = x.shape
        out = self.room(slot, batch * tokens * layer.out_features).view(batch * tokens, layer.out_features)
        torch.addmm(layer.bias, x.reshape(-1, width), layer.weight.t(), out=out)
        return out.view(batch, tokens, layer.out_features)

    def serves(self, layer: nn.Module, x: torch.Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
            return False
        return x.dtype == torch.float32 and is_untouched(layer, self.plain)

    def room(self, slot: str, numbers: int) -> torch.Tensor:
        """(numbers,), uninitialised."""
        held = self.slots.get(slot)
        is_inference = torch.is_inference_mode_enabled()
        if held is None or held.numel() < numbers or held.is_inference() != is_inference:
            self.slots.pop(slot, None)
            del held  # before the new one is there
            held = self.slots[slot] = torch.empty(numbers)
        return held[:numbers]


def is_untouched(layer: nn.Module, plain: tuple[type, ...]) -> bool:
    """Whether ``layer(x)`` is its weight and bias in fp32 and nothing else: no casting, no patch, hook or wrapper.

    The names are those of ComfyUI's layers, which cast or patch their weights on the way where these are set.
    """
    if type(layer) not in plain or "forward" in vars(layer):
        return False
    if layer._forward_hooks or layer._forward_pre_hooks or getattr(layer, "comfy_cast_weights", False):
        return False
    if getattr(layer, "weight_function", ()) or getattr(layer, "bias_function", ()):
        return False
    return all(
        type(value) in (nn.Parameter, torch.Tensor) and value.dtype == torch.float32 and value.device.type == "cpu"
        for value in (layer.weight, layer.bias)
    )


def linear(layer: nn.Module, x: torch.Tensor, workspace: Workspace | None, slot: str) -> torch.Tensor:
    """``layer(x)``, in a slot of the workspace where there is one."""
    return layer(x) if workspace is None else workspace.linear(layer, x, slot)
