"""What a caption gives the transformer that is the same at every step of a sampling run."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class PreparedCaption:
    """A batch of captions, projected, with the keys and values of every block's cross-attention.

    source: the T5 features (B, L, C) that this was made from, the very tensor: a caption that was changed on its way
        to the transformer is another tensor, and is not mistaken for this one.
    embedding: (B, L', D); L' is the longest caption's length, so that what is padding in all of them is left out.
    keys_values: of each block, (U, L', 2D) for the U different captions of the batch.
    rows: which of the U captions each row of the batch has, (B,); None where U is B.
    bias: from ``caption_bias``; None where every token of every caption counts.
    """

    source: torch.Tensor
    embedding: torch.Tensor
    keys_values: tuple[torch.Tensor, ...]
    rows: torch.Tensor | None
    bias: torch.Tensor | None

    def for_block(self, index: int) -> torch.Tensor:
        """Keys and values (B, L', 2D) of one block."""
        known = self.keys_values[index]
        return known if self.rows is None else known.index_select(0, self.rows)


def longest(mask: torch.Tensor | None, length: int) -> int:
    """The number of tokens up to the last one that counts in any caption; at least 1. Waits for the device."""
    if mask is None:
        return length
    counts = (mask != 0).any(dim=0).nonzero()
    return int(counts[-1]) + 1 if len(counts) else 1


def different_rows(caption: torch.Tensor) -> tuple[list[int], list[int]]:
    """(rows that stand for the different captions, for each row the number of its like among them)."""
    firsts: list[int] = []
    likes = []
    for row in range(caption.shape[0]):
        like = next((i for i, first in enumerate(firsts) if torch.equal(caption[first], caption[row])), None)
        if like is None:
            firsts.append(row)
            like = len(firsts) - 1
        likes.append(like)
    return firsts, likes


class SamplingRun:
    """Captions prepared during one sampling run, found again by what they say.

    It belongs to the run and is dropped with it. Hosts hand captions over anew at every step, in another batch when
    memory is short, and may change weights between steps, so that nothing but the tokens themselves, and ``weights``,
    a value that changes when the caption's layers do, tells whether work was done before.
    """

    most = 8
    """Batches of captions to remember: more than the parts of a picture that are usually prompted apart."""

    def __init__(self):
        self.known: list[tuple[object, torch.Tensor, torch.Tensor | None, PreparedCaption]] = []

    def caption(self, transformer, caption: torch.Tensor, mask: torch.Tensor | None, dtype, weights) -> PreparedCaption:
        """``transformer.prepare_caption`` of (B, L, C) in ``dtype``, done before or done now. Waits for the device."""
        for known, raw, raw_mask, prepared in self.known:
            if known == weights and same(raw, caption) and same(raw_mask, mask):
                return prepared
        prepared = transformer.prepare_caption(caption.to(dtype), mask)
        self.known = [*self.known[1 - self.most :], (weights, caption, mask, prepared)]
        return prepared


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether two tensors are alike in place, type, shape and every number."""
    if a is None or b is None:
        return a is b
    return a is b or (a.device == b.device and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
