"""LoRA files of every dialect in circulation, read to one form: adapters on parameters with original names.

``lora_names`` tells what a name in such a file means, ``adapters`` what an adapter does to a weight. How an alpha that
the file does not hold is found, see ``_Scales``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .adapters import DIFFERENCE, LOHA, LOKR, LORA, WHOLE, Adapter, shape_of
from .checkpoint.files import read_weights
from .checkpoint.keys import list_names
from .lora_foreign import name_foreign_lora
from .lora_names import Address, find_layer, name_dialect, split_role

PEFT_DEFAULT_ALPHA = 8

MAX_CONFIG = 2**20
"""Bytes of a PEFT configuration."""

MAX_PATTERNS = 2000
_PATTERN = re.compile(r"([\w.|()\[\]^$\\-]|(?<=\\d)\+){1,500}")
_MOST = {"|": 16, "(": 3, "+": 2}
"""Of an expression in a configuration: names, few choices, and no repetition but of digits.

One made for it could take longer than the universe has to be matched. PEFT itself writes names of layers.
"""

_PRODUCTS = ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2")
_TEXT_OWNER = r"text_encoder(?:_\d)?\."
_RAW_PEFT = re.compile(r"^(unet\.|transformer\.)?base_model\.model\.")


@dataclass(frozen=True)
class Lora:
    """A LoRA file in one form.

    transformer, text: the adapters. leftover: (name, why) of what is in the file and cannot be applied.
    dialect: how the file names its layers. scale_rule: where its alpha is from.
    """

    path: Path
    dialect: str
    transformer: tuple[Adapter, ...]
    text: tuple[Adapter, ...]
    leftover: tuple[tuple[str, str], ...]
    scale_rule: str
    metadata: Mapping[str, str]

    def kinds(self) -> str:
        """Such as "LoRA" or "LoHa with DoRA"."""
        adapters = [*self.transformer, *self.text]
        kinds = ", ".join(dict.fromkeys(adapter.kind for adapter in adapters))
        return kinds + (" with DoRA" if any(adapter.magnitude is not None for adapter in adapters) else "")


def open_lora(path: str | Path) -> Lora:
    """Read a LoRA file, or a folder of PEFT's.

    Raises FileNotFoundError for a missing path and ValueError, naming the file, for anything that is no LoRA for
    PixArt: the message says what it is instead and what to do.
    """
    return _open(path, whole=True)


def peek_lora(path: str | Path) -> Lora:
    """What a LoRA file is, from its names and shapes: the numbers are not read, so that NaN stays unseen.

    Raises what ``open_lora`` raises. Its tensors lie in the file's pages and are not for use.
    """
    return _open(path, whole=False)


def _open(path: str | Path, whole: bool) -> Lora:
    path = Path(path)
    try:
        weights = read_weights(path)
        tensors = weights.tensors
        if whole:
            # Copied out of the file's pages: a training may write the next save over it while the LoRA is in use.
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return _understand(path, tensors, weights.metadata, _beside(weights.file), whole)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def fit(adapters: Iterable[Adapter], shapes: Mapping[str, tuple[int, ...]], owner: str) -> tuple[list[Adapter], list]:
    """The adapters that a model has a place for, and (name, why) of those it has none for.

    shapes: parameter → shape of the model. owner: what to call it in a message, "PixArt model" or "T5".
    Raises ValueError where an adapter's shape contradicts the model's: the LoRA is of another width or depth.
    """
    fitting, absent, beyond, contrary = [], [], [], []
    stack = "blocks" if "blocks.0.scale_shift_table" in shapes else "encoder.block"
    depth = 1 + max((_block_of(name, stack) for name in shapes), default=-1)
    for adapter in adapters:
        block = _block_of(adapter.target, stack)
        if block >= depth > 0:
            beyond.append(block)
        elif adapter.target not in shapes:
            absent.append((adapter.name, f"the {owner} has no {adapter.target}"))
        elif not _belongs(adapter, shapes[adapter.target]):
            contrary.append((adapter, _rows(shapes[adapter.target], adapter.parts)))
        else:
            fitting.append(adapter)
    if contrary:
        raise ValueError(_wrong_shape(contrary, owner))
    if beyond:
        raise ValueError(
            f"The LoRA changes blocks up to number {max(beyond)}, but the {owner} has {depth} (0 to {depth - 1}): it "
            f"was made for one of at least {max(beyond) + 1} blocks. Choose a LoRA of this model, or that model."
        )
    return fitting, absent


def blocks_reached(adapters: Iterable[Adapter]) -> int:
    """One more than the highest block of the transformer that is changed; 0 for none."""
    return 1 + max((_block_of(adapter.target, "blocks") for adapter in adapters), default=-1)


def _block_of(name: str, stack: str) -> int:
    head = f"{stack}."
    digits = name[len(head) :].partition(".")[0] if name.startswith(head) else ""
    return int(digits) if digits.isdigit() else -1


def _rows(shape: tuple[int, ...], parts: int) -> tuple[int, int]:
    return (shape[0] // parts if shape else 1), math.prod(shape[1:])


def _belongs(adapter: Adapter, shape: tuple[int, ...]) -> bool:
    wanted, magnitude = _rows(shape, adapter.parts), adapter.magnitude
    return shape_of(adapter) == wanted and (magnitude is None or magnitude.numel() in (wanted[0], *shape[1:2]))


def _wrong_shape(contrary: list[tuple[Adapter, tuple[int, int]]], owner: str) -> str:
    """The width stands in the rows of the attention's projections; a LoRA without them is described by one layer."""
    for adapter, wanted in contrary:
        if re.search(r"\.(attn|cross_attn)\.(qkv|proj|q_linear|kv_linear)\.weight$|SelfAttention\.o\.", adapter.target):
            found, own = shape_of(adapter)[0], wanted[0]
            if found * adapter.parts == own or found == own * adapter.parts:
                break
            known = {2048: " (LTX-Video's)", 2240: " (Sana's)", 1152: " (PixArt XL's)"}.get(found, "")
            return (
                f"The LoRA was made for a model of width {found}{known}; this {owner} is {own} wide. Choose a LoRA "
                f"that was trained on this {owner}, or load the model that it belongs to."
            )
    adapter, wanted = contrary[0]
    found = shape_of(adapter)
    return (
        f"{len(contrary)} layers of the LoRA have another shape than the {owner}'s, the first: {adapter.name} is for "
        f"{found[0]} × {found[1]}, the {owner}'s {adapter.target} wants {wanted[0]} × {wanted[1]}. It was trained on "
        "another model. Choose a LoRA of this one."
    )


