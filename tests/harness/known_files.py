"""Files as they are published: names, shapes and types from the manifests, random numbers, every container in use.

``tests/unit/test_known_files.py`` makes them with their blocks cut to one; ``benchmarks/files.py`` in full size.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from pixart.checkpoint import Checkpoint
from pixart.checkpoint.keys import diffusers_names
from pixart.config import PixArtConfig
from pixart.transformer import PixArtTransformer

MANIFESTS = Path(__file__).resolve().parents[1] / "data" / "manifests"
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Known:
    """What a published transformer is; ``null``: its file holds the null caption."""

    family: str
    base_size: int
    pe_interpolation: float
    micro_condition: bool = False
    null: bool = True
    depth: int = 28

    @property
    def tokens(self) -> int:
        return {"alpha": 120, "sigma": 300}[self.family]

    @property
    def latent_scale(self) -> float:
        return {"alpha": 0.18215, "sigma": 0.13025}[self.family]

    def config(self, depth: int) -> PixArtConfig:
        """The config to be detected, the blocks being cut to ``depth``."""
        return PixArtConfig(
            family=self.family,
            depth=depth,
            base_size=self.base_size,
            pe_interpolation=self.pe_interpolation,
            micro_condition=self.micro_condition,
            max_caption_tokens=self.tokens,
            null_caption=self.null,
        )


KNOWN: dict[str, Known] = {
    "alpha_orig_256x256": Known("alpha", 16, 1.0),
    "alpha_orig_SAM-256x256": Known("alpha", 16, 1.0),
    "alpha_orig_512x512": Known("alpha", 32, 1.0),
    "alpha_orig_512-MS_unreleased": Known("alpha", 32, 1.0, micro_condition=True),
    "alpha_orig_1024-MS": Known("alpha", 64, 2.0, micro_condition=True),
    "alpha_diffusers_256x256": Known("alpha", 16, 1.0),
    "alpha_diffusers_SAM-256x256": Known("alpha", 16, 1.0),
    "alpha_diffusers_512x512": Known("alpha", 32, 1.0),
    "alpha_diffusers_DMD-512x512": Known("alpha", 32, 1.0, null=False),
    "alpha_diffusers_1024-MS": Known("alpha", 64, 2.0, micro_condition=True),
    "alpha_diffusers_LCM-1024-MS": Known("alpha", 64, 2.0, micro_condition=True, null=False),
    # The original Σ 256 and 512 hold nothing that tells their size: 64 is the stated default.
    "sigma_orig_256x256": Known("sigma", 64, 2.0),
    "sigma_orig_512-MS": Known("sigma", 64, 2.0),
    "sigma_orig_1024-MS": Known("sigma", 64, 2.0),
    "sigma_orig_2K-MS": Known("sigma", 128, 4.0),
    "sigma_orig_900M-depth42_community": Known("sigma", 64, 2.0, depth=42),
    "sigma_diffusers_256x256": Known("sigma", 16, 0.5, null=False),
    "sigma_diffusers_512-MS": Known("sigma", 32, 1.0, null=False),
    "sigma_diffusers_1024-MS": Known("sigma", 64, 2.0, null=False),
    "sigma_diffusers_2K-MS": Known("sigma", 128, 4.0, null=False),
    "sigma_diffusers_900M-depth42_community": Known("sigma", 64, 2.0, null=False, depth=42),
    "community_fp16_sigma_256x256_safetensors": Known("sigma", 64, 2.0),
    "community_fp16_sigma_512-MS_safetensors": Known("sigma", 64, 2.0),
    "community_fp16_sigma_1024-MS_safetensors": Known("sigma", 64, 2.0),
    "community_fp16_sigma_2K-MS_safetensors": Known("sigma", 128, 4.0),
    "onetrainer_full_export_alpha": Known("alpha", 64, 2.0, micro_condition=True, null=False),
    "onetrainer_full_export_sigma": Known("sigma", 64, 2.0, null=False),
}


@cache
def read_manifest(name: str) -> dict:
    """A manifest: ``tensors`` (name → [shape, type]) and, for diffusers files, ``config``."""
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def block_number(name: str) -> int:
    """The block that a tensor belongs to, -1 outside of the stack."""
    first, index, *_ = f"{name}.-1".split(".")
    return int(index) if first in ("blocks", "transformer_blocks") else -1


def shapes_of(name: str, depth: int | None = None, dtype: torch.dtype | None = None) -> Shapes:
    """Shape and type of every tensor of a known file, its blocks cut to ``depth``."""
    return {
        key: (tuple(shape), dtype or getattr(torch, kind))
        for key, (shape, kind) in read_manifest(name)["tensors"].items()
        if depth is None or block_number(key) < depth
    }


@cache
def _numbers(dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


def numbers(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random numbers that are the same for the same name, and begin elsewhere in the sequence for another."""
    block, count = _numbers(dtype).roll(zlib.crc32(name.encode())), torch.Size(shape).numel()
    whole = block.repeat(-(-count // len(block))) if count > len(block) else block
    return whole[:count].clone().reshape(shape)


def random_state(shapes: Shapes, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: numbers(name, shape, dtype) for name, (shape, dtype) in shapes.items()}


# Containers: each writes into a folder and returns the path that a user chooses.


def write_pth(shapes: Shapes, folder: Path, config: dict | None, wrap: str) -> Path:
    state = random_state(shapes)
    content: dict = state if wrap == "flat" else {wrap: state}
    if wrap == "training":
        average = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-5}]}
        content = {"state_dict": state, "state_dict_ema": average, "optimizer": optimizer, "epoch": 3}
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


