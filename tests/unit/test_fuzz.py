"""A short run of the fuzzing, and that it notices what it looks for. The long one: ``python tests/fuzz/run.py``."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"


@pytest.fixture
def fuzz(monkeypatch):
    """The harness's modules, under the names that it uses itself."""
    monkeypatch.syspath_prepend(str(FUZZ))
    import mutations
    import run
    import targets

    return mutations, run, targets


def test_damaged_files_of_every_kind_are_refused_with_what_is_documented(tmp_path):
    command = [sys.executable, "-W", "ignore", str(FUZZ / "run.py"), "--cases", "40", "--seconds", "1500"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([line for line in done.stdout.splitlines() if " cases, " in line and "refused" in line]) == 15


def judge(fuzz, tmp_path, read):
    _, run, targets = fuzz
    return run.Judge("planted", targets.Target(read, ".bin", lambda: [b"x"], ()), tmp_path, tmp_path)


def test_another_exception_and_one_without_words_are_crashes_and_kept(fuzz, tmp_path):
    def read(path: Path):
        raise {b"t": TypeError("no"), b"v": ValueError(""), b"g": ValueError("A reason.")}[path.read_bytes()]

    watch = judge(fuzz, tmp_path, read)
    for data in (b"g", b"t", b"v", b"t"):
        assert watch(data) is False
    assert len(watch.tally.crashes) == 2 and watch.tally.cases == 4
    kept = sorted(tmp_path.glob("planted-*.bin"))
    assert sorted(path.read_bytes() for path in kept) == [b"t", b"v"]


def test_time_and_memory_beyond_the_limits_are_crashes(fuzz, tmp_path):
    def read(path: Path):
        end = time.process_time() + 1.5 if path.read_bytes() == b"slow" else 0
        while time.process_time() < end:
            pass
        if path.read_bytes() == b"large":
            return bytearray(b"x" * 60_000_000)[0]

    watch = judge(fuzz, tmp_path, read)
    watch.seconds = 1.0
    for data in [b"fine"] * 32 + [b"large"] + [b"slow"]:
        watch(data)
    assert sorted(text[:6] for text in watch.tally.crashes.values()) == ["it too", "memory"]


def test_the_same_seed_damages_alike_and_reaches_beyond_the_header(fuzz):
    mutations, _, targets = fuzz
    for name in ("checkpoint", "lora", "pth", "gguf", "prompts json"):
        seeds = targets.TARGETS[name].seeds()
        first, second = ([mutations.mutate(random.Random(i), seeds[0], seeds) for i in range(30)] for _ in range(2))
        assert first == second and len(set(first)) > 25
        assert all(data not in seeds for data in first[:5])
