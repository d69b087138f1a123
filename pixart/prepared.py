"""What the transformer and its ControlNets need not compute twice in one sampling run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from .workspace import Workspace

PREPARED = "pixart_caption"
"""Where ``transformer_options`` holds a ``PreparedCaption``."""

Span = tuple[int, int, int]
"""First row, row after the last, and the number of tokens that each of these captions has."""

MOST_SPANS = 4
LEAST_PADDING = 32
"""Tokens of padding in the mean caption below which one call with a mask is quicker than several without."""


@dataclass(frozen=True, eq=False)
class PreparedCaption:
    """A batch of captions, projected, with the keys and values of every block's cross-attention.

    source: the T5 features (B, L, C) that this was made from, the very tensor: a caption that was changed on its way
        to the transformer is another tensor, and is not mistaken for this one.
    embedding: (B, L', D); L' is the longest caption's length, so that what is padding in all of them is left out.
    different: (U, L', D), the embeddings of the U different captions of the batch.
    keys_values: of each block, (U, L', 2D).
    rows: which of the U captions each row of the batch has, (B,); None where U is B.
    bias: from ``caption_bias``; None where every token of every caption counts.
    spans: from ``spans``; None where the bias is the better way.
    """

    source: torch.Tensor
    embedding: torch.Tensor
    different: torch.Tensor
    keys_values: tuple[torch.Tensor, ...]
    rows: torch.Tensor | None
    bias: torch.Tensor | None
    spans: tuple[Span, ...] | None = None

    def for_block(self, index: int) -> torch.Tensor:
        """Keys and values (B, L', 2D) of one block."""
        known = self.keys_values[index]
        return known if self.rows is None else known.index_select(0, self.rows)

    def of_blocks(self, blocks: Iterable) -> PreparedCaption:
        """The same captions for other blocks that are given this embedding: a ControlNet's copies."""
        return replace(self, keys_values=tuple(block.cross_attn.kv_linear(self.different) for block in blocks))


class FirstBlock:
    """What the base's block 0 made of its input, for whoever asks at the same step: ControlNets, then the base."""

    def __init__(self):
        self.given: tuple | None = None
        self.output: torch.Tensor | None = None

    def __bool__(self) -> bool:
        return self.output is not None

    def keep(self, tokens: torch.Tensor, t0: torch.Tensor, prepared: PreparedCaption, wishes: tuple, output) -> None:
        """wishes: what else decides over the output, compared by identity."""
        self.given, self.output = (tokens, t0, prepared, wishes), output

    def find(self, tokens: torch.Tensor, t0: torch.Tensor, prepared: PreparedCaption | None, wishes: tuple):
        """The output, or None where anything that it was made of is another. Waits for the device."""
        if self.given is None or prepared is not self.given[2]:
            return None
        known_tokens, known_t0, _, known_wishes = self.given
        alike = all(a is b for a, b in zip(known_wishes, wishes, strict=True))
        return self.output if alike and same(known_t0, t0) and same(known_tokens, tokens) else None

    def forget(self) -> None:
        self.given = self.output = None


def longest(mask: torch.Tensor | None, length: int) -> int:
    """The number of tokens up to the last one that counts in any caption; at least 1. Waits for the device."""
    if mask is None:
        return length
    counts = (mask != 0).any(dim=0).nonzero()
    return int(counts[-1]) + 1 if len(counts) else 1


def spans(mask: torch.Tensor) -> tuple[Span, ...] | None:
    """Neighbouring captions of one length, so that each attends to its own tokens alone; for a mask (B, L).

    None where that does not pay, or where tokens are left out in the midst of a caption. Waits for the device.
    """
    keep = (mask != 0).cpu()
    lengths = keep.sum(dim=1).tolist()
    batch, longest = keep.shape
    if min(lengths) == 0 or batch * longest - sum(lengths) < LEAST_PADDING * batch:
        return None
    if any(not bool(row[:length].all()) for row, length in zip(keep, lengths, strict=True)):
        return None
    starts = [row for row in range(batch) if row == 0 or lengths[row] != lengths[row - 1]]
    if len(starts) > MOST_SPANS:
        return None
    return tuple((start, end, lengths[start]) for start, end in zip(starts, [*starts[1:], batch], strict=True))


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

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.known: list[tuple[object, torch.Tensor, torch.Tensor | None, PreparedCaption]] = []
        self.copies: list[tuple[object, PreparedCaption, PreparedCaption]] = []
        self.grids: dict = {}
        self.first = FirstBlock()

    def caption(self, transformer, caption: torch.Tensor, mask: torch.Tensor | None, dtype, weights) -> PreparedCaption:
        """``transformer.prepare_caption`` of (B, L, C) in ``dtype``, done before or done now. Waits for the device."""
        for known, raw, raw_mask, prepared in self.known:
            if known == weights and same(raw, caption) and same(raw_mask, mask):
                return prepared
        prepared = transformer.prepare_caption(caption.to(dtype), mask)
        self.known = [*self.known[1 - self.most :], (weights, caption, mask, prepared)]
        return prepared

    def for_copies(self, blocks: Iterable, prepared: PreparedCaption, weights) -> PreparedCaption:
        """``prepared.of_blocks``, done before or done now; weights: changes when those blocks' layers do."""
        for known, source, made in self.copies:
            if source is prepared and known == weights:
                return made
        made = prepared.of_blocks(blocks)
        self.copies = [*self.copies[1 - self.most :], (weights, prepared, made)]
        return made


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether two tensors are alike in place, type, shape and every number."""
    if a is None or b is None:
        return a is b
    return a is b or (a.device == b.device and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
