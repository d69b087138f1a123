"""What one ControlNet costs: a forward with it against one without, on blocks of the published width.

    python benchmarks/controlnet.py --pixels 512 --depth 6 --copied 3

Prints the median times, their ratio, and the ratio that the arithmetic allows, (copied + 1 + depth) / depth: the
copies, and the base's first block, which runs a second time. Embedders and the final layer are in both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.config import PixArtConfig
from pixart.training.initialise import initialise
from pixart.training.initialise_controlnet import first_controlnet
from pixart.transformer import PixArtTransformer


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=512, help="side of the square picture")
    parser.add_argument("--depth", type=int, default=6, help="blocks of the base; 28 is the published depth")
    parser.add_argument("--copied", type=int, default=3, help="copied blocks; 13 of 28 are published")
    parser.add_argument("--batch", type=int, default=2, help="2 is one picture under guidance")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()

    base = initialise(PixArtTransformer(PixArtConfig(depth=args.depth))).eval()
    control = first_controlnet(base, args.copied)
    side = args.pixels // 8
    x, hint = torch.randn(args.batch, 4, side, side), torch.randn(1, 4, side, side)
    t, caption = torch.full((args.batch,), 500.0), torch.randn(args.batch, 40, 4096)

    def plain() -> None:
        base(x, t, caption)

    def controlled() -> None:
        base(x, t, caption, control={"output": control(base, x, hint, t, caption)})

    plain(), controlled()
    without, with_control = zip(*((timed(plain), timed(controlled)) for _ in range(args.runs)), strict=True)
    ratio = statistics.median(b / a for a, b in zip(without, with_control, strict=True))
    allowed = (args.copied + 1) / args.depth
    print(f"{args.pixels} × {args.pixels}, batch {args.batch}, {args.depth} blocks, {args.copied} copied, ", end="")
    print(f"{args.runs} runs")
    print(f"without {statistics.median(without):.3f} s, with {statistics.median(with_control):.3f} s")
    print(f"extra cost {ratio - 1:.3f}; copied blocks + 1 over depth is {allowed:.3f}, ", end="")
    print(f"and 5 % more {allowed + 0.05:.3f}")


if __name__ == "__main__":
    main()
