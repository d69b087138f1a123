"""Numbers of a node's inputs, held against its schema before it runs.

The host does so for what is typed, except for NaN, and not at all for what comes from another node.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable

from comfy_api.v0_0_2 import io

SLACK = 1e-6
"""Of a range: fractions that were computed miss its end by their rounding."""


def within_limits(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The same node, which refuses a number outside of its schema's limits with a ValueError that names the input."""
    execute = node.execute.__func__
    if hasattr(execute, "__wrapped__"):
        return node
    signature = inspect.signature(execute)
    limits = functools.cache(lambda: numbers_of(node))

    @functools.wraps(execute)
    def checked(cls, *args, **kwargs):
        given = signature.bind_partial(cls, *args, **kwargs).arguments
        for name, check in limits().items():
            for value in listed(given.get(name)):
                check(value)
        return execute(cls, *args, **kwargs)

    node.execute = classmethod(checked)
    return node


def numbers_of(node: type[io.ComfyNode]) -> dict[str, Callable[[object], None]]:
    """Name of an input → what checks its value, for those that take numbers."""
    schema = getattr(node, "SCHEMA", None) or node.define_schema()
    found = {}
    for item in schema.inputs:
        if item.get_io_type() in ("INT", "FLOAT"):
            whole = item.get_io_type() == "INT"
            found[item.id] = functools.partial(check_number, item.id, whole, item.min, item.max)
    return found


def listed(value: object) -> list | tuple:
    """The values of an input: a node that takes lists is given each input as one."""
    return value if isinstance(value, list | tuple) else [value]


def check_number(name: str, whole: bool, low: float | None, high: float | None, value: object) -> None:
    """Raises ValueError for what is not a number within ``low`` and ``high``; None is an input that is not given."""
    if not isinstance(value, int | float):
        return
    kind = "a whole number" if whole else "a number"
    span = "" if low is None or high is None else f" from {low} to {high}"
    is_number = isinstance(value, int) or (math.isfinite(value) and (value.is_integer() or not whole))
    if is_number and span:
        slack = 0 if whole else SLACK * (high - low)
        is_number = low - slack <= value <= high + slack
    if not is_number:
        raise ValueError(f"{name} is {str(value)[:40]}; it must be {kind}{span}.")
