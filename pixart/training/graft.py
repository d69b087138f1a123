"""KV compression put into a checkpoint that was trained without it.

Chen et al., "PixArt-Σ" (arXiv:2403.04692), section 3.3: a convolution whose equal weights make the mean is put before
the keys and values of the deeper blocks, and a few hundred steps make the model used to it.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..transformer import PixArtTransformer
from .initialise import initialise_compression


@torch.no_grad()
def graft(dense: PixArtTransformer, ratio: int, first_block: int, last_block: int) -> PixArtTransformer:
    """A copy of ``dense`` that compresses keys and values ``ratio`` × ``ratio`` in ``first_block`` to ``last_block``.

    The new layers start as the mean of each window under a norm, and want tuning: a norm changes what the block was
    trained to see. Weights are copied in their type, on their device; ``dense`` is left as it is.
    Raises ValueError for a range that is none, and for blocks that are compressed already.
    """
    config = dense.config
    if not 0 <= first_block <= last_block < config.depth or ratio < 2:
        raise ValueError(
            f"Blocks {first_block} to {last_block} at ratio {ratio} cannot be compressed: the model has blocks 0 to "
            f"{config.depth - 1}, and the ratio is at least 2."
        )
    ratios = [config.kv_ratio(index) for index in range(config.depth)]
    if max(ratios[first_block : last_block + 1]) > 1:
        raise ValueError(f"Blocks {first_block} to {last_block} are compressed already (ratios {ratios}).")
    ratios[first_block : last_block + 1] = [ratio] * (last_block - first_block + 1)
    weight = dense.x_embedder.proj.weight
    model = PixArtTransformer(
        replace(config, kv_ratios=tuple(ratios)), attention=dense.blocks[0].attn.attention, device="meta"
    )
    model = model.to(weight.dtype).to_empty(device=weight.device)
    for block in model.blocks[first_block : last_block + 1]:
        initialise_compression(block.attn)
    model.load_state_dict(dense.state_dict(), strict=False)
    model.dtype = dense.dtype
    return model.train(dense.training)
