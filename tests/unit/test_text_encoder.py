"""T5 encoders in every form on disk: what is read equals what transformers itself computes."""

import gzip
import json
import random
import shutil
import sys
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file, save_file

from pixart.text.encoder import T5Config, detect_t5, load_transformers_t5, open_t5
from pixart.text.gguf_state import GgufState
from pixart.text.tokens import JsonTokenizer

MANIFESTS = Path(__file__).parent.parent / "data" / "manifests"
CONFIG = T5Config(vocab_size=100, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4)
IDS = torch.tensor([[5, 17, 99, 3, 1]])
XXL = T5Config(32128, 4096, 64, 10240, 24, 64)


def randomise(model):
    """Weights large enough that every one of them moves the output."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            weight.copy_(mean + 0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def transformers_config(**changes):
    settings = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4}
    return transformers.T5Config(**settings, num_decoder_layers=2, feed_forward_proj="gated-gelu", **changes)


@pytest.fixture(scope="module")
def encoder():
    return randomise(transformers.T5EncoderModel(transformers_config()))


@pytest.fixture(scope="module")
def expected(encoder):
    with torch.no_grad():
        return encoder(input_ids=IDS).last_hidden_state  # (1, 5, 64)


@pytest.fixture
def encoder_file(encoder, tmp_path):
    """One file with both copies of the embedding, as t5xxl_fp16.safetensors has."""
    save_file({name: tensor.clone() for name, tensor in encoder.state_dict().items()}, tmp_path / "t5.safetensors")
    return tmp_path / "t5.safetensors"


def features(path, dtype=torch.float32):
    with torch.no_grad():
        return load_transformers_t5(open_t5(path), dtype, "cpu")(input_ids=IDS).last_hidden_state


def reference_features(state):
    """What transformers makes of a state dict."""
    model = transformers.T5EncoderModel(transformers_config()).eval()
    model.load_state_dict(state | {"encoder.embed_tokens.weight": state["shared.weight"]})
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state


def save_bin_shards(state, folder):
    """Two .bin shards and their index, as the α repository keeps its encoder."""
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, part in shards.items():
        torch.save({name: state[name].clone() for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class TestForms:
    def test_one_file_with_the_embedding_twice(self, encoder_file, expected):
        t5 = open_t5(encoder_file)
        assert "encoder.embed_tokens.weight" in load_file(encoder_file)
        assert sorted(t5.state_dict) == sorted(CONFIG.shapes())
        assert t5.config == CONFIG
        assert (features(encoder_file) - expected).abs().max() <= 1e-6

    def test_a_hugging_face_folder(self, encoder, expected, tmp_path):
        encoder.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
        assert (features(tmp_path) - expected).abs().max() <= 1e-6

    def test_a_sharded_folder(self, encoder, expected, tmp_path):
        encoder.save_pretrained(tmp_path, max_shard_size="60KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        assert (features(tmp_path) - expected).abs().max() <= 1e-6
        assert (features(tmp_path / "model.safetensors.index.json") - expected).abs().max() <= 1e-6

    def test_a_folder_of_bin_shards(self, encoder, expected, tmp_path):
        save_bin_shards(encoder.state_dict(), tmp_path)
        assert (features(tmp_path) - expected).abs().max() <= 1e-6
        index = tmp_path / "pytorch_model.bin.index.json"
        index.rename(tmp_path / "pytorch_model.bin.index.fp16.json")  # a variant's
        assert (features(tmp_path) - expected).abs().max() <= 1e-6

    def test_a_pipeline_folder_brings_its_tokenizer(self, encoder, expected, tmp_path):
        encoder.save_pretrained(tmp_path / "text_encoder")
        (tmp_path / "tokenizer").mkdir()
        (tmp_path / "tokenizer" / "spiece.model").write_bytes(b"a tokenizer")
        assert open_t5(tmp_path).tokenizer == b"a tokenizer"
        assert open_t5(tmp_path / "text_encoder").tokenizer == b"a tokenizer"
        assert (features(tmp_path) - expected).abs().max() <= 1e-6

    @pytest.mark.parametrize("prefix", ["", "text_encoders.t5xxl.transformer.", "t5xxl.transformer."])
    def test_a_whole_t5_with_decoder_under_any_prefix(self, prefix, tmp_path):
        whole = randomise(transformers.T5ForConditionalGeneration(transformers_config(is_encoder_decoder=True)))
        state = {prefix + name: tensor.clone() for name, tensor in whole.state_dict().items()}
        state["first_stage_model.decoder.conv_in.weight"] = torch.zeros(1)
        save_file(state, tmp_path / "whole.safetensors")
        t5 = open_t5(tmp_path / "whole.safetensors")
        assert any("decoder." in name for name in state)
        assert sorted(t5.state_dict) == sorted(CONFIG.shapes())
        with torch.no_grad():
            expected = whole.get_encoder()(input_ids=IDS).last_hidden_state
        assert (features(tmp_path / "whole.safetensors") - expected).abs().max() <= 1e-6

    def test_an_embedding_only_under_the_encoders_own_name(self, encoder, expected, tmp_path):
        state = {name: tensor.clone() for name, tensor in encoder.state_dict().items() if name != "shared.weight"}
        save_file(state, tmp_path / "t5.safetensors")
        assert (features(tmp_path / "t5.safetensors") - expected).abs().max() <= 1e-6


class TestPadding:
    def test_real_tokens_are_the_same_without_padding_as_with_padding_and_mask(self, encoder_file):
        model = load_transformers_t5(open_t5(encoder_file), torch.float32, "cpu")
        padded = torch.cat([IDS, torch.zeros(1, 295, dtype=torch.long)], dim=1)  # (1, 300)
        mask = torch.tensor([[1] * 5 + [0] * 295])
        with torch.no_grad():
            with_padding = model(input_ids=padded, attention_mask=mask).last_hidden_state
            without_mask = model(input_ids=padded).last_hidden_state
            alone = model(input_ids=IDS).last_hidden_state
        assert (with_padding[:, :5] - alone).abs().max() <= 1e-5
        assert (without_mask[:, :5] - alone).abs().max() > 0.1


class TestTypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
    def test_types_pass_through_unchanged(self, dtype, encoder, tmp_path):
        state = {name: tensor.to(dtype) for name, tensor in encoder.state_dict().items()}
        save_file(state, tmp_path / "t5.safetensors")
        t5 = open_t5(tmp_path / "t5.safetensors")
        assert {tensor.dtype for tensor in t5.state_dict.values()} == {dtype}
        assert f"30 tensors {str(dtype).removeprefix('torch.')}" in t5.evidence[1]
        expected = reference_features({name: tensor.float() for name, tensor in state.items()})
        assert (features(tmp_path / "t5.safetensors") - expected).abs().max() <= 1e-6

    @pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
    def test_scaled_fp8_keeps_its_scales_and_is_multiplied_out(self, suffix, encoder, expected, tmp_path):
        state, dense = {}, {}
        for name, tensor in encoder.state_dict().items():
            if tensor.ndim == 2 and ("SelfAttention." in name or "Dense" in name) and "bias" not in name:
                scale = tensor.abs().max() / 448
                state[name] = (tensor / scale).to(torch.float8_e4m3fn)
                state[f"{name.removesuffix('.weight')}.{suffix}"] = scale.clone()
                dense[name] = state[name].float() * scale
            else:
                state[name] = tensor.half()
                dense[name] = state[name].float()
        state["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
        save_file(state, tmp_path / "t5.safetensors")
        t5 = open_t5(tmp_path / "t5.safetensors")
        del state["encoder.embed_tokens.weight"]
        assert sorted(t5.state_dict) == sorted(state)
        assert all(t5.state_dict[name].dtype == tensor.dtype for name, tensor in state.items())
        found = features(tmp_path / "t5.safetensors")
        assert (found - reference_features(dense)).abs().max() <= 1e-6
        assert (found - expected).norm() / expected.norm() < 0.2  # fp8 has three bits of mantissa

    def test_float16_keeps_the_feed_forward_outputs_in_float32(self, encoder_file, expected):
        model = load_transformers_t5(open_t5(encoder_file), torch.float16, "cpu")
        types = {name.rsplit(".", 2)[1]: weight.dtype for name, weight in model.named_parameters()}
        assert types.pop("wo") == torch.float32
        assert set(types.values()) == {torch.float16}
        assert (features(encoder_file, torch.float16).float() - expected).norm() / expected.norm() < 5e-3

    def test_weights_without_a_known_meaning_are_refused(self, encoder_file):
        state = load_file(encoder_file)
        name = "encoder.block.1.layer.0.SelfAttention.k.weight"
        state[name] = state[name].to(torch.int8)
        save_file(state, encoder_file)
        with pytest.raises(ValueError, match="k.weight is stored as torch.int8 without a scale"):
            load_transformers_t5(open_t5(encoder_file), torch.float32, "cpu")


GGUF_BLOCK = {
    "layer.0.SelfAttention.q": "attn_q", "layer.0.SelfAttention.k": "attn_k", "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o", "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.layer_norm": "attn_norm", "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up", "layer.1.DenseReluDense.wo": "ffn_down", "layer.1.layer_norm": "ffn_norm",
}  # fmt: skip


def save_gguf(state, path, kind=GGMLQuantizationType.Q8_0, architecture="t5encoder"):
    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in state.items():
        parts = name.removesuffix(".weight").split(".", 3)
        if name == "shared.weight":
            ggml = "token_embd.weight"
        elif name == "encoder.final_layer_norm.weight":
            ggml = "enc.output_norm.weight"
        else:
            ggml = f"enc.blk.{parts[2]}.{GGUF_BLOCK[parts[3]]}.weight"
        values = tensor.float().numpy()
        if tensor.ndim == 2 and "attn_rel_b" not in ggml:
            writer.add_tensor(ggml, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(ggml, values)
    writer.add_tensor("dec.output_norm.weight", state["encoder.final_layer_norm.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestGguf:
    def state(self, encoder):
        return {name: tensor for name, tensor in encoder.state_dict().items() if "embed_tokens" not in name}

    def test_every_tensor_has_its_name_shape_and_values(self, encoder, tmp_path):
        state = self.state(encoder)
        save_gguf(state, tmp_path / "t5.gguf", GGMLQuantizationType.F16)
        t5 = open_t5(tmp_path / "t5.gguf")
        assert t5.config == CONFIG and sorted(t5.state_dict) == sorted(state)
        for name, tensor in state.items():
            assert t5.state_dict[name].dtype == torch.float16
            assert torch.equal(t5.state_dict[name], tensor.half()), name

    @pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.BF16])
    def test_quantised_weights_are_those_of_the_gguf_package(self, kind, encoder, tmp_path):
        save_gguf(self.state(encoder), tmp_path / "t5.gguf", kind)
        dense = {}
        for name, tensor in self.state(encoder).items():
            values = tensor.numpy()
            if tensor.ndim == 2 and "attention_bias" not in name:
                values = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
            dense[name] = torch.from_numpy(values).half().float()
        assert (features(tmp_path / "t5.gguf") - reference_features(dense)).abs().max() <= 1e-6

    def test_q8_0_gives_the_captions_of_the_full_encoder(self, encoder, expected, tmp_path):
        save_gguf(self.state(encoder), tmp_path / "t5.gguf")
        assert (features(tmp_path / "t5.gguf") - expected).norm() / expected.norm() < 0.05

    def test_nothing_is_dequantised_before_it_is_asked_for(self, encoder, tmp_path, monkeypatch):
        save_gguf(self.state(encoder), tmp_path / "t5.gguf")
        rows = []
        real = GgufState._dequantise

        def watched(state, name, part):
            rows.append(part)
            return real(state, name, part)

        monkeypatch.setattr(GgufState, "_dequantise", watched)
        t5 = open_t5(tmp_path / "t5.gguf")
        assert set(map(str, rows)) == {str(slice(1))}  # the identity's one row of each
        t5.state_dict["shared.weight"]
        assert rows[-1] == slice(None)

    def test_another_architecture_is_named(self, encoder, tmp_path):
        save_gguf(self.state(encoder), tmp_path / "llama.gguf", architecture="llama")
        with pytest.raises(ValueError, match="llama.gguf: This is a GGUF file of the architecture 'llama', not t5"):
            open_t5(tmp_path / "llama.gguf")

    @pytest.mark.parametrize("size", [4, 20, 2000, 40000])
    def test_a_file_cut_short_is_named(self, size, encoder, tmp_path):
        save_gguf(self.state(encoder), tmp_path / "t5.gguf")
        data = (tmp_path / "t5.gguf").read_bytes()
        assert len(data) > 40000
        (tmp_path / "t5.gguf").write_bytes(data[:size])
        with pytest.raises(ValueError, match="t5.gguf: The GGUF file is damaged or cut short"):
            open_t5(tmp_path / "t5.gguf")

    @pytest.mark.filterwarnings("ignore:overflow encountered in cast")
    def test_a_damaged_header_is_a_value_error_or_harmless(self, encoder, tmp_path):
        save_gguf(self.state(encoder), tmp_path / "t5.gguf")
        data = (tmp_path / "t5.gguf").read_bytes()
        rng, refused = random.Random(0), 0
        for _ in range(60):
            damaged = bytearray(data)
            damaged[rng.randrange(4, 1500)] ^= 1 << rng.randrange(8)
            (tmp_path / "t5.gguf").write_bytes(damaged)
            try:
                open_t5(tmp_path / "t5.gguf")
            except ValueError:
                refused += 1
        assert refused > 20

    def test_without_the_package_the_error_says_what_to_install(self, encoder, tmp_path, monkeypatch):
        save_gguf(self.state(encoder), tmp_path / "t5.gguf")
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(ValueError, match="pip install gguf"):
            open_t5(tmp_path / "t5.gguf")


class TestTokenizers:
    def test_a_sentencepiece_model_within_the_file(self, encoder_file):
        state = load_file(encoder_file)
        state["spiece_model"] = torch.frombuffer(bytearray(b"a tokenizer"), dtype=torch.uint8)
        save_file(state, encoder_file)
        t5 = open_t5(encoder_file)
        assert t5.tokenizer == b"a tokenizer"
        assert "spiece_model" not in t5.state_dict
        assert t5.evidence[2] == "Tokenizer: sentencepiece model within the file."

    def test_a_strangers_tokenizer_beside_a_lone_file_is_not_taken(self, encoder_file):
        (encoder_file.parent / "spiece.model").write_bytes(b"another's")
        t5 = open_t5(encoder_file)
        assert t5.tokenizer is None
        with pytest.raises(ValueError, match="brings no tokenizer"):
            t5.make_tokenizer()

    def test_a_folders_json_tokenizer(self, encoder, tmp_path):
        from tokenizers import Tokenizer, models

        encoder.save_pretrained(tmp_path)
        Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "cat": 3}, unk_token="<unk>")).save(
            str(tmp_path / "tokenizer.json")
        )
        tokenizer = open_t5(tmp_path).make_tokenizer()
        assert isinstance(tokenizer, JsonTokenizer)
        assert tokenizer.encode("cat") == [3]

    def test_damaged_sentencepiece_bytes_are_named(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        (tmp_path / "spiece.model").write_bytes(b"not a model")
        with pytest.raises(ValueError, match="These 11 bytes are no sentencepiece model"):
            open_t5(tmp_path).make_tokenizer()


class TestIdentity:
    def test_the_same_weights_have_the_same_identity_wherever_they_lie(self, encoder, encoder_file, tmp_path):
        encoder.save_pretrained(tmp_path / "folder")
        one, other = open_t5(encoder_file).identity, open_t5(tmp_path / "folder").identity
        assert one == other and len(one) == 16

    def test_one_changed_number_in_a_block_changes_it(self, encoder_file):
        before = open_t5(encoder_file).identity
        state = load_file(encoder_file)
        state["encoder.block.1.layer.0.SelfAttention.v.weight"][0, 0] += 1e-3
        save_file(state, encoder_file)
        assert open_t5(encoder_file).identity != before


def manifest(name):
    content = json.loads(gzip.decompress((MANIFESTS / f"{name}.json.gz").read_bytes()))
    return {key: shape for key, (shape, _) in content["tensors"].items()}


@pytest.mark.parametrize(
    "name", ["t5_v1_1_xxl_encoder_hf", "t5xxl_comfy_fp16", "t5xxl_comfy_fp8_e4m3fn", "t5xxl_comfy_fp8_scaled_layout"]
)
def test_released_xxl_files_are_detected(name):
    assert detect_t5(manifest(name)) == XXL


def test_xxl_has_the_parameters_of_the_release():
    elements = [torch.Size(shape).numel() for shape in XXL.shapes().values()]
    assert (len(elements), sum(elements)) == (219, 4_762_310_656)


def test_the_host_dict_agrees_with_transformers_t5_v11():
    ours, theirs = CONFIG.host_dict(), transformers_config()
    same = set(ours) - {"dense_act_fn", "is_encoder_decoder", "decoder_start_token_id", "dropout_rate"}
    same -= {"tie_word_embeddings"}
    assert {key: ours[key] for key in same} == {key: getattr(theirs, key) for key in same}
    assert ours["dense_act_fn"] == "gelu_pytorch_tanh" and theirs.dense_act_fn == "gelu_new"  # two names, one formula


FIRST = "encoder.block.0.layer.0.SelfAttention."
OTHERS = {
    "CLIP-L": {"text_model.embeddings.token_embedding.weight": (49408, 768)},
    "CLIP-G": {"text_model.embeddings.token_embedding.weight": (49408, 1280)},
    "CLIP-H": {"cond_stage_model.model.token_embedding.weight": (49408, 1024)},
    "a T5 decoder without its encoder": {"decoder.block.0.layer.1.EncDecAttention.q.weight": (64, 64)},
    "a LoRA": {"lora_te_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": (16, 64)},
    "a PixArt or DiT transformer": {"t_block.1.weight": (6912, 1152)},
    "a Stable Diffusion checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a VAE": {"decoder.conv_in.weight": (512, 4, 3, 3), "decoder.conv_out.weight": (3, 128, 3, 3)},
    "a Gemma language model": {"model.layers.0.pre_feedforward_layernorm.weight": (2304,)},
    "a LLaMA-like language model": {
        "model.layers.0.self_attn.q_proj.weight": (4096, 4096), "model.layers.0.mlp.gate_proj.weight": (11008, 4096),
    },
    "a Qwen language model": {"model.layers.0.self_attn.q_proj.bias": (4096,)},
    "No T5 encoder is in this file": {"weights.of.a.stranger": (1,)},
    "The file holds no tensors": {},
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_a_wrong_model_is_named_with_a_remedy(what):
    with pytest.raises(ValueError) as error:
        detect_t5(OTHERS[what])
    assert what in str(error.value)
    assert "Choose a T5 v1.1 XXL encoder" in str(error.value)


def relatives():
    v11 = CONFIG.shapes()
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    every_block = {f"encoder.block.{i}.{bias}": (32, 4) for i in range(3)}
    not_gated = {name.replace("wi_0", "wi"): shape for name, shape in v11.items() if "wi_1" not in name}
    yield "UMT5", v11 | every_block | {"shared.weight": (256384, 64)}
    yield "Pile-T5", v11 | every_block | {"shared.weight": (32128, 64)}
    yield "T5 v1.0", not_gated
    yield "mT5", v11 | {"shared.weight": (250112, 64)}
    yield "bitsandbytes", v11 | {f"{FIRST}q.weight": (2048, 1), f"{FIRST}q.weight.absmax": (64,)}


@pytest.mark.parametrize(("what", "shapes"), list(relatives()), ids=[what for what, _ in relatives()])
def test_a_relative_of_t5_v11_is_named(what, shapes):
    with pytest.raises(ValueError, match=f"(This is|quantised by) {what}"):
        detect_t5(shapes)


def test_byt5_is_named():
    shapes = T5Config(384, 1472, 64, 3584, 12, 6).shapes()
    with pytest.raises(ValueError, match="This is ByT5"):
        detect_t5(shapes)


def test_a_missing_weight_is_counted_and_named():
    shapes = CONFIG.shapes()
    del shapes["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    with pytest.raises(ValueError, match="lacks 1 of 30 weights, such as encoder.block.1.layer.1.DenseReluDense.wo"):
        detect_t5(shapes)


def test_a_weight_of_the_wrong_shape_is_named():
    shapes = CONFIG.shapes() | {"encoder.block.2.layer.0.SelfAttention.o.weight": (64, 63)}
    with pytest.raises(ValueError, match=r"block.2.layer.0.SelfAttention.o.weight has shape \[64, 63\], expected \[64"):
        detect_t5(shapes)


class TestDamage:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "empty"),
            (b"<!DOCTYPE html><html></html>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (b"\x00" * 4096, "zeros"),
            (b"\x80\x04\x95 a bare pickle", "bare pickle"),
        ],
    )
    def test_what_is_no_checkpoint_is_named(self, content, message, tmp_path):
        (tmp_path / "t5.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            open_t5(tmp_path / "t5.safetensors")
        assert "t5.safetensors" in str(error.value)

    @pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
    def test_a_file_cut_short_is_named(self, part, encoder_file):
        data = encoder_file.read_bytes()
        encoder_file.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ValueError, match="cut short"):
            open_t5(encoder_file)

    def test_a_missing_shard_is_named(self, encoder, tmp_path):
        save_bin_shards(encoder.state_dict(), tmp_path)
        (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
        with pytest.raises(ValueError, match="pytorch_model-00002-of-00002.bin"):
            open_t5(tmp_path)

    def test_one_shard_alone_says_so(self, encoder, tmp_path):
        save_bin_shards(encoder.state_dict(), tmp_path)
        with pytest.raises(ValueError, match="shard"):
            open_t5(tmp_path / "pytorch_model-00001-of-00002.bin")

    def test_a_pickle_that_would_run_code_is_refused(self, tmp_path):
        torch.save({"shared.weight": Path("run me")}, tmp_path / "t5.bin")
        assert zipfile.is_zipfile(tmp_path / "t5.bin")
        with pytest.raises(ValueError, match="would run code"):
            open_t5(tmp_path / "t5.bin")

    def test_a_folder_without_weights_is_named(self, tmp_path):
        with pytest.raises(ValueError, match="there is no file of weights"):
            open_t5(tmp_path)

    def test_a_folder_with_two_files_asks_for_one(self, encoder_file):
        shutil.copy(encoder_file, encoder_file.parent / "u5.safetensors")
        with pytest.raises(ValueError, match="there is t5.safetensors, u5.safetensors. Choose one file"):
            open_t5(encoder_file.parent)

    def test_a_path_that_does_not_exist(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent.safetensors does not exist"):
            open_t5(tmp_path / "absent.safetensors")
