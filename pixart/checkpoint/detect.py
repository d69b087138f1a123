"""Which PixArt a file holds: from its weights, then its config.json, then its safetensors metadata.

What weights cannot say, this project's own files say in their safetensors metadata, all values being strings:

    pixart.family               "alpha" or "sigma"
    pixart.num_heads            attention heads; needed where the width is not 72 times the heads
    pixart.base_size            side in tokens of the square picture the model was made for
    pixart.pe_interpolation     divisor of the position grid
    pixart.max_caption_tokens   the caption length, where the null caption (whose rows tell it) is not in the file

A file's name is never evidence.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from ..config import ALPHA, SIGMA, PixArtConfig
from ..text.tokens import ALPHA_TOKENS, SIGMA_TOKENS
from .keys import KeyPlan, plan_keys, split_block_name

logger = logging.getLogger(__name__)

AUTO = "auto"
FAMILIES = (AUTO, ALPHA, SIGMA)
RELEASED_HEAD_DIM = 72
MAX_DEPTH = 1024
"""Blocks; released models have 28, and every one that is claimed has to be built to be compared."""

_SYMBOL = {ALPHA: "α", SIGMA: "Σ"}
_CAPTION_TOKENS = {ALPHA: ALPHA_TOKENS, SIGMA: SIGMA_TOKENS}
_FAMILY_BY_ROWS = {rows: family for family, rows in _CAPTION_TOKENS.items()}
Shapes = Mapping[str, tuple[int, ...]]


def config_metadata(config: PixArtConfig) -> dict[str, str]:
    """The safetensors metadata from which, with the weights, ``detect_config`` finds ``config`` again."""
    return {
        "pixart.family": config.family,
        "pixart.num_heads": str(config.num_heads),
        "pixart.base_size": str(config.base_size),
        "pixart.pe_interpolation": repr(float(config.pe_interpolation)),
        "pixart.max_caption_tokens": str(config.max_caption_tokens),
    }


def detect_config(
    shapes: Shapes,
    metadata: Mapping[str, str] | None = None,
    config_json: Mapping[str, Any] | None = None,
    family: str = AUTO,
) -> tuple[PixArtConfig, tuple[str, ...]]:
    """The config of the transformer whose weights have these shapes, and one sentence of evidence per conclusion.

    shapes: name → shape, in any dialect and under any usual prefix.
    metadata: the safetensors metadata. config_json: diffusers' transformer config; ``_pipeline_class_name`` in it
        is the pipeline's class.
    family: "alpha" or "sigma" where the user knows better than a guess.

    Raises ValueError when the shapes are not a PixArt transformer's, when they have parts that PixArtTransformer
    does not compute, or when a statement contradicts them.
    """
    if family not in FAMILIES:
        raise ValueError(f"The family must be auto, alpha or sigma, not {family!r}.")
    plan = plan_keys(shapes)
    weights = _Weights(plan, shapes)
    said = _Statements(config_json or {}, metadata or {})
    evidence: list[str] = []

    size = _read_sizes(weights, evidence)
    heads = _read_heads(size["hidden_size"], said, evidence)
    attention = _read_attention(weights, size["depth"], evidence)
    micro = "csize_embedder.mlp.0.weight" in weights.shapes
    if micro:
        evidence.append("Size conditioning: the file has csize_embedder.")
    rows = weights.shape("y_embedder.y_embedding", 2)[0] if "y_embedder.y_embedding" in weights.shapes else None
    chosen = _read_family(rows, micro, said, family, evidence)
    tokens = _read_tokens(rows, chosen, said, evidence)
    base_size = _read_base_size(weights, chosen, micro, rows, size["patch_size"], said, evidence)
    interpolation = _read_interpolation(chosen, micro, base_size, said, evidence)
    config = PixArtConfig(
        family=chosen,
        **size,
        num_heads=heads,
        max_caption_tokens=tokens,
        base_size=base_size,
        pe_interpolation=interpolation,
        micro_condition=micro,
        null_caption=rows is not None,
        **attention,
    )
    return config, tuple(evidence)


class _Weights:
    """Shapes under original names."""

    def __init__(self, plan: KeyPlan, shapes: Shapes):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.position_table = shapes[plan.position_table] if plan.position_table else None
        for original, sources in plan.sources.items():
            parts = [tuple(shapes[source]) for source in sources if source in shapes]
            if parts and all(parts):
                self.shapes[original] = (sum(part[0] for part in parts), *parts[0][1:])

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor no transformer can be without."""
        if name not in self.shapes:
            raise ValueError(
                f"The file has names of a PixArt transformer but lacks {name}: it was saved in part, or is one shard "
                "of a set. Choose the complete checkpoint."
            )
        shape = self.shapes[name]
        if len(shape) != dimensions or min(shape) < 1:
            raise ValueError(
                f"{name} has shape {list(shape)}, where {dimensions} dimensions above 0 belong: "
                "the file is damaged or quantised. Choose an ordinary fp32, fp16 or bf16 checkpoint."
            )
        return shape


