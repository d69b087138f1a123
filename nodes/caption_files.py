"""Encoded captions on disk: T5 runs once, and is not in memory when pictures are drawn."""

from __future__ import annotations

from comfy_api.v0_0_2 import io, ui

from ..pixart.text.captions import DTYPES
from .host import caption_files as files
from .host.messages import say


class PixArtSaveCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtSaveCaption",
            display_name="PixArt Save Caption",
            category="PixArt/conditioning",
            description="Saves an encoded caption to a file in the output folder, for PixArt Load Caption to use "
            "without T5. The file also says which prompt and which T5 it came from.",
            search_aliases=["save conditioning", "save embedding", "offline caption", "cache prompt", "export caption"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="An encoded caption, as from PixArt Text Encode."),
                io.String.Input(
                    "filename_prefix",
                    default="captions/PixArt",
                    tooltip="Folder and name below the output folder; a number is added. %year% and the like work.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *DTYPES],
                    default="auto",
                    advanced=True,
                    tooltip="How numbers are stored. auto keeps them exactly; fp16 halves the size of fp32.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning, filename_prefix: str = "captions/PixArt", dtype: str = "auto") -> io.NodeOutput:
        saved = files.save_conditioning(conditioning, filename_prefix, DTYPES.get(dtype))
        report = "\n".join(map(files.describe, saved))
        say(report, cls.hidden.unique_id)
        return io.NodeOutput(ui=ui.PreviewText(report))


class PixArtLoadCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtLoadCaption",
            display_name="PixArt Load Caption",
            category="PixArt/conditioning",
            description="Loads a caption that was encoded before, by PixArt Save Caption or python -m pixart.text. "
            "No T5 is loaded, which saves up to 19 GB of memory.",
            search_aliases=["load conditioning", "load embedding", "offline caption", "no t5", "cached prompt"],
            inputs=[
                io.Combo.Input(
                    "caption_name",
                    options=files.caption_names(),
                    tooltip="A caption file in models/captions, in the input folder or in the output folder.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The caption, for a sampler's positive or negative input.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, caption_name: str) -> str:
        return files.fingerprint(files.find_caption(caption_name))

    @classmethod
    def execute(cls, caption_name: str) -> io.NodeOutput:
        conditioning, prompt = files.load_conditioning(files.find_caption(caption_name))
        say(prompt, cls.hidden.unique_id)
        return io.NodeOutput(conditioning)


NODES = [PixArtSaveCaption, PixArtLoadCaption]
