"""What the long run concludes from its rows; the rows themselves are measured in tests/host."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def long_run():
    pytest.importorskip("psutil")
    spec = importlib.util.spec_from_file_location("long_run", ROOT / "benchmarks" / "long_run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["long_run"] = module
    spec.loader.exec_module(module)
    return module


def rows(long_run, leak=0.0, files=0.0, threads=0.0, other_picture=False, count=200):
    """A flat run with the noise of a real one, and what is wrong with it."""
    chance = random.Random(3)
    made = []
    for i in range(count):
        what = "the first prompt" if i % 10 == 0 or i == count - 1 else f"{i}"
        picture = "b" if other_picture and i == count - 1 else "a"
        rss = 1000 + 40 * min(1, i / 20) + chance.gauss(0, 6) + leak * i
        made.append(long_run.Row(i, 1.0, rss, 10 + int(files * i), 5 + int(threads * i), picture, what))
    return made


@pytest.mark.parametrize(
    ("wrong", "failing"),
    [
        ({}, []),
        ({"leak": 0.25}, ["memory: +"]),
        ({"leak": 2.0}, ["memory: +", "memory: at most"]),
        ({"files": 0.05}, ["files"]),
        ({"threads": 0.05}, ["threads"]),
        ({"other_picture": True}, ["the first prompt"]),
    ],
)
def test_what_grows_or_differs_is_told(long_run, wrong, failing):
    said = long_run.verdict(rows(long_run, **wrong), long_run.Limits())
    bad = [line for line, is_good in said if not is_good]
    assert len(said) == 5 and len(bad) == len(failing), bad
    assert all(line.startswith(start) for line, start in zip(bad, failing, strict=True))


def test_prompts_are_the_same_for_the_same_seed_and_repeat_the_first(long_run):
    first, again, other = (long_run.prompts(60, seed) for seed in (0, 0, 1))
    assert first == again != other
    repeated = [number for number, (_, what) in enumerate(first) if what == first[0][1]]
    assert repeated == [0, 10, 20, 30, 40, 50, 59]
    words = " ".join(what for _, what in first)
    for part in ("alpha", "sigma-kv", "ControlNet", "cache", "KV average", "long-run-a", "bf16", "192x192", "-0.5"):
        assert part in words


def test_the_plot_and_the_table_are_of_every_row(long_run, tmp_path):
    from PIL import Image

    made = rows(long_run, count=30)
    long_run.write_csv(made, tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 31
    long_run.draw_plot(made, tmp_path / "a.png", "a title")
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert {(40, 90, 170), (200, 60, 40)} <= colours
