"""Writes the trained demo as the three model files that people load, and the figures of its training.

    python -m pixart.training.demo.export --out demo-run --demo demo
    python -m pixart.training.demo.export --out demo-run --demo demo --only alpha

The same states give the same bytes, so that a file can be checked against the recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ...checkpoint import config_metadata
from ...config import PixArtConfig
from ...embeddings import position_grid
from ...terminal import leave
from ...text.encoder import open_t5
from ...text.provenance import CHECKPOINT_PREFIX, mark_t5
from ..writing import write_safetensors
from . import autoencoder
from .alpha import ALPHA_CONFIG
from .diffusion import CONFIG, average_of
from .latents import CONTRAST

log = logging.getLogger(__name__)

TRANSFORMER = "pixart-demo-sigma.safetensors"
ENCODER = "pixart-demo-t5.safetensors"
AUTOENCODER = "pixart-demo-vae.safetensors"
ALPHA = "pixart-demo-alpha.safetensors"
CONTROLNET = "pixart-demo-controlnet.safetensors"
FIGURES = "training.json"

LIMIT = 16 * 2**20
"""Bytes that the three files may take together."""

STAGES = (
    "text",
    "autoencoder-encoder",
    "autoencoder-decoder",
    "autoencoder-sharpen",
    "diffusion",
    "outlines",
    "polish",
    "practice",
)

LICENSE = "Apache-2.0"

Tensors = dict[str, torch.Tensor]


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


def transformer_tensors(out: Path, config: PixArtConfig = CONFIG, stage: str = "practice") -> Tensors:
    """A stage's average model under PixArt's original names, with the position grid that released files carry."""
    tensors = average_of(read_state(out, stage))
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
        "modelspec.description": f"A small PixArt-{config.family.title()} that draws one shape on a plain background.",
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


def write_model(path: Path, tensors: Tensors, metadata: dict[str, str]) -> dict:
    """Write a model file; its size and hash."""
    write_safetensors(path, tensors, metadata)
    data = path.read_bytes()
    log.info("wrote %s: %d bytes", path, len(data))
    return {
        "parameters": sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


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
        figures["files"][name] = write_model(demo / name, tensors, metadata)
    (demo / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def export_alpha(out: Path, demo: Path) -> dict:
    """Write the α file to ``demo`` beside the others, and add its figures to theirs in training.json; return them.

    Raises ValueError when the stage has not been run, or the files that it belongs to are not in ``demo``.
    """
    need_demo(demo)
    tensors = transformer_tensors(out, ALPHA_CONFIG, "alpha")
    metadata = transformer_metadata(ALPHA_CONFIG) | mark_t5(open_t5(demo / ENCODER)).metadata(CHECKPOINT_PREFIX)
    return add_model(demo, ALPHA, tensors, metadata, out, ("alpha",))


def need_demo(demo: Path) -> None:
    """Raises ValueError when ``demo`` lacks the files that later models belong to."""
    for name in (ENCODER, FIGURES):
        if not (demo / name).is_file():
            raise ValueError(f"{demo / name} is missing: export the demo itself first, without --only.")


def add_model(
    demo: Path, name: str, tensors: Tensors, metadata: dict[str, str], out: Path, stages: Sequence[str]
) -> dict:
    """Write a later model to ``demo``, its stages' logs beside it, and its figures into training.json; all figures.

    Of several stages those that were restored from a published file keep the figures that they have.
    """
    need_demo(demo)
    figures = json.loads((demo / FIGURES).read_text())
    (demo / "logs").mkdir(exist_ok=True)
    for stage in stages:
        found = stage_figures(out, stage)
        if found["steps"]:
            figures["stages"][stage] = found
        for log_file in (out / f"{stage}.log.jsonl", out / f"{stage}-previews.log"):
            if log_file.is_file():
                shutil.copyfile(log_file, demo / "logs" / log_file.name)
    figures["files"][name] = write_model(demo / name, tensors, metadata)
    (demo / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m pixart.training.demo.export", description=export.__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="folder with the recipe's states")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder to write the model files to")
    parser.add_argument("--only", choices=("alpha",), help="write this later model alone, beside what is there")
    args = parser.parse_args()
    (export_alpha if args.only else export)(args.out, args.demo)


if __name__ == "__main__":
    leave(main)
