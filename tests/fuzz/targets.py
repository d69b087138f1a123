"""What is fuzzed: readers of strangers' files, each with small sound files to begin from.

A reader may return, or raise what it documents. All else is a crash: another exception, more than ``SECONDS``, or
memory beyond twice the file.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from pixart.checkpoint import open_checkpoint, to_diffusers
from pixart.checkpoint.controlnet import controlnet_metadata, open_controlnet
from pixart.checkpoint.detect import config_metadata
from pixart.config import PixArtConfig
from pixart.controlnet import ControlNetConfig, PixArtControlNet
from pixart.evaluation.prompts import choose, read_prompts
from pixart.evaluation.results import read_table
from pixart.lora import fit, open_lora
from pixart.text.captions import Caption, load_caption, metadata_of
from pixart.text.cleaning import clean_prompt
from pixart.text.encoder import open_t5
from pixart.text.layout import T5Config
from pixart.text.provenance import mark_t5
from pixart.text.tokens import SentencePieceTokenizer
from pixart.transformer import PixArtTransformer

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5.0
SLACK = 16 * 2**20
"""Bytes that libraries take in steps, whatever the file."""

CONFIG = PixArtConfig(hidden_size=144, num_heads=2, depth=2, mlp_hidden_size=16, caption_channels=8)
T5 = T5Config(vocab_size=256, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2)
SHAPES = {name: tuple(t.shape) for name, t in PixArtTransformer(CONFIG, device="meta").state_dict().items()}


@dataclass(frozen=True)
class Target:
    """read: opens a path; suffix: of the path; seeds: sound files; modules: of the package, whose lines count."""

    read: Callable[[Path], object]
    suffix: str
    seeds: Callable[[], list[bytes]]
    modules: tuple[str, ...]
    documented: tuple[type[BaseException], ...] = (ValueError,)


def tiny(shapes, dtype=torch.float16) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, 0.01, dtype=dtype) for name, shape in shapes.items()}


def torch_file(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@cache
def transformer() -> dict[str, torch.Tensor]:
    return tiny(SHAPES)


def checkpoints() -> list[bytes]:
    state = transformer()
    scaled = dict(state)
    for name in [name for name in state if name.endswith("attn.proj.weight")]:
        scaled[name] = state[name].to(torch.float8_e4m3fn)
        scaled[name.replace(".weight", ".weight_scale")] = torch.ones(())
        scaled[name.replace(".weight", ".comfy_quant")] = torch.tensor(
            list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8
        )
    stated = {"layers": {"blocks.0.attn.proj": {"format": "float8_e4m3fn"}}}
    return [
        save(state, config_metadata(CONFIG)),
        save({name: tensor.clone() for name, tensor in to_diffusers(state).items()}),
        save(scaled, {"_quantization_metadata": json.dumps(stated)}),
        save({f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}),
    ]


def torch_checkpoints() -> list[bytes]:
    state = transformer()
    return [torch_file(state), torch_file({"state_dict": state, "epoch": 3, "optimizer": {"lr": [0.1, (1, 2)]}})]


def controlnets() -> list[bytes]:
    config = ControlNetConfig(1, 144, 2, 16, "sigma", False)
    state = tiny({n: tuple(t.shape) for n, t in PixArtControlNet(config, device="meta").state_dict().items()})
    return [save(state, controlnet_metadata(CONFIG)), save({f"module.{name}": t for name, t in state.items()})]


def loras() -> list[bytes]:
    def pair(stem: str, up: str, down: str, width: int = 144) -> dict[str, torch.Tensor]:
        return {stem + up: torch.full((width, 2), 0.1), stem + down: torch.full((2, width), 0.1)}

    config = {
        "transformer.r": 2, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {r"blocks\.\d+\.attn1": 3},
        "transformer.use_rslora": True,
    }  # fmt: skip
    flat = pair("lora_unet_blocks_0_attn_proj", ".lora_up.weight", ".lora_down.weight")
    flat |= {"lora_unet_blocks_0_attn_proj.alpha": torch.tensor(1.0),
             "lora_unet_blocks_0_attn_proj.dora_scale": torch.ones(144, 1)}  # fmt: skip
    first, second = "lycoris_blocks_0_attn_proj.", "lycoris_blocks_1_attn_proj."
    products = {
        f"{first}hada_w{i}_{s}": torch.full((144, 2) if s == "a" else (2, 144), 0.1) for i in (1, 2) for s in "ab"
    }
    products |= {f"{second}lokr_w1": torch.ones(12, 12), f"{second}lokr_w2_a": torch.ones(12, 2),
                 f"{second}lokr_w2_b": torch.ones(2, 12), f"{second}alpha": torch.tensor(2.0)}  # fmt: skip
    peft = pair("base_model.model.transformer_blocks.0.attn1.to_q", ".lora_B.weight", ".lora_A.weight")
    t5 = pair("lora_te_encoder_block_0_layer_0_SelfAttention_q", ".lora_up.weight", ".lora_down.weight", 32)
    diff = {"diffusion_model.blocks.0.attn.proj.diff": torch.ones(144, 144),
            "diffusion_model.blocks.0.scale_shift_table": torch.ones(6, 144)}  # fmt: skip
    dotted = pair("transformer.transformer_blocks.1.attn1.to_out.0", ".lora_B.weight", ".lora_A.weight")
    return [
        save(dotted, {"lora_adapter_metadata": json.dumps(config)}), save(flat, {"ss_network_alpha": "1"}),
        save(products), save(peft), save(t5), save(diff),
    ]  # fmt: skip


def read_lora(path: Path):
    lora = open_lora(path)
    return fit(lora.transformer, SHAPES, "PixArt model"), fit(lora.text, T5.shapes(), "T5"), lora.kinds()


def tokenizer() -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(ROOT / "demo" / "pixart-demo-t5.safetensors", framework="pt") as file:
        return file.get_tensor("spiece_model")


def t5_files() -> list[bytes]:
    state = tiny(T5.shapes())
    prefixed = {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in state.items()}
    return [save(state | {"spiece_model": tokenizer()}), save(prefixed)]


def read_t5(path: Path):
    file = open_t5(path)
    mark_t5(file)
    if file.tokenizer is not None:
        file.make_tokenizer().encode("a small red star, blue")
    return [tensor.shape for tensor in file.state_dict.values()]


def read_tokenizer(path: Path):
    tokenizer = SentencePieceTokenizer(path.read_bytes())
    return tokenizer.encode("a small red star, blue"), tokenizer.ends("A  star\u00bd"), len(tokenizer.vocabulary())


def gguf_files() -> list[bytes]:
    import tempfile

    import gguf

    names = {"shared.weight": "token_embd.weight", "encoder.final_layer_norm.weight": "enc.output_norm.weight"}
    inner = {
        "layer.0.SelfAttention.q": "attn_q", "layer.0.SelfAttention.k": "attn_k", "layer.0.SelfAttention.v": "attn_v",
        "layer.0.SelfAttention.o": "attn_o", "layer.0.layer_norm": "attn_norm",
        "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b", "layer.1.DenseReluDense.wi_0": "ffn_gate",
        "layer.1.DenseReluDense.wi_1": "ffn_up", "layer.1.DenseReluDense.wo": "ffn_down",
        "layer.1.layer_norm": "ffn_norm",
    }  # fmt: skip
    found = []
    for kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0):
        with tempfile.TemporaryDirectory() as folder:
            writer = gguf.GGUFWriter(Path(folder, "x.gguf"), "t5encoder")
            writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
            writer.add_array("tokenizer.ggml.scores", [0.0, -1.0])
            writer.add_uint32("t5.block_count", 2)
            for name, shape in T5.shapes().items():
                block, _, rest = name.removeprefix("encoder.block.").partition(".")
                stored = names.get(name) or f"enc.blk.{block}.{inner[rest.removesuffix('.weight')]}.weight"
                numbers = np.full(shape, 0.01, dtype=np.float32)
                if kind == gguf.GGMLQuantizationType.F16 or len(shape) == 1 or shape[-1] % 32:
                    writer.add_tensor(stored, numbers.astype(np.float16))
                else:
                    writer.add_tensor(stored, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            found.append(Path(folder, "x.gguf").read_bytes())
    return found


def captions() -> list[bytes]:
    caption = Caption(torch.ones(3, 8), torch.tensor([1, 1, 0]), "a star", None, {"width": 64, "scale": 1.5})
    tensors = {"embedding": caption.embedding, "mask": caption.mask.to(torch.uint8)}
    return [save(tensors, metadata_of(caption, torch.float32)), save({"embedding": torch.ones(2, 4)})]


def read_prompt_set(path: Path):
    return [choose(read_prompts(path), category, 3) for category in ("", "animals")]


def prompts(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


def read_index(path: Path):
    return open_checkpoint(path)


def clean(path: Path):
    return clean_prompt(path.read_bytes().decode("utf-8", "replace"))


def manifests() -> list[bytes]:
    """The names of known files, whose tensors are nothing: what the tables of names take for what."""
    found = []
    for path in sorted((ROOT / "tests" / "data" / "manifests").glob("*.json.gz"))[::6]:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found.append(save({name: torch.zeros(1) for name in list(json.load(file)["tensors"])[:40]}))
    return found


JSON_SET = '{"animals": ["a cat", {"prompt": "a dog", "seed": 3}], "things": "a cup"}'
CSV_SET = 'Prompt,Category,Seed\na cat,animals,1\n"a, dog",animals,\na cup,things,\n'
TABLE = "index,category,prompt,seed,file,seconds,settings,score,wrong\n0,a,a cat,1,00000.png,1.0,s,1,\n"
INDEX = '{"metadata": {"total_size": 4}, "weight_map": {"a": "x-00001-of-00001.safetensors", "b": "../y"}}'

SETS = ("evaluation.prompts",)
TXT_SET = "# animals\na cat\n\n# things\na cup\n"
CAPTION = "a <b>red</b> star &amp; www.a.com (c) 12.5x3"

TARGETS: dict[str, Target] = {
    "checkpoint": Target(open_checkpoint, ".safetensors", checkpoints, ("checkpoint",)),
    "pth": Target(open_checkpoint, ".pth", torch_checkpoints, ("checkpoint.files", "checkpoint.pickles")),
    "controlnet": Target(open_controlnet, ".safetensors", controlnets, ("checkpoint.controlnet",)),
    "lora": Target(read_lora, ".safetensors", loras, ("lora", "lora_names", "lora_foreign", "adapters")),
    "names": Target(read_lora, ".safetensors", manifests, ("lora_names", "checkpoint.keys")),
    "t5": Target(read_t5, ".safetensors", t5_files, ("text.encoder", "text.layout", "text.foreign")),
    "tokenizer": Target(read_tokenizer, ".model", lambda: [tokenizer().numpy().tobytes()], ("text.tokens",)),
    "gguf": Target(read_t5, ".gguf", gguf_files, ("text.gguf_state", "text.gguf_header")),
    "caption": Target(load_caption, ".safetensors", captions, ("text.captions", "text.provenance")),
    "shard index": Target(read_index, ".json", prompts(INDEX, '{"_class_name": "X"}'), ("checkpoint.files",)),
    "prompts csv": Target(read_prompt_set, ".csv", prompts(CSV_SET), SETS),
    "prompts json": Target(read_prompt_set, ".json", prompts(JSON_SET, '["a", "b"]'), SETS),
    "prompts txt": Target(read_prompt_set, ".txt", prompts(TXT_SET), SETS),
    "table": Target(read_table, ".csv", prompts(TABLE), ("evaluation.results",)),
    "cleaning": Target(clean, ".txt", prompts(CAPTION, "<p>&lt;x&#39;"), ("text.cleaning",)),
}  # fmt: skip


def pack(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
