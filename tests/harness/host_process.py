"""ComfyUI's modules inside the test's own process, and the pack loaded as ComfyUI loads it."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from tools.comfyui import Host

PACK_NAME = "pixart_nodes"


def enter(host: Host) -> None:
    """Make ``import comfy`` mean this ComfyUI, on the processor, with an empty base folder of its own.

    One process can hold one ComfyUI. Raises ValueError when it already holds another.
    """
    already = sys.modules.get("comfy")
    if already is not None:
        if not is_inside(already, host.path):
            raise ValueError(
                f"This process already holds another ComfyUI than the one in {host.path}. "
                "Start a process for each (tools/test.py does)."
            )
        return
    sys.path.insert(0, str(host.path))
    from comfy.cli_args import args

    # Both are read once, at the first import of comfy.model_management and folder_paths.
    args.cpu = True
    args.base_directory = tempfile.mkdtemp(prefix="pixart-host-test-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)


def is_inside(module: ModuleType, folder: Path) -> bool:
    return any(Path(place).resolve().is_relative_to(folder) for place in module.__path__)


def load_pack(root: Path) -> ModuleType:
    """The pack as the package ``pixart_nodes``: its parts are ``pixart_nodes.nodes``, ``pixart_nodes.pixart`` …"""
    if PACK_NAME in sys.modules:
        return sys.modules[PACK_NAME]
    spec = importlib.util.spec_from_file_location(
        PACK_NAME, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK_NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[PACK_NAME]
        raise
    return module
