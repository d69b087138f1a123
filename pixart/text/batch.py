"""Many prompts through T5 at once, with no host."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .cleaning import clean_prompt
from .tokens import JsonTokenizer, SentencePieceTokenizer, Tokenizer, encode_prompt, read_tokenizer, warning_for

if TYPE_CHECKING:
    from transformers import T5EncoderModel

    from .encoder import T5File

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captions:
    """Encoded prompts.

    embeddings: (B, L, C), zero past each caption's end; mask: (B, L), 1 at real tokens;
    tokens: real tokens of each prompt; lost: the end of each prompt that did not fit, "" where all did.
    """

    embeddings: torch.Tensor
    mask: torch.Tensor
    tokens: tuple[int, ...]
    lost: tuple[str, ...]

    def __len__(self) -> int:
        return self.embeddings.shape[0]


@torch.no_grad()
def encode_prompts(
    t5: T5EncoderModel, tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int, clean: bool = False
) -> Captions:
    """Run T5 over the prompts, each at its own length: no padding ever enters it, equal lengths share a forward, and
    equal prompts a row of it.

    max_tokens: the end token included. clean: apply the training data's caption cleaning first.
    Logs a warning for each prompt that was cut. Raises ValueError as ``encode_prompt`` and ``clean_prompt`` do.
    """
    texts = [clean_prompt(prompt) if clean else prompt for prompt in prompts]
    encoded = [encode_prompt(tokenizer, text, max_tokens) for text in texts]
    rows = [list(e.ids) for e in encoded]
    lengths = [len(row) for row in rows]
    shape = (len(rows), max(lengths))
    embeddings = torch.zeros(*shape, t5.config.d_model, device=t5.device, dtype=t5.dtype)
    mask = torch.zeros(shape, device=t5.device, dtype=torch.int64)
    for length in sorted(set(lengths)):
        group = [index for index, row in enumerate(rows) if len(row) == length]
        different = list(dict.fromkeys(tuple(rows[index]) for index in group))
        hidden = t5(input_ids=torch.tensor(different, device=t5.device)).last_hidden_state  # (different, length, C)
        embeddings[group, :length] = hidden[[different.index(tuple(rows[index])) for index in group]].to(embeddings)
        mask[group, :length] = 1
    for warning in filter(None, map(warning_for, encoded)):
        log.warning("%s", warning)
    return Captions(embeddings, mask, tuple(lengths), tuple(e.lost_text for e in encoded))


def tokenizer_for(file: T5File, path: str | Path | None = None) -> Tokenizer:
    """The tokenizer that came with an encoder, or that at ``path``: spiece.model, tokenizer.json or their folder.

    Raises ValueError when there is none.
    """
    if path is None:
        return file.make_tokenizer()
    path = Path(path)
    if path.is_dir():
        return read_tokenizer(path)
    if not path.is_file():
        raise ValueError(f"No tokenizer at {path}: the tokenizer setting must name a file or a folder.")
    return (JsonTokenizer if path.suffix == ".json" else SentencePieceTokenizer)(path.read_bytes())