class _Statements:
    """What config.json and the metadata state, checked on reading; config.json comes first."""

    def __init__(self, config_json: Mapping[str, Any], metadata: Mapping[str, str]):
        self.config_json = config_json
        self.metadata = metadata

    def number(self, config_key: str | None, metadata_key: str, whole: bool = True) -> tuple[float, str] | None:
        """A positive number and the place it was found in."""
        for source, place in ((self.config_json, "config.json"), (self.metadata, "the metadata")):
            key = config_key if source is self.config_json else metadata_key
            value = source.get(key) if key else None
            if value is not None:
                return _positive(value, key, place, whole), f"{key} in {place}"
        return None

    def family(self, micro: bool) -> tuple[str, str] | None:
        """The family and the sentence that says why."""
        pipeline = str(self.config_json.get("_pipeline_class_name", ""))
        for name, family in (("PixArtAlpha", ALPHA), ("PixArtSigma", SIGMA)):
            if pipeline.startswith(name):
                return family, f"model_index.json names {pipeline}"
        if "sample_size" in self.config_json:
            # α's configs never state interpolation_scale; an early Σ 1024 config did not either, but has no embedders
            # for the size, as every α of that sample size has.
            if self.config_json.get("interpolation_scale") is not None:
                return SIGMA, "config.json states interpolation_scale, which only Σ's does"
            if self.config_json["sample_size"] in (32, 64) or micro:
                return ALPHA, "config.json states no interpolation_scale, as Σ's would"
            return SIGMA, "config.json is for 1024 pixels or more, and an α that large has size conditioning"
        stated = self.metadata.get("pixart.family")
        if stated is not None:
            if stated not in _SYMBOL:
                raise ValueError(f"pixart.family in the metadata is {stated[:40]!r}; it must be alpha or sigma.")
            return stated, f"pixart.family in the metadata is {stated}"
        architecture = str(self.metadata.get("modelspec.architecture", "")).lower()
        for family in _SYMBOL:
            if architecture.startswith(f"pixart-{family}"):
                return family, f"modelspec.architecture in the metadata is {architecture[:40]}"
        return None


def _positive(value: Any, key: str, place: str, whole: bool) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= 1_000_000 or (whole and number != int(number)):
        kind = "a whole number above 0" if whole else "a number above 0"
        raise ValueError(f"{key} in {place} is {str(value)[:40]!r}; it must be {kind}.")
    return int(number) if whole else number


