"""The short form of benchmarks/long_run.py: a dozen prompts that switch everything, in one ComfyUI process."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_dozen_prompts_leave_nothing_behind_and_the_last_picture_is_the_first(host, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("long_run", ROOT / "benchmarks" / "long_run.py")
    long_run = importlib.util.module_from_spec(spec)
    sys.modules["long_run"] = long_run
    spec.loader.exec_module(long_run)
    # A process that has just begun still grows, so that a slope says nothing yet; a leap in memory would.
    short = ["--prompts", "13", "--slope", "50000", "--out", str(tmp_path)]
    code = long_run.main(["--comfyui", str(host.path), *short])
    said = capsys.readouterr().out
    print(said)
    assert code == 0, said
    assert "the first prompt, 3 times" in said
    with (tmp_path / "long-run.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13 and rows[0]["picture"] == rows[10]["picture"] == rows[12]["picture"]
    assert len({row["picture"] for row in rows}) == 11
    assert all(float(row["rss"]) > 100 and int(row["files"]) > 0 and int(row["threads"]) > 0 for row in rows)
    assert (tmp_path / "long-run.png").stat().st_size > 1000
