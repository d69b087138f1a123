"""Loading a ControlNet for PixArt."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from .host import folders
from .host.control import load_control


class PixArtLoadControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtLoadControlNet",
            display_name="PixArt Load ControlNet",
            category="PixArt/loaders",
            description="Loads a ControlNet for PixArt: original .pth files, diffusers' adapters, or files trained "
            "with this pack. Use it with ComfyUI's “Apply ControlNet”, and connect the VAE there.",
            search_aliases=["pixart controlnet", "controlnet loader", "hed", "canny", "edges", "pixart delta"],
            inputs=[
                io.Combo.Input(
                    "control_net_name",
                    options=folders.names(folders.CONTROL_NETS),
                    tooltip="A PixArt ControlNet in models/controlnet. It must belong to the checkpoint that is used.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(tooltip="For “Apply ControlNet”, with the VAE of the checkpoint connected there.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, control_net_name: str | None = None, **others) -> str:
        return folders.stamp(folders.CONTROL_NETS, control_net_name)

    @classmethod
    def execute(cls, control_net_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_control(folders.find(folders.CONTROL_NETS, control_net_name)))


NODES = [PixArtLoadControlNet]
