"""ControlNet for PixArt: copies of the first blocks see a hint, and add what they find to the base's own blocks.

Chen et al., "PixArt-δ" (arXiv:2401.05252), section 4, the "ControlNet-Transformer". Block 0 of the base runs first; the
first copy sees its output plus the projected hint, every other copy only the copy before it. So what is added to the
base can be computed before the base runs, from the base's embedders and its block 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .attention import Attention, sdpa
from .config import ALPHA, PixArtConfig
from .transformer import FIRST, Block, Embedded, PixArtTransformer, first_wishes, narrow


@dataclass(frozen=True)
class ControlNetConfig:
    """Shape of a ControlNet, and what is known of the base that it was trained on.

    copied_blocks: number of copies; copy i starts as block i of the base, and what it adds goes into block i + 1.
    family, micro_condition: "alpha" or "sigma", and whether the base knows picture sizes; None where a file does not
        tell.
    """

    copied_blocks: int
    hidden_size: int = 1152
    num_heads: int = 16
    mlp_hidden_size: int = 4608
    family: str | None = None
    micro_condition: bool | None = None

    def __post_init__(self):
        if self.copied_blocks < 1:
            raise ValueError(f"A ControlNet needs at least one copied block, not {self.copied_blocks}.")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")

    @classmethod
    def of_base(cls, base: PixArtConfig, copied_blocks: int) -> ControlNetConfig:
        """For a ControlNet that is to be trained on a base.

        Raises ValueError when it has too few blocks, or some with layers that a copy has not.
        """
        if not 1 <= copied_blocks < base.depth:
            raise ValueError(
                f"{copied_blocks} blocks cannot be copied: the base has {base.depth}, of which the first is never "
                f"copied to. Choose 1 to {base.depth - 1}."
            )
        if base.qk_norm:
            raise ValueError("The base has qk_norm, which no PixArt ControlNet has: choose another base.")
        whole = next((index for index in range(base.depth) if base.kv_ratio(index) > 1), base.depth)
        if copied_blocks > whole:
            raise ValueError(
                f"{copied_blocks} blocks cannot be copied: from block {whole} on the base compresses keys and values, "
                f"which no PixArt ControlNet does. Choose at most {whole} blocks, or the base without compression."
            )
        return cls(
            copied_blocks, base.hidden_size, base.num_heads, base.mlp_hidden_size, base.family, base.micro_condition
        )

    def block_config(self) -> PixArtConfig:
        """What the copied blocks are built from."""
        return PixArtConfig(
            hidden_size=self.hidden_size,
            depth=self.copied_blocks,
            num_heads=self.num_heads,
            mlp_hidden_size=self.mlp_hidden_size,
        )

    def describe(self) -> str:
        kind = family_name(self.family, self.micro_condition)
        return f"{kind}, width {self.hidden_size}, {self.num_heads} heads, {self.copied_blocks} copied blocks"


def family_name(family: str | None, micro_condition: bool | None) -> str:
    if family is None:
        return "PixArt of an untold family"
    size = {True: " with size conditioning", False: " without size conditioning", None: ""}
    return ("PixArt-α" if family == ALPHA else "PixArt-Σ") + size[micro_condition]


def describe_base(base: PixArtConfig) -> str:
    kind = family_name(base.family, base.micro_condition)
    return f"{kind}, width {base.hidden_size}, {base.num_heads} heads, {base.depth} blocks"


def check_base(control: ControlNetConfig, base: PixArtConfig, control_name: str, base_name: str) -> None:
    """Raises ValueError, naming both, when a ControlNet was trained on another kind of base.

    What a ControlNet's file does not tell is taken to fit.
    """
    known = [
        (control.family, base.family),
        (control.micro_condition, base.micro_condition),
        (control.hidden_size, base.hidden_size),
        (control.num_heads, base.num_heads),
        (control.mlp_hidden_size, base.mlp_hidden_size),
    ]
    if any(mine is not None and mine != theirs for mine, theirs in known) or control.copied_blocks >= base.depth:
        raise ValueError(
            f"The ControlNet does not belong to this checkpoint. {control_name} is for {control.describe()}; "
            f"{base_name} is {describe_base(base)}. Load the checkpoint that the ControlNet was trained on, or a "
            "ControlNet for this one."
        )


class CopiedBlock(nn.Module):
    """A copy of a base's block between its projections; the first has one before it too."""

    def __init__(self, config: PixArtConfig, attention: Attention, first: bool, dtype=None, device=None, operations=nn):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        size = config.hidden_size
        self.copied_block = Block(config, attention, **factory, operations=operations)
        if first:
            self.before_proj = operations.Linear(size, size, **factory)
        self.after_proj = operations.Linear(size, size, **factory)


