"""Damage to sound files: bytes, and where a file has a structure, what the structure says."""

from __future__ import annotations

import json
import random
import struct

TEXTS = [
    "", "\0", "..", "/etc/passwd", "a" * 3000, "\ud800", "pixart_config", "spiece_model", "scaled_fp8", "alpha",
    ".alpha",
    "blocks.9.attn.qkv.weight", "blocks.0.attn.sr.weight", "blocks.0.attn.q_norm.weight", "transformer_blocks.3.x",
    "controlnet.1.after_proj.weight", "encoder.block.7.layer.0.x", "model.", "transformer.", "lora_A", ".lora_B.bias",
    "NaN", "1e999", "-1", "0", "null", "[]", "{}", "[" * 3000, "true", "9" * 5000, "(a|a)(a|a)(a|a)(a|a)", "(.*)*x",
    "float8_e4m3fn", "nvfp4", "F64", "BF16", "BOOL", "U8", "I64", "F8_E4M3", "C64", "F4", "E8M0",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 31, 64, 144, 255, 256, 2**15, 2**31, 2**32 - 1, 2**40, 2**53, 2**63, 2**64 - 1, 10**30]
VALUES = [None, True, False, 1.5, -0.0, 1e308, [], {}, [[]], {"a": {"b": []}}, [1, 2], "x"]
DTYPES = ["F32", "F16", "BF16", "F64", "I8", "U8", "I16", "I32", "I64", "U64", "BOOL", "F8_E4M3", "F8_E5M2", "C64"]
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


