"""LoRA files of documented layouts, in a tiny model's sizes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

DATA = Path(__file__).parents[1] / "data"

SHRINK = {1152: 144, 3456: 432, 2304: 288, 6912: 864, 4608: 576, 4096: 32, 384: 48, 16: 4, 32: 4}
"""The released model's sizes and ranks → those of the tiny one."""
KEPT = {"final_layer_linear": 32, "final_layer.linear": 32, "proj_out": 32}
"""The last layer's 32 rows are the same in both."""


def tiny_file(manifest: str, path: Path, alpha: float = 3.0) -> dict[str, torch.Tensor]:
    """A file with a documented layout's names, of two blocks, in the tiny model's sizes."""
    listed = json.loads(gzip.decompress((DATA / "manifests" / f"{manifest}.json.gz").read_bytes()))["tensors"]
    generator = torch.Generator().manual_seed(9)
    tensors = {}
    for name, (shape, _) in listed.items():
        block = name.replace("transformer_blocks", "blocks").partition("blocks")[2][1:].split("_")[0].split(".")[0]
        if block.isdigit() and int(block) > 1:
            continue
        last = next((rows for mark, rows in KEPT.items() if mark in name), None)
        is_up = "lora_B" in name or "lora_up" in name
        shape = [last if i == 0 and last and is_up else SHRINK.get(size, size) for i, size in enumerate(shape)]
        tensors[name] = torch.randn(shape, generator=generator) * 0.1 if shape else torch.tensor(alpha)
    save_file(tensors, path)
    return tensors