def _read_sizes(weights: _Weights, evidence: list[str]) -> dict[str, int]:
    """Everything that the shapes alone decide."""
    patch = weights.shape("x_embedder.proj.weight", 4)
    final = weights.shape("final_layer.linear.weight", 2)[0]
    hidden, in_channels, patch_size = patch[0], patch[1], patch[2]
    if patch[2] != patch[3] or final % patch_size**2:
        raise ValueError(
            f"x_embedder.proj.weight has shape {list(patch)} and final_layer.linear.weight {final} rows: these are no "
            "square patches in and out. Choose a PixArt checkpoint."
        )
    out_channels = final // patch_size**2
    if in_channels == 8 and out_channels == 8:
        raise ValueError(
            "The first layer takes 8 channels: this is a control model that wants a control picture's latents beside "
            "the noise. Choose a checkpoint with 4 input channels."
        )
    indices = sorted({block[0] for name in weights.shapes if (block := split_block_name(name))})
    if not indices or indices[-1] != len(indices) - 1:
        gap = next((i for i, index in enumerate(indices) if i != index), 0)
        raise ValueError(
            f"Block {gap} is missing, though there are blocks up to {indices[-1] if indices else 'none'}: the file was "
            "saved in part. Choose the complete checkpoint."
        )
    if len(indices) > MAX_DEPTH:
        raise ValueError(f"The file has {len(indices)} blocks, more than {MAX_DEPTH}: this is no PixArt.")
    evidence.append(f"Depth {len(indices)}, width {hidden}: counted and measured in the weights.")
    return {
        "hidden_size": hidden,
        "depth": len(indices),
        "patch_size": patch_size,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "mlp_hidden_size": weights.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "caption_channels": weights.shape("y_embedder.y_proj.fc1.weight", 2)[1],
    }


def _read_heads(hidden: int, said: _Statements, evidence: list[str]) -> int:
    stated = said.number("num_attention_heads", "pixart.num_heads")
    if stated:
        heads, place = int(stated[0]), stated[1]
        if hidden % heads:
            raise ValueError(f"{place} is {heads}, which does not divide the width {hidden} of the weights.")
        evidence.append(f"{heads} heads: {place}.")
        return heads
    if hidden % RELEASED_HEAD_DIM:
        raise ValueError(
            f"The number of attention heads is unknown: the width {hidden} is not a multiple of {RELEASED_HEAD_DIM}, "
            "the width of a head in released models. State pixart.num_heads in the file's safetensors metadata, or "
            "num_attention_heads in the config.json of its folder."
        )
    heads = hidden // RELEASED_HEAD_DIM
    evidence.append(f"{heads} heads: the width divided by {RELEASED_HEAD_DIM}, as in all releases.")
    return heads


def _read_attention(weights: _Weights, depth: int, evidence: list[str]) -> dict[str, Any]:
    """Which blocks compress keys and values by a convolution, and whether queries and keys are normalised."""
    ratios = [_read_kv_ratio(weights, f"blocks.{index}.attn.sr.weight") for index in range(depth)]
    for ratio in sorted({ratio for ratio in ratios if ratio > 1}):
        blocks = list_blocks([index for index, found in enumerate(ratios) if found == ratio])
        evidence.append(f"Keys and values compressed {ratio} × {ratio} in blocks {blocks}: these hold attn.sr.")
    normalised = [index for index in range(depth) if f"blocks.{index}.attn.q_norm.weight" in weights.shapes]
    if normalised and len(normalised) < depth:
        raise ValueError(
            f"Only blocks {list_blocks(normalised)} hold attn.q_norm (qk_norm), which all blocks have or none: the "
            "file was saved in part. Choose the complete checkpoint."
        )
    if normalised:
        evidence.append("qk_norm: the blocks hold attn.q_norm.")
    return {"qk_norm": bool(normalised), "kv_ratios": tuple(ratios) if max(ratios) > 1 else ()}


def _read_kv_ratio(weights: _Weights, name: str) -> int:
    if name not in weights.shapes:
        return 1
    shape = weights.shape(name, 4)
    if shape[1] != 1 or shape[2] != shape[3]:
        raise ValueError(
            f"{name} has shape {list(shape)}, where KV compression has a square window for each channel: the file is "
            "damaged or of another model. Choose the complete checkpoint."
        )
    return shape[2]


