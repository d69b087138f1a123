"""What a T5 v1.1 encoder's weights are called and shaped, and what its shapes tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .foreign import REMEDY, name_foreign

EMBEDDING = "shared.weight"
EMBEDDING_COPY = "encoder.embed_tokens.weight"
FINAL_NORM = "encoder.final_layer_norm.weight"
RELATIVE_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
FP8_MARKER = "scaled_fp8"
TOKENIZER = "spiece_model"
BUCKETS = 32

_BLOCK = re.compile(r"encoder\.block\.(\d{1,5})\.(.+)")
_MT5_VOCABULARIES = (250100, 250112)
_BYT5_VOCABULARIES = (384, 1510)


@dataclass(frozen=True)
class T5Config:
    """Shape of one T5 v1.1 encoder; the defaults are XXL, which every PixArt checkpoint was trained with."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64

    def host_dict(self) -> dict[str, Any]:
        """Everything a T5 implementation asks of a config.json; the constants are those of every T5 v1.1."""
        return {
            "model_type": "t5",
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "d_ff": self.d_ff,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "dense_act_fn": "gelu_pytorch_tanh",
            "is_gated_act": True,
            "feed_forward_proj": "gated-gelu",
            "layer_norm_epsilon": 1e-6,
            "relative_attention_num_buckets": BUCKETS,
            "relative_attention_max_distance": 128,
            "is_encoder_decoder": False,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
            "dropout_rate": 0.0,
            "tie_word_embeddings": False,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the encoder under its Hugging Face name."""
        inner = self.num_heads * self.d_kv
        block = {
            "layer.0.SelfAttention.q.weight": (inner, self.d_model),
            "layer.0.SelfAttention.k.weight": (inner, self.d_model),
            "layer.0.SelfAttention.v.weight": (inner, self.d_model),
            "layer.0.SelfAttention.o.weight": (self.d_model, inner),
            "layer.0.layer_norm.weight": (self.d_model,),
            "layer.1.DenseReluDense.wi_0.weight": (self.d_ff, self.d_model),
            "layer.1.DenseReluDense.wi_1.weight": (self.d_ff, self.d_model),
            "layer.1.DenseReluDense.wo.weight": (self.d_model, self.d_ff),
            "layer.1.layer_norm.weight": (self.d_model,),
        }
        shapes = {EMBEDDING: (self.vocab_size, self.d_model), FINAL_NORM: (self.d_model,)}
        shapes[f"encoder.block.0.{RELATIVE_BIAS}"] = (BUCKETS, self.num_heads)
        for i in range(self.num_layers):
            shapes |= {f"encoder.block.{i}.{name}": shape for name, shape in block.items()}
        return shapes

    def __str__(self) -> str:
        return (
            f"{self.num_layers} blocks {self.d_model} wide, {self.num_heads} heads of {self.d_kv}, "
            f"feed-forward {self.d_ff}, vocabulary {self.vocab_size}"
        )


def encoder_names(names: Iterable[str]) -> dict[str, str]:
    """The encoder's part of a file: Hugging Face name → the file's name.

    A prefix such as ``text_encoders.t5xxl.transformer.`` goes; the decoder, the language-model head, other models
    and the second copy of the embedding are left out; the companions of scaled fp8 weights stay. Empty when
    there is no T5 encoder.
    """
    names = list(names)
    prefixes = [name.removesuffix(FINAL_NORM) for name in names if name.endswith(FINAL_NORM)]
    if not prefixes:
        return {}
    prefix = min(prefixes, key=len)
    bare = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    if EMBEDDING not in bare and EMBEDDING_COPY in bare:
        bare[EMBEDDING] = bare[EMBEDDING_COPY]
    return {
        name: stored
        for name, stored in bare.items()
        if name == FP8_MARKER
        or name.startswith("shared.")
        or (name.startswith("encoder.") and not name.startswith("encoder.embed_tokens."))
    }


def detect_t5(shapes: Mapping[str, Sequence[int]]) -> T5Config:
    """The configuration that the shapes of a T5 v1.1 encoder, or of a file that contains one, tell.

    Raises ValueError, naming what the file is instead or what it lacks.
    """
    stored = encoder_names(shapes)
    if foreign := name_foreign(shapes, has_encoder=bool(stored)):
        raise ValueError(foreign)
    ours = {name: tuple(int(n) for n in shapes[file_name]) for name, file_name in stored.items()}
    blocks = sorted({int(match[1]) for name in ours if (match := _BLOCK.match(name))})
    if not blocks:
        raise ValueError(f"The file has a T5's final norm but no blocks (encoder.block.0 …). {REMEDY}")
    _require_v11(ours, blocks)
    config = _measure(ours, len(blocks))
    _compare(config, ours)
    return config


def _require_v11(shapes: Mapping[str, tuple[int, ...]], blocks: list[int]) -> None:
    """Name the relatives of T5 v1.1 whose features mean something else, and packed weights whose shapes do not tell."""
    if packed := [name for name in shapes if ".absmax" in name or ".quant_state" in name or name.endswith(".SCB")]:
        raise ValueError(
            f"The weights were quantised by bitsandbytes ({packed[0]}), which is not read here. {REMEDY}"
        )
    vocabulary, width = (shapes.get(EMBEDDING, ()) + (0, 0))[:2]
    relative = None
    if "encoder.block.0.layer.1.DenseReluDense.wi.weight" in shapes:
        relative = "T5 v1.0 (its feed-forward layers are not gated: wi instead of wi_0 and wi_1)"
    elif len(blocks) > 1 and f"encoder.block.{blocks[1]}.{RELATIVE_BIAS}" in shapes:
        kind = "Pile-T5" if vocabulary == 32128 else "UMT5"
        relative = f"{kind} (every block has a relative attention bias, not only the first)"
    elif vocabulary in _MT5_VOCABULARIES:
        relative = f"mT5 (its vocabulary has {vocabulary} entries)"
    elif vocabulary in _BYT5_VOCABULARIES and width >= 1472:
        relative = f"ByT5 (it reads bytes: its vocabulary has {vocabulary} entries)"
    if relative:
        raise ValueError(f"This is {relative}, not T5 v1.1. {REMEDY}")


def _measure(shapes: Mapping[str, tuple[int, ...]], num_layers: int) -> T5Config:
    first = "encoder.block.0."
    needed = {
        EMBEDDING: 2,
        first + RELATIVE_BIAS: 2,
        first + "layer.0.SelfAttention.q.weight": 2,
        first + "layer.1.DenseReluDense.wi_0.weight": 2,
    }
    for name, rank in needed.items():
        if name not in shapes:
            raise ValueError(f"The T5 encoder lacks {name}: it is one shard of several, or cut down. {REMEDY}")
        if len(shapes[name]) != rank:
            raise ValueError(f"{name} has shape {list(shapes[name])}, expected {rank} dimensions. {REMEDY}")
    vocab_size, d_model = shapes[EMBEDDING]
    buckets, num_heads = shapes[first + RELATIVE_BIAS]
    inner = shapes[first + "layer.0.SelfAttention.q.weight"][0]
    if buckets != BUCKETS or not num_heads or inner % num_heads:
        raise ValueError(
            f"The relative attention bias has shape {[buckets, num_heads]} beside queries of {inner}; T5 v1.1 has "
            f"{BUCKETS} buckets and heads that divide the queries. {REMEDY}"
        )
    d_ff = shapes[first + "layer.1.DenseReluDense.wi_0.weight"][0]
    return T5Config(vocab_size, d_model, inner // num_heads, d_ff, num_layers, num_heads)


def _compare(config: T5Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    expected = config.shapes()
    if missing := [name for name in expected if name not in shapes]:
        raise ValueError(
            f"The T5 encoder lacks {len(missing)} of {len(expected)} weights, such as {missing[0]}: it is one shard "
            f"of several, or cut down. {REMEDY}"
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(
                f"{name} has shape {list(shapes[name])}, expected {list(shape)} in a T5 v1.1 encoder with {config}. "
                f"{REMEDY}"
            )
