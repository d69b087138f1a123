"""What each step cache saves and costs: block computations, time, latent error and wrong pictures, on the demo.

    python benchmarks/caches.py --comfyui ../ComfyUI --plot benchmarks/step-caches.svg
    python benchmarks/caches.py --fresh 1 --pictures 120 --rounds 1  # captions that no table was chosen by
    python benchmarks/caches.py --fresh 2 --pictures 160 --rounds 1 --tables FSSFSSFSSFSSFSSFSSFF --only balanced
    python benchmarks/caches.py --search 0.4              # a table of steps that computes this part of the blocks
    python benchmarks/caches.py --true-width 256 --depth 4          # random weights: time and latent error alone

Pictures are drawn in ComfyUI's sampler from the prompts of demo/prompts.csv and judged by their pixels. A picture is
lost when it was right without the cache and is wrong with it. Time is that of one picture, every method in every round.

--search walks from an even spacing to the table of least latent error: again and again two steps change places, and
the change stays where it errs less. It draws captions of the demo's world that are not in the file, from other noise,
so that what it finds is not fitted to what is scored. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness"), str(ROOT / "benchmarks")]

import peers  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

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


STEPS = 20


class Runs:
    """A MODEL in ComfyUI, and captions and noise to sample with."""

    def __init__(self, host, path: Path, steps: int, cfg: float):
        import host_process

        host_process.enter(host)
        pack = host_process.load_pack(ROOT).__name__
        for name in ("model", "step_cache"):
            __import__(f"{pack}.nodes.host.{name}")
        self.caching = sys.modules[f"{pack}.pixart.caching"]
        self.step_cache = sys.modules[f"{pack}.nodes.host.step_cache"]
        self.model = sys.modules[f"{pack}.nodes.host.model"].load_model(str(path))
        self.steps, self.cfg = steps, cfg
        self.shipped = self.caching.TABLES["balanced"]

    def give(self, positive: tuple, negative: tuple, noise: torch.Tensor) -> None:
        """positive, negative: features (B, L, C) and mask (B, L)."""
        self.positive, self.negative, self.noise = positive, negative, noise

    def draw(self, settings: dict | None, count: int | None = None) -> tuple[torch.Tensor, float]:
        """(latents, part of the blocks that was computed)."""
        import comfy.sample

        model, report = self.model, []
        if settings is not None:
            settings = self.with_table(settings)
            say = self.step_cache.say
            self.step_cache.say = lambda text, node: report.append(text)
            model = self.step_cache.add_step_cache(model, self.caching.CacheSettings(**settings), 0.0, 1.0)
        noise = self.noise[:count]
        n = len(noise)
        positive = [[self.positive[0][:n], {"attention_mask": self.positive[1][:n]}]]
        negative = [[self.negative[0], {"attention_mask": self.negative[1]}]]
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

    def with_table(self, settings: dict) -> dict:
        """Settings as the node knows them; one whose method is no name but a table goes by the name of "balanced"."""
        tables = self.caching.TABLES
        is_table = set(settings["method"]) <= set("FS")
        tables["balanced"] = settings["method"] if is_table else self.shipped
        return {**settings, "method": "balanced"} if is_table else settings

    def right(self, latents: torch.Tensor) -> list[bool] | None:
        """Which pictures show what their prompts say; None where that cannot be told."""
        return None


class Demo(Runs):
    """The demo model, its captions, and its judge."""

    def __init__(self, folder: Path, host, scenes: list, steps: int, cfg: float, seed: int):
        super().__init__(host, folder / "pixart-demo-sigma.safetensors", steps, cfg)
        from pixart.pipeline import PixArtPipeline

        names = (folder / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae"))
        self.pipeline, self.scenes = PixArtPipeline.load(*names), scenes
        captions, empty = (self.pipeline.encode(texts) for texts in ([s.caption() for s in scenes], [""]))
        noise = torch.randn(len(scenes), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.give((captions.embeddings, captions.mask), (empty.embeddings, empty.mask), noise)

    def right(self, latents: torch.Tensor) -> list[bool]:
        from pixart.training.demo.judge import mistakes

        # comfy.sample returns latents over the transformer's scale, which decoders take.
        pictures = self.pipeline.autoencoder.decode(latents)
        return [not mistakes(scene, picture) for scene, picture in zip(self.scenes, pictures, strict=True)]


def scored_scenes(path: Path, count: int) -> list:
    from pixart.evaluation.judges import scene_of
    from pixart.training.demo import captions

    with path.open(encoding="utf-8", newline="") as file:
        return [scene_of(row["prompt"], captions) for row in csv.DictReader(file)][:count]


SEARCHED_SEED = 80


def other_scenes(scored: list, count: int, seed: int = SEARCHED_SEED) -> list:
    """Scenes of the demo's world that are not among those."""
    from pixart.training.demo.captions import random_scene

    rng, found = random.Random(seed), []
    while len(found) < count:
        scene = random_scene(rng)
        if scene not in scored and scene not in found:
            found.append(scene)
    return found


