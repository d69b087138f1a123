"""``python -m pixart.evaluation prompts.csv --out folder``: a prompt set as pictures, a sheet and a table.

Stopped and started again it goes on where it was. Under ``accelerate launch`` its processes, on one machine or on
several that share the folder, divide the prompts, and draw the pictures that one would have drawn.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from ..command import DEMO, DTYPES, add_drawing_options, add_model_options, carry_out
from ..guidance import NONE, STATIC
from ..sampling import DIFFUSERS, DPM_SOLVER, FEW_STEP_METHODS, FLASH, LCM, ORIGINAL, REFERENCE_METHODS
from ..terminal import leave
from .judges import NAMES as JUDGES

PROMPTS = DEMO / "prompts.csv"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m pixart.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("prompts", nargs="?", type=Path, default=PROMPTS, help="CSV, TSV, JSON or TXT (default: the demo's)")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for pictures, results.csv and sheet.png")
    p.add_argument("--category", default="", help="only these, separated by commas")
    p.add_argument("--limit", type=int, default=0, help="at most so many prompts (default: all)")
    add_model_options(p)
    add_drawing_options(p)
    p.add_argument("--method", choices=[*REFERENCE_METHODS, *FEW_STEP_METHODS], default=DPM_SOLVER)
    p.add_argument("--steps", type=int, help="default: 20, or 4 for lcm and flash, 1 for dmd and nitro")
    p.add_argument("--cfg", type=float, help="guidance scale (default: 4.5, or 1 for few-step methods)")
    p.add_argument("--timesteps", choices=[DIFFUSERS, ORIGINAL], default=DIFFUSERS, help="of lcm and flash")
    p.add_argument("--threshold", choices=[NONE, STATIC], default=NONE, help="of the guided prediction")
    p.add_argument("--percentile", type=float, default=99.5, help="of thresholding (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the first prompt; each has the next, or its own in the file")
    p.add_argument("--columns", type=int, default=10, help="of the sheet (default: %(default)s)")
    p.add_argument("--judge", choices=JUDGES, default="none", help="demo measures pictures of the demo's own world")
    p.add_argument("--device", help="cpu, cuda, mps … (default: cpu; under accelerate, the process's own)")
    return p


class Processes:
    """This process among those that ``accelerate launch`` started, or alone."""

    def __init__(self, device: str | None):
        self.rank, self.count, self.device, self.state = (
            0,
            int(os.environ.get("WORLD_SIZE", "1")),
            device or "cpu",
            None,
        )
        if self.count > 1:
            from accelerate import PartialState

            self.state = PartialState(cpu=device == "cpu")
            self.rank, self.count = self.state.process_index, self.state.num_processes
            self.device = device or self.state.device

    def wait(self) -> None:
        if self.state is not None:
            self.state.wait_for_everyone()

    def end(self) -> None:
        if self.state is not None:
            self.state.destroy_process_group()


def unusual(args: argparse.Namespace) -> tuple[str, ...]:
    """Files beside the checkpoint, and the number type, where they are not this command's own choice."""
    options = parser()
    chosen = {option: getattr(args, option) for option in ("t5", "vae", "tokenizer", "dtype")}
    changed = {option: value for option, value in chosen.items() if value != options.get_default(option)}
    return tuple(value if option == "dtype" else f"{option} {value.name}" for option, value in changed.items())


def evaluate(args: argparse.Namespace) -> str:
    """Draw what is missing; a table of the outcome, or "" in all processes but the first.

    Raises ValueError for prompts, models, a size or a number of steps that will not do, and for a folder that holds
    pictures drawn otherwise.
    """
    import torch

    from ..pipeline import PIXELS, PixArtPipeline
    from ..sampling_transformer import Recipe
    from .judges import named
    from .prompts import choose, read_prompts
    from .results import SHEET, TABLE, by_category
    from .run import Run, Settings

    prompts = choose(read_prompts(args.prompts), args.category, args.limit)
    few = args.method in FEW_STEP_METHODS
    usual = 20 if not few else 4 if args.method in (LCM, FLASH) else 1
    steps = usual if args.steps is None else args.steps
    recipe = Recipe(args.method, steps, (1.0 if few else 4.5) if args.cfg is None else args.cfg, source=args.timesteps)
    recipe.sigmas()
    judge = named(args.judge)
    processes = Processes(args.device)
    pipeline = PixArtPipeline.load(
        args.checkpoint,
        args.t5,
        args.vae,
        device=processes.device,
        dtype=getattr(torch, DTYPES[args.dtype]),
        tokenizer=args.tokenizer,
    )
    for path, strength in args.lora:
        pipeline.add_lora(path, strength)
    name = " + ".join([args.checkpoint.name, *(f"{path.name} {strength:g}" for path, strength in args.lora)])
    native = pipeline.transformer.config.native_pixels
    height, width = args.height or native, args.width or native
    if min(height, width) < PIXELS or height % PIXELS or width % PIXELS:
        raise ValueError(f"A picture of {width} x {height} is not possible: both sides must be multiples of 8.")
    others = unusual(args)
    settings = Settings(name, recipe, height, width, args.negative, args.threshold, args.percentile, others)
    run = Run(pipeline, settings, args.out, judge)
    processes.wait()
    run.draw(prompts, args.seed, processes.rank, processes.count)
    processes.wait()
    if processes.rank:
        processes.end()
        return ""
    results = run.finish(prompts, args.columns)
    processes.end()
    lines = [f"{'category':24}{'pictures':>9}{'right':>7}{'s each':>8}"]
    for name, count, right, seconds in by_category(results):
        lines.append(f"{name or '-':24}{count:9}{'-' if right is None else right:>7}{seconds:8.2f}")
    return "\n".join([*lines, f"{(args.out / TABLE).resolve()}", f"{(args.out / SHEET).resolve()}"])


def main(argv: list[str] | None = None) -> int:
    """0 when all pictures are there, 2 and one line on standard error when they cannot be."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser().parse_args(argv)
    return carry_out(lambda: evaluate(args))


if __name__ == "__main__":
    leave(main)
