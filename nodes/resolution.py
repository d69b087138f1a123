"""Picture sizes that PixArt was trained on."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.v0_0_2 import io

from ..pixart.resolution import BASES, chosen_bin, default_ratio_option, nearest_bin, ratio_options

BASE_OPTIONS = [str(base) for base in BASES]
BASE_TOOLTIP = (
    "Side of the square with the same area. Choose what the checkpoint was made for: 256, 512, 1024, 2048; "
    "2880 has the area of 4K UHD, 4096 is 4K square."
)


def batch_input() -> io.Int.Input:
    return io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures to draw at once.")


def size_outputs() -> list:
    return [
        io.Int.Output(display_name="width", tooltip="Width in pixels."),
        io.Int.Output(display_name="height", tooltip="Height in pixels."),
        io.Latent.Output(display_name="latent", tooltip="An empty latent of this size, for a sampler."),
    ]


def sized(width: int, height: int, batch_size: int) -> io.NodeOutput:
    """Width, height and an empty latent of four channels at an eighth of the size."""
    samples = torch.zeros(
        [batch_size, 4, height // 8, width // 8], device=comfy.model_management.intermediate_device()
    )
    return io.NodeOutput(width, height, {"samples": samples})


class PixArtResolution(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtResolution",
            display_name="PixArt Resolution",
            category="PixArt/latent",
            description="An empty latent in one of the sizes PixArt was trained on, chosen by its shape.",
            search_aliases=["pixart size", "aspect ratio", "resolution select", "empty latent", "resolution presets"],
            inputs=[
                io.Combo.Input("base", options=BASE_OPTIONS, default="1024", tooltip=BASE_TOOLTIP),
                io.Combo.Input(
                    "ratio",
                    options=ratio_options(),
                    default=default_ratio_option(),
                    tooltip="Shape of the picture. The pixels shown are those at base 1024; other bases differ.",
                ),
                batch_input(),
            ],
            outputs=size_outputs(),
        )

    @classmethod
    def validate_inputs(cls, base: str | None, ratio: str | None) -> bool | str:
        """In place of the host's check against the lists: scripts may name a bare ratio, old workflows a model."""
        if base is None or ratio is None:  # linked: known when the node runs
            return True
        try:
            chosen_bin(base, ratio)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, base: str, ratio: str, batch_size: int = 1) -> io.NodeOutput:
        chosen = chosen_bin(base, ratio)
        return sized(chosen.width, chosen.height, batch_size)


class PixArtNearestResolution(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtNearestResolution",
            display_name="PixArt Nearest Resolution",
            category="PixArt/latent",
            description="For any width and height, the nearest size PixArt was trained on, and an empty latent of it.",
            search_aliases=["nearest size", "resolution binning", "fit size", "pixart size", "empty latent"],
            inputs=[
                io.Int.Input("width", default=1024, min=16, max=16384, tooltip="The width you wish for, in pixels."),
                io.Int.Input("height", default=1024, min=16, max=16384, tooltip="The height you wish for, in pixels."),
                io.Combo.Input(
                    "base",
                    options=["auto", *BASE_OPTIONS],
                    default="auto",
                    tooltip="auto takes the base whose area is nearest to width × height. " + BASE_TOOLTIP,
                ),
                batch_input(),
            ],
            outputs=size_outputs(),
        )

    @classmethod
    def execute(cls, width: int, height: int, base: str = "auto", batch_size: int = 1) -> io.NodeOutput:
        chosen = nearest_bin(height, width, None if base == "auto" else int(base))
        return sized(chosen.width, chosen.height, batch_size)


NODES = [PixArtResolution, PixArtNearestResolution]
