"""Makes the states that later stages of the recipe start from out of the published demo files.

    python -m pixart.training.demo restore --out demo-run

So a further stage can be trained without running the first ones again. What comes back is what was published: weights
in fp16, the average model alone, no optimizer, of the text stage the encoder without its classifiers, and of stages
that went on with the same model the last one's weights for each.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import export


def restore(out: Path, demo: Path) -> list[str]:
    """Write the states that are missing in ``out``; the stages they stand for.

    Raises ValueError when a published file is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = json.loads(published(demo, export.FIGURES).read_text())["stages"]
    text = float32(published(demo, export.ENCODER))
    tokenizer = bytes(text.pop("spiece_model").tolist())
    text["encoder.embed_tokens.weight"] = text["shared.weight"]
    vae = float32(published(demo, export.AUTOENCODER))
    transformer = float32(published(demo, export.TRANSFORMER))
    del transformer["pos_embed"]
    average = {"ema": {f"average.{name}": value for name, value in transformer.items()}}
    decoder = {"model": half_of_taesd(vae, "decoder")}
    states = {
        "text": {"model": {f"encoder.{name}": value for name, value in text.items()}},
        "autoencoder-encoder": {"model": half_of_taesd(vae, "encoder")},
        "autoencoder-decoder": decoder,
        "autoencoder-sharpen": decoder,
        "diffusion": average,
        "outlines": average,
        "polish": average,
        "practice": average,
    }
    control_states = {}
    if (demo / export.CONTROLNET).is_file():
        control = float32(demo / export.CONTROLNET)
        average = {"ema": {f"average.control.{name}": value for name, value in control.items()}}
        control_states = {"controlnet": average, "controlnet-practice": average}
    states |= control_states
    if not (out / "tokenizer.model").exists():
        (out / "tokenizer.model").write_bytes(tokenizer)
    wanted = set(figures) | set(control_states)
    restored = [stage for stage in states if stage in wanted and not (out / f"{stage}.state.pt").exists()]
    for log in sorted((demo / "logs").glob("*.log.jsonl")):
        if not (out / log.name).exists():
            shutil.copyfile(log, out / log.name)
    for stage in restored:
        figure = figures.get(stage, {"steps": 0, "seconds": 0})
        steps, seconds = figure["steps"], figure["seconds"]
        torch.save(states[stage] | {"next_step": steps, "seconds": seconds}, out / f"{stage}.state.pt")
    return restored


def published(demo: Path, name: str) -> Path:
    path = demo / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: give the folder with the published demo files as --demo.")
    return path


def float32(path: Path) -> dict[str, torch.Tensor]:
    return {name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()}


def half_of_taesd(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """One half of the autoencoder under diffusers' names; TAESD counts its input clamp as decoder layer 0."""
    half = {}
    for name, value in tensors.items():
        if name.startswith(f"taesd_{part}."):
            _, index, rest = name.split(".", 2)
            half[f"layers.{int(index) - (part == 'decoder')}.{rest}"] = value
    return half
