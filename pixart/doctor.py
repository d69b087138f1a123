"""``python -m pixart.doctor``: what there is to draw with, for people who wonder why it does not.

Reads what model files say of themselves and the shapes of their weights, and runs no code from them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .config import ALPHA, PixArtConfig
from .terminal import fail, leave

PACK = Path(__file__).resolve().parent.parent
PACKAGES = ("transformers", "tokenizers", "safetensors", "sentencepiece", "numpy")
OPTIONAL = {
    "ftfy": "caption cleaning",
    "beautifulsoup4": "caption cleaning",
    "gguf": "T5 in GGUF files",
    "diffusers": "drawing without ComfyUI",
    "accelerate": "training",
    "xformers": "another attention backend",
    "sageattention": "another attention backend",
    "flash-attn": "another attention backend",
}
SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin", ".gguf")
CHECKPOINT, T5, VAE = "checkpoint", "t5", "vae"
LORA, CONTROLNET, CAPTION = "lora", "controlnet", "caption"
KINDS = {
    "checkpoints": CHECKPOINT,
    "diffusion_models": CHECKPOINT,
    "unet": CHECKPOINT,
    "text_encoders": T5,
    "clip": T5,
    "vae": VAE,
    "loras": LORA,
    "controlnet": CONTROLNET,
}
"""The model folders that are looked at, and what PixArt wants from them."""

MOST_FILES = 500
GIB = 1024**3


@dataclass(frozen=True)
class Found:
    """What a model file is.

    title: in a few words. facts: plain values for programs, {} where the file is of no use to PixArt.
    trouble: why it is of no use, "" otherwise.
    """

    title: str
    facts: dict
    trouble: str = ""


def family_name(config: PixArtConfig) -> str:
    return "PixArt-α" if config.family == ALPHA else "PixArt-Σ"


def look_at(path: str | Path, kind: str) -> Found:
    """What a file or folder is, where a file of ``kind`` (CHECKPOINT, T5, VAE …) is wanted."""
    try:
        return LOOKS[kind](Path(path))
    except (ValueError, OSError, ImportError) as error:
        return Found("", {}, str(error).removeprefix(f"{path}: "))


def look_at_checkpoint(path: Path) -> Found:
    from .checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    facts = {
        "family": family_name(config),
        "blocks": config.depth,
        "pixels": config.native_pixels,
        "tokens": config.max_caption_tokens,
        "vae": "SD" if config.family == ALPHA else "SDXL",
        "dtype": dtype_name(checkpoint.state_dict["blocks.0.attn.qkv.weight"].dtype),
    }
    title = "{family}, {pixels} px, {blocks} blocks, {dtype}; up to {tokens} tokens, VAE of {vae}".format(**facts)
    return Found(title, facts)


def look_at_t5(path: Path) -> Found:
    from .text.encoder import open_t5
    from .text.layout import FINAL_NORM

    file = open_t5(path)
    config = file.config
    facts = {"family": "T5 v1.1", "blocks": config.num_layers, "width": config.d_model}
    if path.suffix.lower() != ".gguf":
        facts["dtype"] = dtype_name(file.state_dict[FINAL_NORM].dtype)
    return Found(f"T5 v1.1, {config}", facts)


def look_at_vae(path: Path) -> Found:
    """An autoencoder by the names and one shape of its weights; SD's and SDXL's cannot be told apart by them."""
    from .checkpoint.files import read_weights

    shapes = {name: tuple(tensor.shape) for name, tensor in read_weights(path).tensors.items()}
    if any(name.startswith(("taesd_", "decoder.layers.", "1.weight")) for name in shapes):
        return Found("small autoencoder in TAESD's format", {"family": "TAESD"})
    entry = next((shape for name, shape in shapes.items() if name.endswith("decoder.conv_in.weight")), None)
    if entry is None:
        raise ValueError("This is no autoencoder that is known here.")
    if len(entry) != 4 or entry[1] != 4:
        raise ValueError(f"This autoencoder has {entry[1]} latent channels; PixArt draws in 4.")
    return Found("autoencoder with 4 latent channels (SD's for α, SDXL's for Σ)", {"family": "KL"})


def look_at_lora(path: Path) -> Found:
    """A LoRA by its names and shapes; whether it fits a model is seen only beside that model."""
    from .adapters import LOHA, LOKR, LORA
    from .lora import peek_lora

    lora = peek_lora(path)
    adapters = (*lora.transformer, *lora.text)
    # Only what is a name everywhere: the widget says the rest in the user's language.
    kinds = [kind for kind in (LORA, LOHA, LOKR) if any(adapter.kind == kind for adapter in adapters)]
    kinds += ["DoRA"] if any(adapter.magnitude is not None for adapter in adapters) else []
    ranks = [adapter.rank for adapter in adapters if adapter.rank]
    facts = {
        "family": " + ".join(kinds),
        "rank": span(ranks) if ranks else "",
        "layers": len(lora.transformer),
        "t5_layers": len(lora.text),
    }
    rank = f", rank {facts['rank']}" if ranks else ""
    layers = f"{len(lora.transformer)} layers of the transformer, {len(lora.text)} of T5"
    return Found(f"{lora.kinds()}{rank}, {layers}; {lora.dialect}", facts)


def span(numbers: Iterable[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"


def look_at_controlnet(path: Path) -> Found:
    from .checkpoint.controlnet import open_controlnet

    file = open_controlnet(path)
    config = file.config
    facts = {
        "family": "ControlNet",
        "base": {None: "", ALPHA: "PixArt-α"}.get(config.family, "PixArt-Σ"),
        "blocks": config.copied_blocks,
        "width": config.hidden_size,
        "dtype": dtype_name(file.state_dict["controlnet.0.after_proj.weight"].dtype),
    }
    return Found(f"ControlNet for {config.describe()}, {facts['dtype']}", facts)


def look_at_caption(path: Path) -> Found:
    """A caption file; its prompt is the title, which the widget shows whole."""
    from .text.captions import load_caption

    caption = load_caption(path)
    tokens, width = caption.tokens, caption.embedding.shape[1]
    facts = {"prompt": caption.prompt, "length": tokens, "width": width, "dtype": dtype_name(caption.embedding.dtype)}
    told = "its prompt is not recorded" if caption.prompt is None else f"“{caption.prompt}”"
    return Found(f"caption of {tokens} tokens, {width} wide: {told}", facts)


LOOKS = {
    CHECKPOINT: look_at_checkpoint,
    T5: look_at_t5,
    VAE: look_at_vae,
    LORA: look_at_lora,
    CONTROLNET: look_at_controlnet,
    CAPTION: look_at_caption,
}


def dtype_name(dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(name, name)


def machine() -> Iterator[str]:
    """The interpreter, torch and its devices, and the packages that are used."""
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    try:
        import torch
    except ImportError as error:
        yield f"torch cannot be imported: {error}"
        return
    yield f"torch {torch.__version__}"
    yield from (f"device: {device}" for device in devices(torch))
    yield "packages: " + ", ".join(f"{name} {version_of(name) or 'MISSING'}" for name in PACKAGES)
    there = [f"{name} {version_of(name)}" for name in OPTIONAL if version_of(name)]
    yield "optional packages: " + (", ".join(there) or "none")
    absent: dict[str, list[str]] = {}
    for name, use in OPTIONAL.items():
        if not version_of(name):
            absent.setdefault(use, []).append(name)
    if absent:
        yield "not installed: " + "; ".join(f"{', '.join(names)} ({use})" for use, names in absent.items())


def devices(torch) -> Iterator[str]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            kind = "ROCm" if getattr(torch.version, "hip", None) else "CUDA"
            yield f"{kind} {index}, {card.name}, {card.total_memory / GIB:.1f} GiB"
    if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        yield "Apple MPS"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        yield from (f"XPU {index}, {torch.xpu.get_device_name(index)}" for index in range(torch.xpu.device_count()))
    yield f"processor, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pack_version() -> str:
    text = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    return found[1] if found else "unknown"


def model_lines(files: Iterable[tuple[str, str, str | Path]]) -> Iterator[str]:
    """One line for every file that PixArt can use, and how many others there are.

    files: (folder's kind as in KINDS, name to show, path). What cannot be used is named in folders of text encoders
    and for files whose name speaks of PixArt: there people wonder why.
    """
    others: dict[str, int] = {}
    for number, (folder, name, path) in enumerate(files):
        if number == MOST_FILES:
            yield f"… only the first {MOST_FILES} files were looked at"
            break
        found = look_at(path, KINDS[folder])
        if not found.trouble:
            yield f"{folder}/{name}: {found.title}"
        elif "pixart" in name.lower() or KINDS[folder] == T5:
            yield f"{folder}/{name}: not usable. {found.trouble}"
        else:
            others[folder] = others.get(folder, 0) + 1
    yield from (f"{folder}: {count} files of other models" for folder, count in others.items())


def model_files(models: Path) -> Iterator[tuple[str, str, Path]]:
    """Files in a ComfyUI's ``models`` folder, as ``model_lines`` takes them."""
    for folder in KINDS:
        root = models / folder
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield folder, path.relative_to(root).as_posix(), path


def demo_files() -> Iterator[tuple[str, str, Path]]:
    """Of each file, what its name says it is: a LoRA of a family before the family."""
    kinds = {"lora": "loras", "controlnet": "controlnet", "t5": "text_encoders", "vae": "vae"}
    kinds |= dict.fromkeys(("sigma", "alpha", "dreambooth"), "checkpoints")
    for path in sorted((PACK / "demo").glob("pixart-demo-*.safetensors")):
        parts = path.stem.split("-")
        kind = next((kinds[word] for word in kinds if word in parts), None)
        if kind:
            yield kind, path.name, path


def find_comfyui(folder: Path | None) -> Path | None:
    """The ComfyUI that a folder names, else the one this pack lies in. Raises ValueError where there is none."""
    if folder is not None:
        if not (folder / "comfyui_version.py").is_file():
            raise ValueError(f"{folder} holds no ComfyUI: there is no comfyui_version.py in it.")
        return folder
    around = Path(__file__).absolute().parents[3]
    return around if (around / "comfyui_version.py").is_file() else None


def report(comfyui: Path | None) -> Iterator[str]:
    yield f"PixArt for ComfyUI {pack_version()}"
    yield from machine()
    yield ""
    yield "Demo models"
    yield from model_lines(demo_files())
    yield ""
    if comfyui is None:
        yield "No ComfyUI around this folder; name one with --comfyui FOLDER."
        return
    version = re.search(r'__version__ = "([^"]+)"', (comfyui / "comfyui_version.py").read_text(encoding="utf-8"))
    yield f"ComfyUI {version[1] if version else 'of unknown version'}: its models folder"
    yield from model_lines(model_files(comfyui / "models"))
    if (comfyui / "extra_model_paths.yaml").is_file():
        yield "extra_model_paths.yaml names more folders: the button in ComfyUI's settings looks there as well."


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m pixart.doctor", description="Say what there is to draw with.")
    p.add_argument("--comfyui", type=Path, metavar="FOLDER", help="a ComfyUI (default: the one this pack lies in)")
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    try:
        for line in report(find_comfyui(p.parse_args(argv).comfyui)):
            sys.stdout.write(line + "\n")
    except ValueError as error:
        return fail(str(error))
    return 0


if __name__ == "__main__":
    leave(main)
