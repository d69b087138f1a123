"""Training KV compression into a checkpoint that has none: see ``graft`` for what is put in."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..checkpoint import Checkpoint, load_transformer
from ..transformer import PixArtTransformer
from .graft import graft
from .trainer import Trainer
from .writing import full_checkpoint


class CompressionTrainer(Trainer):
    """A ``Trainer`` for settings whose method is "compression".

    Learned are the self-attentions of the compressed blocks, new layers included; all else stays as it is. Pictures
    should be of the size that the compression is for, of any content: what the model draws is not to change.

    Raises ValueError as ``graft`` and ``Trainer`` do.
    """

    def build(self, base: Checkpoint) -> PixArtTransformer:
        settings, depth = self.settings, base.config.depth
        first = depth // 2 if settings.kv_first_block < 0 else settings.kv_first_block
        last = depth - 1 if settings.kv_last_block < 0 else settings.kv_last_block
        dense = load_transformer(base, dtype=torch.float32)
        self.transformer = graft(dense, settings.kv_ratio, first, last).requires_grad_(False)
        for block in self.transformer.blocks[first : last + 1]:
            block.attn.requires_grad_(True)
        return self.transformer

    def content(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """An ordinary checkpoint in the original layout, its compressed blocks with their ``attn.sr`` layers."""
        state = self.transformer.state_dict() | self.values()
        grafted = replace(self.base, config=self.transformer.config)
        return full_checkpoint({name: t.cpu() for name, t in state.items()}, grafted, self.save_dtype)
