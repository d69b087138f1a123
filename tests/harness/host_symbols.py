"""Which names of ComfyUI the pack uses, read from its sources, and which of them a ComfyUI does not have.

Found are names that a source takes from the host by an import, and chains of attributes after them, also through a
variable that stands for such a chain: ``management = comfy.model_management`` and ``management.get_torch_device``.
What is looked up by ``getattr`` with a default is optional and not counted.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

RUNTIME = {"server.PromptServer.instance"}
"""Set when the server starts; what follows it is looked for on the class before it."""

Symbols = dict[str, set[str]]
"""Dotted name → where it is used, as file:line."""


def host_modules(host: Path) -> set[str]:
    """Top-level modules and packages of a ComfyUI tree."""
    files = {path.stem for path in host.glob("*.py")}
    return files | {path.name for path in host.iterdir() if path.is_dir() and path.name.isidentifier()}


def sources(root: Path) -> list[Path]:
    """What of a checkout runs inside ComfyUI."""
    return [root / "__init__.py", *sorted((root / "nodes").rglob("*.py")), *sorted((root / "pixart").rglob("*.py"))]


def used(paths: Iterable[Path], modules: set[str], root: Path) -> Symbols:
    found: Symbols = {}
    for path in paths:
        for name, line in names_in(ast.parse(path.read_text(encoding="utf-8")), modules):
            found.setdefault(name, set()).add(f"{path.relative_to(root).as_posix()}:{line}")
    return found


def names_in(tree: ast.Module, modules: set[str]) -> Iterator[tuple[str, int]]:
    """(dotted name, line) for every name of the host in a source."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in modules:
                    known[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.partition(".")[0] in modules:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):  # names that stand for a chain, in whatever function
        for target, value in pairs(node):
            if chain := dotted(value, known):
                known.setdefault(target, chain)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (chain := dotted(node, known)):
            yield chain, node.lineno


def pairs(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(variable, its value) of an assignment of one or more."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Name) and isinstance(value, ast.Attribute):
            yield target.id, value
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, of_one in zip(target.elts, value.elts, strict=False):
                if isinstance(one, ast.Name) and isinstance(of_one, ast.Attribute):
                    yield one.id, of_one


def dotted(node: ast.expr, known: dict[str, str]) -> str | None:
    """``a.b.c`` with its first name spelt out, or None where that is none of the host's."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in known:
        return None
    return ".".join([known[node.id], *reversed(names)])


def is_there(name: str) -> bool:
    """Whether a dotted name can be reached in the ComfyUI of this process."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    so_far = parts[0]
    for part in parts[1:]:
        so_far = f"{so_far}.{part}"
        if so_far in RUNTIME:
            continue  # the class stands for its one instance
        if not hasattr(found, part):
            try:
                importlib.import_module(so_far)
            except ImportError:
                return False
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def missing(symbols: Symbols) -> dict[str, list[str]]:
    """Names that are not there, with the places that use them."""

    def there(name: str) -> bool:
        try:
            return is_there(name)
        except ImportError:
            return False

    return {name: sorted(places) for name, places in sorted(symbols.items()) if not there(name)}
