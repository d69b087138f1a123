"""Encoded captions as files, so that T5 has to run only once and is not needed to draw.

One safetensors file a caption. Tensors: ``embedding`` (L, C) in fp32, fp16 or bf16, and where some tokens are
padding ``mask`` (L,), 1 at real tokens. Metadata: ``format``, ``version``, ``tokens``, ``dtype``, and where they are
known ``prompt``, the encoder (``T5Mark.metadata``) and ``values``, plain numbers as a JSON object.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..checkpoint.files import read_weights
from ..checkpoint.sniff import SAFETENSORS, sniff
from ..files import written
from .provenance import T5Mark, provenance

FORMAT = "pixart-caption"
VERSION = "1"

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

MAX_TOKENS = 4096
MAX_CHANNELS = 16384
MAX_PROMPT = 100_000  # characters
MAX_VALUES = 64
MAX_NUMBER = 2**31 - 1

_MAX_HEADER = 4 * 2**20  # bytes; a prompt of MAX_PROMPT characters takes up to 12 each when escaped
_MAX_FILE = 8 + _MAX_HEADER + 4 * MAX_TOKENS * (MAX_CHANNELS + 2)
_MAX_VALUES_TEXT = 16_384  # characters
_VALUE_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_REMEDY = "Encode the prompt again and save it anew (PixArtSaveCaption, or python -m pixart.text)."

OBJECTS = frozenset(
    {
        "pooled_output", "cross_attn", "attention_mask", "pixart_caption", "model_conds", "uuid", "hooks", "control",
        "control_apply_to_uncond", "area", "mask", "set_area_to_bounds", "default", "gligen", "noise",
        "concat_latent_image", "concat_mask", "reference_latents", "unclip_conditioning", "device",
    }
)  # fmt: skip
"""Names under which samplers expect something other than a number; a file may not put a number there."""


@dataclass(frozen=True, eq=False)
class Caption:
    """One encoded prompt.

    embedding: (L, C); mask: (L,), 1 at real tokens, None where all are.
    prompt: what was encoded, whole even where it was cut to the token budget; None when it is not known.
    t5: the encoder; None when it is not known. values: numbers that travel with it, such as width and height.
    """

    embedding: torch.Tensor
    mask: torch.Tensor | None = None
    prompt: str | None = None
    t5: T5Mark | None = None
    values: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return int(self.embedding.shape[0] if self.mask is None else self.mask.sum())

    def full_mask(self) -> torch.Tensor:
        """(L,), 1 at real tokens."""
        return torch.ones(self.embedding.shape[0], dtype=torch.int64) if self.mask is None else self.mask

    def provenance(self) -> dict[str, Any]:
        """What goes with the caption through a graph."""
        return provenance(self.prompt, self.tokens, self.t5)


def save_caption(caption: Caption, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a caption file; under its final name there is never half a file.

    dtype: float32, float16 or bfloat16; None keeps the caption's own where it is one of them, else takes float32.
    A prompt longer than ``MAX_PROMPT`` is recorded up to there. Raises ValueError when the caption is none that
    ``load_caption`` would read, such as one that overflows in float16, and when the disk is full.
    """
    path = Path(path)
    own = caption.embedding.dtype
    kept = dtype or (own if own in DTYPES.values() else torch.float32)
    tensors = {"embedding": caption.embedding.detach().to("cpu", kept).contiguous()}
    if caption.mask is not None:
        tensors["mask"] = caption.mask.detach().to("cpu").contiguous()
    try:
        check_tensors(tensors)
        check_values(caption.values)
    except ValueError as error:
        hint = " Save it in fp32 or bf16." if kept == torch.float16 and own != kept else ""
        raise ValueError(f"The caption cannot be saved as {path.name}: {error}{hint}") from error
    if "mask" in tensors:
        tensors["mask"] = tensors["mask"].to(torch.uint8)
    data = save(tensors, metadata=metadata_of(caption, kept))
    with written(path) as partial:
        partial.write_bytes(data)
    return path


def metadata_of(caption: Caption, dtype: torch.dtype) -> dict[str, str]:
    """The header's text."""
    name = next(name for name, known in DTYPES.items() if known == dtype)
    metadata = {"format": FORMAT, "version": VERSION, "tokens": str(caption.tokens), "dtype": name}
    if caption.prompt is not None:
        # Half of a surrogate pair, as broken JSON can hold it, has no UTF-8.
        metadata["prompt"] = caption.prompt[:MAX_PROMPT].encode("utf-8", "replace").decode()
    if caption.t5 is not None:
        metadata |= caption.t5.metadata()
    if caption.values:
        metadata["values"] = json.dumps(dict(caption.values), sort_keys=True)
    return metadata