def _beside(file: Path) -> tuple[dict[str, Any], str]:
    """PEFT's adapter_config.json for a weights file, and its name; empty where there is none for this file.

    In a folder of many LoRAs one file's configuration is not another's, so adapter_config.json counts only for the
    names that PEFT and diffusers save under, or where no other weights are.
    """
    own = file.with_suffix(".json")
    shared = file.with_name("adapter_config.json")
    usual = file.stem in ("adapter_model", "pytorch_lora_weights")
    alone = sum(f.suffix in (".safetensors", ".bin", ".pt", ".pth") for f in file.parent.iterdir()) == 1
    for config_file, counts in ((own, True), (shared, usual or alone)):
        if counts and config_file.is_file():
            config = _read_json(config_file)
            if "peft_type" in config or "lora_alpha" in config or "r" in config:
                return config, config_file.name
    return {}, ""


def _read_json(file: Path) -> dict[str, Any]:
    if (size := file.stat().st_size) > MAX_CONFIG:
        raise ValueError(f"{file.name} beside the file has {size} bytes, more than {MAX_CONFIG}. Take it away.")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} beside the file is not valid JSON ({str(error)[:120]}).") from error
    return content if isinstance(content, dict) else {}


def _understand(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    beside: tuple[dict[str, Any], str],
    whole: bool,
) -> Lora:
    if not tensors:
        raise ValueError("The file holds no tensors. Choose a file of LoRA weights.")
    if foreign := name_foreign_lora({name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise ValueError(foreign)
    groups, leftover = _group(tensors)
    if groups and all(set(parts) <= {"weight", "bias", "scale_shift_table"} for _, parts in groups.values()):
        raise ValueError(
            "This is a whole PixArt model, not a LoRA. Open it with PixArt Load Checkpoint, or lay it over another "
            "model with PixArt Load DreamBooth."
        )
    if not groups:
        names = list_names([name for name, _ in leftover], 3)
        raise ValueError(
            f"No layer of a PixArt transformer or of T5 is named in this file; it names {names}. It is a LoRA for "
            "another model, or no LoRA. Choose one that was trained on PixArt."
        )
    _check_numbers({stem: parts for stem, (_, parts) in groups.items()}, whole)
    stems = [stem for stem, (address, _) in groups.items() if not address.text] or list(groups)
    scales = _Scales(metadata, beside, raw_peft=any(_RAW_PEFT.match(stem) for stem in groups))
    adapters: dict[bool, list[Adapter]] = {True: [], False: []}
    taken: dict[tuple[str, int, int], str] = {}
    for stem, (address, parts) in groups.items():
        made, why = _adapters(stem, address, parts, scales)
        leftover += why
        for adapter in made:
            place = (adapter.target, adapter.part, adapter.parts)
            if place in taken:
                raise ValueError(f"{taken[place]} and {stem} change the same weight: the file is mixed from two.")
            taken[place] = stem
            adapters[address.text].append(adapter)
    if not taken:
        raise ValueError(f"Nothing in this file can be applied: {leftover[0][0]}: {leftover[0][1]}.")
    ranks = Counter(a.rank for kind in adapters.values() for a in kind if a.rank)
    scale_rule = scales.describe() if ranks else "none is needed"
    return Lora(
        path,
        name_dialect(stems),
        tuple(adapters[False]),
        tuple(adapters[True]),
        tuple(leftover),
        scale_rule,
        dict(metadata),
    )


def _group(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, tuple[Address, dict]], list[tuple[str, str]]]:
    """Stem of a layer's name → (its address, role → tensor), and what no layer was found for."""
    groups: dict[str, tuple[Address, dict]] = {}
    leftover: list[tuple[str, str]] = []
    for name, tensor in tensors.items():
        stem, role = split_role(name)
        if role is None:
            why = "an embedding, not a LoRA" if name.startswith("bundle_emb.") else "not a tensor of a LoRA"
            leftover.append((name, why))
        elif address := find_layer(stem):
            groups.setdefault(stem, (address, {}))[1][role] = tensor
        else:
            leftover.append((stem, "no layer of a PixArt transformer or of T5 is called so"))
    return groups, list(dict.fromkeys(leftover))


def _check_numbers(groups: Mapping[str, Mapping[str, torch.Tensor]], whole: bool) -> None:
    for stem, parts in groups.items():
        for role, tensor in parts.items():
            if not tensor.is_floating_point() and role != "alpha":
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"{stem} holds {kind} values ({role}), not numbers of a LoRA: the file is quantised.")
            if whole and not torch.isfinite(tensor.float()).all():
                raise ValueError(
                    f"{stem} holds NaN or infinity ({role}): the training that wrote the file diverged, or it "
                    "overflowed when converted to half precision. Choose another save of the LoRA."
                )


