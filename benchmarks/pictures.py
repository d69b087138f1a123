"""Measures on the demo what samplers and guidance do to pictures: right ones, clipped pixels, sharp edges.

    python benchmarks/pictures.py few-step
    python benchmarks/pictures.py thresholding
    python benchmarks/pictures.py cascade

Each draws one picture for every prompt of demo/prompts.csv and row of its table, from the same noise in every row, and
leaves a sheet in output/benchmarks. A picture is right when all that its prompt says is seen in its pixels.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from pixart.cascade import augment, augmentation_sigmas, enlarge  # noqa: E402
from pixart.evaluation.judges import named  # noqa: E402
from pixart.evaluation.prompts import read_prompts  # noqa: E402
from pixart.evaluation.sheet import Entry, draw_sheet  # noqa: E402
from pixart.guidance import LatentRange, dynamic_threshold, latent_range, threshold  # noqa: E402
from pixart.pipeline import PixArtPipeline, matched  # noqa: E402
from pixart.sampling_transformer import Recipe, draw  # noqa: E402
from pixart.training.demo.captions import random_scene  # noqa: E402
from pixart.training.demo.drawing import draw as draw_scenes  # noqa: E402
from pixart.training.demo.drawing import place  # noqa: E402

DEMO = ROOT / "demo"
SHEETS = ROOT / "output" / "benchmarks"
SEED = 20
CFGS = (4.5, 9.0, 15.0, 25.0)
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SHOWN = 6
"""Pictures of every row on the sheet."""


@dataclass
class Bench:
    """A checkpoint, the prompts and their captions."""

    pipeline: PixArtPipeline
    prompts: list[str]

    def __post_init__(self) -> None:
        self.judge = named("demo")
        self.positive = self.pipeline.encode(self.prompts)
        self.negative = matched(self.pipeline.encode([""]), len(self.prompts))

    def latents(self, recipe: Recipe, **more) -> torch.Tensor:
        guided = self.negative if recipe.cfg != 1 else None
        return draw(self.pipeline.transformer, self.positive, guided, recipe, seed=SEED, **more)

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1], decoded a few at a time."""
        return torch.cat([self.pipeline.decode(part) for part in latents.split(8)]).movedim(-1, 1)

    def right(self, pictures: torch.Tensor) -> int:
        verdicts = [self.judge(prompt, picture) for prompt, picture in zip(self.prompts, pictures, strict=True)]
        return sum(verdict is not None and verdict[0] == 1 for verdict in verdicts)


def clipped(pictures: torch.Tensor) -> float:
    """Share of pixels with a channel at either end of its range."""
    return ((pictures <= 0) | (pictures >= 1)).any(dim=1).float().mean().item()


def sharpness(pictures: torch.Tensor) -> float:
    """Mean over pictures of the steepest edges: the 99.5th percentile of the brightness step from one pixel to the
    next, as a share of the picture's contrast. A step within one pixel is 1."""
    light = pictures.mean(dim=1)
    steps = torch.cat([light.diff(dim=1).flatten(1), light.diff(dim=2).flatten(1)], dim=1).abs()
    contrast = light.flatten(1).quantile(0.99, dim=1) - light.flatten(1).quantile(0.01, dim=1)
    return (steps.quantile(0.995, dim=1) / contrast.clamp(min=0.05)).mean().item()


def to_pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture.movedim(0, -1) * 255).round().to(torch.uint8).numpy())


def save_sheet(name: str, rows: Sequence[tuple[str, torch.Tensor]], prompts: Sequence[str]) -> Path:
    """One row of pictures for every row of a table."""
    entries = [
        Entry(to_pil(picture), prompt, "", label)
        for label, pictures in rows
        for picture, prompt in zip(pictures[:SHOWN], prompts, strict=False)
    ]
    SHEETS.mkdir(parents=True, exist_ok=True)
    path = SHEETS / f"{name}.png"
    draw_sheet(entries, SHOWN, name).save(path)
    return path


def real_range(pipeline: PixArtPipeline, percentile: float) -> LatentRange:
    """Of 64 pictures of the demo's world, encoded by its autoencoder."""
    rng = random.Random(5)
    pictures = draw_scenes([place(random_scene(rng), 128, 128, rng) for _ in range(64)], 128, 128)
    autoencoder = pipeline.autoencoder
    encoded = autoencoder.model.encode(pictures * 2 - 1).latents
    scaled = (encoded / autoencoder.scale + autoencoder.shift) * pipeline.transformer.config.latent_scale
    return latent_range(scaled, percentile, together=True)


