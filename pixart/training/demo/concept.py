"""Teaches the demo a shape that it never drew, from ten pictures, and counts what it draws before and after.

    python -m pixart.training.demo.concept --out concept-run

The pictures are drawn here, the class pictures by the demo itself. Everything between is ``python -m pixart.training``
as anyone runs it. Figures go to standard output as JSON, sheets of pictures to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchvision.utils import save_image

from ...__main__ import DEMO
from ...checkpoint import load_transformer
from ...checkpoint.keys import diffusers_names
from ...pipeline import PixArtPipeline
from ...transformer import PixArtTransformer
from .. import __main__ as command
from ..adapters import PREFIX
from .captions import SHAPES, Scene, random_scene
from .drawing import draw, place
from .judge import mistakes

CONCEPT = "cross"
PICTURES, CLASS_PICTURES = 10, 60
JUDGED = ("background", "colour", "shape", "position")
SIDE = 128

LORA = "pixart-demo-lora"
FULL = "pixart-demo-dreambooth"

RECIPES = {
    "lora": ["--rank", "16", "--targets", "all", "--learning-rate", "5e-4", "--name", LORA],
    "full": ["--method", "full", "--learning-rate", "2e-4", "--save-dtype", "fp16", "--name", FULL],
}


def scenes_of(concept: bool, count: int, seed: int) -> list[Scene]:
    """Scenes with the new shape, or with the old ones; complete, at random."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return [replace(scene, shape=CONCEPT) for scene in scenes] if concept else scenes


def draw_concept(folder: Path, seed: int = 5) -> None:
    """The ten pictures to learn from, with a caption beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number, scene in enumerate(scenes_of(True, PICTURES, seed)):
        save_image(draw([place(scene, SIDE, SIDE, rng)], SIDE, SIDE)[0], folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(scene.caption())


def merge(transformer: PixArtTransformer, lora: Path) -> None:
    """Add a trained LoRA to the weights, in place."""
    state = load_file(lora)
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            parts = [PREFIX + part.removesuffix(".weight") for part in diffusers_names(name)]
            if parts and f"{parts[0]}.lora_A.weight" in state:
                deltas = [state[f"{p}.lora_B.weight"] @ state[f"{p}.lora_A.weight"] for p in parts]
                weight += torch.cat(deltas)


def score(pipeline: PixArtPipeline, scenes: list[Scene], sheet: Path) -> int:
    """How many of the scenes are drawn right; one picture each."""
    right, pictures = 0, []
    for start in range(0, len(scenes), 10):
        some = scenes[start : start + 10]
        positive, negative = pipeline.encode([scene.caption() for scene in some]), pipeline.encode([""])
        latents = pipeline.sample(positive, negative, height=SIDE, width=SIDE, seed=100 + start)
        drawn = pipeline.decode(latents).movedim(-1, 1)
        pictures += drawn
        for scene, picture in zip(some, drawn, strict=True):
            wrong = mistakes(scene, picture, (*SHAPES, CONCEPT))
            right += not any(name in JUDGED for name in wrong)
    save_image(pictures, sheet, nrow=10)
    return right


def run(out: Path, method: str, steps: int, folder: Path, more: list[str]) -> dict:
    """Before, training, after. folder: with the demo's files; more: options for the training command."""
    demo = {part: folder / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae")}
    pipeline = PixArtPipeline.load(demo["sigma"], demo["t5"], demo["vae"])
    new, old = scenes_of(True, 20, 11), scenes_of(False, 40, 12)
    figures: dict = {"method": method, "steps": steps}
    out.mkdir(parents=True, exist_ok=True)
    figures["before"] = {"new": score(pipeline, new, out / "new-before.png")}
    figures["before"]["old"] = score(pipeline, old, out / "old-before.png")

    draw_concept(out / "pictures")
    class_captions = [scene.caption() for scene in scenes_of(False, CLASS_PICTURES, 13)]
    asked = [part for caption in class_captions for part in ("--class-caption", caption)]
    code = command.main(
        ["--pictures", str(out / "pictures"), "--class-pictures", str(out / "class"), *asked]
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
        merge(pipeline.transformer, file)
    else:
        pipeline.transformer = load_transformer(file, dtype=torch.float32).requires_grad_(False)
    figures["after"] = {"new": score(pipeline, new, out / f"new-after-{method}.png")}
    figures["after"]["old"] = score(pipeline, old, out / f"old-after-{method}.png")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pixart.training.demo.concept", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("concept-run"), help="folder for everything")
    parser.add_argument("--method", choices=tuple(RECIPES), default="lora")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--demo", type=Path, default=DEMO, help="folder with the demo's files")
    args, more = parser.parse_known_args()
    sys.stdout.write(json.dumps(run(args.out, args.method, args.steps, args.demo, more)) + "\n")


if __name__ == "__main__":
    main()
