"""The words of the nodes' schemas, read from their source: no ComfyUI is needed, and no code of the nodes runs.

Understood is what schemas are made of: literals, ``+``, f-strings, lists with ``*``, names bound once in a module of
the pack, and functions of one ``return``. A word that is made otherwise is an error, not a gap.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UNKNOWN = object()
"""The value of an expression that is not understood, such as the files in a folder."""


class SchemaError(ValueError):
    """A schema holds a word that cannot be read from its source."""


@dataclass(frozen=True)
class Slot:
    """An input, or an output; an output's name is None where it is called after its type.

    kind: the host's class, such as ``io.Model``.
    """

    name: str | None
    tooltip: str
    kind: str = field(default="", compare=False)


@dataclass(frozen=True)
class NodeText:
    node_id: str
    display_name: str
    description: str
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]


@dataclass(frozen=True)
class Made:
    """A call of one of the host's classes, such as ``io.Int.Input("width", tooltip="…")``."""

    owner: str
    attribute: str
    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    line: int


@dataclass
class Module:
    """A file, and what its names stand for."""

    path: Path
    tree: ast.Module
    names: dict[str, ast.AST] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Module:
        module = cls(path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
        for statement in module.tree.body:
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                if isinstance(statement.targets[0], ast.Name):
                    module.names[statement.targets[0].id] = statement.value
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                module.names[statement.target.id] = statement.value
            elif isinstance(statement, ast.FunctionDef):
                module.names[statement.name] = statement
            elif isinstance(statement, ast.ImportFrom) and statement.level:
                module.names |= {alias.asname or alias.name: statement for alias in statement.names}
        return module

    def find(self, name: str) -> tuple[Module, ast.AST] | None:
        """Where in the pack a name comes from, followed through relative imports."""
        found = self.names.get(name)
        if not isinstance(found, ast.ImportFrom):
            return None if found is None else (self, found)
        folder = self.path.parents[found.level - 1]
        source = folder.joinpath(*(found.module or "").split(".")).with_suffix(".py")
        original = next(alias.name for alias in found.names if name == (alias.asname or alias.name))
        return Module.read(source).find(original) if source.is_file() else None


def read_nodes(folder: Path) -> list[NodeText]:
    """Every node in the Python files of a folder, by file and then in the order of the source.

    Raises SchemaError where an id, a name, a description or a tooltip cannot be read.
    """
    return [node for path in sorted(folder.glob("*.py")) for node in nodes_of(Module.read(path))]


def nodes_of(module: Module) -> Iterator[NodeText]:
    for statement in module.tree.body:
        if isinstance(statement, ast.ClassDef):
            for method in statement.body:
                if isinstance(method, ast.FunctionDef) and method.name == "define_schema":
                    yield node_text(module, evaluate(returned(method), module, {}))


def node_text(module: Module, schema: Any) -> NodeText:
    if not isinstance(schema, Made) or schema.attribute != "Schema":
        raise SchemaError(f"{module.path}: define_schema must end in “return io.Schema(…)”.")
    return NodeText(
        word(module, schema, "node_id"),
        word(module, schema, "display_name"),
        word(module, schema, "description"),
        tuple(
            Slot(word(module, made, "id", 0), word(module, made, "tooltip"), made.owner)
            for made in slots(module, schema, "inputs", "Input")
        ),
        tuple(
            Slot(word(module, made, "display_name", 1, optional=True), word(module, made, "tooltip"), made.owner)
            for made in slots(module, schema, "outputs", "Output")
        ),
    )


def slots(module: Module, schema: Made, name: str, attribute: str) -> list[Made]:
    listed = schema.named.get(name, [])
    if not isinstance(listed, list) or not all(isinstance(e, Made) and e.attribute == attribute for e in listed):
        raise SchemaError(
            f"{module.path}, line {schema.line}: {name} of the schema cannot be read from the source. "
            f"Write them as a list of io.….{attribute}(…)."
        )
    return listed


def word(module: Module, made: Made, name: str, position: int | None = None, optional: bool = False) -> str | None:
    """A string argument, by its name or its position."""
    value = made.named.get(name)
    if name not in made.named and position is not None and position < len(made.positional):
        value = made.positional[position]
    if value is None and optional:
        return None
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if value is None else "an expression" if value is UNKNOWN else repr(value)
        raise SchemaError(
            f"{module.path}, line {made.line}: {name} must be a text that can be read from the source; found {found}."
        )
    return value


def returned(function: ast.FunctionDef) -> ast.AST | None:
    """The expression a function returns, where that is all it does."""
    body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None


def evaluate(node: ast.AST | None, module: Module, local: Mapping[str, Any]) -> Any:
    """The value of an expression, UNKNOWN where it is not understood."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in local:
            return local[name]
        case ast.Name(id=name):
            found = module.find(name)
            return evaluate(found[1], found[0], {}) if found and isinstance(found[1], ast.expr) else UNKNOWN
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [evaluate(part, module, local) for part in (left, right)]
            same = all(isinstance(part, str) for part in parts) or all(isinstance(part, list) for part in parts)
            return parts[0] + parts[1] if same else UNKNOWN
        case ast.JoinedStr(values=values):
            parts = [evaluate(part, module, local) for part in values]
            return UNKNOWN if UNKNOWN in parts else "".join(map(str, parts))
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return evaluate(value, module, local)
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return sequence(elements, module, local)
        case ast.Call():
            return call(node, module, local)
        case _:
            return UNKNOWN


def sequence(elements: list[ast.expr], module: Module, local: Mapping[str, Any]) -> Any:
    values: list[Any] = []
    for element in elements:
        if not isinstance(element, ast.Starred):
            values.append(evaluate(element, module, local))
            continue
        part = evaluate(element.value, module, local)
        if not isinstance(part, list):
            return UNKNOWN
        values += part
    return values


def call(node: ast.Call, module: Module, local: Mapping[str, Any]) -> Any:
    positional = sequence(node.args, module, local)
    named = {keyword.arg: evaluate(keyword.value, module, local) for keyword in node.keywords}
    if positional is UNKNOWN or None in named:
        return UNKNOWN
    if isinstance(node.func, ast.Attribute):
        if node.func.attr not in ("Schema", "Input", "Output"):
            return UNKNOWN
        return Made(ast.unparse(node.func.value), node.func.attr, tuple(positional), named, node.lineno)
    found = module.find(node.func.id) if isinstance(node.func, ast.Name) else None
    if found is None or not isinstance(found[1], ast.FunctionDef):
        return UNKNOWN
    home, function = found
    names = [argument.arg for argument in function.args.args]
    defaults = zip(reversed(names), reversed(function.args.defaults), strict=False)
    bound = {name: evaluate(default, home, {}) for name, default in defaults}
    bound |= dict(zip(names, positional, strict=False)) | named
    return evaluate(returned(function), home, bound)
