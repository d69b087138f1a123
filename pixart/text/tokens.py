"""The token budget: how much of a prompt the model sees, and which words it never gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol, runtime_checkable

EOS = 1
ALPHA_TOKENS = 120
SIGMA_TOKENS = 300

MAX_BYTES = 32 * 2**20
"""Of a tokenizer's file; T5's has 0.8 million as a sentencepiece model and 2.4 as JSON."""


MAX_PIECE = 1000
"""Bytes of a piece with its score; T5's longest has 64."""


class Tokenizer(Protocol):
    """What the budget needs of a tokenizer. ``encode`` may or may not append the end-of-sentence id."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@runtime_checkable
class OffsetTokenizer(Tokenizer, Protocol):
    """A tokenizer that also knows where in the text each token ends, so that lost text can be shown as written."""

    def ends(self, text: str) -> list[int]:
        """For each id of ``encode(text)`` the index of the character after its last; without end of sentence."""
        ...


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as ids within a budget.

    ids: with end of sentence as the last; kept_text + lost_text: the prompt;
    total_tokens: what the whole prompt takes, end of sentence included.
    """

    ids: tuple[int, ...]
    kept_text: str
    lost_text: str
    total_tokens: int

    @property
    def cut(self) -> bool:
        return self.total_tokens > len(self.ids)


