"""Reading weights from disk without running anything and without a second copy in memory.

Tensors are memory-mapped: they cost address space until they are used. Rewriting a file in place while a model
made from it is alive pulls the memory from under it, as with every mapped checkpoint.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .keys import list_names
from .pickles import MAX_INDEX, check_index
from .sniff import JSON, SAFETENSORS, announced_size, header_length, sniff

# In the order of preference: trained weights before their moving average, as the official loaders do.
_CONTAINERS = ("state_dict", "model", "module", "transformer", "state_dict_ema", "ema", "model_ema")
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_FOLDER_FILES = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
)
_MAX_JSON = 16 * 2**20
_MAX_HEADER = 32 * 2**20
MAX_TENSORS = 20_000
"""In one file: the largest released, a pipeline with T5 in one file, has a tenth."""

MAX_NAME = 1000
"""Characters of a tensor's name; names are looked at many times over."""
_MAX_DIRECTORY = 16 * 2**20  # bytes of a ZIP's list of its records
_TORCH_ERRORS = (
    RuntimeError, KeyError, EOFError, TypeError, AttributeError, IndexError, UnicodeDecodeError, OverflowError,
    AssertionError, MemoryError, struct.error,
)  # fmt: skip
_INDEX = re.compile(r"\.index(\.\w+)?\.json$")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")


@dataclass(frozen=True)
class Weights:
    """Tensors under the names of the file, and what lies beside them.

    file: the file, or the shard index, that was read in the end.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]
    file: Path
    notes: tuple[str, ...]


def read_weights(path: Path) -> Weights:
    """Read a file, a shard index or a diffusers folder.

    Raises FileNotFoundError for a path that does not exist and ValueError, without the path's name, for all else.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.is_dir():
        file = _find_in_folder(path)
    elif path.is_file():
        file = path
    else:
        raise ValueError("This is neither a file nor a folder.")
    try:
        tensors, metadata, notes = _read_file(file)
    except OSError as error:
        raise ValueError(
            f"The file cannot be read: {error.strerror or error}. Check its permissions and its disk."
        ) from error
    return Weights(tensors, metadata, file, tuple(notes))


def _read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str]]:
    kind = sniff(path)
    if kind == JSON:
        return _read_shards(path)
    if kind == SAFETENSORS:
        return *_read_safetensors(path), []
    return _read_torch(path)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The library checks the header against the file's length before it maps anything."""
    length = header_length(path)
    if length > _MAX_HEADER:
        raise ValueError(f"The safetensors header is {length} bytes long, more than {_MAX_HEADER}. Do not trust it.")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            check_names(names)
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except SafetensorError as error:
        size, announced = path.stat().st_size, announced_size(path)
        if announced and announced != size:
            verb = "cut short" if size < announced else "longer than it should be"
            raise ValueError(
                f"The file is {verb}: its header speaks of {announced} bytes, and it has {size}. Download it again."
            ) from error
        raise ValueError(f"The safetensors header is damaged ({error}). Download the file again.") from error


def check_names(names: Collection[str]) -> None:
    """Raises ValueError for more tensors, or longer names, than a model has."""
    if len(names) > MAX_TENSORS:
        raise ValueError(f"The file has {len(names)} tensors, more than {MAX_TENSORS}: it is no model that is read.")
    if longest := next((name for name in names if len(name) > MAX_NAME), None):
        raise ValueError(
            f"A tensor's name has {len(longest)} characters, more than {MAX_NAME}: {list_names([longest])}. "
            "Do not trust the file."
        )


def _read_torch(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str]]:
    _check_zip(path)
    try:
        # By PyTorch's own reader, so that what is checked is what is followed.
        check_index(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is None:
            raise ValueError(
                "The index inside the .pth is damaged, or holds something other than tensors, and is not read further. "
                "Download it again, or get the model as safetensors."
            ) from error
        raise ValueError(
            f"The file holds more than tensors: it asks for {name[1]}, and reading it would run code from it, which "
            "is refused. Get the model as safetensors, or save its state dict alone if you trust the file's source."
        ) from error
    except _TORCH_ERRORS as error:
        reason = str(error).split("\n", 1)[0][:160]
        raise ValueError(f"PyTorch cannot read this file ({reason}). Download it again.") from error
    state, notes = _unwrap(loaded)
    check_names(state)
    size = path.stat().st_size
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is stored as {tensor.layout} on {tensor.device.type}, not as plain numbers. "
                "Choose an ordinary save of the model."
            )
        if tensor.numel() * tensor.element_size() > size:
            raise ValueError(
                f"{name} claims {tensor.numel()} numbers, more than the file of {size} bytes holds. Do not trust it."
            )
    return state, {}, notes


