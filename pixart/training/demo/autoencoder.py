"""Trains the demo's autoencoder: TAESD's architecture and file format."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import nn

from .captions import random_scene
from .drawing import Placement, draw, place
from .latents import teacher_latents
from .run import Resumable, seeded

log = logging.getLogger(__name__)

CROP = 64


def random_crops(count: int, rng: random.Random, stars: float = 0.25) -> torch.Tensor:
    """Squares of 64 pixels cut from 128-pixel pictures, near the shape's outline: (B, 3, 64, 64).

    stars: the share of stars, which have the sharpest corners.
    """
    placements = []
    for _ in range(count):
        scene = random_scene(rng)
        if rng.random() < (stars - 0.25) / 0.75:
            scene = replace(scene, shape="star")
        p = place(scene, 128, 128, rng)
        left = min(max(p.x - CROP / 2 + rng.uniform(-32, 32), 0), 128 - CROP)
        top = min(max(p.y - CROP / 2 + rng.uniform(-32, 32), 0), 128 - CROP)
        placements.append(Placement(p.shape, p.x - left, p.y - top, p.radius, p.colour, p.background))
    return draw(placements, CROP, CROP)


def to_taesd(model: AutoencoderTiny) -> dict[str, torch.Tensor]:
    """diffusers' AutoencoderTiny → TAESD's names; TAESD counts its input clamp as decoder layer 0."""
    state = {}
    for key, value in model.state_dict().items():
        part, _, index, rest = key.split(".", 3)
        state[f"taesd_{part}.{int(index) + (part == 'decoder')}.{rest}"] = value
    return state


class AutoencoderTask:
    """Encoder towards ``teacher_latents``; decoder from slightly noisy teacher latents back to the picture."""

    def __init__(self, seed: int, steps: int, part: str, batch: int = 12):
        self.steps, self.batch, self.part = steps, batch, part
        self.rng = seeded(seed)
        whole = AutoencoderTiny()
        self.model = whole.encoder if part == "encoder" else whole.decoder
        for module in self.model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                module.weight.data *= 0.7
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=1.5e-3, total_steps=steps, pct_start=0.1
        )

    def step(self, index: int) -> dict[str, float]:
        pictures = random_crops(self.batch, self.rng)
        latents = teacher_latents(pictures)
        if self.part == "encoder":
            loss = nn.functional.mse_loss(self.model(pictures * 2 - 1), latents)
        else:
            noise = 0.05 * torch.randn(latents.shape)
            out = (self.model(latents + noise) + 1) / 2
            loss = nn.functional.l1_loss(out, pictures) + nn.functional.mse_loss(out, pictures)
        return self.descend(loss)

    def descend(self, loss: torch.Tensor) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.item()}


class SharpenTask(AutoencoderTask):
    """Goes on with the trained decoder, half of its pictures stars, and at less noise."""

    def __init__(self, out: Path, seed: int, steps: int, batch: int = 12):
        super().__init__(seed, steps, "decoder", batch)
        self.model.load_state_dict(torch.load(out / "autoencoder-decoder.state.pt", weights_only=True)["model"])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=6e-4, betas=(0.9, 0.99), weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=6e-4, total_steps=steps, pct_start=0.1
        )

    def step(self, index: int) -> dict[str, float]:
        pictures = random_crops(self.batch, self.rng, stars=0.5)
        latents = teacher_latents(pictures)
        out = (self.model(latents + 0.03 * torch.randn(latents.shape)) + 1) / 2
        return self.descend(nn.functional.l1_loss(out, pictures) + nn.functional.mse_loss(out, pictures))


def train(out: Path, part: str, seed: int, steps: int) -> None:
    """Train one half and keep its weights in ``out``; run for "encoder" and for "decoder", then ``assemble``."""
    task = AutoencoderTask(seed, steps, part)
    Resumable(task, out / f"autoencoder-{part}.state.pt").run(steps, log_every=25)


def sharpen(out: Path, seed: int, steps: int) -> None:
    """Go on with the trained decoder; needs the decoder stage's state in ``out``."""
    Resumable(SharpenTask(out, seed, steps), out / "autoencoder-sharpen.state.pt").run(steps, log_every=25)


def assemble(out: Path) -> AutoencoderTiny:
    """The autoencoder from its two trained halves."""
    model = AutoencoderTiny()
    for part in ("encoder", "decoder"):
        stage = "sharpen" if part == "decoder" else part
        state = torch.load(out / f"autoencoder-{stage}.state.pt", weights_only=True)
        getattr(model, part).load_state_dict(state["model"])
    return model.eval()
