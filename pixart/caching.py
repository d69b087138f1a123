"""Step caches: what blocks added at one step of sampling stands in for what they would add at the next.

Methods: a schedule as in FORA (arXiv:2407.01425) and Δ-DiT (arXiv:2406.01125); the first blocks' change as the judge,
as in DBCache and FBCache; forecasts by a Taylor series of first order, after TaylorSeer (arXiv:2503.06923);
cross-attention frozen after a gate, as in T-GATE (arXiv:2404.02747). None is exact; benchmarks/caches.py
measures what each costs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

FULL, PART, SKIP = "F", "P", "S"
"""Every block is computed; or the first and last ones, the middle being forecast; or none, all being forecast."""

TABLES = {
    "gentle": "FFSFSFSFFSFSFSFSFSFF",
    "balanced": "FSSSFSSFSSFFSFSSFFSS",
    "fast": "FFSSSFSSSFSSSFSSSSSF",
}
"""Which steps compute what, from the first step of a run to its last. A run of another length is stretched to it.

"balanced" is what ``benchmarks/caches.py --search 0.4`` found on the demo; the others are evenly spaced.
"""

METHODS = (*TABLES, "schedule", "threshold", "tgate")


@dataclass(frozen=True)
class CacheSettings:
    """method: one of METHODS; every: of a schedule, compute all blocks at each so many evaluations;
    threshold: compute all when the first blocks' addition has changed by more than this part of itself;
    first, last: blocks that a schedule or a threshold always computes; gate: the part of the run, 0 to 1, after which
    T-GATE freezes cross-attention and leaves guidance out.
    """

    method: str = "balanced"
    every: int = 2
    threshold: float = 0.1
    first: int = 1
    last: int = 0
    gate: float = 0.5

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; choose one of {', '.join(METHODS)}.")
        if self.every < 1 or self.first < 0 or self.last < 0:
            raise ValueError(
                f"every is {self.every}, first_blocks {self.first}, last_blocks {self.last}: every must be at least 1 "
                "and the numbers of blocks not negative."
            )
        if self.method == "threshold" and self.first < 1:
            raise ValueError("first_blocks is 0, but the method threshold judges by the first blocks: set it to 1.")


@dataclass
class History:
    """What a span of blocks added at the last two evaluations that computed it, and at which positions."""

    values: list[tuple[float, torch.Tensor]] = field(default_factory=list)

    def record(self, position: float, value: torch.Tensor) -> None:
        if self.values and self.values[-1][0] == position:
            self.values.pop()
        self.values = [*self.values[-1:], (position, value)]

    def forecast(self, position: float) -> torch.Tensor:
        """The line through the last two values, at most twice as far on as they lie apart; or the only one."""
        now, latest = self.values[-1]
        if len(self.values) == 1:
            return latest
        before, earlier = self.values[0]
        along = min(max((position - now) / (now - before), 0.0), 2.0)
        return torch.lerp(earlier, latest, 1 + along)


@dataclass
class Stream:
    """What is kept of one batch of conditions."""

    whole: History = field(default_factory=History)
    middle: History = field(default_factory=History)
    probe: torch.Tensor | None = None
    since: int = 0
    """Evaluations since all blocks were computed."""


class BlockCache:
    """The blocks of one sampling run; a new run makes a new one."""

    def __init__(self, settings: CacheSettings):
        self.settings = settings
        self.streams: dict[Hashable, Stream] = {}
        self.computed = self.asked = 0
        """Blocks times rows of the batch."""

    @torch.compiler.disable(recursive=False)
    def run(
        self,
        x: torch.Tensor,
        depth: int,
        block: Callable[[int, torch.Tensor], torch.Tensor],
        residuals: Callable[[range], torch.Tensor | None],
        stream: Hashable,
        position: float,
        progress: float,
    ) -> torch.Tensor:
        """x (B, N, D) through ``depth`` blocks, or what stands for them.

        block: one block, its ControlNet residual included; residuals: the sum of those of a range of blocks, which are
        never cached. stream: tells batches of conditions apart; position: of this evaluation, falling with the noise;
        progress: 0 to 1, the part of the run before this evaluation.
        """
        known = self.streams.setdefault(stream, Stream())
        self.asked += depth * x.shape[0]
        first = min(self.settings.first, depth)
        last = max(depth - self.settings.last, first)
        start = x
        mode = self.mode(known, progress)
        if mode == SKIP:
            known.since += 1
            return with_residuals(x + known.whole.forecast(position).to(x.dtype), residuals(range(depth)))

        x = self.compute(x, range(first), block)
        if self.settings.method == "threshold":
            addition = x - start
            mode = PART if known.probe is not None and self.is_near(addition, known.probe) else FULL
            known.probe = addition if mode == FULL else known.probe
        if mode == PART:
            known.since += 1
            x = with_residuals(x + known.middle.forecast(position).to(x.dtype), residuals(range(first, last)))
            return self.compute(x, range(last, depth), block)

        before = x
        x = self.compute(x, range(first, last), block)
        if self.settings.method in TABLES:
            x = self.compute(x, range(last, depth), block)
            known.whole.record(position, without_residuals(x - start, residuals(range(depth))))
        else:
            known.middle.record(position, without_residuals(x - before, residuals(range(first, last))))
            x = self.compute(x, range(last, depth), block)
        known.since = 0
        return x

    def mode(self, known: Stream, progress: float) -> str:
        """What the settings say of an evaluation, before anything of it is computed."""
        settings = self.settings
        if settings.method in TABLES:
            table = TABLES[settings.method]
            planned = table[min(int(progress * len(table) + 1e-6), len(table) - 1)]
            return planned if known.whole.values else FULL
        if settings.method == "schedule" and known.middle.values and known.since + 1 < settings.every:
            return PART
        return FULL

    def is_near(self, addition: torch.Tensor, probe: torch.Tensor) -> bool:
        change = (addition - probe).abs().mean() / probe.abs().mean()
        return bool(change < self.settings.threshold)

    def compute(self, x: torch.Tensor, indices: range, block) -> torch.Tensor:
        self.computed += len(indices) * x.shape[0]
        for index in indices:
            x = block(index, x)
        return x

    def forget(self, stream: Hashable) -> None:
        """Outside of the window of steps nothing is kept: what was computed before it is too old after it."""
        self.streams.pop(stream, None)


def with_residuals(x: torch.Tensor, residuals: torch.Tensor | None) -> torch.Tensor:
    return x if residuals is None else x + residuals


def without_residuals(x: torch.Tensor, residuals: torch.Tensor | None) -> torch.Tensor:
    return x if residuals is None else x - residuals


class CrossAttentionGate:
    """Cross-attention's output of every block, kept up to a gate and given back after it (T-GATE)."""

    def __init__(self):
        self.kept: dict[int, torch.Tensor] = {}
        self.is_closed = False

    def get(self, index: int) -> torch.Tensor | None:
        return self.kept.get(index) if self.is_closed else None

    def keep(self, index: int, output: torch.Tensor) -> None:
        if not self.is_closed:
            self.kept[index] = output

    def mean_of_halves(self) -> CrossAttentionGate:
        """A closed gate for one half of a batch under guidance: the mean of what both halves read."""
        gate = CrossAttentionGate()
        gate.kept = {index: sum(output.chunk(2)) / 2 for index, output in self.kept.items()}
        gate.is_closed = True
        return gate
