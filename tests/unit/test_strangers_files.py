"""Files made to hurt: each is refused in a sentence before it costs memory or time.

Every case here once did: it raised what nobody expects, took minutes, or asked for more than the machine has.
"""

from __future__ import annotations

import json
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pixart.checkpoint import open_checkpoint
from pixart.checkpoint.files import MAX_NAME, MAX_TENSORS, read_weights
from pixart.checkpoint.pickles import check_index
from pixart.config import PixArtConfig
from pixart.evaluation.prompts import MAX_CHARACTERS, MAX_PROMPTS, Prompt, choose, read_prompts
from pixart.evaluation.results import read_table
from pixart.lora import open_lora
from pixart.text.encoder import open_t5
from pixart.text.layout import T5Config
from pixart.text.tokens import SentencePieceTokenizer
from pixart.training.pictures import MAX_CAPTION, read_caption
from pixart.transformer import PixArtTransformer

GIB = 2**30
CONFIG = PixArtConfig(hidden_size=144, num_heads=2, depth=1, mlp_hidden_size=16, caption_channels=8)
STATE = {n: torch.full(t.shape, 0.01) for n, t in PixArtTransformer(CONFIG, device="meta").state_dict().items()}
T5 = T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)


@pytest.fixture(autouse=True)
def little_time_and_memory() -> Iterator[None]:
    """No case may take 5 seconds, or 1 GiB beyond what the interpreter holds."""
    limited = sys.platform.startswith("linux")
    if limited:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + GIB, before[1]))
    start = time.process_time()
    yield
    if limited:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < 5


# The index of a .pth


