"""Self-attention and masked cross-attention of the PixArt block.

The attention kernel is injected: ``attention(q, k, v, heads, mask=None, transformer_options=None)`` with
q (B, N, D), k and v (B, M, D), an additive ``mask`` that broadcasts to (B, heads, N, M), result (B, N, D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .compression import COMPRESSION, CONV, GRID, NORM_EPS, KVCompression, compress, spread
from .prepared import PREPARED, Span
from .workspace import NARROW, WIDE, Workspace, linear

Attention = Callable[..., torch.Tensor]

GATE = "pixart_gate"
"""Where ``transformer_options`` holds a ``CrossAttentionGate``."""

WORKSPACE = "pixart_workspace"
"""Where ``transformer_options`` holds the ``Workspace`` of a sampling run."""


def sdpa(q, k, v, heads: int, mask=None, transformer_options=None) -> torch.Tensor:
    """PyTorch's scaled dot-product attention with the calling convention above."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, N, d)
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)  # (B, N, D)


def caption_bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Additive attention bias (B, 1, 1, L) for a caption mask (B, L), or None where every token counts.

    Half the lowest finite number, not -inf: adding it to a score stays finite in fp16, and a chunk
    of keys that is masked whole gives no NaN in backends that work chunk by chunk.
    """
    if mask is None:
        return None
    keep = mask != 0
    bias = torch.zeros(keep.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~keep, torch.finfo(dtype).min / 2)[:, None, None, :]


class SelfAttention(nn.Module):
    """Multi-head self-attention over image tokens with one fused qkv projection.

    kv_ratio: side of the windows that the block's own convolution makes one key and value of; 1 for none.
    qk_norm: queries and keys are normalised over all heads together.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        attention: Attention,
        kv_ratio: int = 1,
        qk_norm: bool = False,
        dtype=None,
        device=None,
        operations=nn,
    ):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.num_heads = num_heads
        self.attention = attention
        self.kv_ratio = kv_ratio
        self.qkv = operations.Linear(hidden_size, 3 * hidden_size, **factory)
        self.proj = operations.Linear(hidden_size, hidden_size, **factory)
        self.sr = self.norm = self.q_norm = self.k_norm = None
        if kv_ratio > 1:
            self.sr = operations.Conv2d(
                hidden_size, hidden_size, kernel_size=kv_ratio, stride=kv_ratio, groups=hidden_size, **factory
            )
            self.norm = operations.LayerNorm(hidden_size, eps=NORM_EPS, **factory)
        if qk_norm:
            self.q_norm = operations.LayerNorm(hidden_size, eps=NORM_EPS, **factory)
            self.k_norm = operations.LayerNorm(hidden_size, eps=NORM_EPS, **factory)

    def forward(self, x: torch.Tensor, transformer_options: dict) -> torch.Tensor:
        workspace = workspace_for("attn1", transformer_options)
        q, k, v = linear(self.qkv, x, workspace, WIDE).chunk(3, dim=-1)  # (B, N, D) each
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        k, v = self.compress(k, v, transformer_options)  # (B, M, D) each
        out = patched_attention(self, "attn1", q, k, v, None, transformer_options)
        return linear(self.proj, out, workspace, NARROW)

    def compress(self, k: torch.Tensor, v: torch.Tensor, options: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as ``options`` wish for this block, else as the block was trained.

        Where another function takes the kernel's place, each is repeated over its window: such functions know one
        key for every token, and perturbed-attention guidance gives the values back as the output.
        Raises ValueError when the grid of the tokens is not told.
        """
        chosen = options.get(COMPRESSION)
        if chosen is None or not chosen.covers(options.get("block_index"), k.shape[1]):
            chosen = KVCompression(CONV, self.kv_ratio)
        sampling, ratio = chosen.sampling, chosen.ratio
        if ratio == 1:
            return k, v
        grid = options.get(GRID)
        if grid is None or grid[0] * grid[1] != k.shape[1]:
            raise ValueError(
                f"Keys and values cannot be compressed: there are {k.shape[1]} tokens, and their grid is given as "
                f"{grid}. Whoever calls the block has to set {GRID!r} in transformer_options."
            )
        layers = (self.sr, self.norm) if sampling == CONV and ratio == self.kv_ratio else (None, None)
        k, v = (compress(tokens, grid, sampling, ratio, *layers) for tokens in (k, v))
        if find_replacement("attn1", options) is not None:
            k, v = (spread(tokens, grid, sampling, ratio) for tokens in (k, v))
        return k, v


class CrossAttention(nn.Module):
    """Image tokens attend to the caption's tokens; nothing is attended to past the caption's mask."""

    def __init__(self, hidden_size: int, num_heads: int, attention: Attention, dtype=None, device=None, operations=nn):
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.q_linear = operations.Linear(hidden_size, hidden_size, dtype=dtype, device=device)
        self.kv_linear = operations.Linear(hidden_size, 2 * hidden_size, dtype=dtype, device=device)
        self.proj = operations.Linear(hidden_size, hidden_size, dtype=dtype, device=device)

    def forward(self, x, caption: torch.Tensor, bias, transformer_options: dict, keys_values=None) -> torch.Tensor:
        """keys_values: what ``kv_linear`` gives for the caption, (B, L, 2D), where that is known already."""
        gate, index = transformer_options.get(GATE), transformer_options.get("block_index")
        frozen = None if gate is None else gate.get(index)
        if frozen is not None:
            return frozen
        workspace = workspace_for("attn2", transformer_options)
        q = linear(self.q_linear, x, workspace, NARROW)
        if keys_values is None:
            keys_values = self.kv_linear(caption)
        elif is_patched("attn2", transformer_options):
            keys_values = keys_values.clone()  # a patch may write into what it is given
        k, v = keys_values.chunk(2, dim=-1)  # (B, L, D) each
        spans = spans_for(bias, transformer_options)
        if spans is None:
            out = patched_attention(self, "attn2", q, k, v, bias, transformer_options)
        else:
            out = self.attend_in_spans(q, k, v, spans, transformer_options)
        if gate is None:
            return linear(self.proj, out, workspace, WIDE)  # the other slot than q's
        out = self.proj(out)
        gate.keep(index, out)
        return out

    def attend_in_spans(self, q, k, v, spans: tuple[Span, ...], transformer_options: dict) -> torch.Tensor:
        """Each row to its own caption's tokens, with no mask, and none of the padding; written over q."""
        for start, end, length in spans:
            rows, keys, values = q[start:end], k[start:end, :length], v[start:end, :length]
            q[start:end] = self.attention(rows, keys, values, self.num_heads, transformer_options=transformer_options)
        return q


def spans_for(bias: torch.Tensor | None, transformer_options: dict) -> tuple[Span, ...] | None:
    """The spans of the captions whose padding this very bias masks; None where more than the kernel sees them."""
    prepared = transformer_options.get(PREPARED)
    if prepared is None or prepared.spans is None or prepared.bias is not bias:
        return None
    if is_seen("attn2", transformer_options, output=True) or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return prepared.spans


def is_seen(name: str, transformer_options: dict, output: bool = False) -> bool:
    """Whether more than the host's kernel sees what attention ``name`` is given, and may keep it."""
    return is_patched(name, transformer_options, output) or "optimized_attention_override" in transformer_options


def workspace_for(name: str, transformer_options: dict) -> Workspace | None:
    """The run's workspace; None where more than the kernel sees queries, keys and values, and may keep them."""
    return None if is_seen(name, transformer_options) else transformer_options.get(WORKSPACE)


def is_patched(name: str, transformer_options: dict, output: bool = False) -> bool:
    """Whether anything but the kernel sees the keys and values of attention ``name``, or its output where asked."""
    replaced = transformer_options.get("patches_replace", {}).get(name)
    patches = transformer_options.get("patches", {})
    return bool(replaced or patches.get(f"{name}_patch") or (output and patches.get(f"{name}_output_patch")))


def patched_attention(layer, name: str, q, k, v, bias, transformer_options: dict) -> torch.Tensor:
    """``layer.attention`` with the three patch points that ComfyUI's packs and nodes know.

    ``patches["attn1_patch"]`` may change q, k, v (B, H, N, d) and the bias; ``patches_replace["attn1"]``
    takes the place of the kernel, q, k, v being (B, N, D); ``patches["attn1_output_patch"]`` changes its
    output (B, N, D). ``name`` is "attn1" for self-attention and "attn2" for cross-attention. Replacements
    are looked up as a UNet names its blocks, see ``attention_block_name``. k and v may be fewer than q.
    """
    patches = transformer_options.get("patches", {})
    replacement = find_replacement(name, transformer_options)
    heads = layer.num_heads

    for patch in patches.get(f"{name}_patch", ()):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, N, d)
        out = patch(q, k, v, pe=None, attn_mask=bias, extra_options=transformer_options)
        q, k, v = (t.transpose(1, 2).flatten(2) for t in (out.get("q", q), out.get("k", k), out.get("v", v)))
        bias = out.get("attn_mask", bias)

    if replacement is not None:
        options = {**transformer_options, "n_heads": heads, "dim_head": q.shape[-1] // heads}
        x = replacement(q, k, v, options)
    else:
        x = layer.attention(q, k, v, heads, mask=bias, transformer_options=transformer_options)

    for patch in patches.get(f"{name}_output_patch", ()):
        x = patch(x, transformer_options)
    return x


def find_replacement(name: str, transformer_options: dict) -> Callable | None:
    """What takes the place of the kernel in the block that runs, if anything does."""
    replacements = transformer_options.get("patches_replace", {}).get(name)
    if not replacements:
        return None
    block = transformer_options.get("block", ())
    return next((replacements[key] for key in (block, block[:2]) if key in replacements), None)


def attention_block_name(index: int, depth: int) -> tuple[str, int, int]:
    """The name a UNet would give block ``index``, as attention patches of UNet packs address it.

    The block halfway through the stack is ("middle", 0), which is what perturbed-attention guidance
    replaces; those before it are ("input", i), those after it ("output", i). The last 0 is the index of
    the transformer block within a UNet block, always 0 here.
    """
    middle = depth // 2
    if index == middle:
        return ("middle", 0, 0)
    return ("input", index, 0) if index < middle else ("output", index - middle - 1, 0)
