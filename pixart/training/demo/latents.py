"""The demo's latent space, by definition: what its encoder is taught to say about a picture.

Like TAESD, whose encoder learns another autoencoder's latents, the demo's encoder has a teacher; ours is a
formula. Of each cell of 8 × 8 pixels, channels 0 to 2 are the mean red, green and blue, and channel 3 is the
first moment of the cell's contrast along its diagonal, which tells on which side an edge passes. Scaled to
about unit variance over the demo's pictures.
"""

from __future__ import annotations

import torch
from torch import nn

CELL = 8
COLOUR_CENTRE = 0.5
COLOUR_SPREAD = 0.38
CONTRAST_WEIGHTS = (0.7218, 0.5454, -0.4261)
"""The direction in RGB along which the eight colours lie farthest apart."""
MOMENT_GAIN = 6.0
CONTRAST = 3.0
"""How much larger the transformer's latents are than the autoencoder's own.

In pictures this flat, neighbouring cells repeat each other, so that noise hides little of them. At unit variance
the colours are decided in the last third of the noise levels, where the caption's share in the predicted noise
is a few percent and drowns in the network's own error. Three times the contrast gives nine times the SNR.
"""


def teacher_latents(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [0, 1], sides multiples of 8 → latents (B, 4, H/8, W/8)."""
    colour = (nn.functional.avg_pool2d(pictures, CELL) - COLOUR_CENTRE) / COLOUR_SPREAD
    contrast = torch.einsum("bchw,c->bhw", pictures, pictures.new_tensor(CONTRAST_WEIGHTS))[:, None]
    offset = (torch.arange(CELL, dtype=pictures.dtype, device=pictures.device) + 0.5) / CELL - 0.5
    diagonal = (offset[:, None] + 2.0 * offset[None, :])[None, None] / CELL**2  # (1, 1, 8, 8)
    moment = nn.functional.conv2d(contrast, diagonal, stride=CELL) * MOMENT_GAIN
    return torch.cat([colour, moment], dim=1)
