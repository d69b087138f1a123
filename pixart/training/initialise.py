"""First values of a PixArt transformer's parameters, as the reference training code draws them."""

from __future__ import annotations

import torch
from torch import nn

from ..transformer import PixArtTransformer


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

    embedders = [model.t_embedder.mlp[0], model.t_embedder.mlp[2], model.t_block[1]]
    embedders += [model.y_embedder.y_proj.fc1, model.y_embedder.y_proj.fc2]
    if model.config.micro_condition:
        embedders += [e.mlp[i] for e in (model.csize_embedder, model.ar_embedder) for i in (0, 2)]
    for layer in embedders:
        nn.init.normal_(layer.weight, std=0.02, generator=generator)

    for block in model.blocks:
        block.scale_shift_table.normal_(std=size**-0.5, generator=generator)
        nn.init.zeros_(block.cross_attn.proj.weight)
    model.final_layer.scale_shift_table.normal_(std=size**-0.5, generator=generator)
    nn.init.zeros_(model.final_layer.linear.weight)
    if model.y_embedder.y_embedding is not None:
        model.y_embedder.y_embedding.zero_()
    return model
