"""Loading a PixArt transformer, and telling what it is."""

from __future__ import annotations

from comfy_api.v0_0_2 import io, ui

from .host import folders
from .host.model import WEIGHT_DTYPES, load_model, pixart_model


class PixArtLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtLoadCheckpoint",
            display_name="PixArt Load Checkpoint",
            category="PixArt/loaders",
            description="Loads any PixArt-α or PixArt-Σ transformer: original .pth, safetensors or diffusers files. "
            "What the file holds is detected from its weights.",
            search_aliases=["pixart", "pixart sigma", "pixart alpha", "load pixart", "checkpoint loader", "dit loader"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=folders.names(folders.CHECKPOINTS),
                    tooltip="A PixArt transformer in models/checkpoints, models/diffusion_models or models/diffusers.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="auto",
                    tooltip="How weights are kept in memory. auto lets ComfyUI choose for your card; "
                    "fp8 halves the memory of fp16 at a small cost in precision.",
                ),
                io.Combo.Input(
                    "variant",
                    options=["auto", "alpha", "sigma"],
                    default="auto",
                    advanced=True,
                    tooltip="Only for files whose weights do not tell α from Σ. auto reads the evidence in the file.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The transformer, for KSampler and every node that takes a MODEL.")],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str | None = None, **others) -> str:
        return folders.stamp(folders.CHECKPOINTS, ckpt_name)

    @classmethod
    def execute(cls, ckpt_name: str, weight_dtype: str = "auto", variant: str = "auto") -> io.NodeOutput:
        path = folders.find(folders.CHECKPOINTS, ckpt_name)
        return io.NodeOutput(load_model(path, weight_dtype, variant))


class PixArtModelInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtModelInfo",
            display_name="PixArt Model Info",
            category="PixArt/loaders",
            description="Says what was detected in a PixArt checkpoint, and from what evidence.",
            search_aliases=["pixart info", "model info", "what is this checkpoint", "inspect model"],
            inputs=[io.Model.Input("model", tooltip="A MODEL from PixArt Load Checkpoint.")],
            outputs=[io.String.Output(tooltip="The report, as text.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        report = "\n".join(pixart_model(model).describe())
        return io.NodeOutput(report, ui=ui.PreviewText(report))


NODES = [PixArtLoadCheckpoint, PixArtModelInfo]
