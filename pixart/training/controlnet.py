"""Training a ControlNet: the base stays as it is, and copies of its first blocks learn to heed hints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from ..checkpoint import Checkpoint, load_transformer
from ..checkpoint.controlnet import controlnet_metadata
from .initialise_controlnet import Controlled, first_controlnet
from .trainer import Trainer

CONTROL = "control."


class ControlTrainer(Trainer):
    """A ``Trainer`` on features with hints, for settings whose method is "controlnet".

    hint: how the hints were made, kept in the file for people.

    Raises ValueError for features without a hint for each example, and what ``Trainer`` raises.
    """

    def __init__(self, base: Checkpoint, features, *args, hint: str = "", **kwargs):
        if len(features.hints) != len(features.latents):
            raise ValueError(
                f"A ControlNet learns from pairs, but there are {len(features.latents)} pictures and "
                f"{len(features.hints)} hints. Give a hint for every picture."
            )
        self.hint = hint
        super().__init__(base, features, *args, **kwargs)

    def build(self, base: Checkpoint) -> Controlled:
        settings = self.settings
        # The copies start from the file's own values, and the base is made narrow only afterwards.
        self.transformer = load_transformer(base, dtype=torch.float32)
        copies = settings.copied_blocks or max(1, (base.config.depth - 1) // 2)
        control = first_controlnet(self.transformer, copies)
        if settings.precision == "bf16":
            self.transformer.to(torch.bfloat16)
        if settings.checkpointing:
            for part in control.controlnet:  # replacements of blocks, as for the base, do not reach the copies
                part.copied_block.forward = partial(checkpoint, part.copied_block.forward, use_reentrant=False)
        return Controlled(self.transformer, control)

    def told(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        hints = [self.features.hints[index] for index in indices]
        return {"hint": torch.stack(hints).to(self.accelerator.device)}  # (B, C, h, w)

    def preview_setting(self, count: int) -> tuple[tuple[int, ...], dict[str, torch.Tensor]]:
        """Hints in turn, of those that have the first one's size."""
        shape = self.shapes[0]
        alike = [index for index, other in enumerate(self.shapes) if other == shape]
        half = [alike[row % len(alike)] for row in range(count // 2)]
        return shape, self.told(half + half)

    def preview(self) -> torch.Tensor:
        """Each picture behind the hint that it was drawn by: (2 B, C, h, w)."""
        drawn = super().preview()
        _, told = self.preview_setting(2 * len(drawn))
        return torch.stack([told["hint"][: len(drawn)], drawn], dim=1).flatten(0, 1)

    def content(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The copies alone, under the original names."""
        state = {
            name.removeprefix(CONTROL): value.to("cpu", self.save_dtype) for name, value in self.values().items()
        }
        return state, controlnet_metadata(self.base.config) | ({"pixart_hint": self.hint} if self.hint else {})
