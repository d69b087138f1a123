"""Which pictures an update sees, and its random numbers: functions of the seed and the update's number alone.

Nothing random is kept between updates. So a run that was killed goes on as if it had not been, and several processes
draw together exactly what one would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

Shape = tuple[int, ...]


def generator(*key: int | str) -> torch.Generator:
    """A generator on the processor whose numbers depend on ``key`` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Order:
    """An endless row of pictures: every epoch each of them once, in an order of its own.

    shapes: of the pictures' latents. Pictures of one aspect-ratio bin stand together, ``batch`` at a time, so that
    most updates compute one shape; what remains of the bins comes mixed, and is computed bin by bin.
    """

    def __init__(self, shapes: Sequence[Shape], batch: int, seed: int, stream: str):
        self.shapes, self.batch, self.seed, self.stream = tuple(shapes), batch, seed, stream
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def _epoch(self, number: int) -> tuple[int, ...]:
        chance = generator(self.seed, self.stream, "epoch", number)
        bins: dict[Shape, list[int]] = {}
        for index in torch.randperm(len(self.shapes), generator=chance).tolist():
            bins.setdefault(self.shapes[index], []).append(index)
        whole, rest = [], []
        for members in bins.values():
            cut = len(members) - len(members) % self.batch
            whole += [members[i : i + self.batch] for i in range(0, cut, self.batch)]
            rest += members[cut:]
        chunks = [whole[i] for i in torch.randperm(len(whole), generator=chance).tolist()]
        return tuple(index for chunk in (*chunks, rest) for index in chunk)

    def update(self, step: int) -> list[int]:
        """The pictures of an update, ``batch`` of them."""
        count = len(self.shapes)
        places = range(step * self.batch, (step + 1) * self.batch)
        return [self.epoch(place // count)[place % count] for place in places]


@dataclass(frozen=True)
class Sample:
    """One picture in one update: its index in its order, its share of the loss, and its random numbers.

    t: timestep; dropped: its caption is left out; noise: of its latent's shape.
    """

    index: int
    weight: float
    t: int
    dropped: bool
    noise: torch.Tensor


def draw(order: Order, step: int, places: range, weight: float, dropout: float, timesteps: int) -> list[Sample]:
    """The samples at some places of an update, each with the share ``weight`` of the loss."""
    samples = []
    pictures = order.update(step)
    for place in places:
        chance = generator(order.seed, order.stream, step, place)
        samples.append(
            Sample(
                index=pictures[place],
                weight=weight,
                t=int(torch.randint(0, timesteps, (), generator=chance)),
                dropped=bool(torch.rand((), generator=chance) < dropout),
                noise=torch.randn(order.shapes[pictures[place]], generator=chance),
            )
        )
    return samples


def forwards(samples: Sequence[tuple[int, Sample]], size: int) -> list[list[tuple[int, Sample]]]:
    """Samples, each behind its picture's index among all, in groups of one shape and at most ``size``."""
    bins: dict[Shape, list[tuple[int, Sample]]] = {}
    for index, sample in samples:
        bins.setdefault(tuple(sample.noise.shape), []).append((index, sample))
    return [members[i : i + size] for members in bins.values() for i in range(0, len(members), size)]
