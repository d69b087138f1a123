"""The model library works where there is no ComfyUI, and the host's packages stay in nodes/."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "pixart").rglob("*.py"))
HOST_PACKAGES = {
    "comfy", "comfy_api", "comfy_api_nodes", "comfy_execution", "comfy_extras", "execution", "folder_paths",
    "latent_preview", "node_helpers", "nodes", "server",
}  # fmt: skip

IMPORT_WITHOUT_HOST = """
import importlib, importlib.abc, sys

class NoHost(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {host!r}:
            raise ModuleNotFoundError(name + " is not here", name=name)

sys.meta_path.insert(0, NoHost())
for module in {modules!r}:
    importlib.import_module(module)
    print(module)
"""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_packages(source: str) -> set[str]:
    """First names of everything that a source imports from outside its own package."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_every_module_of_the_library_imports_without_the_host():
    modules = [module_name(file) for file in LIBRARY]
    code = IMPORT_WITHOUT_HOST.format(host=HOST_PACKAGES, modules=modules)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == modules


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_library_imports_nothing_of_the_host(file: Path):
    assert imported_packages(file.read_text(encoding="utf-8")) & HOST_PACKAGES == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import comfy.ops as o", {"comfy"}),
        ("def f():\n    from comfy_api.v0_0_2 import io", {"comfy_api"}),
        ("from .nodes import x\nfrom . import y", set()),
    ],
)
def test_imports_are_seen_wherever_they_stand(source: str, expected: set[str]):
    assert imported_packages(source) == expected
