"""Every name of ComfyUI that the pack uses is in the ComfyUI under test."""

from __future__ import annotations

import ast
from pathlib import Path

import host_symbols
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def modules(host_path) -> set[str]:
    return host_symbols.host_modules(host_path)


def test_every_name_that_the_pack_takes_from_the_host_is_there(modules):
    symbols = host_symbols.used(host_symbols.sources(ROOT), modules, ROOT)
    print(len(symbols), "names,", sum(map(len, symbols.values())), "places")
    assert host_symbols.missing(symbols) == {}
    # What must have been found, for this test to mean anything: one of each way of getting at a name.
    for name in (
        "comfy.model_base.PixArt",  # by its chain
        "comfy.model_management.should_use_bf16",  # the same, in a function
        "comfy.model_management.unet_manual_cast",  # through a variable
        "comfy.patcher_extension.WrappersMP.OUTER_SAMPLE",  # imported by name
        "comfy_api.v0_0_2.io.Combo.Input",
        "folder_paths.get_full_path_or_raise",
        "node_helpers",
    ):
        assert name in symbols, name
    assert len(symbols) > 100


@pytest.mark.parametrize(
    ("file", "kind", "attribute"),
    [("server.py", "PromptServer", "send_progress_text"), ("comfy/model_base.py", "BaseModel", "current_patcher")],
)
def test_what_is_looked_up_at_run_time_alone_is_there_too(host_path, file, kind, attribute):
    """Taken from ``sys.modules`` or an instance, so that no import names it; and the server's module runs one alone."""
    tree = ast.parse((host_path / file).read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind)
    methods = {node.name for node in ast.walk(found) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    set_on_self = {
        node.attr for node in ast.walk(found) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert attribute in methods | set_on_self


SOURCE = """
import comfy.model_management
import comfy.never_was
import comfy.utils as tools
from comfy.ops import manual_cast, no_such_layer
from . import nodes
import torch

def load():
    import folder_paths
    management = comfy.model_management
    device, gone = management.get_torch_device, management.was_removed
    getattr(comfy.model_management, "optional", None)
    torch.was_removed
    nodes.whatever
    return tools.ProgressBar, tools.gone.too, folder_paths.models_dir, manual_cast.Linear, manual_cast.NoLayer
"""


def test_names_that_are_missing_are_found_with_their_places(modules, tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    assert host_symbols.missing(host_symbols.used([tmp_path / "a.py"], modules, tmp_path)) == {
        "comfy.model_management.was_removed": ["a.py:12"],
        "comfy.never_was": ["a.py:3"],
        "comfy.ops.manual_cast.NoLayer": ["a.py:16"],
        "comfy.ops.no_such_layer": ["a.py:5"],
        "comfy.utils.gone": ["a.py:16"],
        "comfy.utils.gone.too": ["a.py:16"],
    }
