"""What sharing self-attention would give beyond KV compression: time at true width, and what it does to the demo.

    python benchmarks/attention_sharing.py --pixels 512 1024
    python benchmarks/attention_sharing.py --pixels 2048 --rounds 1 --pictures 0

The ways are those of DiTFastAttn (Yuan et al., arXiv:2406.08552), each in every block, refreshed at every so many
steps:

steps    the output of a block's self-attention is kept and used again
cfg      after the first step, the unconditional half of the batch takes the conditional one's output
window   tokens look at neighbouring rows alone, and what the rest gave at the last refresh is added

KV compression, which has no memory and no refresh, stands beside them. Time is of one block of the released width in
one step, the mean over a refresh and the cheap steps after it, all kinds in every round: dense / this. The latent
error and the pictures lost are of the demo, prompts of demo/prompts.csv in 20 steps; its 64 tokens stand for those of
large pictures, the window being the same part of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from caches import scored_scenes  # noqa: E402
from kv_compression import random_block  # noqa: E402
from torch import nn  # noqa: E402

from pixart.attention import SelfAttention, sdpa  # noqa: E402
from pixart.compression import COMPRESSION, GRID, KVCompression  # noqa: E402

STEPS, CFG = 20, 4.5


@dataclass(frozen=True)
class Way:
    """kind: dense, steps, cfg, window, or a sampling of KV compression; every: steps from refresh to refresh;
    stripe, halo: rows of tokens that look together, and further rows on either side, as parts of all rows."""

    kind: str
    every: int = 1
    stripe: float = 0.25
    halo: float = 0.125

    def __str__(self) -> str:
        if self.kind == "window":
            return f"window {self.stripe + 2 * self.halo:g} of the rows, every {self.every}"
        if self.kind == "cfg":
            return f"cfg, every {self.every}"
        return f"{self.kind}, every {self.every}" if self.kind == "steps" else self.kind

    @property
    def is_shared(self) -> bool:
        return self.kind in ("steps", "cfg", "window")


WAYS = (
    Way("dense"),
    Way("average 2"),
    Way("steps", 2),
    Way("steps", 3),
    Way("cfg", 2),
    Way("cfg", STEPS),
    Way("window", 2),
    Way("window", 4),
    Way("window", 4, 0.125, 0.125),
)


class Shared(nn.Module):
    """A block's self-attention, done in one of the ways; counts its own steps."""

    def __init__(self, layer: SelfAttention, way: Way):
        super().__init__()
        self.layer, self.way, self.calls, self.kept = layer, way, 0, None

    def forward(self, x: torch.Tensor, options: dict) -> torch.Tensor:
        is_full = self.calls % self.way.every == 0
        self.calls += 1
        if self.way.kind == "steps":
            self.kept = self.layer(x, options) if is_full else self.kept
            return self.kept
        if self.way.kind == "cfg":
            if is_full:
                return self.layer(x, options)
            conditional = self.layer(x[: len(x) // 2], options)
            return torch.cat([conditional, conditional])
        q, k, v = self.layer.qkv(x).chunk(3, dim=-1)
        near = self.neighbours(q, k, v, options[GRID])
        if is_full:
            whole = sdpa(q, k, v, self.layer.num_heads)
            self.kept = whole - near
            return self.layer.proj(whole)
        return self.layer.proj(near + self.kept)

    def neighbours(self, q, k, v, grid: tuple[int, int]) -> torch.Tensor:
        rows, columns = grid
        stripe, halo = (max(round(part * rows), 1) for part in (self.way.stripe, self.way.halo))
        parts = []
        for first in range(0, rows, stripe):
            low, high = max(first - halo, 0), min(first + stripe + halo, rows)
            keys = slice(low * columns, high * columns)
            queries = q[:, first * columns : (first + stripe) * columns]
            parts.append(sdpa(queries, k[:, keys], v[:, keys], self.layer.num_heads))
        return torch.cat(parts, 1)


def options_of(way: Way, grid: tuple[int, int]) -> dict:
    options = {GRID: grid, "block_index": 0}
    if way.kind == "average 2":
        options[COMPRESSION] = KVCompression("average", 2)
    return options


def step_times(pixels: int, rounds: int) -> dict[Way, list[float]]:
    """Seconds of a block in one step, the mean over a refresh and what follows it, in each round."""
    side = pixels // 16
    block = random_block(1, torch.float32, torch.device("cpu"))
    dense = block.attn
    x, t0 = torch.randn(2, side * side, 1152), torch.randn(1, 6, 1152)
    caption = torch.randn(2, 40, 1152)
    keys_values = block.cross_attn.kv_linear(caption)
    taken: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):  # the first warms up
        for way in WAYS:
            block.attn = Shared(dense, way) if way.is_shared else dense
            seconds = []
            for _ in range(min(way.every, 2)):  # a refresh, and one of the equal steps after it
                started = time.perf_counter()
                block(x, caption, t0, None, options_of(way, (side, side)), keys_values)
                seconds.append(time.perf_counter() - started)
            taken[way].append((seconds[0] + (way.every - 1) * seconds[-1]) / way.every)
    block.attn = dense
    return {way: taken[way][1:] for way in WAYS}


class Demo:
    """The demo's pipeline, on whose blocks the ways are tried."""

    def __init__(self, folder: Path, prompts: Path, pictures: int):
        from pixart.pipeline import PixArtPipeline

        files = (folder / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae"))
        self.pipeline = PixArtPipeline.load(*files)
        self.scenes = scored_scenes(prompts, pictures)
        self.captions = self.pipeline.encode([scene.caption() for scene in self.scenes])
        self.empty = self.pipeline.encode([""])
        self.noise = torch.randn(len(self.scenes), 4, 16, 16, generator=torch.Generator().manual_seed(5))

    def draw(self, way: Way) -> torch.Tensor:
        transformer = self.pipeline.transformer
        layers = [block.attn for block in transformer.blocks]
        forward = transformer.forward

        def compressed(*args, transformer_options, **told):
            return forward(*args, transformer_options={**transformer_options, **options_of(way, (8, 8))}, **told)

        try:
            if way.is_shared:
                for block, layer in zip(transformer.blocks, layers, strict=True):
                    block.attn = Shared(layer, way)
            transformer.forward = compressed
            return self.pipeline.sample(
                self.captions, self.empty, height=128, width=128, steps=STEPS, cfg=CFG, noise=self.noise
            )
        finally:
            del transformer.forward
            for block, layer in zip(transformer.blocks, layers, strict=True):
                block.attn = layer

    def right(self, latents: torch.Tensor) -> list[bool]:
        from pixart.training.demo.judge import mistakes

        pictures = self.pipeline.decode(latents).movedim(-1, 1)
        return [not mistakes(scene, picture) for scene, picture in zip(self.scenes, pictures, strict=True)]


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="*", default=[512, 1024], help="sizes to time; none with no number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="the folder of the demo's files")
    parser.add_argument("--prompts", type=Path, default=ROOT / "demo" / "prompts.csv")
    parser.add_argument("--pictures", type=int, default=40, help="0 leaves the demo out")
    args = parser.parse_args()
    for pixels in args.pixels:
        times = step_times(pixels, args.rounds)
        print(f"{pixels} px, one block of width 1152, batch 2: {statistics.median(times[WAYS[0]]):.3f} s dense")
        for way in WAYS[1:]:
            ratio = statistics.median(a / b for a, b in zip(times[WAYS[0]], times[way], strict=True))
            print(f"  {way!s:36} {ratio:5.2f} times", flush=True)
    if not args.pictures:
        return 0
    demo = Demo(args.demo, args.prompts, args.pictures)
    exact = demo.draw(WAYS[0])
    right = demo.right(exact)
    print(f"demo, {len(right)} pictures, {sum(right)} right")
    for way in WAYS[1:]:
        latents = demo.draw(way)
        error = ((latents - exact).pow(2).mean() / exact.pow(2).mean()).sqrt().item()
        lost = sum(a and not b for a, b in zip(right, demo.right(latents), strict=True))
        print(f"  {way!s:36} latent error {error:.3f}, {lost} lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
