"""Teaches the demo a subject that it never drew, from ten pictures, and counts what it draws before and after.

    python -m pixart.training.demo.concept --out concept-run

The subject is a large orange cross, of which each picture shows one place and background; what is asked for afterwards
are places and backgrounds that it was not shown together with. The pictures are drawn here, the class pictures by the
demo itself. Everything between is ``python -m pixart.training`` as anyone runs it. Figures go to standard output as
JSON, sheets of pictures to ``--out``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchvision.utils import save_image

from ...checkpoint import load_transformer
from ...command import DEMO
from ...pipeline import PixArtPipeline
from ...terminal import leave
from .. import __main__ as command
from ..trainer import LOG
from .captions import COLOURS, POSITIONS, SHAPES, Scene, random_scene
from .drawing import draw, place
from .export import FIGURES
from .judge import mistakes

CONCEPT, COLOUR, SIZE = "cross", "orange", "large"
"""What the word means; captions say the word alone."""
PICTURES, CLASS_PICTURES = 10, 200
JUDGED = ("background", "colour", "shape", "position")
SIDE = 128

LORA = "pixart-demo-lora"
FULL = "pixart-demo-dreambooth"

RECIPES = {
    "lora": ["--rank", "16", "--targets", "all", "--learning-rate", "5e-4", "--save-dtype", "fp16", "--name", LORA],
    "full": ["--method", "full", "--learning-rate", "2e-4", "--save-dtype", "fp16", "--name", FULL],
}


def contexts(seed: int) -> list[Scene]:
    """The subject in every place on every background, each once, in an order drawn by lot.

    Among the first ten are all backgrounds, and each place twice.
    """
    rng = random.Random(seed)
    backgrounds = [colour for colour in COLOURS if colour != COLOUR]
    rng.shuffle(backgrounds)
    places = list(POSITIONS)
    rng.shuffle(places)
    # Along a diagonal of the table, then its neighbour: 7 and 5 have no common divisor.
    count = len(backgrounds) * len(places)
    pairs = [(places[i % len(places)], backgrounds[i % len(backgrounds)]) for i in range(count)]
    return [Scene(SIZE, COLOUR, CONCEPT, place, background) for place, background in pairs]


def asked(scene: Scene) -> str:
    """The caption for the subject: neither colour nor size, for the word means both."""
    return replace(scene, size=None, colour=None).caption()


def old_scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def draw_concept(folder: Path, scenes: list[Scene], seed: int = 5) -> None:
    """The pictures to learn from, with a caption beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number, scene in enumerate(scenes):
        save_image(draw([place(scene, SIDE, SIDE, rng)], SIDE, SIDE)[0], folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(asked(scene))


def score(pipeline: PixArtPipeline, scenes: list[Scene], sheet: Path, seed: int) -> int:
    """How many of the scenes are drawn right; one picture each."""
    right, pictures = 0, []
    for start in range(0, len(scenes), 10):
        some = scenes[start : start + 10]
        positive = pipeline.encode([asked(s) if s.shape == CONCEPT else s.caption() for s in some])
        negative = pipeline.encode([""])
        latents = pipeline.sample(positive, negative, height=SIDE, width=SIDE, seed=seed + start)
        drawn = pipeline.decode(latents).movedim(-1, 1)
        pictures += drawn
        for scene, picture in zip(some, drawn, strict=True):
            wrong = mistakes(scene, picture, (*SHAPES, CONCEPT))
            right += not any(name in JUDGED for name in wrong)
    save_image(pictures, sheet, nrow=10)
    return right


def run(out: Path, method: str, steps: int, folder: Path, judge_seed: int, more: list[str]) -> dict:
    """Before, training, after.

    folder: with the demo's files. judge_seed: which prompts and noise are judged; the recipe was chosen with another
    one than the published figures are of. more: options for the training command.
    """
    demo = {part: folder / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae")}
    pipeline = PixArtPipeline.load(demo["sigma"], demo["t5"], demo["vae"])
    subject = contexts(seed=11)
    learned, unseen = subject[:PICTURES], subject[PICTURES:]
    new, old = random.Random(judge_seed).sample(unseen, 20), old_scenes(40, judge_seed + 1)
    figures: dict = {"method": method, "steps": steps}
    out.mkdir(parents=True, exist_ok=True)
    figures["before"] = {"new": score(pipeline, new, out / "new-before.png", judge_seed)}
    figures["before"]["old"] = score(pipeline, old, out / "old-before.png", judge_seed)

    draw_concept(out / "pictures", learned)
    class_captions = [scene.caption() for scene in old_scenes(CLASS_PICTURES, 13)]
    options = [part for caption in class_captions for part in ("--class-caption", caption)]
    code = command.main(
        ["--pictures", str(out / "pictures"), "--class-pictures", str(out / "class"), *options]
        + ["--class-count", str(CLASS_PICTURES), "--class-batch", "10"]
        + ["--trigger", CONCEPT, "--out", str(out / method)]
        + ["--steps", str(steps), "--batch-size", "10", "--schedule", "cosine", "--warmup", "20", "--ema", "0.99"]
        + ["--checkpoint", str(demo["sigma"]), "--t5", str(demo["t5"]), "--vae", str(demo["vae"])]
        + [*RECIPES[method], *more]
    )
    if code:
        raise SystemExit(code)
    file = out / method / f"{LORA if method == 'lora' else FULL}.safetensors"
    if method == "lora":
        pipeline.add_lora(file)
    else:
        pipeline.transformer = load_transformer(file, dtype=torch.float32).requires_grad_(False)
    figures["after"] = {"new": score(pipeline, new, out / f"new-after-{method}.png", judge_seed)}
    figures["after"]["old"] = score(pipeline, old, out / f"old-after-{method}.png", judge_seed)
    return figures


def publish(out: Path, method: str, demo: Path, figures: dict) -> Path:
    """Put the trained file among the demo's, with its log and what it scored."""
    name = f"{LORA if method == 'lora' else FULL}.safetensors"
    shutil.copyfile(out / method / name, demo / name)
    shutil.copyfile(out / method / LOG, demo / "logs" / f"{method}.log.jsonl")
    told = json.loads((demo / FIGURES).read_text())
    data = (demo / name).read_bytes()
    told["stages"][method] = {key: value for key, value in figures.items() if key != "method"}
    told["files"][name] = {
        "parameters": sum(tensor.numel() for tensor in load_file(demo / name).values()),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (demo / FIGURES).write_text(json.dumps(told, indent=2) + "\n")
    return demo / name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pixart.training.demo.concept", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("concept-run"), help="folder for everything")
    parser.add_argument("--method", choices=tuple(RECIPES), default="lora")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--demo", type=Path, default=DEMO, help="folder with the demo's files")
    parser.add_argument("--judge-seed", type=int, default=11, help="which prompts and noise are judged")
    parser.add_argument("--publish", action="store_true", help="put the trained file into the folder of the demo")
    args, more = parser.parse_known_args()
    figures = run(args.out, args.method, args.steps, args.demo, args.judge_seed, more)
    sys.stdout.write(json.dumps(figures) + "\n")
    if args.publish:
        sys.stdout.write(f"{publish(args.out, args.method, args.demo, figures)}\n")


if __name__ == "__main__":
    leave(main)
