"""A seeded, resumable training loop with a log: what every stage of the demo's recipe runs in."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import torch
from tqdm import tqdm


def seeded(seed: int) -> random.Random:
    """Seed torch, and return a Python generator for everything else that is random."""
    torch.manual_seed(seed)
    return random.Random(seed)


class Resumable:
    """Runs ``task.step(i)`` and saves enough after every so many steps to go on as if never stopped.

    A task has ``model``, ``optimizer``, ``rng``, and where it wants them ``schedule`` and ``ema``.
    The log is one JSON line each ``log_every`` steps, beside the state file.
    """

    parts = ("model", "optimizer", "schedule", "ema")

    def __init__(self, task, path: Path):
        self.task, self.path = task, path
        self.log_path = path.with_suffix("").with_suffix(".log.jsonl")
        self.next_step, self.seconds = 0, 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self.load()

    def load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        for name in self.parts:
            if name in state:
                getattr(self.task, name).load_state_dict(state[name])
        version, internal, gauss = json.loads(state["rng"])
        self.task.rng.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(state["torch_rng"])
        self.next_step, self.seconds = state["next_step"], state["seconds"]

    def save(self) -> None:
        state = {n: getattr(self.task, n).state_dict() for n in self.parts if hasattr(self.task, n)}
        state |= {
            "rng": json.dumps(self.task.rng.getstate()),
            "torch_rng": torch.get_rng_state(),
            "next_step": self.next_step,
            "seconds": self.seconds,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def run(self, steps: int, log_every: int = 50, save_every: int = 200, after_save=None) -> None:
        started, base = time.monotonic(), self.seconds
        recent: dict[str, float] = {}
        counted = 0
        bar = tqdm(range(self.next_step, steps), initial=self.next_step, total=steps, mininterval=5)
        for step in bar:
            figures = self.task.step(step)
            counted += 1
            for key, value in figures.items():
                recent[key] = recent.get(key, 0.0) + value
            self.next_step = step + 1
            self.seconds = base + time.monotonic() - started
            if self.next_step % log_every == 0 or self.next_step == steps:
                line = {"step": self.next_step, "seconds": round(self.seconds, 1)}
                line |= {key: float(f"{value / counted:.5g}") for key, value in recent.items()}
                with self.log_path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                bar.set_postfix({k: v for k, v in line.items() if k not in ("step", "seconds")})
                recent, counted = {}, 0
            if self.next_step % save_every == 0 or self.next_step == steps:
                self.save()
                if after_save:
                    after_save(self.next_step)
