"""A process that is killed while it saves leaves no half file under a final name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WRITER = Path(__file__).resolve().parents[1] / "harness" / "killed_writer.py"
KILLS = 12


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("kind", ["caption", "lora", "state", "features", "sheet"])
def test_killed_while_saving(host, tmp_path, kind):
    command = [sys.executable, str(WRITER), str(host.path), kind, str(tmp_path), str(KILLS)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["halves"] >= 2, f"only {told['halves']} of {told['kills']} kills came amid the writing"
