"""Opening a checkpoint: read, told from other models' files, detected, checked, ready for PixArtTransformer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..attention import Attention, sdpa
from ..config import PixArtConfig
from ..transformer import PixArtTransformer
from .detect import AUTO, FAMILIES, config_metadata, detect_config
from .files import Weights, read_config, read_weights, shard_note
from .foreign import name_foreign
from .fp8 import FLOAT8, METADATA, PACKED, dequantise, handed_on, is_companion, read_companions
from .keys import DIFFUSERS, KeyPlan, OriginalState, list_names, plan_keys
from .save import CONFIG_KEY, config_from_tensor

_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8})
# Bookkeeping of training tools that no layer computes with.
_HARMLESS = frozenset(
    {"epoch", "step", "global_step", "decay", "num_updates", "mask_token", "logvar", "betas", "alphas_cumprod"}
)
_QUANTISED = (".scale_weight", ".weight_scale", ".comfy_quant", "scaled_fp8", ".absmax", ".quant_state", ".qweight")


@dataclass(frozen=True)
class Checkpoint:
    """A PixArt transformer on disk.

    state_dict: exactly the names of ``PixArtTransformer(config).state_dict()``, the tensors in the file's dtype.
        They are memory-mapped; do not overwrite the file while they are in use.
    dialect: "original" or "diffusers", the names used in the file.
    evidence: one sentence for each conclusion of the config. notes: harmless oddities.
    quantised: for scaled fp8 weights "<layer>.weight_scale" and "<layer>.comfy_quant" (bytes of JSON, as ComfyUI's
        newer layout has it), and "<layer>.input_scale" where the file has one; a weight is its fp8 numbers times
        its scale. Of layers in a format that was asked for, what the file has, as it is. Empty for all other files.
    formats: layer → format, such as "nvfp4", of the latter layers; their weights are stored numbers, not values.
    """

    path: Path
    config: PixArtConfig
    state_dict: Mapping[str, torch.Tensor]
    dialect: str
    evidence: tuple[str, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]
    quantised: Mapping[str, torch.Tensor] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """One tensor of the transformer as ``dtype``, its fp8 scale multiplied in.

        Raises ValueError for a weight in another quantised format.
        """
        if (layer := name.removesuffix(".weight")) in self.formats and layer != name:
            raise ValueError(
                f"{self.path}: {layer} is quantised as {self.formats[layer]}, which only ComfyUI's own layers compute "
                "with. Leave its type alone (weight_dtype auto), or choose a file in fp8, fp16, bf16 or fp32."
            )
        return dequantise(name, self.state_dict[name], self.quantised, dtype)


def open_checkpoint(path: str | Path, family: str = AUTO, formats: Collection[str] = ()) -> Checkpoint:
    """Open a .safetensors or .pth file, a shard index, or a diffusers folder.

    family: "alpha" or "sigma" overrides what would otherwise be guessed.
    formats: quantised formats that the caller's layers compute with, by ComfyUI's names, beside scaled fp8.

    Raises FileNotFoundError for a missing path, and ValueError, naming the file, for anything that is not a
    PixArt transformer: the message says what it is instead and what to do.
    """
    if family not in FAMILIES:
        raise ValueError(f"The family must be auto, alpha or sigma, not {family!r}.")
    try:
        return _open(Path(path), family, formats)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_transformer(
    checkpoint_or_path: Checkpoint | str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    attention: Attention = sdpa,
) -> PixArtTransformer:
    """The transformer of a checkpoint under plain PyTorch, in evaluation mode.

    dtype: of all parameters; None keeps the file's, except that fp8 becomes bfloat16, since no plain layer
        computes in fp8; the scales of scaled fp8 are multiplied in. Raises what ``open_checkpoint`` raises.
    """
    checkpoint = checkpoint_or_path
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    if dtype is None:
        dtype = checkpoint.state_dict["t_block.1.weight"].dtype
        dtype = torch.bfloat16 if dtype in FLOAT8 else dtype
    model = PixArtTransformer(checkpoint.config, attention=attention, dtype=dtype, device="meta")
    state = {name: checkpoint.tensor(name, dtype).to(device) for name in checkpoint.state_dict}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _open(path: Path, family: str, formats: Collection[str]) -> Checkpoint:
    weights = read_weights(path)
    tensors = dict(weights.tensors)
    stated = [tensors.pop(name) for name in weights.tensors if name.rpartition(".")[2] == CONFIG_KEY]
    plan, companions = _plan(tensors)
    quantised = _read_quantised(plan, companions, tensors, weights.metadata, formats)
    stored = {plan.sources[f"{layer}.weight"][0]: kind for layer, kind in handed_on(quantised).items()}
    _check_dtypes(plan, tensors, stored)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in companions}
    # A config.json beside a file in original names may belong to any of the folder's models.
    config_json = read_config(weights.file.parent) if path.is_dir() or plan.dialect == DIFFUSERS else None
    shapes = {name: _shape(tensor, stored.get(name)) for name, tensor in tensors.items()}
    try:
        if stated:
            config, evidence = _stated_config(stated[0], shapes, family)
        else:
            config, evidence = detect_config(shapes, weights.metadata, config_json, family)
    except ValueError as error:
        raise ValueError(" ".join(filter(None, (str(error), shard_note(path))))) from error
    kept, notes = _check_names(plan, shapes, config, path)
    state = OriginalState(tensors, {name: plan.sources[name] for name in kept})
    _check_finite(state)
    return Checkpoint(
        path=path,
        config=config,
        state_dict=state,
        dialect=plan.dialect,
        evidence=evidence,
        metadata=weights.metadata,
        notes=tuple(_origin_notes(plan, weights, config, config_json or {}) + notes),
        quantised=quantised,
        formats=handed_on(quantised),
    )


def _shape(tensor: torch.Tensor, kind: str | None) -> tuple[int, ...]:
    """The shape of the numbers that a tensor stands for; kind: its quantised format, if any."""
    shape = tuple(tensor.shape)
    return shape if kind is None else (*shape[:-1], shape[-1] * PACKED.get(kind, 1))


def _stated_config(tensor: torch.Tensor, shapes, family: str) -> tuple[PixArtConfig, tuple[str, ...]]:
    """The config that a file of ours states in full, once the weights agree in all that they can tell."""
    try:
        stated = config_from_tensor(tensor)
        detected, _ = detect_config(shapes, config_metadata(stated))
    except (ZeroDivisionError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"The tensor {CONFIG_KEY} in the file does not hold a PixArt configuration. "
            "Choose another save of the model."
        ) from error
    untold = ("family", "num_heads", "base_size", "pe_interpolation")
    if replace(detected, **{name: getattr(stated, name) for name in untold}) != stated:
        raise ValueError(
            f"The tensor {CONFIG_KEY} describes {stated}, but the weights are of {detected}: parts of two models "
            "were mixed. Choose another save of the model."
        )
    if family not in (AUTO, stated.family):
        raise ValueError(
            f"The family was set to {family}, but the file states {stated.family}. Set it to auto or {stated.family}."
        )
    return stated, (f"Everything: the tensor {CONFIG_KEY} in the file, which agrees with the weights.",)


def _plan(tensors: Mapping[str, torch.Tensor]) -> tuple[KeyPlan, set[str]]:
    """How names become original ones, and the names that are companions of the transformer's fp8 weights."""
    if foreign := name_foreign(tensors, has_transformer=True):
        raise ValueError(foreign)
    try:
        plan = plan_keys(name for name in tensors if not is_companion(name))
    except ValueError as error:
        raise ValueError(name_foreign(tensors, has_transformer=False) or str(error)) from error
    companions = {name for name in tensors if is_companion(name) and name.startswith(plan.prefix)}
    scaled = {name.rpartition(".")[0] for name in companions}
    if not any(f"{layer}.weight" in tensors and tensors[f"{layer}.weight"].itemsize == 1 for layer in scaled):
        companions = set()
    return (plan if companions else plan_keys(tensors)), companions