def _check_zip(path: Path) -> None:
    """torch.save stores its records uncompressed, so no record may be larger than the file."""
    if (listed := _directory_size(path)) > _MAX_DIRECTORY:
        raise ValueError(
            f"The archive lists its records in {listed} bytes, more than {_MAX_DIRECTORY}. Do not trust it."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"The file begins as a .pth of torch.save but its end is missing or damaged ({error}): it is cut short. "
            "Download it again."
        ) from error
    names = {record.filename.partition("/")[2]: record.file_size for record in records}
    if "data.pkl" not in names:
        raise ValueError("This is a ZIP archive, not a checkpoint. If a checkpoint is inside, unpack it first.")
    if "constants.pkl" in names:
        raise ValueError("This is a TorchScript program, not a checkpoint. Choose a file of weights.")
    size = path.stat().st_size
    if any(record.file_size != record.compress_size for record in records) or (
        sum(record.file_size for record in records) > size
    ):
        raise ValueError(f"The records of this .pth are compressed or larger than its {size} bytes. Do not trust it.")
    if names["data.pkl"] > MAX_INDEX:
        raise ValueError(
            f"The index inside the .pth has {names['data.pkl']} bytes, more than {MAX_INDEX}. Do not trust it."
        )


def _directory_size(path: Path) -> int:
    """Bytes of the list of records at a ZIP's end, which is read whole; 0 where it is not found."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 2**16 + 98), 2)  # a comment, and the two ends of a large archive
        tail = file.read()
    end, large = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    if 0 <= large <= end and len(tail) >= large + 48:
        return struct.unpack_from("<Q", tail, large + 40)[0]
    return struct.unpack_from("<I", tail, end + 12)[0] if 0 <= end <= len(tail) - 16 else 0


def _unwrap(loaded: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The state dict within a training save, and notes on what was left out."""
    notes: list[str] = []
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            raise ValueError(
                f"The file holds one {type(loaded).__name__}, not a checkpoint's named tensors. "
                "Choose a file of weights."
            )
        key = next((key for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)), None)
        if key is None:
            break
        rest = [str(name) for name in loaded if name != key]
        notes.append(f"Read from '{key}'" + (f"; {list_names(rest)} left out." if rest else "."))
        loaded = loaded[key]
    state = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not state:
        held = list_names([str(name) for name in loaded]) or "nothing"
        raise ValueError(f"The file holds no tensors under names, but {held}. Choose a file of weights.")
    if others := [str(name) for name in loaded if str(name) not in state]:
        notes.append(f"No tensors, left out: {list_names(others)}.")
    return state, notes


def _read_shards(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str]]:
    index = _read_json(path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        what = f"the config of a {index['_class_name']}" if "_class_name" in index else "a JSON file"
        raise ValueError(f"This is {what}, not weights. Choose the weights beside it, or their folder.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    if strange := [shard for shard in shards if Path(shard).name != shard or "\\" in shard]:
        raise ValueError(f"The index names shards outside its own folder: {list_names(strange)}. Do not trust it.")
    if absent := [shard for shard in shards if not (path.parent / shard).is_file()]:
        raise ValueError(
            f"{len(absent)} of the {len(shards)} shards in the index are missing: {list_names(absent)}. "
            "Download them into the index's folder."
        )
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    notes: list[str] = []
    for shard in shards:
        if sniff(path.parent / shard) == JSON:
            raise ValueError(f"Shard {shard} is a JSON file, not weights. Download it again.")
        try:
            part, part_metadata, part_notes = _read_file(path.parent / shard)
        except ValueError as error:
            raise ValueError(f"Shard {shard}: {error}") from error
        tensors |= part
        metadata |= part_metadata
        notes += part_notes
    if lost := [name for name in weight_map if name not in tensors]:
        raise ValueError(
            f"The shards lack {len(lost)} tensors that the index promises, such as {list_names(lost)}: index and "
            "shards are of different downloads. Download them together."
        )
    return tensors, metadata, notes


def is_index(name: str) -> bool:
    """Whether a file is called as an index of shards is, of a variant too: model.safetensors.index.fp16.json."""
    return _INDEX.search(name) is not None


def shard_note(path: Path) -> str | None:
    """A sentence for a file that is one shard of a set, to explain why most of its weights are missing."""
    match = _SHARD.search(path.name)
    if match is None or not path.is_file():
        return None
    return f"It is shard {int(match[1])} of {int(match[2])}: choose the .index.json beside it, or their folder."


def _find_in_folder(path: Path) -> Path:
    """The weights in a folder of diffusers: the transformer's own, or a whole pipeline's."""
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.is_file())
    candidates = [file for file in files if is_index(file.name)] or [
        file for file in files if file.suffix in _WEIGHT_SUFFIXES
    ]
    if not candidates:
        raise ValueError("The folder holds no weights: no .safetensors, .pth, .bin or .index.json file is in it.")
    if len(candidates) > 1:
        if all(_SHARD.search(file.name) for file in candidates):
            raise ValueError("The folder holds shards without their .index.json. Download the index as well.")
        names = list_names([file.name for file in candidates])
        raise ValueError(f"The folder holds several files of weights ({names}). Choose one of them.")
    return candidates[0]


def read_config(folder: Path) -> dict[str, Any] | None:
    """diffusers' ``config.json`` of a model folder, with ``_pipeline_class_name`` from a ``model_index.json`` nearby.

    None where the folder has neither. Raises ValueError for files that are no JSON objects.
    """
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for index in (folder / "model_index.json", folder.parent / "model_index.json"):
        if index.is_file():
            config.setdefault("_pipeline_class_name", _read_json(index).get("_class_name"))
    return config or None


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, too many for a JSON file of a checkpoint.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON ({str(error)[:120]}). Download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, not a JSON object. Download it again.")
    return content