class _Scales:
    """What to multiply the product of factors by: alpha / rank, and alpha from the first of

    1. the file's own alpha tensor of the layer,
    2. the safetensors metadata: diffusers' lora_adapter_metadata (which has one part for the transformer and one for
       the text encoder), lora_alpha, pixart_alpha, ss_network_alpha,
    3. PEFT's adapter_config.json beside the file (use_rslora and alpha_pattern included),
    4. for PEFT's own names without that file, PEFT's default of 8, which PixArt's training scripts leave as it is,
    5. for all other names the rank, as diffusers and ComfyUI have it.
    """

    def __init__(self, metadata: Mapping[str, str], beside: tuple[dict[str, Any], str], raw_peft: bool):
        self.raw_peft = raw_peft
        self.used: Counter[str] = Counter()
        self.stated = {text: _stated_config(metadata, text) or beside for text in (False, True)}

    def config(self, text: bool) -> tuple[dict[str, Any], str]:
        """The configuration of the transformer's adapters or of T5's, and where it was found; empty for none."""
        return self.stated[text]

    def scale(self, layer: str, rank: int, alpha: torch.Tensor | None, text: bool) -> float:
        """layer: the stem in the file, which patterns of a configuration are matched against. text: it is T5's."""
        config, place = self.config(text)
        if alpha is not None:
            self.used["the alpha tensors in the file"] += 1
            if alpha.numel() != 1 or alpha.is_complex():
                raise ValueError(f"{layer}: alpha has shape {list(alpha.shape)} of {alpha.dtype}, not one number.")
            return float(alpha) / rank
        if config:
            value = config.get("lora_alpha", config.get("alpha", PEFT_DEFAULT_ALPHA))
            value = _by_pattern(config.get("alpha_pattern"), layer, value)
            alpha_of_all = _number(value, place)
            self.used[f"alpha {_short(value)} from {place}"] += 1
            return alpha_of_all / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if self.raw_peft:
            self.used[
                f"PEFT's default alpha {PEFT_DEFAULT_ALPHA}, for lack of its adapter_config.json beside the file"
            ] += 1
            return PEFT_DEFAULT_ALPHA / rank
        self.used["alpha = rank, since neither the file nor its metadata states one"] += 1
        return 1.0

    def describe(self) -> str:
        return "; ".join(rule for rule, _ in self.used.most_common())


