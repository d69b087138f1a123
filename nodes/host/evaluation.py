"""Prompt files in the host's folders, and runs of prompt sets in its output folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import numpy
import torch
from PIL import Image

from ...pixart import names
from ...pixart.evaluation.prompts import SUFFIXES, Prompt, choose, read_prompts
from ...pixart.evaluation.results import SHEET, TABLE, Result, picture_name, recorded, save_picture, write_table
from ...pixart.evaluation.sheet import Entry, draw_sheet
from . import folders
from .caption_files import inside

DEMO_SET = "prompts.csv [demo]"
"""The set that the pack brings along, as the list of files names it."""

SETTINGS = ("ckpt_name", "method", "sampler_name", "scheduler", "steps", "cfg", "lora_name", "mode")
"""Inputs of a workflow's nodes that are written on a sheet."""


@dataclass(frozen=True)
class PromptSet:
    """What PixArtPromptSet hands to PixArtContactSheet: the prompts of one run, in order, and when it began."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    started: float


def prompt_files() -> list[str]:
    """Files of prompts in the input folder, and the demo's."""
    root = folder_paths.get_input_directory()
    found = []
    for folder, _, files in folders.walk(root) if os.path.isdir(root) else ():
        paths = (Path(folder, file) for file in files if file.lower().endswith(SUFFIXES))
        found += [path.relative_to(root).as_posix() for path in paths if inside(path, root)]
    return [DEMO_SET, *(name for name in found if not names.oddity(name))]


def find_prompts(name: str) -> Path:
    """Path of a file of prompts that a workflow names. Raises ValueError when it leads elsewhere or is not there."""
    if name == DEMO_SET:
        return folders.DEMO / "prompts.csv"
    root = folder_paths.get_input_directory()
    path = Path(root, name)
    if names.leads_out(name):
        raise ValueError(f"{name!r} leads out of the input folder. Choose a name from the list.")
    if oddity := names.oddity(name):
        raise ValueError(f"{name!r} {oddity}. Choose a name from the list.")
    if not inside(path, root):
        raise ValueError(f"{name!r} leads out of the input folder through a link. Choose a name from the list.")
    if not path.is_file():
        raise ValueError(f"{name!r} is not in the input folder. Put it there, press R, and choose it again.")
    return path


def run_folder(run: str) -> Path:
    """The folder of a run, below the output folder. Raises ValueError for a name that leads out of it."""
    remedy = "Give a name such as drawbench/first."
    output = folder_paths.get_output_directory()
    if names.leads_out(run):
        raise ValueError(f"The run {run!r} leads out of the output folder. {remedy}")
    if oddity := names.oddity(run):
        raise ValueError(f"The run {run!r} {oddity}. {remedy}")
    folder = Path(output, os.path.normpath(run))
    if not inside(folder, output) or folder.resolve() == Path(output).resolve():
        raise ValueError(f"The run {run!r} leads out of the output folder, or is all of it. {remedy}")
    return folder


def fingerprint(name: str, run: str) -> str:
    """Changes when the file of prompts does, or what a run has drawn."""
    path = find_prompts(name)
    status = os.stat(path)
    table = run_folder(run) / TABLE if run.strip() else None
    drawn = os.stat(table).st_mtime_ns if table and table.exists() else 0
    return f"{path}:{status.st_size}:{status.st_mtime_ns}:{drawn}"


def prompt_set(name: str, category: str, limit: int, seed: int, run: str) -> PromptSet:
    """The prompts to draw now: those chosen, but for those that the run, if there is one, has drawn already.

    Raises ValueError when nothing is left to draw.
    """
    chosen = choose(read_prompts(find_prompts(name)), category)
    if run.strip():
        folder = run_folder(run)
        done = recorded(folder)
        check_recorded(chosen, seed, done, folder)
        chosen = [prompt for prompt in chosen if prompt.index not in done]
        if not chosen:
            raise ValueError(
                f"All prompts of this run are drawn: see {folder / SHEET}. Give another name for run, or empty its "
                "folder, to draw them again."
            )
    chosen = chosen[:limit] if limit > 0 else chosen
    return PromptSet(tuple(chosen), tuple(prompt.seed_from(seed) for prompt in chosen), time.monotonic())


def check_recorded(prompts: Sequence[Prompt], seed: int, done: dict[int, Result], folder: Path) -> None:
    for prompt in prompts:
        found = done.get(prompt.index)
        if found and (found.prompt, found.seed) != (prompt.text, prompt.seed_from(seed)):
            raise ValueError(
                f"{folder} holds “{found.prompt}” (seed {found.seed}) as number {prompt.index}, not “{prompt.text}” "
                f"(seed {prompt.seed_from(seed)}): the file or the seed has changed. Give another name for run."
            )


