"""Distils the demo's Σ transformer into a latent consistency model: guidance built in, a picture in four steps.

A consistency function gives the end of a trajectory from any point on it (Luo et al., "Latent Consistency Models",
2310.04378; PixArt-δ, 2401.05252). As published, it is taught to agree with itself one solver step further on, and what
is known at small timesteps slowly reaches the large ones. A model as small as the demo affords the plain way: the
teacher solves every trajectory to its end under guidance, and that end is the target.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

from ...checkpoint import load_transformer, open_checkpoint
from ...embeddings import pad_tokens
from ...sampling import LCM_GRID, boundary, lcm_timesteps
from ...terminal import leave
from ...transformer import PixArtTransformer
from ..extract import extract, extract_metadata
from .captions import random_caption
from .diffusion import CONFIG, NATIVE, WIDE, DiffusionTask, Phase, average_of
from .export import TRANSFORMER, add_model, half, read_state
from .latents import teacher_latents
from .restore import published
from .run import Resumable

LCM_PHASE = Phase(200, ((0.9, (NATIVE,)), (0.1, WIDE)), 768, layout=0.5)
"""layout: here the share of timesteps drawn from those that four-step sampling visits; the rest from all fifty."""
LEARNING_RATE = 1e-4
GUIDANCE = 4.5
STEPS = 4
SOLVER_STEPS = 5
"""Of the teacher, from the drawn timestep to the end."""


FILE, RANK = "pixart-demo-lcm-lora.safetensors", 32


class LcmTask(DiffusionTask):
    """Starts from the finished Σ, which is also its teacher."""

    name = "lcm"

    def __init__(self, out: Path, seed: int, steps: int, learning_rate: float = LEARNING_RATE):
        super().__init__(out, seed, steps, learning_rate)
        self.ema.decay = 0.99
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)

    def first_model(self) -> PixArtTransformer:
        stages = (self.out / f"{stage}.state.pt" for stage in ("practice", "polish", "outlines"))
        path = next((path for path in stages if path.exists()), None)
        if path is None:
            raise ValueError(f"{self.out} holds no finished Σ: run the stage outlines there first, or restore.")
        model = PixArtTransformer(CONFIG)
        model.load_state_dict(average_of(torch.load(path, weights_only=True)))
        return model

    def phase(self, index: int) -> Phase:
        return LCM_PHASE

    def step(self, index: int) -> dict[str, float]:
        phase = self.phase(index)
        height, width = phase.size(self.rng)
        batch = max(1, round(phase.tokens * 256 / (height * width)))
        scenes, captions = zip(*(random_caption(self.rng) for _ in range(batch)), strict=True)
        caption, mask = self.encode(list(captions))
        pictures, _ = self.pictures(scenes, height, width)
        latents = teacher_latents(pictures) * self.contrast

        grid, visited = lcm_timesteps(LCM_GRID), lcm_timesteps(STEPS)
        t = torch.where(
            torch.rand(batch) < phase.layout,
            visited[torch.randint(len(visited), (batch,))],
            grid[torch.randint(len(grid), (batch,))],
        )
        x = self.noise.add(latents, torch.randn_like(latents), t)
        with torch.no_grad():
            target = self.end_of_trajectory(x, t, caption, mask)
        error = (self.consistent(self.model, x, t, caption, mask) - target).pow(2).mean(dim=(1, 2, 3))
        # As an error of the noise, which is weighted as in the training before.
        loss = (error * (self.noise.snr[t] * self.weight[t]).float()).mean()

        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.learning_rate_factor(index)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.model, index)
        return {"loss": loss.item(), "error": error.mean().item(), "norm": norm.item()}

    def levels(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """α and σ (B, 1, 1, 1) of the variance-preserving latents at timesteps t (B,)."""
        alpha = self.noise.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alpha.sqrt().float(), (1 - alpha).sqrt().float()

    def consistent(self, model, x, t, caption, mask) -> torch.Tensor:
        """The consistency function: x0 as ``model`` sees it, or x itself at timestep 0."""
        alpha, sigma = self.levels(t)
        skip, out = (c.view(-1, 1, 1, 1) for c in boundary(t))
        return skip * x + out * (x - sigma * model(x, t, caption, mask)) / alpha

    def end_of_trajectory(self, x, t, caption, mask) -> torch.Tensor:
        """x (B, C, h, w) at timesteps t (B,) solved to the end: DPM-Solver++ (2M) of the guided teacher.

        Every picture takes as many steps, equal parts of the timesteps that it has left.
        """
        times = torch.stack([t * left // SOLVER_STEPS for left in range(SOLVER_STEPS, 0, -1)])  # (S, B)
        levels = self.noise.snr[times].rsqrt().log().float()[..., None, None, None]  # log σ
        null, null_mask = self.null(len(x))
        length = max(caption.shape[1], null.shape[1])
        captions = torch.cat([pad_tokens(caption, length), pad_tokens(null, length)])
        masks = torch.cat([pad_tokens(mask, length), pad_tokens(null_mask, length)])
        x = x * (1 + levels[0].exp() ** 2).sqrt()
        previous = None
        for step in range(SOLVER_STEPS):
            sigma = levels[step].exp()
            scaled = x / (1 + sigma**2).sqrt()
            guided, free = self.teacher(scaled.repeat(2, 1, 1, 1), times[step].repeat(2), captions, masks).chunk(2)
            clean = x - sigma * (free + GUIDANCE * (guided - free))
            if step == SOLVER_STEPS - 1:
                return clean
            h = levels[step] - levels[step + 1]
            direction = clean
            if previous is not None:
                direction = clean + (clean - previous) * h / (2 * (levels[step - 1] - levels[step]))
            x, previous = direction + (-h).exp() * (x - direction), clean

    @torch.no_grad()
    def sample(self, captions: list[str], height: int, width: int, seed: int, cfg: float = 1.0) -> torch.Tensor:
        """Latents for the captions: the average model, four steps, no guidance but the one built in."""
        caption, mask = self.encode(captions)
        generator = torch.Generator().manual_seed(seed)
        shape = (len(captions), 4, height // 8, width // 8)
        timesteps = lcm_timesteps(STEPS)
        x = torch.randn(shape, generator=generator)
        for i, t in enumerate(timesteps):
            clean = self.consistent(self.ema.average, x, t.expand(len(x)), caption, mask)
            if i + 1 == len(timesteps):
                return clean
            x = self.noise.add(clean, torch.randn(shape, generator=generator), timesteps[i + 1].expand(len(x)))


def train(out: Path, seed: int, steps: int) -> None:
    """Distil, or go on; needs a finished Σ in ``out``."""
    task = LcmTask(out, seed, steps)
    Resumable(task, out / "lcm.state.pt").run(steps, save_every=100, after_save=task.preview)


def export(out: Path, demo: Path) -> Path:
    """Write what the distilled model differs by from the published one as a LoRA beside it; its path.

    Raises ValueError when the stage has not been run or the published demo is missing.
    """
    base = open_checkpoint(published(demo, TRANSFORMER))
    tuned = PixArtTransformer(CONFIG)
    tuned.load_state_dict(average_of(read_state(out, LcmTask.name)))
    state, _ = extract(load_transformer(base), tuned, RANK)
    metadata = extract_metadata(base, state, RANK, "PixArt demo LCM LoRA") | {
        "modelspec.description": "Makes the PixArt demo draw in four steps without guidance.",
    }
    add_model(demo, FILE, half(state), metadata, out, (LcmTask.name,))
    return demo / FILE


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pixart.training.demo.lcm", description=export.__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="folder with the recipe's states")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder of the published demo")
    args = parser.parse_args()
    print(export(args.out, args.demo))


if __name__ == "__main__":
    leave(main)