def _stated_config(metadata: Mapping[str, str], text: bool) -> tuple[dict[str, Any], str] | None:
    """A PEFT configuration, or its alpha alone, from the metadata of a safetensors file.

    text: the text encoder's, or the transformer's where it has none of its own.
    """
    nested = metadata.get("lora_adapter_metadata")
    if nested:
        try:
            content = json.loads(nested)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"lora_adapter_metadata in the file is not valid JSON ({str(error)[:120]}).") from error
        if not isinstance(content, dict):
            raise ValueError(f"lora_adapter_metadata in the file is a JSON {type(content).__name__}, not an object.")
        for owner in (_TEXT_OWNER, r"", r"transformer\.") if text else (r"transformer\.", r""):
            named = ((re.fullmatch(rf"{owner}([^.]+)", key), value) for key, value in content.items())
            config = {match[1]: value for match, value in named if match}
            if "lora_alpha" in config:
                return config, "lora_adapter_metadata in the file"
    for key in ("lora_alpha", "pixart_alpha", "ss_network_alpha"):
        if metadata.get(key) not in (None, "", "None"):
            return {"lora_alpha": _number(metadata[key], key)}, f"the metadata ({key})"
    return None


def _by_pattern(patterns: Any, layer: str, default: Any) -> Any:
    """PEFT's alpha_pattern: the value of the first expression that matches the end of a layer's name in diffusers."""
    if patterns is not None and not isinstance(patterns, dict):
        raise ValueError(f"alpha_pattern in the LoRA's configuration is a {type(patterns).__name__}, not an object.")
    if patterns and len(patterns) > MAX_PATTERNS:
        raise ValueError(f"alpha_pattern in the LoRA's configuration has {len(patterns)} names, over {MAX_PATTERNS}.")
    name = re.sub(r"^(unet\.|transformer\.)?(base_model\.model\.)?", "", layer)
    for pattern, value in (patterns or {}).items():
        if _expression(pattern).match(name):
            return value
    return default


@lru_cache(maxsize=MAX_PATTERNS)
def _expression(pattern: str) -> re.Pattern:
    if not _PATTERN.fullmatch(pattern) or any(pattern.count(sign) > most for sign, most in _MOST.items()):
        raise ValueError(
            f"alpha_pattern in the LoRA's configuration has {pattern[:80]!r}; names of layers are read, with a few "
            "choices (a|b), classes [ab] and numbers \\d+, but nothing else that repeats. Write the names out."
        )
    try:
        return re.compile(rf"{pattern}$" if pattern.startswith("^") else rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"alpha_pattern in the LoRA's configuration has {pattern[:80]!r}: {error}.") from error


def _number(value: Any, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"The alpha or rank in {place} is {str(value)[:40]!r}; it must be a number.")
    return number


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)[:40]


