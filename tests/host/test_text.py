"""T5 as the host's CLIP, against transformers."""

from __future__ import annotations

import random
from importlib import import_module

import pytest
import torch
from safetensors.torch import save_file
from transformers import T5EncoderModel

from pixart.text.layout import T5Config
from pixart.text.tokens import SentencePieceTokenizer
from pixart.training.demo.captions import random_caption
from pixart.training.demo.text import encoder_config, train_tokenizer

PROMPTS = [random_caption(random.Random(seed))[1] for seed in range(19)] + [""]


@pytest.fixture(scope="module")
def tokenizer_model() -> bytes:
    return train_tokenizer(seed=0)


@pytest.fixture(scope="module")
def reference(tokenizer_model) -> T5EncoderModel:
    torch.manual_seed(0)
    return T5EncoderModel(encoder_config(SentencePieceTokenizer(tokenizer_model).processor.vocab_size())).eval()


@pytest.fixture(scope="module")
def t5_file(reference, tokenizer_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("t5") / "t5.safetensors"
    state = {k: v.clone() for k, v in reference.state_dict().items() if k != "encoder.embed_tokens.weight"}
    state["spiece_model"] = torch.frombuffer(bytearray(tokenizer_model), dtype=torch.uint8)
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def text(pack):
    return import_module(f"{pack.__name__}.nodes.host.text")


@pytest.fixture(scope="module")
def clip(text, t5_file):
    return text.load_clip(str(t5_file))


def encode(clip, prompt: str) -> torch.Tensor:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]


def test_captions_equal_transformers_at_every_real_token(clip, reference, tokenizer_model):
    """transformers runs them padded to 300 tokens with a mask, as the reference pipelines do."""
    tokenizer = SentencePieceTokenizer(tokenizer_model)
    worst = 0.0
    for prompt in PROMPTS:
        ids = [*tokenizer.encode(prompt), 1]
        padded = torch.tensor([ids + [0] * (300 - len(ids))])
        with torch.no_grad():
            wanted = reference(padded, attention_mask=(padded != 0).long()).last_hidden_state[:, : len(ids)]
        got = encode(clip, prompt)
        assert got.shape == wanted.shape
        worst = max(worst, (got - wanted).abs().max().item())
    assert worst <= 1e-5


def test_the_encoder_sees_real_tokens_only(clip, tokenizer_model):
    lengths = []
    encoder = clip.cond_stage_model.t5xxl.transformer.encoder
    handle = encoder.register_forward_pre_hook(lambda _, args: lengths.append(tuple(args[0].shape[:2])))
    for prompt in PROMPTS:
        encode(clip, prompt)
    handle.remove()
    tokenizer = SentencePieceTokenizer(tokenizer_model)
    assert lengths == [(1, len(tokenizer.encode(prompt)) + 1) for prompt in PROMPTS]


def test_prompt_weights_change_only_the_weighted_words(clip):
    plain = encode(clip, "a red star, blue background")
    same = encode(clip, "a (red:1.0) star, blue background")
    heavy = encode(clip, "a (red:1.5) star, blue background")
    assert torch.equal(plain, same)
    # The host encodes a weighted prompt beside an empty one, and a batch of two rounds a little differently.
    changed = (plain - heavy).abs().amax(dim=-1)[0] > 1e-4
    assert 1 <= changed.sum() <= 2  # "red", which may be two pieces


def test_a_long_prompt_is_cut_and_the_lost_words_are_told(text, clip):
    prompt = "a small red star on the left, blue background"
    tokens, count, lost = text.cut(clip, prompt, 6)
    pairs = tokens["t5xxl"][0]
    assert len(pairs) == 6 and pairs[-1][0] == text.END
    kept = clip.tokenizer.t5xxl.tokenizer.decode([token for token, _ in pairs])
    assert lost and f"{kept} {lost}" == prompt
    assert count == len(clip.tokenize(prompt)["t5xxl"][0])
    assert text.cut(clip, prompt, count) == (clip.tokenize(prompt), count, "")


def test_an_encoder_without_a_tokenizer_gets_the_hosts_vocabulary(text, reference, tmp_path):
    config = T5Config(vocab_size=32128, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    torch.manual_seed(0)
    save_file({name: torch.randn(shape) * 0.05 for name, shape in config.shapes().items()}, tmp_path / "t5.safetensors")
    clip = text.load_clip(str(tmp_path / "t5.safetensors"))
    assert [token for token, _ in clip.tokenize("")["t5xxl"][0]] == [1]
    assert [token for token, _ in clip.tokenize("a cat")["t5xxl"][0]] == [3, 9, 1712, 1]
    assert encode(clip, "a cat").shape == (1, 4, 32)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp8_e4m3fn"])
def test_weights_are_kept_in_the_chosen_type(text, t5_file, clip, dtype):
    chosen = text.load_clip(str(t5_file), dtype)
    weight = chosen.cond_stage_model.t5xxl.transformer.encoder.block[0].layer[0].SelfAttention.q.weight
    assert weight.dtype == text.DTYPES[dtype]
    a, b = encode(clip, PROMPTS[0]), encode(chosen, PROMPTS[0])
    limit = {"fp32": 1e-6, "bf16": 0.05, "fp16": 0.01, "fp8_e4m3fn": 0.5}[dtype]
    assert ((a - b).pow(2).mean() / a.pow(2).mean()).sqrt() <= limit


def test_a_clip_that_is_no_t5_is_refused(text):
    class TwoEncoders:
        def tokenize(self, prompt):
            return {"l": [[(1, 1.0)]], "g": [[(1, 1.0)]]}

    with pytest.raises(ValueError, match="This CLIP holds g, l, not a single T5"):
        text.cut(TwoEncoders(), "a cat", 300)