def settings_of(graph: dict | None) -> str:
    """The models, samplers and numbers of a workflow in API format, for the sheet's head."""
    said: list[str] = []
    for node in (graph or {}).values():
        inputs = node.get("inputs", {})
        values = [(name, inputs[name]) for name in SETTINGS if isinstance(inputs.get(name), str | int | float)]
        said += [f"{value}" if isinstance(value, str) else f"{name} {value:g}" for name, value in values]
    return ", ".join(dict.fromkeys(said))


def to_picture(image: torch.Tensor) -> Image.Image:
    """(H, W, 3) in [0, 1] → a picture."""
    pixels = (image[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(pixels)


def to_image(picture: Image.Image) -> torch.Tensor:
    """A picture → IMAGE (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(numpy.asarray(picture.convert("RGB"), dtype=numpy.float32) / 255)[None]


def flatten(images: Sequence[torch.Tensor]) -> list[Image.Image]:
    """Every picture of a list of IMAGE, batches among them, in order."""
    return [to_picture(image) for batch in images for image in batch]


def pick(values: Sequence | None, index: int, default):
    """The value for a picture; the last one goes for all that follow, as in the host's lists."""
    return values[min(index, len(values) - 1)] if values else default


def contact_sheet(
    images: Sequence[torch.Tensor],
    labels: Sequence[str],
    columns: int,
    categories: Sequence[str] | None,
    seeds: Sequence[int] | None,
    prompts: PromptSet | None,
    run: str,
    settings: str,
) -> tuple[torch.Tensor, str, str]:
    """The sheet as IMAGE, the table's path ("" without a run), and a line that says what happened.

    With a run, its pictures are saved in its folder with a table, and the sheet shows all that it has drawn.
    Raises ValueError when the pictures are not those of the prompt set.
    """
    pictures = flatten(images)
    if prompts is not None and len(pictures) != len(prompts.prompts):
        raise ValueError(
            f"{len(pictures)} pictures have come for {len(prompts.prompts)} prompts: draw one picture a prompt "
            "(batch_size 1), or leave prompt_set unconnected."
        )
    if run.strip() and prompts is None:
        raise ValueError("A run needs to know which prompts these are: connect prompt_set of PixArt Prompt Set.")
    seconds = (time.monotonic() - prompts.started) / len(pictures) if prompts and pictures else None
    results = []
    for number in range(len(pictures)):
        prompt = prompts.prompts[number] if prompts else None
        seed = prompts.seeds[number] if prompts else pick(seeds, number, None)
        category = prompt.category if prompt else pick(categories, number, "")
        index = prompt.index if prompt else number
        label = pick(labels, number, prompt.text if prompt else "")
        taken = "" if seconds is None else f"{seconds:.2f}"
        results.append(
            Result(index, category, label, -1 if seed is None else seed, picture_name(index), taken, settings)
        )
    if not run.strip():
        entries = [entry_of(picture, result) for picture, result in zip(pictures, results, strict=True)]
        return to_image(draw_sheet(entries, columns, settings)), "", f"{len(entries)} pictures"
    folder = run_folder(run)
    for picture, result in zip(pictures, results, strict=True):
        save_picture(picture, folder / result.file)
    # The label may be another text than the prompt; the table, by which a run goes on, holds the prompt.
    own = {r.index: Result(**{**vars(r), "prompt": p.text}) for r, p in zip(results, prompts.prompts, strict=True)}
    done = recorded(folder) | own
    write_table(folder / TABLE, done.values())
    shown = sorted(done.values(), key=lambda result: result.index)
    entries = [entry_of(open_picture(folder / result.file), result) for result in shown]
    told = list(dict.fromkeys(result.settings for result in shown if result.settings))
    sheet = draw_sheet(entries, columns, " | ".join(told))
    save_picture(sheet, folder / SHEET)
    message = f"{len(results)} pictures, {len(shown)} in {folder}"
    if len(told) > 1:
        message += f"; they were drawn with {len(told)} different settings, which results.csv tells of each"
    return to_image(sheet), str(folder / TABLE), message


def open_picture(path: Path) -> Image.Image:
    """A picture of a run, in memory. Raises ValueError for one that cannot be read or is far too large."""
    try:
        with Image.open(path) as picture:
            return picture.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n", 1)[0][:120]
        raise ValueError(f"{path.name} of this run cannot be read ({reason}). Delete it to draw it again.") from error


def entry_of(picture: Image.Image, result: Result) -> Entry:
    parts = [f"seed {result.seed}" if result.seed >= 0 else "", f"{result.seconds} s" if result.seconds else ""]
    return Entry(picture, result.prompt, " · ".join(part for part in parts if part), result.category)
