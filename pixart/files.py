"""Files that are there whole or not at all."""

from __future__ import annotations

import glob
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

STALE = 24 * 3600
"""Age in s after which what a killed process left half written is taken for that and not for another's work."""


def partial_of(path: Path) -> Path:
    """A hidden name beside ``path`` to write under, which no other process takes."""
    return path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.partial")


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block has ended well.

    Until then whatever lay under that name stays, and it is all that stays when the block or the process ends
    otherwise. Raises ValueError when the disk is full or does not let the file be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        partial = partial_of(path)
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())  # some disks tell only here that they are full
            os.replace(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path.name} could not be written to {path.parent}: {reason}. Nothing was changed there. "
            "Make room on that disk, or allow writing to that folder, and queue again."
        ) from error


def remove_stale(path: Path) -> None:
    """Delete what processes that were killed have left of this very file."""
    pattern = f".{glob.escape(path.name[:40])}.{'[0-9a-f]' * 32}.partial"
    for left in path.parent.glob(pattern):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
