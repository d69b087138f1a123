"""Which T5 made a caption: enough to refuse another encoder, and to know the same one in any type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .gguf_state import GgufState
from .layout import RELATIVE_BIAS

if TYPE_CHECKING:
    from .encoder import T5File

SIGNS = 256
"""Weights whose signs are kept."""

AGREEMENT = 0.75
"""Share of equal signs from which on two encoders count as one.

Unrelated weights agree in half of the signs, give or take 3% (one standard deviation of 256 coins). Rounding keeps
a sign unless it rounds to an unsigned zero, as the 4-bit types of GGUF do with about one weight in ten.
"""

CHECKPOINT_PREFIX = "pixart."
"""Before the same keys in a checkpoint's metadata, where they name the encoder it was trained with."""

_IDENTITY = re.compile(r"[\x20-\x7e]{1,128}")
_SIGNS = re.compile(rf"[0-9a-f]{{{SIGNS // 4}}}")
_CONFIG_LENGTH = 1000


@dataclass(frozen=True)
class T5Mark:
    """Names one T5 encoder.

    identity: ``T5File.identity``, equal only for the same weights in the same type.
    signs: of ``SIGNS`` weights spread over the blocks, in hexadecimal; they outlast conversion to fp16, bf16, fp8 and
        GGUF. "" where the weights are packed in a way that does not show them.
    config: the encoder's shape, for people.
    """

    identity: str
    signs: str = ""
    config: str = ""

    def metadata(self, prefix: str = "") -> dict[str, str]:
        """As text for a safetensors header; ``from_metadata`` reads it back."""
        named = {"t5_identity": self.identity, "t5_signs": self.signs, "t5_config": self.config}
        return {prefix + key: value for key, value in named.items() if value}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], prefix: str = "") -> T5Mark | None:
        """None where no identity is named. Raises ValueError for one that is not what ``metadata`` writes."""
        identity, signs, config = (metadata.get(prefix + key, "") for key in ("t5_identity", "t5_signs", "t5_config"))
        if not identity:
            return None
        if not _IDENTITY.fullmatch(identity):
            raise ValueError(f"{prefix}t5_identity is {identity[:40]!r}…, not up to 128 plain characters.")
        if signs and not _SIGNS.fullmatch(signs):
            raise ValueError(f"{prefix}t5_signs is {signs[:40]!r}…, not {SIGNS // 4} hexadecimal digits.")
        if len(config) > _CONFIG_LENGTH:
            raise ValueError(f"{prefix}t5_config has {len(config)} characters, more than {_CONFIG_LENGTH}.")
        return cls(identity, signs, config)

    def __str__(self) -> str:
        return f"{self.identity} ({self.config})" if self.config else self.identity


def mark_t5(file: T5File) -> T5Mark:
    """The mark of an opened T5 file; reads a page of some tensors, not the weights."""
    return T5Mark(file.identity, _signs(file.state_dict, file.config.shapes()), str(file.config))


def agreement(first: T5Mark, second: T5Mark) -> float | None:
    """Share of equal signs, 0 to 1; None where one of them has none."""
    if not first.signs or not second.signs:
        return None
    different = (int(first.signs, 16) ^ int(second.signs, 16)).bit_count()
    return 1 - different / SIGNS


def may_be_same(expected: T5Mark, found: T5Mark) -> bool:
    """Whether captions of ``found`` may go where those of ``expected`` belong.

    One identity is one encoder. Otherwise the signs decide; an expectation that names only an identity is taken at its
    word, and captions whose encoder left no signs get the benefit of the doubt, as their width was checked.
    """
    if expected.identity == found.identity:
        return True
    share = agreement(expected, found)
    return bool(expected.signs) if share is None else share >= AGREEMENT


def expected_t5(metadata: Mapping[str, str], path: str | Path) -> T5Mark | None:
    """The encoder that a checkpoint's metadata names; None where it names none, as released checkpoints do.

    Raises ValueError, naming the file, for a name that is damaged.
    """
    try:
        return T5Mark.from_metadata(metadata, CHECKPOINT_PREFIX)
    except ValueError as error:
        raise ValueError(f"{path}: The safetensors metadata is damaged: {error} Download the file again.") from error


def check_t5(expected: T5Mark | None, provenance: Mapping[str, Any] | None, checkpoint: str) -> None:
    """Refuse a caption whose provenance names another encoder than ``checkpoint`` was trained with.

    Nothing is refused where either is unknown. Raises ValueError that names both encoders.
    """
    found = mark_in(provenance)
    if expected is None or found is None or may_be_same(expected, found):
        return
    raise ValueError(
        f"The caption was made by the T5 {found}, but {checkpoint} was trained with the T5 {expected}. Encode the "
        "prompt with the T5 that came with the checkpoint (PixArtLoadT5, or --t5), and save its caption anew."
    )


def provenance(prompt: str | None, tokens: int, mark: T5Mark | None) -> dict[str, Any]:
    """What a caption carries with it through a graph: plain values alone, so that any tool can copy and print it.

    prompt: None where it is not known.
    """
    named = {"t5": mark.identity, "t5_signs": mark.signs, "t5_config": mark.config} if mark else {}
    return {"prompt": prompt, "tokens": tokens, **named}


def mark_in(carried: Any) -> T5Mark | None:
    """The mark in a dict of ``provenance``; None where there is none to be read."""
    if not isinstance(carried, Mapping) or not isinstance(carried.get("t5"), str):
        return None
    metadata = {"t5_identity": carried["t5"]}
    metadata |= {key: carried[key] for key in ("t5_signs", "t5_config") if isinstance(carried.get(key), str)}
    return T5Mark.from_metadata(metadata)


def _signs(state: Mapping[str, torch.Tensor], names: Mapping[str, tuple[int, ...]]) -> str:
    """Signs of the first weights of the blocks' matrices, as many of each as ``SIGNS`` needs."""
    matrices = [name for name, shape in names.items() if name.startswith("encoder.block.") and len(shape) == 2]
    matrices = sorted(name for name in matrices if not name.endswith(RELATIVE_BIAS))
    each = -(-SIGNS // len(matrices))
    heads = []
    for name in matrices:
        head = state.head(name) if isinstance(state, GgufState) else state[name]
        head = head.reshape(-1)[:each]
        if not head.is_floating_point() or len(head) < each:
            return ""
        heads.append(head.float())
    negative = torch.signbit(torch.cat(heads)[:SIGNS]).tolist()
    return f"{int(''.join('01'[bit] for bit in negative), 2):0{SIGNS // 4}x}"
