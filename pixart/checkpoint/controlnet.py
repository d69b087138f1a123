"""Opening a ControlNet's file: the original's, with or without its base, diffusers' adapter, and our own.

Our own layout is safetensors with the original names ``controlnet.{i}.…`` and in the metadata, beside what
``config_metadata`` writes of the base, "pixart.controlnet" (the layout's version, "1") and "pixart.micro_condition".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..attention import Attention, sdpa
from ..config import PixArtConfig
from ..controlnet import ControlNetConfig, PixArtControlNet
from .detect import FAMILIES, RELEASED_HEAD_DIM, config_metadata, detect_config
from .files import read_config, read_weights
from .foreign import name_foreign
from .fp8 import FLOAT8
from .keys import diffusers_names, list_names, plan_keys

LAYOUT, MICRO = "pixart.controlnet", "pixart.micro_condition"

_ORIGINAL = re.compile(r"^(?:\w+\.)*?controlnet\.(\d+)\.(copied_block|before_proj|after_proj)\.(.+)$")
_DIFFUSERS = re.compile(r"^(?:\w+\.)*?controlnet_blocks\.(\d+)\.(transformer_block|before_proj|after_proj)\.(.+)$")
_BASE = "base_model."
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8})
_MOST_COPIES = 1024


@dataclass(frozen=True)
class ControlNetFile:
    """A ControlNet on disk.

    state_dict: the names of ``PixArtControlNet(config).state_dict()``; tensors in the file's dtype, memory-mapped.
    evidence: one sentence for each conclusion.
    """

    path: Path
    config: ControlNetConfig
    state_dict: Mapping[str, torch.Tensor]
    evidence: tuple[str, ...]
    metadata: Mapping[str, str]


def open_controlnet(path: str | Path) -> ControlNetFile:
    """Open a ControlNet: .safetensors, .pth, or a folder in diffusers' layout.

    Raises FileNotFoundError for a missing path, and ValueError, naming the file, for anything else that is no
    ControlNet of PixArt: the message says what it is and what to do.
    """
    try:
        return _open(Path(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_controlnet(
    file_or_path: ControlNetFile | str | Path, *, dtype: torch.dtype | None = None, attention: Attention = sdpa
) -> PixArtControlNet:
    """A ControlNet under plain PyTorch, in evaluation mode. Raises what ``open_controlnet`` raises."""
    file = file_or_path if isinstance(file_or_path, ControlNetFile) else open_controlnet(file_or_path)
    model = PixArtControlNet(file.config, attention=attention, device="meta")
    state = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in file.state_dict.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def controlnet_metadata(base: PixArtConfig) -> dict[str, str]:
    """The safetensors metadata of our own layout, for a ControlNet trained on ``base``."""
    return {**config_metadata(base), LAYOUT: "1", MICRO: str(base.micro_condition).lower()}


def _open(path: Path) -> ControlNetFile:
    weights = read_weights(path)
    tensors = weights.tensors
    parts = _sort_names(tensors)
    if not parts:
        raise ValueError(_what_it_is(tensors))
    state = _to_original(parts, tensors)
    evidence: list[str] = []
    config_json = read_config(weights.file.parent) if path.is_dir() else None
    config = _detect(state, tensors, weights.metadata, config_json or {}, evidence)
    _check(state, config)
    return ControlNetFile(path, config, state, tuple(evidence), weights.metadata)


def _sort_names(names) -> dict[int, dict[str, str]]:
    """For each copy: original name within it → the name in the file. Empty when there is no ControlNet."""
    parts: dict[int, dict[str, str]] = {}
    for name in names:
        match = _ORIGINAL.match(name) or _DIFFUSERS.match(name)
        if match:
            index = int(match[1])
            if index >= _MOST_COPIES:
                raise ValueError(f"{name} is a copy of block {index}; no PixArt has as many. The file is damaged.")
            known = parts.setdefault(index, {}).setdefault(f"{match[2]}.{match[3]}", name)
            if known != name:
                raise ValueError(
                    f"The file holds two ControlNets, with {known} and {name}: such as trained weights and their "
                    "average. Choose a file with one, or save one of them alone."
                )
    return dict(sorted(parts.items()))


def _to_original(parts: dict[int, dict[str, str]], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    unknown, missing = [], []
    for index, names in parts.items():
        left = dict(names)
        for wanted, sources in _sources(index, "transformer_block.scale_shift_table" in names).items():
            found = [left.pop(source, None) for source in sources]
            if None in found:
                missing.append(f"controlnet.{index}.{wanted}")
            else:
                stacked = [tensors[name] for name in found]
                state[f"controlnet.{index}.{wanted}"] = stacked[0] if len(stacked) == 1 else torch.cat(stacked)
        unknown += left.values()
    if list(parts) != list(range(len(parts))):
        missing.append(f"copies {sorted(set(range(max(parts) + 1)) - set(parts))}")
    if missing:
        raise ValueError(
            f"The ControlNet is not complete; missing are {list_names(missing)}. Choose the complete file."
        )
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors have no place in a PixArt ControlNet, the first: {list_names(unknown)}. "
            "It is of another kind than those that are published."
        )
    return state


def _sources(index: int, diffusers: bool) -> dict[str, tuple[str, ...]]:
    """Original name within a copy → the names in the file that are stacked to make it."""
    block = ("scale_shift_table", *(f"{layer}.{kind}" for layer in _BLOCK_LAYERS for kind in ("weight", "bias")))
    projections = ("before_proj", "after_proj") if index == 0 else ("after_proj",)
    sources = {f"{layer}.{kind}": (f"{layer}.{kind}",) for layer in projections for kind in ("weight", "bias")}
    for name in block:
        theirs = [part.removeprefix("transformer_blocks.0.") for part in diffusers_names(f"blocks.0.{name}")]
        names = [f"transformer_block.{part}" for part in theirs] if diffusers else [f"copied_block.{name}"]
        sources[f"copied_block.{name}"] = tuple(names)
    return sources


_BLOCK_LAYERS = (
    "attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip


def _detect(
    state: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    config_json: Mapping[str, Any],
    evidence: list[str],
) -> ControlNetConfig:
    width, mlp = (_rows(state, f"controlnet.0.{layer}.weight") for layer in ("after_proj", "copied_block.mlp.fc1"))
    copies = 1 + max(int(name.split(".")[1]) for name in state)
    evidence.append(f"{copies} copied blocks of width {width}: counted in the weights.")
    base = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(_BASE)}
    if base:
        config, said = detect_config(base, metadata)
        evidence.append("The base stands in the same file; what follows is read from it and is not loaded.")
        evidence += said
        return ControlNetConfig(copies, width, config.num_heads, mlp, config.family, config.micro_condition)
    family = metadata.get("pixart.family")
    if family not in FAMILIES[1:]:
        family = None
    micro = {"true": True, "false": False}.get(metadata.get(MICRO, ""))
    heads = _heads(metadata.get("pixart.num_heads") or config_json.get("num_attention_heads"), width)
    where = "the metadata" if family else "nothing in the file tells, so that any base of this width is accepted"
    evidence.append(f"Family of the base: {where}.")
    return ControlNetConfig(copies, width, heads, mlp, family, micro)


def _rows(state: Mapping[str, torch.Tensor], name: str) -> int:
    """The width of what a matrix puts out."""
    shape = state[name].shape
    if len(shape) != 2 or shape[0] < 1:
        raise ValueError(f"{name} has shape {list(shape)}, where a matrix belongs: the file is damaged.")
    return shape[0]


def _heads(stated: Any, width: int) -> int:
    """The number of attention heads: stated, or such that a head is as wide as in released models."""
    if stated is None:
        if width % RELEASED_HEAD_DIM:
            raise ValueError(
                f"The number of attention heads is unknown: the width {width} is not a multiple of "
                f"{RELEASED_HEAD_DIM}, the width of a head in released models. State pixart.num_heads in the file's "
                "safetensors metadata, or num_attention_heads in the config.json of its folder."
            )
        return width // RELEASED_HEAD_DIM
    try:
        heads = int(stated)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The number of heads is stated as {str(stated)[:40]!r}, which is no number.") from error
    if heads < 1:
        raise ValueError(f"The number of heads is stated as {heads}; it must be 1 or more.")
    return heads


def _check(state: Mapping[str, torch.Tensor], config: ControlNetConfig) -> None:
    expected = PixArtControlNet(config, device="meta").state_dict()
    for name, wanted in expected.items():
        found = state[name]
        if tuple(found.shape) != tuple(wanted.shape):
            raise ValueError(
                f"{name} has shape {list(found.shape)}, where {list(wanted.shape)} belongs beside the rest (width "
                f"{config.hidden_size}): the file is damaged or mixed from two models. Download it again."
            )
        if found.dtype not in _FLOATS:
            raise ValueError(f"{name} holds {found.dtype} values: quantised or damaged. Choose a file in fp32 or fp16.")
        if name.endswith(("scale_shift_table", "_proj.bias")) and not torch.isfinite(found.float()).all():
            raise ValueError(f"{name} holds NaN or infinity: the training that wrote it diverged. Choose another save.")


def _what_it_is(tensors: Mapping[str, torch.Tensor]) -> str:
    if foreign := name_foreign(tensors, has_transformer=False, wanted="PixArt ControlNet"):
        return foreign
    try:
        plan_keys(tensors)
    except ValueError:
        listed = list_names(list(tensors), 3) or "none at all"
        return (
            f"These are not a PixArt ControlNet's weights: no controlnet.0.copied_block (original names) and no "
            f"controlnet_blocks.0 (diffusers' names) among them. The first names are: {listed}."
        )
    return "This is a PixArt checkpoint without a ControlNet. Open it with PixArt Load Checkpoint."