def load_caption(path: str | Path) -> Caption:
    """Read a caption file, which may come from a stranger: sizes, types, numbers and text are checked.

    The tensors are copies, so the file may be overwritten. Raises FileNotFoundError for a missing path and
    ValueError that names the file, what was found and what to do.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return _load(path)
    except OSError as error:
        raise ValueError(f"{path}: The file cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_caption_file(path: str | Path) -> bool:
    """Whether a file says in its header that it is a caption; reads no more than that."""
    try:
        with open(path, "rb") as file:
            header = file.read(_header_length(Path(path)))
    except (OSError, ValueError):
        return False
    return f'"{FORMAT}"'.encode() in header


def check_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError for tensors that are no caption: other names, types, shapes or numbers."""
    embedding, mask = tensors.get("embedding"), tensors.get("mask")
    if embedding is None or set(tensors) - {"embedding", "mask"}:
        names = ", ".join(sorted(tensors)[:4]) or "none"
        raise ValueError(f"A caption has the tensors embedding and, at most, mask; found were {names[:200]}.")
    if embedding.dtype not in DTYPES.values():
        raise ValueError(f"embedding is stored as {_type(embedding)}, not as float32, float16 or bfloat16.")
    shape = list(embedding.shape)
    if embedding.ndim != 2 or not 1 <= shape[0] <= MAX_TOKENS or not 1 <= shape[1] <= MAX_CHANNELS:
        raise ValueError(
            f"embedding has shape {shape}, not tokens × channels with at most {MAX_TOKENS} × {MAX_CHANNELS}."
        )
    if not embedding.isfinite().all():
        raise ValueError("embedding holds NaN or infinity: its T5 overflowed, or the file is damaged.")
    if mask is None:
        return
    if list(mask.shape) != shape[:1]:
        raise ValueError(f"mask has shape {list(mask.shape)} beside an embedding of {shape[0]} tokens.")
    if mask.is_complex() or not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask holds other numbers than 0 and 1.")
    if not mask.any():
        raise ValueError("mask leaves no token of the caption.")


def check_values(values: Mapping[str, int | float]) -> None:
    """Raises ValueError for values that are no plain numbers, or that stand where a sampler expects an object."""
    if len(values) > MAX_VALUES:
        raise ValueError(f"There are {len(values)} values beside the caption, more than {MAX_VALUES}.")
    for name, value in values.items():
        if not is_value_name(name):
            raise ValueError(f"A value is named {str(name)[:80]!r}, which is no name for a plain number.")
        if not is_number(value):
            raise ValueError(f"The value {name} is {str(value)[:40]!r}, not a finite number up to {MAX_NUMBER}.")


def is_value_name(name: object) -> bool:
    """Whether a number may go under this name."""
    return isinstance(name, str) and bool(_VALUE_NAME.fullmatch(name)) and name not in OBJECTS


def is_number(value: object) -> bool:
    """Whether a value is plain and finite enough to be kept; truth values are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) <= MAX_NUMBER


def _load(path: Path) -> Caption:
    if not path.is_file():
        raise ValueError("This is no file. Choose one caption file.")
    size = path.stat().st_size
    if size > _MAX_FILE:
        raise ValueError(f"The file has {size} bytes, more than any caption ({_MAX_FILE}). Choose a caption file.")
    if sniff(path) != SAFETENSORS:
        raise ValueError(f"This is no safetensors file, as captions are. {_REMEDY}")
    _header_length(path)
    weights = read_weights(path)
    metadata = weights.metadata
    if metadata.get("format") != FORMAT:
        held = ", ".join(sorted(weights.tensors)[:3])[:200] or "no tensors"
        raise ValueError(f"This safetensors file is no caption, but holds {held}. Choose a caption file.")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"The caption has format version {metadata.get('version', 'none')[:20]!r}; read is {VERSION!r}. "
            "Update this node pack, or encode the prompt again."
        )
    try:
        check_tensors(weights.tensors)
        return _assemble(weights.tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{error} {_REMEDY}") from error


def _assemble(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Caption:
    prompt = metadata.get("prompt")
    if prompt is not None and len(prompt) > MAX_PROMPT:
        raise ValueError(f"The recorded prompt has {len(prompt)} characters, more than {MAX_PROMPT}.")
    mask = tensors.get("mask")
    caption = Caption(
        embedding=tensors["embedding"].clone(),
        mask=None if mask is None else mask.to(torch.int64, copy=True),
        prompt=prompt,
        t5=T5Mark.from_metadata(metadata),
        values=_read_values(metadata.get("values", "{}")),
    )
    if metadata.get("tokens") != str(caption.tokens):
        stated = metadata.get("tokens", "no")[:20]
        raise ValueError(f"The header speaks of {stated} tokens, but there are {caption.tokens}.")
    if DTYPES.get(metadata.get("dtype", "")) != caption.embedding.dtype:
        stated = metadata.get("dtype", "no type")[:20]
        raise ValueError(f"The header speaks of {stated}, but embedding is stored as {_type(caption.embedding)}.")
    return caption


def _read_values(text: str) -> dict[str, int | float]:
    if len(text) > _MAX_VALUES_TEXT:
        raise ValueError(f"The values beside the caption take {len(text)} characters, more than {_MAX_VALUES_TEXT}.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The values beside the caption are not valid JSON ({str(error)[:80]}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"The values beside the caption are a JSON {type(values).__name__}, not an object.")
    check_values(values)
    return values


def _header_length(path: Path) -> int:
    """Bytes up to the end of a safetensors header; ValueError when it is larger than a caption's can be."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"The header should be {length} bytes long; a caption's has at most {_MAX_HEADER}.")
    return 8 + length


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
