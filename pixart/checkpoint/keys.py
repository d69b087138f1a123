"""Names of a PixArt transformer's weights: the original code's, diffusers', and the prefixes tools put before them.

diffusers keeps the projections for queries, keys and values apart; the original stacks them along the first
dimension. Everything else differs in name only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

ORIGINAL = "original"
DIFFUSERS = "diffusers"

_TOP_MODULES = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
}
_TOP_TENSORS = {
    "y_embedder.y_embedding": "caption_projection.y_embedding",
    "final_layer.scale_shift_table": "scale_shift_table",
}
_BLOCK_MODULES = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}

# Original name → its names in diffusers, in the order in which the original stacks them. Blocks without "blocks.i.".
_TOP = {a: (b,) for a, b in _TOP_TENSORS.items()} | {
    f"{a}.{kind}": (f"{b}.{kind}",) for a, b in _TOP_MODULES.items() for kind in ("weight", "bias")
}
_BLOCK = {"scale_shift_table": ("scale_shift_table",)} | {
    f"{a}.{kind}": tuple(f"{b}.{kind}" for b in names)
    for a, names in _BLOCK_MODULES.items()
    for kind in ("weight", "bias")
}
_TOP_BACK = {b: a for a, (b,) in _TOP.items()}
_BLOCK_BACK = {b: a for a, names in _BLOCK.items() for b in names}

# A name found in every complete file comes first, so that its prefix is taken as the transformer's.
_ANCHORS = {
    ORIGINAL: ("t_block.1.weight", "x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.scale_shift_table"),
    DIFFUSERS: ("adaln_single.linear.weight", "pos_embed.proj.weight", "transformer_blocks.0.scale_shift_table"),
}
_WRAPPERS = frozenset(
    "model diffusion_model base_model module transformer net dit unet state_dict _orig_mod _fsdp_wrapped_module".split()
)
# Other parts of an all-in-one file: the host saves the VAE and the text encoder beside the model.
_COMPANIONS = frozenset(
    "first_stage_model vae text_encoders text_encoder cond_stage_model conditioner tokenizer model_ema "
    "optimizer lr_scheduler scheduler noise_scheduler".split()
)
_POSITION_TABLES = frozenset({"pos_embed", "pos_embed.pos_embed"})


@dataclass(frozen=True)
class KeyPlan:
    """How the names of a state dict become original ones.

    sources: original name → the names in the state dict whose tensors are stacked along dimension 0 to make it;
        one the state dict lacks is named all the same, so that its absence can be reported.
    position_table: the stored position grid's name; it is recomputed, never loaded.
    companions: names of other models in the same file. unexplained: names that mean nothing to a transformer.
    """

    dialect: str
    prefix: str
    sources: Mapping[str, tuple[str, ...]]
    position_table: str | None
    companions: tuple[str, ...]
    unexplained: tuple[str, ...]

    def missing(self, present) -> list[str]:
        """Names that a stack needs and ``present`` lacks."""
        return [name for names in self.sources.values() for name in names if name not in present]


def plan_keys(names: Iterable[str]) -> KeyPlan:
    """Find a PixArt transformer among ``names``, in either dialect and under any usual prefix.

    Raises ValueError when there is none.
    """
    names = list(names)
    dialect, prefix = _find_transformer(names)
    sources: dict[str, tuple[str, ...]] = {}
    position_table, companions, unexplained = None, [], []
    for name in names:
        bare = name[len(prefix) :]
        if not name.startswith(prefix):
            (companions if name.split(".", 1)[0] in _COMPANIONS else unexplained).append(name)
        elif bare in _POSITION_TABLES:
            position_table = name
        elif bare.split(".", 1)[0] in _COMPANIONS:
            companions.append(name)
        elif dialect == ORIGINAL:
            sources[bare] = (name,)
        elif (original := original_name(bare)) is None:
            unexplained.append(name)
        else:
            sources[original] = tuple(prefix + part for part in diffusers_names(original))
    return KeyPlan(dialect, prefix, sources, position_table, tuple(companions), tuple(unexplained))


def _find_transformer(names: list[str]) -> tuple[str, str]:
    for rank in range(max(map(len, _ANCHORS.values()))):
        for dialect, anchors in _ANCHORS.items():
            for anchor in anchors[rank : rank + 1]:
                prefixes = [name[: -len(anchor)] for name in names if name.endswith(anchor)]
                prefixes = [prefix for prefix in prefixes if _is_wrapper(prefix)]
                if prefixes:
                    return dialect, min(prefixes, key=len)
    listed = ", ".join(names[:3]) or "none at all"
    raise ValueError(
        f"These are not a PixArt transformer's weights: no {_ANCHORS[ORIGINAL][0]} (original names) and no "
        f"{_ANCHORS[DIFFUSERS][0]} (diffusers' names) among them. The first names are: {listed}. "
        "Choose a PixArt-α or PixArt-Σ checkpoint."
    )


def _is_wrapper(prefix: str) -> bool:
    return prefix == "" or (prefix.endswith(".") and all(part in _WRAPPERS for part in prefix[:-1].split(".")))


def split_block_name(name: str, stack: str = "blocks") -> tuple[int, str] | None:
    """``"blocks.7.attn.proj.bias"`` → ``(7, "attn.proj.bias")``; None for names outside the stack."""
    first, _, rest = name.partition(".")
    index, _, inner = rest.partition(".")
    if first != stack or not inner or len(index) > 6 or not (index.isascii() and index.isdigit()):
        return None
    return (int(index), inner) if str(int(index)) == index else None


def diffusers_names(original: str) -> tuple[str, ...]:
    """diffusers' names for an original one: three for qkv, two for kv, none where diffusers has no counterpart."""
    block = split_block_name(original)
    if block is None:
        return _TOP.get(original, ())
    return tuple(f"transformer_blocks.{block[0]}.{inner}" for inner in _BLOCK.get(block[1], ()))


