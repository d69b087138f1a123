"""``python -m pixart.text PROMPTS.txt --t5 FILE --out FOLDER``: many prompts to caption files, T5 loaded once."""

from __future__ import annotations

import argparse
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..command import DTYPES, carry_out
from ..plain_text import read_text
from ..terminal import leave
from .captions import MAX_PROMPT, MAX_TOKENS, Caption, load_caption, save_caption
from .cleaning import clean_prompt
from .tokens import SIGMA_TOKENS, Tokenizer, encode_prompt

MAX_BYTES = 64 * 2**20  # of a file of prompts
SLUG = 48
"""Most characters of a prompt in its file's name."""


@dataclass(frozen=True)
class Job:
    """A prompt and where its caption goes; text: the prompt as T5 gets it; tokens: of the caption."""

    text: str
    path: Path
    tokens: int


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m pixart.text",
        description="Encode the prompts of a text file with T5, into caption files for the node PixArt Load Caption "
        "and for python -m pixart --caption. Every line is a prompt; empty lines are left out.",
    )
    p.add_argument("prompts", type=Path, metavar="PROMPTS.txt", help="a text file, one prompt a line")
    p.add_argument("--t5", type=Path, required=True, metavar="FILE", help="a T5 v1.1 encoder, file or folder")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the captions")
    p.add_argument("--tokenizer", type=Path, metavar="FILE", help="spiece.model, for a T5 file that has none inside")
    p.add_argument("--max-tokens", type=int, default=SIGMA_TOKENS, help="300 for Σ, 120 for α (default: %(default)s)")
    p.add_argument("--clean-caption", action="store_true", help="clean the prompts as PixArt-α's training data was")
    p.add_argument("--empty-prompt", action="store_true", help="write 00000-empty too, for the negative side")
    p.add_argument("--dtype", choices=DTYPES, help="of the files (default: that of T5)")
    p.add_argument("--t5-dtype", choices=DTYPES, default="fp32", help="T5 computes in it (default: %(default)s)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, mps … (default: %(default)s)")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="prompts at once (default: %(default)s)")
    p.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave out what is there already, of the same prompt, T5, length and type; else all are rewritten",
    )
    return p


def read_prompts(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, prompt) for every line that is not empty.

    Raises ValueError when the file is no text, has no prompt, or one that is too long to be one.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, more than {MAX_BYTES}: split it.")
    prompts = [(number, line) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one on every line.")
    for number, line in prompts:
        if len(line) > MAX_PROMPT:
            raise ValueError(f"{path}: line {number} has {len(line)} characters, more than {MAX_PROMPT}.")
    return prompts


def file_name(number: int, prompt: str) -> str:
    """A name that every file system takes, and that sorts and tells the prompt: ``00012-a-red-star.safetensors``."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub("[^a-z0-9]+", "-", plain)[: SLUG + 1].strip("-")[:SLUG].strip("-")
    return f"{number:05d}-{slug or ('prompt' if prompt else 'empty')}.safetensors"


def plan(args: argparse.Namespace, tokenizer: Tokenizer) -> list[Job]:
    """A job for every prompt, those of equal length side by side."""
    prompts = read_prompts(args.prompts)
    if args.empty_prompt:
        prompts.insert(0, (0, ""))
    jobs = []
    for number, prompt in prompts:
        text = clean_prompt(prompt) if args.clean_caption else prompt
        tokens = len(encode_prompt(tokenizer, text, args.max_tokens).ids)
        jobs.append(Job(text, args.out / file_name(number, prompt), tokens))
    return sorted(jobs, key=lambda job: job.tokens)


def encode_file(args: argparse.Namespace) -> tuple[int, int]:
    """Write the captions; (number written, number left out). Raises ValueError for options, prompts or a T5 that will
    not do."""
    import torch
    from tqdm import tqdm

    from .batch import encode_prompts, tokenizer_for
    from .encoder import load_transformers_t5, open_t5
    from .provenance import mark_t5

    if not 1 <= args.max_tokens <= MAX_TOKENS:
        raise ValueError(f"--max-tokens is {args.max_tokens}; 1 to {MAX_TOKENS} are possible.")
    if args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; it must be at least 1.")
    file = open_t5(args.t5)
    tokenizer, mark = tokenizer_for(file, args.tokenizer), mark_t5(file)
    compute = getattr(torch, DTYPES[args.t5_dtype])
    stored = getattr(torch, DTYPES[args.dtype]) if args.dtype else compute

    def there(job: Job) -> bool:
        try:
            old = load_caption(job.path)
        except (ValueError, FileNotFoundError):
            return False
        found = (old.prompt, old.t5, old.tokens, old.embedding.dtype)
        return found == (job.text, mark, job.tokens, stored)

    jobs = plan(args, tokenizer)
    todo = [job for job in jobs if not (args.skip_existing and there(job))]
    args.out.mkdir(parents=True, exist_ok=True)
    if todo:
        t5 = load_transformers_t5(file, compute, args.device)
        with tqdm(total=len(todo), desc="Encoding", unit="prompt", disable=None) as bar:
            for start in range(0, len(todo), args.batch):
                part = todo[start : start + args.batch]
                encoded = encode_prompts(t5, tokenizer, [job.text for job in part], args.max_tokens)
                for job, embedding in zip(part, encoded.embeddings, strict=True):
                    save_caption(Caption(embedding[: job.tokens], prompt=job.text, t5=mark), job.path, stored)
                bar.update(len(part))
    return len(todo), len(jobs) - len(todo)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all captions are there, 2 and one line on standard error when they cannot be."""
    logging.basicConfig(format="%(message)s")
    args = parser().parse_args(argv)

    def work() -> str:
        written, left = encode_file(args)
        rest = f", {left} were there already" if left else ""
        return f"{args.out.resolve()}: {written} captions written{rest}"

    return carry_out(work)


if __name__ == "__main__":
    leave(main)
