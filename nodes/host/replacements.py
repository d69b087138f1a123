"""Workflows of ComfyUI_ExtraModels, opened with this pack's nodes where that pack is not installed."""

from __future__ import annotations

import sys
from collections.abc import Collection

from comfy_api.v0_0_2 import ComfyAPI, io

Mapping = list[dict]


def taken(new: str, old: str) -> dict:
    return {"new_id": new, "old_id": old}


def fixed(new: str, value) -> dict:
    return {"new_id": new, "set_value": value}


CHECKPOINT: Mapping = [taken("ckpt_name", "ckpt_name"), fixed("weight_dtype", "auto"), fixed("variant", "auto")]
T5_NAME: Mapping = [taken("t5_name", "t5v11_name"), fixed("dtype", "auto"), fixed("device", "auto")]
PROMPT: Mapping = [taken("text", "text"), taken("clip", "T5")]

REPLACEMENTS: tuple[tuple[str, str, list[str], Mapping], ...] = (
    # The type of model that was chosen by hand is read from the weights now.
    ("PixArtCheckpointLoader", "PixArtLoadCheckpoint", ["ckpt_name", "model"], CHECKPOINT),
    ("PixArtCheckpointLoaderSimple", "PixArtLoadCheckpoint", ["ckpt_name"], CHECKPOINT),
    # Its presets are width / height; pixart.resolution knows that by the type of model in place of a base.
    (
        "PixArtResolutionSelect",
        "PixArtResolution",
        ["model", "ratio"],
        [taken("base", "model"), taken("ratio", "ratio"), fixed("batch_size", 1)],
    ),
    (
        "PixArtResolutionCond",
        "PixArtSizeConditioning",
        ["width", "height"],
        [taken("conditioning", "cond"), taken("width", "width"), taken("height", "height")],
    ),
    (
        "PixArtLoraLoader",
        "PixArtLoadLora",
        ["lora_name", "strength"],
        [
            taken("model", "model"),
            taken("lora_name", "lora_name"),
            taken("strength_model", "strength"),
            fixed("strength_clip", 0.0),  # that node left T5 alone
        ],
    ),
    ("T5v11Loader", "PixArtLoadT5", ["t5v11_name", "t5v11_ver", "path_type", "device", "dtype"], T5_NAME),
    # It read a long prompt in pieces of 120 tokens and cut nothing.
    ("T5TextEncode", "PixArtTextEncode", ["text"], [*PROMPT, fixed("max_tokens", 300), fixed("clean_caption", False)]),
    # α's reference: lower case, 120 tokens.
    (
        "PixArtT5TextEncode",
        "PixArtTextEncode",
        ["text"],
        [*PROMPT, fixed("max_tokens", 120), fixed("clean_caption", True)],
    ),
)
"""Old id, new id, the old node's widgets in their saved order, and where each new input's value is from.

PixArtControlNetCond and PixArtT5FromSD3CLIP have no counterpart whose inputs mean the same, and stay missing.
"""


class Replacement(io.NodeReplace):
    """A replacement whose outputs keep their places, which only the front end is told.

    The host, when it replaces nodes in a prompt, would follow ``output_mapping`` by the names that the inputs at the
    other end had before, and fails with HTTP 500 where those nodes were replaced first (seen in 0.14.0 to 0.33.0).
    """

    def as_dict(self) -> dict:
        count = 2 if self.old_node_id == "PixArtResolutionSelect" else 1
        return {**super().as_dict(), "output_mapping": [{"new_idx": i, "old_idx": i} for i in range(count)]}


async def register(node_ids: Collection[str]) -> None:
    """Tell the host, for those new nodes that this pack has; where there is no server, nobody opens workflows."""
    if getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None) is None:
        return
    api = ComfyAPI()
    for old, new, widgets, mapping in REPLACEMENTS:
        if new in node_ids:
            await api.node_replacement.register(
                Replacement(new_node_id=new, old_node_id=old, old_widget_ids=widgets, input_mapping=mapping)
            )
