"""Trains the demo's PixArt-Σ transformer on pictures drawn as it goes."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import nn
from torchvision.utils import save_image

from ...config import PixArtConfig
from ...embeddings import pad_tokens
from ...noise import NoiseSchedule
from ...transformer import PixArtTransformer
from ..initialise import initialise
from . import text
from .captions import Scene, random_caption, random_scene
from .drawing import draw, place
from .judge import mistakes
from .latents import COLOUR_CENTRE, COLOUR_SPREAD, CONTRAST, teacher_latents
from .run import Resumable, seeded

CONFIG = PixArtConfig(
    family="sigma",
    hidden_size=216,
    depth=5,
    num_heads=3,
    mlp_hidden_size=864,
    caption_channels=128,
    max_caption_tokens=300,
    base_size=8,
    pe_interpolation=0.25,
)

SMALL = (64, 64)
NATIVE = (128, 128)
WIDE = ((112, 144), (144, 112), (96, 160), (160, 96), (80, 192), (192, 80))
LARGE = ((256, 256), (256, 256), (224, 288), (288, 224), (192, 336), (336, 192), (192, 192))
"""Height and width in pixels."""


@dataclass(frozen=True)
class Phase:
    """Part of the training: how long, at which sizes, how many tokens a step, and at which timesteps.

    layout: share of timesteps drawn from ``LAYOUT`` alone, where the caption decides; the rest from all.
    """

    steps: int
    sizes: tuple[tuple[float, tuple[tuple[int, int], ...]], ...]
    tokens: int
    layout: float

    def size(self, rng: random.Random) -> tuple[int, int]:
        shares, choices = zip(*self.sizes, strict=True)
        return rng.choice(rng.choices(choices, shares)[0])


LAYOUT = (550, 1000)
PHASES = (
    Phase(2500, ((1.0, (SMALL,)),), 512, layout=0.75),
    Phase(1250, ((0.75, (NATIVE,)), (0.15, WIDE), (0.10, LARGE)), 2048, layout=0.5),
    Phase(1500, ((0.75, (NATIVE,)), (0.15, WIDE), (0.10, LARGE)), 2048, layout=0.0),
)
"""As PixArt itself was trained: small pictures first, where a step is cheap and captions find their meaning,
then the native size, its other shapes, and some pictures of the next size; and when the layout is known, all
timesteps alike, for the outlines. The position grid covers the same
range at every size, so that what was learned small holds.
"""

STEPS = sum(phase.steps for phase in PHASES)


def phase_of(step: int) -> Phase:
    for phase in PHASES:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return PHASES[-1]


class Ema(nn.Module):
    """Exponential moving average of a model's parameters, warmed up so that early values fade soon."""

    def __init__(self, model: nn.Module, decay: float = 0.999):
        super().__init__()
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(model.parameters()), 1 - decay)


