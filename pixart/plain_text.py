"""Text files that people write, in whichever encoding their editor has marked."""

from __future__ import annotations

import codecs
from pathlib import Path

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its first bytes say so, every line ending as ``\\n``.

    Editors and shells of Windows write UTF-16. Raises ValueError, naming the file, for anything else.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (see byte {error.start}): save it as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