def write_safetensors(shapes: Shapes, folder: Path, config: dict | None, prefix: str) -> Path:
    metadata = {"modelspec.architecture": config["architecture"]} if config and "architecture" in config else None
    save_file(random_state(shapes, prefix), folder / "model.safetensors", metadata)
    return folder / "model.safetensors"


def write_folder(shapes: Shapes, folder: Path, config: dict | None, kind: str) -> Path:
    """diffusers' folder: one file, shards or a .bin, inside a pipeline or not; its config.json beside."""
    inner = folder / "transformer" if kind == "pipeline" else folder
    inner.mkdir(exist_ok=True)
    if config:
        (inner / "config.json").write_text(json.dumps(config))
    state, stem = random_state(shapes), inner / "diffusion_pytorch_model"
    if kind == "bin":
        torch.save(state, stem.with_suffix(".bin"))
    elif kind == "shards":
        names, weight_map = list(state), {}
        for number, part in enumerate((names[::2], names[1::2]), start=1):
            shard = f"{stem.name}-0000{number}-of-00002.safetensors"
            save_file({name: state[name] for name in part}, inner / shard)
            weight_map |= dict.fromkeys(part, shard)
        stem.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(state, stem.with_suffix(".safetensors"))
    if kind == "pipeline":
        family = "Alpha" if (config or {}).get("interpolation_scale") is None else "Sigma"
        (folder / "model_index.json").write_text(json.dumps({"_class_name": f"PixArt{family}Pipeline"}))
    return stem.with_suffix(".safetensors") if kind == "file" else folder


Writer = tuple[Callable[[Shapes, Path, dict | None, str], Path], str]

ORIGINAL: dict[str, Writer] = {
    ".pth state_dict": (write_pth, "state_dict"),
    ".pth of a training": (write_pth, "training"),
    ".pth model": (write_pth, "model"),
    ".pth flat": (write_pth, "flat"),
    "safetensors": (write_safetensors, ""),
    "safetensors model.diffusion_model.": (write_safetensors, "model.diffusion_model."),
    "safetensors base_model.": (write_safetensors, "base_model."),
    "shards": (write_folder, "shards"),
}
DIFFUSERS: dict[str, Writer] = {
    "pipeline folder": (write_folder, "pipeline"),
    "folder": (write_folder, "plain"),
    "shards": (write_folder, "shards"),
    ".bin folder": (write_folder, "bin"),
    "file beside its config": (write_folder, "file"),
    "file alone": (write_safetensors, ""),
}


