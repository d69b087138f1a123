"""What each step cache saves and costs: block computations, time, latent error and wrong pictures, on the demo.

    python benchmarks/caches.py --comfyui ../ComfyUI --plot docs/step-cache.svg
    python benchmarks/caches.py --search 0.4        # a table of steps that computes this part of the blocks

Pictures are drawn in ComfyUI's sampler from random captions of the demo's world and judged by their pixels. A picture
is lost when it was right without the cache and is wrong with it. Time is that of one picture, every
method in every round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness")]

import torch  # noqa: E402

from tools.comfyui import find_hosts, read_host  # noqa: E402

SETTINGS = {
    "gentle": {"method": "gentle"},
    "balanced": {"method": "balanced"},
    "fast": {"method": "fast"},
    "schedule, every 2": {"method": "schedule", "every": 2},
    "schedule, every 3": {"method": "schedule", "every": 3},
    "threshold 0.1": {"method": "threshold", "threshold": 0.1},
    "threshold 0.3": {"method": "threshold", "threshold": 0.3},
    "tgate 0.5": {"method": "tgate", "gate": 0.5},
    "tgate 0.25": {"method": "tgate", "gate": 0.25},
}


class Demo:
    """The demo model in ComfyUI, its captions, and its judge."""

    def __init__(self, folder: Path, host, pictures: int, steps: int, cfg: float):
        import host_process

        host_process.enter(host)
        pack = host_process.load_pack(ROOT).__name__
        for name in ("model", "step_cache"):
            __import__(f"{pack}.nodes.host.{name}")
        self.caching = sys.modules[f"{pack}.pixart.caching"]
        self.step_cache = sys.modules[f"{pack}.nodes.host.step_cache"]
        self.model = sys.modules[f"{pack}.nodes.host.model"].load_model(str(folder / "pixart-demo-sigma.safetensors"))
        from pixart.pipeline import PixArtPipeline
        from pixart.training.demo.captions import random_scene

        names = (folder / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae"))
        self.pipeline = PixArtPipeline.load(*names)
        rng = random.Random(8)
        self.scenes = [random_scene(rng) for _ in range(pictures)]
        self.steps, self.cfg = steps, cfg
        self.captions = self.pipeline.encode([scene.caption() for scene in self.scenes])
        self.negative = self.pipeline.encode([""])
        self.noise = torch.randn(pictures, 4, 16, 16, generator=torch.Generator().manual_seed(5))

    def draw(self, settings: dict | None, count: int | None = None) -> tuple[torch.Tensor, float]:
        """(latents, part of the blocks that was computed)."""
        import comfy.sample

        model, report = self.model, []
        if settings is not None:
            say = self.step_cache.say
            self.step_cache.say = lambda text, node: report.append(text)
            model = self.step_cache.add_step_cache(model, self.caching.CacheSettings(**settings), 0.0, 1.0)
        noise = self.noise[:count]
        n = len(noise)
        positive = [[self.captions.embeddings[:n], {"attention_mask": self.captions.mask[:n]}]]
        negative = [[self.negative.embeddings, {"attention_mask": self.negative.mask}]]
        try:
            latents = comfy.sample.sample(
                model, noise, self.steps, self.cfg, "dpmpp_2m", "normal", positive, negative, torch.zeros_like(noise),
                disable_pbar=True, seed=1,
            )  # fmt: skip
        finally:
            if settings is not None:
                self.step_cache.say = say
        if not report:
            return latents, 1.0
        computed, asked = (int(word) for word in report[0].split() if word.isdigit())
        return latents, computed / asked

    def right(self, latents: torch.Tensor) -> list[bool]:
        from pixart.training.demo.judge import mistakes

        # comfy.sample returns latents over the transformer's scale, which decoders take.
        pictures = self.pipeline.autoencoder.decode(latents)
        return [not mistakes(scene, picture) for scene, picture in zip(self.scenes, pictures, strict=True)]


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(demo: Demo, rounds: int, chosen: list[str]) -> list[tuple]:
    exact, _ = demo.draw(None)
    right = demo.right(exact)
    print(f"{len(right)} pictures, {demo.steps} steps, cfg {demo.cfg}: {sum(right)} right without a cache", flush=True)
    times: dict[str, list[float]] = {name: [] for name in ("exact", *chosen)}
    for index in range(rounds):
        names = list(times)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            times[name].append(seconds(lambda name=name: demo.draw(SETTINGS.get(name), 1)))
    rows = []
    print(f"{'':20}{'computed':>10}{'ratio':>8}{'latent error':>14}{'lost':>6}{'gained':>8}")
    for name in chosen:
        settings = SETTINGS[name]
        latents, part = demo.draw(settings)
        now = demo.right(latents)
        error = ((latents - exact).pow(2).mean() / exact.pow(2).mean()).sqrt().item()
        ratio = statistics.median(a / b for a, b in zip(times["exact"], times[name], strict=True))
        lost = sum(a and not b for a, b in zip(right, now, strict=True))
        gained = sum(b and not a for a, b in zip(right, now, strict=True))
        rows.append((name, part, ratio, error, lost, gained))
        print(f"{name:20}{part:10.2f}{ratio:8.2f}{error:14.3f}{lost:6}{gained:8}", flush=True)
    return rows


def search(demo: Demo, target: float) -> str:
    """Greedy: again and again, leave out the blocks of the two steps that change the latents least."""
    exact, _ = demo.draw(None)
    table = ["F"] * 20
    searched = demo.caching.TABLES

    def error(candidate: list[str]) -> float:
        searched["balanced"] = "".join(candidate)
        return (demo.draw({"method": "balanced"})[0] - exact).pow(2).mean().sqrt().item()

    while table.count("F") / len(table) > target:
        full = [i for i in range(1, len(table)) if table[i] == "F"]
        errors = {i: error([*table[:i], "S", *table[i + 1 :]]) for i in full}
        for i in sorted(errors, key=errors.get)[:2]:
            if table.count("F") / len(table) > target:
                table[i] = "S"
        print("".join(table), f"{error(table):.4f}", flush=True)
    return "".join(table)


def plot(rows: list[tuple], path: Path) -> None:
    """The table as a picture: error over saving, an SVG without anything to install."""
    width, height, left, bottom = 640, 400, 60, 350
    most = max(1 / row[1] for row in rows) * 1.05
    worst = max(row[3] for row in rows) * 1.1
    marks = []
    for name, part, _, error, lost, _ in rows:
        x = left + (1 / part - 1) / (most - 1) * (width - left - 150)
        y = bottom - error / worst * (bottom - 40)
        marks.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="#2266bb"/>')
        marks.append(f'<text x="{x + 7:.0f}" y="{y + 4:.0f}">{name} ({1 / part:.2f}, {error:.2f}; {lost} lost)</text>')
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>'
        f'<path d="M{left} 30V{bottom}H{width - 20}" stroke="#888" fill="none"/>'
        f'<text x="{left}" y="20">Step caches on the demo model: relative error of the latents</text>'
        f'<text x="{left}" y="{bottom + 30}">all block computations / those that were done, from 1 to {most:.1f}</text>'
        f"{''.join(marks)}</svg>\n"
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI tree (default: COMFYUI_PATH, or one found nearby)")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="the folder of the demo's three files")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings to measure")
    parser.add_argument("--search", type=float, metavar="PART", help="look for a table that computes this part")
    parser.add_argument("--plot", type=Path, help="write a picture of the table")
    args = parser.parse_args()
    host = read_host(args.comfyui) if args.comfyui else next(iter(find_hosts()), None)
    if host is None:
        parser.error("no ComfyUI found: name its folder with --comfyui or COMFYUI_PATH")
    with torch.inference_mode():
        demo = Demo(args.demo, host, args.pictures, args.steps, args.cfg)
        if args.search is not None:
            print(search(demo, args.search))
            return 0
        rows = measure(demo, args.rounds, args.only)
    if args.plot:
        plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
