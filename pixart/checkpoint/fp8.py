"""Weights of one byte: what may be kept in fp8, and the scales that a file brings for weights stored in it.

ComfyUI knows two layouts of scaled fp8. The older has one tensor ``scaled_fp8`` beside the weights and, for every
layer, ``scale_weight`` and sometimes ``scale_input``. The newer has ``weight_scale``, sometimes ``input_scale``, and
what the layer's numbers are as JSON: in a tensor ``comfy_quant`` of bytes, or for all layers at once in the
safetensors metadata under ``_quantization_metadata``. In both a weight is its fp8 numbers times one scale.

The newer layout also carries formats that only ComfyUI's own layers compute with, such as nvfp4. Where the caller says
that it has such layers, their weights and companions are handed on as they lie in the file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping

import torch

FLOAT8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}

MARKER = "scaled_fp8"
METADATA = "_quantization_metadata"
_HANDED_ON = ("weight_scale_2", "pre_quant_scale", "weight_s_rel", "weight_s_channel", "weight_codebook")
_NEW_NAMES = dict(zip(_HANDED_ON, _HANDED_ON, strict=True)) | {
    "scale_weight": "weight_scale",
    "weight_scale": "weight_scale",
    "scale_input": "input_scale",
    "input_scale": "input_scale",
    "comfy_quant": "comfy_quant",
}

PACKED = {"nvfp4": 2, "convrot_w4a4": 2, "asym_w4a8_int8": 2}
"""How many of a row's numbers lie in one stored column, for formats where it is not one."""

_MAX_CONFIG = 65_536


_MATRICES = tuple(
    f".{layer}.weight" for layer in ("attn.qkv", "attn.proj", "q_linear", "kv_linear", "cross_attn.proj", "fc1", "fc2")
)


def kept_dtype(name: str, dtype: torch.dtype, compute: torch.dtype) -> torch.dtype:
    """The type to keep a transformer's tensor in, ``dtype`` having been asked for and ``compute`` being computed in.

    Only the matrices of the blocks, 97 % of a released model's numbers, are kept in fp8. The rest is 34 MB in half
    precision that every token or every block goes through: modulation tables, embedders, biases and the last layer.
    With all of it in fp8, six blocks of released width with random weights are 3.3 % off (root mean square of the
    difference to fp32); the last layer alone makes that of the 0.6 % with it kept, and each of the others adds more.
    """
    if dtype not in FLOAT8:
        return dtype
    is_block_matrix = name.startswith("blocks.") and name.endswith(_MATRICES)
    return dtype if is_block_matrix else compute


def is_companion(name: str) -> bool:
    """Whether a tensor of this name belongs to a scaled weight, by the naming of either layout."""
    last = name.rpartition(".")[2]
    return last == MARKER or last in _NEW_NAMES


