"""``python -m pixart "a large red star"``: a picture from the command line, with no host."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from .command import DTYPES, add_drawing_options, add_model_options, carry_out


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


def draw(args: argparse.Namespace) -> Path:
    """Draw and save the picture; returns its absolute path.

    Raises ValueError for a prompt and a caption file at once, a name that ends as no picture's does, and what the
    pipeline raises.
    """
    import torch
    from PIL import Image

    from .files import written
    from .pipeline import PixArtPipeline

    if (args.prompt is None) == (args.caption is None):
        raise ValueError("Give a prompt or --caption, one of the two.")
    kind = Image.registered_extensions().get(args.out.suffix.lower())
    if kind is None:
        raise ValueError(f"{args.out.name} does not end as a picture does: call it {args.out.stem}.png, for example.")
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
    with written(args.out) as partial:
        picture.save(partial, format=kind)
    return args.out.resolve()


def main(argv: list[str] | None = None) -> int:
    """0 when the picture is there, 2 and one line on standard error when it cannot be."""
    logging.basicConfig(format="%(message)s")
    args = parser().parse_args(argv)
    return carry_out(lambda: str(draw(args)))


if __name__ == "__main__":
    sys.exit(main())
