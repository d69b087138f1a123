"""A file that is no PixArt checkpoint is answered with what it is, by name, and nothing in it runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from pixart.checkpoint import open_checkpoint, to_diffusers
from pixart.config import PixArtConfig
from pixart.transformer import PixArtTransformer

MANIFESTS = Path(__file__).parents[1] / "data" / "manifests"
CONFIG = PixArtConfig(hidden_size=144, num_heads=2, depth=2, mlp_hidden_size=144, caption_channels=8)
NAMES = PixArtTransformer(CONFIG, device="meta").state_dict()
STATE = {name: torch.full(tensor.shape, 0.01) for name, tensor in NAMES.items()}
ORIGINAL_BYTES = save(STATE)
DIFFUSERS_BYTES = save({name: tensor.clone() for name, tensor in to_diffusers(STATE).items()})


def without(*parts: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in STATE.items() if not any(part in name for part in parts)}


def manifest(name: str) -> bytes:
    """Tensors under the names of a known file, one number each: only the names matter."""
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return save(named(*json.load(file)["tensors"]))


def named(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1) for name in names}


def pth(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def safetensors(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def torchscript() -> bytes:
    return zipped({"x/data.pkl": b"\x80\x02}.", "x/constants.pkl": b"\x80\x02).", "x/version": b"3"})


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


SD_UNET = ("down_blocks.0.attentions.0.proj_in.weight", "up_blocks.1.attentions.0.proj_in.weight")
SD_FULL = (
    "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.output_blocks.0.0.in_layers.0.weight",
    "model.diffusion_model.time_embed.0.weight",
)  # fmt: skip

# What the file is → its bytes and what the message must say.
BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # not a checkpoint at all
    "empty file": (lambda: b"", "The file is empty"),
    "three bytes": (lambda: b"abc", "has 3 bytes, too few"),
    "web page": (lambda: b"<!DOCTYPE html><html><body>Login</body></html>", "This is a web page"),
    "web page after a blank line": (lambda: b"\n  <html lang='en'>" + b"x" * 99, "This is a web page"),
    "xml error of a store": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    "git lfs pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2467384245\n", "Git LFS pointer"
    ),
    "gguf": (lambda: b"GGUF\x03\0\0\0" + bytes(64), "This is a GGUF file"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "PNG picture"),
    "jpeg": (lambda: b"\xff\xd8\xff\xe0" + bytes(64), "JPEG picture"),
    "gzip": (lambda: gzip.compress(ORIGINAL_BYTES[:999]), "gzip archive. Unpack"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(64), "7z archive. Unpack"),
    "numpy": (lambda: b"\x93NUMPY\x01\0" + bytes(64), "NumPy array"),
    "zip with a checkpoint inside": (lambda: zipped({"a/model.safetensors": b"x"}), "ZIP archive, not a checkpoint"),
    "torchscript": (torchscript, "TorchScript program"),
    "zeros of an unfinished download": (lambda: bytes(4096), "begins with zeros only"),
    "noise": (lambda: random.Random(5).randbytes(4096), "no checkpoint format that is known here"),
    "text": (lambda: b"Please see the README for the download link.", "no checkpoint format that is known here"),
    "config.json": (lambda: b'{"_class_name": "PixArtTransformer2DModel"}', "config of a PixArtTransformer2DModel"),
    "other json": (lambda: b'{"a": 1}', "This is a JSON file, not weights"),
    "json list": (lambda: b"[1, 2]", "holds a list, not a JSON object"),
    "broken json": (lambda: b'{"weight_map": {', "is not valid JSON"),
    "json of many brackets": (lambda: b'{"a":' + b"[" * 200_000, "is not valid JSON"),
    # damaged safetensors
    "safetensors cut short": (lambda: ORIGINAL_BYTES[: len(ORIGINAL_BYTES) // 2], "The file is cut short: its header"),
    "safetensors cut in its header": (lambda: ORIGINAL_BYTES[:400], "only 392 follow"),
    "safetensors with bytes appended": (lambda: ORIGINAL_BYTES + b"tail", "longer than it should be"),
    "header length too large": (lambda: safetensors({}, length=1 << 20) + bytes(64), "header should be 1048576 bytes"),
    "header length absurd": (lambda: safetensors({}, length=1 << 60) + bytes(64), "no checkpoint format"),
    "header length too small": (lambda: safetensors({"a": 1}, bytes(64), length=3), "header is damaged"),
    "header that is no json": (lambda: safetensors(b"{not json at all}", bytes(8)), "header is damaged"),
    "header not utf-8": (lambda: safetensors(b'{"\xff\xfe":1}', bytes(8)), "header is damaged"),
    "shape that overflows": (
        lambda: safetensors({"a": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 8]}}, bytes(8)),
        "header is damaged",
    ),
    "offsets that overlap": (
        lambda: safetensors(
            {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, bytes(8)
        ), "header is damaged",
    ),
    "header without tensors": (lambda: safetensors({"__metadata__": {"a": "b"}}), "The first names are: none at all"),
    # .pth files
    "pth cut short": (lambda: pth(STATE)[:-999], "its end is missing or damaged"),
    "pth with compressed records": (
        lambda: zipped({"x/data.pkl": b"\x80\x02}." + bytes(10**6)}, zipfile.ZIP_DEFLATED), "compressed or larger"
    ),
    "pth with a damaged index": (
        lambda: zipped({"x/data.pkl": b"\x80\x02garbage", "x/version": b"3"}), "index inside the .pth is damaged"
    ),
    "pth with an object in it": (lambda: pth({"state_dict": STATE, "args": Namespace(lr=1)}), "argparse.Namespace"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "bare pickle"),
    "pth of one tensor": (lambda: pth(torch.ones(3)), "holds one Tensor"),
    "pth of a list": (lambda: pth([torch.ones(3)]), "holds one list"),
    "pth without tensors": (lambda: pth({"epoch": 3, "lr": 0.1}), "no tensors under names, but epoch, lr"),
    "pth of an optimizer": (lambda: pth({"state": {0: {}}, "param_groups": []}), "but state, param_groups"),
    "pth with a tensor larger than the file": (
        lambda: pth(STATE | {"t_block.1.weight": torch.ones(1).expand(1 << 40)}), "claims 1099511627776 numbers"
    ),
    "pth with a sparse tensor": (lambda: pth(STATE | {"t_block.1.bias": torch.eye(3).to_sparse()}), "sparse_coo"),
    "pth with a meta tensor": (lambda: pth({"t_block.1.weight": torch.ones(3, device="meta")}), "on meta"),
    # other models
    "SD 1.5": (lambda: save(named(*SD_FULL)), "Stable Diffusion 1.x or 2.x checkpoint"),
    "SD 2 unet of diffusers": (lambda: save(named(*SD_UNET, "time_embedding.linear_1.weight")), "2.x UNet"),
    "SDXL": (lambda: save(named(*SD_FULL, "model.diffusion_model.label_emb.0.0.weight")), "an SDXL checkpoint"),
    "SDXL unet of diffusers": (lambda: save(named(*SD_UNET, "add_embedding.linear_1.weight")), "an SDXL UNet"),
    "SD3": (lambda: save(named("joint_blocks.0.x_block.attn.qkv.weight", "x_embedder.proj.weight")), "Diffusion 3"),
    "SD3 of diffusers": (
        lambda: save(named("transformer_blocks.0.attn.add_k_proj.weight", "pos_embed.proj.weight")), "Diffusion 3"
    ),
    "Flux": (
        lambda: save(named("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")), "a Flux"
    ),
    "Sana": (
        lambda: save(STATE | named("attention_y_norm.weight", "blocks.0.mlp.depth_conv.conv.weight")), "a Sana"
    ),
    "Hunyuan-DiT": (lambda: save(named("mlp_t5.0.weight", "x_embedder.proj.weight")), "Hunyuan-DiT"),
    "LTX-Video": (
        lambda: save(named("patchify_proj.weight", "adaln_single.linear.weight", "proj_out.weight")), "LTX-Video"
    ),
    "class-conditional DiT": (
        lambda: save(
            named("x_embedder.proj.weight", "blocks.0.adaLN_modulation.1.weight", "y_embedder.embedding_table.weight")
        ), "class-conditional DiT",
    ),
    "LoRA of peft": (lambda: manifest("lora_peft_sigma_1024_r16"), "This is a LoRA.*PixArt Load LoRA"),
    "LoRA of kohya": (lambda: manifest("lora_kohya_sigma_r16"), "This is a LoRA"),
    "LoRA under the host's names": (lambda: manifest("lora_comfy_names_sigma_r16"), "This is a LoRA"),
    "LoRA of OneTrainer": (lambda: manifest("lora_onetrainer_legacy_sigma_r16"), "This is a LoRA"),
    "LoKr": (lambda: save(named("lycoris_transformer_blocks_0_attn1_to_q.lokr_w1")), "LyCORIS LoRA"),
    "original ControlNet": (
        lambda: manifest("alpha_orig_controlnet-1024"), "original PixArt ControlNet.*PixArt Load ControlNet"
    ),
    "ControlNet adapter": (
        lambda: manifest("sigma_controlnet_simpletuner_adapter13"), "a PixArt ControlNet.*PixArt Load ControlNet"
    ),
    "SD ControlNet": (lambda: save(named("control_model.input_hint_block.0.weight")), "Stable Diffusion ControlNet"),
    "HED detector": (lambda: manifest("controlnet_HED_pth"), "HED edge detector"),
    "VAE of SD": (lambda: manifest("vae_sd_ft_ema_diffusers"), "This is a VAE.*VAE loader"),
    "VAE of SDXL": (lambda: manifest("vae_sdxl_diffusers"), "This is a VAE"),
    "VAE in LDM names": (
        lambda: save(named("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight")), "a VAE"
    ),
    "tiny autoencoder": (lambda: save(named("1.weight", "3.conv.0.weight", "11.conv.0.weight")), "TAESD"),
    "T5": (lambda: manifest("t5_v1_1_xxl_encoder_hf"), "a T5 text encoder.*PixArt Load T5"),
    "T5 in scaled fp8": (lambda: manifest("t5xxl_comfy_fp8_scaled_layout"), "a T5 text encoder"),
    "CLIP": (lambda: save(named("text_model.encoder.layers.0.self_attn.q_proj.weight")), "CLIP model"),
    "saved caption": (lambda: manifest("sigma_null_embed_diffusers_300token_pth"), "saved caption"),
    "text embedding": (lambda: save(named("t5", "t5_out")), "a text embedding"),
    "unknown model": (lambda: save(named("foo.weight", "bar.bias")), "The first names are: bar.bias, foo.weight"),
    # PixArt, but not whole or not sound
    "PixArt without its last layer": (lambda: save(without("final_layer.")), "lacks final_layer.linear.weight"),
    "PixArt without a bias": (lambda: save(without("t_block.1.bias")), "1 of the transformer's tensors are missing"),
    "PixArt without its first block": (lambda: save(without("blocks.0.")), "Block 0 is missing"),
    "PixArt without blocks": (lambda: save(without("blocks.")), "Block 0 is missing"),
    "diffusers without a to_k": (
        lambda: save({k: v.clone() for k, v in to_diffusers(STATE).items() if "1.attn1.to_k.weight" not in k}),
        "missing, the first: transformer_blocks.1.attn1.to_k.weight",
    ),
    "PixArt with strange parts": (
        lambda: save(STATE | named("blocks.0.temporal.weight")), "no place in a PixArt transformer.*blocks.0.temporal"
    ),
    "PixArt with scaled fp8": (lambda: save(STATE | named("t_block.1.scale_weight")), "belong to quantised weights"),
    "PixArt in int8": (
        lambda: save(STATE | {"t_block.1.weight": torch.ones(864, 144, dtype=torch.int8)}), "weight holds int8 values"
    ),
    "PixArt with NaN": (
        lambda: save(STATE | {"blocks.1.scale_shift_table": torch.full((6, 144), float("nan"))}),
        "blocks.1.scale_shift_table holds NaN or infinity",
    ),
    "PixArt with infinity": (
        lambda: save(STATE | {"x_embedder.proj.bias": torch.full((144,), float("inf"))}), "NaN or infinity"
    ),
    "PixArt of two widths": (
        lambda: save(STATE | {"blocks.1.mlp.fc1.weight": torch.ones(144, 72)}),
        r"blocks.1.mlp.fc1.weight has shape \[144, 72\]",
    ),
    "PixArt with an empty tensor": (
        lambda: save(STATE | {"x_embedder.proj.weight": torch.ones(0, 4, 2, 2)}), "dimensions above 0 belong"
    ),
    "PixArt with a flat patch layer": (
        lambda: save(STATE | {"x_embedder.proj.weight": torch.ones(144, 16)}), "4 dimensions above 0 belong"
    ),
    "PixArt with half a KV compression": (
        lambda: save(STATE | {"blocks.1.attn.sr.weight": torch.ones(144, 1, 2, 2)}), "missing, the first: blocks.1.attn"
    ),
    "PixArt with an oblong KV compression": (
        lambda: save(STATE | {"blocks.1.attn.sr.weight": torch.ones(144, 1, 2, 3)}), "a square window for each channel"
    ),
    "PixArt with half a qk_norm": (
        lambda: save(STATE | named("blocks.0.attn.q_norm.weight")), "Only blocks 0 hold attn.q_norm"
    ),
}  # fmt: skip


def test_the_sound_file_that_the_bad_ones_are_made_from_opens(tmp_path):
    (tmp_path / "x.file").write_bytes(ORIGINAL_BYTES)
    assert open_checkpoint(tmp_path / "x.file").config == CONFIG


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_named_for_what_it_is(tmp_path, kind):
    build, message = BAD_FILES[kind]
    path = tmp_path / "x.file"
    path.write_bytes(build())
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        open_checkpoint(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and text.endswith(".") and len(text) < 900


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": STATE, "extra": x}], ids=["bare", "in a .pth"])
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_does_not_run(tmp_path, wrap, zip_format):
    torch.save(wrap(Payload(tmp_path / "ran")), tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(ValueError, match="posix.mkdir, and reading it would run code|without running it"):
        open_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_pth_under_the_name_of_a_safetensors_file_is_told_so(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(pth(STATE))
    with pytest.raises(ValueError, match="named .safetensors. Rename it to .pth"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0x3C20, 0x7B20, 0x5B20, 0x4B50])
def test_header_length_that_reads_as_text_is_no_web_page_and_no_json(tmp_path, length):
    header = ORIGINAL_BYTES[8 : 8 + struct.unpack("<Q", ORIGINAL_BYTES[:8])[0]]
    data = ORIGINAL_BYTES[8 + len(header) :]
    (tmp_path / "x.file").write_bytes(safetensors(header.ljust(length), data))
    assert open_checkpoint(tmp_path / "x.file").config == CONFIG


def test_missing_path_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors does not exist"):
        open_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read, even by root")
def test_unreadable_file_is_told_with_the_systems_reason():
    with pytest.raises(ValueError, match="/proc/self/mem: The file cannot be read: Input/output error. Check its perm"):
        open_checkpoint("/proc/self/mem")


def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        open_checkpoint(tmp_path / "pipe")


FOLDERS = {
    "empty": ({}, "holds no weights"),
    "only a config": ({"config.json": b"{}"}, "holds no weights"),
    "two models": ({"a.safetensors": ORIGINAL_BYTES, "b.pth": b""}, "several files of weights .a.safetensors, b.pth"),
    "shards without index": (
        {"model-00001-of-00002.safetensors": b"", "model-00002-of-00002.safetensors": b""}, "shards without their"
    ),
    "broken config": ({"a.safetensors": ORIGINAL_BYTES, "config.json": b"{"}, "config.json is not valid JSON"),
    "config that is a list": ({"a.safetensors": ORIGINAL_BYTES, "config.json": b"[]"}, "config.json holds a list"),
    "config with absurd heads": (
        {"a.safetensors": ORIGINAL_BYTES, "config.json": b'{"num_attention_heads": 5}'}, "does not divide the width 144"
    ),
    "half a shard set": (
        {"m.safetensors.index.json": b'{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}',
         "m-1.safetensors": ORIGINAL_BYTES},
        "1 of the 2 shards in the index are missing: m-2.safetensors",
    ),
    "shard elsewhere": (
        {"m.safetensors.index.json": b'{"weight_map": {"a": "../../etc/passwd"}}'}, "shards outside its own folder"
    ),
    "index that names itself": (
        {"m.safetensors.index.json": b'{"weight_map": {"a": "m.safetensors.index.json"}}'}, "is a JSON file, not"
    ),
    "index of another download": (
        {"m.safetensors.index.json": b'{"weight_map": {"zz.weight": "m-1.safetensors"}}',
         "m-1.safetensors": ORIGINAL_BYTES},
        "lack 1 tensors that the index promises, such as zz.weight",
    ),
    "damaged shard": (
        {"m.safetensors.index.json": b'{"weight_map": {"a": "m-1.safetensors"}}',
         "m-1.safetensors": ORIGINAL_BYTES[:-8]},
        "Shard m-1.safetensors: The file is cut short",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_bad_folder_is_explained(tmp_path, kind):
    files, message = FOLDERS[kind]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")


def test_single_shard_points_to_its_index(tmp_path):
    save_file(without("blocks.1.", "final_layer"), tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match="It is shard 1 of 2: choose the .index.json beside it"):
        open_checkpoint(tmp_path / "model-00001-of-00002.safetensors")


def test_family_is_checked_before_the_file_is_touched():
    with pytest.raises(ValueError, match="must be auto, alpha or sigma, not 'flux'"):
        open_checkpoint("nowhere", family="flux")