def list_blocks(indices: list[int]) -> str:
    """``[2, 3, 4, 7]`` → ``"2–4, 7"``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _read_family(rows: int | None, micro: bool, said: _Statements, asked: str, evidence: list[str]) -> str:
    proven = _FAMILY_BY_ROWS.get(rows)
    if proven:
        if asked not in (AUTO, proven):
            raise ValueError(
                f"The family was set to {asked}, but y_embedder.y_embedding has {rows} rows, as only PixArt-"
                f"{_SYMBOL[proven]} does. Set it to auto or {proven}."
            )
        evidence.append(f"{_SYMBOL[proven]}: y_embedder.y_embedding has {rows} rows.")
        return proven
    if asked != AUTO:
        evidence.append(f"{_SYMBOL[asked]}: chosen by hand.")
        return asked
    if stated := said.family(micro):
        evidence.append(f"{_SYMBOL[stated[0]]}: {stated[1]}.")
        return stated[0]
    if micro:
        evidence.append("α: size conditioning, which no released Σ has.")
        return ALPHA
    _guess(evidence, "Σ: nothing in the file tells the family. Set it to alpha if colours come out wrong")
    return SIGMA


def _read_tokens(rows: int | None, family: str, said: _Statements, evidence: list[str]) -> int:
    if rows is not None:
        evidence.append(f"Captions of {rows} tokens: the rows of y_embedder.y_embedding.")
        return rows
    if stated := said.number(None, "pixart.max_caption_tokens"):
        evidence.append(f"Captions of {stated[0]} tokens: {stated[1]}.")
        return int(stated[0])
    evidence.append(f"Captions of {_CAPTION_TOKENS[family]} tokens: what {_SYMBOL[family]} was trained with.")
    return _CAPTION_TOKENS[family]


def _read_base_size(
    weights: _Weights, family: str, micro: bool, rows: int | None, patch: int, said: _Statements, evidence: list[str]
) -> int:
    base = _stored_base_size(weights, family, micro, rows, evidence)
    if base:
        return base
    if stated := said.number("sample_size", "pixart.base_size"):
        value, place = int(stated[0]), stated[1]
        base = max(value // patch, 1) if place.startswith("sample_size") else value
        evidence.append(f"Base size {base} tokens: {place}.")
        return base
    # α has no 1024 without size conditioning; its others share the 512's grid, or are told by their pos_embed.
    base = 32 if family == ALPHA and not micro else 64
    _guess(evidence, f"base size {base} tokens ({base * patch * 8} pixels): nothing in the file tells it")
    return base


def _stored_base_size(
    weights: _Weights, family: str, micro: bool, rows: int | None, evidence: list[str]
) -> int | None:
    """From the number of rows of a stored position grid; its values are not looked at."""
    table = weights.position_table
    if table is None:
        return None
    tokens = table[-2] if len(table) in (2, 3) else 0
    base = math.isqrt(max(tokens, 0))
    if base < 1 or base**2 != tokens:
        evidence.append(f"pos_embed of shape {list(table)} was left aside: it is not a square grid.")
        return None
    if base == 64 and family == ALPHA and not micro and rows is None:
        evidence.append("pos_embed was left aside: OneTrainer writes 4096 rows for every size, and no α this large "
                        "lacks size conditioning.")  # fmt: skip
        return None
    evidence.append(f"Base size {base} tokens: pos_embed has {tokens} rows.")
    return base


def _read_interpolation(family: str, micro: bool, base: int, said: _Statements, evidence: list[str]) -> float:
    """Σ and α with size conditioning spread every base size over 32 units; α's plain 256 and 512 are not scaled.

    diffusers' own default where config.json is silent, max(sample_size // 64, 1), differs from this only for
    a Σ 256, where it would be wrong.
    """
    if stated := said.number("interpolation_scale", "pixart.pe_interpolation", whole=False):
        evidence.append(f"Position grid divided by {stated[0]:g}: {stated[1]}.")
        return float(stated[0])
    plain = family == ALPHA and not micro and base in (16, 32)
    value = 1.0 if plain else base / 32
    reason = "α without size conditioning" if plain else "base size over 32, as in all releases"
    evidence.append(f"Position grid divided by {value:g}: {reason}.")
    return value


def _guess(evidence: list[str], sentence: str) -> None:
    evidence.append(f"Guessed {sentence}.")
    logger.warning("PixArt checkpoint: guessed %s.", sentence)