def index(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def named(name: bytes) -> bytes:
    module, _, last = name.rpartition(b".")
    return b"c" + module + b"\n" + last + b"\n"


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def dictionary(key: bytes, value: bytes) -> bytes:
    return b"}" + key + value + b"s"


BILLION = b")" + b"".join(b"q%c" % i + (b"h%c" % i) * 2 + b"\x87" for i in range(60))
"""A tuple of three of the tuple before, sixty times over: 3^60 parts to hash."""

HURTING = {
    "a bytearray by number": dictionary(text("a"), named(b"__builtin__.bytearray") + number(10**12) + b"\x85R"),
    "a bytearray, newer name": dictionary(text("a"), named(b"builtins.bytearray") + number(10**12) + b"\x85R"),
    "a bytearray, made anew": dictionary(text("a"), named(b"builtins.bytearray") + number(10**12) + b"\x85\x81"),
    "a tensor by number": dictionary(text("a"), named(b"torch.FloatTensor") + number(10**11) + b"\x85R"),
    "a storage by number": dictionary(text("a"), named(b"torch.storage.UntypedStorage") + number(10**12) + b"\x85R"),
    "a bytearray around the corner": dictionary(
        text("a"),
        named(b"torch._tensor._rebuild_from_type_v2") + b"(" + named(b"builtins.bytearray")
        + named(b"torch.Tensor") + number(10**12) + b"\x85}tR",
    ),
    "a key of three to the power of sixty parts": dictionary(BILLION, b"K\x01"),
    "a key nested a hundred thousand deep": dictionary(b")" + b"\x85" * 100_000, b"K\x01"),
    "a text encoded as an address": dictionary(
        named(b"_codecs.encode") + b"(" + text("a" * 50_000) + text("idna") + b"tR", b"K\x01"
    ),
}  # fmt: skip


REFUSED = r"x\.pth: The (file holds more than tensors: it asks for|index inside the \.pth nests more)"


def pth(path: Path, content: bytes) -> Path:
    """As torch.save lays it out."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", content), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize("what", HURTING)
def test_an_index_that_asks_for_memory_or_time_is_refused_before_it_is_followed(what, tmp_path):
    content = index(HURTING[what])

    with pytest.raises(ValueError, match=REFUSED):
        open_checkpoint(pth(tmp_path / "x.pth", content))


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02", b"\x80\x02a.", b"\x80\x02h\x07.", b"\x80\x02t.", b"\x95", b"garbage"]
)
def test_an_index_that_is_none_is_said_to_be_damaged(content):
    with pytest.raises(ValueError, match="The index inside the .pth is damaged"):
        check_index(content)


TENSOR = (
    named(b"torch._utils._rebuild_tensor_v2") + b"((" + text("storage") + named(b"torch.FloatStorage") + text("0")
    + text("cpu") + b"K\x04tQK\x00K\x04\x85K\x01\x85\x89" + named(b"collections.OrderedDict") + b")RtR"
)  # fmt: skip


@pytest.mark.parametrize("filled", [TENSOR + b"K\x00K\x01s", TENSOR + b"(K\x00K\x01u", b"}K\x01a", b")K\x00K\x01s"])
def test_items_for_what_is_no_dictionary_are_refused(filled):
    check_index(index(TENSOR))
    with pytest.raises(ValueError, match="puts items into what is no list or dictionary"):
        check_index(index(filled))


def test_what_torch_saves_of_a_training_passes(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "state_dict": STATE | {"mask_token": parameter}, "optimizer": optimizer.state_dict(), "epoch": 3,
        "names": ["a"] * 3000, "shape": torch.Size([2, 3]), "kind": torch.bfloat16, "raw": b"bytes", "set": {1, 2},
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pth")
    weights = read_weights(tmp_path / "x.pth")
    assert set(weights.tensors) == {*STATE, "mask_token"}
    assert (
        open_checkpoint(tmp_path / "x.pth").config == open_checkpoint(write(tmp_path / "x.safetensors", STATE)).config
    )


def test_an_archive_that_lists_too_many_records_is_refused_unread(tmp_path):
    path = pth(tmp_path / "x.pth", index(b"}"))
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\5\6")
    data[end + 12 : end + 16] = struct.pack("<I", 2**30)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="The archive lists its records in 1073741824 bytes"):
        open_checkpoint(path)


# Headers of safetensors


def write(path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.write_bytes(save(state, metadata))
    return path


def header(path: Path, content: dict, padding: int = 0) -> Path:
    packed = json.dumps(content).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(packed)) + packed)
    return path


def nothing(names) -> dict:
    return {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}


def test_more_tensors_longer_names_and_headers_than_a_model_has_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match=f"The file has {MAX_TENSORS + 1} tensors, more than {MAX_TENSORS}"):
        open_checkpoint(header(path, nothing(map(str, range(MAX_TENSORS + 1)))))
    with pytest.raises(ValueError, match=f"A tensor's name has 1001 characters, more than {MAX_NAME}: x+…"):
        open_checkpoint(header(path, nothing(["x" * 1001])))
    with pytest.raises(ValueError, match="The safetensors header is 33554[0-9]+ bytes long, more than 33554432"):
        open_checkpoint(header(path, {}, 2**25))


def test_a_name_of_a_million_prefixes_is_refused_and_not_peeled(tmp_path):
    with pytest.raises(ValueError, match="A tensor's name has"):
        open_lora(header(tmp_path / "x.safetensors", nothing(["model." * 200_000 + "x.lora_A.weight"])))


def test_two_thousand_blocks_are_not_built(tmp_path):
    blocks = {f"blocks.{i}.scale_shift_table": torch.zeros(1) for i in range(2000)}
    with pytest.raises(ValueError, match="The file has 2000 blocks, more than 1024"):
        open_checkpoint(write(tmp_path / "x.safetensors", STATE | blocks))


# GGUF


def gguf(path: Path, keys: int = 0, tensors: int = 0, body: bytes = b"") -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body)
    return path


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("keys", "tensors", "body", "message"),
    [
        (1, 0, key("a", 9, struct.pack("<IQ", 0, 2**40)), "speaks of 1099511627776 values in lists"),
        (1, 0, key("a", 9, struct.pack("<IQ", 4, 1_900_000)), "speaks of more than its"),
        (1, 0, key("a", 9, struct.pack("<IQ", 8, 1_900_000)), "speaks of more than its"),
        (1, 0, key("a", 9, struct.pack("<IQIQ", 9, 1, 9, 1) * 3000), "a value of unknown kind 9"),
        (2**62, 0, b"", "speaks of 4611686018427387904 keys"),
        (0, 2**62, b"", "speaks of 4611686018427387904 tensors"),
        (1, 0, struct.pack("<Q", 2**63), "characters of a name"),
        (1, 0, key("a", 8, struct.pack("<Q", 2**63)), "speaks of more than its"),
        (0, 1, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31), "speaks of 2147483648 dimensions"),
        (0, 1, struct.pack("<Q", 1) + b"t" + struct.pack("<IQQ", 2, 2**40, 2**40), "a tensor of 12089"),
        (0, 0, b"", "architecture 'unknown'"),
    ],
)  # fmt: skip
def test_a_gguf_header_that_counts_more_than_there_is_is_refused(keys, tensors, body, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_t5(gguf(tmp_path / "x.gguf", keys, tensors, body))


def test_an_architecture_without_a_word_is_unknown(tmp_path):
    body = key("general.architecture", 9, struct.pack("<IQ", 8, 0))
    with pytest.raises(ValueError, match="architecture 'unknown'"):
        open_t5(gguf(tmp_path / "x.gguf", 1, 0, body))


# Tokenizers


@pytest.mark.parametrize("tensor", [torch.ones(4, dtype=torch.bfloat16), torch.ones(2, 2, dtype=torch.uint8)])
def test_a_tokenizer_that_is_no_row_of_bytes_is_refused(tensor, tmp_path):
    state = {name: torch.zeros(shape) for name, shape in T5.shapes().items()}
    with pytest.raises(ValueError, match=r"spiece_model has shape \[.*\] of (bfloat16|uint8), not a row of bytes"):
        open_t5(write(tmp_path / "x.safetensors", state | {"spiece_model": tensor}))


def test_an_empty_tokenizer_is_refused_when_it_is_opened():
    with pytest.raises(ValueError, match="The sentencepiece model is empty"):
        SentencePieceTokenizer(b"")


def test_a_piece_that_overflows_a_stack_is_refused():
    piece = b"\x0a\x83\x80\x08" + b"a" * 0x20003
    with pytest.raises(ValueError, match="The sentencepiece model has a piece of 131075 bytes"):
        SentencePieceTokenizer(b"\x12\x02\x18\x01" + piece)


def test_a_tokenizer_of_gigabytes_is_not_read(tmp_path):
    write(tmp_path / "model.safetensors", {name: torch.zeros(shape) for name, shape in T5.shapes().items()})
    with (tmp_path / "spiece.model").open("wb") as file:
        file.truncate(8 * GIB)
    with pytest.raises(ValueError, match="A tokenizer of 8589934592 bytes is no T5's"):
        open_t5(tmp_path)


# LoRA


def lora(path: Path, config: object, stem: str = "base_model.model.transformer_blocks.0.attn1.to_q") -> Path:
    metadata = {"lora_adapter_metadata": config if isinstance(config, str) else json.dumps(config)}
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 144), f"{stem}.lora_B.weight": torch.ones(144, 2)}
    return write(path, tensors, metadata)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(.*)*x", "(\\w|\\w)*z", "(a|a)(a|a)(a|a)(a|a)(a|a)", "a" * 501, "[", "(" * 200, "\\d+\\d+\\d+x", ""],
)
def test_a_pattern_that_may_never_end_is_refused(pattern, tmp_path):
    config = {"transformer.lora_alpha": 2, "transformer.alpha_pattern": {pattern: 1}}
    with pytest.raises(ValueError, match="x.safetensors: alpha_pattern in the LoRA's configuration has"):
        open_lora(lora(tmp_path / "x.safetensors", config))


@pytest.mark.parametrize(
    ("pattern", "scale"),
    [("attn1.to_q", 1.5), ("transformer_blocks.0.attn1.to_q", 1.5), ("attn1.to_k", 1.0), (r"_blocks\.\d+", 1.0),
     (r"transformer_blocks\.\d+\.attn1\.to_q", 1.5),
     ("attn1.to_(q|k)", 1.5), ("^transformer_blocks.0.attn1.to_q", 1.5), ("^attn1", 1.0)],
)  # fmt: skip
def test_patterns_as_peft_writes_them_still_count(pattern, scale, tmp_path):
    config = {"transformer.lora_alpha": 2, "transformer.alpha_pattern": {pattern: 3}}
    assert open_lora(lora(tmp_path / "x.safetensors", config)).transformer[0].scale == scale


@pytest.mark.parametrize(
    "config",
    ["[" * 100_000, "3", "[1]", '{"transformer.lora_alpha": 1, "transformer.alpha_pattern": [1]}',
     '{"transformer.lora_alpha": 1%s}' % ("0" * 400),
     json.dumps({"transformer.lora_alpha": 1, "transformer.alpha_pattern": dict.fromkeys(map(str, range(2001)), 1)})],
)  # fmt: skip
def test_a_configuration_that_is_none_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="x.safetensors: (lora_adapter_metadata|alpha_pattern|The alpha or rank)"):
        open_lora(lora(tmp_path / "x.safetensors", config))


@pytest.mark.parametrize("alpha", [torch.ones(2), torch.ones(1, dtype=torch.complex64)])
def test_an_alpha_that_is_no_number_is_refused(alpha, tmp_path):
    stem = "lora_unet_blocks_0_attn_proj"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 144), f"{stem}.lora_up.weight": torch.ones(144, 2)}
    with pytest.raises(ValueError, match="alpha has shape .* not one number"):
        open_lora(write(tmp_path / "x.safetensors", tensors | {f"{stem}.alpha": alpha}))


def test_a_configuration_beside_the_file_has_a_limit(tmp_path):
    path = lora(tmp_path / "x.safetensors", "")
    (tmp_path / "x.json").write_text(" " * (2**20 + 1))
    with pytest.raises(ValueError, match="x.json beside the file has 1048577 bytes"):
        open_lora(path)


# Prompts, tables of runs, captions of pictures


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'prompt\n"' + "a" * 200_000, "is no table that can be read"),
        ("a.json", "[" * 100_000, "is no JSON"),
        ("a.json", '["a", {"prompt": "b", "seed": 1%s}]' % ("0" * 30), "is no whole number from 0 to 2"),
        ("a.json", '[{"prompt": "b", "seed": 18446744073709551616}]', "is no whole number from 0 to 2"),
        ("a.txt", "a\n" * (MAX_PROMPTS + 1), f"holds {MAX_PROMPTS + 1} prompts"),
        ("a.txt", "a\n" + "b" * (MAX_CHARACTERS + 1), "the prompt number 2 has 20001 characters"),
        ("a.txt", "#" + "b" * 201 + "\na", "the category of prompt number 1 has 201 characters"),
        ("a.csv", "\0" * 100, "has the columns"),
    ],
)
def test_a_file_of_prompts_has_limits(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        read_prompts(tmp_path / name)


def test_the_highest_seed_is_followed_by_the_first():
    assert [Prompt(index, "a").seed_from(2**64 - 1) for index in range(3)] == [2**64 - 1, 0, 1]
    assert choose([Prompt(0, "a", seed=5)])[0].seed_from(9) == 5


TABLE = "index,category,prompt,seed,file,seconds,settings,score,wrong\n"


@pytest.mark.parametrize(
    "row", ["x,,a,1,00000.png,,,,", "0,,a,y,00000.png,,,,", "0,,a,1,../00000.png,,,,", "0,,a,1,00001.png,,,,",
            "-1,,a,1,-0001.png,,,,", '0,,"' + "a" * 200_000 + '",1,00000.png,,,,'],
)  # fmt: skip
def test_a_table_that_no_run_wrote_is_refused(row, tmp_path):
    (tmp_path / "results.csv").write_text(TABLE + row + "\n")
    with pytest.raises(ValueError, match="results.csv is no table of a run: .* Give another name for run"):
        read_table(tmp_path / "results.csv")


def test_more_columns_than_the_header_names_are_left_aside(tmp_path):
    (tmp_path / "results.csv").write_text(TABLE + "0,,a,1,00000.png,,,,,more,and more\n")
    assert [result.prompt for result in read_table(tmp_path / "results.csv")] == ["a"]


def test_a_caption_beside_a_picture_has_a_limit(tmp_path):
    (tmp_path / "a.txt").write_text("a" * (MAX_CAPTION + 1))
    with pytest.raises(ValueError, match="a.txt has 100001 bytes, more than a caption's 100000"):
        read_caption(tmp_path / "a.png")
