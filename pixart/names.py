"""File names that a stranger may have typed: whether they stay below the folder in which they are looked up.

A workflow should mean the same file on every system, so what one system reads in a name of its own is refused on all:
drives, devices, and the dots and spaces that Windows drops from a name's end.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

LONGEST, LONGEST_PART = 1000, 255
"""Characters of a name, and bytes between two of its slashes, which is what file systems take."""

_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_INVISIBLE = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Marks that turn the direction of text, or break a line: what follows them is not where it seems to be."""

_SLASHES = "[/\\\\\u2044\u2215\u2216\u29f5\u29f8]"


def leads_out(name: str) -> bool:
    """Whether a name is absolute or has ``..`` in it, as POSIX or as Windows reads it."""
    return bool(PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in re.split(r"[/\\]", name))


def oddity(name: str, windows: bool = os.name == "nt") -> str:
    """What is wrong with a relative file name, as the rest of a sentence that begins with it; "" for nothing.

    Not whether the file exists, nor where a link in its path leads.
    """
    if leads_out(name):
        return "leads out of its folder"
    if len(name) > LONGEST:
        return f"has {len(name)} characters, more than {LONGEST}"
    for character in name:
        if unicodedata.category(character) in ("Cc", "Cs") or _INVISIBLE.match(character):
            return f"holds the character U+{ord(character):04X}, which cannot be seen"
        if character not in "/\\" and re.search(_SLASHES, unicodedata.normalize("NFKC", character)):
            return f"holds the character U+{ord(character):04X}, which only looks like a slash"
    if windows and ":" in name:
        return "holds a colon, which names a drive or a stream of a file"
    return next(filter(None, map(_part_oddity, re.split(r"[/\\]", name))), "")


def _part_oddity(part: str) -> str:
    if part in ("", "."):
        return ""
    if unicodedata.normalize("NFKC", part).strip() == "..":
        return "has a part that only looks like '..'"
    if part[-1] in ". ":
        return "has a part that ends in a dot or a space, which Windows would drop"
    if _DEVICE.fullmatch(part.partition(".")[0].rstrip()):
        return f"has the part {part[:40]!r}, which is a device on Windows"
    if len(part.encode("utf-8", "replace")) > LONGEST_PART:
        return f"has a part of more than {LONGEST_PART} bytes"
    return ""
