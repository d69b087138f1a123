"""From words to conditioning."""

from __future__ import annotations

import logging

import node_helpers
from comfy_api.v0_0_2 import io

from ..pixart.text.cleaning import clean_prompt
from .host import folders
from .host import text as t5
from .host.messages import say
from .host.model import pixart_model

log = logging.getLogger(__name__)

LEARNED, PADDED, EMPTY = "learned", "padded", "empty"
NULL_KINDS = (LEARNED, PADDED, EMPTY)


class PixArtLoadT5(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtLoadT5",
            display_name="PixArt Load T5",
            category="PixArt/loaders",
            description="Loads the T5 v1.1 text encoder that PixArt reads captions with (T5-XXL for released models).",
            search_aliases=["t5 loader", "t5xxl", "text encoder", "clip loader", "pixart clip"],
            inputs=[
                io.Combo.Input(
                    "t5_name",
                    options=folders.names(folders.TEXT_ENCODERS),
                    tooltip="A T5 v1.1 encoder in models/text_encoders: one file, or a Hugging Face folder.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(t5.DTYPES),
                    default="auto",
                    tooltip="How weights are kept in memory. auto keeps the file's own; fp8 needs a quarter of fp32.",
                ),
                io.Combo.Input(
                    "device",
                    options=["auto", "cpu"],
                    default="auto",
                    tooltip="cpu keeps the encoder in system memory, so that all of the card is left for the picture.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="The encoder as an ordinary CLIP: every text node of ComfyUI takes it.")],
        )

    @classmethod
    def fingerprint_inputs(cls, t5_name: str | None = None, **others) -> str:
        return folders.stamp(folders.TEXT_ENCODERS, t5_name)

    @classmethod
    def execute(cls, t5_name: str, dtype: str = "auto", device: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(t5.load_clip(folders.find(folders.TEXT_ENCODERS, t5_name), dtype, device))


class PixArtTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtTextEncode",
            display_name="PixArt Text Encode",
            category="PixArt/conditioning",
            description="Encodes a prompt with T5, within the number of tokens PixArt was trained on. "
            "A prompt that is too long is cut, and the node shows the words that were lost.",
            search_aliases=["pixart prompt", "t5 text encode", "clip text encode", "prompt", "caption"],
            inputs=[
                io.Clip.Input("clip", tooltip="T5 from PixArt Load T5, or from the host's CLIP loader, type pixart."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw. (word:1.2) weights a word, as everywhere in ComfyUI.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=300,
                    min=1,
                    max=4096,
                    tooltip="Longest caption in T5 tokens: 300 for PixArt-Σ, 120 for PixArt-α.",
                ),
                io.Boolean.Input(
                    "clean_caption",
                    default=False,
                    tooltip="Clean the text as the reference pipelines do: lower case, no URLs, no markup. "
                    "PixArt-α was trained on such captions.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The caption, for a sampler's positive or negative input.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, text: str, max_tokens: int = 300, clean_caption: bool = False) -> io.NodeOutput:
        prompt = clean_prompt(text) if clean_caption else text
        tokens, count, lost = t5.cut(clip, prompt, max_tokens)
        message = f"{count} of {max_tokens} tokens"
        if count > max_tokens:
            message = f"The prompt has {count} tokens, {max_tokens} fit. Not read: “{lost}”"
            log.warning("PixArt Text Encode: %s", message)
        say(message, cls.hidden.unique_id)
        carried = t5.carried(clip, prompt, min(count, max_tokens))
        return io.NodeOutput(clip.encode_from_tokens_scheduled(tokens, add_dict=carried))


class PixArtNullCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtNullCaption",
            display_name="PixArt Null Caption",
            category="PixArt/conditioning",
            description="What guidance leads away from when there is no negative prompt, for a sampler's negative "
            "input: the null caption that PixArt-α learned, or the empty caption as PixArt-Σ's scripts or diffusers "
            "and ComfyUI encode it.",
            search_aliases=["unconditional", "empty caption", "negative", "null embedding", "uncond"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from PixArt Load Checkpoint."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Connect the positive caption to cut the null caption to its number of tokens, "
                    "as the reference samplers do.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(NULL_KINDS),
                    default=LEARNED,
                    optional=True,
                    tooltip="learned is PixArt-α's, stored in the checkpoint. padded is PixArt-Σ's: the empty text "
                    "padded to the prompt's length. empty is diffusers' and ComfyUI's: the end token alone.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The checkpoint's T5, which padded and empty are encoded with."
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The null caption, for a sampler's negative input.")],
        )

    @classmethod
    def execute(cls, model, positive=None, kind: str = LEARNED, clip=None) -> io.NodeOutput:
        known = pixart_model(model)
        if kind == LEARNED:
            null = known.null_caption()  # (1, L, C)
            return io.NodeOutput([[null[:, : t5.tokens_of(positive, null.shape[1])], {"pooled_output": None}]])
        if clip is None:
            raise ValueError(f"The {kind} null caption is encoded with T5: connect clip, or choose the kind learned.")
        if kind == EMPTY:
            return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize("")))
        length = t5.tokens_of(positive, known.pixart.config.max_caption_tokens)
        return io.NodeOutput([[t5.padded_empty(clip, length), {"pooled_output": None}]])


class PixArtSizeConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtSizeConditioning",
            display_name="PixArt Size Conditioning",
            category="PixArt/conditioning",
            description="Tells PixArt-α 1024-MS (and LCM) the picture's size in pixels. Without it the latent's own "
            "size is told. PixArt-Σ and the smaller α models were trained without it and ignore it.",
            search_aliases=["micro conditioning", "resolution conditioning", "pixart alpha size", "aspect ratio"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="An encoded caption; use the node on the negative too."),
                io.Int.Input("width", default=1024, min=16, max=16384, tooltip="Width to tell the model, in pixels."),
                io.Int.Input("height", default=1024, min=16, max=16384, tooltip="Height to tell the model, in pixels."),
            ],
            outputs=[io.Conditioning.Output(tooltip="The caption with the size added; the input is left as it is.")],
        )

    @classmethod
    def execute(cls, conditioning, width: int = 1024, height: int = 1024) -> io.NodeOutput:
        values = {"width": width, "height": height}
        return io.NodeOutput(node_helpers.conditioning_set_values(conditioning, values))


NODES = [PixArtLoadT5, PixArtTextEncode, PixArtNullCaption, PixArtSizeConditioning]
