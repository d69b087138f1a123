"""Times self-attention and whole blocks of released width, dense against compressed, at the sizes where it matters.

    python benchmarks/kv_compression.py                        # 1024², 2048², 3840 × 2160 and 4096², one picture
    python benchmarks/kv_compression.py --sizes 1024x1024 2048x2048 --rounds 5 --device cuda --dtype bf16

One block has the weights of a released block's shape (1152 wide, 16 heads) and random values, on which speed does not
depend. All kinds run in every round, one after the other, and ratios are taken within one. The attention is measured as
the block runs. Memory is what is taken at the peak beyond inputs and weights. The forward of 28 blocks is their sum:
it would take minutes on a processor.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from pixart.attention import sdpa  # noqa: E402
from pixart.compression import COMPRESSION, GRID, KVCompression  # noqa: E402
from pixart.config import PixArtConfig  # noqa: E402
from pixart.transformer import Block  # noqa: E402

SIZES = ("1024x1024", "2048x2048", "3840x2160", "4096x4096")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CAPTION_TOKENS = 300
DEPTH = 28
KINDS = (
    ("conv", 2, True),
    ("average", 2, False),
    ("uniform", 2, False),
    ("uniform_every", 4, False),
    ("average", 4, False),
)
"""Sampling, ratio, and whether it takes the block's own convolution. The first four leave a quarter of the keys."""
CONFIGURATIONS = (
    ("14-27 conv 2 (the paper's)", 14, "conv 2"),
    ("14-27 average 2", 14, "average 2"),
    ("14-27 average 4", 14, "average 4"),
    ("0-27 average 2", 28, "average 2"),
    ("0-27 average 4", 28, "average 4"),
)
"""Name, number of compressed blocks, kind."""


def random_block(kv_ratio: int, dtype: torch.dtype, device: torch.device) -> Block:
    torch.manual_seed(0)
    block = Block(PixArtConfig(), sdpa, kv_ratio).to(device=device, dtype=dtype)
    for parameter in block.parameters():
        parameter.data.normal_(std=0.02)
    return block.eval().requires_grad_(False)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(call: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, float]:
    """(seconds, bytes at the peak beyond what was taken before)."""
    synchronise(device)
    before = reset_peak(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started, peak(device) - before


def reset_peak(device: torch.device) -> float:
    """Start counting anew; the bytes that are taken now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(AttributeError):  # what earlier calls have freed goes back; glibc alone has this
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status("VmHWM")


def status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) * 1024


class Watched(torch.nn.Module):
    """A self-attention that notes what each call of it takes, and the peak of the block around it until then."""

    def __init__(self, attention: torch.nn.Module, device: torch.device):
        super().__init__()
        self.attention, self.device = attention, device

    def forward(self, *args):
        self.peaks = [peak(self.device)]
        outputs = []
        self.taken = measured(lambda: outputs.append(self.attention(*args)), self.device)
        self.peaks.append(peak(self.device))
        return outputs[0]


def block_measured(call: Callable[[], torch.Tensor], watched: Watched) -> dict[str, tuple[float, float]]:
    """Seconds and peak of the whole block and, of the same run, of its self-attention."""
    synchronise(watched.device)
    before = reset_peak(watched.device)
    started = time.perf_counter()
    call()
    synchronise(watched.device)
    seconds = time.perf_counter() - started
    highest = max(*watched.peaks, peak(watched.device))
    return {"attention": watched.taken, "block": (seconds, highest - before)}


def calls(pixels: str, args: argparse.Namespace) -> dict[str, tuple[Callable[[], torch.Tensor], Watched]]:
    """Kind → a call that computes a block, and its self-attention."""
    dtype, device = DTYPES[args.dtype], torch.device(args.device)
    width, height = map(int, pixels.split("x"))
    grid = (height // 16, width // 16)
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    size = PixArtConfig().hidden_size
    x = random(args.batch, grid[0] * grid[1], size)
    caption, t0 = random(args.batch, CAPTION_TOKENS, size), random(args.batch, 6, size)
    found = {}
    for name, ratio, is_learned in (("dense", 1, False), *KINDS):
        block = random_block(ratio if is_learned else 1, dtype, device)
        options = {GRID: grid, "block_index": 0}
        if name != "dense":
            options[COMPRESSION] = KVCompression(name, ratio)
        block.attn = watched = Watched(block.attn, device)
        found["dense" if name == "dense" else f"{name} {ratio}"] = (
            lambda block=block, options=options: block(x, caption, t0, None, options),
            watched,
        )
    return found


def compare(pixels: str, args: argparse.Namespace) -> None:
    width, height = map(int, pixels.split("x"))
    tokens = (height // 16) * (width // 16)
    kinds = calls(pixels, args)
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with torch.inference_mode():
        for _ in range(args.rounds):
            for kind, (call, watched) in kinds.items():
                for part, figures in block_measured(call, watched).items():
                    taken.setdefault((kind, part), []).append(figures)
    print(
        f"\n{width} x {height}: {tokens} tokens, batch {args.batch}, {args.dtype}, {args.device}, "
        f"{torch.get_num_threads()} threads, {args.rounds} rounds"
    )
    print(f"{'':18}{'attention':^34}{'whole block':^34}")
    print(f"{'':18}" + f"{'median s':>12}{'dense / it':>12}{'peak MiB':>10}" * 2)
    ratios = {}
    for kind in kinds:
        line = f"{kind:18}"
        for part in ("attention", "block"):
            times = [seconds for seconds, _ in taken[kind, part]]
            dense = [seconds for seconds, _ in taken["dense", part]]
            ratio = statistics.median(a / b for a, b in zip(dense, times, strict=True))
            ratios[kind, part] = ratio
            memory = max(size for _, size in taken[kind, part]) / 2**20
            line += f"{statistics.median(times):12.3f}{ratio:12.2f}{memory:10.0f}"
        print(line)
    print(f"forward of {DEPTH} blocks, dense / compressed, summed over blocks:")
    for name, count, kind in CONFIGURATIONS:
        share = DEPTH / (DEPTH - count + count / ratios[kind, "block"])
        print(f"    {name:28}{share:6.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="width x height in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.device == "cpu" and os.name != "posix":
        parser.error("peak memory on a processor is read from /proc, which this system does not have")
    for pixels in args.sizes:
        compare(pixels, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
