"""Tunes the demo's Σ transformer to KV compression by convolution in its deeper blocks."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ...checkpoint.save import state_dict_to_save
from ...text.encoder import open_t5
from ...text.provenance import CHECKPOINT_PREFIX, mark_t5
from ...transformer import PixArtTransformer
from ..graft import graft
from .diffusion import CONFIG, LARGE, NATIVE, WIDE, DiffusionTask, Phase, average_of
from .export import ENCODER, STAGES, half, read_state, transformer_metadata, write_safetensors
from .run import Resumable

FILE = "pixart-demo-sigma-kv.safetensors"

RATIO, FIRST_BLOCK, LAST_BLOCK = 2, 2, 4
"""The deeper blocks, as in PixArt-Σ: there 14 to 27 of 28, here 2 to 4 of 5."""

KV_PHASE = Phase(1000, ((0.7, (NATIVE,)), (0.1, WIDE), (0.2, LARGE)), 768, layout=0.5)
LEARNING_RATE = 1e-3


class KVTask(DiffusionTask):
    """The compressed model learns to predict what the dense one predicts.

    The noise itself would be a target too, and the reference takes it; but most of what is left of its error no model
    can foretell, and it buries what compression has cost. The dense prediction is what compression is to give back.
    """

    name = "kv"

    def first_model(self) -> PixArtTransformer:
        """The dense model with convolutions that make the mean."""
        self.dense = PixArtTransformer(CONFIG)
        self.dense.load_state_dict(average_of(read_state(self.out, STAGES[-1])))
        self.dense.eval().requires_grad_(False)
        return graft(self.dense, RATIO, FIRST_BLOCK, LAST_BLOCK)

    def phase(self, index: int) -> Phase:
        return KV_PHASE

    def learning_rate_factor(self, index: int) -> float:
        """Warm up over 20 steps, and come down along a cosine."""
        return min(1.0, (index + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * index / self.steps)))

    @torch.no_grad()
    def target(self, noise, noisy, t, caption, mask, conditions: dict) -> torch.Tensor:
        return self.dense(noisy, t, caption, mask, **conditions)


def train(out: Path, seed: int, steps: int) -> None:
    """Tune, or go on tuning; needs all stages of the published demo in ``out``."""
    task = KVTask(out, seed, steps, learning_rate=LEARNING_RATE)
    Resumable(task, out / "kv.state.pt").run(steps, save_every=200, after_save=task.preview)


def export(out: Path, demo: Path) -> Path:
    """Write the tuned average model to ``demo``, beside the files that ``pixart.training.demo.export`` wrote there."""
    model = graft(PixArtTransformer(CONFIG), RATIO, FIRST_BLOCK, LAST_BLOCK)
    model.load_state_dict(average_of(read_state(out, KVTask.name)))
    metadata = transformer_metadata(model.config) | mark_t5(open_t5(demo / ENCODER)).metadata(CHECKPOINT_PREFIX)
    metadata["modelspec.title"] = "PixArt demo with KV compression"
    write_safetensors(demo / FILE, half(state_dict_to_save(model.state_dict(), model.config)), metadata)
    return demo / FILE