def original_name(diffusers: str) -> str | None:
    """The original name of the tensor that a diffusers one is, or is a part of; None where there is none."""
    block = split_block_name(diffusers, "transformer_blocks")
    if block is None:
        return _TOP_BACK.get(diffusers)
    inner = _BLOCK_BACK.get(block[1])
    return None if inner is None else f"blocks.{block[0]}.{inner}"


def layer_names() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Original → diffusers' names of the layers with weight and bias: those outside the blocks, those inside one."""
    return {original: (name,) for original, name in _TOP_MODULES.items()}, dict(_BLOCK_MODULES)


class OriginalState(Mapping[str, torch.Tensor]):
    """A state dict under original names over one that may be in another dialect.

    Stacked projections are put together when asked for and not kept, so that a file in diffusers' names is
    never in memory twice.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], sources: Mapping[str, tuple[str, ...]]):
        self._tensors = tensors
        self._sources = sources

    def __getitem__(self, name: str) -> torch.Tensor:
        parts = [self._tensors[source] for source in self._sources[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def to_original(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's state dict under original names, without prefix and without the position grid.

    Takes original or diffusers names. Names of other models in the same state dict are left out.
    Raises ValueError when no transformer is found, when a part of a stacked projection is missing, or when a
    name has no original counterpart.
    """
    plan = plan_keys(state)
    if plan.unexplained:
        raise ValueError(f"No original name is known for {list_names(plan.unexplained)}.")
    if missing := plan.missing(state):
        raise ValueError(f"Parts of stacked projections are missing: {list_names(missing)}.")
    return dict(OriginalState(state, plan.sources))


def to_diffusers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An original state dict under the names of diffusers' PixArtTransformer2DModel.

    Split projections are views of the stacked ones. The null caption keeps the name it has in the published α
    files, ``caption_projection.y_embedding``; the diffusers class does not use it and reports it as unexpected.
    Raises ValueError for names without a counterpart, such as those of KV compression.
    """
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        names = diffusers_names(name)
        if names:
            renamed |= zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True)
        elif name not in _POSITION_TABLES:
            unknown.append(name)
    if unknown:
        raise ValueError(f"diffusers' PixArt transformer has no place for {list_names(unknown)}.")
    return renamed


def list_names(names, limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    names = [name if len(name) <= 120 else name[:117] + "…" for name in names]
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
