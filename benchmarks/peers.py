"""The same weights in this project's transformer and in its peers', for forward.py and sampling.py."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT, ROOT / "tests" / "harness"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from pixart.config import PixArtConfig  # noqa: E402
from pixart.training.initialise import initialise  # noqa: E402
from pixart.transformer import PixArtTransformer  # noqa: E402

Forward = Callable[[], torch.Tensor]


def size_config(pixels: int, depth: int) -> PixArtConfig:
    """Of the released width, with the position grid of a model of this size, on which all peers agree."""
    return PixArtConfig(depth=depth, base_size=pixels // 16, pe_interpolation=pixels / 512)


def transformer(config: PixArtConfig, dtype: torch.dtype) -> PixArtTransformer:
    """Random weights, with those filled in that training starts from zero, so that outputs can be compared."""
    generator = torch.Generator().manual_seed(0)
    model = initialise(PixArtTransformer(config), generator)
    with torch.no_grad():
        for layer in [model.final_layer.linear, *(block.cross_attn.proj for block in model.blocks)]:
            layer.weight.normal_(std=0.02, generator=generator)
    return model.to(dtype).eval().requires_grad_(False)


def diffusers_model(config: PixArtConfig, state: dict[str, torch.Tensor], dtype: torch.dtype):
    from diffusers_twin import twin_of

    peer = twin_of(config, state)
    peer = peer if peer.dtype == dtype else peer.to(dtype)  # it warns of being cast, even to what it is
    return peer


def diffusers_forward(peer, x, t, caption, mask) -> torch.Tensor:
    none = {"resolution": None, "aspect_ratio": None}
    out = peer(x, encoder_hidden_states=caption, timestep=t, encoder_attention_mask=mask, added_cond_kwargs=none)
    return out.sample.chunk(2, dim=1)[0]


def find_comfyui() -> Path | None:
    """A ComfyUI tree: ``COMFYUI_PATH``, or the tree that this project lies in as a custom node, or beside it."""
    places = [ROOT.parent.parent, ROOT.parent / "ComfyUI"]
    if os.environ.get("COMFYUI_PATH"):
        places.insert(0, Path(os.environ["COMFYUI_PATH"]))
    return next((place for place in places if (place / "comfy" / "ldm" / "pixart").is_dir()), None)


def enter_comfyui(tree: Path, device: torch.device, pytorch_attention: bool) -> None:
    if str(tree) not in sys.path:
        sys.path.insert(0, str(tree))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args

    comfy.cli_args.args.cpu = device.type == "cpu"
    comfy.cli_args.args.use_pytorch_cross_attention = pytorch_attention


def comfyui_model(model: PixArtTransformer, x: torch.Tensor):
    """ComfyUI's own class; needs ``enter_comfyui``. It knows no caption mask."""
    import comfy.ops
    from comfy.ldm.pixart.pixartms import PixArtMS

    config = model.config
    peer = PixArtMS(
        input_size=config.base_size * config.patch_size,
        hidden_size=config.hidden_size,
        depth=config.depth,
        num_heads=config.num_heads,
        caption_channels=config.caption_channels,
        pe_interpolation=config.pe_interpolation,
        model_max_length=config.max_caption_tokens,
        micro_condition=False,
        dtype=x.dtype,
        device=x.device,
        operations=comfy.ops.disable_weight_init,
    )
    peer.load_state_dict(model.state_dict())
    return peer.to(x.dtype).eval().requires_grad_(False)


def extramodels_model(tree: Path, model: PixArtTransformer, x: torch.Tensor):
    """ComfyUI_ExtraModels' class for Σ; needs ``enter_comfyui``, and timm, which that pack requires.

    Its attention is PyTorch's (or xformers'), and captions of a batch meet in one block-diagonal mask.
    """
    if not (tree / "PixArt" / "models" / "PixArtMS.py").is_file():
        raise ValueError(f"There is no PixArt/models/PixArtMS.py in {tree}: name a checkout of ComfyUI_ExtraModels.")
    sys.path.insert(0, str(tree))
    try:
        module = importlib.import_module("PixArt.models.PixArtMS")
    finally:
        sys.path.remove(str(tree))
    config = model.config
    peer = module.PixArtMS(
        input_size=config.base_size * config.patch_size,
        hidden_size=config.hidden_size,
        depth=config.depth,
        num_heads=config.num_heads,
        caption_channels=config.caption_channels,
        pe_interpolation=config.pe_interpolation,
        model_max_length=config.max_caption_tokens,
        micro_condition=False,
    )
    missing, left = peer.load_state_dict(model.state_dict(), strict=False)
    if set(missing) - {"pos_embed"} or left:
        raise ValueError(f"ComfyUI_ExtraModels does not take our weights: it lacks {missing} and knows no {left}.")
    peer.dtype = x.dtype
    return peer.to(device=x.device, dtype=x.dtype).eval().requires_grad_(False)
