"""T5 encoders in GGUF files, dequantised one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from .foreign import REMEDY
from .gguf_header import check_header
from .layout import EMBEDDING, FINAL_NORM, RELATIVE_BIAS

MAGIC = b"GGUF"

_TOP = {"token_embd.weight": EMBEDDING, "enc.output_norm.weight": FINAL_NORM}
_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)\.weight")
_BLOCK_NAMES = {
    "attn_q": "layer.0.SelfAttention.q.weight",
    "attn_k": "layer.0.SelfAttention.k.weight",
    "attn_v": "layer.0.SelfAttention.v.weight",
    "attn_o": "layer.0.SelfAttention.o.weight",
    "attn_norm": "layer.0.layer_norm.weight",
    "attn_rel_b": RELATIVE_BIAS,
    "ffn_gate": "layer.1.DenseReluDense.wi_0.weight",
    "ffn_up": "layer.1.DenseReluDense.wi_1.weight",
    "ffn_down": "layer.1.DenseReluDense.wo.weight",
    "ffn_norm": "layer.1.layer_norm.weight",
}


class GgufState(Mapping[str, torch.Tensor]):
    """A GGUF file's encoder under Hugging Face names; every access reads and dequantises one tensor to fp16.

    Nothing is kept, so only the file's own pages and the tensors in use are in memory.
    """

    def __init__(self, tensors: Mapping[str, object]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._dequantise(name, slice(None)).reshape(self.shape(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """GGUF lists dimensions innermost first."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def head(self, name: str) -> torch.Tensor:
        """The tensor's first row alone."""
        return self._dequantise(name, slice(1))

    def _dequantise(self, name: str, rows: slice) -> torch.Tensor:
        from gguf import quants

        tensor = self._tensors[name]
        data = tensor.data if tensor.data.ndim > 1 else tensor.data[None]
        try:
            values = quants.dequantize(data[rows], tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{name} is stored as {tensor.tensor_type.name}, which the installed gguf package cannot read. "
                "Update it with 'pip install -U gguf', or choose a Q8_0 file."
            ) from error
        return torch.from_numpy(values.astype(np.float16))  # a copy: the file's own pages are read-only


def read_gguf(path: Path) -> tuple[GgufState, dict[str, str]]:
    """The encoder of a T5 GGUF file, and what the file says of itself.

    Raises ValueError when gguf is not installed, the file is damaged, or it is another model.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(
            "Reading a GGUF file needs the Python package gguf. Install it with 'pip install gguf', or choose a "
            ".safetensors file."
        ) from error
    check_header(path)
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, OSError) as error:
        raise ValueError(f"The GGUF file is damaged or cut short ({error}). Download it again.") from error
    architecture = _text(reader, "general.architecture")
    if architecture not in ("t5", "t5encoder"):
        raise ValueError(f"This is a GGUF file of the architecture {architecture or 'unknown'!r}, not t5. {REMEDY}")
    tensors = {name: tensor for tensor in reader.tensors if (name := _hugging_face_name(tensor.name))}
    metadata = {"format": "gguf", "general.architecture": architecture}
    return GgufState(tensors), metadata


def _hugging_face_name(name: str) -> str | None:
    """None for what is not the encoder's: the decoder and the head."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _TOP.get(name)
    inner = _BLOCK_NAMES.get(block[2])
    return f"encoder.block.{block[1]}.{inner}" if inner else None


def _text(reader, key: str) -> str:
    field = reader.get_field(key)
    if field is None or not field.data:
        return ""
    return bytes(field.parts[field.data[0]])[:100].decode("utf-8", "replace")