def containers(name: str) -> dict[str, Writer]:
    """The containers that exist for a known file, the published one first."""
    if "_diffusers_" in name:
        return DIFFUSERS
    if "_orig_" in name:
        return ORIGINAL
    # Exports of trainers are one safetensors file, whose metadata state the architecture.
    kinds = ["safetensors", "safetensors model.diffusion_model."]
    if not name.startswith("onetrainer"):
        kinds += ["safetensors base_model.", "shards", ".pth flat"]
    return {kind: ORIGINAL[kind] for kind in kinds}


def write(name: str, container: str, folder: Path, depth: int | None, dtype: torch.dtype | None) -> Path:
    """Make the file; dtype: None for the published one."""
    writer, argument = containers(name)[container]
    config = read_manifest(name).get("config") if "file alone" not in container else None
    if name.startswith("onetrainer"):
        config = {"architecture": f"pixart-{KNOWN[name].family}"}
    return writer(shapes_of(name, depth, dtype), folder, config, argument)


def expected(name: str, container: str) -> tuple[Known, str]:
    """What is to be found, and what a user has to choose as ``variant`` since nothing in the file tells it."""
    known = KNOWN[name]
    if container != "file alone":
        return known, "auto"
    # Without its config.json a diffusers file says nothing of its size, and of its family only by these two.
    told = known.null or known.micro_condition
    plain = known.family == "alpha" and not known.micro_condition
    known = replace(known, base_size=32 if plain else 64, pe_interpolation=1.0 if plain else 2.0)
    return known, "auto" if told else known.family


def faults(checkpoint: Checkpoint, name: str, container: str, depth: int | None) -> list[str]:
    """Everything about an opened file that is not as it should be; every number is compared."""
    known, _ = expected(name, container)
    config = known.config(depth or known.depth)
    found = []
    if checkpoint.config != config:
        found.append(f"config {checkpoint.config}, not {config}")
    if checkpoint.config.latent_scale != known.latent_scale:
        found.append(f"latent scale {checkpoint.config.latent_scale}")
    found += [f"note: {note}" for note in checkpoint.notes if not expected_note(note, container)]
    guessed = any(line.startswith("Guessed") for line in checkpoint.evidence)
    if guessed == says_its_size(name, container):
        found.append(f"guessed: {guessed}")
    return found + list(wrong_numbers(checkpoint, name))


def says_its_size(name: str, container: str) -> bool:
    """Whether anything in the file tells the size of the pictures it was made for."""
    has_grid = any(key.endswith("pos_embed") for key in read_manifest(name)["tensors"])
    return has_grid or ("_diffusers_" in name and container != "file alone")


def expected_note(note: str, container: str) -> bool:
    if container == ".pth of a training":
        return note == "Read from 'state_dict'; state_dict_ema, optimizer, epoch left out."
    return note.startswith(("Names stand behind", "Read from 'state_dict'.", "Read from 'model'.")) or (
        note.startswith("config.json speaks of")  # the blocks were cut
    )


def wrong_numbers(checkpoint: Checkpoint, name: str) -> Iterator[str]:
    """Names that the transformer has and the checkpoint lacks or the other way round, and tensors that differ."""
    model = PixArtTransformer(checkpoint.config, device="meta").state_dict()
    if model.keys() != checkpoint.state_dict.keys():
        yield f"names {sorted(model.keys() ^ checkpoint.state_dict.keys())[:4]}"
        return
    published = read_manifest(name)["tensors"]
    for key in model:
        tensor = checkpoint.state_dict[key]
        parts = [key] if key in published else diffusers_names(key)
        if checkpoint.dialect == "diffusers":
            parts = diffusers_names(key)
        pieces = [numbers(part, tuple(published[part][0]), tensor.dtype) for part in parts]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        bits = torch.int16 if tensor.itemsize == 2 else torch.int32  # compared many times faster than halves
        if tensor.shape != model[key].shape or not torch.equal(tensor.view(bits), whole.view(bits)):
            yield f"{key} differs"
