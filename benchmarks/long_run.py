"""Many prompts in one ComfyUI process: does its memory grow, does anything stay open, is the last picture the first?

    python benchmarks/long_run.py                      # 200 prompts, about 3 s each on one processor core
    python benchmarks/long_run.py --prompts 12 --comfyui ../ComfyUI-0.14.0

A real ComfyUI is started on the processor with the pack, and prompts go to it over HTTP. From one to the next they
switch checkpoints (Σ, α, Σ with KV compression, copies of them), LoRAs, ControlNet, step caches, KV compression,
weight types and sizes, drawn at random from ``--seed``. Every tenth prompt is the first one again, whose pictures must
all be equal. After each prompt the process's resident memory, open files and threads are read.

Writes long-run.csv and long-run.png into ``--out``, and prints a verdict; the exit code is 1 when a limit is broken:

- memory: the straight line through the second half of the prompts rises by less than ``--slope`` KiB a prompt, two
  standard errors allowed for, and no prompt of that half has more than ``--rise`` MiB above the half's beginning;
- open files and threads: in the last tenth of the prompts at most two more than as the second half begins;
- every picture of the repeated prompt has the same pixels; no prompt fails.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness")]

import demo_files  # noqa: E402
import graphs  # noqa: E402
import psutil  # noqa: E402
from host_client import Client  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from tools.comfyui import Server, find_hosts, read_host  # noqa: E402

REPEATED = 10
"""Every so many prompts comes the first one again."""
HINT = "long-run-hint.png"
LORAS = tuple(f"long-run-{number}.safetensors" for number in range(6))
COPIES = ("long-run-a.safetensors", "long-run-b.safetensors")
"""Fine-tunes of the demo, so that there are more checkpoints than the host may keep."""
CHECKPOINTS = (demo_files.CHECKPOINT, demo_files.ALPHA, demo_files.KV, *COPIES)
SIZES = ((128, 128), (96, 160), (160, 96), (128, 192), (64, 64), (192, 192))
PROMPTS = (
    "a red circle", "a large yellow square on the left, black background", "a small green star on the top",
    "a purple triangle on the right, white background", "a large orange circle, blue background",
)  # fmt: skip
CACHES = ("balanced", "schedule", "threshold", "tgate")
DTYPES = ("auto", "fp32", "bf16")
STEPS = 6


@dataclass(frozen=True)
class Row:
    """One prompt. rss: MiB of resident memory; files: open ones, sockets among them; what: what was drawn with."""

    prompt: int
    seconds: float
    rss: float
    files: int
    threads: int
    picture: str
    what: str


@dataclass(frozen=True)
class Limits:
    """slope: KiB a prompt; rise: MiB; more: files or threads."""

    slope: float = 64.0
    rise: float = 96.0
    more: int = 2


def lay_files(base: Path) -> None:
    """What the prompts switch between, beside the demo."""
    for seed, name in enumerate(LORAS):
        demo_files.write_lora(base / "models" / "loras" / name, seed)
    for seed, name in enumerate(COPIES):
        demo_files.write_variant(
            demo_files.DEMO / demo_files.CHECKPOINT, base / "models" / "checkpoints" / name, seed, size=0.005
        )
    demo_files.write_hint(base / "input" / HINT)


def first_prompt(number: int) -> tuple[graphs.Graph, str]:
    """The one that is repeated; encoded and sampled anew each time."""
    graph = graphs.with_lora(graphs.text_to_image(number % 250, steps=STEPS), LORAS[0], 0.5)
    return graph, "the first prompt"


def switching_prompt(number: int, chance: random.Random) -> tuple[graphs.Graph, str]:
    """A workflow of parts drawn at random, and what it is made of."""
    checkpoint = chance.choice(CHECKPOINTS)
    size = chance.choice(SIZES)
    graph = graphs.text_to_image(
        number % 250, checkpoint=checkpoint, prompt=chance.choice(PROMPTS), seed=number, steps=STEPS, size=size
    )
    graph["1"]["inputs"]["weight_dtype"] = dtype = chance.choice(DTYPES)
    said = [checkpoint.removesuffix(".safetensors"), f"{size[0]}x{size[1]}", dtype]
    if chance.random() < 0.5:
        lora, strength = chance.choice(LORAS), chance.choice((0.5, 1.0, -0.5))
        graphs.with_lora(graph, lora, strength)
        said.append(f"{lora.removesuffix('.safetensors')} {strength}")
    if chance.random() < 0.3:
        sampling = chance.choice(("average", "uniform"))
        graphs.with_model(
            graph, "kv", "PixArtKVCompression", sampling=sampling, ratio=2, first_block=2, last_block=4, min_tokens=0
        )
        said.append(f"KV {sampling}")
    if chance.random() < 0.3:
        method = chance.choice(CACHES)
        graphs.with_model(
            graph, "cache", "PixArtStepCache", method=method, every=2, threshold=0.2, first_blocks=1, last_blocks=0,
            gate=0.5, start_percent=0.0, end_percent=1.0,
        )  # fmt: skip
        said.append(f"cache {method}")
    if checkpoint != demo_files.ALPHA and chance.random() < 0.3:  # the net is made for Σ
        graphs.with_control(graph, HINT)
        said.append("ControlNet")
    return graph, ", ".join(said)


def prompts(count: int, seed: int) -> list[tuple[graphs.Graph, str]]:
    """All of a run, the same for the same seed; the first and the last are the repeated one."""
    chance = random.Random(seed)
    return [
        first_prompt(number) if number % REPEATED == 0 or number == count - 1 else switching_prompt(number, chance)
        for number in range(count)
    ]


def look(process: psutil.Process) -> tuple[float, int, int]:
    """(resident MiB, open files, threads) of a process now."""
    with process.oneshot():
        handles = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
        return process.memory_info().rss / 2**20, handles, process.num_threads()


def measure(server: Server, client: Client, count: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    """Run the prompts one after the other. Raises RuntimeError with the host's words for one that fails."""
    process = psutil.Process(server.process.pid)
    rows = []
    for number, (graph, what) in enumerate(prompts(count, seed)):
        started = time.perf_counter()
        result = client.run(graph)
        seconds = time.perf_counter() - started
        if result.error is not None:
            raise RuntimeError(f"prompt {number} ({what}): {result.error['exception_message']}")
        digest = graphs.digest(client.images(result, "9"))
        rss, files, threads = look(process)
        rows.append(Row(number, round(seconds, 3), round(rss, 2), files, threads, digest, what))
        say(f"{number:4} {seconds:6.2f} s {rss:8.1f} MiB {files:4} files {threads:4} threads  {digest[:12]}  {what}")
    return rows


