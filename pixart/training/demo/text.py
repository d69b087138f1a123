"""Trains the demo's tokenizer and its T5 encoder.

The encoder learns to say, at every token, everything that the sentence tells about the picture: the shape,
its colour, size and place, and the background. It is then frozen, and the diffusion model finds each fact
wherever in the caption it looks.
"""

from __future__ import annotations

import io
import random
import string
from pathlib import Path

import sentencepiece
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from .captions import ATTRIBUTES, Scene, forget, paraphrase, random_scene
from .run import Resumable, seeded

PAD, EOS, UNK = 0, 1, 2


def train_tokenizer(seed: int) -> bytes:
    """A sentencepiece model that knows the captions' words and falls back to letters; case does not matter."""
    rng = random.Random(seed)
    sentences = [described(rng)[1] for _ in range(6000)]
    sentences += ["".join(rng.choices(string.ascii_lowercase + " ", k=24)) for _ in range(300)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=out,
        vocab_size=160,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        required_chars=string.ascii_lowercase + string.digits + ",.-'!?:;()",
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNK,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def described(rng: random.Random) -> tuple[Scene, str]:
    """What a caption tells, and the caption: canonical, reworded, shortened, or empty."""
    scene = random_scene(rng)
    draw = rng.random()
    if draw < 0.3:
        return scene, scene.caption()
    if draw < 0.35:
        return Scene(), ""
    if draw < 0.45 and (told := forget(scene, rng, keep=0.5)).shape:
        return told, told.caption()
    told = scene if draw < 0.6 else forget(scene, rng, keep=0.6)
    return told, paraphrase(told, rng)


def targets(scene: Scene) -> list[int]:
    """Class of each attribute: 0 for "not said", else 1 + its index."""
    return [
        0 if getattr(scene, name) is None else 1 + values.index(getattr(scene, name))
        for name, values in ATTRIBUTES.items()
    ]


def tokenize(tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (B, L) each: pieces, end of sentence, padding."""
    rows = [ids + [EOS] for ids in tokenizer.encode(texts)]
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask


def encoder_config(vocab_size: int) -> T5Config:
    """T5 v1.1, small: 128 wide, 3 layers, 4 heads of 32."""
    return T5Config(
        vocab_size=vocab_size,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
    )


class Describer(nn.Module):
    """The encoder, and one linear classifier per attribute on every token (dropped after training)."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.encoder = T5EncoderModel(encoder_config(vocab_size))
        self.heads = nn.ModuleList(
            nn.Linear(self.encoder.config.d_model, 1 + len(v)) for v in ATTRIBUTES.values()
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return [head(hidden) for head in self.heads]  # (B, L, classes) each


class TextTask:
    def __init__(self, tokenizer: bytes, seed: int, steps: int, batch: int = 128):
        self.rng, self.batch = seeded(seed), batch
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
        self.model = Describer(self.tokenizer.vocab_size())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1
        )

    def step(self, index: int) -> dict[str, float]:
        scenes, texts = zip(*(described(self.rng) for _ in range(self.batch)), strict=True)
        ids, mask = tokenize(self.tokenizer, list(texts))
        wanted = torch.tensor([targets(scene) for scene in scenes])
        real = mask.bool()
        loss, wrong = 0.0, 0.0
        for i, logits in enumerate(self.model(ids, mask)):
            label = wanted[:, i, None].expand(-1, ids.shape[1])[real]
            loss = loss + nn.functional.cross_entropy(logits[real], label)
            wrong = wrong + (logits[real].argmax(-1) != label).float().mean().item()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.item(), "wrong": wrong / len(ATTRIBUTES)}


def train(out: Path, seed: int, steps: int) -> None:
    """Train tokenizer and encoder; writes tokenizer.model and the state file of the encoder to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    model_file = out / "tokenizer.model"
    if not model_file.exists():
        model_file.write_bytes(train_tokenizer(seed))
    task = TextTask(model_file.read_bytes(), seed, steps)
    Resumable(task, out / "text.state.pt").run(steps)


def load(out: Path) -> tuple[sentencepiece.SentencePieceProcessor, T5EncoderModel]:
    """The trained tokenizer and encoder."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=(out / "tokenizer.model").read_bytes())
    encoder = T5EncoderModel(encoder_config(tokenizer.vocab_size()))
    state = torch.load(out / "text.state.pt", weights_only=True)["model"]
    part = "encoder."
    encoder.load_state_dict({name.removeprefix(part): t for name, t in state.items() if name.startswith(part)})
    return tokenizer, encoder.eval().requires_grad_(False)
