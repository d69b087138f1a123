"""What the registry and a scanner for dangerous calls say of the code that is shipped: nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("__init__.py", "nodes", "pixart")
DEVELOPERS = ("tools", "benchmarks")
OWN_PROCESSES = "B310,B314,B404,B405,B603,B607"
"""Tools start ComfyUI, git and pytest, ask a server of their own, and read the results that pytest wrote."""

BAD = {
    "eval(input())": ("S307", "B307"), "exec(input())": ("S102", "B102"),
    "import pickle\npickle.loads(input())": ("", "B301"), "import torch\ntorch.load('x')": ("", "B614"),
    "import os\nos.system(input())": ("", "B605"), "import tempfile\ntempfile.mktemp()": ("", "B306"),
}  # fmt: skip


def ruff(*paths: Path | str) -> subprocess.CompletedProcess:
    """As ``comfy node validate`` calls it, but failing where that one warns."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "S102,S307,E702"]
    return subprocess.run([*command, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)


def bandit(*options: str) -> subprocess.CompletedProcess:
    if importlib.util.find_spec("bandit") is None:
        pytest.skip("bandit is not installed")
    command = [
        sys.executable,
        "-m",
        "bandit",
        "-q",
        "-f",
        "custom",
        "--msg-template",
        "{relpath}:{line} {test_id} {msg}",
    ]
    return subprocess.run(
        [*command, "-c", "pyproject.toml", "-r", *options], cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip


def test_the_registrys_rules_find_nothing_anywhere():
    found = ruff(".")
    assert found.returncode == 0, found.stdout


def test_bandit_finds_nothing_in_what_is_shipped():
    found = bandit(*SHIPPED)
    assert found.returncode == 0, found.stdout + found.stderr


def test_bandit_finds_nothing_in_the_tools_but_processes_of_their_own():
    found = bandit(*DEVELOPERS, "--skip", OWN_PROCESSES + ",B105,B311,B403")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("code", BAD)
def test_the_scans_would_find_it(code, tmp_path):
    (tmp_path / "bad.py").write_text(code + "\n")
    rule, test = BAD[code]
    if rule:
        assert rule in ruff(tmp_path / "bad.py").stdout
    found = bandit(str(tmp_path))
    assert found.returncode == 1 and test in found.stdout
