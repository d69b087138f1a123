"""The token budget: ids, the cut, and exactly the text that is lost."""

import io
import itertools
import json
from pathlib import Path

import pytest
import sentencepiece

from pixart.text.tokens import JsonTokenizer, SentencePieceTokenizer, encode_prompt, read_tokenizer, warning_for

CASES = json.loads((Path(__file__).parent.parent / "data" / "t5_token_cases.json").read_text(encoding="utf-8"))
PROMPT = "  A  small   RED star ½ 日本 ﬁsh on the left,\n blue background"


@pytest.fixture(scope="session")
def proto() -> bytes:
    """A real sentencepiece model with T5's special ids and a vocabulary of words."""
    words = itertools.product(("small", "large"), ("red", "blue", "white"), ("star", "circle"), ("left", "top"))
    sentences = [f"a {a} {b} {c} on the {d}, {b} background" for a, b, c, d in words]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_type="word",
        model_writer=out, vocab_size=30, hard_vocab_limit=False, normalization_rule_name="nmt_nfkc_cf",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="session")
def t5_folder(host_path) -> Path:
    """The T5 vocabulary that ComfyUI ships, which is not copied here; without a ComfyUI these tests are skipped."""
    return host_path / "comfy" / "text_encoders" / "t5_tokenizer"


@pytest.mark.parametrize("text", CASES, ids=lambda text: text[:20] or "empty")
def test_ids_of_the_t5_vocabulary(text, t5_folder):
    prompt = encode_prompt(read_tokenizer(t5_folder), text, 300)
    assert list(prompt.ids) == CASES[text]
    assert (prompt.kept_text, prompt.lost_text, prompt.total_tokens) == (text, "", len(CASES[text]))


def test_the_cut_is_that_of_hugging_face_truncation(t5_folder):
    transformers = pytest.importorskip("transformers")
    hugging_face = transformers.T5TokenizerFast.from_pretrained(str(t5_folder))
    text = "a red cat sits by the window " * 60
    for budget in (2, 8, 120, 300):
        # The tokenizer remembers the truncation it was last called with, and must not lend it to the budget.
        truncated = hugging_face(text, max_length=budget, truncation=True, padding="max_length").input_ids
        ours = encode_prompt(JsonTokenizer(hugging_face), text, budget)
        assert list(ours.ids) == truncated
        assert (len(ours.ids), ours.ids[-1], ours.total_tokens) == (budget, 1, 541)
        assert hugging_face.backend_tokenizer.truncation["max_length"] == budget


def test_alphas_120_and_sigmas_300_tokens_lose_exact_text(t5_folder):
    tokenizer = read_tokenizer(t5_folder)
    text = " ".join(["cat"] * 400)  # one token a word, and the end mark
    alpha, sigma = encode_prompt(tokenizer, text, 120), encode_prompt(tokenizer, text, 300)
    assert (alpha.total_tokens, sigma.total_tokens) == (401, 401)
    assert alpha.kept_text == " ".join(["cat"] * 119) and alpha.lost_text == " cat" * 281
    assert sigma.kept_text == " ".join(["cat"] * 299) and sigma.lost_text == " cat" * 101


@pytest.mark.parametrize("budget", range(1, 24))
def test_kept_and_lost_text_are_the_prompt_as_written(proto, budget):
    prompt = encode_prompt(SentencePieceTokenizer(proto), PROMPT, budget)
    assert prompt.kept_text + prompt.lost_text == PROMPT
    assert len(prompt.ids) == min(budget, prompt.total_tokens) and prompt.ids[-1] == 1


def test_the_cut_falls_where_the_token_ends(t5_folder):
    prompt = encode_prompt(read_tokenizer(t5_folder), PROMPT, 8)
    assert prompt.ids == (71, 422, 3, 13729, 2213, 209, 2, 1)
    assert prompt.kept_text == "  A  small   RED star ½"
    assert prompt.lost_text == " 日本 ﬁsh on the left,\n blue background"
    assert prompt.total_tokens == 18


def test_a_sentencepiece_cut_falls_where_the_token_ends(proto):
    tokenizer = SentencePieceTokenizer(proto)
    assert tokenizer.processor.encode("A  small star", out_type=str) == ["▁a", "▁small", "▁star"]
    prompt = encode_prompt(tokenizer, "A  small star", 3)
    assert (prompt.kept_text, prompt.lost_text, prompt.total_tokens) == ("A  small", " star", 4)


def test_an_end_mark_from_the_tokenizer_is_not_doubled(proto):
    class WithEnd(SentencePieceTokenizer):
        def encode(self, text):
            return [*super().encode(text), 1]

    plain = encode_prompt(SentencePieceTokenizer(proto), "a red star", 300)
    assert encode_prompt(WithEnd(proto), "a red star", 300) == plain
    assert plain.ids.count(1) == 1


def test_a_tokenizer_without_offsets_shows_what_it_decodes(proto):
    class Plain:
        def __init__(self, inner):
            self.encode, self.decode = inner.encode, inner.decode

    prompt = encode_prompt(Plain(SentencePieceTokenizer(proto)), "A  small   RED star", 3)
    assert (prompt.kept_text, prompt.lost_text) == ("a small", "red star")


def test_nothing_is_cut_at_exactly_the_budget(proto):
    tokenizer = SentencePieceTokenizer(proto)
    whole = encode_prompt(tokenizer, "a red star", 300)
    exact = encode_prompt(tokenizer, "a red star", whole.total_tokens)
    assert exact == whole and not exact.cut and warning_for(exact) == ""


def test_the_empty_prompt_is_one_end_mark(proto):
    assert encode_prompt(SentencePieceTokenizer(proto), "", 300).ids == (1,)


def test_the_warning_is_one_line_and_shows_the_lost_text(proto):
    warning = warning_for(encode_prompt(SentencePieceTokenizer(proto), "a small star on\nthe left, blue background", 4))
    assert "\n" not in warning
    assert "takes 9 tokens and was cut to 4" in warning
    assert "'on the left, blue background'" in warning


def test_a_budget_of_one_keeps_the_end_mark_alone(proto):
    prompt = encode_prompt(SentencePieceTokenizer(proto), "a red star", 1)
    assert (prompt.ids, prompt.kept_text, prompt.lost_text, prompt.total_tokens) == ((1,), "", "a red star", 4)


def test_a_budget_of_nothing_is_refused(proto):
    with pytest.raises(ValueError, match="max_tokens is 0, but even an empty caption takes 1"):
        encode_prompt(SentencePieceTokenizer(proto), "a", 0)


def test_a_folder_gives_its_sentencepiece_model_or_its_json(proto, t5_folder, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(proto)
    assert isinstance(read_tokenizer(tmp_path), SentencePieceTokenizer)
    assert isinstance(read_tokenizer(t5_folder), JsonTokenizer)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="neither spiece.model nor tokenizer.json"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", [SentencePieceTokenizer, JsonTokenizer])
def test_bytes_that_are_no_tokenizer_are_refused(kind):
    with pytest.raises(ValueError, match="These 15 bytes are no"):
        kind(b"<html>404</html"[:15])
