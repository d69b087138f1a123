"""The nodes. One file a feature; this one lists them for the host."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension

from . import (
    caption_files,
    captions,
    checkpoint,
    evaluation,
    fewstep,
    guidance,
    resolution,
    upscale,
)
from .host import folders

NODES = [
    *checkpoint.NODES,
    *captions.NODES,
    *caption_files.NODES,
    *resolution.NODES,
    *fewstep.NODES,
    *guidance.NODES,
    *upscale.NODES,
    *evaluation.NODES,
]


class PixArtExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register_demo()
        folders.register_captions()

    async def get_node_list(self) -> list:
        return NODES


async def comfy_entrypoint() -> PixArtExtension:
    return PixArtExtension()
