"""What an adapter adds to a weight: LoRA, LoHa, LoKr, differences and whole weights, plain or as DoRA.

LoRA: Hu et al., arXiv:2106.09685. LoHa and LoKr: Yeh et al., "LyCORIS", arXiv:2309.14859. DoRA: Liu et al.,
arXiv:2402.09353.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

LORA = "LoRA"
LOHA = "LoHa"
LOKR = "LoKr"
DIFFERENCE = "difference"
WHOLE = "whole weight"


@dataclass(frozen=True)
class Adapter:
    """One change to one parameter, or to some of its rows.

    name: of the layer, as in the file.
    target: the parameter, under the original names ("blocks.0.attn.qkv.weight") or T5's.
    part, parts: which of the equal slices along dimension 0 is changed: (1, 3) is k of a stacked q, k, v.
    kind: LORA, LOHA, LOKR, DIFFERENCE (added) or WHOLE (what the parameter becomes).
    tensors: by their names in ComfyUI: lora_up.weight, lora_down.weight, lora_mid.weight, hada_*, lokr_*, diff.
    rank: None where the kind has none, and then scale is 1. scale: what the product of the factors is multiplied by.
    magnitude: DoRA's, (out, …) or (1, in, …), or None.
    """

    name: str
    target: str
    part: int
    parts: int
    kind: str
    tensors: Mapping[str, torch.Tensor]
    rank: int | None = None
    scale: float = 1.0
    magnitude: torch.Tensor | None = None

    @property
    def alpha(self) -> float | None:
        return None if self.rank is None else self.scale * self.rank


def shape_of(adapter: Adapter) -> tuple[int, int]:
    """Rows, and numbers per row, of the weight that the adapter was made for."""
    t = adapter.tensors
    if adapter.kind == LORA:
        return t["lora_up.weight"].shape[0], _inner(adapter)
    if adapter.kind == LOHA:
        tucker = "hada_t1" in t
        kernel = t["hada_t1"].shape[2:].numel() if tucker else 1
        return t["hada_w1_a"].shape[1 if tucker else 0], t["hada_w1_b"].shape[1] * kernel
    if adapter.kind == LOKR:
        return _lokr_shape(t)
    return (t["diff"].shape[0] if t["diff"].ndim else 1), t["diff"].shape[1:].numel()


def _inner(adapter: Adapter) -> int:
    down, mid = adapter.tensors["lora_down.weight"], adapter.tensors.get("lora_mid.weight")
    return down.shape[1:].numel() * (1 if mid is None else mid.shape[2:].numel())


def _lokr_shape(t: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    first = t["lokr_w1"].shape if "lokr_w1" in t else (t["lokr_w1_a"].shape[0], t["lokr_w1_b"].shape[1])
    if "lokr_w2" in t:
        second = t["lokr_w2"].shape[0], t["lokr_w2"].shape[1:].numel()
    elif "lokr_t2" in t:
        second = t["lokr_w2_a"].shape[1], t["lokr_w2_b"].shape[1] * t["lokr_t2"].shape[2:].numel()
    else:
        second = t["lokr_w2_a"].shape[0], t["lokr_w2_b"].shape[1:].numel()
    return first[0] * second[0], first[1] * second[1]


def delta(adapter: Adapter, shape: tuple[int, ...]) -> torch.Tensor:
    """The scaled product of an adapter's factors in fp32, in the shape of the weight; not for WHOLE."""
    t = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    if adapter.kind == LORA:
        down = t["lora_down.weight"]
        if "lora_mid.weight" in t:
            product = torch.einsum(
                "rs...,or,si->oi...", t["lora_mid.weight"], t["lora_up.weight"].flatten(1), down.flatten(1)
            )
        else:
            product = t["lora_up.weight"].flatten(1) @ down.flatten(1)
    elif adapter.kind == LOHA:
        product = _factors(t, "hada_w1", "hada_t1") * _factors(t, "hada_w2", "hada_t2")
    elif adapter.kind == LOKR:
        first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        second = t["lokr_w2"] if "lokr_w2" in t else _factors(t, "lokr_w2", "lokr_t2")
        product = torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)
    else:
        product = t["diff"]
    return product.reshape(shape) * adapter.scale


def _factors(t: Mapping[str, torch.Tensor], name: str, core: str) -> torch.Tensor:
    """a @ b, or with a Tucker core (r, r, kernel …) between the two, whose first factor then is transposed."""
    a, b = t[f"{name}_a"], t[f"{name}_b"]
    return a @ b if core not in t else torch.einsum("rs...,ro,si->oi...", t[core], a, b)


def without_core(adapter: Adapter) -> Adapter:
    """A LoKr whose second factor has a Tucker core, with that factor multiplied out; any other adapter as it is.

    ComfyUI's own product of the three is laid out in memory in a way that its next step refuses.
    """
    if "lokr_t2" not in adapter.tensors:
        return adapter
    kept = {name: tensor for name, tensor in adapter.tensors.items() if name.startswith("lokr_w1")}
    second = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    kept["lokr_w2"] = (_factors(second, "lokr_w2", "lokr_t2") * adapter.scale).contiguous()
    if "lokr_w1" not in kept:
        kept = {"lokr_w1": kept["lokr_w1_a"].float() @ kept["lokr_w1_b"].float(), "lokr_w2": kept["lokr_w2"]}
    return replace(adapter, tensors=kept, rank=None, scale=1.0)


def decompose(weight: torch.Tensor, change: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA's weight: ``weight + change``, every row (or column, by the magnitude's shape) scaled to its magnitude."""
    merged = weight + change
    kept = next((axis for axis, size in enumerate(magnitude.shape) if size != 1), 0)
    norm = merged.transpose(0, kept).flatten(1).norm(dim=1)
    factor = magnitude.flatten().to(merged) / norm
    return merged * factor.reshape(*[1] * kept, -1, *[1] * (merged.ndim - kept - 1))


def apply(weight: torch.Tensor, adapter: Adapter, strength: float = 1.0) -> torch.Tensor:
    """A new weight with one adapter at a strength; ``weight`` is the whole parameter, of which a slice may change."""
    weight = weight.clone()
    rows = weight.chunk(adapter.parts)[adapter.part]  # a view
    base = rows.float()
    if adapter.kind == WHOLE:
        after = adapter.tensors["diff"].reshape(rows.shape).to(base)
    elif adapter.magnitude is not None:
        after = decompose(base, delta(adapter, rows.shape).to(base), adapter.magnitude)
    else:
        after = base + delta(adapter, rows.shape).to(base)
    rows.copy_(base + strength * (after - base))
    return weight


def merge(
    state: Mapping[str, torch.Tensor], adapters: Iterable[Adapter], strength: float = 1.0
) -> dict[str, torch.Tensor]:
    """A state dict under original names with adapters worked into it; raises KeyError for a target it lacks."""
    merged = dict(state)
    for adapter in adapters:
        merged[adapter.target] = apply(merged[adapter.target], adapter, strength)
    return merged
