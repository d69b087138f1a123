"""How a command ends: what it returns, what it says, and readers that leave before it has said all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

NOBODY_READS = 141
"""Exit code when the reader of our output has gone, as shells give it to a program that SIGPIPE ends."""


def leave(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what ``main`` returns, and without a word where ``| head`` has heard enough."""
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()  # else the interpreter does it, after the last place that could catch the error
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())  # what is still held back is written at the exit, and must not fail
        code = NOBODY_READS
    sys.exit(code)


def fail(message: str) -> int:
    """Say what went wrong in one line."""
    sys.stderr.write("pixart: " + " ".join(message.split()) + "\n")
    return 2
