"""What a PixArt transformer is made of, as data."""

from __future__ import annotations

from dataclasses import dataclass

ALPHA = "alpha"
SIGMA = "sigma"

SHAPE = ("hidden_size", "depth", "num_heads", "patch_size", "in_channels", "out_channels", "mlp_hidden_size",
         "caption_channels", "micro_condition")  # fmt: skip
"""What a model and its fine-tune agree in. The rest, a file in another dialect may not tell."""


@dataclass(frozen=True)
class PixArtConfig:
    """Shape and conventions of one PixArt-α or PixArt-Σ transformer.

    The defaults are PixArt-Σ 1024-MS. Lengths are in tokens (one token is a
    ``patch_size`` × ``patch_size`` square of latent pixels) unless said otherwise.

    family: ``"alpha"`` or ``"sigma"``; decides the latent scale and the caption length.
    base_size: side of the square token grid the checkpoint was made for.
    pe_interpolation: divisor of the position grid, so that a full axis always covers
        ``[0, base_size / pe_interpolation)`` whatever the picture's size.
    micro_condition: α's size and aspect-ratio embedders are present.
    null_caption: the learned caption for classifier-free guidance is present.
    qk_norm: queries and keys of self-attention are normalised.
    kv_ratios: for each block, the side of the windows whose keys and values its convolution makes one of; 1 where a
        block has no such convolution, and none at all where no block has.
    """

    family: str = SIGMA
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8
    mlp_hidden_size: int = 4608
    caption_channels: int = 4096
    max_caption_tokens: int = 300
    base_size: int = 64
    pe_interpolation: float = 2.0
    micro_condition: bool = False
    null_caption: bool = True
    qk_norm: bool = False
    kv_ratios: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "kv_ratios", tuple(self.kv_ratios))  # a list where it is read from JSON
        if any(ratio < 1 for ratio in self.kv_ratios):
            raise ValueError(f"kv_ratios are {list(self.kv_ratios)}; each must be at least 1.")
        if self.family not in (ALPHA, SIGMA):
            raise ValueError(f"family must be 'alpha' or 'sigma', not {self.family!r}.")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 4 for the 2-D position grid.")
        if self.micro_condition and self.hidden_size % 3:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 3 for size conditioning.")

    def kv_ratio(self, block: int) -> int:
        """Side of the windows that a block's own convolution makes one key and value of; 1 for none."""
        return self.kv_ratios[block] if block < len(self.kv_ratios) else 1

    def other_shape(self, tuned: PixArtConfig) -> str:
        """Where a fine-tune's shape is not this one's, such as "depth 20 instead of 28"; "" where it fits."""
        pairs = ((name, getattr(tuned, name), getattr(self, name)) for name in SHAPE)
        return ", ".join(f"{name} {theirs} instead of {ours}" for name, theirs, ours in pairs if theirs != ours)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def latent_scale(self) -> float:
        """Factor between a VAE's latents and this model's: SD's for α, SDXL's for Σ."""
        return 0.18215 if self.family == ALPHA else 0.13025

    @property
    def native_pixels(self) -> int:
        """Side in pixels of the square picture the position grid is made for (8 pixels per latent pixel)."""
        return self.base_size * self.patch_size * 8


@dataclass(frozen=True)
class Variant:
    """A released checkpoint: what its file says in weights, and what it does not."""

    name: str
    config: PixArtConfig


_ALPHA = {"family": ALPHA, "max_caption_tokens": 120}

RELEASED: tuple[Variant, ...] = (
    Variant("PixArt-α 256", PixArtConfig(**_ALPHA, base_size=16, pe_interpolation=1.0)),
    Variant("PixArt-α 512", PixArtConfig(**_ALPHA, base_size=32, pe_interpolation=1.0)),
    Variant("PixArt-α 1024-MS", PixArtConfig(**_ALPHA, base_size=64, pe_interpolation=2.0, micro_condition=True)),
    Variant("PixArt-Σ 256", PixArtConfig(base_size=16, pe_interpolation=0.5)),
    Variant("PixArt-Σ 512-MS", PixArtConfig(base_size=32, pe_interpolation=1.0)),
    Variant("PixArt-Σ 1024-MS", PixArtConfig(base_size=64, pe_interpolation=2.0)),
    Variant("PixArt-Σ 2K-MS", PixArtConfig(base_size=128, pe_interpolation=4.0)),
    Variant("PixArt-Σ 900M", PixArtConfig(depth=42, base_size=64, pe_interpolation=2.0)),
)
