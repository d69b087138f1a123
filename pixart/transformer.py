"""The PixArt diffusion transformer: α and Σ, every size and depth.

Chen et al., "PixArt-α" (arXiv:2310.00426) and "PixArt-Σ" (arXiv:2403.04692). Parameters carry the names of
the original code. Layers come from ``operations`` and attention from ``attention``, so the same class runs
under ComfyUI's casting and offloading and under plain PyTorch. Parameters are created uninitialised:
load a state dict, or see ``pixart.training.initialise``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from .attention import (
    GATE,
    WORKSPACE,
    Attention,
    CrossAttention,
    SelfAttention,
    attention_block_name,
    caption_bias,
    is_patched,
    sdpa,
)
from .compression import COMPRESSION, GRID
from .config import PixArtConfig
from .embeddings import CaptionEmbedder, Mlp, PatchEmbed, ScalarEmbedder, position_grid
from .prepared import PREPARED, PreparedCaption, different_rows, longest, spans
from .workspace import Workspace

LAYER_NORM_EPS = 1e-6


def raw(parameter: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A parameter that belongs to no layer of ``operations``, in the dtype and on the device of ``like``."""
    return parameter.to(dtype=like.dtype, device=like.device)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """adaLN: ``x * (1 + scale) + shift`` in one fused step."""
    return torch.addcmul(shift, x, scale + 1)


