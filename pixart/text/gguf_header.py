"""What a GGUF header counts, held against the file before the gguf package believes it.

The package makes Python objects of every value that a header speaks of, also of those beyond the file's end. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

MAX_HEADER = 64 * 2**20
"""Bytes; a T5's vocabulary in it takes two million."""

MAX_VALUES = 2_000_000
MAX_TENSORS = 20_000
MAX_KEYS = 4096
MAX_NAME = 1000
MAX_DIMENSIONS = 4

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def check_header(path: Path) -> None:
    """Raises ValueError, without the path's name, for a header that counts more than a model has or the file holds."""
    with path.open("rb") as file:
        _Header(file.read(MAX_HEADER), os.fstat(file.fileno()).st_size).check()


class _Header:
    """The beginning of a file, read from front to back."""

    def __init__(self, data: bytes, size: int):
        self.data, self.size, self.place, self.values = data, size, 4, 0
        # A file of the other byte order has its version, a small number, in the upper bytes.
        swapped = len(data) >= 8 and data[4:6] == b"\0\0"
        self.order = ">" if swapped else "<"

    def number(self, kind: str) -> int:
        width = struct.calcsize(kind)
        self.skip(width)
        return struct.unpack_from(self.order + kind, self.data, self.place - width)[0]

    def skip(self, count: int) -> None:
        self.place += count
        if self.place > self.size:
            raise ValueError(
                f"The GGUF file is damaged or cut short (its header speaks of more than its {self.size} bytes). "
                "Download it again."
            )
        if self.place > len(self.data):
            raise ValueError(f"The GGUF header is longer than {MAX_HEADER} bytes. Do not trust the file.")

    def at_most(self, count: int, most: int, what: str) -> int:
        if count > most:
            raise ValueError(f"The GGUF header speaks of {count} {what}, more than {most}. Do not trust the file.")
        return count

    def text(self, most: int | None = None) -> None:
        length = self.number("Q")
        self.skip(length if most is None else self.at_most(length, most, "characters of a name"))

    def check(self) -> None:
        self.number("I")  # the version, which the package looks at
        tensors = self.at_most(self.number("Q"), MAX_TENSORS, "tensors")
        keys = self.at_most(self.number("Q"), MAX_KEYS, "keys")
        for _ in range(keys):
            self.text(MAX_NAME)
            self.value(self.number("I"))
        for _ in range(tensors):
            self.text(MAX_NAME)
            self.tensor()

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            self.array(self.number("I"), self.number("Q"))
        else:
            self.skip(self.scalar(kind))

    def array(self, kind: int, count: int) -> None:
        self.values = self.at_most(self.values + count, MAX_VALUES, "values in lists")
        if kind == _STRING:
            for _ in range(count):
                self.text()
        else:
            self.skip(self.scalar(kind) * count)

    def scalar(self, kind: int) -> int:
        """Bytes of a value; lists of lists are of no known model."""
        if kind not in _SCALARS:
            raise ValueError(f"The GGUF header is damaged (a value of unknown kind {kind}). Download the file again.")
        return _SCALARS[kind]

    def tensor(self) -> None:
        dimensions = self.at_most(self.number("I"), MAX_DIMENSIONS, "dimensions")
        numbers = 1
        for _ in range(dimensions):
            numbers *= self.number("Q")
        if numbers > 8 * self.size:  # no type has less than one bit a number
            raise ValueError(
                f"The GGUF header speaks of a tensor of {numbers} numbers in a file of {self.size} bytes. "
                "Do not trust the file."
            )
        self.number("I")
        self.number("Q")
