"""A process that is killed while it saves leaves no half file under a final name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WRITER = Path(__file__).resolve().parents[1] / "harness" / "killed_writer.py"
FILES = {"caption": 1, "lora": 1, "state": 1, "features": 1, "sheet": 4}
POINTS = 6  # of every file: four amid its bytes, one before and one after its renaming


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("kind", FILES)
def test_killed_while_saving(host, tmp_path, kind):
    command = [sys.executable, str(WRITER), str(host.path), kind, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {"kills": POINTS * FILES[kind], "wrong": []}
