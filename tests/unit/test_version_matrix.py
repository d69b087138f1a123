"""The version matrix: what counts as a pass, and which reason stands in the table otherwise."""

from __future__ import annotations

import sys

import pytest

from tools import version_matrix as matrix
from tools.comfyui import PACK_FOLDER, Host, HostError
from tools.version_matrix import MatrixError

LOG = "Traceback (most recent call last):\n  File \"x.py\"\nModuleNotFoundError: No module named 'einops'\n"


def listed(*names: str) -> dict:
    return {name: {"python_module": f"custom_nodes.{PACK_FOLDER}"} for name in names}


def test_a_pack_that_was_not_imported_is_told_with_the_logs_reason():
    failed = (
        f"{LOG}\nImport times for custom nodes:\n   0.0 seconds (IMPORT FAILED): /base/custom_nodes/{PACK_FOLDER}\n"
    )
    with pytest.raises(MatrixError, match="import: ModuleNotFoundError: No module named 'einops'"):
        matrix.check_imported(failed)
    called = f"Error while calling comfy_entrypoint in /base/custom_nodes/{PACK_FOLDER}: no such name"
    with pytest.raises(MatrixError, match="import: no such name"):
        matrix.check_imported(called)
    matrix.check_imported(f"{LOG}   0.1 seconds: /base/custom_nodes/{PACK_FOLDER}\n")


def test_every_node_must_be_listed():
    names = matrix.node_ids()
    assert len(names) > 20
    matrix.check_listed(listed(*names) | {"KSampler": {"python_module": "nodes"}})
    with pytest.raises(MatrixError, match="object_info: missing or strange PixArtModelInfo"):
        matrix.check_listed(listed(*(names - {"PixArtModelInfo"})))


def test_a_picture_is_judged_by_what_it_shows(tmp_path):
    image = pytest.importorskip("PIL.Image")
    from pixart.training.demo.captions import Scene
    from pixart.training.demo.drawing import draw, place

    def drawn(name: str, **scene):
        shown = Scene(size="small", shape="star", position="left", background="blue", **scene)
        pixels = draw([place(shown, 128, 128)], 128, 128)[0]
        path = tmp_path / f"{name}.png"
        image.fromarray((pixels.movedim(0, -1) * 255).round().byte().numpy()).save(path)
        return path

    right, wrong = drawn("right", colour="red"), drawn("wrong", colour="green")
    assert matrix.judge(sys.executable, right, right) == 0
    assert matrix.judge(sys.executable, right, wrong) > 100
    with pytest.raises(MatrixError, match="the picture's colour is not the prompt's"):
        matrix.judge(sys.executable, wrong, right)


def test_a_version_that_is_not_here_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(MatrixError, match="no such interpreter here"):
        matrix.interpreter("3.99")
    for version in ("3.98.2", "3.98.10"):
        (tmp_path / "versions" / version / "bin").mkdir(parents=True)
        (tmp_path / "versions" / version / "bin" / "python").touch()
    assert matrix.interpreter("3.98").parts[-3] == "3.98.10"


def test_a_host_that_does_not_start_is_told_by_the_last_error_of_its_log():
    log = "ended with exit code 1. The end of its log:\nFirstError: a\n  File x\nRuntimeError: 0 drivers\n"
    assert matrix.reason(HostError(log)) == "ComfyUI does not start or failed: RuntimeError: 0 drivers"
    assert matrix.reason(MatrixError("import: why")) == "import: why"


def test_the_companions_of_a_torch_release():
    assert matrix.companions("2.14.1") == ("0.29.1", "2.11.0")
    assert matrix.companions("2.7.1") == ("0.22.1", "2.7.1")


def test_the_table_has_a_row_for_each_pair_of_versions(tmp_path):
    rows = {matrix.Versions("3.10", "2.14.1"): ["pass", "import: why"]}
    assert matrix.table([Host(tmp_path, "0.33.0"), Host(tmp_path, "0.14.0")], rows).splitlines() == [
        "| Python | torch | ComfyUI 0.33.0 | ComfyUI 0.14.0 |",
        "|---|---|---|---|",
        "| 3.10 | 2.14.1 | pass | import: why |",
    ]
