"""What one ControlNet costs: a forward with it against one without, on blocks of the published width.

    python benchmarks/controlnet.py --pixels 512 --depth 6 --copied 3

As a sampling run has it after its first step: the caption's keys and values are known to the base and to the copies,
and the base's first block runs once for both. “apart” is a forward that remembers nothing, where it runs twice. Prints
the median times, the extra cost of each over its own forward without ControlNet, and copied blocks / depth. All run in
every round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.attention import WORKSPACE
from pixart.config import PixArtConfig
from pixart.controlnet import COPIES
from pixart.prepared import PREPARED, SamplingRun
from pixart.training.initialise import initialise
from pixart.training.initialise_controlnet import first_controlnet
from pixart.transformer import FIRST, GRIDS, PixArtTransformer
from pixart.workspace import Workspace


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
    parser.add_argument("--tokens", type=int, default=40, help="of the caption")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()

    base = initialise(PixArtTransformer(PixArtConfig(depth=args.depth))).eval()
    control = first_controlnet(base, args.copied)
    side = args.pixels // 8
    x, hint = torch.randn(args.batch, 4, side, side), torch.randn(1, 4, side, side)
    t = torch.full((1,), 500.0).expand(args.batch)
    caption = torch.randn(args.batch, args.tokens, 4096)
    run = SamplingRun(Workspace())
    prepared = run.caption(base, caption, None, torch.float32, None)
    blocks = [part.copied_block for part in control.controlnet]
    known = {PREPARED: prepared, GRIDS: run.grids, WORKSPACE: run.workspace}
    shared = {**known, FIRST: run.first, COPIES: lambda prepared: run.for_copies(blocks, prepared, None)}

    def forward(options: dict, of_control: dict | None = None) -> torch.Tensor:
        residuals = None
        if of_control is not None:
            residuals = {"output": control(base, x, hint, t, caption, transformer_options=of_control)}
        return base(x, t, caption, control=residuals, transformer_options=options)

    calls = {
        "plain": lambda: forward(known),
        "with": lambda: forward({**known, FIRST: run.first}, shared),
        "plain, apart": lambda: forward({}),
        "with, apart": lambda: forward({}, {}),
    }
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.runs):
        for name, call in calls.items():
            times[name].append(timed(call))
    print(f"{args.pixels} × {args.pixels}, batch {args.batch}, {args.depth} blocks, {args.copied} copied, ", end="")
    print(f"{args.tokens} tokens, {args.runs} runs")
    for without, with_control in (("plain", "with"), ("plain, apart", "with, apart")):
        ratio = statistics.median(b / a for a, b in zip(times[without], times[with_control], strict=True))
        pair = " and ".join(f"{statistics.median(times[name]):.3f} s" for name in (without, with_control))
        print(f"{with_control:12} {pair}: extra cost {ratio - 1:.3f}")
    print(f"copied blocks / depth {args.copied / args.depth:.3f}; with one more, and 5 %, ", end="")
    print(f"{(args.copied + 1) / args.depth + 0.05:.3f}")


if __name__ == "__main__":
    main()
