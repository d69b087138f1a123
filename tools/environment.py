"""The Python environment of the checkout's commands: made once for each set of requirement files, then reused."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 10)
PIP_TIMEOUT = 5400  # s; half an hour was not enough on two cores with twenty busy processes


class SetupError(RuntimeError):
    """Something that the command needs could not be set up; the message says what and how to mend it."""


@dataclass(frozen=True)
class Requirements:
    """A requirements file and how pip is to read it."""

    path: Path
    with_dependencies: bool = True


DEVELOPMENT = Requirements(ROOT / "requirements-dev.txt")
HOST = (
    Requirements(ROOT / "tests" / "host" / "requirements.txt"),
    Requirements(ROOT / "tests" / "host" / "requirements-no-deps.txt", with_dependencies=False),
)


def say(text: str) -> None:
    """One line about what a command is doing, shown at once even when the output goes to a file."""
    print(text, flush=True)


def cache_folder() -> Path:
    """Where environments are kept: ``$XDG_CACHE_HOME/pixart-nodes`` or ``~/.cache/pixart-nodes``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pixart-nodes"


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    if os.name == "nt":
        return environment / "Scripts" / "python.exe"
    return environment / "bin" / "python"


def fingerprint(files: Sequence[Requirements]) -> str:
    """Twelve hex digits that change with the content of the files, of what they include, and with Python's version."""
    digest = hashlib.sha256(".".join(map(str, sys.version_info[:3])).encode())
    for file in (ROOT / "requirements.txt", *(requirements.path for requirements in files)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def environment(for_host: bool) -> Path:
    """The interpreter that runs the pack and its tests, and ComfyUI as well when ``for_host``; made where missing.

    Raises SetupError when Python is too old, ``venv`` is missing, or pip fails.
    """
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python 3.10 or newer is needed, and this is {found}. Run the command with a newer python3.")
    files = (DEVELOPMENT, *HOST) if for_host else (DEVELOPMENT,)
    place = cache_folder() / f"env-{fingerprint(files)}"
    if not place.is_dir():
        say(f"Setting up a Python environment in {place} (once; later runs reuse it).")
        build(place, files)
    return python_of(place)


def build(
    place: Path,
    files: Sequence[Requirements] = (),
    packages: Sequence[str] = (),
    without_dependencies: Sequence[str] = (),
    interpreter: str | Path = sys.executable,
) -> None:
    """Fill a folder of a temporary name and rename it when complete, so that a broken-off set-up is never used.

    Packages are installed before the files, so that a version that is named is there before anything asks for any.

    Console scripts in such an environment carry the temporary name: call modules with ``python -m`` instead.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    unfinished = Path(tempfile.mkdtemp(prefix=place.name + "-unfinished-", dir=place.parent))
    try:
        say("  creating the environment")
        run([str(interpreter), "-m", "venv", str(unfinished)], timeout=300, hint="On Debian: apt install python3-venv.")
        python = python_of(unfinished)
        if packages:
            install(python, ", ".join(packages), *packages)
        if without_dependencies:
            install(python, ", ".join(without_dependencies), "--no-deps", *without_dependencies)
        for file in files:
            options = () if file.with_dependencies else ("--no-deps",)
            install(python, file.path.relative_to(ROOT).as_posix(), *options, "-r", str(file.path))
        try:
            unfinished.rename(place)
        except OSError:
            if not place.is_dir():  # otherwise another run has just finished the same environment
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    say(f"  done in {time.monotonic() - started:.0f} s")


def install(python: Path, what: str, *arguments: str) -> None:
    """Have the environment of ``python`` install what pip's arguments name; ``what`` is told to the user."""
    say(f"  installing {what}")
    run(
        [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", *arguments],
        timeout=PIP_TIMEOUT,
        hint="Check the connection to the package index (pip's settings and proxy apply), and that the machine "
        "has time to spare, and run the command again.",
    )


def run(command: Sequence[str], timeout: float, hint: str, env: dict[str, str] | None = None) -> None:
    """Run a command quietly; SetupError with what it printed when it fails or takes longer than ``timeout`` s."""
    shown = " ".join(command)
    try:
        subprocess.run(
            command, cwd=ROOT, env=env, timeout=timeout, check=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        said = "\n".join((error.stdout or "").strip().splitlines()[-40:])
        raise SetupError(f"{shown}\nended with exit code {error.returncode}:\n{said}\n{hint}") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"{shown}\nwas stopped after {timeout:.0f} s. {hint}") from error
