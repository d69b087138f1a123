"""How the cost of a forward grows with the picture, the batch, the caption and the depth; writes a plot.

    python benchmarks/scaling.py --plot benchmarks/scaling.svg

Blocks of the released width, random weights. One of the four changes at a time, the others stay at 256 pixels, a batch
of two, 120 tokens and two blocks. All are run in every round; the points are medians, the line is what the number of
additions and multiplications predicts from the leftmost point.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from forward import DTYPES, forward_flops, measure  # noqa: E402
from peers import size_config, transformer  # noqa: E402

from pixart.transformer import run_options  # noqa: E402


@dataclass(frozen=True)
class Case:
    pixels: int = 256
    batch: int = 2
    tokens: int = 120
    depth: int = 2

    def flops(self) -> int:
        config = size_config(self.pixels, self.depth)
        return forward_flops(config, self.batch, (self.pixels // 16) ** 2, self.tokens, prepared=True)


AXES = {
    "pixels": (256, 384, 512, 768, 1024),
    "batch": (1, 2, 4, 8),
    "tokens": (20, 120, 300),
    "depth": (1, 2, 4, 8),
}
TITLES = {"pixels": "side in pixels", "batch": "batch", "tokens": "tokens of the caption", "depth": "blocks"}


def forward(case: Case, dtype: torch.dtype, device: torch.device):
    model = transformer(size_config(case.pixels, case.depth), dtype).to(device)
    x = torch.randn(case.batch, 4, case.pixels // 8, case.pixels // 8).to(device, dtype)
    caption = torch.randn(case.batch, case.tokens, 4096).to(device, dtype)
    t = torch.full((1,), 500.0, device=device).expand(case.batch)
    known = run_options(model.prepare_caption(caption))
    return lambda: model(x, t, caption, transformer_options=known)


def panel(axis: str, cases: list[Case], seconds: dict[Case, float], left: int, top: int) -> str:
    width, height = 250, 150
    xs = [getattr(case, axis) for case in cases]
    predicted = [case.flops() / cases[0].flops() * seconds[cases[0]] for case in cases]
    most = max(*predicted, *(seconds[case] for case in cases)) * 1.1

    def place(value: float, time: float) -> str:
        return f"{left + 40 + value / max(xs) * (width - 60):.0f},{top + height - time / most * (height - 25):.0f}"

    line = " ".join(place(x, time) for x, time in zip(xs, predicted, strict=True))
    parts = [
        f'<path d="M{left + 40} {top + 10}V{top + height}H{left + width}" stroke="#888" fill="none"/>',
        f'<polyline points="{line}" stroke="#bbb" fill="none"/>',
        f'<text x="{left + width / 2 + 20:.0f}" y="{top + height + 32}" text-anchor="middle">{TITLES[axis]}</text>',
        f'<text x="{left + 34}" y="{top + 22}" text-anchor="end">{most:.2g} s</text>',
    ]
    for x, case in zip(xs, cases, strict=True):
        cx, cy = place(x, seconds[case]).split(",")
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="3.5" fill="#2266bb"/>')
        parts.append(f'<text x="{cx}" y="{top + height + 15}" text-anchor="middle">{x}</text>')
    return "".join(parts)


def plot(rows: dict[str, list[Case]], seconds: dict[Case, float]) -> str:
    panels = [
        panel(axis, cases, seconds, 10 + 280 * (index % 2), 10 + 200 * (index // 2))
        for index, (axis, cases) in enumerate(rows.items())
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 570 410" font-family="sans-serif" font-size="11">'
        f'<rect width="570" height="410" fill="white"/>{"".join(panels)}</svg>\n'
    )


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    rows = {axis: [replace(Case(), **{axis: value}) for value in AXES[axis]] for axis in args.only}
    cases = list(dict.fromkeys(case for row in rows.values() for case in row))
    device = torch.device(args.device)
    forwards = {case: forward(case, DTYPES[args.dtype], device) for case in cases}
    for call in forwards.values():
        call()
    times = measure(forwards, args.rounds, device)
    seconds = {case: statistics.median(taken) for case, taken in times.items()}
    for axis, row in rows.items():
        first = row[0]
        for case in row:
            print(
                f"{axis:7}{getattr(case, axis):5}  {seconds[case]:7.3f} s  {seconds[case] / seconds[first]:6.2f} times "
                f"the first; by its arithmetic {case.flops() / first.flops():6.2f}",
                flush=True,
            )
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        args.plot.write_text(plot(rows, seconds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
