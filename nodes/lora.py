"""LoRA files of every dialect."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from .host import folders
from .host.lora import load_lora


class PixArtLoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtLoadLora",
            display_name="PixArt Load LoRA",
            category="PixArt/loaders",
            description="Applies a LoRA to a PixArt model, and to T5 where the file has a part for it: files of "
            "diffusers, PEFT, OneTrainer, SimpleTuner, LyCORIS and kohya, with LoHa, LoKr and DoRA. The report says "
            "what was found and what had no place.",
            search_aliases=["pixart lora", "lora", "lycoris", "dora", "loha", "lokr", "lcm lora", "load lora"],
            inputs=[
                io.Model.Input("model", tooltip="The PixArt model that the LoRA was trained on, or one tuned from it."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="T5 from PixArt Load T5. Needed only where the LoRA changes the text encoder as well.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folders.names(folders.LORAS),
                    tooltip="A LoRA file in models/loras. PEFT's adapter_config.json beside it is read for its alpha.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="How much of the LoRA to add to the model. 0 leaves it as it is, below 0 takes away.",
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="The same for the text encoder. Without a clip it has no effect.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA, for a sampler or the next LoRA."),
                io.Clip.Output(tooltip="The text encoder with the LoRA; nothing where no clip is connected."),
                io.String.Output(
                    display_name="report", tooltip="Kind, rank, alpha and its source, and how many modules matched."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **others) -> str:
        return folders.stamp(folders.LORAS, lora_name)

    @classmethod
    def execute(
        cls, model, lora_name: str, strength_model: float = 1.0, strength_clip: float = 1.0, clip=None
    ) -> io.NodeOutput:
        path = folders.find(folders.LORAS, lora_name)
        return io.NodeOutput(*load_lora(model, clip, path, strength_model, strength_clip))


NODES = [PixArtLoadLora]
