"""Tunes the demo's Σ transformer into an α with size conditioning and a learned null caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ...config import ALPHA
from ...transformer import PixArtTransformer
from ..initialise import initialise
from .captions import Scene
from .diffusion import CONFIG, LARGE, NATIVE, WIDE, DiffusionTask, Phase, average_of
from .drawing import draw, place
from .latents import CONTRAST
from .run import Resumable

ALPHA_CONFIG = replace(CONFIG, family=ALPHA, micro_condition=True, max_caption_tokens=120)
ALPHA_PHASE = Phase(1200, ((0.75, (NATIVE,)), (0.15, WIDE), (0.10, LARGE)), 2048, layout=0.5)


class AlphaTask(DiffusionTask):
    """What sets α apart, learned on top of Σ: another latent scale, the picture's size, and a null of its own.

    One picture in five is drawn at half its size and enlarged, and the model is told the half size: so the size
    condition means what it means in α, how fine the original was.
    """

    name = "alpha"
    contrast = CONTRAST * ALPHA_CONFIG.latent_scale / CONFIG.latent_scale
    """One autoencoder serves both, so what α's larger latent scale does to its latents is done here."""

    def first_model(self) -> PixArtTransformer:
        """Σ's average weights; silent embedders of size and ratio; α's null, a random draw that is never trained."""
        model = initialise(PixArtTransformer(ALPHA_CONFIG))
        state = average_of(torch.load(self.out / "practice.state.pt", weights_only=True))
        del state["y_embedder.y_embedding"]
        model.load_state_dict(state, strict=False)
        for embedder in (model.csize_embedder, model.ar_embedder):
            nn.init.zeros_(embedder.mlp[2].weight)
        model.y_embedder.y_embedding.normal_(std=ALPHA_CONFIG.caption_channels**-0.5)
        return model

    def phase(self, index: int) -> Phase:
        return ALPHA_PHASE

    def captions_or_null(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """As in α's training, a dropped caption's features are replaced and its mask stays."""
        caption, mask = self.encode(captions)
        dropped = torch.tensor([self.rng.random() < 0.1 for _ in captions])
        null = self.model.y_embedder.y_embedding[: caption.shape[1]]
        return torch.where(dropped[:, None, None], null, caption), mask

    def null(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        null = self.model.y_embedder.y_embedding[None].expand(count, -1, -1)
        return null, torch.ones(null.shape[:2], dtype=torch.long)

    def pictures(self, scenes: Sequence[Scene], height: int, width: int) -> tuple[torch.Tensor, dict]:
        coarse = self.rng.random() < 0.2
        size = (height // 2, width // 2) if coarse else (height, width)
        pictures = draw([place(scene, *size, self.rng) for scene in scenes], *size)
        if coarse:
            pictures = nn.functional.interpolate(pictures, size=(height, width), mode="bilinear")
        told = torch.tensor([size] * len(scenes), dtype=torch.float32)
        return pictures, {"size": told, "aspect_ratio": told[:, :1] / told[:, 1:]}


def train(out: Path, seed: int, steps: int) -> None:
    """Tune, or go on tuning; needs the finished practice stage in ``out``."""
    task = AlphaTask(out, seed, steps, learning_rate=4e-4)
    Resumable(task, out / "alpha.state.pt").run(steps, save_every=250, after_save=task.preview)
