"""A T5 v1.1 encoder on disk: one file or a folder, opened without a host."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from ..checkpoint.files import is_index, read_weights, shard_note
from .foreign import REMEDY
from .gguf_state import MAGIC, GgufState, read_gguf
from .layout import TOKENIZER, T5Config, detect_t5, encoder_names
from .tokens import JsonTokenizer, SentencePieceTokenizer, check_size, read_bytes
from .transformers_t5 import load_transformers_t5

__all__ = ["T5Config", "T5File", "detect_t5", "load_transformers_t5", "open_t5"]

_FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "model.safetensors.index.fp16.json",
    "model.fp16.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "pytorch_model.fp16.bin",
)
_HEAD = 4096


@dataclass(frozen=True, eq=False)
class T5File:
    """A T5 v1.1 encoder as it lies on disk; tensors are read when they are used.

    state_dict: Hugging Face names, in the file's own types; scaled fp8 weights keep their companions. From GGUF,
        every access dequantises to fp16.
    tokenizer: a serialised sentencepiece model, from the tensor ``spiece_model`` or from ``spiece.model``.
    tokenizer_json: the content of ``tokenizer.json``, for folders that have only that.
    evidence: what was found, in sentences, for people.
    identity: short and stable for the same weights in the same type; captions made by another encoder differ.
    """

    path: Path
    config: T5Config
    state_dict: Mapping[str, torch.Tensor]
    tokenizer: bytes | None
    metadata: Mapping[str, str]
    evidence: tuple[str, ...]
    identity: str
    tokenizer_json: bytes | None = None

    def make_tokenizer(self) -> SentencePieceTokenizer | JsonTokenizer:
        """The tokenizer that came with the encoder. Raises ValueError when none did."""
        if self.tokenizer is not None:
            return SentencePieceTokenizer(self.tokenizer)
        if self.tokenizer_json is not None:
            return JsonTokenizer(self.tokenizer_json)
        raise ValueError(
            f"{self.path} brings no tokenizer. Choose a folder that has spiece.model or tokenizer.json beside the "
            "weights, or name the tokenizer's folder."
        )


def open_t5(path: str | Path) -> T5File:
    """Open a T5 v1.1 encoder without reading its weights.

    path: a .safetensors, .gguf, .bin or .pth file, a shard index, a Hugging Face folder, or the folder of a
    diffusers pipeline with ``text_encoder/`` below it. A decoder in the same file is left out.
    Raises FileNotFoundError for a path that does not exist, and ValueError that names the file, what was found
    in it and what to choose instead.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return _open(path)
    except ValueError as error:
        note = shard_note(path)
        raise ValueError(f"{path}: {error}" + (f" {note}" if note else "")) from error


def _open(path: Path) -> T5File:
    file = _find_in_folder(path) if path.is_dir() else path
    tensors, metadata, notes = _read(file)
    proto = next((tensors[name] for name in tensors if name.rpartition(".")[2] == TOKENIZER), None)
    if isinstance(tensors, GgufState):
        config = detect_t5({name: tensors.shape(name) for name in tensors})
        state: Mapping[str, torch.Tensor] = tensors
    else:
        config = detect_t5({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        state = {name: tensors[stored] for name, stored in encoder_names(tensors).items()}
    beside = _tokenizer_files(path, file)
    inside = None if proto is None else _proto(proto)
    evidence = (
        f"T5 v1.1 encoder from {file.name}: {config}.",
        f"Weights: {_types(state)}.",
        f"Tokenizer: {_tokenizer_source(inside, beside)}.",
        *notes,
    )
    return T5File(
        path=path,
        config=config,
        state_dict=state,
        tokenizer=inside or beside.get("spiece.model"),
        metadata=MappingProxyType(dict(metadata)),
        evidence=evidence,
        identity=_identity(config, state),
        tokenizer_json=beside.get("tokenizer.json"),
    )


def _proto(tensor: torch.Tensor) -> bytes:
    """The tokenizer that a file holds as a tensor of bytes."""
    if tensor.dtype not in (torch.uint8, torch.int8) or tensor.ndim != 1:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{TOKENIZER} has shape {list(tensor.shape)} of {kind}, not a row of bytes. {REMEDY}")
    check_size(tensor.numel())
    return tensor.numpy().tobytes()


def _read(file: Path) -> tuple[Mapping[str, torch.Tensor], Mapping[str, str], tuple[str, ...]]:
    with file.open("rb") as stream:
        magic = stream.read(len(MAGIC))
    if magic == MAGIC:
        return *read_gguf(file), ()
    weights = read_weights(file)
    return weights.tensors, weights.metadata, weights.notes


def _find_in_folder(path: Path) -> Path:
    folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.iterdir())
    weights = [file for file in files if file.suffix in (".safetensors", ".gguf", ".bin")]
    for some in (weights, [file for file in files if is_index(file.name)]):
        if len(some) == 1:
            return some[0]
    found = ", ".join(file.name for file in weights[:4]) or "no file of weights"
    raise ValueError(
        f"In {folder.name} there should be {_FOLDER_FILES[1]}, {_FOLDER_FILES[0]} or pytorch_model.bin, but there is "
        f"{found}. Choose one file, or download the folder with its index."
    )


def _tokenizer_files(path: Path, file: Path) -> dict[str, bytes]:
    """Tokenizer files that belong to the weights; those beside a lone file in a models folder may be another's."""
    if not path.is_dir() and not (file.parent / "config.json").is_file():
        return {}
    found: dict[str, bytes] = {}
    for folder in (file.parent, file.parent / "tokenizer", file.parent.parent / "tokenizer"):
        for name in ("spiece.model", "tokenizer.json"):
            if name not in found and (folder / name).is_file():
                found[name] = read_bytes(folder / name)
    return found


def _tokenizer_source(inside: bytes | None, beside: Mapping[str, bytes]) -> str:
    if inside is not None:
        return "sentencepiece model within the file"
    return " and ".join(beside) or "none came with the weights"


def _types(state: Mapping[str, torch.Tensor]) -> str:
    if isinstance(state, GgufState):
        return "GGUF, dequantised to float16 when used"
    counts: dict[str, int] = {}
    for tensor in state.values():
        name = str(tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} tensors {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _identity(config: T5Config, state: Mapping[str, torch.Tensor]) -> str:
    """A hash over the shape and the first numbers of every tensor: a page of each, not gigabytes."""
    digest = hashlib.sha256(str(config).encode())
    for name in sorted(state):
        head = state.head(name) if isinstance(state, GgufState) else state[name].reshape(-1)[:_HEAD]
        digest.update(name.encode())
        digest.update(head.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