def thresholding(bench: Bench, args: argparse.Namespace) -> None:
    p = args.percentile
    real = real_range(bench.pipeline, p)
    one = LatentRange(torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1))
    ways = {
        "none": None,
        "pixel rule, −1 … 1": lambda x, free: dynamic_threshold(x, one, p),
        "static, own range": lambda x, free: threshold(x, free, "static", p),
        "dynamic, own range": lambda x, free: dynamic_threshold(x, latent_range(free, p), p),
        "static, real latents": lambda x, free: threshold(x, free, "static", p, real),
        "dynamic, real latents": lambda x, free: threshold(x, free, "dynamic", p, real),
    }
    print(f"percentile {p:g}; right pictures of {len(bench.prompts)}, and share of clipped pixels\n")
    print("| thresholding |" + "".join(f" cfg {cfg:g} |" for cfg in args.cfgs))
    print("|---|" + "---|" * len(args.cfgs))
    rows = []
    for name, after in ways.items():
        cells = []
        for cfg in args.cfgs:
            latents = bench.latents(Recipe(cfg=cfg, steps=args.steps), size=(16, 16), after=after)
            pictures = bench.pictures(latents)
            cells.append(f" {bench.right(pictures)}, {clipped(pictures):.1%} |")
            rows.append((f"{name}, cfg {cfg:g}", pictures))
        print(f"| {name} |" + "".join(cells), flush=True)
    middle, half = (real.middle.flatten().tolist(), real.half.flatten().tolist())
    print("\nreal latents, by channel: " + ", ".join(f"{m:.2f} ± {h:.2f}" for m, h in zip(middle, half, strict=True)))
    print(save_sheet("thresholding", rows, bench.prompts))


def cascade(bench: Bench, args: argparse.Namespace) -> None:
    recipe = Recipe(steps=args.steps)
    first = bench.latents(recipe, size=(16, 16))
    small = bench.pictures(first)
    print(f"first pass at 128 × 128: {bench.right(small)} of {len(bench.prompts)} right\n")
    print("| augmentation | right, bicubic | sharpness | right, nearest-exact | sharpness |\n|---|---|---|---|---|")
    rows = [("first pass, enlarged as a picture", enlarge(small, 256, 256).clamp(0, 1))]
    for level in LEVELS:
        cells = []
        for method in ("bicubic", "nearest-exact"):
            latents = enlarge(first, 32, 32, method)
            sigmas = augmentation_sigmas(level, args.steps)
            if len(sigmas):
                noisy = augment(latents, float(sigmas[0]), SEED + 1)
                latents = bench.latents(Recipe(steps=args.steps, start=level), latents=noisy)
            pictures = bench.pictures(latents)
            cells.append(f" {bench.right(pictures)} | {sharpness(pictures):.3f} |")
            if method == "bicubic":
                rows.append((f"augmentation {level:g}", pictures))
        print(f"| {level:g} |" + "".join(cells), flush=True)
    print(f"\nsharpness of the first pass enlarged as a picture: {sharpness(rows[0][1]):.3f}")
    print(save_sheet("cascade", rows, bench.prompts))


def few_step(bench: Bench, args: argparse.Namespace) -> None:
    base = Bench(PixArtPipeline.load(DEMO / "pixart-demo-sigma.safetensors", args.t5, args.vae), bench.prompts)
    runs = [("Σ", base, Recipe(steps=20)), ("Σ", base, Recipe(steps=20, cfg=1.0))]
    runs += [("Σ", base, Recipe("lcm", steps, 1.0)) for steps in (1, 2, 4, 8)]
    bench.pipeline.add_lora(args.lora)
    runs += [(args.lora.stem, bench, Recipe("lcm", steps, 1.0)) for steps in (1, 2, 4, 8)]
    print(
        f"| weights | sampler | steps | cfg | right of {len(bench.prompts)} | s a picture |\n|---|---|---|---|---|---|"
    )
    rows = []
    for name, which, recipe in runs:
        started = time.perf_counter()
        latents = which.latents(recipe, size=(16, 16))
        seconds = (time.perf_counter() - started) / len(which.prompts)
        pictures = which.pictures(latents)
        right = which.right(pictures)
        print(f"| {name} | {recipe.method} | {recipe.steps} | {recipe.cfg:g} | {right} | {seconds:.3f} |", flush=True)
        rows.append((f"{name}, {recipe.method}, {recipe.steps} steps, cfg {recipe.cfg:g}", pictures))
    print(save_sheet("few-step", rows, bench.prompts))


MEASURES = {"thresholding": thresholding, "cascade": cascade, "few-step": few_step}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--checkpoint", type=Path, default=DEMO / "pixart-demo-sigma.safetensors")
    parser.add_argument("--lora", type=Path, default=DEMO / "pixart-demo-lcm-lora.safetensors", help="of few-step")
    parser.add_argument("--t5", type=Path, default=DEMO / "pixart-demo-t5.safetensors")
    parser.add_argument("--vae", type=Path, default=DEMO / "pixart-demo-vae.safetensors")
    parser.add_argument("--prompts", type=Path, default=DEMO / "prompts.csv")
    parser.add_argument("--limit", type=int, default=40, help="prompts, of all categories in turn")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfgs", type=float, nargs="+", default=CFGS, help="guidance scales of thresholding")
    parser.add_argument("--percentile", type=float, default=99.5)
    args = parser.parse_args()
    prompts = [prompt.text for prompt in read_prompts(args.prompts)]
    stride = max(1, len(prompts) // args.limit)
    bench = Bench(PixArtPipeline.load(args.checkpoint, args.t5, args.vae), prompts[::stride][: args.limit])
    with torch.inference_mode():
        MEASURES[args.measure](bench, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
