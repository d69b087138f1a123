"""What this library's commands share: the demo's files, options that name models, and how a command ends."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from .terminal import fail

DEMO = Path(__file__).resolve().parent.parent / "demo"

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def add_model_options(p: argparse.ArgumentParser) -> None:
    """--checkpoint, --t5, --vae and --tokenizer; without them the demo's."""
    p.add_argument("--checkpoint", type=Path, default=DEMO / "pixart-demo-sigma.safetensors", metavar="FILE")
    p.add_argument("--t5", type=Path, default=DEMO / "pixart-demo-t5.safetensors", metavar="FILE")
    p.add_argument("--vae", type=Path, default=DEMO / "pixart-demo-vae.safetensors", metavar="FILE")
    p.add_argument("--tokenizer", type=Path, metavar="FILE", help="spiece.model, for a T5 file that has none inside")


def add_drawing_options(p: argparse.ArgumentParser) -> None:
    """What commands that draw are told beside: --lora, --negative, --width, --height and --dtype."""
    told = "a LoRA and its strength, 1 where none is given; may be said several times"
    p.add_argument("--lora", type=lora_argument, action="append", default=[], metavar="FILE[=STRENGTH]", help=told)
    p.add_argument("--negative", default="", help="what the picture should not show")
    p.add_argument("--width", type=int, help="pixels, a multiple of 8 (default: the checkpoint's own)")
    p.add_argument("--height", type=int, help="pixels, a multiple of 8 (default: the checkpoint's own)")
    p.add_argument("--dtype", choices=DTYPES, default="fp32", help="of transformer and T5 (default: %(default)s)")


def lora_argument(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE=STRENGTH``. Raises argparse's error for a strength that is no number."""
    name, told, strength = text.rpartition("=")
    if not told:
        return Path(text), 1.0
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{strength!r} is no strength: write FILE=0.8, for example.")
    return Path(name), number


def carry_out(work: Callable[[], str]) -> int:
    """Do a command's work and write what it tells on standard output.

    Returns the process's exit code: 0, 2 with one line on standard error when the work cannot be done, 130 when it
    was stopped.
    """
    try:
        told = work()
    except BrokenPipeError:  # whoever read has left: see terminal.leave
        raise
    except ModuleNotFoundError as error:
        return fail(f"the package {error.name} is missing: pip install {error.name}")
    except (ValueError, OSError, RuntimeError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    if told:
        sys.stdout.write(f"{told}\n")
    return 0
