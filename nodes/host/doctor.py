"""The doctor's report from inside a running ComfyUI: its version, its attention, and every folder it knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import comfy.ldm.modules.attention
import comfy.model_management
import folder_paths

from ...pixart import doctor
from . import compat, folders

ATTENTION = {
    "attention_pytorch": "PyTorch's scaled dot product",
    "attention_xformers": "xFormers",
    "attention_sage": "SageAttention",
    "attention_flash": "FlashAttention",
    "attention_sub_quad": "sub-quadratic",
    "attention_split": "split",
    "attention_basic": "basic",
}

FOLDERS_TOO = (
    ("checkpoints", folders.CHECKPOINTS),
    ("text_encoders", folders.TEXT_ENCODERS),
    ("loras", folders.LORAS),
    ("controlnet", folders.CONTROL_NETS),
)
"""Kinds of which a model may be a whole folder."""


def report() -> Iterator[str]:
    """Lines of plain text, without paths of this machine: people paste them into bug reports."""
    management = comfy.model_management
    yield f"PixArt for ComfyUI {doctor.pack_version()}, ComfyUI {compat.host_version()}"
    yield from doctor.machine()
    backend = getattr(comfy.ldm.modules.attention.optimized_attention, "__name__", "unknown")
    yield f"attention: {ATTENTION.get(backend, backend)}"
    yield f"device in use: {management.get_torch_device()}, memory mode {management.vram_state.name}"
    yield ""
    yield from doctor.model_lines(model_files())


def model_files() -> Iterator[tuple[str, str, str | Path]]:
    """Every model that the loaders offer, the demo's among them: (kind of folder, name, path)."""
    yield from doctor.demo_files()
    seen = set()
    for kind in ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "controlnet"):
        for name in folder_paths.get_filename_list(kind):
            path = folder_paths.get_full_path(kind, name)
            if path and path not in seen and not path.startswith(str(folders.DEMO)):
                seen.add(path)
                yield kind, name, path
    for kind, kinds in FOLDERS_TOO:
        for name, path in (folders.more_files(kinds) | folders.model_folders(kinds)).items():
            if path not in seen:
                seen.add(path)
                yield kind, name + os.sep * os.path.isdir(path), path
