"""The index of a ``.pth``, read as a list of instructions before PyTorch follows any of them.

PyTorch's ``weights_only`` runs no code of a file, but it does as it is told: it makes a ``bytearray`` or a storage of
whatever size is asked for, and it hashes keys whose nested parts count in powers. Before 2.10 it also puts items into
what is no dictionary, which corrupts memory (CVE-2026-24747). Such instructions are refused here.
"""

from __future__ import annotations

import pickletools
import re
from typing import Any, NamedTuple

MAX_INDEX = 64 * 2**20
"""Bytes; the index of a model of two thousand tensors with its optimizer has less than one hundredth."""

MAX_TUPLE = 1000
"""Parts of a tuple, those of tuples in it counted as often as they are named. A tensor's has some thirty."""

_ASKS_BY_NUMBER = re.compile(r"(builtins|__builtin__)\.bytearray|torch(\.\w+)*\.\w*(Tensor|Storage)")
_REBUILD = "torch._utils._rebuild"
_DAMAGED = "The index inside the .pth is damaged, or holds something other than tensors, and is not read further."
_REMEDY = "Download it again, or get the model as safetensors."


class _Value(NamedTuple):
    """What an instruction leaves: its parts as ``MAX_TUPLE`` counts them, its name or text, and a tuple's values.

    holder: the kind of what takes items, a name in ``_HOLDERS``.
    """

    parts: int = 1
    text: str = ""
    items: tuple[_Value, ...] = ()
    holder: str = ""


_PLAIN = _Value()
_MARK = _Value(text="mark")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_REPLACED_BY_ONE = {"REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}
_DROPPED = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TO_MARK = ("APPENDS", "SETITEMS")
_HOLDERS = {"EMPTY_DICT": "dict", "EMPTY_LIST": "list"}
_DICTS = ("collections.OrderedDict", "collections.Counter")
_FILLS = {"APPEND": "list", "APPENDS": "list", "SETITEM": "dict", "SETITEMS": "dict"}
_GET, _PUT = ("BINGET", "LONG_BINGET"), ("BINPUT", "LONG_BINPUT")


def check_index(index: bytes) -> None:
    """Raises ValueError for an index that is no pickle, or that would take memory or time which its size does not
    tell. What code it would run is for PyTorch to refuse, by name."""
    if len(index) > MAX_INDEX:
        raise ValueError(f"The index inside the .pth has {len(index)} bytes, more than {MAX_INDEX}. Do not trust it.")
    stack: list[_Value] = []
    memo: dict[int, _Value] = {}
    try:
        for operation, argument, _ in pickletools.genops(index):
            _follow(operation.name, argument, stack, memo)
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{_DAMAGED} {_REMEDY}") from error
    except ValueError as error:
        if isinstance(error, IndexRefused):
            raise
        raise ValueError(f"{_DAMAGED} {_REMEDY}") from error


class IndexRefused(ValueError):
    """An index that is sound and asks for what it should not."""


def _follow(name: str, argument: Any, stack: list[_Value], memo: dict[int, _Value]) -> None:
    if name in _GET:
        stack.append(memo[argument])
    elif name in _PUT:
        memo[argument] = stack[-1]
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(_tuple(_to_mark(stack)))
    elif name in _TUPLES:
        count = _TUPLES[name]
        values = [stack.pop() for _ in range(count)]
        stack.append(_tuple(values[::-1]))
    elif name in _REPLACED_BY_ONE:
        taken = [stack.pop() for _ in range(_REPLACED_BY_ONE[name])]
        if len(taken) == 2:
            _check_call(taken[1], taken[0])
        # A torch.Size is a tuple as well, and so are the arguments that it was made of.
        stack.append(_Value(taken[0].parts, holder="dict" if taken[-1].text in _DICTS else ""))
    elif name in _DROPPED:
        for _ in range(_DROPPED[name]):
            stack.pop()
        _check_filled(name, stack[-1])
    elif name in _TO_MARK:
        _to_mark(stack)
        _check_filled(name, stack[-1])
    elif name in _HOLDERS:
        stack.append(_Value(holder=_HOLDERS[name]))
    elif name == "GLOBAL":
        stack.append(_Value(text=argument.replace(" ", ".")))
    elif name not in ("PROTO", "STOP", "FRAME"):
        stack.append(_Value(text=argument) if isinstance(argument, str) else _PLAIN)


def _check_filled(name: str, target: _Value) -> None:
    if name in _FILLS and target.holder != _FILLS[name]:
        raise IndexRefused(
            "The index inside the .pth puts items into what is no list or dictionary. Do not trust the file; get the "
            "model as safetensors."
        )


def _to_mark(stack: list[_Value]) -> list[_Value]:
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _tuple(values: list[_Value]) -> _Value:
    parts = 1 + sum(value.parts for value in values)
    if parts > MAX_TUPLE:
        raise IndexRefused(
            f"The index inside the .pth nests more than {MAX_TUPLE} values in a tuple, as no save of tensors does. "
            "Do not trust it."
        )
    return _Value(parts, items=tuple(values[:2]))


def _check_call(function: _Value, arguments: _Value) -> None:
    """Refuse what takes its size from a number, and a way around this refusal."""
    name, first = function.text, arguments.items[0].text if arguments.items else ""
    around = name == "torch._tensor._rebuild_from_type_v2" and not first.startswith(_REBUILD)
    codec = arguments.items[1].text if len(arguments.items) > 1 else ""
    if _ASKS_BY_NUMBER.fullmatch(name) or around or (name == "_codecs.encode" and codec not in ("latin1", "latin-1")):
        raise IndexRefused(
            f"The file holds more than tensors: it asks for {name}, whose size or time no tensor tells, which is "
            "refused. Get the model as safetensors."
        )
