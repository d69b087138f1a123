"""Trained weights as files that say what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from ..checkpoint import Checkpoint, config_metadata, state_dict_to_save
from ..config import PixArtConfig
from ..files import written
from .adapters import PREFIX
from .settings import COMPRESSION, CONTROLNET, FULL, LORA, TrainSettings

SOFTWARE = "pixart-nodes"


@dataclass(frozen=True)
class Base:
    """The checkpoint that a training starts from. sha: SHA-256 of its file, in hexadecimal."""

    name: str
    sha: str
    config: PixArtConfig
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Base:
        return cls(checkpoint.path.name, file_sha(checkpoint), checkpoint.config, checkpoint.metadata)


def file_sha(checkpoint: Checkpoint) -> str:
    """SHA-256 of a checkpoint's file; of a folder or a shard index, of its tensors in their order."""
    if checkpoint.path.is_file() and checkpoint.path.suffix != ".json":
        with checkpoint.path.open("rb") as file:
            return digest(file)
    total = hashlib.sha256()
    for name, tensor in checkpoint.state_dict.items():
        total.update(name.encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy())
    return total.hexdigest()


def digest(file) -> str:
    """SHA-256 of an open file, in hexadecimal."""
    total = hashlib.sha256()
    while block := file.read(2**20):
        total.update(block)
    return total.hexdigest()


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whose bytes depend on its content alone, whole or not at all.

    The library orders metadata by chance, so the header is written again with its metadata sorted.
    """
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    packed = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    packed += b" " * (-len(packed) % 8)  # the format wants the tensors to start at a multiple of 8
    with written(path) as partial, partial.open("wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        file.write(memoryview(data)[8 + length :])


def common_metadata(
    base: Base, settings: TrainSettings, step: int, trigger: str, title: str, run: str
) -> dict[str, str]:
    """What every trained file tells, in the words of the modelspec standard and in ours."""
    kind = {LORA: "/lora", FULL: "", COMPRESSION: "", CONTROLNET: "/controlnet"}[settings.method]
    side = settings.resolution or base.config.native_pixels
    told = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"pixart-{base.config.family}{kind}",
        "modelspec.implementation": SOFTWARE,
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "pixart_base": base.name,
        "pixart_base_sha": base.sha,
        "pixart_run": run,
        "pixart_seed": str(settings.seed),
        "pixart_steps": str(step),
        "pixart_trigger": trigger,
    }
    if license_name := base.metadata.get("modelspec.license"):
        told["modelspec.license"] = license_name
    return {name: value for name, value in told.items() if value}


def lora_metadata(state: Mapping[str, torch.Tensor], rank: int) -> dict[str, str]:
    """Rank and alpha in our words and in those of diffusers, from which PEFT makes its configuration.

    Alpha is the rank: see ``adapters.to_diffusers``.
    """
    layers = [name.removeprefix(PREFIX).removesuffix(".lora_A.weight") for name in state if name.endswith("A.weight")]
    peft = {"r": rank, "lora_alpha": rank, "target_modules": sorted(layers), "peft_type": "LORA", "bias": "none"}
    return {
        "lora_adapter_metadata": json.dumps({PREFIX + key: value for key, value in peft.items()}, sort_keys=True),
        "pixart_alpha": str(rank),
        "pixart_rank": str(rank),
    }


def full_checkpoint(
    state: Mapping[str, torch.Tensor], base: Base, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A whole transformer as an ordinary checkpoint: its tensors, and the metadata that loading needs."""
    tensors = {name: value.to(dtype) for name, value in state.items()}
    t5 = {name: value for name, value in base.metadata.items() if name.startswith("pixart.t5_")}
    return state_dict_to_save(tensors, base.config), config_metadata(base.config) | t5
