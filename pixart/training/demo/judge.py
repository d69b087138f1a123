"""Measures what a picture of the demo's world shows, from its pixels alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .captions import COLOURS, POSITIONS, SHAPES, SIZES, Scene
from .drawing import CENTRE, POLYGONS, RADIUS, RGB, signed_distance

PALETTE = torch.tensor([RGB[name] for name in COLOURS])


def nearest_colour(rgb: torch.Tensor) -> str:
    """Name of the palette colour nearest to (3,) in RGB."""
    return COLOURS[int((PALETTE - rgb).pow(2).sum(-1).argmin())]


def polygon_area_and_centroid(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    area = cx = cy = 0.0
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        cross = ax * by - bx * ay
        area += cross / 2
        cx += (ax + bx) * cross
        cy += (ay + by) * cross
    return abs(area), cx / (6 * area), cy / (6 * area)


def template_iou(mask: torch.Tensor, shape: str) -> tuple[float, float]:
    """Overlap of a boolean mask (H, W) with ``shape`` of the same area and centroid; and that shape's radius."""
    ys, xs = torch.nonzero(mask, as_tuple=True)
    if shape == "circle":
        unit, cx, cy = torch.pi, 0.0, 0.0
    else:
        unit, cx, cy = polygon_area_and_centroid(POLYGONS[shape])
    radius = (len(xs) / unit) ** 0.5
    x0 = xs.float().mean() - cx * radius
    y0 = ys.float().mean() - cy * radius
    y, x = torch.meshgrid(
        (torch.arange(mask.shape[0]) - y0) / radius, (torch.arange(mask.shape[1]) - x0) / radius, indexing="ij"
    )
    template = signed_distance(shape, x, y) < 0
    return (template & mask).sum().item() / (template | mask).sum().item(), radius


def describe(picture: torch.Tensor, shapes: Sequence[str] = SHAPES) -> Scene:
    """The scene that a picture (3, H, W) in [0, 1] shows.

    Background: the palette colour nearest to the median of the picture's border. The shape's pixels are those
    nearer to their own median than to the background. Shape: of the outlines of ``shapes``, drawn with the mask's area
    at its centroid, the one with the largest intersection over union, at least 0.6. Position: the named place
    nearest to the outline's centre; size by its radius. A picture with no shape gives None for everything else.
    """
    height, width = picture.shape[1:]
    border = torch.cat([picture[:, :3].flatten(1), picture[:, -3:].flatten(1)], 1)
    border = torch.cat([border, picture[:, :, :3].flatten(1), picture[:, :, -3:].flatten(1)], 1)
    back = border.median(dim=1).values  # (3,)
    distance = (picture - back[:, None, None]).pow(2).sum(0).sqrt()  # (H, W)
    rough = distance > max(0.15, distance.max().item() * 0.5)
    if rough.sum() < 0.004 * height * width:
        return Scene(background=nearest_colour(back))
    front = picture[:, rough].median(dim=1).values
    mask = (picture - front[:, None, None]).pow(2).sum(0) < (picture - back[:, None, None]).pow(2).sum(0)

    fits = {shape: template_iou(mask, shape) for shape in shapes}
    shape = max(fits, key=lambda name: fits[name][0])
    overlap, radius = fits[shape]
    ys, xs = torch.nonzero(mask, as_tuple=True)
    x, y = xs.float().mean().item() / width, ys.float().mean().item() / height
    share = radius / min(height, width)
    return Scene(
        size=min(SIZES, key=lambda name: abs(RADIUS[name] - share)),
        colour=nearest_colour(front),
        shape=shape if overlap >= 0.6 else None,
        position=min(POSITIONS, key=lambda name: (CENTRE[name][0] - x) ** 2 + (CENTRE[name][1] - y) ** 2),
        background=nearest_colour(back),
    )


def silhouette_overlap(picture: torch.Tensor, silhouette: torch.Tensor) -> float:
    """Intersection over union of what is not background in a picture (3, H, W) and a boolean mask (H, W)."""
    border = torch.cat([picture[:, :2].flatten(1), picture[:, -2:].flatten(1)], 1)
    distance = (picture - border.median(dim=1).values[:, None, None]).pow(2).sum(0).sqrt()
    shape = distance > max(0.15, distance.max().item() * 0.5)
    return ((shape & silhouette).sum() / (shape | silhouette).sum()).item()


def mistakes(wanted: Scene, picture: torch.Tensor, shapes: Sequence[str] = SHAPES) -> list[str]:
    """Names of the attributes that a caption asked for and the picture does not show."""
    seen = describe(picture, shapes)
    return [
        name
        for name in ("size", "colour", "shape", "position", "background")
        if getattr(wanted, name) is not None and getattr(seen, name) != getattr(wanted, name)
    ]