def slope_of(values: Sequence[float]) -> tuple[float, float]:
    """(slope of the straight line with the least squares, a step; its standard error)."""
    count = len(values)
    if count < 3:
        return 0.0, 0.0
    line = statistics.linear_regression(range(count), values)
    left = sum((value - line.intercept - line.slope * i) ** 2 for i, value in enumerate(values))
    return line.slope, (left / (count - 2) * 12 / (count**3 - count)) ** 0.5


def verdict(rows: Sequence[Row], limits: Limits) -> list[tuple[str, bool]]:
    """What the rows say, each with whether it is within its limit."""
    half = rows[len(rows) // 2 :]
    part = max(1, len(rows) // 10)
    begins = statistics.median(row.rss for row in half[:part])
    slope, error = (1024 * value for value in slope_of([row.rss for row in half]))
    rise = max(row.rss for row in half) - begins
    said = [
        (
            f"memory: {slope:+.1f} ± {2 * error:.1f} KiB a prompt in the second half (limit {limits.slope:g})",
            slope - 2 * error < limits.slope,
        ),
        (
            f"memory: at most {rise:.1f} MiB above the second half's beginning (limit {limits.rise:g})",
            rise < limits.rise,
        ),
    ]
    for name in ("files", "threads"):
        before, after = (max(getattr(row, name) for row in some) for some in (half[:part], half[-part:]))
        said.append((f"{name}: {before} as the second half begins, {after} at the end", after <= before + limits.more))
    repeated = {row.picture for row in rows if row.what == rows[0].what}
    count = sum(row.what == rows[0].what for row in rows)
    first, last = rows[0].picture, rows[-1].picture
    said.append((f"the first prompt, {count} times: first {first[:16]}, last {last[:16]}", len(repeated) == 1))
    return said


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def draw_plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Four curves over the number of the prompt, one below the other; the repeated prompt's points are filled."""
    width, band, left, right, top = 1000, 170, 90, 20, 40
    picture = Image.new("RGB", (width, top + 4 * band + 20), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    draw.text((left, 12), title, fill="black", font=font)
    curves = (("MiB resident", "rss"), ("seconds", "seconds"), ("open files", "files"), ("threads", "threads"))
    for index, (name, field) in enumerate(curves):
        values = [getattr(row, field) for row in rows]
        low, high = (0.0, max(values)) if field != "rss" else (min(values), max(values))
        span = (high - low) or 1.0
        base, height = top + (index + 1) * band - 25, band - 45
        for share in (0.0, 0.5, 1.0):
            y = base - share * height
            draw.line((left, y, width - right, y), fill=(225, 225, 225))
            draw.text((8, y - 6), f"{low + share * span:,.1f}", fill=(90, 90, 90), font=font)
        draw.text((left + 4, base - height - 16), name, fill="black", font=font)
        step = (width - left - right) / max(1, len(rows) - 1)
        points = [(left + i * step, base - (value - low) / span * height) for i, value in enumerate(values)]
        draw.line(points, fill=(40, 90, 170), width=1)
        for (x, y), row in zip(points, rows, strict=True):
            if row.what == rows[0].what:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(200, 60, 40))
    draw.text((left, top + 4 * band), f"prompt 0 to {len(rows) - 1}; red: the first one again", fill="black", font=font)
    picture.save(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI tree (default: COMFYUI_PATH, or the newest found)")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the order in which parts are switched")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "long-run")
    parser.add_argument("--slope", type=float, default=Limits.slope, help="KiB a prompt")
    parser.add_argument("--rise", type=float, default=Limits.rise, help="MiB")
    args = parser.parse_args(argv)
    host = read_host(args.comfyui) if args.comfyui else next(iter(find_hosts()), None)
    if host is None:
        parser.error("no ComfyUI found: name its folder with --comfyui or COMFYUI_PATH")
    if args.prompts < 2:
        parser.error("--prompts must be at least 2: a first one and a last one")
    args.out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, flush=True)

    started = time.perf_counter()
    with Server(host, Path(sys.executable), cpu=True, log=args.out / "comfyui.log") as server, Client(server) as client:
        lay_files(server.base)
        rows = measure(server, client, args.prompts, args.seed, say)
    title = f"{len(rows)} prompts in one ComfyUI {host.version}, {time.perf_counter() - started:.0f} s"
    write_csv(rows, args.out / "long-run.csv")
    draw_plot(rows, args.out / "long-run.png", title)
    said = verdict(rows, Limits(args.slope, args.rise))
    say(f"\n{title}; median {statistics.median(row.seconds for row in rows):.2f} s a prompt")
    for line, is_good in said:
        say(f"{'ok  ' if is_good else 'FAIL'}  {line}")
    say(f"{args.out / 'long-run.csv'}, {args.out / 'long-run.png'}")
    return 0 if all(is_good for _, is_good in said) else 1


if __name__ == "__main__":
    sys.exit(main())