def mutate(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    """A damaged copy; what can be read as safetensors is damaged as such three times out of four."""
    header = read_header(data)
    if header is not None and rng.random() < 0.75:
        return rng.choice([edit_tensors, edit_metadata, edit_json])(rng, *header)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        data = rng.choice(BYTES)(rng, data, seeds)
    return data


def read_header(data: bytes) -> tuple[dict, bytes] | None:
    if len(data) < 10 or data[8:9] != b"{":
        return None
    length = struct.unpack("<Q", data[:8])[0]
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    return (header, data[8 + length :]) if isinstance(header, dict) and length < len(data) else None


def write(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def edit_tensors(rng: random.Random, header: dict, data: bytes) -> bytes:
    """A sound file again, whose tensors have other names, types, shapes and numbers."""
    tensors = [[name, sound(entry)] for name, entry in header.items() if name != "__metadata__"]
    for _ in range(rng.randint(1, 4)):
        if not tensors:
            break
        which = rng.randrange(len(tensors))
        name, entry = tensors[which]
        kind = rng.randrange(6)
        if kind == 0:
            del tensors[which]
        elif kind == 1:
            parts = name.split(".")
            parts[rng.randrange(len(parts))] = rng.choice([str(rng.choice(NUMBERS)), rng.choice(TEXTS), parts[0]])
            tensors[which][0] = ".".join(parts)
        elif kind == 2:
            tensors.append([name + "." + rng.choice(TEXTS), entry])
        elif kind == 3:
            tensors[which] = [name, {**entry, "dtype": rng.choice(DTYPES)}]
        elif kind == 4:
            shape = list(entry.get("shape") or ())
            shape = rng.choice([shape[::-1], shape[:-1], [1, *shape], [0], [], [rng.randint(0, 300)], [2, 2]])
            tensors[which] = [name, {**entry, "shape": shape}]
        else:
            tensors[which] = [rng.choice(TEXTS), entry]
    return lay_out(rng, tensors, header.get("__metadata__"), data)


def sound(entry) -> dict:
    """A tensor's entry of a header, whose parts an earlier damage may have made anything of."""
    entry = dict(entry) if isinstance(entry, dict) else {}
    return {name: entry[name] for name in ("shape", "data_offsets") if isinstance(entry.get(name), list)} | {
        "dtype": str(entry.get("dtype", "F32"))
    }


def lay_out(rng: random.Random, tensors: list, metadata, data: bytes) -> bytes:
    """Offsets that fit the types and shapes, so that the file is read further than its header."""
    header, place, numbers = {}, 0, bytearray()
    if metadata is not None:
        header["__metadata__"] = metadata
    fill = rng.choice([b"\0", b"\xff", b"\x7f\xc0", b"\x3c\x00", data[:64] or b"\1"])
    for name, entry in tensors:
        shape = [size for size in entry.get("shape") or () if isinstance(size, int)]
        count = 1
        for size in shape:
            count *= size
        length = count * WIDTHS.get(entry["dtype"], 1)
        if not 0 <= length <= 2**20 or place + length > 2**22:
            shape, length = [0], 0
        header[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [place, place + length]}
        begin = (entry.get("data_offsets") or [0])[0]
        own = data[begin : begin + length] if isinstance(begin, int) and rng.random() < 0.9 else b""
        numbers += own.ljust(length, fill[:1])
        place += length
    return write(header, bytes(numbers))


def edit_metadata(rng: random.Random, header: dict, data: bytes) -> bytes:
    stored = header.get("__metadata__")
    metadata = dict(stored) if isinstance(stored, dict) else {}
    for _ in range(rng.randint(1, 3)):
        known = [*metadata, "pixart.num_heads", "pixart.base_size", "pixart.family", "lora_alpha", "ss_network_alpha",
                 "lora_adapter_metadata", "_quantization_metadata", "modelspec.architecture", "pixart.t5_identity",
                 "values", "tokens", "prompt"]  # fmt: skip
        name = rng.choice(known)
        try:
            content = json.loads(metadata.get(name, ""))
        except (ValueError, RecursionError, TypeError):
            content = None
        if isinstance(content, dict | list) and rng.random() < 0.8:
            metadata[name] = json.dumps(edit_value(rng, content))
        else:
            metadata[name] = rng.choice([rng.choice(TEXTS), str(rng.choice(NUMBERS)), json.dumps(rng.choice(VALUES))])
    return write({**header, "__metadata__": metadata}, data)


def edit_json(rng: random.Random, header: dict, data: bytes) -> bytes:
    return write(edit_value(rng, header), data)


def edit_value(rng: random.Random, value):
    """One change somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value = dict(value)
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            value[rng.choice(TEXTS)] = value.pop(key)
        else:
            value[key] = edit_value(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        value = list(value)
        place = rng.randrange(len(value))
        value[place] = edit_value(rng, value[place])
        return value
    return rng.choice([rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(VALUES)])


def flip(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    # The beginning of a file says what it is and counts what follows.
    end = len(changed) if rng.random() < 0.5 else min(len(changed), 400)
    for _ in range(rng.randint(1, 6)):
        changed[rng.randrange(end)] = rng.randrange(256)
    return bytes(changed)


def count(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    """A number of four or eight bytes somewhere near the beginning."""
    changed = bytearray(data.ljust(16, b"\0"))
    width = rng.choice([4, 8])
    place = rng.randrange(max(1, min(len(changed) - width, 600)))
    number = rng.choice([*NUMBERS, rng.getrandbits(64)]) % 2 ** (8 * width)
    changed[place : place + width] = number.to_bytes(width, "little")
    return bytes(changed)


def cut(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def repeat(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    if not data:
        return b"x" * 5000
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice([1, 2, 5, 20])]
    return data[:start] + piece * rng.choice([2, 50, 5000 // len(piece)]) + data[start:]


def insert(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    place = rng.randrange(len(data) + 1)
    text = rng.choice([*TEXTS, str(rng.choice(NUMBERS)), ",", '"', "\n", "\t", "\r", "#", "<b>", "&#", "%", "\u202e"])
    return data[:place] + text.encode("utf-8", "surrogatepass") + data[place:]


def splice(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    other = rng.choice(seeds)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


BYTES = (flip, flip, count, cut, repeat, insert, insert, splice)
