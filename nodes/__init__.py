"""The nodes. One file a feature; this one lists them for the host."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension

from . import (
    caching,
    caption_files,
    captions,
    checkpoint,
    compression,
    controlnet,
    dreambooth,
    evaluation,
    fewstep,
    guidance,
    lora,
    resolution,
    training,
    upscale,
)
from .host import folders, replacements, routes
from .host.limits import within_limits

NODES = [
    *checkpoint.NODES,
    *captions.NODES,
    *caption_files.NODES,
    *lora.NODES,
    *dreambooth.NODES,
    *resolution.NODES,
    *fewstep.NODES,
    *guidance.NODES,
    *upscale.NODES,
    *evaluation.NODES,
    *caching.NODES,
    *training.NODES,
    *compression.NODES,
    *controlnet.NODES,
]


class PixArtExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register_demo()
        folders.register_captions()
        routes.register()
        await replacements.register({node.GET_SCHEMA().node_id for node in NODES})

    async def get_node_list(self) -> list:
        return [within_limits(node) for node in NODES]


async def comfy_entrypoint() -> PixArtExtension:
    return PixArtExtension()
