"""Commands whose output nobody reads any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def piped(command: list[str], read_first_line: bool = True) -> tuple[str, str, int]:
    """The first line of a command's output, all of its errors, and its exit code, when its reader leaves then."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = process.stdout.readline() if read_first_line else ""
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    return first, errors, process.wait(timeout=120)


MANY_LINES = "from pixart.terminal import leave\nleave(lambda: [print(n) for n in range(99999)] and 0)"


def test_a_reader_that_leaves_ends_a_command_without_a_word():
    assert piped(["-c", MANY_LINES]) == ("0\n", "", 141)


COMMANDS = [
    ["-m", "pixart"],
    ["-m", "pixart.doctor"],
    ["-m", "pixart.evaluation"],
    ["-m", "pixart.text"],
    ["-m", "pixart.training"],
    ["-m", "pixart.training.extract"],
    ["-m", "pixart.training.demo"],
    ["tools/picture.py"],
    ["tools/locales.py"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_ends_without_a_word_when_nobody_reads(command):
    assert piped([*command, "--help"], read_first_line=False) == ("", "", 141)


def test_what_a_command_returns_is_its_exit_code():
    for told, code in (("0", 0), ("None", 0), ("7", 7), ("sys.exit(3)", 3)):
        program = f"import sys\nfrom pixart.terminal import leave\nleave(lambda: {told})"
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == code


def test_another_fault_is_told_as_ever():
    done = subprocess.run(
        [sys.executable, "-c", "from pixart.terminal import leave\nleave(lambda: 1 / 0)"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: division by zero\n")
