"""Features from model files: T5 and the autoencoder without a host, each in memory only while it is needed."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint import Checkpoint
from ..files import written
from ..pipeline import Autoencoder, PixArtPipeline, load_autoencoder
from ..text.batch import encode_prompts, tokenizer_for
from ..text.encoder import load_transformers_t5, open_t5
from ..text.provenance import check_t5, expected_t5, mark_t5, provenance
from . import features as cache
from .features import EncodeText, Features
from .pictures import SUFFIXES, Example
from .writing import digest

log = logging.getLogger(__name__)

FEATURES = "features.safetensors"


@dataclass(frozen=True)
class Sources:
    """Where a run's models lie, and how captions are read."""

    checkpoint: Checkpoint
    t5: Path
    vae: Path
    tokenizer: Path | None = None
    clean: bool = False
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def text_encoder(self) -> EncodeText:
        """T5 in memory, for as long as what is returned lives.

        Raises ValueError when it is not the checkpoint's.
        """
        config = self.checkpoint.config
        file = open_t5(self.t5)
        if file.config.d_model != config.caption_channels:
            raise ValueError(
                f"{self.t5} is {file.config.d_model} wide, but {self.checkpoint.path.name} was trained on captions "
                f"{config.caption_channels} wide. Choose the T5 that belongs to it."
            )
        made_with = expected_t5(self.checkpoint.metadata, self.checkpoint.path)
        check_t5(made_with, provenance(None, 0, mark_t5(file)), self.checkpoint.path.name)
        tokenizer = tokenizer_for(file, self.tokenizer)
        t5 = load_transformers_t5(file, dtype=self.dtype, device=self.device)

        def encode(text: str) -> torch.Tensor:
            return encode_prompts(t5, tokenizer, [text], config.max_caption_tokens, self.clean).embeddings[0]

        return encode

    def autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.vae, self.checkpoint.config.latent_scale, torch.float32, self.device)

    def identity(self, examples: Sequence[Example], previews: Sequence[str], resolution: int) -> str:
        """Equal only where the same features would be computed."""
        told = [open_t5(self.t5).identity, path_digest(self.vae), self.checkpoint.config, self.clean, self.dtype]
        told += [resolution, list(previews), [example.digest() for example in examples]]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of all files in a folder. Raises ValueError where there is neither."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digests = []
    for file in files:
        if not file.is_file():
            raise ValueError(f"No autoencoder at {file}: the vae setting must name a file or a diffusers folder.")
        with file.open("rb") as opened:
            digests.append(digest(opened))
    return " ".join(digests)


def prepare(
    sources: Sources, examples: Sequence[Example], previews: Sequence[str], resolution: int, out: Path, accelerator
) -> Features:
    """The features, from ``out`` where they are cached there; else the first process computes and keeps them.

    No T5 is in memory when this returns, and none at all is loaded where the cache serves. Raises ValueError where the
    models do not belong together, or the processes do not share ``out``.
    """
    identity = sources.identity(examples, previews, resolution)
    path = out / FEATURES
    if accelerator.is_main_process and cache.load(path, identity, examples, previews) is None:
        log.info("encoding %d captions and %d pictures", len(cache.texts_of(examples, previews)), len(examples))
        with torch.no_grad():
            autoencoder, scale = sources.autoencoder(), sources.checkpoint.config.latent_scale

            def encode_picture(picture: torch.Tensor) -> torch.Tensor:
                return autoencoder.encode(picture[None].to(sources.device))[0] * scale

            computed = cache.compute(examples, sources.text_encoder, encode_picture, resolution, previews)
        cache.save(computed, path, identity)
        del autoencoder, encode_picture, computed
        gc.collect()
    accelerator.wait_for_everyone()
    features = cache.load(path, identity, examples, previews)
    if features is None:
        raise ValueError(f"{path} is not what the first process wrote: every process needs the same output folder.")
    return features


def draw_class_pictures(
    sources: Sources, folder: Path, captions: Sequence[str], count: int, seed: int, batch: int = 1
) -> int:
    """Fill ``folder`` up to ``count`` class pictures, drawn by the model itself before it is trained.

    captions: taken in turn; each picture gets its own in a ``.txt``. batch: drawn at once, for speed.
    Returns how many were drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = [file.stem for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]
    names = [f"class-{number:04}" for number in range(count)]
    wanted = [number for number, name in enumerate(names) if name not in present][: max(0, count - len(present))]
    if not wanted:
        return 0
    pipeline = PixArtPipeline.load(
        sources.checkpoint.path,
        sources.t5,
        sources.vae,
        device=sources.device,
        dtype=sources.dtype,
        tokenizer=sources.tokenizer,
    )
    for start in range(0, len(wanted), batch):
        numbers = wanted[start : start + batch]
        some = [captions[number % len(captions)] for number in numbers]
        pictures = pipeline(some, seed=seed + numbers[0], clean=sources.clean)
        for number, caption, picture in zip(numbers, some, pictures, strict=True):
            (folder / f"{names[number]}.txt").write_text(caption, encoding="utf-8")
            with written(folder / f"{names[number]}.png") as partial:  # last, so that a picture that is there is whole
                picture.save(partial, format="PNG")
    del pipeline
    gc.collect()
    return len(wanted)
