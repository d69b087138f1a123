"""Full fine-tunes as a difference on their base."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from .host import folders
from .host.dreambooth import load_dreambooth


class PixArtLoadDreamBooth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtLoadDreamBooth",
            display_name="PixArt Load DreamBooth",
            category="PixArt/loaders",
            description="Lays a fully fine-tuned PixArt checkpoint over its base with a strength: base + strength × "
            "(fine-tune − base). The two may be stored in different formats and types.",
            search_aliases=["dreambooth", "fine-tune", "finetune", "pixart dreambooth", "merge difference"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that the fine-tune was trained from."),
                io.Combo.Input(
                    "ckpt_name",
                    options=folders.names(folders.CHECKPOINTS),
                    tooltip="The fine-tune, in models/checkpoints, models/diffusion_models or models/diffusers.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="1 gives the fine-tune, 0 the base, between them a mixture, above 1 more than that.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the difference added; LoRAs may follow.")],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str | None = None, **others) -> str:
        return folders.stamp(folders.CHECKPOINTS, ckpt_name)

    @classmethod
    def execute(cls, model, ckpt_name: str, strength: float = 1.0) -> io.NodeOutput:
        return io.NodeOutput(load_dreambooth(model, folders.find(folders.CHECKPOINTS, ckpt_name), strength))


NODES = [PixArtLoadDreamBooth]
