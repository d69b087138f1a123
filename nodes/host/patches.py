"""Changes to a model's weights as the host's patches, so that strength, hooks, offload, fp8 and saving are the host's.

The host patches the parameters of layers. The modulation tables, which lie in blocks beside layers, it passes over:
those are replaced as object patches.
"""

from __future__ import annotations

from collections.abc import Mapping

import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from comfy.weight_adapter import WeightAdapterBase

from ...pixart.adapters import WHOLE, Adapter, decompose, without_core

TABLE = "scale_shift_table"
"""How parameters that belong to no layer end."""


class DoraAdapter(WeightAdapterBase):
    """DoRA over any of the host's adapters. The host's own takes the norm of rows before the change is added,
    where DoRA (and PEFT, and LyCORIS) take it after."""

    name = "pixart_dora"

    def __init__(self, loaded_keys: set[str], weights: tuple):
        self.loaded_keys = loaded_keys
        self.weights = weights  # (adapter without magnitude, magnitude)

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        adapter, magnitude = self.weights
        nothing = torch.zeros_like(weight, dtype=intermediate_dtype)
        change = adapter.calculate_weight(nothing, key, 1.0, 1.0, None, lambda a: a, intermediate_dtype)
        base = weight.to(intermediate_dtype)
        magnitude = comfy.model_management.cast_to_device(magnitude, weight.device, intermediate_dtype)
        weight += function((strength * (decompose(base, change, magnitude) - base)).type(weight.dtype))
        return weight


def adapter_patches(adapters: list[Adapter], prefix: str, patcher) -> dict:
    """The host's patches for adapters on this patcher's model: key, or key and rows → patch.

    prefix: what stands before the parameters' names in the model.
    """
    weights: dict[str, torch.Tensor] = {}
    places: dict[str, str | tuple] = {}
    adapters = [without_core(adapter) for adapter in adapters]
    base = BaseWeights(patcher)
    for number, adapter in enumerate(adapters):
        key = prefix + adapter.target
        shape = comfy.utils.get_attr(patcher.model, key).shape
        rows = shape[0] // adapter.parts
        places[str(number)] = key if adapter.parts == 1 else (key, (0, adapter.part * rows, rows))
        tensors = dict(adapter.tensors)
        if "diff" in tensors:
            tensors["diff"] = tensors["diff"].reshape(rows, *shape[1:])
        if adapter.kind == WHOLE:
            tensors["diff"] = tensors["diff"].float() - base[key].narrow(0, adapter.part * rows, rows)
        if adapter.rank:
            tensors["alpha"] = torch.tensor(adapter.alpha, dtype=torch.float64)
        weights |= {f"{number}.{name}": tensor for name, tensor in tensors.items()}
    patches = comfy.lora.load_lora(weights, places, log_missing=False)
    for number, adapter in enumerate(adapters):
        if adapter.magnitude is not None:
            place = places[str(number)]
            patches[place] = DoraAdapter(patches[place].loaded_keys, (patches[place], adapter.magnitude))
    return patches


class BaseWeights:
    """A model's own weights by key, in fp32: without patches, also while the host has some worked in.

    The host's own list of them (get_key_patches) cannot be made of a model in scaled fp8.
    """

    def __init__(self, patcher):
        self.patcher = patcher

    def __getitem__(self, key: str) -> torch.Tensor:
        patcher, (layer, _, name) = self.patcher, key.rpartition(".")
        if key in patcher.hook_backup:
            weight = patcher.hook_backup[key][0]
        elif key in patcher.backup:
            weight = patcher.backup[key].weight
        elif key in patcher.object_patches_backup:
            weight = patcher.object_patches_backup[key]
        else:
            weight = comfy.utils.get_attr(patcher.model, key)
        convert = getattr(comfy.utils.get_attr(patcher.model, layer), f"convert_{name}", None)
        weight = weight.detach() if convert is None else convert(weight.detach(), inplace=False)
        return weight.to(torch.float32, copy=True)


def patched(patcher, patches: Mapping, strength: float):
    """A clone with patches added at a strength, after those it has."""
    clone = patcher.clone()
    tables = {key: patch for key, patch in patches.items() if isinstance(key, str) and key.endswith(TABLE)}
    clone.add_patches({key: patch for key, patch in patches.items() if key not in tables}, strength)
    for key, (_, (difference,)) in tables.items():
        table = clone.get_model_object(key)
        changed = table.detach().float() + strength * difference.to(table.device, torch.float32)
        clone.add_object_patch(key, torch.nn.Parameter(changed.to(table.dtype), requires_grad=False))
    return clone