def _read_quantised(
    plan: KeyPlan,
    companions: set[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    formats: Collection[str],
) -> dict[str, torch.Tensor]:
    if not companions and METADATA not in metadata:
        return {}
    if plan.dialect == DIFFUSERS:
        raise ValueError(
            "The weights are quantised under diffusers' names, where queries, keys and values have a scale each; "
            "joined into one matrix they would need one. Choose the file with original names, or one in fp16."
        )
    return read_companions(sorted(companions), tensors, plan.sources, plan.prefix, metadata, formats)


def _origin_notes(
    plan: KeyPlan, weights: Weights, config: PixArtConfig, config_json: Mapping[str, Any]
) -> list[str]:
    notes = list(weights.notes)
    if plan.prefix:
        notes.append(f"Names stand behind '{plan.prefix}'.")
    if plan.companions:
        notes.append(f"{len(plan.companions)} tensors of other models left out: {list_names(plan.companions, 1)}.")
    layers = config_json.get("num_layers")
    if layers not in (None, config.depth):
        notes.append(f"config.json speaks of {layers} blocks; the weights have {config.depth}, and they count.")
    return notes


def _check_dtypes(plan: KeyPlan, tensors: Mapping[str, torch.Tensor], stored: Mapping[str, str]) -> None:
    """ValueError for a tensor that holds no floating-point numbers and is in no known format either."""
    computed_with = (source for name, sources in plan.sources.items() if name not in _HARMLESS for source in sources)
    for name in computed_with:
        if name in tensors and name not in stored and tensors[name].dtype not in _FLOATS:
            kind = str(tensors[name].dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} holds {kind} values: a quantised or damaged file. Choose one in fp32, fp16, bf16 or fp8."
            )


