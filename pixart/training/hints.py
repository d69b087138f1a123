"""Control pictures made from pictures, for training; at the time of use the host's preprocessors make them."""

from __future__ import annotations

import torch
from torch import nn

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


HINTS = {"edges": edges}
"""Name → function from pictures (B, 3, H, W) in [0, 1] to hints of the same shape."""