class PixArtControlNet(nn.Module):
    """The copies under the original code's names: ``controlnet.{i}.copied_block``, ``before_proj``, ``after_proj``.

    Parameters are created uninitialised: load a state dict, or see ``pixart.training.initialise_controlnet``.
    """

    def __init__(
        self, config: ControlNetConfig, *, attention: Attention = sdpa, dtype=None, device=None, operations=nn
    ):
        super().__init__()
        self.config = config
        blocks = config.block_config()
        self.controlnet = nn.ModuleList(
            CopiedBlock(blocks, attention, index == 0, dtype, device, operations)
            for index in range(config.copied_blocks)
        )

    def forward(
        self,
        base: PixArtTransformer,
        x: torch.Tensor,
        hint: torch.Tensor,
        timesteps: torch.Tensor,
        caption: torch.Tensor,
        caption_mask: torch.Tensor | None = None,
        size: torch.Tensor | None = None,
        aspect_ratio: torch.Tensor | None = None,
        transformer_options: dict | None = None,
    ) -> list[torch.Tensor]:
        """What is to be added after each of the base's first blocks: ``copied_blocks`` tensors (B, N, D).

        Entry i belongs after block i: ``base(x, …, control={"output": residuals})``. The other arguments are those of
        ``PixArtTransformer.forward``. Where ``transformer_options[PREPARED]`` is of this caption, what
        ``transformer_options[COPIES]``, a function of it, gives is taken for the copies' keys and values; and block 0
        of the base is run once for all that are given the same ``transformer_options[FIRST]``.
        hint: the control picture as the VAE's latents, times the latent scale, (B or 1, C, H, W).

        Raises ValueError when the hint's size is not that of ``x``.
        """
        if hint.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"The hint is {hint.shape[-1]} × {hint.shape[-2]} latent pixels and the picture "
                f"{x.shape[-1]} × {x.shape[-2]}. Resize the hint's picture to the picture's size."
            )
        options = {**(transformer_options or {}), "block_index": 0, "total_blocks": len(base.blocks)}
        given = base.embed(x, timesteps, caption, caption_mask, size, aspect_ratio, options)
        rest = (given.caption, given.t0, given.bias, options)
        c = first_output(base, given, options) + self.controlnet[0].before_proj(base.patches(hint, options))
        prepared = options[COPIES](given.prepared) if given.prepared is not None and COPIES in options else None
        residuals = []
        for index, part in enumerate(self.controlnet):
            c = part.copied_block(c, *rest, None if prepared is None else prepared.for_block(index))
            residuals.append(part.after_proj(narrow(c, given.t0.dtype)).to(given.tokens.dtype))
        return residuals


COPIES = "pixart_copies"
"""Where ``transformer_options`` holds a function PreparedCaption → PreparedCaption for the copied blocks."""


def first_output(base: PixArtTransformer, given: Embedded, options: dict) -> torch.Tensor:
    """The base's block 0, as another ControlNet has just run it or run now and kept for the base."""
    first, prepared = options.get(FIRST), given.prepared
    if prepared is None:
        return base.blocks[0](given.tokens, given.caption, given.t0, given.bias, options)
    wishes = first_wishes(options)
    output = None if first is None else first.find(given.tokens, given.t0, prepared, wishes)
    if output is None:
        output = base.blocks[0](given.tokens, given.caption, given.t0, given.bias, options, prepared.for_block(0))
        if first is not None:
            first.keep(given.tokens, given.t0, prepared, wishes, output)
    return output
