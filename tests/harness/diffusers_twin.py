"""Our weights in diffusers' own classes: what samplers and forwards are compared with."""

from __future__ import annotations

import torch
from diffusers import PixArtTransformer2DModel

from pixart.checkpoint import to_diffusers
from pixart.config import PixArtConfig
from pixart.transformer import PixArtTransformer


def twin(model: PixArtTransformer) -> PixArtTransformer2DModel:
    """A transformer without size conditioning in diffusers' class."""
    return twin_of(model.config, model.state_dict())


def twin_of(config: PixArtConfig, state: dict[str, torch.Tensor]) -> PixArtTransformer2DModel:
    """The same from weights under the original names; the class has no place for the null caption."""
    made = PixArtTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.depth,
        cross_attention_dim=config.hidden_size,
        caption_channels=config.caption_channels,
        sample_size=config.base_size * config.patch_size,
        interpolation_scale=config.pe_interpolation,
        use_additional_conditions=False,
    )
    state = to_diffusers(state)
    state.pop("caption_projection.y_embedding", None)
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


def pipeline_latents(kind, peer, scheduler, captions, steps: int, cfg: float, seed: int, **more) -> torch.Tensor:
    """Latents of one of diffusers' pipelines at 128 × 128.

    kind: the pipeline's class. captions: positive and negative, each (1, L, C). more: arguments of its call.
    """
    pipe = kind(tokenizer=None, text_encoder=None, vae=None, transformer=peer, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.ones(captions[0].shape[:2], dtype=torch.long)
    return pipe(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=captions[0],
        negative_prompt_embeds=captions[1],
        prompt_attention_mask=mask,
        negative_prompt_attention_mask=mask,
        num_inference_steps=steps,
        guidance_scale=cfg,
        height=128,
        width=128,
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **more,
    ).images
