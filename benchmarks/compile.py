"""torch.compile (inductor) against the plain forward, at the published width; needs a C++ compiler, or a card.

    python benchmarks/compile.py --pixels 512 --depth 2

The forward of a sampling run after its first step: the caption's keys and values are known. Both run in every round.
Also printed: the graphs and the breaks between them, seconds to compile, and the largest difference by the largest
output.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from forward import DTYPES, measure  # noqa: E402
from peers import size_config, transformer  # noqa: E402

from pixart.transformer import run_options  # noqa: E402


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    dtype, device = DTYPES[args.dtype], torch.device(args.device)
    for pixels in args.pixels:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = transformer(size_config(pixels, args.depth), dtype).to(device)
        fast = torch.compile(model, dynamic=False)
        x = torch.randn(args.batch, 4, pixels // 8, pixels // 8).to(device, dtype)
        caption = torch.randn(args.batch, args.tokens, 4096).to(device, dtype)
        t = torch.full((1,), 500.0, device=device).expand(args.batch)
        known = run_options(model.prepare_caption(caption))
        plain = model(x, t, caption, transformer_options=known)  # from here on the grid is known too
        started = time.perf_counter()
        out = fast(x, t, caption, transformer_options=known)
        compiling = time.perf_counter() - started
        calls = {
            "plain": lambda: model(x, t, caption, transformer_options=known),  # noqa: B023 - called in this round
            "compiled": lambda: fast(x, t, caption, transformer_options=known),  # noqa: B023
        }
        times = measure(calls, args.rounds, device)
        ratio = statistics.median(a / b for a, b in zip(times["plain"], times["compiled"], strict=True))
        counters = torch._dynamo.utils.counters
        print(
            f"{pixels:5} px  plain {statistics.median(times['plain']):.3f} s  compiled "
            f"{statistics.median(times['compiled']):.3f} s  ratio {ratio:.2f}  graphs "
            f"{counters['stats']['unique_graphs']}, breaks {sum(counters['graph_break'].values())}  compiled in "
            f"{compiling:.0f} s  difference {((out - plain).abs().max() / plain.abs().max()).item():.1e}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