def modulated_norm(norm: nn.LayerNorm, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``modulate(norm(x), …)``; where the whole batch shares shift and scale (1, 1, D), as the norm's own affine."""
    if shift.shape[0] > 1:
        return modulate(norm(x), shift, scale)
    weight, bias = (scale + 1).flatten().to(x.dtype), shift.flatten().to(x.dtype)
    return nn.functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def accumulate(x: torch.Tensor, addition: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """``x + gate * addition``; written into x, which must be the caller's own, unless a gradient needs what it was."""
    if x.requires_grad or addition.requires_grad:
        return x + addition if gate is None else torch.addcmul(x, gate, addition)
    return x.add_(addition) if gate is None else x.addcmul_(gate, addition)


def narrow(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` in ``dtype``; what lies beyond its largest number is set to that number, not to infinity."""
    if x.dtype == dtype:
        return x
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


class Block(nn.Module):
    """Self-attention and MLP under adaLN-single, with cross-attention to the caption between them."""

    def __init__(
        self, config: PixArtConfig, attention: Attention, kv_ratio: int = 1, dtype=None, device=None, operations=nn
    ):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        size = config.hidden_size
        norm = {"elementwise_affine": False, "eps": LAYER_NORM_EPS, **factory}
        self.norm1 = operations.LayerNorm(size, **norm)
        self.attn = SelfAttention(
            size, config.num_heads, attention, kv_ratio, config.qk_norm, **factory, operations=operations
        )
        self.cross_attn = CrossAttention(size, config.num_heads, attention, **factory, operations=operations)
        self.norm2 = operations.LayerNorm(size, **norm)
        self.mlp = Mlp(size, config.mlp_hidden_size, size, **factory, operations=operations)
        self.scale_shift_table = nn.Parameter(torch.empty(6, size, **factory))

    def forward(self, x, caption, t0, bias, transformer_options: dict, keys_values=None) -> torch.Tensor:
        """x (B, N, D), caption (B, L, D), t0 (B or 1, 6, D), bias from ``caption_bias`` → (B, N, D).

        keys_values: of cross-attention, (B, L, 2D), where the caption's are known already.
        Layers compute in the dtype of t0; x, the sum of all that blocks add, may have a wider one.
        """
        modulation = raw(self.scale_shift_table, t0) + t0
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)  # (B, 1, D)
        normed = modulated_norm(self.norm1, x, shift_msa, scale_msa)
        attended = self.attn(narrow(normed, t0.dtype), transformer_options)
        del normed  # or it would wait beside what comes
        x = torch.addcmul(x, gate_msa, attended)
        x = accumulate(x, self.cross_attn(narrow(x, t0.dtype), caption, bias, transformer_options, keys_values))
        normed = modulated_norm(self.norm2, x, shift_mlp, scale_mlp)
        return accumulate(x, self.mlp(narrow(normed, t0.dtype), transformer_options.get(WORKSPACE)), gate_mlp)


class FinalLayer(nn.Module):
    """Modulated layer norm and the projection of each token to its patch of output pixels."""

    def __init__(self, config: PixArtConfig, dtype=None, device=None, operations=nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.norm_final = operations.LayerNorm(
            config.hidden_size, elementwise_affine=False, eps=LAYER_NORM_EPS, **factory
        )
        self.linear = operations.Linear(config.hidden_size, config.patch_size**2 * config.out_channels, **factory)
        self.scale_shift_table = nn.Parameter(torch.empty(2, config.hidden_size, **factory))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        shift, scale = (raw(self.scale_shift_table, t) + t[:, None]).chunk(2, dim=1)  # (B or 1, 1, D)
        return self.linear(narrow(modulated_norm(self.norm_final, x, shift, scale), t.dtype))


class Embedded(NamedTuple):
    """What the first block is given: tokens (B, N, D), t (B or 1, D) for the final layer and t0 (B or 1, 6, D) for the
    blocks, caption (B, L, D), its bias (B, 1, 1, L) or None, and what else is known of the caption, or None."""

    tokens: torch.Tensor
    t: torch.Tensor
    t0: torch.Tensor
    caption: torch.Tensor
    bias: torch.Tensor | None
    prepared: PreparedCaption | None


class PixArtTransformer(nn.Module):
    """Predicts the noise in a latent picture from its timestep and its caption."""

    def __init__(self, config: PixArtConfig, *, attention: Attention = sdpa, dtype=None, device=None, operations=nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device, "operations": operations}
        size = config.hidden_size
        self.config = config
        self.dtype = dtype
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, size, **factory)
        self.t_embedder = ScalarEmbedder(size, **factory)
        if config.micro_condition:
            self.csize_embedder = ScalarEmbedder(size // 3, **factory)
            self.ar_embedder = ScalarEmbedder(size // 3, **factory)
        self.t_block = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, dtype=dtype, device=device))
        self.y_embedder = CaptionEmbedder(
            config.caption_channels, size, config.max_caption_tokens, config.null_caption, **factory
        )
        self.blocks = nn.ModuleList(
            Block(config, attention, config.kv_ratio(index), **factory) for index in range(config.depth)
        )
        self.final_layer = FinalLayer(config, **factory)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        caption: torch.Tensor,
        caption_mask: torch.Tensor | None = None,
        size: torch.Tensor | None = None,
        aspect_ratio: torch.Tensor | None = None,
        control: dict[str, Sequence[torch.Tensor | None]] | None = None,
        transformer_options: dict | None = None,
        learned_variance: bool = False,
    ) -> torch.Tensor:
        """Noise prediction (B, C, H, W), in the dtype of ``x``.

        x: noisy latents (B, C, H, W); sides that are no multiple of the patch are padded, then cropped.
        timesteps: (B,), 0 to 999, integer or not. One timestep expanded over the batch (its stride is 0) is embedded
            once, and modulates all rows in the layer norms themselves.
        caption: T5 features (B, L, caption_channels); caption_mask: (B, L), zero where padded. What comes of them is
            taken from ``transformer_options[PREPARED]`` where that was made from this very tensor.
        size, aspect_ratio: (B, 2) height and width in pixels and (B, 1) height / width, for checkpoints with
            size conditioning; where left out, the latent's own size times 8.
        control: residuals {"output": [after block 0, after block 1, …]}, each (B, N, D) or None.
        transformer_options: ComfyUI's patches; see ``Block`` and ``patched_attention``.
        learned_variance: return all output channels, (B, 2C, H, W) for released models.

        Raises ValueError when the caption's width is not the checkpoint's.
        """
        options = dict(transformer_options or {})
        height, width = x.shape[-2:]
        given = self.embed(x, timesteps, caption, caption_mask, size, aspect_ratio, options)
        tokens = self.run_blocks(given.tokens, given.caption, given.t0, given.bias, control, options, given.prepared)
        tokens = self.final_layer(tokens, given.t)  # (B, N, p * p * 2C)
        out = self.unpatchify(tokens, *options[GRID])[..., :height, :width]
        return out if learned_variance else out[:, : self.config.in_channels]

    def embed(self, x, timesteps, caption, caption_mask, size, aspect_ratio, options: dict) -> Embedded:
        """What the blocks are given, from what ``forward`` is given; notes the grid of tokens in ``options``."""
        config = self.config
        if caption.shape[-1] != config.caption_channels:
            raise ValueError(
                f"The caption has {caption.shape[-1]} channels, but this checkpoint was trained on captions of "
                f"{config.caption_channels}: the text encoder does not belong to it. Load the T5 that the "
                "checkpoint was made with."
            )
        height, width = x.shape[-2:]
        tokens = self.patches(x, options)  # (B, N, D)
        shared = timesteps.shape[0] == 1 or timesteps.stride(0) == 0
        t = self.t_embedder(timesteps[:1] if shared else timesteps, tokens.dtype)  # (B or 1, D)
        if config.micro_condition:
            t = t + self.embed_size(size, aspect_ratio, height, width, tokens)
        t0 = self.t_block(t).unflatten(1, (6, -1))  # (B or 1, 6, D)
        prepared = options.get(PREPARED)
        if prepared is not None and prepared.source is caption:
            caption, bias = prepared.embedding, prepared.bias
        else:
            prepared = None
            caption = self.y_embedder(caption.to(tokens.dtype))  # (B, L, D)
            bias = caption_bias(caption_mask, tokens.dtype)

        if tokens.dtype == torch.float16:
            # A sum over all blocks that passes 65504 would be infinite in fp16, and every picture after it black.
            # Kept in fp32 it stays exact. Clamping it, as is common, would change the picture unseen; here only
            # cross-attention, whose input is no norm's output, sees a token's outlying channels cut to 65504.
            tokens = tokens.float()
        return Embedded(tokens, t, t0, caption, bias, prepared)

    def patches(self, x: torch.Tensor, options: dict) -> torch.Tensor:
        """Latents (B, C, H, W) as tokens (B, N, D) with their position; notes the grid of tokens in ``options``."""
        x = self.pad_to_patch(x)
        options[GRID] = tuple(side // self.config.patch_size for side in x.shape[-2:])
        # In the order of its shape: a convolution's output would pass its own on to every sum that tokens go into.
        tokens = self.x_embedder(x).contiguous()
        return tokens + self.position_grid(*options[GRID], tokens, options.get(GRIDS))

    def run_blocks(self, x, caption, t0, bias, control, options: dict, prepared=None) -> torch.Tensor:
        """The stack of blocks, with ComfyUI's ``patches_replace["dit"]`` and ControlNet residuals after each."""
        replacements = options.get("patches_replace", {}).get("dit", {})
        residuals = (control or {}).get("output", ())
        depth = len(self.blocks)
        options["total_blocks"] = depth
        options["block_type"] = "double"

        def run(index: int, x: torch.Tensor) -> torch.Tensor:
            options["block_index"] = index
            options["block"] = attention_block_name(index, depth)
            replacement = next((replacements[key, index] for key in BLOCK_KEYS if (key, index) in replacements), None)
            block, known = self.blocks[index], None
            if index == 0 and replacement is None and FIRST in options:
                known = known_first(x, t0, prepared, options)
            keys_values = None if prepared is None else prepared.for_block(index)
            arguments = (x, caption, t0, bias, options, keys_values)
            if known is not None:
                x = known
            else:
                x = block(*arguments) if replacement is None else replace_block(block, replacement, *arguments)
            if index < len(residuals) and residuals[index] is not None:
                x = x + residuals[index]
            return x

        if CACHE in options:
            return options[CACHE](x, depth, run, residuals, options)
        for index in range(depth):
            x = run(index, x)
        return x

    def prepare_caption(self, caption: torch.Tensor, mask: torch.Tensor | None = None) -> PreparedCaption:
        """What is the same at every step for captions (B, L, caption_channels) and their mask (B, L).

        Equal captions of a batch are computed once, and tokens that are padding in all of them not at all.
        For ``transformer_options[PREPARED]``; holds as long as the weights do. Waits for the device.
        """
        used = longest(mask, caption.shape[1])
        mask = None if mask is None else mask[:, :used]
        firsts, likes = different_rows(caption[:, :used])
        embedding = self.y_embedder(caption[firsts, :used])  # (U, L', D)
        keys_values = tuple(block.cross_attn.kv_linear(embedding) for block in self.blocks)  # (U, L', 2D)
        rows = None if len(firsts) == len(likes) else torch.tensor(likes, device=caption.device)
        if mask is None or bool(mask.all()):
            return PreparedCaption(caption, embedding[likes], embedding, keys_values, rows, None)
        bias = caption_bias(mask, embedding.dtype)
        return PreparedCaption(caption, embedding[likes], embedding, keys_values, rows, bias, spans(mask))

    def position_grid(self, rows: int, columns: int, like: torch.Tensor, known: dict | None = None) -> torch.Tensor:
        """The position embedding (N, D) of a grid of tokens, from ``known`` where it was computed before."""
        size = (rows, columns)
        grid = None if known is None else known.get(size)
        if grid is None:
            config = self.config
            grid = position_grid(
                config.hidden_size, rows, columns, config.base_size, config.pe_interpolation, device=grid_device(like)
            )
            grid = grid.to(device=like.device, dtype=like.dtype)
            if known is not None:
                known[size] = grid
        return grid.to(device=like.device, dtype=like.dtype)

    def embed_size(self, size, aspect_ratio, height: int, width: int, like: torch.Tensor) -> torch.Tensor:
        """α's micro-conditioning (B, D): embedded height, width and aspect ratio side by side."""
        batch = like.shape[0]
        if size is None:
            size = torch.tensor([[height * 8.0, width * 8.0]], device=like.device)
        if aspect_ratio is None:
            aspect_ratio = size[:, :1].float() / size[:, 1:].float()
        size = repeat_to_batch(size, batch)
        aspect_ratio = repeat_to_batch(aspect_ratio, batch)
        return torch.cat([self.csize_embedder(size, like.dtype), self.ar_embedder(aspect_ratio, like.dtype)], dim=1)

    def pad_to_patch(self, x: torch.Tensor) -> torch.Tensor:
        """Extend the bottom and right side to a multiple of the patch by repeating the last row and column."""
        patch = self.config.patch_size
        bottom, right = (-side % patch for side in x.shape[-2:])
        if not bottom and not right:
            return x
        return nn.functional.pad(x, (0, right, 0, bottom), mode="replicate")

    def unpatchify(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """(B, rows * columns, p * p * C) → (B, C, rows * p, columns * p); within a token the channel is fastest."""
        patch = self.config.patch_size
        x = x.reshape(x.shape[0], rows, columns, patch, patch, -1)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


GRIDS = "pixart_grids"
"""Where ``transformer_options`` holds a dict for the position grids of a sampling run, by rows and columns."""

FIRST = "pixart_first_block"
"""Where ``transformer_options`` holds a ``FirstBlock``, when a ControlNet has run block 0 at this step."""

CACHE = "pixart_cache"
"""Where ``transformer_options`` holds what runs the blocks in place of the plain loop: (x, depth, run one block,
residuals, options) → x."""

BLOCK_KEYS = ("double_block", "single_block", "block")
"""The names under which nodes and packs replace a block of a DiT; PixArt has one kind, which answers to all."""


def run_options(prepared: PreparedCaption) -> dict:
    """``transformer_options`` for a run of its own over one batch of captions: what is to be kept from step to step."""
    return {PREPARED: prepared, GRIDS: {}, WORKSPACE: Workspace()}


def first_wishes(options: dict) -> tuple:
    """What options say of block 0 that both the base and a ControlNet heed."""
    return options.get(COMPRESSION), options.get("optimized_attention_override")


def known_first(x: torch.Tensor, t0: torch.Tensor, prepared, options: dict) -> torch.Tensor | None:
    """Block 0's output where a ControlNet has computed it from the same; patches are to see the base's own run."""
    first = options[FIRST]
    is_watched = GATE in options or any(is_patched(name, options, output=True) for name in ("attn1", "attn2"))
    output = None if is_watched else first.find(x, t0, prepared, first_wishes(options))
    first.forget()
    return output


def replace_block(block, replacement, x, caption, t0, bias, options: dict, keys_values=None) -> torch.Tensor:
    """Hand a block to a ComfyUI ``patches_replace["dit"]`` function, with the arguments the host's models use."""

    def original(args: dict) -> dict:
        known = keys_values if args["txt"] is caption else None  # of another caption they are not known
        img = block(args["img"], args["txt"], args["vec"], args["attn_mask"], args["transformer_options"], known)
        return {"img": img, "txt": args["txt"]}

    t0 = t0.expand(x.shape[0], -1, -1)
    args = {"img": x, "txt": caption, "vec": t0, "pe": None, "attn_mask": bias, "transformer_options": options}
    return replacement(args, {"original_block": original})["img"]


def repeat_to_batch(values: torch.Tensor, batch: int) -> torch.Tensor:
    """Repeat the rows of (b, n) values over a batch, as the reference does with conditions given once."""
    if values.shape[0] == batch:
        return values
    return values.repeat(-(-batch // values.shape[0]), 1)[:batch]


def grid_device(x: torch.Tensor) -> torch.device:
    """Where to compute the float64 position grid: Apple's and some other devices have no float64."""
    return x.device if x.device.type in ("cpu", "cuda", "meta") else torch.device("cpu")