def _check_names(
    plan: KeyPlan, shapes: Mapping[str, tuple[int, ...]], config: PixArtConfig, path: Path
) -> tuple[list[str], list[str]]:
    """The names to load, in the transformer's order, and notes; ValueError where names or shapes do not fit."""
    expected = _expected_shapes(config)
    extra = [source for name, sources in plan.sources.items() if name not in expected for source in sources]
    extra = [name for name in (*extra, *plan.unexplained) if name in shapes]
    harmless = [name for name in extra if name.removeprefix(plan.prefix) in _HARMLESS]
    if fatal := [name for name in extra if name not in harmless]:
        raise ValueError(_unexpected(fatal))
    missing = plan.missing(shapes) + [name for name in expected if name not in plan.sources]
    if missing:
        raise ValueError(
            f"{len(missing)} of the transformer's tensors are missing, the first: {list_names(missing)}. The file was "
            f"saved in part. {shard_note(path) or 'Choose the complete checkpoint.'}"
        )
    for name, shape in expected.items():
        parts = [shapes[source] for source in plan.sources[name]]
        found = (sum(part[0] for part in parts), *parts[0][1:]) if all(parts) else ()
        if found != shape or len({part for part in parts}) != 1:
            raise ValueError(
                f"{plan.sources[name][0]} has shape {list(parts[0])}, where {list(shape)} in {len(parts)} part(s) "
                f"belongs beside the rest of the weights (width {config.hidden_size}): the file is damaged or mixed "
                "from two models. Download it again."
            )
    notes = [f"Not needed, left out: {list_names(harmless)}."] if harmless else []
    return list(expected), notes


def _expected_shapes(config: PixArtConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of ``PixArtTransformer(config)``."""
    model = PixArtTransformer(config, device="meta")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _unexpected(names: list[str]) -> str:
    if any(mark in name for name in names for mark in _QUANTISED):
        cause = "They belong to quantised weights, which are not undone here. Choose a file in fp32, fp16, bf16 or fp8."
    else:
        cause = "The file is a model that only resembles PixArt, or holds parts that this transformer has no layer for."
    return f"{len(names)} tensors have no place in a PixArt transformer, the first: {list_names(names)}. {cause}"


def _check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """The modulation tables and a few biases: small, in every block, and the first to be hit by an overflow."""
    for name in state:
        if name.endswith("scale_shift_table") or name in ("x_embedder.proj.bias", "t_block.1.bias"):
            if not torch.isfinite(state[name].float()).all():
                raise ValueError(
                    f"{name} holds NaN or infinity: the training that wrote it diverged, or it overflowed when "
                    "converted to half precision. Choose another save of the model."
                )
