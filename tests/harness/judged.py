"""Pictures of the demo's own world, judged by what they show."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from pixart.training.demo.captions import random_scene
from pixart.training.demo.judge import mistakes

SHEETS = Path(__file__).resolve().parents[2] / "output" / "test-pictures"

ASKED = ("background", "colour", "shape", "position")
"""What has to be right: the size of the shape is not among it."""


def judge_random_prompts(
    draw: Callable[[str, int], torch.Tensor], count: int, seed: int, sheet: str
) -> tuple[int, list[str]]:
    """How many of ``count`` pictures are right, and what is wrong with the others.

    draw: a prompt and a seed → a picture (H, W, 3) in [0, 1]. seed: of the prompts, and of the first picture.
    sheet: name of the file with all pictures, below output/.
    """
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    pictures = [draw(scene.caption(), seed + i).movedim(-1, 0) for i, scene in enumerate(scenes)]
    SHEETS.mkdir(parents=True, exist_ok=True)
    save_image(make_grid(pictures, nrow=8), SHEETS / sheet)
    wrong = [[name for name in mistakes(s, p) if name in ASKED] for s, p in zip(scenes, pictures, strict=True)]
    misses = [f"{s.caption()}: {', '.join(names)}" for s, names in zip(scenes, wrong, strict=True) if names]
    print(f"seed {seed}: {count - len(misses)} of {count} pictures right; {misses}")
    return count - len(misses), misses