def encode_prompt(tokenizer: Tokenizer, text: str, max_tokens: int, eos: int = EOS) -> TokenizedPrompt:
    """Tokenise ``text`` and cut it to ``max_tokens`` ids, the last of which is always end of sentence.

    max_tokens: 300 for PixArt-Σ, 120 for PixArt-α. An ``OffsetTokenizer`` gives kept and lost text exactly as
    written; from any other they are what it decodes, where spacing and unknown characters may differ.
    Raises ValueError when ``max_tokens`` leaves no room even for the end of sentence.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, but even an empty caption takes 1, its end mark.")
    ids = list(tokenizer.encode(text))
    if ids and ids[-1] == eos:
        ids.pop()
    kept = ids[: max_tokens - 1]
    if len(kept) == len(ids):
        return TokenizedPrompt((*ids, eos), text, "", len(ids) + 1)
    kept_text, lost_text = _split_text(tokenizer, text, ids, len(kept))
    return TokenizedPrompt((*kept, eos), kept_text, lost_text, len(ids) + 1)


def warning_for(cut: TokenizedPrompt) -> str:
    """One line that shows what the model will not see; empty when nothing was lost."""
    if not cut.cut:
        return ""
    lost = " ".join(cut.lost_text.split())
    return (
        f"The prompt takes {cut.total_tokens} tokens and was cut to {len(cut.ids)}; "
        f"the model does not see: {lost!r}. Shorten it, or raise max_tokens if the checkpoint knows more."
    )


def _split_text(tokenizer: Tokenizer, text: str, ids: Sequence[int], kept: int) -> tuple[str, str]:
    if isinstance(tokenizer, OffsetTokenizer):
        end = tokenizer.ends(text)[kept - 1] if kept else 0
        return text[:end], text[end:]
    return tokenizer.decode(list(ids[:kept])), tokenizer.decode(list(ids[kept:]))


class SentencePieceTokenizer:
    """A sentencepiece model as T5 uses it: no beginning mark; the end mark is the budget's to add.

    model: a serialised model (the content of a ``spiece.model`` file), or a SentencePieceProcessor.
    Raises ValueError when the bytes are no sentencepiece model.
    """

    def __init__(self, model):
        import sentencepiece

        if isinstance(model, sentencepiece.SentencePieceProcessor):
            self.processor = model
            return
        if not len(model):  # which the library takes for no model at all, and fails when it is used
            raise ValueError("The sentencepiece model is empty. Download it again.")
        check_size(len(model))
        check_pieces(bytes(model))
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=bytes(model))
        except RuntimeError as error:
            raise ValueError(f"These {len(model)} bytes are no sentencepiece model ({error}).") from error

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text, add_bos=False, add_eos=False)

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)

    def vocabulary(self) -> dict[str, int]:
        return {self.processor.id_to_piece(i): i for i in range(self.processor.get_piece_size())}

    def ends(self, text: str) -> list[int]:
        pieces = self.processor.encode(text, out_type=str, add_bos=False, add_eos=False)
        _, places = self.processor.normalize(text, with_offsets=True)  # of each normalised character, and the end
        return [places[length] for length in accumulate(map(len, pieces))]


class JsonTokenizer:
    """A ``tokenizer.json`` of the tokenizers library, or a fast Hugging Face tokenizer that wraps one.

    Works on a copy without truncation and padding, which such files may carry and such objects remember from
    their last call. Raises ValueError when the bytes cannot be read as one, or the object has no such backend.
    """

    def __init__(self, source):
        import tokenizers

        backend = getattr(source, "backend_tokenizer", source)
        if isinstance(backend, tokenizers.Tokenizer):
            content = backend.to_str().encode()
        elif isinstance(source, (bytes, bytearray)):
            content = bytes(source)
        else:
            raise ValueError(
                f"{type(source).__name__} has no tokenizers backend; wrap a fast tokenizer, or use its "
                "sentencepiece model with SentencePieceTokenizer."
            )
        check_size(len(content))
        try:
            self.backend = tokenizers.Tokenizer.from_buffer(content)
        except ValueError as error:
            raise ValueError(f"These {len(content)} bytes are no tokenizer.json ({error}).") from error
        self.backend.no_truncation()
        self.backend.no_padding()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def vocabulary(self) -> dict[str, int]:
        return self.backend.get_vocab()

    def ends(self, text: str) -> list[int]:
        return [end for _, end in self.backend.encode(text, add_special_tokens=False).offsets]


def check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"A tokenizer of {size} bytes is no T5's; at most {MAX_BYTES} are read.")


def check_pieces(proto: bytes) -> None:
    """Raises ValueError for a sentencepiece model with a piece of more than ``MAX_PIECE`` bytes.

    Some releases of the library overflow the stack on one, which ends the process. Walks the message's fields, of which
    number 1 are the pieces; what is no message is for the library to refuse.
    """
    place = 0
    while place < len(proto):
        tag, place = read_varint(proto, place)
        if tag & 7 == 2:
            length, place = read_varint(proto, place)
            if tag >> 3 == 1 and length > MAX_PIECE:
                raise ValueError(f"The sentencepiece model has a piece of {length} bytes, more than {MAX_PIECE}.")
            place += length
        elif tag & 7 == 0:
            _, place = read_varint(proto, place)
        elif tag & 7 in (1, 5):
            place += 8 if tag & 7 == 1 else 4
        else:
            return


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """A protobuf's number of seven bits a byte, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place] if place < len(data) else 0
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            break
    return value, place


def read_bytes(file: Path) -> bytes:
    """The content of a tokenizer's file; its size is looked at before."""
    check_size(file.stat().st_size)
    return file.read_bytes()


def read_tokenizer(folder: str | Path) -> SentencePieceTokenizer | JsonTokenizer:
    """The tokenizer of a Hugging Face folder: ``spiece.model``, else ``tokenizer.json``, there or in ``tokenizer/``.

    Raises ValueError when the folder has neither.
    """
    folder = Path(folder)
    for place in (folder, folder / "tokenizer"):
        for name, kind in (("spiece.model", SentencePieceTokenizer), ("tokenizer.json", JsonTokenizer)):
            if (place / name).is_file():
                return kind(read_bytes(place / name))
    raise ValueError(
        f"{folder} has neither spiece.model nor tokenizer.json, nor a tokenizer folder that has; "
        "download the tokenizer files that belong to this encoder."
    )
