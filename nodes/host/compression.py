"""KV compression on a clone of a MODEL.

The wish lies in the clone's ``transformer_options``, never on the model that all clones share, and needs no weights
of its own: two MODELs of one checkpoint, with and without, are sampled side by side in any weight type, offloaded or
not. ``run`` tells the estimates of memory while a run lasts.
"""

from __future__ import annotations

from ...pixart.checkpoint.detect import list_blocks
from ...pixart.compression import COMPRESSION, CONV, KVCompression
from ...pixart.config import PixArtConfig
from .model import pixart_model


def compressed(patcher, chosen: KVCompression):
    """A clone of the MODEL whose self-attention is compressed as ``chosen``, and a sentence that says where and how.

    Raises ValueError where it is no PixArt MODEL, or has none of the blocks.
    """
    config = pixart_model(patcher).pixart.config
    if chosen.first_block >= config.depth:
        raise ValueError(
            f"first_block is {chosen.first_block}, but the last block of this model is {config.depth - 1}: nothing "
            f"would be compressed. PixArt-Σ compresses the second half; here that begins at {config.depth // 2}."
        )
    clone = patcher.clone()
    clone.model_options["transformer_options"][COMPRESSION] = chosen
    return clone, describe(config, chosen)


def describe(config: PixArtConfig, chosen: KVCompression) -> str:
    """Which blocks are compressed, and which of them by a convolution that nobody has trained."""
    blocks = range(chosen.first_block, min(chosen.last_block, config.depth - 1) + 1)
    if chosen.ratio == 1:
        return f"Blocks {list_blocks([*blocks])}: not compressed"
    said = f"Blocks {list_blocks([*blocks])}: {chosen.sampling}, ratio {chosen.ratio}"
    untrained = [block for block in blocks if config.kv_ratio(block) != chosen.ratio]
    if chosen.sampling == CONV and untrained:
        said += (
            f". Blocks {list_blocks(untrained)} hold no trained convolution of this ratio: theirs makes the mean and "
            "norms it, which is where tuning starts and no picture yet. Use average without training"
        )
    return said
