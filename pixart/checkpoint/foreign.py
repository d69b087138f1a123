"""Other models' files, told by the names of their weights, so that a wrong choice is answered with what it is."""

from __future__ import annotations

from collections.abc import Iterable

_DIFFUSION_LOADER = "Open it with the host's own checkpoint or diffusion model loader."
_LORA = "Load a PixArt checkpoint first, and give this file to PixArt Load LoRA."
_PIXART_CONTROL = "Give it to PixArt Load ControlNet."
_CHECKPOINT = "PixArt checkpoint"
_NO_USE = "Choose a PixArt-α or PixArt-Σ checkpoint."

# (what it is, what to do, texts which all occur among the names). Narrow signatures stand before broad ones.
_Kind = tuple[str, str, tuple[str, ...]]

# Models whose names overlap PixArt's, or that contain a PixArt transformer.
_BEFORE_PIXART: tuple[_Kind, ...] = (
    ("a LoRA", _LORA, (".lora_A.",)),
    ("a LoRA", _LORA, (".lora_down.",)),
    ("a LoRA", _LORA, (".lora.down.",)),
    ("a LyCORIS LoRA", _LORA, (".lokr_w",)),
    ("a LyCORIS LoRA", _LORA, (".hada_w",)),
    ("an original PixArt ControlNet with its base model", _PIXART_CONTROL, ("controlnet.0.copied_block.",)),
    ("a PixArt ControlNet", _PIXART_CONTROL, ("controlnet_blocks.0.transformer_block.",)),
    ("a Stable Diffusion ControlNet", "It does not fit PixArt. " + _NO_USE, ("input_hint_block.",)),
    ("a Stable Diffusion ControlNet", "It does not fit PixArt. " + _NO_USE, ("controlnet_cond_embedding.",)),
    ("a Sana transformer", _DIFFUSION_LOADER, ("attention_y_norm.weight",)),
    ("a Sana transformer", _DIFFUSION_LOADER, (".ff.conv_depth.",)),
    ("a Sana transformer", _DIFFUSION_LOADER, (".mlp.depth_conv.",)),
    ("an LTX-Video transformer", _DIFFUSION_LOADER, ("patchify_proj.weight",)),
    ("an LTX-Video transformer", _DIFFUSION_LOADER, ("transformer_blocks.0.attn1.q_norm.", "proj_in.weight")),
    ("an SDXL checkpoint", _DIFFUSION_LOADER, ("input_blocks.", "label_emb.0.0.")),
    ("an SDXL UNet", _DIFFUSION_LOADER, ("down_blocks.", "add_embedding.linear_1.")),
    ("a Stable Diffusion 1.x or 2.x checkpoint", _DIFFUSION_LOADER, ("input_blocks.", "output_blocks.", "time_embed.")),
    ("a Stable Diffusion 1.x or 2.x UNet", _DIFFUSION_LOADER, ("down_blocks.", "up_blocks.", "time_embedding.")),
    ("a HunyuanVideo transformer", _DIFFUSION_LOADER, ("double_blocks.0.img_attn_qkv.",)),
    ("a Flux transformer", _DIFFUSION_LOADER, ("double_blocks.0.img_attn.", "single_blocks.")),
    ("a Flux transformer", _DIFFUSION_LOADER, ("single_transformer_blocks.0.", "x_embedder.weight")),
    ("a Stable Diffusion 3 transformer", _DIFFUSION_LOADER, ("joint_blocks.0.",)),
    ("a Stable Diffusion 3 transformer", _DIFFUSION_LOADER, ("transformer_blocks.0.attn.add_k_proj.",)),
    ("a Hunyuan-DiT transformer", _DIFFUSION_LOADER, ("mlp_t5.0.",)),
    ("a Hunyuan-DiT transformer", _DIFFUSION_LOADER, ("text_embedding_padding",)),
    ("a class-conditional DiT", _NO_USE, ("adaLN_modulation.1.", "y_embedder.embedding_table.")),
    ("a Wan video transformer", _DIFFUSION_LOADER, ("blocks.0.self_attn.", "patch_embedding.")),
)

# Parts that may also lie beside a PixArt transformer in one file.
_AFTER_PIXART: tuple[_Kind, ...] = (
    ("a T5 text encoder", "Open it with PixArt Load T5.", (".SelfAttention.q.", "DenseReluDense.")),
    ("a T5 text encoder", "Open it with PixArt Load T5.", ("enc.blk.0.attn_q.",)),
    ("a CLIP model", "PixArt reads captions with T5, not with CLIP. " + _NO_USE, ("text_model.encoder.layers.0.",)),
    ("a CLIP model", "PixArt reads captions with T5, not with CLIP. " + _NO_USE, ("transformer.resblocks.0.",)),
    ("a CLIP vision model", _NO_USE, ("vision_model.encoder.layers.0.",)),
    ("a VAE", "Open it with the host's VAE loader.", ("decoder.up.", "encoder.down.")),
    ("a VAE", "Open it with the host's VAE loader.", ("decoder.up_blocks.", "encoder.down_blocks.")),
    ("a tiny autoencoder (TAESD)", "Open it with the host's VAE loader.", ("1.conv.0.weight",)),
    ("a tiny autoencoder (TAESD)", "Open it with the host's VAE loader.", ("decoder.layers.",)),
    ("the HED edge detector of PixArt's ControlNet", "It prepares control pictures. " + _NO_USE, ("block1.convs.0.",)),
    ("a saved caption", "Open it with PixArt Load Caption.", ("uncond_prompt_embeds",)),
    ("a text embedding", "Put it into the embeddings folder. " + _NO_USE, ("t5_out",)),
    ("a text embedding", "Put it into the embeddings folder. " + _NO_USE, ("emb_params",)),
    ("a language model", _NO_USE, ("layers.0.self_attn.q_proj.", "embed_tokens.")),
    ("an image upscaler", "Open it with the host's upscale model loader.", (".rdb1.conv1.",)),
    ("an image upscaler", "Open it with the host's upscale model loader.", (".RDB1.conv1.",)),
)


def _choose(wanted: str) -> str:
    return _NO_USE if wanted == _CHECKPOINT else f"Choose a {wanted}."


def name_foreign(names: Iterable[str], has_transformer: bool, wanted: str = _CHECKPOINT) -> str | None:
    """One sentence on what the file is and what to do with it; None when the names tell of no other model.

    has_transformer: PixArt's own names are present too, so a VAE or text encoder beside them is welcome.
    """
    names = list(names)
    kinds = _BEFORE_PIXART if has_transformer else _BEFORE_PIXART + _AFTER_PIXART
    for kind, advice, marks in kinds:
        if all(any(mark in name for name in names) for mark in marks):
            return f"This is {kind}, not a {wanted}. {advice.replace(_NO_USE, _choose(wanted))}"
    return None
