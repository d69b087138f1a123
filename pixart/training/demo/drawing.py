"""Draws scenes as pictures, exactly anti-aliased, a batch at a time.

Coordinates are pixels; radii are shares of the shorter side, so that a scene looks the same at every size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .captions import Scene

RGB = {
    "red": (0.86, 0.10, 0.12),
    "green": (0.12, 0.62, 0.22),
    "blue": (0.10, 0.25, 0.85),
    "yellow": (0.98, 0.89, 0.14),
    "purple": (0.52, 0.16, 0.66),
    "orange": (0.98, 0.53, 0.08),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
}

RADIUS = {"small": 0.15, "large": 0.21}
SPREAD, RADIUS_SPREAD, COLOUR_SPREAD = 0.01, 0.03, 0.02
"""How far pictures of one scene differ: place (of the shorter side), radius (of itself) and colour channels.

Kept small: an outline that stands in one of few places is learned in a tenth of the steps that one anywhere takes.
"""
CENTRE = {"left": (0.27, 0.5), "right": (0.73, 0.5), "top": (0.5, 0.27), "bottom": (0.5, 0.73), "center": (0.5, 0.5)}


def regular(corners: int, radius: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners (x, y) of a regular polygon that points up, or of a star when ``inner`` gives its notch radius."""
    count = corners * 2 if inner else corners
    points = []
    for i in range(count):
        r = inner if inner and i % 2 else radius
        angle = 2 * math.pi * i / count
        points.append((r * math.sin(angle), -r * math.cos(angle)))
    return points


POLYGONS = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(x, y + 0.22) for x, y in regular(3, 1.25)],
    "star": regular(5, 1.25, inner=0.5),
    "cross": [
        *((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)),
        *((0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)),
    ],
}
"""Outlines for radius 1. A circle has none: it is its own distance function.

The cross is in no caption of the demo: it is there to be taught.
"""


def signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distance to the outline of ``shape`` of radius 1 at the origin, negative inside. Any shape of tensor."""
    if shape == "circle":
        return torch.hypot(x, y) - 1.0
    corners = POLYGONS[shape]
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        crosses = (ay > y) != (by > y)
        if by != ay:
            inside ^= crosses & (px < ex * py / ey)
    return nearest.sqrt() * torch.where(inside, -1.0, 1.0)


@dataclass(frozen=True)
class Placement:
    """Where and how large a scene's shape stands (pixels), and its two colours."""

    shape: str
    x: float
    y: float
    radius: float
    colour: tuple[float, float, float]
    background: tuple[float, float, float]


def place(scene: Scene, height: int, width: int, rng: random.Random | None = None) -> Placement:
    """Pixel geometry and colours of a complete scene, jittered a little when ``rng`` is given."""

    def jitter(amount: float) -> float:
        return rng.uniform(-amount, amount) if rng else 0.0

    side = min(height, width)
    fx, fy = CENTRE[scene.position]
    return Placement(
        shape=scene.shape,
        x=width * fx + side * jitter(SPREAD),
        y=height * fy + side * jitter(SPREAD),
        radius=side * RADIUS[scene.size] * (1 + jitter(RADIUS_SPREAD)),
        colour=tuple(min(max(c + jitter(COLOUR_SPREAD), 0.0), 1.0) for c in RGB[scene.colour]),
        background=tuple(min(max(c + jitter(COLOUR_SPREAD), 0.0), 1.0) for c in RGB[scene.background]),
    )


def draw(placements: Sequence[Placement], height: int, width: int) -> torch.Tensor:
    """Pictures (B, 3, height, width) in [0, 1]."""
    ys = (torch.arange(height) + 0.5)[None, :, None]
    xs = (torch.arange(width) + 0.5)[None, None, :]

    def column(values) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32)[:, None, None]

    coverage = torch.empty(len(placements), height, width)
    for shape in sorted({p.shape for p in placements}):
        chosen = [i for i, p in enumerate(placements) if p.shape == shape]
        radius = column(placements[i].radius for i in chosen)
        x = (xs - column(placements[i].x for i in chosen)) / radius
        y = (ys - column(placements[i].y for i in chosen)) / radius
        x, y = torch.broadcast_tensors(x, y)
        coverage[chosen] = (0.5 - signed_distance(shape, x, y) * radius).clamp(0, 1)  # one pixel of blending
    front = torch.tensor([p.colour for p in placements])[:, :, None, None]
    back = torch.tensor([p.background for p in placements])[:, :, None, None]
    return torch.lerp(back, front, coverage[:, None])
