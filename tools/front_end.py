"""The front end that a ComfyUI was released with, where the environment holds another one."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.comfyui import Host
from tools.environment import SetupError, cache_folder, install

PACKAGE = "comfyui-frontend-package"
STATIC = Path("comfyui_frontend_package") / "static"
INSTALLED = f"import importlib.metadata as m; print(m.version({PACKAGE!r}))"


def pinned_version(host: Host) -> str:
    """The version of the front end that a ComfyUI asks for. Raises SetupError where it names none."""
    file = host.path / "requirements.txt"
    found = re.search(rf"^{PACKAGE}==([0-9.]+)\s*$", file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SetupError(f"{file} names no version of {PACKAGE}.")
    return found[1]


def own_front_end(host: Host, python: Path) -> Path | None:
    """The folder to start a ComfyUI with as ``--front-end-root``, fetched once; None where the environment has it.

    Raises SetupError when it cannot be fetched.
    """
    version = pinned_version(host)
    said = subprocess.run([str(python), "-c", INSTALLED], capture_output=True, text=True, timeout=60)
    if said.stdout.strip() == version:
        return None
    place = cache_folder() / f"front-end-{version}"
    if not place.is_dir():
        fetch(version, python, place)
    return place / STATIC


def fetch(version: str, python: Path, place: Path) -> None:
    """Have pip unpack the front end; the folder gets its name when it is whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{place.name}-unfinished-", dir=place.parent))
    try:
        install(python, f"{PACKAGE} {version}", "--no-deps", "--target", str(unfinished), f"{PACKAGE}=={version}")
        if not (unfinished / STATIC / "index.html").is_file():
            raise SetupError(f"{PACKAGE} {version} holds no {STATIC.as_posix()}/index.html.")
        try:
            unfinished.rename(place)
        except OSError:
            if not place.is_dir():  # otherwise another run has just finished the same one
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
