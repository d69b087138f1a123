"""Where model files are looked for."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

DEMO = Path(__file__).resolve().parents[2] / "demo"
DEMO_KINDS = ("checkpoints", "text_encoders", "vae")

CHECKPOINTS = ("checkpoints", "diffusion_models", "diffusers")
TEXT_ENCODERS = ("text_encoders",)


def register_demo() -> None:
    """Make the embedded demo one more folder of checkpoints, text encoders and VAEs, after the user's own."""
    for kind in DEMO_KINDS:
        folder_paths.add_model_folder_path(kind, str(DEMO))


def names(kinds: tuple[str, ...]) -> list[str]:
    """Model files of these kinds, then folders that hold a model in shards or in diffusers' layout."""
    found = [name for kind in kinds if kind != "diffusers" for name in folder_paths.get_filename_list(kind)]
    return list(dict.fromkeys(found + model_folders(kinds)))


def model_folders(kinds: tuple[str, ...]) -> list[str]:
    """Folders with a config.json or model_index.json, directly inside a model folder of these kinds."""
    found = []
    for root in roots(kinds):
        for entry in sorted(os.scandir(root), key=lambda e: e.name):
            markers = (os.path.join(entry.path, name) for name in ("config.json", "model_index.json"))
            if entry.is_dir() and any(map(os.path.isfile, markers)):
                found.append(entry.name)
    return found


def roots(kinds: tuple[str, ...]) -> list[str]:
    known = [kind for kind in kinds if kind in folder_paths.folder_names_and_paths]
    return [root for kind in known for root in folder_paths.get_folder_paths(kind) if os.path.isdir(root)]


def find(kinds: tuple[str, ...], name: str) -> str:
    """Full path of the model file or model folder named in a workflow.

    Looked up only inside the host's model folders of these kinds. Raises ValueError when it is not there.
    """
    for kind in kinds:
        if kind in folder_paths.folder_names_and_paths and (path := folder_paths.get_full_path(kind, name)):
            return path
    if name in model_folders(kinds):
        return next(path for root in roots(kinds) if os.path.isdir(path := os.path.join(root, name)))
    places = " or ".join(f"models/{kind}" for kind in kinds)
    raise ValueError(f"{name!r} is not in {places}. Put it there, press R to refresh the lists, and choose it again.")
