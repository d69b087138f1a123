"""Teach PixArt a concept from a few pictures: a LoRA, or with --method full a DreamBooth checkpoint.

    python -m pixart.training --pictures photos --caption "a photo of sks dog" --out run

One process as above; several, also on several machines, with the same result for the same seed and batch size:

    accelerate launch -m pixart.training --pictures photos …

A ControlNet is trained on many pictures with captions, and on hints that a function makes of them or that lie in a
folder under the same names:

    python -m pixart.training --method controlnet --hint edges --pictures photos --out run

KV compression, which makes 2K and 4K affordable, is put into a checkpoint that has none by some hundred updates on
pictures of that size:

    python -m pixart.training --method compression --pictures photos --resolution 2048 --steps 500 --out run

Stopped in any way, the same command goes on from the last saved state. Captions may also lie in text files beside the
pictures, of the same name.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

from ..command import add_model_options, carry_out
from ..terminal import leave
from .settings import COMPRESSION, CONTROLNET, METHODS, PRECISIONS, SCHEDULES, TARGETS, TrainSettings

CHOICES = {"method": METHODS, "schedule": SCHEDULES, "precision": PRECISIONS, "targets": tuple(TARGETS)}

HELP = {
    "method": "lora, full: all weights, controlnet, or compression of keys and values",
    "steps": "updates of the weights",
    "batch_size": "pictures of the concept in an update, over all processes",
    "accumulation": "forwards that an update is split into",
    "warmup": "updates over which the learning rate rises",
    "alpha": "strength of a LoRA's update over its rank; 0 takes the rank",
    "targets": "layers that get a LoRA",
    "copied_blocks": "of a ControlNet; 0: half of the checkpoint's",
    "kv_ratio": "side of the windows of the compression",
    "kv_first_block": "first block with compression; -1: the middle one",
    "kv_last_block": "last block with compression; -1: the last one",
    "caption_dropout": "share of captions left out",
    "prior_weight": "what class pictures count",
    "min_snr": "gamma of min-SNR weighting; 0: plain loss",
    "ema": "decay of an average of the weights, which is then saved; 0: none",
    "precision": "bf16 computes in bfloat16",
    "checkpointing": "compute blocks twice, for memory",
    "resolution": "side of the square whose area pictures get; 0: the checkpoint's own",
    "save_every": "updates between saved states; 0: at the end only",
    "preview_every": "updates between previews; 0: at the end only",
}

HINT_HELP = "what makes a ControlNet's hints: edges, or a function of yours as package.module:function"

SAVE_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m pixart.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="pictures of the concept")
    p.add_argument("--caption", default="", help="caption of every picture that has no text file beside it")
    p.add_argument("--trigger", default="", help="the word that calls the concept; kept in the file for people")
    p.add_argument("--class-pictures", type=Path, metavar="DIR", help="pictures of what the model should not forget")
    p.add_argument(
        "--class-caption", action="append", default=[], help="of class pictures without a text file; may be repeated"
    )
    p.add_argument(
        "--class-count", type=int, default=0, metavar="N", help="let the model draw so many class pictures beforehand"
    )
    p.add_argument("--class-batch", type=int, default=1, metavar="N", help="how many it draws at once (default: 1)")
    hint = p.add_mutually_exclusive_group()
    hint.add_argument("--hint", default="", metavar="NAME", help=HINT_HELP)
    hint.add_argument("--hints", type=Path, metavar="DIR", help="hints, under the names of the pictures")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for state, previews and the result")
    p.add_argument("--name", default="", help="of the trained file (default: pixart-lora, -controlnet or -kv)")
    p.add_argument("--preview", action="append", default=[], metavar="PROMPT", help="draw this; may be repeated")
    add_model_options(p)
    p.add_argument("--clean-caption", action="store_true", help="clean captions as PixArt-α's training data was")
    p.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto or cpu (default: %(default)s)")
    p.add_argument("--save-dtype", choices=SAVE_DTYPES, default="fp32", help="of the trained file (default: fp32)")
    group = p.add_argument_group("training")
    for field in fields(TrainSettings):
        option, text = "--" + field.name.replace("_", "-"), HELP.get(field.name, "")
        if isinstance(field.default, bool):
            group.add_argument(option, action="store_true", help=text)
            continue
        group.add_argument(
            option,
            type=type(field.default),
            default=field.default,
            choices=CHOICES.get(field.name),
            help=f"{text} (default: {field.default})".strip(),
        )
    return p


def examples_of(args: argparse.Namespace) -> list:
    """The concept's pictures, then the class's. Raises ValueError as ``read_folder`` does."""
    from .pictures import read_folder

    found = read_folder(args.pictures, args.caption)
    if args.class_pictures:
        found += read_folder(args.class_pictures, args.class_caption[0] if args.class_caption else "", prior=True)
    return found


def hinted(args: argparse.Namespace, examples: list, resolution: int) -> list:
    """The pictures with their hints. Raises ValueError as ``pixart.training.hints`` does, and for options apart."""
    from .hints import hint_function, with_made_hints, with_read_hints

    if args.class_pictures or args.class_count:
        raise ValueError("A ControlNet leaves the model as it is: --class-pictures and --class-count are not for it.")
    if args.hints:
        return with_read_hints(examples, args.hints)
    if not args.hint:
        raise ValueError("--method controlnet needs --hint, such as --hint edges, or --hints, a folder of hints.")
    return with_made_hints(examples, hint_function(args.hint), resolution)


def train(args: argparse.Namespace) -> Path:
    """Prepare, train, and return the trained file."""
    import torch

    from ..checkpoint import open_checkpoint
    from .compression import CompressionTrainer
    from .controlnet import ControlTrainer
    from .pictures import concerns
    from .sources import Sources, draw_class_pictures, prepare
    from .trainer import Trainer, make_accelerator
    from .writing import file_sha

    settings = TrainSettings(**{field.name: getattr(args, field.name) for field in fields(TrainSettings)})
    accelerator = make_accelerator(args.device == "cpu")
    if accelerator.is_main_process:
        logging.getLogger("pixart").setLevel(logging.INFO)
    sources = Sources(
        open_checkpoint(args.checkpoint), args.t5, args.vae, args.tokenizer, args.clean_caption, accelerator.device
    )
    if args.class_count:
        if not args.class_pictures or not args.class_caption or args.class_batch < 1:
            raise ValueError(
                "--class-count needs --class-pictures, a folder to draw into, --class-caption, and a --class-batch "
                "of 1 or more."
            )
        if accelerator.is_main_process:
            draw_class_pictures(
                sources, args.class_pictures, args.class_caption, args.class_count, settings.seed, args.class_batch
            )
        accelerator.wait_for_everyone()
    examples = examples_of(args)
    resolution = settings.resolution or sources.checkpoint.config.native_pixels
    is_control = settings.method == CONTROLNET
    if is_control:
        examples = hinted(args, examples, resolution)
    elif args.hint or args.hints:
        raise ValueError("--hint and --hints are for --method controlnet.")
    elif accelerator.is_main_process and settings.method != COMPRESSION:  # which learns nothing of the pictures
        for concern in concerns(examples, args.trigger):
            sys.stderr.write(f"pixart: {concern}\n")
    features = prepare(sources, examples, args.preview, resolution, args.out, accelerator)
    data = [
        file_sha(sources.checkpoint),
        sources.identity(examples, (), resolution),
    ]
    kind, name = {
        CONTROLNET: (partial(ControlTrainer, hint=args.hint), "pixart-controlnet"),
        COMPRESSION: (CompressionTrainer, "pixart-kv"),
    }.get(settings.method, (Trainer, "pixart-lora"))
    trainer = kind(
        sources.checkpoint,
        features,
        settings,
        args.out,
        settings.identity(data),
        accelerator=accelerator,
        name=args.name or name,
        trigger=args.trigger,
        save_dtype=getattr(torch, SAVE_DTYPES[args.save_dtype]),
    )
    on_step = progress_bar(settings.steps, trainer.step) if accelerator.is_main_process else None
    on_preview = picture_writer(sources, args.out) if args.preview and accelerator.is_main_process else None
    return trainer.train(on_step, on_preview).resolve()


def progress_bar(steps: int, done: int):
    """A bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    bar = tqdm(total=steps, initial=done, desc="Training", mininterval=1, disable=None)

    def on_step(progress) -> None:
        bar.update(progress.step - bar.n)
        bar.set_postfix(loss=f"{progress.loss:.4f}", refresh=False)

    return on_step


def picture_writer(sources, out: Path):
    """Writes previews as ``preview-<step>.png``, side by side."""
    from torchvision.utils import save_image

    autoencoder, scale = sources.autoencoder(), sources.checkpoint.config.latent_scale

    def on_preview(step: int, latents) -> None:
        save_image(autoencoder.decode(latents / scale), out / f"preview-{step:06d}.png", nrow=8)

    return on_preview


def main(argv: list[str] | None = None) -> int:
    """0 when the file is there, 2 and one line on standard error when it cannot be, 130 when it was stopped."""
    logging.basicConfig(format="%(message)s")
    args = parser().parse_args(argv)
    return carry_out(lambda: str(train(args)))


if __name__ == "__main__":
    leave(main)
