"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from pixart import files
from pixart.__main__ import keep
from pixart.evaluation.results import Result, recorded, save_picture, write_table
from pixart.training.writing import write_safetensors


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.written(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half" and names(path.parent) == ["a.txt"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), files.written(path) as partial:
        partial.write_text("half")
        raise KeyError("why")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def write_a_table(path) -> None:
    write_table(path, [Result(0, "", "a prompt", 0, "0.png")])


def write_a_picture(path) -> None:
    from PIL import Image

    save_picture(Image.new("RGB", (64, 64)), path)


def write_one_drawn_picture(path) -> None:
    from PIL import Image

    keep(Image.new("RGB", (64, 64)), path)


def write_tensors(path) -> None:
    write_safetensors(path, {"a": torch.zeros(100_000)}, {"b": "c"})


def write_a_state(path) -> None:
    with files.written(path) as partial, partial.open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)


def write_features(path) -> None:
    from pixart.training.features import Features, save

    save(Features((torch.zeros(4, 64, 64),), (torch.zeros(3, 8),), (0,), (False,), 0, (), ()), path, "id")


def write_a_caption(path) -> None:
    from pixart.text.captions import Caption, save_caption

    save_caption(Caption(torch.ones(3, 8), None, "a prompt", None, {}), path)


WRITERS = [write_a_table, write_a_picture, write_one_drawn_picture, write_tensors, write_a_state, write_a_caption]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
@pytest.mark.parametrize("writer", WRITERS)
def test_on_a_full_disk_every_writer_says_so_and_keeps_what_was_there(tmp_path, monkeypatch, writer):
    own = files.partial_of

    def on_a_full_disk(path):
        partial = own(path)
        partial.symlink_to("/dev/full")
        return partial

    path = tmp_path / f"file.{'png' if writer is write_one_drawn_picture else 'csv'}"
    writer(path)
    before = path.read_bytes()
    monkeypatch.setattr(files, "partial_of", on_a_full_disk)
    with pytest.raises(ValueError, match=f"{path.name} could not be written to .*No space left on device.*Make room"):
        writer(path)
    assert path.read_bytes() == before and names(tmp_path) == [path.name]
    monkeypatch.undo()
    writer(path)
    assert names(tmp_path) == [path.name]


def test_a_disk_that_the_safetensors_library_fails_on_is_told_in_the_same_words(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "partial_of", lambda path: path.with_name("no-such-folder") / "x.partial")
    with pytest.raises(ValueError, match="features.safetensors could not be written to .*No such file or directory"):
        write_features(tmp_path / "features.safetensors")
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_disk_that_tells_late_is_told_too(tmp_path, monkeypatch, call):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(files.os, call, refuse)
    with pytest.raises(ValueError, match="No space left on device"), files.written(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_what_killed_processes_left_goes_with_the_next_writing_and_fresh_work_of_others_stays(tmp_path):
    path = tmp_path / "sheet [1].png"
    left, fresh, other = (files.partial_of(path) for _ in range(3))
    other = files.partial_of(tmp_path / "other.png")
    for partial in (left, fresh, other):
        partial.write_text("half")
    for partial in (left, other):
        os.utime(partial, (1, 1))
    with files.written(path) as partial:
        partial.write_text("whole")
    assert names(tmp_path) == sorted([path.name, fresh.name, other.name])


def test_a_picture_that_was_cut_short_does_not_count_as_drawn(tmp_path, monkeypatch):
    """Where a kill leaves half a picture under its final name, a run that goes on shows it as if it were whole."""
    from PIL import Image

    def half(self, partial, format):
        partial.write_bytes(b"\x89PNG half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(ValueError, match="00000.png could not be written"):
        save_picture(Image.new("RGB", (8, 8)), tmp_path / "00000.png")
    write_table(tmp_path / "results.csv", [Result(0, "", "a prompt", 0, "00000.png")])
    assert recorded(tmp_path) == {}
