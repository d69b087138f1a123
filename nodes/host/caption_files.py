"""Caption files in the host's folders, and conditioning as captions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import folder_paths
import torch

from ...pixart import names
from ...pixart.text.captions import Caption, is_caption_file, is_number, is_value_name, load_caption, save_caption
from ...pixart.text.provenance import mark_in
from . import folders
from .text import PROVENANCE

SUFFIX = ".safetensors"
REMEDY = "Give a name such as captions/PixArt."
INPUT, OUTPUT = " [input]", " [output]"
"""After the name of a file outside of the model folders, as the host marks such names."""


@dataclass(frozen=True)
class Saved:
    """A caption on disk; name: as the loading node lists it; left: what of the conditioning a file cannot hold."""

    name: str
    caption: Caption
    left: tuple[str, ...]


def roots() -> list[tuple[str, str]]:
    """(folder, what follows the names of the files in it)."""
    found = [(root, "") for root in folders.roots((folders.CAPTIONS,))]
    return [
        *found,
        (folder_paths.get_input_directory(), INPUT),
        (folder_paths.get_output_directory(), OUTPUT),
    ]


def caption_names() -> list[str]:
    """Every caption file; in input and output, where other files lie too, those whose header calls them so."""
    found = []
    for root, mark in roots():
        for folder, _, files in folders.walk(root):
            for path in (Path(folder, file) for file in files if file.endswith(SUFFIX)):
                name = path.relative_to(root).as_posix()
                if not names.oddity(name) and inside(path, root) and (not mark or is_caption_file(path)):
                    found.append(name + mark)
    return list(dict.fromkeys(found))


def find_caption(name: str) -> str:
    """Full path of a caption named in a workflow, which may come from anyone.

    Raises ValueError when the name leads out of the folders, links included, is none that is offered, or nothing is
    there.
    """
    mark = next((mark for mark in (INPUT, OUTPUT) if name.endswith(mark)), "")
    bare = name.removesuffix(mark)
    leads_out = names.leads_out(bare)
    if not leads_out and (oddity := names.oddity(bare)):
        raise ValueError(f"{name!r} {oddity}. Choose a name from the list.")
    for root, marked in roots():
        path = Path(root, bare)
        if leads_out or marked != mark or not os.path.lexists(path):
            continue
        leads_out = not inside(path, root)
        if not leads_out and path.is_file() and path.suffix == SUFFIX:
            return str(path)
    if leads_out:
        raise ValueError(f"{name!r} leads out of the caption folders. Choose a name from the list.")
    raise ValueError(
        f"{name!r} is not there. Caption files are looked for in models/captions, input and output: put it there or "
        "save it with PixArtSaveCaption, press R to refresh the lists, and choose it again."
    )


def inside(path: Path, root: str) -> bool:
    """Whether a path, all its links followed, is below a folder."""
    return path.resolve().is_relative_to(Path(root).resolve())


def save_conditioning(conditioning: list, prefix: str, dtype: torch.dtype | None) -> list[Saved]:
    """Write every caption of a conditioning into the output folder, numbered after ``prefix`` as pictures are.

    Raises ValueError for a prefix that leads out of the folder, or a conditioning that is no caption.
    """
    captions = list(captions_in(conditioning))
    output = folder_paths.get_output_directory()
    wanted = Path(output, os.path.normpath(prefix))
    if not names.leads_out(prefix) and (oddity := names.oddity(prefix)) and prefix.strip():
        raise ValueError(f"The filename_prefix {prefix!r} {oddity}. {REMEDY}")
    if names.leads_out(prefix) or not prefix.strip() or not wanted.name or not inside(wanted.parent, output):
        raise ValueError(f"The filename_prefix {prefix!r} leads out of the output folder, or names no file. {REMEDY}")
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
    saved = []
    for number, (caption, left) in enumerate(captions, start=counter):
        path = save_caption(caption, Path(folder, f"{name}_{number:05}_{SUFFIX}"), dtype)
        saved.append(Saved(os.path.relpath(path, output).replace(os.sep, "/") + OUTPUT, caption, left))
    return saved


def captions_in(conditioning: list) -> Iterator[tuple[Caption, tuple[str, ...]]]:
    """(caption, names of the values that it cannot hold) for every entry, and every row of an entry."""
    if not conditioning:
        raise ValueError("The conditioning is empty: there is no caption to save.")
    for tensor, values in conditioning:
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3:
            shape = list(getattr(tensor, "shape", []))
            raise ValueError(f"The conditioning has shape {shape}, where captions have batch × tokens × channels.")
        numbers = {name: value for name, value in values.items() if is_plain(name, value)}
        masks = mask_rows(values.get("attention_mask"), tensor)
        kept = {*numbers, PROVENANCE, *(("attention_mask",) if masks is not None else ())}
        set_values = (name for name, value in values.items() if value is not None and value is not False)
        left = tuple(name for name in set_values if name not in kept)
        carried = values.get(PROVENANCE) or {}
        # Joined with another caption, a prompt no longer says what is encoded.
        prompt = carried.get("prompt") if carried.get("tokens") == tensor.shape[1] else None
        for row in range(tensor.shape[0]):
            mask = None if masks is None else masks[row]
            yield Caption(tensor[row], mask, prompt, mark_in(carried), numbers), left


def is_plain(name: str, value: object) -> bool:
    """Whether a value of a conditioning's dict is a number that a caption file may hold."""
    return is_number(value) and is_value_name(name)


def mask_rows(mask: torch.Tensor | None, tensor: torch.Tensor) -> torch.Tensor | None:
    """The mask (B, L) of a conditioning tensor (B, L, C); None where there is none that fits."""
    if mask is None or mask.shape[-1] != tensor.shape[1]:
        return None
    return mask.reshape(-1, mask.shape[-1]).expand(tensor.shape[0], -1)


def describe(saved: Saved) -> str:
    """One line for the node."""
    caption = saved.caption
    left = f"; a file cannot hold {', '.join(saved.left)}, which was left out" if saved.left else ""
    return f"{saved.name} ({counted(caption.tokens)}, {caption.embedding.shape[1]} wide){left}"


def load_conditioning(path: str) -> tuple[list, str]:
    """A caption file as CONDITIONING, and a line on what it is. Raises ValueError as ``load_caption`` does."""
    caption = load_caption(path)
    device = comfy.model_management.intermediate_device()
    values = {"pooled_output": None, **caption.values, PROVENANCE: caption.provenance()}
    if caption.mask is not None:
        values["attention_mask"] = caption.mask[None].to(device)
    told = "its prompt is not recorded" if caption.prompt is None else f"“{caption.prompt}”"
    return [[caption.embedding[None].to(device), values]], f"{counted(caption.tokens)}: {told}"


def fingerprint(path: str) -> str:
    """Changes when the file does."""
    status = os.stat(path)
    return f"{path}:{status.st_size}:{status.st_mtime_ns}"


def counted(tokens: int) -> str:
    return f"{tokens} token" + ("" if tokens == 1 else "s")
