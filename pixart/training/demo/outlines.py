"""Goes on with the demo's transformer until its outlines are right.

The first stage ends with backgrounds, colours and places that follow the caption, and blobs for shapes. This one starts
from its average, sees the native size almost only, and lets the learning rate fall over half of its steps: most of
what an outline gains it gains there.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ...transformer import PixArtTransformer
from .diffusion import CONFIG, LARGE, NATIVE, WIDE, DiffusionTask, Phase, average_of
from .run import Resumable

OUTLINE_PHASE = Phase(4000, ((0.8, (NATIVE,)), (0.08, WIDE), (0.12, LARGE)), 2048, layout=0.5)
LEARNING_RATE = 6e-4


class OutlineTask(DiffusionTask):
    name = "outlines"

    def first_model(self) -> PixArtTransformer:
        model = PixArtTransformer(CONFIG)
        model.load_state_dict(average_of(torch.load(self.out / "diffusion.state.pt", weights_only=True)))
        return model

    def phase(self, index: int) -> Phase:
        return OUTLINE_PHASE

    def learning_rate_factor(self, index: int) -> float:
        """Warm up over 100 steps, hold, and come down along a cosine over the second half."""
        tail = max(0.0, 2 * index / self.steps - 1)
        return min(1.0, (index + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(tail, 1.0))))


def train(out: Path, seed: int, steps: int) -> None:
    """Train, or go on training; needs the finished diffusion stage in ``out``."""
    task = OutlineTask(out, seed, steps, learning_rate=LEARNING_RATE)
    Resumable(task, out / "outlines.state.pt").run(steps, save_every=250, after_save=task.preview)
