"""Two thousand damaged headers and key tables: each opens or is refused in a sentence, and costs no memory to speak of.

The seed is fixed. A file is refused with a ValueError that names it; the process may not grow by more than twice the
file while it is read, which is measured, and cannot grow by much more, which is enforced.
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pixart.checkpoint import open_checkpoint, to_diffusers
from pixart.config import PixArtConfig
from pixart.text.encoder import open_t5
from pixart.text.layout import T5Config
from pixart.transformer import PixArtTransformer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")

CONFIG = PixArtConfig(hidden_size=144, num_heads=2, depth=2, mlp_hidden_size=144, caption_channels=8)
STATE = {n: torch.full(t.shape, 0.01) for n, t in PixArtTransformer(CONFIG, device="meta").state_dict().items()}
ORIGINAL = save(STATE)
DIFFUSERS = save({name: tensor.clone() for name, tensor in to_diffusers(STATE).items()})
T5 = T5Config(vocab_size=6000, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
ENCODER = save({name: torch.full(shape, 0.01) for name, shape in T5.shapes().items()})

SLACK = 2 * 2**20
"""Bytes: what the interpreter's and the libraries' allocators take in steps, whatever the file."""


def torch_file(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


PTH = torch_file({"state_dict": STATE})


def safetensors(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def damage_safetensors(rng: random.Random, good: bytes) -> bytes:
    """One to four changes to the length, the JSON or the tail of a safetensors file."""
    length = struct.unpack("<Q", good[:8])[0]
    header, data = bytearray(good[8 : 8 + length]), good[8 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        lengths = [0, 1, length - 1, length + 1, 1 << 31, 1 << 63, rng.getrandbits(64)]
        return struct.pack("<Q", rng.choice(lengths)) + good[8:]
    if kind == 1:
        return good[: rng.randrange(len(good))]
    if kind == 2:
        for _ in range(rng.randint(1, 4)):
            header[rng.randrange(length)] = rng.randrange(256)
        return struct.pack("<Q", length) + bytes(header) + data
    table = json.loads(header)
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(list(table))
        entry = table[name]
        if kind == 3:
            table[f"blocks.{rng.choice([7, 10**5, 10**30, '٣', '-1'])}.attn.qkv.weight"] = table.pop(name)
        elif kind == 4:
            lengths = [0, 1, 2, 1 << 40, 1 << 63, *entry["shape"]]
            entry["shape"] = rng.choices(lengths, k=rng.randint(0, 6))
        else:
            entry["dtype"] = rng.choice(["F32", "F64", "I8", "U64", "BOOL", "F8_E4M3", "C64", "nonsense"])
            size = sum(b - a for a, b in (e["data_offsets"] for e in table.values()))
            entry["data_offsets"] = rng.choice([[0, size], [size, 0], [0, 1 << 50], entry["data_offsets"]])
    return safetensors(table, data)


def damage_names(rng: random.Random, good: bytes) -> bytes:
    """A sound file whose key table is not: names lost, doubled into another place, or foreign."""
    length = struct.unpack("<Q", good[:8])[0]
    table, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    names = list(table)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(names)
        new = rng.choice(
            [
                f"model.diffusion_model.{name}", f"{name}.weight_scale", f"{name}.lora_A.weight", name[:9],
                f"{name}.comfy_quant", "blocks.1.attn.sr.weight", "scaled_fp8", "pixart_config", "pos_embed", "", "\0",
                "." * 300, f"transformer_blocks.9.{name}", "x" * 100_000,
            ]
        )  # fmt: skip
        if name in table and new not in table:
            table[new] = table.pop(name)
    return safetensors(table, data)


def damage_pth(rng: random.Random, good: bytes) -> bytes:
    """Bytes of the index changed (which is at the beginning), or of the archive's own table (at the end)."""
    data = bytearray(good)
    place = rng.choice([range(4000), range(len(data) - 9000, len(data))])
    for _ in range(rng.randint(1, 6)):
        data[rng.choice(place)] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)


SOURCES: dict[str, tuple[Callable, bytes, Callable, int]] = {
    "original header": (damage_safetensors, ORIGINAL, open_checkpoint, 500),
    "diffusers header": (damage_safetensors, DIFFUSERS, open_checkpoint, 500),
    "original names": (damage_names, ORIGINAL, open_checkpoint, 200),
    "diffusers names": (damage_names, DIFFUSERS, open_checkpoint, 200),
    "index of a .pth": (damage_pth, PTH, open_checkpoint, 200),
    "T5 header": (damage_safetensors, ENCODER, open_t5, 250),
    "T5 names": (damage_names, ENCODER, open_t5, 150),
}


def test_two_thousand_are_tried():
    assert sum(count for *_, count in SOURCES.values()) == 2000


def memory(line: str) -> int:
    """A line of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{line}:", 1)[1].split(maxsplit=1)[0]) * 1024


def growth(call: Callable[[], None]) -> int:
    """By how many bytes the process's memory rose above where it stood, at its highest, while ``call`` ran."""
    Path("/proc/self/clear_refs").write_text("5")  # the recorded peak becomes what is used now
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before


@pytest.fixture
def memory_limit() -> Iterator[Callable[[int], None]]:
    """No single allocation of more than twice the file and room for the interpreter can succeed."""

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 2 * size + 64 * 2**20, before[1]))

    before = resource.getrlimit(resource.RLIMIT_AS)
    yield limit
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("source", SOURCES)
def test_damaged_files_never_crash_hang_or_allocate(source, tmp_path, memory_limit):
    damage, good, read, count = SOURCES[source]
    rng = random.Random(f"20240403 {source}")
    path = tmp_path / ("x.pth" if good is PTH else "x.safetensors")
    path.write_bytes(good)
    read(path)  # what is loaded once for all files is not the files' cost
    memory_limit(len(good))
    refused, slowest, largest = 0, 0.0, 0

    def attempt() -> None:
        nonlocal refused
        try:
            read(path)
        except ValueError as error:
            refused += 1
            text = str(error)
            assert text.startswith(f"{path}: ") and text.rstrip()[-1] in ".)" and len(text) < 1500, text

    for _ in range(count):
        path.unlink()  # an earlier one may be mapped still
        path.write_bytes(damage(rng, good))
        start = time.process_time()
        largest = max(largest, growth(attempt))
        slowest = max(slowest, time.process_time() - start)
    print(f"{source}: {refused}/{count} refused, slowest {slowest:.3f} s, largest growth {largest / len(good):.2f} x")
    assert refused > 0.6 * count
    assert slowest < 2.0
    assert largest <= 2 * len(good) + SLACK
