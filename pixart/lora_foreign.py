"""LoRA files of other models, told by the names and widths of their layers."""

from __future__ import annotations

from collections.abc import Mapping

# (the model, texts one of which is in a layer's name). Names with dots and with underscores. Narrow ones first.
_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Stable Diffusion 3", ("joint_blocks", "attn.add_k_proj", "attn_add_k_proj")),
    ("AuraFlow", ("joint_transformer_blocks", "joint_layers", "single_layers.")),
    ("HunyuanVideo", ("img_attn_qkv", "img_attn.qkv", "single_blocks.0.modulation.linear")),
    ("Flux or a model built like it", ("single_transformer_blocks", "double_blocks", "single_blocks")),
    ("Qwen-Image", ("img_mod.1", "img_mod_1", "img_mlp.net")),
    ("Sana", ("ff.conv_inverted", "ff_conv_inverted", "ff.conv_point", "ff_conv_point")),
    ("Wan", ("blocks.0.self_attn.", "blocks_0_self_attn_")),
    ("a Cascade model", ("lora_prior_",)),
)
_UNET = ("down_blocks", "up_blocks", "mid_block", "input_blocks", "output_blocks", "middle_block")
_UNET_BY_CAPTION = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
_SDXL_ONLY = ("lora_te2_", "text_encoder_2.", "add_embedding", "label_emb")
_CLIP = ("text_model_encoder_layers", "text_model.encoder.layers")
_REMEDY = "Choose a LoRA that was trained on PixArt."


def name_foreign_lora(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """One sentence on which other model a LoRA is for; None when the names tell of no other.

    shapes: name → shape of every tensor in the file.
    """
    if any(mark in name for name in shapes for mark in _UNET):
        return f"This is a LoRA for {_which_unet(shapes)}, not for PixArt. {_REMEDY}"
    for model, marks in _KINDS:
        if any(mark in name for name in shapes for mark in marks):
            return f"This is a LoRA for {model}, not for PixArt. {_REMEDY}"
    if all(any(mark in name for mark in _CLIP) for name in shapes):
        return f"This is a LoRA for a CLIP text encoder; PixArt reads captions with T5. {_REMEDY}"
    return None


def _which_unet(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A UNet's generation stands in the width of the captions that its cross-attention takes."""
    if any(mark in name for name in shapes for mark in _SDXL_ONLY):
        return "SDXL"
    for name, shape in shapes.items():
        is_down = "lora_down" in name or "lora_A" in name or "lora.down" in name
        if is_down and len(shape) == 2 and ("attn2_to_k" in name or "attn2.to_k" in name):
            return _UNET_BY_CAPTION.get(shape[1], "a Stable Diffusion UNet")
    return "a Stable Diffusion UNet"
