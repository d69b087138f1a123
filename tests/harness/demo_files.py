"""Files around the demo model that tests and long runs make for themselves: LoRAs, fine-tunes, hints."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, safe_open, save_file

DEMO = Path(__file__).resolve().parents[2] / "demo"
CHECKPOINT, T5, VAE, CONTROLNET, ALPHA, KV = (
    f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae", "controlnet", "alpha", "sigma-kv")
)
WIDTH, BLOCKS = 216, 5


def write_lora(path: Path, seed: int, rank: int = 4, size: float = 0.02) -> Path:
    """A LoRA of random numbers in PEFT's names, on the queries and values of every block of the demo."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in range(BLOCKS):
        for layer in ("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_out.0"):
            name = f"transformer.transformer_blocks.{block}.{layer}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, WIDTH, generator=random) * size
            tensors[f"{name}.lora_B.weight"] = torch.randn(WIDTH, rank, generator=random) * size
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def write_variant(source: Path, path: Path, seed: int, size: float = 0.02) -> Path:
    """The same model with a little noise on its matrices: draws other pictures, and is as long to the byte."""
    random = torch.Generator().manual_seed(seed)
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(source)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=random) * size
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def write_hint(path: Path, side: int = 128) -> Path:
    """The outline of a circle, as an edge detector draws it."""
    picture = Image.new("RGB", (side, side))
    ImageDraw.Draw(picture).ellipse((side // 4, side // 4, side * 3 // 4, side * 3 // 4), outline="white", width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
