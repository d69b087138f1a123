"""Writes the trained demo as the three model files that people load, and the figures of its training.

    python -m pixart.training.demo.export --out demo-run --demo demo

The same states give the same bytes, so that a file can be checked against the recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from pathlib import Path

import torch
from safetensors.torch import save

from ...checkpoint import config_metadata
from ...config import PixArtConfig
from ...embeddings import position_grid
from ...text.encoder import open_t5
from ...text.provenance import CHECKPOINT_PREFIX, mark_t5
from . import autoencoder
from .diffusion import CONFIG, average_of
from .latents import CONTRAST

log = logging.getLogger(__name__)

TRANSFORMER = "pixart-demo-sigma.safetensors"
ENCODER = "pixart-demo-t5.safetensors"
AUTOENCODER = "pixart-demo-vae.safetensors"
FIGURES = "training.json"

LIMIT = 16 * 2**20
"""Bytes that the three files may take together."""

STAGES = ("text", "autoencoder-encoder", "autoencoder-decoder", "autoencoder-sharpen", "diffusion", "outlines", "polish", "practice")

LICENSE = "Apache-2.0"

Tensors = dict[str, torch.Tensor]


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a safetensors file whose bytes depend on its content alone.

    The library orders metadata by chance, so the header is written again with its metadata sorted.
    """
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    packed = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    packed += b" " * (-len(packed) % 8)  # the format wants the tensors to start at a multiple of 8
    partial = path.with_suffix(".partial")
    partial.write_bytes(len(packed).to_bytes(8, "little") + packed + data[8 + length :])
    os.replace(partial, path)


def half(tensors: Tensors) -> Tensors:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def read_state(out: Path, stage: str) -> dict:
    """The state that a stage of the recipe left in ``out``.

    Raises ValueError when the stage has not been run.
    """
    path = out / f"{stage}.state.pt"
    if not path.exists():
        run = stage.removeprefix("autoencoder-")
        raise ValueError(f"{path} is missing: run `python -m pixart.training.demo {run} --out {out}` first.")
    return torch.load(path, weights_only=True, map_location="cpu")


def transformer_tensors(out: Path, config: PixArtConfig = CONFIG) -> Tensors:
    """The average model under PixArt's original names, with the position grid that released files carry."""
    tensors = average_of(read_state(out, "practice"))
    grid = position_grid(
        config.hidden_size, config.base_size, config.base_size, config.base_size, config.pe_interpolation
    )
    return half(tensors | {"pos_embed": grid[None]})  # (1, base_size², D)


def transformer_metadata(config: PixArtConfig = CONFIG) -> dict[str, str]:
    """What the weights alone do not say, and who made them."""
    return {
        **config_metadata(config),
        "license": LICENSE,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": "PixArt demo",
        "modelspec.description": "A small PixArt-Sigma that draws one shape on a plain background.",
        "modelspec.architecture": f"pixart-{config.family}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": f"{config.native_pixels}x{config.native_pixels}",
        "modelspec.license": LICENSE,
    }


def encoder_tensors(out: Path) -> Tensors:
    """The T5 encoder under Hugging Face's names, with its sentencepiece model as bytes.

    The recipe's classifiers served training only, and ``embed_tokens`` is ``shared`` a second time.
    """
    prefix = "encoder."
    tensors = {
        name.removeprefix(prefix): value
        for name, value in read_state(out, "text")["model"].items()
        if name.startswith(prefix) and not name.endswith("embed_tokens.weight")
    }
    tokenizer = bytearray((out / "tokenizer.model").read_bytes())
    return half(tensors) | {"spiece_model": torch.frombuffer(tokenizer, dtype=torch.uint8)}


def autoencoder_tensors(out: Path, config: PixArtConfig = CONFIG) -> Tensors:
    """Both halves under TAESD's names.

    ``vae_scale`` makes up for the latent scale that a host multiplies by, so that the transformer works on
    ``CONTRAST`` times the autoencoder's own latents.
    """
    for part in ("encoder", "decoder", "sharpen"):
        read_state(out, f"autoencoder-{part}")
    tensors = half(autoencoder.to_taesd(autoencoder.assemble(out)))
    return tensors | {"vae_scale": torch.tensor(config.latent_scale / CONTRAST), "vae_shift": torch.tensor(0.0)}


def stage_figures(out: Path, stage: str) -> dict:
    """Steps, seconds and the last line of a stage's log."""
    state = read_state(out, stage)
    log_path = out / f"{stage}.log.jsonl"
    last = json.loads(log_path.read_text().splitlines()[-1]) if log_path.exists() else {}
    final = {name: value for name, value in last.items() if name not in ("step", "seconds")}
    return {"steps": state["next_step"], "seconds": round(state["seconds"]), "final": final}


def export(out: Path, demo: Path) -> dict:
    """Write the three model files and training.json to ``demo`` from the states in ``out``; return the figures.

    Raises ValueError when a stage has not been run or the files are larger than 16 MiB together.
    """
    made_by = {"license": LICENSE, "modelspec.license": LICENSE}
    parts = {
        TRANSFORMER: (transformer_tensors(out), transformer_metadata()),
        ENCODER: (encoder_tensors(out), made_by | {"modelspec.title": "PixArt demo T5 encoder"}),
        AUTOENCODER: (autoencoder_tensors(out), made_by | {"modelspec.title": "PixArt demo autoencoder"}),
    }
    total = sum(t.numel() * t.element_size() for tensors, _ in parts.values() for t in tensors.values())
    if total > LIMIT:
        raise ValueError(
            f"The demo's tensors take {total} bytes together, more than the {LIMIT} that are allowed: make "
            "CONFIG in pixart/training/demo/diffusion.py smaller."
        )
    demo.mkdir(parents=True, exist_ok=True)
    figures: dict = {"stages": {stage: stage_figures(out, stage) for stage in STAGES}, "files": {}}
    for name in (ENCODER, TRANSFORMER, AUTOENCODER):
        tensors, metadata = parts[name]
        if name == TRANSFORMER:  # names the encoder it was trained with, so that another's captions are refused
            metadata |= mark_t5(open_t5(demo / ENCODER)).metadata(CHECKPOINT_PREFIX)
        write_safetensors(demo / name, tensors, metadata)
        data = (demo / name).read_bytes()
        figures["files"][name] = {
            "parameters": sum(t.numel() for t in tensors.values() if t.is_floating_point()),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        log.info("wrote %s: %d bytes", demo / name, len(data))
    (demo / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m pixart.training.demo.export", description=export.__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="folder with the recipe's states")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder to write the model files to")
    args = parser.parse_args()
    export(args.out, args.demo)


if __name__ == "__main__":
    main()
