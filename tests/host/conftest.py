"""Tests inside and against a real ComfyUI. Where there is none they are left out, and the summary says so.

Test modules here may import ``comfy`` and ``pixart_nodes`` at their top.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import host_process
import pytest
import torch

from tools.comfyui import find_hosts

ROOT = Path(__file__).resolve().parents[2]
HOSTS = find_hosts()

if HOSTS:
    host_process.enter(HOSTS[0])
    host_process.load_pack(ROOT)
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_terminal_summary(terminalreporter) -> None:
    if not HOSTS:
        terminalreporter.write_line("host tests left out: no ComfyUI found (set COMFYUI_PATH to its folder)")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The node pack, as a package."""
    return host_process.load_pack(ROOT)


@pytest.fixture(scope="session")
def node_classes(pack: ModuleType) -> dict[str, type]:
    """The pack's nodes by id, after the pack has set itself up as in ComfyUI."""

    async def collect() -> list[type]:
        extension = await pack.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(collect())}
