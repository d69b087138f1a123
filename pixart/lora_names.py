"""Names in LoRA files: which layer of the transformer or of T5 a tensor is for, and what it is of its adapter.

A name is a prefix, a layer and a role. Layers are named in one of two ways, the original code's or diffusers', with
dots or with underscores; fused q, k, v and split ones are the same rows of one parameter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .checkpoint.keys import diffusers_names, layer_names, original_name, split_block_name

_ROLES = tuple(
    (re.compile(pattern + r"$"), role)
    for pattern, role in (
        (r"\.lora_A(\.(?!weight|bias)\w+)?(\.weight)?", "lora_down.weight"),
        (r"\.lora_B(\.(?!weight|bias)\w+)?\.bias", "diff_b"),
        (r"\.lora_B(\.(?!weight|bias)\w+)?(\.weight)?", "lora_up.weight"),
        (r"(\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)down\.weight", "lora_down.weight"),
        (r"(\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)up\.weight", "lora_up.weight"),
        (r"\.lora_mid\.weight", "lora_mid.weight"),
        (r"\.(lora_)?alpha", "alpha"),
        (r"\.(dora_scale|lora_magnitude_vector)(\.(?!weight)\w+)?(\.weight)?", "magnitude"),
        (r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](_[ab])?|lokr_t2|diff|diff_b)", None),
        (r"\.set_weight", "weight"),
        (r"\.(oft_blocks|oft_diag|oft_r|rescale|on_input|[ab][12]\.weight|w_norm|b_norm|lokr_t1)", "unsupported"),
        (r"\.(weight|bias|scale_shift_table)", None),
    )
)
_FLAT_PREFIX = re.compile(r"^(lora_transformer|lora_unet|lora_te\d?|lora_t5|lycoris)_+(?=[^.]*$)")
_WRAPPERS = re.compile(
    r"^(base_model\.model\.|unet\.|transformer\.|diffusion_model\.|model\.|module\.|transformer_(?!blocks))"
)
_COMPRESSION = ("attn.sr", "attn.norm", "attn.q_norm", "attn.k_norm")
"""Layers of a block that only the original code has."""
_TEXT_WRAPPERS = re.compile(
    r"^(base_model\.model\.|text_encoders?(_\d)?\.|t5xxl\.|t5\.|te\d?\.|transformer\.|cond_stage_model\.|model\.)+(?=encoder\.)"
)
_T5_LAYER = re.compile(r"^encoder[._]block[._](\d+)[._]layer[._]([01])[._](SelfAttention|DenseReluDense)[._](\w+)$")
_DIALECTS = (
    (r"lora_transformer_", "OneTrainer (lora_transformer_…)"),
    (r"lycoris_", "LyCORIS (lycoris_…)"),
    (r"lora_unet_", "kohya-style (lora_unet_…)"),
    (r"lora_te\d?_|lora_t5_", "text encoder, kohya-style (lora_te_…)"),
    (r"(text_encoders?(_\d)?|t5xxl|t5|te\d?)\.", "text encoder (text_encoder.…)"),
    (r"unet\.base_model\.model\.", "PEFT of PixArt's training scripts (unet.base_model.model.…)"),
    (r"(transformer\.)?base_model\.model\.", "PEFT (base_model.model.…)"),
    (r"transformer\.", "diffusers/PEFT (transformer.…)"),
    (r"(model\.)?diffusion_model\.", "ComfyUI (diffusion_model.…)"),
    (r"(blocks|[xty]_embedder|csize_embedder|ar_embedder|t_block|final_layer)\b", "original PixArt names"),
    (r"", "diffusers' names without a prefix"),
)


@dataclass(frozen=True)
class Address:
    """A layer: its original name (or T5's) without ".weight", and which of its stacked parts."""

    layer: str
    part: int = 0
    parts: int = 1
    text: bool = False


def split_role(name: str) -> tuple[str, str | None]:
    """The layer as the file names it, and what the tensor is: a name in ``Adapter.tensors``, "alpha", "magnitude",
    "diff_b", "weight", "bias", "scale_shift_table", "unsupported"; None where it is nothing of a LoRA."""
    for pattern, role in _ROLES:
        if match := pattern.search(name):
            return name[: match.start()], role or match[0][1:]
    return name, None


def find_layer(stem: str) -> Address | None:
    """The layer that a file names so, in any dialect; None where PixArt and T5 have none of that name."""
    if match := _FLAT_PREFIX.match(stem):
        return _find_flat(re.sub("__+", "_", stem[match.end() :]))
    if t5 := _T5_LAYER.match(_TEXT_WRAPPERS.sub("", stem)):
        return _t5_address(t5)
    while True:
        if address := _find_dotted(stem):
            return address
        wrapper = _WRAPPERS.match(stem)
        if wrapper is None:
            return None
        stem = stem[wrapper.end() :]


def _t5_address(match: re.Match) -> Address:
    block, layer, module, projection = match.groups()
    return Address(f"encoder.block.{int(block)}.layer.{layer}.{module}.{projection}", text=True)


def _find_dotted(layer: str) -> Address | None:
    """A layer under diffusers' names, or under original ones."""
    if original := original_name(f"{layer}.weight"):
        names = diffusers_names(original)
        return Address(original.removesuffix(".weight"), names.index(f"{layer}.weight"), len(names))
    top, inside = layer_names()
    block = split_block_name(layer)
    if layer in top or (block and (block[1] in inside or block[1] in _COMPRESSION)):
        return Address(layer)
    if layer == "final_layer" or re.fullmatch(r"blocks\.\d+", layer):
        return Address(layer)  # their scale_shift_table
    return Address(layer.replace("transformer_", "")) if re.fullmatch(r"transformer_blocks\.\d+", layer) else None


def _find_flat(layer: str) -> Address | None:
    """The same where dots have become underscores."""
    if t5 := _T5_LAYER.match(layer):
        return _t5_address(t5)
    top, inside = layer_names()
    for wrapper in ("", "transformer_", "diffusion_model_", "unet_"):
        if not layer.startswith(wrapper):
            continue
        bare = layer[len(wrapper) :]
        block = re.fullmatch(r"(?:transformer_)?blocks_(\d+)_(.+)", bare)
        known, bare, before = (inside, block[2], f"blocks.{int(block[1])}.") if block else (top, bare, "")
        for original, names in known.items():
            if bare == original.replace(".", "_"):
                return Address(before + original)
            for part, name in enumerate(names):
                if bare == name.replace(".", "_"):
                    return Address(before + original, part, len(names))
    return None


def name_dialect(layers: Iterable[str]) -> str:
    """What to call the way in which these layers are named; the most frequent first."""
    named = Counter(next(label for pattern, label in _DIALECTS if re.match(pattern, layer)) for layer in layers)
    return ", ".join(label for label, _ in named.most_common())
