"""Conditions that let captions of different length share one batch."""

from __future__ import annotations

import comfy.conds
import torch

from ...pixart.embeddings import pad_tokens


class PaddedCond(comfy.conds.CONDRegular):
    """A tensor (B, L, …) that joins others of another length L in one batch, padded with zeros.

    Used for the caption and, with the same lengths, for its mask, so that what is padding is known.
    """

    def can_concat(self, other) -> bool:
        mine, theirs = self.cond.shape, other.cond.shape
        same = mine[0] == theirs[0] and mine[2:] == theirs[2:]
        return same and self.cond.device == other.cond.device

    def concat(self, others) -> torch.Tensor:
        tensors = [self.cond, *(other.cond for other in others)]
        longest = max(t.shape[1] for t in tensors)
        return torch.cat([pad_tokens(t, longest) for t in tensors])
