"""A ControlNet before its first step of training."""

from __future__ import annotations

import torch
from torch import nn

from ..controlnet import ControlNetConfig, PixArtControlNet
from ..transformer import PixArtTransformer


@torch.no_grad()
def first_controlnet(base: PixArtTransformer, copied_blocks: int) -> PixArtControlNet:
    """Copies of the base's first blocks between projections of zeros, so that at first nothing is added.

    Raises ValueError when the base has too few blocks.
    """
    config = ControlNetConfig.of_base(base.config, copied_blocks)
    weight = base.x_embedder.proj.weight
    model = PixArtControlNet(config, attention=base.blocks[0].attn.attention, device="meta")
    model = model.to(weight.dtype).to_empty(device=weight.device)
    for index, part in enumerate(model.controlnet):
        part.copied_block.load_state_dict(base.blocks[index].state_dict())
        for layer in (getattr(part, "before_proj", None), part.after_proj):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    return model


class Controlled(nn.Module):
    """A base that stays as it is, and the ControlNet that learns to steer it."""

    def __init__(self, base: PixArtTransformer, control: PixArtControlNet):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.control = control

    def forward(self, x, timesteps, caption, caption_mask=None, *, hint, **conditions) -> torch.Tensor:
        residuals = self.control(self.base, x, hint, timesteps, caption, caption_mask, **conditions)
        return self.base(x, timesteps, caption, caption_mask, control={"output": residuals}, **conditions)
