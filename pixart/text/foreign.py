"""Files that are no T5 v1.1 encoder, named for what they are, so that a wrong choice is easily mended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

REMEDY = "Choose a T5 v1.1 XXL encoder, such as t5xxl_fp16.safetensors, in PixArt Load T5."

_CLIP_EMBEDDINGS = (
    "text_model.embeddings.token_embedding.weight",
    "transformer.token_embedding.weight",
    "token_embedding.weight",
)
_CLIP_WIDTHS = {(768,): "CLIP-L", (1024,): "CLIP-H", (1280,): "CLIP-G"}

# (what it is, texts which all occur among the names). Narrow signatures stand before broad ones.
_LORAS = (
    ("a LoRA", (".lora_A.",)),
    ("a LoRA", (".lora_down.",)),
    ("a LoRA", (".lora.down.",)),
    ("a LyCORIS LoRA", (".lokr_w",)),
    ("a LyCORIS LoRA", (".hada_w",)),
)
_OTHERS = (
    ("a T5 decoder without its encoder", ("decoder.block.0.layer.1.EncDecAttention.",)),
    ("a Gemma language model", ("layers.0.pre_feedforward_layernorm.",)),
    ("a Qwen language model", ("layers.0.self_attn.q_proj.bias",)),
    ("a Qwen language model", ("layers.0.self_attn.q_norm.",)),
    ("a LLaMA-like language model", ("layers.0.self_attn.q_proj.", "layers.0.mlp.gate_proj.")),
    ("a BERT-like encoder", ("encoder.layer.0.attention.self.query.",)),
    ("a Stable Diffusion checkpoint", ("model.diffusion_model.input_blocks.",)),
    ("a ControlNet", ("controlnet_blocks.0.",)),
    ("a ControlNet", ("controlnet.0.copied_block.",)),
    ("a ControlNet", ("input_hint_block.",)),
    ("a diffusion model", ("diffusion_model.",)),
    ("a PixArt or DiT transformer", ("t_block.1.weight",)),
    ("a PixArt or DiT transformer", ("adaln_single.linear.weight",)),
    ("a diffusion model", ("double_blocks.0.",)),
    ("a diffusion model", ("joint_blocks.0.",)),
    ("a diffusion model", ("transformer_blocks.0.",)),
    ("a diffusion model", ("down_blocks.", "up_blocks.", "time_embedding.")),
    ("a VAE", ("decoder.conv_in.", "decoder.conv_out.")),
    ("a VAE", ("first_stage_model.",)),
    ("a tiny autoencoder (TAESD)", ("decoder.layers.",)),
    ("a tiny autoencoder (TAESD)", ("1.conv.0.weight",)),
    ("a CLIP vision model", ("vision_model.encoder.layers.0.",)),
    ("a CLIP text model", ("text_model.encoder.layers.0.",)),
    ("a CLIP text model", ("transformer.resblocks.0.",)),
    ("an edge detector (HED)", ("block1.convs.0.",)),
    ("a saved caption", ("prompt_embeds",)),
    ("a text embedding", ("t5_out",)),
    ("a text embedding", ("emb_params",)),
)


def name_foreign(shapes: Mapping[str, Sequence[int]], has_encoder: bool) -> str | None:
    """What a file is if it is no T5 encoder, and what to choose instead; None when it has an encoder.

    has_encoder: a T5 encoder's names are among ``shapes``, so that other models beside it are welcome.
    """
    if found := _first_match(_LORAS, shapes):
        return f"This is {found}, not a T5 v1.1 encoder. Load it with PixArt Load LoRA, and here: {REMEDY}"
    if has_encoder:
        return None
    for name in _CLIP_EMBEDDINGS:
        for stored, shape in shapes.items():
            if stored.endswith(name) and (kind := _CLIP_WIDTHS.get(tuple(shape)[-1:])):
                return f"This is {kind}; PixArt reads captions with T5, not with CLIP. {REMEDY}"
    if found := _first_match(_OTHERS, shapes):
        return f"This is {found}, not a T5 v1.1 encoder. {REMEDY}"
    if not shapes:
        return f"The file holds no tensors. {REMEDY}"
    return (
        f"No T5 encoder is in this file: encoder.final_layer_norm.weight is not among its {len(shapes)} names, "
        f"which begin with {', '.join(list(shapes)[:3])}. {REMEDY}"
    )


def _first_match(kinds, names) -> str | None:
    for kind, marks in kinds:
        if all(any(mark in name for name in names) for mark in marks):
            return kind
    return None
