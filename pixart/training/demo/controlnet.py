"""Trains the demo's ControlNet: edges say where the shape stands, whatever place the caption names."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torchvision.utils import save_image

from ...checkpoint.controlnet import controlnet_metadata
from ...transformer import PixArtTransformer
from ..hints import edges
from ..initialise_controlnet import Controlled, first_controlnet
from . import autoencoder
from .captions import SHAPES, Scene, random_caption, random_scene
from .diffusion import CONFIG, NATIVE, DiffusionTask, Phase, average_of
from .drawing import RADIUS, RGB, Placement, draw, place
from .export import LICENSE, STAGES, half, read_state, write_safetensors
from .run import Resumable

FILE = "pixart-demo-controlnet.safetensors"

COPIED_BLOCKS = 2
CONTROL_PHASE = Phase(2400, ((1.0, (NATIVE,)),), 2048, layout=0.6)
LEARNING_RATE = 8e-4
PRACTICE_STEPS = 1200
POOL = 600
"""Different hints: each is encoded once, and drawn in many colours."""


def anywhere(rng: random.Random, height: int, width: int) -> Placement:
    """A shape at any place and size that the picture holds, in colours far enough apart for an edge."""
    side = min(height, width)
    radius = side * rng.uniform(RADIUS["small"] * 0.9, RADIUS["large"] * 1.1)
    reach = 1.05 * radius
    return Placement(
        rng.choice(SHAPES),
        rng.uniform(reach, width - reach),
        rng.uniform(reach, height - reach),
        radius,
        RGB["white"],
        RGB["black"],
    )


class ControlTask(DiffusionTask):
    name = "controlnet"

    def first_model(self) -> Controlled:
        base = PixArtTransformer(CONFIG)
        base.load_state_dict(average_of(read_state(self.out, STAGES[-1])))
        self.placements = [anywhere(self.rng, *NATIVE) for _ in range(POOL)]
        self.hints = self.encode_hints(self.placements)
        return Controlled(base, first_controlnet(base, COPIED_BLOCKS))

    @torch.no_grad()
    def encode_hints(self, placements: Sequence[Placement]) -> torch.Tensor:
        """Edge pictures through the demo's own encoder, as the transformer sees latents: (B, 4, h, w)."""
        encoder = autoencoder.assemble(self.out).encoder
        hints = [edges(draw(placements[i : i + 20], *NATIVE)) for i in range(0, len(placements), 20)]
        return torch.cat([encoder(hint * 2 - 1) for hint in hints]) * self.contrast

    def phase(self, index: int) -> Phase:
        return CONTROL_PHASE

    def pictures(self, scenes: Sequence[Scene], height: int, width: int) -> tuple[torch.Tensor, dict]:
        """The scenes' colours, at the places of the hints that ``scene_and_caption`` has chosen."""
        told = [place(scene, height, width, self.rng) for scene in scenes]
        placements = [
            replace(self.placements[index], colour=colours.colour, background=colours.background)
            for index, colours in zip(self.chosen, told, strict=True)
        ]
        return draw(placements, height, width), {"hint": self.hints[self.chosen]}

    def scene_and_caption(self) -> tuple[Scene, str]:
        """A scene whose shape is that of a hint from the pool, and a caption; its place is anybody's guess."""
        index = self.rng.randrange(POOL)
        self.chosen.append(index)
        return random_caption(self.rng, replace(random_scene(self.rng), shape=self.placements[index].shape))

    def step(self, index: int) -> dict[str, float]:
        self.chosen: list[int] = []
        return super().step(index)

    def preview(self, step: int, count: int = 12) -> None:
        """A sheet: hints above what was drawn by them, under captions that name another place."""
        rng = random.Random(2)
        placements = [anywhere(rng, *NATIVE) for _ in range(count)]
        scenes = [replace(random_scene(rng), shape=p.shape) for p in placements]
        hint = self.encode_hints(placements)
        latents = self.sample([s.caption() for s in scenes], *NATIVE, seed=2, hint=torch.cat([hint, hint]))
        drawn = self.decode(latents).clamp(0, 1)
        sheet = torch.cat([edges(draw(placements, *NATIVE)), drawn])
        save_image(sheet, self.out / f"{self.name}-{step:06d}.png", nrow=count)


class ControlPracticeTask(ControlTask):
    """A second descent from the first one's average, among new hints, half of them small."""

    name = "controlnet-practice"

    def first_model(self) -> Controlled:
        model = super().first_model()
        model.load_state_dict(average_of(read_state(self.out, ControlTask.name)))
        for index in range(0, POOL, 2):
            p = self.placements[index]
            radius = RADIUS["small"] * min(NATIVE) * self.rng.uniform(0.9, 1.1)
            self.placements[index] = replace(p, radius=min(radius, p.radius))
        self.hints = self.encode_hints(self.placements)
        return model

    def learning_rate_factor(self, index: int) -> float:
        """Warm up over 50 steps and come down along a cosine from the start."""
        return min(1.0, (index + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * index / self.steps)))


def train(out: Path, seed: int, steps: int) -> None:
    """Train, or go on training; needs all stages of the published demo in ``out``."""
    task = ControlTask(out, seed, steps, learning_rate=LEARNING_RATE)
    Resumable(task, out / "controlnet.state.pt").run(steps, save_every=250, after_save=task.preview)


def practise(out: Path, seed: int, steps: int) -> None:
    """Train, or go on training; needs the finished controlnet stage in ``out``."""
    task = ControlPracticeTask(out, seed, steps, learning_rate=LEARNING_RATE)
    Resumable(task, out / f"{task.name}.state.pt").run(steps, save_every=200, after_save=task.preview)


def export(out: Path, demo: Path) -> Path:
    """Write the average ControlNet to ``demo``, under the original names."""
    average = average_of(read_state(out, ControlPracticeTask.name))
    tensors = {name.removeprefix("control."): t for name, t in average.items() if name.startswith("control.")}
    metadata = controlnet_metadata(CONFIG) | {
        "license": LICENSE,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": "PixArt demo ControlNet: edges",
        "modelspec.architecture": f"pixart-{CONFIG.family}/controlnet",
        "modelspec.license": LICENSE,
    }
    write_safetensors(demo / FILE, half(tensors), metadata)
    return demo / FILE
