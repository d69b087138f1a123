"""What a file is by its first bytes, before any library opens it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

SAFETENSORS = "safetensors"
TORCH_ZIP = "torch zip"
JSON = "json"

_HEAD = 512
_MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit

_DOWNLOAD = "Download it again"
_CHOOSE = "Choose a .safetensors or .pth file."
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "This is a Git LFS pointer, not the weights it stands for. Run 'git lfs pull', or "
     "download the file itself."),
    (b"GGUF", "This is a GGUF file; PixArt transformers are read from .safetensors and .pth. Choose one of those."),
    (b"\x89PNG", f"This is a PNG picture, not a checkpoint. {_CHOOSE}"),
    (b"\xff\xd8\xff", f"This is a JPEG picture, not a checkpoint. {_CHOOSE}"),
    (b"RIFF", f"This is a WebP, WAV or AVI file, not a checkpoint. {_CHOOSE}"),
    (b"\x1f\x8b", "This is a gzip archive. Unpack it first."),
    (b"7z\xbc\xaf", "This is a 7z archive. Unpack it first."),
    (b"Rar!", "This is a RAR archive. Unpack it first."),
    (b"\xfd7zXZ", "This is an xz archive. Unpack it first."),
    (b"(\xb5/\xfd", "This is a Zstandard archive. Unpack it first."),
    (b"\x89HDF", "This is an HDF5 (Keras) file. Choose a PixArt checkpoint in safetensors or .pth."),
    (b"\x93NUMPY", f"This is a NumPy array, not a checkpoint. {_CHOOSE}"),
    (b"%PDF", f"This is a PDF document, not a checkpoint. {_CHOOSE}"),
    (b"\x80", "This is a bare pickle, or a .pth of PyTorch before 1.6. Neither can be read without running it or "
     "copying it whole into memory; save it anew with a current torch.save, or as safetensors."),
)  # fmt: skip


def sniff(path: Path) -> str:
    """``SAFETENSORS``, ``TORCH_ZIP`` or ``JSON``; raises ValueError that says what any other file is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise ValueError(f"The file is empty. {_DOWNLOAD}.")
    # First, because the bytes of a header's length may by chance begin as another format or as text does.
    if _looks_like_safetensors(head, size):
        return SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        if path.name.endswith(".safetensors"):  # torch.load goes by the name and would take it for safetensors
            raise ValueError("This is a .pth of torch.save, or another ZIP, named .safetensors. Rename it to .pth.")
        return TORCH_ZIP
    for magic, message in _MAGIC:
        if head.startswith(magic):
            raise ValueError(message)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        raise ValueError(
            "This is a web page (HTML or XML) saved under a checkpoint's name: the site answered with a page, often "
            f"because it wants a login or a licence accepted. {_DOWNLOAD} from the model's own page."
        )
    if text[:1] in (b"{", b"["):
        return JSON
    raise ValueError(_explain_header_length(head, size))


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8


def _explain_header_length(head: bytes, size: int) -> str:
    """Why the first eight bytes announce no header that the file can hold."""
    if size < 10:
        return f"The file has {size} bytes, too few for a checkpoint. {_DOWNLOAD}."
    if not head.strip(b"\0"):
        return f"The file begins with zeros only: its download never finished. {_DOWNLOAD}."
    announced = struct.unpack("<Q", head[:8])[0]
    if head[8:9] == b"{" and announced <= _MAX_HEADER:
        return (
            f"The safetensors header should be {announced} bytes long, but only {size - 8} follow: the file is cut "
            f"short or its header length is wrong. {_DOWNLOAD}."
        )
    return (
        "This is no checkpoint format that is known here: neither safetensors (whose first 8 bytes give a header "
        f"length; here they say {announced}) nor a .pth of torch.save. Choose a .safetensors or .pth file."
    )


def header_length(path: Path) -> int:
    """Bytes of JSON that the first eight of a safetensors file announce."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def announced_size(path: Path) -> int | None:
    """Bytes that a safetensors header speaks of, read from its offsets alone, however broken the rest is."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = file.read(length)
    ends = re.findall(rb'"data_offsets"\s{0,9}:\s{0,9}\[\s{0,9}\d{1,18}\s{0,9},\s{0,9}(\d{1,18})', header)
    return 8 + length + max(map(int, ends)) if ends else None
