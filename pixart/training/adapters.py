"""Low-rank adapters on the transformer's linear layers (Hu et al., "LoRA", 2106.09685), in diffusers' form on disk."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..checkpoint.keys import diffusers_names
from ..transformer import PixArtTransformer
from .batches import generator
from .settings import TARGETS

PREFIX = "transformer."


class LoraLinear(nn.Module):
    """A frozen linear layer and, for each projection stacked in it, a product of two thin matrices.

    A fused qkv gets three adapters of the full rank, as it would in diffusers where the three are apart.
    """

    def __init__(self, base: nn.Linear, parts: int, rank: int, scale: float, chance: torch.Generator):
        super().__init__()
        self.base, self.scale = base, scale
        bound = 1 / math.sqrt(base.in_features)  # Kaiming's with a = √5, as PEFT draws it
        down = torch.rand(parts, rank, base.in_features, generator=chance) * 2 * bound - bound
        device = base.weight.device
        self.lora_A = nn.Parameter(down.to(device))  # (P, R, in)
        self.lora_B = nn.Parameter(torch.zeros(parts, base.out_features // parts, rank, device=device))  # (P, out/P, R)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = nn.functional.linear(x.to(self.lora_A.dtype), self.lora_A.flatten(0, 1))  # (…, P * R)
        low = low.unflatten(-1, self.lora_A.shape[:2])  # (…, P, R)
        added = [nn.functional.linear(low[..., part, :], up) for part, up in enumerate(self.lora_B)]
        out = self.base(x)
        return out + self.scale * torch.cat(added, dim=-1).to(out.dtype)


def add_adapters(model: PixArtTransformer, targets: str, rank: int, scale: float, seed: int) -> dict[str, LoraLinear]:
    """Freeze the transformer and put adapters on the layers of ``TARGETS[targets]``, in place.

    Returns them by the names of their layers. Their first values depend on the seed and that name alone.
    """
    model.requires_grad_(False)
    adapters = {}
    chosen = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in chosen:
        if not name.endswith(TARGETS[targets]):
            continue
        parent, _, leaf = name.rpartition(".")
        base = model.get_submodule(name)
        parts = len(diffusers_names(f"{name}.weight"))
        adapter = LoraLinear(base, parts, rank, scale, generator(seed, "adapter", name))
        setattr(model.get_submodule(parent), leaf, adapter)
        adapters[name] = adapter
    return adapters


def to_diffusers(adapters: dict[str, LoraLinear], values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adapters under diffusers' and PEFT's names, one pair for each projection.

    values: "<layer>.lora_A" and "<layer>.lora_B" → tensors, the adapters' own or their average. The scale is
    multiplied into B, so that alpha is the rank: readers that see no alpha are right as well.
    """
    state = {}
    for name, adapter in adapters.items():
        down, up = values[f"{name}.lora_A"], values[f"{name}.lora_B"] * adapter.scale
        for part, weight in enumerate(diffusers_names(f"{name}.weight")):
            layer = PREFIX + weight.removesuffix(".weight")
            state[f"{layer}.lora_A.weight"] = down[part]
            state[f"{layer}.lora_B.weight"] = up[part]
    return state
