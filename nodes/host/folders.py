"""Where model files are looked for."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...pixart.checkpoint.files import is_index
from ...pixart.names import leads_out

DEMO = Path(__file__).resolve().parents[2] / "demo"
DEMO_KINDS = ("checkpoints", "text_encoders", "vae", "loras", "controlnet")
CAPTIONS = "captions"

CHECKPOINTS = ("checkpoints", "diffusion_models", "diffusers")
TEXT_ENCODERS = ("text_encoders", "diffusers")
LORAS = ("loras",)
CONTROL_NETS = ("controlnet",)

FOLDERS_ONLY = "diffusers"
"""The kind of models whose every model is a folder."""

PARTS = {CHECKPOINTS: "transformer", TEXT_ENCODERS: "text_encoder"}
"""Which part of a diffusers pipeline holds the model."""

MORE_SUFFIXES = {TEXT_ENCODERS: (".gguf",)}
"""Files that can be opened and that the host does not list as models."""

OUTSIDE = (
    "leads out of the model folders. Choose a name from the list; folders elsewhere can be added in "
    "extra_model_paths.yaml."
)

DEPTH = 3
"""How far below a model folder another one is looked for: models/diffusers/author/model."""


def register_demo() -> None:
    """Make the embedded demo one more folder of checkpoints, encoders, VAEs and LoRAs, after the user's own."""
    for kind in DEMO_KINDS:
        folder_paths.add_model_folder_path(kind, str(DEMO))


def register_captions() -> None:
    """Make captions a kind of model for the host: models/captions, and what extra_model_paths.yaml adds."""
    folder_paths.add_model_folder_path(CAPTIONS, os.path.join(folder_paths.models_dir, CAPTIONS))


def names(kinds: tuple[str, ...]) -> list[str]:
    """Model files of these kinds, then folders that hold a model in shards or in diffusers' layout."""
    found = [name for kind in kinds if kind != FOLDERS_ONLY for name in folder_paths.get_filename_list(kind)]
    return list(dict.fromkeys([*found, *more_files(kinds), *model_folders(kinds)]))


def more_files(kinds: tuple[str, ...]) -> dict[str, str]:
    """Name → path of the files that the host leaves out of its lists, for not knowing their suffix."""
    suffixes = MORE_SUFFIXES.get(kinds)
    found: dict[str, str] = {}
    if suffixes:
        for root in roots(kind for kind in kinds if kind != FOLDERS_ONLY):
            for folder, _, files in walk(root):
                paths = (os.path.join(folder, file) for file in files if file.lower().endswith(suffixes))
                found = {os.path.relpath(path, root): path for path in paths} | found
    return found


def model_folders(kinds: tuple[str, ...]) -> dict[str, str]:
    """Name → path of the folders that hold such a model, up to ``DEPTH`` levels below a model folder."""
    found: dict[str, str] = {}
    for root in roots(kinds):
        for folder, below, files in walk(root):
            if folder == root:
                continue
            is_pipeline = "model_index.json" in files
            if is_pipeline or "config.json" in files or any(map(is_index, files)):
                below.clear()  # what lies inside is a part of this model
                if not is_pipeline or os.path.isdir(os.path.join(folder, PARTS.get(kinds, ""))):
                    found.setdefault(os.path.relpath(folder, root), folder)
    return found


def walk(root: str):
    """``os.walk`` in alphabetical order, no deeper than ``DEPTH`` and not through links that leave the root."""
    for folder, below, files in os.walk(root, followlinks=True):
        level = 0 if folder == root else os.path.relpath(folder, root).count(os.sep) + 1
        below[:] = sorted(
            name
            for name in below
            if level < DEPTH and not name.startswith(".") and is_inside(os.path.join(folder, name), root)
        )
        yield folder, below, sorted(files)


def is_inside(path: str, root: str) -> bool:
    """Whether a path, its links followed, is below a folder."""
    return not os.path.islink(path) or Path(path).resolve().is_relative_to(Path(root).resolve())


def roots(kinds) -> list[str]:
    known = [kind for kind in kinds if kind in folder_paths.folder_names_and_paths]
    return [root for kind in known for root in folder_paths.get_folder_paths(kind) if os.path.isdir(root)]


def find(kinds: tuple[str, ...], name: str) -> str:
    """Full path of the model file or model folder named in a workflow.

    Looked up only inside the host's model folders of these kinds: a workflow may come from anyone. A file must be in
    the host's own list, which follows links, since their owner made them; a folder that is a model may be a link only
    within a model folder. Raises ValueError when the name is not there, or leads elsewhere.
    """
    if leads_out(name):
        raise ValueError(f"{name!r} {OUTSIDE}")
    for kind in kinds:
        if kind != FOLDERS_ONLY and kind in folder_paths.folder_names_and_paths:
            # Not every file that lies there: only those with the suffix of a model.
            if name in folder_paths.get_filename_list(kind):
                return folder_paths.get_full_path_or_raise(kind, name)
    found = model_folders(kinds) | more_files(kinds)
    if name in found:
        return found[name]
    if any(os.path.isdir(path := os.path.join(root, name)) and not is_inside(path, root) for root in roots(kinds)):
        raise ValueError(f"{name!r} {OUTSIDE}")
    places = " or ".join(f"models/{kind}" for kind in kinds)
    raise ValueError(f"{name!r} is not in {places}. Put it there, press R to refresh the lists, and choose it again.")


def stamp(kinds: tuple[str, ...], name: str | None) -> str:
    """Changes when the file of this name does, or one in the folder of this name, for the host's cache; empty where
    the name is not known yet.
    """
    try:
        path = find(kinds, name) if name else None
        files = [path] if path else []
        if path and os.path.isdir(path):
            files = [os.path.join(folder, file) for folder, _, inside in walk(path) for file in inside]
        return " ".join(stamp_of(os.stat(file)) for file in files)
    except (ValueError, OSError):
        return ""  # the node itself says what is wrong when it runs


def stamp_of(status: os.stat_result) -> str:
    """The file itself too: one moved into its place may be as old and as long."""
    return f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"