def read_companions(
    names: Iterable[str],
    tensors: Mapping[str, torch.Tensor],
    sources: Mapping[str, tuple[str, ...]],
    prefix: str,
    metadata: Mapping[str, str],
    formats: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """The companions of a transformer's quantised weights in the newer layout, whichever the file has.

    names: companions in ``tensors``. sources: original name → names in the file. prefix: what stands before the
    transformer's names in the file. formats: what may be handed on beside scaled fp8.
    Returns {"<layer>.weight_scale": …, "<layer>.input_scale": … where the file has one, "<layer>.comfy_quant": …},
    the layers under original names. Empty when nothing in the file is scaled.
    Raises ValueError when a layer is quantised otherwise, or is fp8 and lacks its one scale.
    """
    stated = _stated_layers(metadata, prefix)
    whole_products = False
    layers: dict[str, dict[str, torch.Tensor]] = {layer: {} for layer in stated}
    for name in names:
        layer, _, last = name.removeprefix(prefix).rpartition(".")
        if last == MARKER:
            # Two numbers in the marker ask for products in full precision, as the encoders of ComfyUI's have it.
            whole_products = tensors[name].numel() == 2
        elif f"{layer}.weight" in sources:
            layers.setdefault(layer, {})[_NEW_NAMES[last]] = tensors[name]

    out: dict[str, torch.Tensor] = {}
    for layer, parts in layers.items():
        names_in_file = sources.get(f"{layer}.weight", ())
        if len(names_in_file) != 1 or names_in_file[0] not in tensors:
            raise ValueError(f"The file speaks of the quantised layer {layer}, which this transformer lacks.")
        config = stated.get(layer) or _stated_config(parts.get("comfy_quant"), layer)
        if not isinstance(config.get("format"), str | None):
            raise ValueError(f"The format of the quantised layer {layer} is no text. Download the file again.")
        if config.get("format") in formats and config["format"] not in FLOAT8.values():
            out |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
            out[f"{layer}.comfy_quant"] = _json_tensor(config)
        else:
            out |= _layer_companions(layer, parts, tensors[names_in_file[0]], config, whole_products)
    return out


def _layer_companions(
    layer: str, parts: Mapping[str, torch.Tensor], weight: torch.Tensor, config: dict, whole_products: bool
) -> dict[str, torch.Tensor]:
    if weight.dtype not in FLOAT8 or config.get("format") not in (None, FLOAT8[weight.dtype]):
        kind = config.get("format") or str(weight.dtype).removeprefix("torch.")
        raise ValueError(
            f"{layer} is quantised as {kind}; this loader reads scaled fp8 and what the running ComfyUI computes "
            "itself. Update ComfyUI, or choose a file in fp8, fp16, bf16 or fp32."
        )
    scale = parts.get("weight_scale")
    if scale is None or scale.numel() != 1:
        found = "no scale" if scale is None else f"{scale.numel()} scales"
        raise ValueError(
            f"{layer} is scaled fp8 but has {found} where one belongs: the file is damaged or of a newer kind. "
            "Choose a file in plain fp8, fp16 or bf16."
        )
    if whole_products:
        config = {**config, "full_precision_matrix_mult": True}
    companions = {f"{layer}.weight_scale": scale}
    companions[f"{layer}.comfy_quant"] = _json_tensor({"format": FLOAT8[weight.dtype], **config})
    scale_input = parts.get("input_scale")
    if scale_input is not None and not (scale_input.numel() == 1 and scale_input.item() == 1):
        companions[f"{layer}.input_scale"] = scale_input
    return companions


def dequantise(name: str, weight: torch.Tensor, companions: Mapping[str, torch.Tensor], dtype: torch.dtype):
    """The weight ``name`` in ``dtype``, multiplied by its scale where it has one."""
    scale = companions.get(f"{name.removesuffix('.weight')}.weight_scale") if name.endswith(".weight") else None
    if scale is None:
        return weight.to(dtype)
    return (weight.float() * scale.float()).to(dtype)


def handed_on(companions: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Layer → format, of the layers that only the host's own computes with."""
    found = {}
    for name, tensor in companions.items():
        layer, _, last = name.rpartition(".")
        if last == "comfy_quant" and (kind := _stated_config(tensor, layer)["format"]) not in FLOAT8.values():
            found[layer] = kind
    return found


def _stated_layers(metadata: Mapping[str, str], prefix: str) -> dict[str, dict]:
    if METADATA not in metadata:
        return {}
    try:
        layers = json.loads(metadata[METADATA])["layers"]
        return {name.removeprefix(prefix): dict(config) for name, config in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{METADATA} in the metadata is damaged. Download the file again.") from error


def _stated_config(tensor: torch.Tensor | None, layer: str) -> dict:
    if tensor is None:
        return {}
    if tensor.numel() > _MAX_CONFIG:
        raise ValueError(f"{layer}.comfy_quant has {tensor.numel()} numbers: the file is damaged. Download it again.")
    try:
        return dict(json.loads(bytes(tensor.flatten().tolist())))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{layer}.comfy_quant is not JSON: the file is damaged. Download it again.") from error


def _json_tensor(content: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)