def schedule(step: int, steps: int, warmup: int = 150, decay: float = 0.25) -> float:
    """Learning-rate factor: warm up, hold, and over the last quarter go down along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    tail = max(0.0, (step - steps * (1 - decay)) / (steps * decay))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(tail, 1.0)))


class DiffusionTask:
    """Noise prediction; a caption is dropped one time in ten so that guidance has its null."""

    name = "diffusion"
    contrast = CONTRAST

    def __init__(self, out: Path, seed: int, steps: int, learning_rate: float = 1.2e-3):
        self.rng, self.steps, self.learning_rate, self.out = seeded(seed), steps, learning_rate, out
        self.noise = NoiseSchedule()
        self.tokenizer, self.encoder = text.load(out)
        self.model = self.first_model()
        self.ema = Ema(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0)
        self.weight = self.noise.layout_weights(self.contrast)

    def first_model(self) -> PixArtTransformer:
        """The model before its first step; Σ's null caption is the empty text, at whatever length it is read."""
        model = initialise(PixArtTransformer(CONFIG))
        model.y_embedder.y_embedding.copy_(self.encode([""])[0][0, 0])
        return model

    def phase(self, index: int) -> Phase:
        return phase_of(index)

    def learning_rate_factor(self, index: int) -> float:
        return schedule(index, self.steps)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = text.tokenize(self.tokenizer, captions)
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask

    def step(self, index: int) -> dict[str, float]:
        phase = self.phase(index)
        height, width = phase.size(self.rng)
        batch = max(1, round(phase.tokens * 256 / (height * width)))
        scenes, captions = zip(*(self.scene_and_caption() for _ in range(batch)), strict=True)
        caption, mask = self.captions_or_null(list(captions))
        pictures, conditions = self.pictures(scenes, height, width)
        latents = teacher_latents(pictures) * self.contrast

        t = torch.randint(0, 1000, (batch,))
        t = torch.where(torch.rand(batch) < phase.layout, torch.randint(*LAYOUT, (batch,)), t)
        noise = torch.randn_like(latents)
        noisy = self.noise.add(latents, noise, t)
        predicted = self.model(noisy, t, caption, mask, **conditions)
        wanted = self.target(noise, noisy, t, caption, mask, conditions)
        error = (predicted - wanted).pow(2).mean(dim=(1, 2, 3))
        loss = (error * self.weight[t]).mean()

        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.learning_rate_factor(index)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.model, index)
        return {"loss": loss.item(), "error": error.mean().item(), "norm": norm.item()}

    def scene_and_caption(self) -> tuple[Scene, str]:
        return random_caption(self.rng)

    def target(self, noise, noisy, t, caption, mask, conditions: dict) -> torch.Tensor:
        """What the model is to predict."""
        return noise

    def captions_or_null(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoded captions and their mask, one in ten replaced by the null caption."""
        return self.encode(["" if self.rng.random() < 0.1 else caption for caption in captions])

    def pictures(self, scenes: Sequence[Scene], height: int, width: int) -> tuple[torch.Tensor, dict]:
        """Pictures of the scenes, and what the model is told beside the caption."""
        return draw([place(scene, height, width, self.rng) for scene in scenes], height, width), {}

    def null(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The null caption for guidance, ``count`` times, and its mask."""
        return self.encode([""] * count)

    @torch.no_grad()
    def sample(
        self, captions: list[str], height: int, width: int, seed: int, cfg: float = 4.5, **conditions
    ) -> torch.Tensor:
        """Latents for the captions: the average model, DPM-Solver++, 20 steps.

        conditions: what the model is told beside the captions, for both halves of the batch.
        """
        model = self.ema.average
        count = len(captions)
        caption, mask = (
            torch.cat([pad_tokens(a, length), pad_tokens(b, length)])
            for a, b in zip(self.encode(captions), self.null(count), strict=True)
            for length in (max(a.shape[1], b.shape[1]),)
        )
        scheduler = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
        scheduler.set_timesteps(20)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 4, height // 8, width // 8, generator=generator)
        for t in scheduler.timesteps:
            positive, negative = model(torch.cat([x, x]), t.expand(2 * count), caption, mask, **conditions).chunk(2)
            x = scheduler.step(negative + cfg * (positive - negative), t, x).prev_sample
        return x

    def preview(self, step: int, count: int = 24) -> None:
        """A sheet of pictures and, once the decoder is trained, how many of them are right."""
        rng = random.Random(1)
        scenes = [random_scene(rng) for _ in range(count)]
        latents = self.sample([scene.caption() for scene in scenes], *NATIVE, seed=1)
        pictures = self.decode(latents).clamp(0, 1)
        wrong = [mistakes(scene, picture) for scene, picture in zip(scenes, pictures, strict=True)]
        save_image(pictures, self.out / f"{self.name}-{step:06d}.png", nrow=8)
        tally = {name: sum(name in w for w in wrong) for name in ("colour", "background", "position", "shape", "size")}
        with (self.out / f"{self.name}-previews.log").open("a") as file:
            file.write(f"step {step}: {sum(not w for w in wrong)} of {count} right; wrong: {tally}\n")

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        from diffusers import AutoencoderTiny

        latents = latents / self.contrast
        stages = (self.out / f"autoencoder-{stage}.state.pt" for stage in ("sharpen", "decoder"))
        path = next((path for path in stages if path.exists()), None)
        if path is None:
            cells = latents[:, :3] * COLOUR_SPREAD + COLOUR_CENTRE
            return nn.functional.interpolate(cells, scale_factor=8, mode="bilinear")
        with torch.random.fork_rng():  # its first weights must not use up the training's random numbers
            decoder = AutoencoderTiny().decoder
        decoder.load_state_dict(torch.load(path, weights_only=True)["model"])
        return (decoder(latents) + 1) / 2


def average_of(state: dict) -> dict[str, torch.Tensor]:
    """The average model's weights in the state that a stage has saved."""
    prefix = "average."
    return {name.removeprefix(prefix): value for name, value in state["ema"].items() if name.startswith(prefix)}


def train(out: Path, seed: int, steps: int) -> None:
    """Train, or go on training, the transformer; needs the text stage's files in ``out``."""
    task = DiffusionTask(out, seed, steps)
    Resumable(task, out / "diffusion.state.pt").run(steps, save_every=250, after_save=task.preview)
