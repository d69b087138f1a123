"""Encoded captions as files: what is written, what is read, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from pixart.checkpoint import config_metadata
from pixart.config import PixArtConfig
from pixart.pipeline import PixArtPipeline
from pixart.text.__main__ import file_name, main, read_prompts
from pixart.text.captions import Caption, is_caption_file, load_caption, save_caption
from pixart.text.encoder import open_t5
from pixart.text.layout import T5Config
from pixart.text.provenance import T5Mark, agreement, check_t5, expected_t5, mark_t5, may_be_same, provenance
from pixart.training.demo.text import train_tokenizer
from pixart.training.initialise import initialise
from pixart.transformer import PixArtTransformer

CONFIG = T5Config(vocab_size=160, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4)
MARK = T5Mark("0123456789abcdef", "5a" * 32, "3 blocks 64 wide")
PROMPTS = [
    "a small red star on the left, blue background",
    "a circle",
    "a large yellow square",
    "a green triangle at the top",
    "a star",
]
EMBEDDING = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))


def t5_state(seed: int, config: T5Config = CONFIG) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = config.shapes()
    return {name: torch.randn(s, generator=generator) * 0.1 + ("norm" in name) for name, s in shapes.items()}


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    return train_tokenizer(0)


@pytest.fixture(scope="module")
def t5_file(tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("t5") / "t5.safetensors"
    save_file(t5_state(1) | {"spiece_model": torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)}, path)
    return path


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


# Writing and reading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_caption_comes_back_bit_for_bit_in_its_own_type(dtype, tmp_path):
    mask = torch.tensor([1, 1, 1, 1, 1, 0, 0])
    values = {"width": 1024, "height": 768, "strength": 0.1}
    caption = Caption(EMBEDDING.to(dtype), mask, "ein grüner „Stern“ 星\n", MARK, values)
    back = load_caption(save_caption(caption, tmp_path / "c.safetensors"))
    assert back.embedding.dtype == dtype and torch.equal(back.embedding, caption.embedding)
    assert torch.equal(back.mask, mask) and back.tokens == 5
    assert (back.prompt, back.t5, back.values) == (caption.prompt, MARK, values)


def test_what_is_not_known_is_not_written(tmp_path):
    path = save_caption(Caption(EMBEDDING), tmp_path / "c.safetensors")
    assert header(path) == {"format": "pixart-caption", "version": "1", "tokens": "7", "dtype": "fp32"}
    assert set(load_file(path)) == {"embedding"}
    back = load_caption(path)
    assert (back.mask, back.prompt, back.t5, back.values, back.tokens) == (None, None, None, {}, 7)


def test_the_header_tells_prompt_encoder_and_numbers(tmp_path):
    path = save_caption(Caption(EMBEDDING, prompt="a star", t5=MARK, values={"width": 64}), tmp_path / "c.safetensors")
    assert header(path) == {
        "format": "pixart-caption", "version": "1", "tokens": "7", "dtype": "fp32", "prompt": "a star",
        "t5_identity": "0123456789abcdef", "t5_signs": "5a" * 32, "t5_config": "3 blocks 64 wide",
        "values": '{"width": 64}',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("own", "chosen", "stored"),
    [
        (torch.float32, torch.float16, torch.float16),
        (torch.float16, torch.float32, torch.float32),
        (torch.float64, None, torch.float32),
    ],
)
def test_the_type_of_the_file_can_be_chosen(own, chosen, stored, tmp_path):
    path = save_caption(Caption(EMBEDDING.to(own)), tmp_path / "c.safetensors", chosen)
    assert load_file(path)["embedding"].dtype == stored


def test_a_caption_survives_its_file_being_overwritten(tmp_path):
    path = save_caption(Caption(EMBEDDING), tmp_path / "c.safetensors")
    back = load_caption(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(back.embedding, EMBEDDING)


def test_half_a_file_is_never_left_under_the_final_name(tmp_path, monkeypatch):
    path = save_caption(Caption(EMBEDDING), tmp_path / "c.safetensors")
    before = path.read_bytes()

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="c.safetensors could not be written to .*No space left"):
        save_caption(Caption(EMBEDDING * 2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_very_long_prompt_is_recorded_up_to_the_limit(tmp_path):
    caption = Caption(EMBEDDING, prompt="\x01" * 100_001)
    assert load_caption(save_caption(caption, tmp_path / "c.safetensors")).prompt == "\x01" * 100_000


def test_half_a_surrogate_pair_does_not_stop_the_writing(tmp_path):
    back = load_caption(save_caption(Caption(EMBEDDING, prompt="a \ud83d star"), tmp_path / "c.safetensors"))
    assert back.prompt == "a ? star"


@pytest.mark.parametrize(
    ("caption", "dtype", "message"),
    [
        (Caption(EMBEDDING * 1e6), torch.float16, "embedding holds NaN or infinity.* Save it in fp32 or bf16"),
        (Caption(EMBEDDING / 0), None, "embedding holds NaN or infinity"),
        (Caption(torch.zeros(4097, 1)), None, r"shape \[4097, 1\], not tokens × channels with at most 4096 × 16384"),
        (Caption(torch.zeros(1, 16385)), None, r"shape \[1, 16385\]"),
        (Caption(EMBEDDING[None]), None, r"shape \[1, 7, 16\]"),
        (Caption(EMBEDDING, torch.zeros(7)), None, "mask leaves no token"),
        (Caption(EMBEDDING, torch.full((7,), 0.5)), None, "mask holds other numbers than 0 and 1"),
        (Caption(EMBEDDING, torch.ones(6)), None, r"mask has shape \[6\] beside an embedding of 7 tokens"),
        (Caption(EMBEDDING, values={"width": float("nan")}), None, "The value width is 'nan', not a finite number"),
        (Caption(EMBEDDING, values={"control": 1}), None, "'control', which is no name for a plain number"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(caption, dtype, message, tmp_path):
    with pytest.raises(ValueError, match=f"cannot be saved as c.safetensors: .*{message}"):
        save_caption(caption, tmp_path / "c.safetensors", dtype)
    assert list(tmp_path.iterdir()) == []


# Files of strangers

GOOD = {"format": "pixart-caption", "version": "1", "tokens": "7", "dtype": "fp32"}


def written(tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> bytes:
    return save(tensors or {"embedding": EMBEDDING}, metadata=GOOD | metadata)


def masked(mask: torch.Tensor) -> bytes:
    return written({"embedding": EMBEDDING, "mask": mask})


def raw(content: dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def claiming(shape: list[int], stored: str = "F32") -> bytes:
    """A header whose tensor is larger than the file."""
    size = 4
    for n in shape:
        size *= n
    tensor = {"dtype": stored, "shape": shape, "data_offsets": [0, size]}
    return raw({"__metadata__": GOOD, "embedding": tensor}, bytes(64))


BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "The file is empty"),
    "text": (lambda: b"a small red star on the left", "no checkpoint format"),
    "web page": (lambda: b"<!DOCTYPE html><html></html>", "This is a web page"),
    "json": (lambda: b'{"prompt": "a star"}', "This is no safetensors file, as captions are"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "This is a PNG picture"),
    "cut short": (lambda: written()[:-9], "The file is cut short"),
    "bytes appended": (lambda: written() + b"tail", "longer than it should be"),
    "header cut": (lambda: written()[:60], "header should be"),
    "header too long": (lambda: raw({}, b"", 5 * 2**20) + bytes(5 * 2**20), "a caption's has at most 4194304"),
    "larger than the file": (lambda: claiming([4096, 16384]), "cut short: its header speaks of"),
    "lora": (lambda: save({"lora_A.weight": EMBEDDING}), "no caption, but holds lora_A.weight. Choose a caption file"),
    "no metadata": (lambda: save({"embedding": EMBEDDING}), "no caption, but holds embedding"),
    "newer": (lambda: written(version="2"), "format version '2'; read is '1'. Update this node pack"),
    "no version": (lambda: save({"embedding": EMBEDDING}, metadata={"format": "pixart-caption"}), "'none'"),
    "other tensor": (lambda: written({"mask": torch.ones(7)}), "found were mask. Encode the prompt again"),
    "more tensors": (lambda: written({"embedding": EMBEDDING, "x": torch.ones(1)}), "found were embedding, x"),
    "integers": (lambda: written({"embedding": torch.ones(7, 16, dtype=torch.int8)}), "embedding is stored as int8"),
    "doubles": (lambda: written({"embedding": EMBEDDING.double()}), "stored as float64, not as float32"),
    "fp8": (lambda: written({"embedding": EMBEDDING.to(torch.float8_e4m3fn)}), "stored as float8_e4m3fn"),
    "three axes": (lambda: written({"embedding": EMBEDDING[None].clone()}), r"shape \[1, 7, 16\]"),
    "one axis": (lambda: written({"embedding": EMBEDDING[0].clone()}), r"shape \[16\]"),
    "no tokens": (lambda: written({"embedding": torch.zeros(0, 16)}), r"shape \[0, 16\]"),
    "no channels": (lambda: written({"embedding": torch.zeros(7, 0)}), r"shape \[7, 0\]"),
    "too many tokens": (lambda: written({"embedding": torch.zeros(4097, 2)}), r"shape \[4097, 2\]"),
    "too wide": (lambda: written({"embedding": torch.zeros(1, 16385)}), r"shape \[1, 16385\]"),
    "nan": (lambda: written({"embedding": EMBEDDING.clone().fill_(float("nan"))}), "NaN or infinity"),
    "infinity": (lambda: written({"embedding": EMBEDDING / 0}), "NaN or infinity"),
    "mask too short": (lambda: masked(torch.ones(5)), r"mask has shape \[5\] beside an embedding of 7 tokens"),
    "mask of halves": (lambda: masked(torch.ones(7) / 2), "mask holds other numbers than 0 and 1"),
    "mask of nothing": (lambda: masked(torch.zeros(7)), "mask leaves no token"),
    "wrong count": (lambda: written(tokens="8"), "The header speaks of 8 tokens, but there are 7"),
    "wrong type": (lambda: written(dtype="fp16"), "The header speaks of fp16, but embedding is stored as float32"),
    "long prompt": (lambda: written(prompt="a" * 100_001), "prompt has 100001 characters, more than 100000"),
    "bad identity": (lambda: written(t5_identity="\n" * 9), "t5_identity is"),
    "bad signs": (lambda: written(t5_identity="a", t5_signs="xyz"), "t5_signs is 'xyz'…, not 64 hexadecimal digits"),
    "long config": (lambda: written(t5_identity="a", t5_config="x" * 1001), "t5_config has 1001 characters"),
    "values no json": (lambda: written(values="{"), "not valid JSON"),
    "values of brackets": (lambda: written(values="[" * 16_000), "not valid JSON"),
    "values too long": (lambda: written(values=" " * 16_385), "take 16385 characters, more than 16384"),
    "values a list": (lambda: written(values="[1]"), "a JSON list, not an object"),
    "value a text": (lambda: written(values='{"width": "64"}'), "The value width is '64', not a finite number"),
    "value true": (lambda: written(values='{"width": true}'), "The value width is 'True'"),
    "value nan": (lambda: written(values='{"width": NaN}'), "The value width is 'nan'"),
    "value huge": (lambda: written(values='{"width": 1e300}'), r"The value width is '1e\+300'"),
    "value for an object": (lambda: written(values='{"hooks": 1}'), "named 'hooks', which is no name for a plain"),
    "value of no name": (lambda: written(values='{"a b": 1}'), "named 'a b'"),
    "many values": (lambda: written(values=json.dumps({f"v{i}": 1 for i in range(65)})), "65 values.* more than 64"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_by_name_with_what_was_found(kind, tmp_path):
    make, message = BAD_FILES[kind]
    path = tmp_path / "bad one.safetensors"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as refused:
        load_caption(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_file_larger_than_any_caption_is_not_opened(tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(300 * 10**6)
    with pytest.raises(ValueError, match="The file has 300000000 bytes, more than any caption"):
        load_caption(path)


def test_a_folder_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(ValueError, match="This is no file"):
        load_caption(tmp_path)
    with pytest.raises(FileNotFoundError, match="none.safetensors does not exist"):
        load_caption(tmp_path / "none.safetensors")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One of: bytes changed, a stretch left out, doubled or swapped for noise, a digit of the header changed."""
    out = bytearray(data)
    start = rng.randrange(len(out))
    length = min(rng.choice((1, 2, 8, 64)), len(out) - start)
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.choice((1, 4, 32))):
            out[rng.randrange(len(out))] = rng.randrange(256)
    elif kind == 1:
        del out[start : start + length]
    elif kind == 2:
        out[start:start] = out[start : start + length]
    elif kind == 3:
        out[start : start + length] = rng.randbytes(length)
    else:
        digits = [i for i, byte in enumerate(out[:600]) if chr(byte).isdigit()]
        out[rng.choice(digits)] = ord(str(rng.randrange(10)))
    return bytes(out)


