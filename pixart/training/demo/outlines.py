"""Goes on with the demo's transformer until its outlines are right.

The first stage ends with backgrounds, colours and places that follow the caption, and blobs for shapes. This one starts
from its average, sees the native size almost only, and lets the learning rate fall over half of its steps: most of
what an outline gains it gains there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from ...transformer import PixArtTransformer
from .captions import Scene, random_caption, random_scene
from .diffusion import CONFIG, LARGE, NATIVE, WIDE, DiffusionTask, Phase, average_of
from .run import Resumable

SIZES = ((0.8, (NATIVE,)), (0.08, WIDE), (0.12, LARGE))
OUTLINE_PHASE = Phase(4000, SIZES, 2048, layout=0.5)
POLISH_PHASE = Phase(2000, SIZES, 2048, layout=0.6)
PRACTICE_PHASE = Phase(1500, SIZES, 2048, layout=0.6)
LEARNING_RATE, POLISH_RATE, PRACTICE_RATE = 6e-4, 4e-4, 4e-4


class OutlineTask(DiffusionTask):
    name = "outlines"
    start = "diffusion"

    def first_model(self) -> PixArtTransformer:
        model = PixArtTransformer(CONFIG)
        model.load_state_dict(average_of(torch.load(self.out / f"{self.start}.state.pt", weights_only=True)))
        return model

    def phase(self, index: int) -> Phase:
        return OUTLINE_PHASE

    def learning_rate_factor(self, index: int) -> float:
        """Warm up over 100 steps, hold, and come down along a cosine over the second half."""
        tail = max(0.0, 2 * index / self.steps - 1)
        return min(1.0, (index + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(tail, 1.0))))


class PolishTask(OutlineTask):
    """A second, shorter descent, for the outlines that are still taken for one another: small circles and squares."""

    name = "polish"
    start = "outlines"

    def phase(self, index: int) -> Phase:
        return POLISH_PHASE

    def learning_rate_factor(self, index: int) -> float:
        """Warm up over 100 steps and come down along a cosine from the start."""
        return min(1.0, (index + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * index / self.steps)))


class PracticeTask(PolishTask):
    """A third descent, for what still went wrong: every other picture is a small circle or a small star."""

    name = "practice"
    start = "polish"

    def phase(self, index: int) -> Phase:
        return PRACTICE_PHASE

    def scene_and_caption(self) -> tuple[Scene, str]:
        scene = random_scene(self.rng)
        if self.rng.random() < 0.5:
            scene = replace(scene, size="small", shape=self.rng.choice(("circle", "star")))
        return random_caption(self.rng, scene)


def train(out: Path, seed: int, steps: int) -> None:
    """Train, or go on training; needs the finished diffusion stage in ``out``."""
    task = OutlineTask(out, seed, steps, learning_rate=LEARNING_RATE)
    Resumable(task, out / "outlines.state.pt").run(steps, save_every=250, after_save=task.preview)


def polish(out: Path, seed: int, steps: int) -> None:
    """Train, or go on training; needs the finished outlines stage in ``out``."""
    task = PolishTask(out, seed, steps, learning_rate=POLISH_RATE)
    Resumable(task, out / "polish.state.pt").run(steps, save_every=250, after_save=task.preview)


def practise(out: Path, seed: int, steps: int) -> None:
    """Train, or go on training; needs the finished polish stage in ``out``."""
    task = PracticeTask(out, seed, steps, learning_rate=PRACTICE_RATE)
    Resumable(task, out / "practice.state.pt").run(steps, save_every=250, after_save=task.preview)
