"""``python -m pixart "a large red star"``: a picture from the command line, with no host."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .command import DTYPES, add_drawing_options, add_model_options, carry_out
from .files import written
from .terminal import leave

if TYPE_CHECKING:
    from PIL import Image


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m pixart", description="Draw a picture with PixArt; without model files, the embedded demo."
    )
    p.add_argument("prompt", nargs="?", help="what to draw")
    p.add_argument("--out", type=Path, default=Path("pixart.png"), help="picture to write (default: %(default)s)")
    add_model_options(p)
    add_drawing_options(p)
    p.add_argument("--caption", type=Path, metavar="FILE", help="a caption file in place of the prompt")
    p.add_argument("--negative-caption", type=Path, metavar="FILE", help="and of --negative; with both, no T5 is read")
    p.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    p.add_argument("--cfg", type=float, default=4.5, help="guidance scale (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    p.add_argument("--device", default="cpu", help="cpu, cuda, mps … (default: %(default)s)")
    p.add_argument("--clean-caption", action="store_true", help="clean the prompts as PixArt-α's training data was")
    return p


def picture_format(path: Path) -> str:
    """What Pillow calls the format that a name's ending asks for. Raises ValueError where it can write none."""
    from PIL import Image

    known = {ending: name for ending, name in Image.registered_extensions().items() if name in Image.SAVE}
    if path.suffix.lower() not in known:
        ending = f"The ending {path.suffix}" if path.suffix else "A name without an ending"
        raise ValueError(f"--out {path}: {ending} does not say how to write a picture. Name it .png, .jpg or .webp.")
    return known[path.suffix.lower()]


def keep(picture: Image.Image, path: Path) -> None:
    """Save a picture whole or not at all, in the format of its name."""
    with written(path) as partial:
        picture.save(partial, format=picture_format(path))


def draw(args: argparse.Namespace) -> Path:
    """Draw and save the picture; returns its absolute path.

    Raises ValueError for a prompt and a caption file at once, a name that ends as no picture's does, and what the
    pipeline raises.
    """
    import torch

    from .pipeline import PixArtPipeline

    if (args.prompt is None) == (args.caption is None):
        raise ValueError("Give a prompt or --caption, one of the two.")
    picture_format(args.out)  # before minutes of drawing
    dtype = getattr(torch, DTYPES[args.dtype])
    t5 = None if args.caption and args.negative_caption else args.t5
    pipeline = PixArtPipeline.load(
        args.checkpoint, t5, args.vae, device=args.device, dtype=dtype, tokenizer=args.tokenizer
    )
    for path, strength in args.lora:
        pipeline.add_lora(path, strength)
    picture = pipeline(
        pipeline.read_caption(args.caption) if args.caption else args.prompt,
        pipeline.read_caption(args.negative_caption) if args.negative_caption else args.negative,
        height=args.height,
        width=args.width,
        steps=args.steps,
        cfg=args.cfg,
        seed=args.seed,
        clean=args.clean_caption,
        progress=True,
    )[0]
    keep(picture, args.out)
    return args.out.resolve()


def main(argv: list[str] | None = None) -> int:
    """0 when the picture is there, 2 and one line on standard error when it cannot be."""
    logging.basicConfig(format="%(message)s")
    args = parser().parse_args(argv)
    return carry_out(lambda: str(draw(args)))


if __name__ == "__main__":
    leave(main)
