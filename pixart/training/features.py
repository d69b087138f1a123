"""Pictures and captions as the transformer sees them, computed once before it trains."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import written
from .pictures import Example, fit

EncodeText = Callable[[str], torch.Tensor]
"""A caption → T5 features (L, C)."""

EncodePicture = Callable[[torch.Tensor], torch.Tensor]
"""A picture (3, H, W) in [0, 1] → latents (C, H / 8, W / 8) at the transformer's scale."""

IDENTITY = "pixart_features"


@dataclass(frozen=True)
class Features:
    """latents: one (C, h, w) for each example; captions: T5 features (L, C) of every different text.

    caption_of: the index in ``captions`` of each example; prior: which examples show the class.
    null: index of the empty text. previews: indices of the texts that are drawn while training.
    hints: latents of the examples' control pictures, where a ControlNet is trained.
    """

    latents: tuple[torch.Tensor, ...]
    captions: tuple[torch.Tensor, ...]
    caption_of: tuple[int, ...]
    prior: tuple[bool, ...]
    null: int
    previews: tuple[int, ...]
    hints: tuple[torch.Tensor, ...] = ()

    def indices(self, prior: bool) -> list[int]:
        """The examples of the concept, or those of the class."""
        return [index for index, is_prior in enumerate(self.prior) if is_prior == prior]


def texts_of(examples: Sequence[Example], previews: Sequence[str]) -> list[str]:
    """Every different text: the empty one first, then captions and previews in their order."""
    return list(dict.fromkeys(["", *(example.caption for example in examples), *previews]))


def compute(
    examples: Sequence[Example],
    encode_text: Callable[[], EncodeText],
    encode_picture: EncodePicture,
    resolution: int,
    previews: Sequence[str] = (),
) -> Features:
    """Encode all texts, let the text encoder go, then encode all pictures in their aspect-ratio bins.

    encode_text: makes the encoder; nothing here holds it, nor what it was made from, once the texts are encoded.
    """
    texts = texts_of(examples, previews)
    captions = encode_all(encode_text(), texts)
    gc.collect()
    pictures, hints = [example.picture for example in examples], hints_of(examples)
    latents, hints = ([encode_picture(fit(p, resolution)).float().cpu() for p in some] for some in (pictures, hints))
    return assemble(examples, previews, captions, latents, hints)


def hints_of(examples: Sequence[Example]) -> list[torch.Tensor]:
    return [example.hint for example in examples if example.hint is not None]


def encode_all(encode: EncodeText, texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
    return tuple(encode(text).float().cpu() for text in texts)


def assemble(examples, previews, captions, latents, hints) -> Features:
    texts = texts_of(examples, previews)
    return Features(
        latents=tuple(latents),
        captions=tuple(captions),
        caption_of=tuple(texts.index(example.caption) for example in examples),
        prior=tuple(example.prior for example in examples),
        null=texts.index(""),
        previews=tuple(texts.index(text) for text in previews),
        hints=tuple(hints),
    )


def save(features: Features, path: Path, identity: str) -> None:
    """Write them as safetensors, whole or not at all."""
    tensors = {f"latent.{i}": t.contiguous() for i, t in enumerate(features.latents)}
    tensors |= {f"caption.{i}": t.contiguous() for i, t in enumerate(features.captions)}
    tensors |= {f"hint.{i}": t.contiguous() for i, t in enumerate(features.hints)}
    with written(path) as partial:
        save_file(tensors, partial, {IDENTITY: identity})


def load(path: Path, identity: str, examples: Sequence[Example], previews: Sequence[str]) -> Features | None:
    """What ``save`` wrote for the same pictures, texts and encoders; None where it is of others or not there."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(IDENTITY) != identity:
                return None
            captions = [file.get_tensor(f"caption.{i}") for i in range(len(texts_of(examples, previews)))]
            latents = [file.get_tensor(f"latent.{i}") for i in range(len(examples))]
            hints = [file.get_tensor(f"hint.{i}") for i in range(len(hints_of(examples)))]
    except SafetensorError:
        return None  # cut short by a kill; it is computed anew
    return assemble(examples, previews, captions, latents, hints)