def true_width(host, pixels: int, depth: int, steps: int, cfg: float) -> Runs:
    """Blocks of the released width with random weights. What they predict is no picture's noise, so that errors say
    how the methods compare with each other, not what a trained model's would be."""
    config = peers.size_config(pixels, depth)
    with tempfile.TemporaryDirectory(prefix="pixart-benchmark-") as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(peers.transformer(config, torch.float32).state_dict(), path)
        runs = Runs(host, path, steps, cfg)
        runs.model.model.diffusion_model.config = config  # a file of a cut depth does not say for which size it is
    generator = torch.Generator().manual_seed(0)

    def caption(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(1, tokens, 4096, generator=generator), torch.ones(1, tokens, dtype=torch.int32)

    runs.give(caption(20), caption(8), torch.randn(1, 4, pixels // 8, pixels // 8, generator=generator))
    return runs


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(demo: Runs, rounds: int, chosen: list[str]) -> list[tuple]:
    exact, _ = demo.draw(None)
    right = demo.right(exact)
    judged = "" if right is None else f": {sum(right)} right without a cache"
    print(f"{len(exact)} pictures, {demo.steps} steps, cfg {demo.cfg}{judged}", flush=True)
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
        error = ((latents - exact).pow(2).mean() / exact.pow(2).mean()).sqrt().item()
        ratio = statistics.median(a / b for a, b in zip(times["exact"], times[name], strict=True))
        pairs = [] if right is None else list(zip(right, demo.right(latents), strict=True))
        lost, gained = (sum(pair == kind for pair in pairs) for kind in ((True, False), (False, True)))
        rows.append((name, part, ratio, error, lost, gained))
        print(f"{name:20}{part:10.2f}{ratio:8.2f}{error:14.3f}{lost:6}{gained:8}", flush=True)
    return rows


def search(demo: Runs, target: float, tries: int, longest: int) -> str:
    """The table of 20 steps, of which this part computes all blocks, with the least latent error that was found.

    No more than ``longest`` steps in a row are left out: on the demo it pays to leave out five near the start, in which
    larger models decide what goes where.
    """
    exact, _ = demo.draw(None)
    full = round(target * STEPS)
    tables, errors = dict(demo.caching.TABLES), {}

    def error(candidate: str) -> float:
        if candidate not in errors:
            latents, _ = demo.draw({"method": candidate})
            errors[candidate] = ((latents - exact).pow(2).mean() / exact.pow(2).mean()).sqrt().item()
        return errors[candidate]

    evenly = {0, *(1 + round(i * (STEPS - 2) / max(full - 2, 1)) for i in range(full - 1))}
    starts = ["".join("F" if i in evenly else "S" for i in range(STEPS))]
    starts += [table for table in tables.values() if table.count("F") == full]  # what is there already
    rng = random.Random(0)
    best = min(starts, key=error)
    print(best, f"{error(best):.4f}", flush=True)
    while len(errors) < tries:
        moved = list(best)
        for _ in range(rng.choice((1, 1, 2))):
            computed = rng.choice([i for i in range(1, STEPS) if moved[i] == "F"])
            cached = rng.choice([i for i in range(1, STEPS) if moved[i] == "S"])
            moved[computed], moved[cached] = "S", "F"
        candidate = "".join(moved)
        if "S" * (longest + 1) not in candidate and error(candidate) < error(best):
            best = candidate
            print(best, f"{error(best):.4f}", f"after {len(errors)} tables", flush=True)
    return best


def plot(rows: list[tuple], path: Path) -> None:
    """The table as a picture: error over saving, an SVG without anything to install."""
    width, height, left, bottom = 640, 400, 60, 350
    most = max(row[2] for row in rows) * 1.05
    worst = max(row[3] for row in rows) * 1.1
    marks, taken = [], []
    for name, _, ratio, error, lost, _ in rows:
        x = left + (ratio - 1) / (most - 1) * (width - left - 150)
        y = bottom - error / worst * (bottom - 40)
        beside = y + 4
        while any(abs(beside - other) < 13 and abs(x - start) < 200 for start, other in taken):
            beside += 13  # a word below the one that is in its way
        taken.append((x, beside))
        marks.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="#2266bb"/>')
        marks.append(f'<text x="{x + 7:.0f}" y="{beside:.0f}">{name} ({lost} lost)</text>')
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>'
        f'<path d="M{left} 30V{bottom}H{width - 20}" stroke="#888" fill="none"/>'
        f'<text x="{left}" y="20">Step caches on the demo model: relative error of the latents</text>'
        f'<text x="{left}" y="{bottom + 30}">time without a cache / time with it, from 1 to {most:.1f}</text>'
        f"{''.join(marks)}</svg>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI tree (default: COMFYUI_PATH, or one found nearby)")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="the folder of the demo's three files")
    parser.add_argument("--prompts", type=Path, default=ROOT / "demo" / "prompts.csv", help="what is scored")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--fresh", type=int, metavar="SEED", help="other captions and noise, none searched with")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--cfg", type=float, default=4.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings to measure")
    parser.add_argument("--tables", nargs="+", default=[], help="tables of steps to measure too, such as FFSSFSSF")
    parser.add_argument("--search", type=float, metavar="PART", help="look for a table that computes this part")
    parser.add_argument("--searched", type=int, default=8, help="captions that --search looks at")
    parser.add_argument("--tries", type=int, default=120, help="tables that --search tries")
    parser.add_argument("--longest", type=int, default=3, help="steps in a row that --search may leave out")
    parser.add_argument("--true-width", type=int, metavar="PIXELS", help="the released width in place of the demo")
    parser.add_argument("--depth", type=int, default=4, help="blocks of --true-width")
    parser.add_argument("--plot", type=Path, help="write a picture of the table")
    args = parser.parse_args()
    host = read_host(args.comfyui) if args.comfyui else next(iter(find_hosts()), None)
    if host is None:
        parser.error("no ComfyUI found: name its folder with --comfyui or COMFYUI_PATH")
    with torch.inference_mode():
        if args.true_width:
            runs = true_width(host, args.true_width, args.depth, args.steps, args.cfg)
        else:
            scenes = scored_scenes(args.prompts, args.pictures)
            if args.search is not None:
                demo = Demo(args.demo, host, other_scenes(scenes, args.searched), args.steps, args.cfg, seed=6)
                print(search(demo, args.search, args.tries, args.longest))
                return 0
            if args.fresh is not None:
                seen = [*scenes, *other_scenes(scenes, args.searched)]
                scenes = other_scenes(seen, args.pictures, seed=1000 + args.fresh)
            runs = Demo(args.demo, host, scenes, args.steps, args.cfg, seed=5 if args.fresh is None else args.fresh)
        SETTINGS.update({table: {"method": table} for table in args.tables})
        rows = measure(runs, args.rounds, [*args.only, *args.tables])
    if args.plot:
        plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
