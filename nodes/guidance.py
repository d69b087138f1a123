"""What keeps strong guidance in bounds."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..pixart.guidance import MODES, STATIC
from .host import guidance
from .host.model import pixart_model


class PixArtDynamicThresholding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtDynamicThresholding",
            display_name="PixArt Dynamic Thresholding",
            category="PixArt/guidance",
            description="Keeps the guided picture in the range of real latents at every step, as Imagen does with "
            "pixels, so that a high cfg does not burn colours.",
            search_aliases=["imagen", "threshold", "cfg fix", "saturation", "burned", "high cfg", "clip x0"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from PixArt Load Checkpoint."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=STATIC,
                    tooltip="static cuts off what is out of range. dynamic cuts off at a percentile and draws the "
                    "whole picture in until that is in range.",
                ),
                io.Float.Input(
                    "percentile",
                    default=99.5,
                    min=50.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Percent of a picture's values that count as in range. Imagen uses 99.5; less is stronger.",
                ),
                io.Latent.Input(
                    "reference",
                    optional=True,
                    tooltip="Real pictures, encoded with the checkpoint's VAE, whose range is measured per channel. "
                    "Without it, static takes the range of the model's own unguided prediction; dynamic needs it.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with its guided predictions kept in range.")],
        )

    @classmethod
    def execute(cls, model, mode: str = STATIC, percentile: float = 99.5, reference=None) -> io.NodeOutput:
        pixart_model(model)
        return io.NodeOutput(guidance.thresholded(model, mode, percentile, reference))


class PixArtGuidanceInterval(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtGuidanceInterval",
            display_name="PixArt Guidance Interval",
            category="PixArt/guidance",
            description="Guides only in part of the sampling. Outside of it the negative is not computed, so that "
            "those steps take half the time.",
            search_aliases=["limited interval guidance", "cfg schedule", "cfg range", "guidance interval", "faster"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from PixArt Load Checkpoint."),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the timesteps guidance begins: 0 is the first step, all noise.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where guidance ends: 1 is the last step.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, guided within the interval alone.")],
        )

    @classmethod
    def execute(cls, model, start_percent: float = 0.0, end_percent: float = 0.8) -> io.NodeOutput:
        pixart_model(model)
        return io.NodeOutput(guidance.guided_within(model, start_percent, end_percent))


NODES = [PixArtDynamicThresholding, PixArtGuidanceInterval]
