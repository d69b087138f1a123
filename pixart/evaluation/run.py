"""Draws a prompt set, one picture after the other, so that it can stop anywhere and go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..guidance import NONE, threshold
from ..pipeline import PIXELS, PixArtPipeline
from ..sampling import DIFFUSERS, FLASH, LCM
from ..sampling_transformer import Recipe, draw
from .judges import Judge
from .prompts import Prompt
from .results import (
    SHEET,
    TABLE,
    Result,
    append,
    by_category,
    check_same_run,
    part_name,
    picture_name,
    recorded,
    save_picture,
    write_table,
)
from .sheet import Entry, draw_sheet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """All that a picture depends on beside its prompt and seed.

    name: what is written as the model. others: of text encoder, autoencoder and number type, what is not usual.
    """

    name: str
    recipe: Recipe
    height: int
    width: int
    negative: str = ""
    threshold: str = NONE
    percentile: float = 99.5
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        recipe = self.recipe
        parts = [
            self.name,
            recipe.method,
            f"{recipe.steps} steps",
            f"cfg {recipe.cfg:g}",
            f"{self.width} x {self.height}",
        ]
        if recipe.method in (LCM, FLASH) and recipe.source != DIFFUSERS:
            parts.append(f"{recipe.source} timesteps")
        parts += self.others
        if self.negative:
            parts.append(f"without “{' '.join(self.negative.split())}”")  # a row of the table is one line
        if self.threshold != NONE:
            parts.append(f"{self.threshold} threshold {self.percentile:g}")
        return ", ".join(parts)


class Run:
    """One prompt set under one setting, in one folder; several processes may share it, each with its rank."""

    def __init__(self, pipeline: PixArtPipeline, settings: Settings, folder: Path, judge: Judge | None = None):
        """Raises ValueError when the folder holds pictures of other settings."""
        self.pipeline, self.settings, self.folder, self.judge = pipeline, settings, folder, judge
        folder.mkdir(parents=True, exist_ok=True)
        check_same_run(recorded(folder).values(), str(settings), folder)
        self.negative = None if settings.recipe.cfg == 1 else pipeline.encode([settings.negative])

    def draw(self, prompts: Sequence[Prompt], first_seed: int, rank: int = 0, processes: int = 1) -> int:
        """Draw this process's share of what is not there yet; how many pictures that was."""
        done = recorded(self.folder)
        mine = prompts[rank::processes]
        for prompt in mine:
            seed = prompt.seed_from(first_seed)
            found = done.get(prompt.index)
            if found and (found.prompt, found.seed) != (prompt.text, seed):
                raise ValueError(
                    f"{self.folder} holds “{found.prompt}” (seed {found.seed}) as number {prompt.index}, not "
                    f"“{prompt.text}” (seed {seed}): the prompts or the seed have changed. Choose another folder."
                )
        missing = [prompt for prompt in mine if prompt.index not in done]
        for number, prompt in enumerate(missing, start=1):
            result = self.picture(prompt, prompt.seed_from(first_seed))
            append(self.folder / part_name(rank), result)
            log.info("%d of %d: %s (%s s)", number, len(missing), prompt.text, result.seconds)
        return len(missing)

    def picture(self, prompt: Prompt, seed: int) -> Result:
        """Draw, judge and save one picture; its row."""
        settings = self.settings
        started = time.perf_counter()
        caption = self.pipeline.encode([prompt.text])
        latents = draw(
            self.pipeline.transformer,
            caption,
            self.negative,
            settings.recipe,
            seed=seed,
            size=(settings.height // PIXELS, settings.width // PIXELS),
            after=None if settings.threshold == NONE else self.keep_in_range,
        )
        pixels = (self.pipeline.decode(latents)[0] * 255).round().to(torch.uint8).cpu()  # (H, W, 3)
        seconds = time.perf_counter() - started
        name = picture_name(prompt.index)
        save_picture(Image.fromarray(pixels.numpy()), self.folder / name)
        verdict = self.judge(prompt.text, pixels.movedim(-1, 0) / 255) if self.judge else None
        score, wrong = ("", "") if verdict is None else (f"{verdict[0]:.3g}", " ".join(verdict[1]))
        return Result(
            prompt.index, prompt.category, prompt.text, seed, name, f"{seconds:.3f}", str(settings), score, wrong
        )

    def keep_in_range(self, guided: torch.Tensor, unguided: torch.Tensor) -> torch.Tensor:
        return threshold(guided, unguided, self.settings.threshold, self.settings.percentile)

    def finish(self, prompts: Sequence[Prompt], columns: int) -> list[Result]:
        """Write the one table and the sheet from all that is there of ``prompts``; its rows."""
        done = recorded(self.folder)
        results = [done[prompt.index] for prompt in prompts if prompt.index in done]
        write_table(self.folder / TABLE, done.values())
        for part in self.folder.glob("results-*.csv"):
            part.unlink()
        save_picture(sheet_of(self.folder, results, columns), self.folder / SHEET)
        return results


def sheet_of(folder: Path, results: Sequence[Result], columns: int) -> Image.Image:
    """The contact sheet of a run's pictures, with its settings and how long they took at the top."""
    entries = []
    for result in results:
        with Image.open(folder / result.file) as picture:
            picture.load()
        wrong = f" · not right: {result.wrong}" if result.wrong else ""
        time_taken = f" · {float(result.seconds):.1f} s" if result.seconds else ""
        entries.append(Entry(picture, result.prompt, f"seed {result.seed}{time_taken}{wrong}", result.category))
    settings = next((result.settings for result in results if result.settings), "")
    return draw_sheet(entries, columns, ". ".join(part for part in (settings, summary(results)) if part))


def summary(results: Sequence[Result]) -> str:
    """One line: how many, how right, how fast."""
    *_, (_, count, right, seconds) = by_category(results)
    judged = "" if right is None else f", {right} right"
    return f"{count} pictures{judged}" + (f", {seconds:.2f} s each" if seconds else "")