def _adapters(
    stem: str, address: Address, parts: dict[str, torch.Tensor], scales: _Scales
) -> tuple[list[Adapter], list[tuple[str, str]]]:
    """The adapters that one layer's tensors make, and why some make none."""
    place = {"name": stem, "part": address.part, "parts": address.parts}
    main = {name: tensor for name, tensor in parts.items() if name.startswith(("lora_", "hada_", "lokr_"))}
    made: list[Adapter] = []
    scale, (config, where) = 1.0, scales.config(address.text)
    if "unsupported" in parts:
        return [], [(stem, "OFT, GLoRA, IA³ and norm adapters are not read")]
    if main:
        kind, rank = _kind_and_rank(stem, main)
        if kind is None:
            return [], [(stem, f"it is incomplete: only {', '.join(main)} is there")]
        if rank:
            scale = scales.scale(stem, rank, parts.get("alpha"), address.text)
        elif config.get("peft_type") == "LOKR":
            # PEFT scales a LoKr of two full factors too; LyCORIS does not.
            rank_of_all = _number(config.get("r", 8), where)
            if rank_of_all < 1:
                raise ValueError(f"The rank r in {where} is {rank_of_all:g}; it must be 1 or more.")
            scale = scales.scale(stem, int(rank_of_all), parts.get("alpha"), address.text)
            main["lokr_w1"] = main["lokr_w1"] * scale
        magnitude = _magnitude(parts.get("magnitude"), main.get("lora_up.weight"))
        made.append(
            Adapter(
                target=f"{address.layer}.weight",
                kind=kind,
                tensors=main,
                rank=rank,
                scale=scale if rank else 1.0,
                magnitude=magnitude,
                **place,
            )
        )
    for role, suffix, kind in (
        ("diff", "weight", DIFFERENCE),
        ("diff_b", "bias", DIFFERENCE),
        ("weight", "weight", WHOLE),
        ("bias", "bias", WHOLE),
        ("scale_shift_table", "scale_shift_table", WHOLE),
    ):
        if role in parts:
            # PEFT's bias of lora_B is scaled as the factors are.
            tensor = parts[role] * scale if role == "diff_b" and main else parts[role]
            made.append(Adapter(target=f"{address.layer}.{suffix}", kind=kind, tensors={"diff": tensor}, **place))
    return made, [] if made else [(stem, f"it is incomplete: only {', '.join(parts)} is there")]


def _kind_and_rank(stem: str, main: Mapping[str, torch.Tensor]) -> tuple[str | None, int | None]:
    """What the factors make, and how long the sum between them is; ValueError where two do not belong together.

    A LoKr of two full factors has no rank.
    """
    if any(tensor.ndim < 2 for tensor in main.values()):
        raise ValueError(f"{stem} holds {list_names(main)} as something other than matrices: the file is damaged.")
    pairs = (("lora_up.weight", "lora_down.weight"), *((f"{n}_a", f"{n}_b") for n in _PRODUCTS))
    for left, right in pairs:
        if left in main and right in main:
            tucker = any(core in main for core in ("hada_t1", "lokr_t2")) and left != "lokr_w1_a"
            inner = main[left].shape[0 if tucker else 1], main[right].shape[0]
            if inner[0] != inner[1]:
                raise ValueError(f"{stem}: {left} is of rank {inner[0]}, {right} of rank {inner[1]}. It is damaged.")
    if {"lora_up.weight", "lora_down.weight"} <= set(main):
        return LORA, main["lora_down.weight"].shape[0]
    if {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= set(main) and ("hada_t1" in main) == ("hada_t2" in main):
        return LOHA, main["hada_w1_b"].shape[0]
    first = "lokr_w1" in main or {"lokr_w1_a", "lokr_w1_b"} <= set(main)
    second = "lokr_w2" in main or {"lokr_w2_a", "lokr_w2_b"} <= set(main)
    if first and second:
        inner = next((main[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in main), None)
        return LOKR, None if inner is None else inner.shape[0]
    return None, None


def _magnitude(stored: torch.Tensor | None, up: torch.Tensor | None) -> torch.Tensor | None:
    """DoRA's magnitude as (out, …) or (1, in, …); for a convolution PEFT stores (1, out, 1, 1)."""
    if stored is not None and up is not None and stored.ndim == up.ndim == 4 and stored.shape[1] == up.shape[0]:
        return stored.transpose(0, 1)
    return stored
