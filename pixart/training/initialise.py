"""First values of a PixArt transformer's parameters, as the reference training code draws them."""

from __future__ import annotations

import torch
from torch import nn

from ..attention import SelfAttention
from ..transformer import PixArtTransformer

REFERENCE_STD, REFERENCE_WIDTH, REFERENCE_CAPTION = 0.02, 1152, 4096
"""The reference draws its embedders with one standard deviation, meant for one width. A narrower model takes
a wider one, so that what a layer puts out is as large: at 0.02 a caption of 128 channels would be a whisper
beside the picture, and training hardly hears it.
"""


@torch.no_grad()
def initialise(model: PixArtTransformer, generator: torch.Generator | None = None) -> PixArtTransformer:
    """Fill every parameter in place: Xavier for linear layers, small normals for the embedders, zeros where
    a block or the output must start silent. The null caption is left as zeros: the caller knows its values.
    """
    size = model.config.hidden_size
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    projection = model.x_embedder.proj
    nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1), generator=generator)
    nn.init.zeros_(projection.bias)

    caption = model.y_embedder.y_proj
    reference_inputs = {
        model.t_embedder.mlp[0]: 256,
        model.t_embedder.mlp[2]: REFERENCE_WIDTH,
        model.t_block[1]: REFERENCE_WIDTH,
        caption.fc1: REFERENCE_CAPTION,
        caption.fc2: REFERENCE_WIDTH,
    }
    if model.config.micro_condition:
        for embedder in (model.csize_embedder, model.ar_embedder):
            reference_inputs |= {embedder.mlp[0]: 256, embedder.mlp[2]: REFERENCE_WIDTH // 3}
    for layer, inputs in reference_inputs.items():
        std = REFERENCE_STD * (inputs / layer.in_features) ** 0.5
        nn.init.normal_(layer.weight, std=std, generator=generator)

    for block in model.blocks:
        block.scale_shift_table.normal_(std=size**-0.5, generator=generator)
        nn.init.zeros_(block.cross_attn.proj.weight)
        initialise_compression(block.attn)
        for norm in (block.attn.q_norm, block.attn.k_norm):
            if norm is not None:
                norm.reset_parameters()
    model.final_layer.scale_shift_table.normal_(std=size**-0.5, generator=generator)
    nn.init.zeros_(model.final_layer.linear.weight)
    if model.y_embedder.y_embedding is not None:
        model.y_embedder.y_embedding.zero_()
    return model


@torch.no_grad()
def initialise_compression(attention: SelfAttention) -> None:
    """Equal weights over each window, which make the mean, and a norm that changes no channel's scale."""
    if attention.sr is not None:
        nn.init.constant_(attention.sr.weight, attention.kv_ratio**-2)
        nn.init.zeros_(attention.sr.bias)
        attention.norm.reset_parameters()
