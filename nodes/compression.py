"""Fewer keys and values in self-attention, for large pictures."""

from __future__ import annotations

import logging

from comfy_api.v0_0_2 import io

from ..pixart.compression import AVERAGE, SAMPLINGS, KVCompression
from .host.compression import compressed
from .host.messages import say

log = logging.getLogger(__name__)


class PixArtKVCompression(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtKVCompression",
            display_name="PixArt KV Compression",
            category="PixArt/model",
            description="Makes large pictures faster: in the chosen blocks every token looks at fewer, merged keys and "
            "values. Works with any PixArt MODEL; the larger the picture, the more it saves.",
            search_aliases=["kv compression", "token compression", "4k", "2k", "faster attention", "token merging"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from PixArt Load Checkpoint. It is left as it is."),
                io.Combo.Input(
                    "sampling",
                    options=list(SAMPLINGS),
                    default=AVERAGE,
                    tooltip="How keys and values are made fewer. average (mean of each window), uniform (one token of "
                    "each window) and uniform_every (every so many tokens of the sequence) need no training. conv "
                    "takes the checkpoint's trained convolution; checkpoints without one draw badly with it.",
                ),
                io.Int.Input(
                    "ratio",
                    default=2,
                    min=1,
                    max=16,
                    tooltip="Side of the window that becomes one key: 2 leaves a quarter of the keys. For "
                    "uniform_every the step, 2 leaves half. 1 switches compression off in these blocks.",
                ),
                io.Int.Input(
                    "first_block",
                    default=14,
                    min=0,
                    max=127,
                    tooltip="First block to compress, counted from 0. PixArt-Σ compresses blocks 14 to 27 of 28.",
                ),
                io.Int.Input(
                    "last_block",
                    default=27,
                    min=0,
                    max=127,
                    tooltip="Last block to compress; past the model's last block means up to that.",
                ),
                io.Int.Input(
                    "min_tokens",
                    default=8192,
                    min=0,
                    max=1048576,
                    tooltip="Smaller pictures are left alone. A token is 16 × 16 pixels: 1024 × 1024 has 4096, "
                    "2048 × 2048 has 16384, 3840 × 2160 has 32400, 4096 × 4096 has 65536.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="A MODEL with the compression, for a sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        sampling: str = AVERAGE,
        ratio: int = 2,
        first_block: int = 14,
        last_block: int = 27,
        min_tokens: int = 8192,
    ) -> io.NodeOutput:
        chosen = KVCompression(sampling, ratio, first_block, last_block, min_tokens)
        patched, message = compressed(model, chosen)
        log.info("PixArt KV Compression: %s.", message)
        say(message, cls.hidden.unique_id)
        return io.NodeOutput(patched)


NODES = [PixArtKVCompression]
