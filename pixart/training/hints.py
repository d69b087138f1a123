"""Control pictures for training, made from pictures or read from a folder.

At the time of use the host's preprocessors make them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from .pictures import SUFFIXES, Example, fit, read_picture

LUMA = (0.299, 0.587, 0.114)


def edges(pictures: torch.Tensor, low: float = 0.15, high: float = 0.35) -> torch.Tensor:
    """White edges on black: pictures (B, 3, H, W) in [0, 1] → (B, 3, H, W).

    Canny's method without its hysteresis: Sobel gradients of the luminance after a small blur, thinned to the ridge
    across the gradient, and shown between two thresholds. low, high: gradients shown as black and as white, in units
    of a step from black to white.
    """
    luma = torch.einsum("bchw,c->bhw", pictures, pictures.new_tensor(LUMA))[:, None]
    blur = pictures.new_tensor([1.0, 2.0, 1.0]) / 4
    slope = pictures.new_tensor([-1.0, 0.0, 1.0]) / 2
    smooth = nn.functional.pad(luma, (2, 2, 2, 2), mode="replicate")

    def separable(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        kernel = torch.outer(rows, columns)[None, None]
        return nn.functional.conv2d(smooth, kernel)  # (B, 1, H + 2, W + 2)

    across, down = separable(blur, slope), separable(slope, blur)
    size = torch.hypot(across, down) * 2
    ridge = thin(size, across, down)
    return ((ridge - low) / (high - low)).clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def thin(size: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Gradients (B, 1, H + 2, W + 2) where they are largest along their own direction, else 0: (B, 1, H, W)."""

    def moved(dy: int, dx: int) -> torch.Tensor:
        height, width = size.shape[-2:]
        return size[..., 1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]

    middle, x, y = size[..., 1:-1, 1:-1], across[..., 1:-1, 1:-1], down[..., 1:-1, 1:-1]
    flat = (y.abs() < x.abs() * 0.41421356)  # within 22.5° of the x axis
    steep = (x.abs() < y.abs() * 0.41421356)
    rising = (x * y) > 0
    neighbours = torch.where(
        flat,
        torch.maximum(moved(0, -1), moved(0, 1)),
        torch.where(
            steep,
            torch.maximum(moved(-1, 0), moved(1, 0)),
            torch.where(
                rising,
                torch.maximum(moved(-1, -1), moved(1, 1)),
                torch.maximum(moved(-1, 1), moved(1, -1)),
            ),
        ),
    )
    return torch.where(middle >= neighbours, middle, torch.zeros_like(middle))


MakeHint = Callable[[torch.Tensor], torch.Tensor]
"""Pictures (B, 3, H, W) in [0, 1] → hints of the same shape and range."""

HINTS: dict[str, MakeHint] = {"edges": edges}

STRETCH = 0.02
"""How far the sides of a hint may be from its picture's proportions, as preprocessors round them."""


def hint_function(name: str) -> MakeHint:
    """One of ``HINTS``, or of any module, as ``package.module:function``. Raises ValueError where there is none."""
    if name in HINTS:
        return HINTS[name]
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function) if module and function else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The hint function {name} was not found: {error}.") from error
    if not callable(found):
        raise ValueError(
            f"There is no hint function {name!r}. Choose one of {', '.join(HINTS)}, or name one of yours as "
            "package.module:function."
        )
    return found


@torch.no_grad()
def with_made_hints(examples: Sequence[Example], make: MakeHint, resolution: int) -> list[Example]:
    """Examples at the size that they are trained in, with the hints that a function makes of them there.

    Raises ValueError where what it makes is no picture of that size.
    """
    found = []
    for example in examples:
        picture = fit(example.picture, resolution)
        hint = make(picture[None])[0].float().cpu()  # (3, H, W)
        if not torch.isfinite(hint).all() or hint.min() < 0 or hint.max() > 1:
            raise ValueError(f"The hint made of {example.source} is not within 0 to 1.")
        found.append(replace(example, picture=picture, hint=hint))
    return found


def with_read_hints(examples: Sequence[Example], folder: Path) -> list[Example]:
    """Examples with the hints that lie in a folder under the names of their pictures, of whatever kind of file.

    A hint of another size is scaled to its picture's. Raises ValueError for one that is missing, that cannot be read,
    or that has other proportions.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: it should hold the hints.")
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES}
    found = []
    for example in examples:
        stem = Path(example.source).stem
        if stem not in files:
            raise ValueError(f"{folder} holds no hint for {example.source}: a picture of the name {stem} is missing.")
        hint = read_picture(files[stem])
        (height, width), (h, w) = example.picture.shape[1:], hint.shape[1:]
        if abs(w * height / (h * width) - 1) > STRETCH:
            raise ValueError(
                f"{files[stem]} is {w} × {h} and {example.source} {width} × {height}: a hint needs the proportions of "
                "its picture. Make it again."
            )
        if (h, w) != (height, width):
            hint = nn.functional.interpolate(hint[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
        found.append(replace(example, hint=hint))
    return found