def test_mutated_files_are_refused_with_value_errors_alone(tmp_path):
    rng = random.Random(20)
    mask = torch.tensor([1, 1, 1, 1, 1, 0, 0])
    caption = Caption(EMBEDDING, mask, "a star", MARK, {"width": 64, "height": 128})
    good = save_caption(caption, tmp_path / "good.safetensors").read_bytes()
    path, refused, read = tmp_path / "m.safetensors", 0, 0
    for _ in range(300):
        path.write_bytes(mutated(good, rng))
        try:
            back = load_caption(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
        else:
            assert back.embedding.isfinite().all() and back.tokens >= 1
            read += 1
        assert is_caption_file(path) in (True, False)
    assert refused > 150 and read > 10


def test_only_captions_are_listed_as_captions(tmp_path, t5_file):
    caption = save_caption(Caption(EMBEDDING), tmp_path / "c.safetensors")
    (tmp_path / "short").write_bytes(b"abc")
    assert is_caption_file(caption)
    assert not any(map(is_caption_file, (t5_file, tmp_path / "short", tmp_path, tmp_path / "none")))


# Which T5 it was


def saved_as(state: dict[str, torch.Tensor], path: Path) -> T5Mark:
    save_file(state, path)
    return mark_t5(open_t5(path))


def gguf_mark(state: dict[str, torch.Tensor], path: Path, kind: GGMLQuantizationType) -> T5Mark:
    writer = gguf.GGUFWriter(path, "t5encoder")
    names = {
        "layer.0.SelfAttention.q": "attn_q", "layer.0.SelfAttention.k": "attn_k", "layer.0.SelfAttention.v": "attn_v",
        "layer.0.SelfAttention.o": "attn_o", "layer.0.layer_norm": "attn_norm",
        "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b", "layer.1.DenseReluDense.wi_0": "ffn_gate",
        "layer.1.DenseReluDense.wi_1": "ffn_up", "layer.1.DenseReluDense.wo": "ffn_down",
        "layer.1.layer_norm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in state.items():
        short = {"shared.weight": "token_embd", "encoder.final_layer_norm.weight": "enc.output_norm"}.get(name)
        if short is None:
            _, _, index, inner = name.removesuffix(".weight").split(".", 3)
            short = f"enc.blk.{index}.{names[inner]}"
        values = tensor.numpy()
        if "norm" in short or "rel_b" in short:
            writer.add_tensor(f"{short}.weight", values)
        else:
            writer.add_tensor(f"{short}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return mark_t5(open_t5(path))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_the_same_weights_in_another_type_are_the_same_encoder(dtype, tmp_path):
    state = t5_state(1)
    half = saved_as({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")
    other = saved_as({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "other.safetensors")
    assert (half.identity == other.identity) == (dtype == torch.float16)
    assert agreement(half, other) == 1.0
    assert may_be_same(half, other) and may_be_same(other, half)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0], ids=lambda kind: kind.name)
def test_the_same_weights_quantised_are_the_same_encoder(kind, tmp_path):
    state = t5_state(1)
    plain = saved_as(state, tmp_path / "t5.safetensors")
    packed = gguf_mark(state, tmp_path / "t5.gguf", kind)
    assert packed.identity != plain.identity
    assert agreement(plain, packed) >= {"Q8_0": 0.97, "Q4_0": 0.85}[kind.name]
    assert may_be_same(plain, packed)


def test_scaled_fp8_is_the_same_encoder(tmp_path):
    state = t5_state(1)
    scaled = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in state.items():
        if tensor.ndim < 2 or "block" not in name or "bias" in name:
            scaled[name] = tensor.half()
            continue
        scale = tensor.abs().max() / 448
        scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
        scaled[name.replace(".weight", ".scale_weight")] = scale
    plain, packed = saved_as(state, tmp_path / "a.safetensors"), saved_as(scaled, tmp_path / "b.safetensors")
    assert packed.identity != plain.identity and agreement(plain, packed) >= 0.99


def test_other_weights_and_other_shapes_are_another_encoder(tmp_path):
    first = saved_as(t5_state(1), tmp_path / "a.safetensors")
    deeper = dataclasses.replace(CONFIG, num_layers=4)
    for index, state in enumerate((t5_state(2), t5_state(1, deeper), t5_state(3, deeper))):
        other = saved_as(state, tmp_path / f"b{index}.safetensors")
        assert 0.35 < agreement(first, other) < 0.65
        assert not may_be_same(first, other)


def test_an_unknown_encoder_gets_the_benefit_of_the_doubt_and_a_bare_identity_is_taken_at_its_word():
    bare, other = T5Mark(MARK.identity), T5Mark("another")
    assert may_be_same(MARK, other)
    assert may_be_same(bare, MARK) and not may_be_same(bare, other)
    check_t5(None, provenance("a star", 3, MARK), "x")
    check_t5(MARK, None, "x")
    check_t5(MARK, {"prompt": "a star"}, "x")


def test_a_caption_of_another_encoder_is_refused_with_both_named():
    other = T5Mark("fedcba9876543210", "a5" * 32, "24 blocks 64 wide")
    with pytest.raises(
        ValueError,
        match=r"made by the T5 fedcba9876543210 \(24 blocks 64 wide\), but s.safetensors was trained with the T5 "
        r"0123456789abcdef \(3 blocks 64 wide\)",
    ):
        check_t5(MARK, provenance("a star", 3, other), "s.safetensors")
    check_t5(MARK, provenance("a star", 3, MARK), "s.safetensors")


def test_a_checkpoints_damaged_mark_is_told():
    assert expected_t5({}, "s.safetensors") is None
    assert expected_t5(MARK.metadata("pixart."), "s.safetensors") == MARK
    with pytest.raises(ValueError, match="s.safetensors: The safetensors metadata is damaged: pixart.t5_signs is 'x'"):
        expected_t5({"pixart.t5_identity": "a", "pixart.t5_signs": "x"}, "s.safetensors")


# The command


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS[:2]) + "\n\n   \n" + "\n".join(PROMPTS[2:]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pipeline(t5_file, tmp_path_factory) -> PixArtPipeline:
    """A random checkpoint that names its encoder."""
    folder = tmp_path_factory.mktemp("models")
    config = PixArtConfig(
        hidden_size=48, depth=2, num_heads=4, mlp_hidden_size=96, caption_channels=64, base_size=4,
        pe_interpolation=0.125,
    )  # fmt: skip
    torch.manual_seed(0)
    model = initialise(PixArtTransformer(config))
    with torch.no_grad():
        for value in model.parameters():
            if not value.any():
                value.normal_(std=0.1)
    metadata = config_metadata(config) | mark_t5(open_t5(t5_file)).metadata("pixart.")
    save_file(model.state_dict(), folder / "s.safetensors", metadata=metadata)
    from diffusers import AutoencoderTiny

    AutoencoderTiny().save_pretrained(folder / "vae")
    return PixArtPipeline.load(folder / "s.safetensors", t5_file, folder / "vae")


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_writes_what_the_pipeline_encodes(prompts, t5_file, pipeline, tmp_path, capsys):
    assert run(prompts, "--t5", t5_file, "--out", tmp_path / "out", "--batch", 2) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 5 captions written\n"
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [
        "00001-a-small-red-star-on-the-left-blue-background.safetensors",
        "00002-a-circle.safetensors",
        "00005-a-large-yellow-square.safetensors",
        "00006-a-green-triangle-at-the-top.safetensors",
        "00007-a-star.safetensors",
    ]
    worst = 0.0
    for file, prompt in zip(files, PROMPTS, strict=True):
        caption, wanted = load_caption(file), pipeline.encode([prompt])
        assert caption.embedding.shape == wanted.embeddings[0].shape
        assert (caption.prompt, caption.tokens, caption.t5) == (prompt, wanted.tokens[0], pipeline.t5_mark)
        worst = max(worst, (caption.embedding - wanted.embeddings[0]).abs().max().item())
    assert worst <= 1e-5


def test_options_change_what_is_written(prompts, t5_file, tmp_path):
    prompts.write_text("A <b>large</b> RED star, blue background\n", encoding="utf-8-sig")
    options = ("--t5", t5_file, "--out", tmp_path / "out", "--dtype", "bf16", "--max-tokens", 4)
    assert run(prompts, *options, "--clean-caption", "--empty-prompt") == 0
    empty, star = map(load_caption, sorted((tmp_path / "out").iterdir()))
    assert (empty.prompt, empty.tokens) == ("", 1)
    assert (star.prompt, star.tokens, star.embedding.dtype) == ("a large red star, blue background", 4, torch.bfloat16)


def test_only_what_is_missing_or_different_is_encoded_again(prompts, t5_file, tmp_path, capsys):
    out = tmp_path / "out"
    command = (prompts, "--t5", t5_file, "--out", out, "--skip-existing")
    assert run(*command) == 0
    files = sorted(out.iterdir())
    files[0].unlink()
    files[1].write_bytes(b"half a file")
    save_caption(dataclasses.replace(load_caption(files[2]), prompt="another"), files[2])
    before = {file: file.stat().st_mtime_ns for file in files[3:]}
    capsys.readouterr()
    assert run(*command) == 0
    assert capsys.readouterr().out.endswith(": 3 captions written, 2 were there already\n")
    assert {file: file.stat().st_mtime_ns for file in files[3:]} == before
    assert [load_caption(file).prompt for file in files] == PROMPTS
    assert run(*command, "--dtype", "fp16") == 0
    assert capsys.readouterr().out.endswith(": 5 captions written\n")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"\n  \n", (), "holds no prompt"),
        (b"a star\n\xff\xfe\n", (), "is no UTF-8 text (see byte 7)"),
        (b"a star\n" + b"x" * 100_001, (), "line 2 has 100001 characters"),
        (b"a star", ("--max-tokens", "0"), "--max-tokens is 0"),
        (b"a star", ("--max-tokens", "4097"), "--max-tokens is 4097"),
        (b"a star", ("--batch", "0"), "--batch is 0"),
        (b"a star", ("--t5", "none.safetensors"), "none.safetensors does not exist"),
        (None, (), "No such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(content, options, message, t5_file, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    if content is not None:
        prompts.write_bytes(content)
    assert run(prompts, "--t5", t5_file, "--out", tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("pixart: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("", "00003-empty.safetensors"),
        ("星", "00003-prompt.safetensors"),
        ("../../etc/passwd", "00003-etc-passwd.safetensors"),
        ("Ein grüner Kreis!", "00003-ein-gruner-kreis.safetensors"),
        ("CON", "00003-con.safetensors"),
        ("a" * 300, f"00003-{'a' * 48}.safetensors"),
    ],
)
def test_file_names_are_safe(prompt, name):
    assert file_name(3, prompt) == name


def test_lines_are_counted_as_editors_count_them(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa star\r\n\r\na\u2028circle\x0bx\r\n".encode())
    assert read_prompts(path) == [(1, "a star"), (3, "a\u2028circle\x0bx")]


# Without a text encoder


def test_a_caption_file_draws_the_picture_of_its_prompt_without_t5(pipeline, tmp_path):
    encoded = pipeline.encode([PROMPTS[0], ""])
    for index, name in enumerate(("positive", "negative")):
        caption = Caption(encoded.embeddings[index, : encoded.tokens[index]], t5=pipeline.t5_mark)
        save_caption(caption, tmp_path / f"{name}.safetensors")
    bare = PixArtPipeline(pipeline.transformer, None, None, pipeline.autoencoder, pipeline.t5_mark)
    files = [bare.read_caption(tmp_path / f"{name}.safetensors") for name in ("positive", "negative")]
    options = {"height": 64, "width": 64, "steps": 2, "seed": 4}
    (without,), (wanted,) = bare(*files, **options), pipeline(PROMPTS[0], **options)
    (other,) = pipeline(PROMPTS[1], **options)
    assert without.tobytes() == wanted.tobytes() != other.tobytes()
    with pytest.raises(ValueError, match="There is no text encoder to read a prompt"):
        bare(PROMPTS[0], **options)


def test_the_pipeline_refuses_captions_of_another_encoder(pipeline, tmp_path):
    wide = save_caption(Caption(EMBEDDING), tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="wide.safetensors: The caption is 16 wide.* trained on captions 64 wide"):
        pipeline.read_caption(wide)
    other = save_caption(Caption(torch.zeros(3, 64), t5=MARK), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"made by the T5 {MARK.identity}.*trained with the T5 "):
        pipeline.read_caption(other)
