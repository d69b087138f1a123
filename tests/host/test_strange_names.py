"""No input of a node that names a file opens or writes one outside of the host's folders, whatever the name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"

READ = {
    ("PixArtLoadCheckpoint", "ckpt_name"), ("PixArtLoadT5", "t5_name"), ("PixArtLoadLora", "lora_name"),
    ("PixArtLoadControlNet", "control_net_name"), ("PixArtLoadDreamBooth", "ckpt_name"),
    ("PixArtLoadCaption", "caption_name"), ("PixArtPromptSet", "file"),
}  # fmt: skip
WRITE = {
    ("PixArtSaveCaption", "filename_prefix"), ("PixArtTrainLora", "lora_name"), ("PixArtPromptSet", "run"),
    ("PixArtContactSheet", "run"),
}  # fmt: skip

OUT = [
    "../secret{}", "a/../../secret{}", "sub/../../secret{}", "..\\secret{}", "{outside}/secret{}", "/etc/passwd",
    "C:\\secret{}", "C:secret{}", "\\\\server\\share\\secret{}", "//server/share/secret{}", "\\\\?\\C:\\secret{}",
    "linked/secret{}",
]  # fmt: skip
ODD = [
    "CON", "nul{}", "sub/AUX{}", "COM1{}", "..\uff0fsecret{}", "\uff0e\uff0e/secret{}", "\u2025/secret{}",
    "..\u2215secret{}", "a\0{}", "a{}\0.png", "../secret{}\0", "a\u202e{}", "a{}.", "a{} ", "a{} /b", "a\n{}",
    "x" * 300 + "{}", "sub/" * 400 + "a{}", "\ud800{}",
]  # fmt: skip
SUFFIXES = {"PixArtPromptSet": ".csv", "PixArtSaveCaption": "", "PixArtTrainLora": "", "PixArtContactSheet": ""}


@pytest.fixture
def place(tmp_path, monkeypatch, node_classes) -> Iterator[SimpleNamespace]:
    """All folders of a host below ``host``, and beside it files worth stealing, of every kind that is read."""
    import folder_paths

    host, outside = tmp_path / "host", tmp_path / "outside"
    outside.mkdir()
    kinds = ("checkpoints", "diffusion_models", "diffusers", "text_encoders", "loras", "controlnet", "captions")
    for kind in kinds:
        folder = host / "models" / kind
        (folder / "sub").mkdir(parents=True)
        if kind == "captions":  # links among models are the owner's, and followed
            (folder / "linked").symlink_to(outside)
        suffixes = folder_paths.folder_names_and_paths.get(kind, ([], {".safetensors"}))[1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(folder)], suffixes))
        monkeypatch.delitem(folder_paths.filename_list_cache, kind, raising=False)
    for kind in ("input", "output"):
        (host / kind / "sub").mkdir(parents=True)
        (host / kind / "linked").symlink_to(outside)
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(host / kind))
    for folder in (outside, host, host / "models"):
        save_file({"embedding": torch.zeros(1, 4)}, folder / "secret.safetensors", {"format": "pixart-caption"})
        (folder / "secret.csv").write_text("prompt\nstolen\n")
        (folder / "secret").mkdir()
    yield SimpleNamespace(host=host, outside=outside, all=tmp_path)
    for kind in kinds:
        folder_paths.filename_list_cache.pop(kind, None)


@pytest.fixture(scope="module")
def loaded(pack):
    """A real model, for nodes that want one beside a file."""
    host = f"{pack.__name__}.nodes.host"
    return SimpleNamespace(
        model=import_module(f"{host}.model").load_model(str(DEMO / "pixart-demo-sigma.safetensors")),
        evaluation=import_module(f"{host}.evaluation"),
        caption=[[torch.zeros(1, 3, 64), {}]],
    )


def call(node_classes, loaded, node: str, name: str, value: str) -> None:
    """One node with the inputs that it needs to come as far as the file."""
    prompts = loaded.evaluation.PromptSet((loaded.evaluation.Prompt(0, "a star"),), (0,), 0.0)
    picture = torch.zeros(1, 16, 16, 3)
    more = {
        "PixArtLoadLora": {"model": loaded.model}, "PixArtLoadDreamBooth": {"model": loaded.model},
        "PixArtSaveCaption": {"conditioning": loaded.caption},
        "PixArtPromptSet": {"file": "prompts.csv [demo]"},
        "PixArtContactSheet": {"images": [picture], "labels": ["a"], "columns": [1], "prompt_set": [prompts]},
        "PixArtTrainLora": {"model": [loaded.model], "clip": [None], "vae": [None], "images": [picture],
                            "captions": ["a star"]},
    }.get(node, {})  # fmt: skip
    listed = node in ("PixArtContactSheet", "PixArtTrainLora")
    node_classes[node].PREPARE_CLASS_CLONE(None).execute(**{**more, name: [value] if listed else value})


_watched: list[str] | None = None
_hooked = False


def _note(event: str, arguments: tuple) -> None:
    if _watched is not None and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "os.scandir"):
        if isinstance(arguments[0], str | bytes | os.PathLike):
            _watched.append(os.fsdecode(arguments[0]))


@contextmanager
def touched() -> Iterator[list[str]]:
    """Every path that Python opens, lists, makes or moves within the block."""
    global _watched, _hooked
    if not _hooked:
        sys.addaudithook(_note)
        _hooked = True
    _watched = found = []
    try:
        yield found
    finally:
        _watched = None


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def strays(paths: list[str], place: SimpleNamespace) -> list[str]:
    """Those outside of the host's folders, links followed, and files that bear the secret's name anywhere."""
    real = [Path(path).resolve() for path in paths if "\0" not in path]
    outside, host = place.outside.resolve(), place.host.resolve()
    return [
        str(path)
        for path in real
        if path.is_relative_to(outside) or (path.name.startswith("secret") and path.is_relative_to(place.all.resolve()))
        or path in (host.parent, Path("/etc/passwd"))
    ]  # fmt: skip


def test_every_input_that_names_a_file_is_known_here(node_classes):
    marks = ("_name", "file", "run", "prefix", "path", "folder", "dir")
    found = set()
    for node, cls in node_classes.items():
        for item in cls.GET_SCHEMA().inputs:
            if any(mark in item.id for mark in marks) and item.get_io_type() in ("STRING", "COMBO"):
                found.add((node, item.id))
    assert found == READ | WRITE


@pytest.mark.parametrize(("node", "name"), sorted(READ | WRITE), ids=lambda part: part)
def test_a_strange_name_is_refused_and_nothing_outside_is_touched(node, name, place, node_classes, loaded):
    before = snapshot(place.all)
    suffix = "" if (node, name) in WRITE else SUFFIXES.get(node, ".safetensors")
    for pattern in (*OUT, *ODD):
        if node == "PixArtTrainLora" and pattern in ("a{} ", "a\n{}"):
            continue  # spaces around what is typed are taken away
        value = pattern.replace("{outside}", str(place.outside)).replace("{}", suffix)
        with touched() as paths, pytest.raises(ValueError) as refused:
            call(node_classes, loaded, node, name, value)
            pytest.fail(f"{value!r} was taken")
        said = str(refused.value)
        assert strays(paths, place) == [], (value, paths)
        assert said.rstrip()[-1] in ".?" and "embedded null" not in said and len(said) < 2500, (value, said)
        assert str(place.outside) not in said or str(place.outside) in value
    assert snapshot(place.all) == before


@pytest.mark.parametrize(("node", "name"), sorted(READ), ids=lambda part: part)
def test_a_name_with_the_signs_of_both_systems_is_the_file_of_that_name_or_none(
    node, name, place, node_classes, loaded
):
    """A file whose name only looks like a path is, where it is offered at all, that very file."""
    folders = [*(place.host / "models").iterdir(), place.host / "input", place.host / "output"]
    for folder in (folder for folder in folders if folder.is_dir()):
        for odd in ("..\uff0fsecret.safetensors", "..\uff0fsecret.csv"):
            (folder / odd).write_bytes(b"not what it seems")
    suffix = SUFFIXES.get(node, ".safetensors")
    with touched() as paths, pytest.raises(ValueError):
        call(node_classes, loaded, node, name, f"..\uff0fsecret{suffix}")
    assert strays(paths, place) == []


def test_the_lists_offer_no_name_that_would_be_refused(place, node_classes):
    for odd in ("nul", "a\u202eb", "..\uff0fx", "fine"):
        (place.host / "input" / f"{odd}.csv").write_text("prompt\na\n")
        content = {"embedding": torch.zeros(1, 4)}
        save_file(content, place.host / "output" / f"{odd}.safetensors", {"format": "pixart-caption"})
    offered = node_classes["PixArtPromptSet"].define_schema().inputs[0].options
    assert offered == ["prompts.csv [demo]", "fine.csv"]
    assert node_classes["PixArtLoadCaption"].define_schema().inputs[0].options == ["fine.safetensors [output]"]


def test_a_table_of_a_run_that_names_pictures_elsewhere_is_refused(place, node_classes, loaded):
    from PIL import Image

    run = place.host / "output" / "shared"
    run.mkdir()
    Image.new("RGB", (16, 16), "red").save(place.outside / "secret.png")
    for file in ("../../outside/secret.png", str(place.outside / "secret.png"), "00001.png"):
        (run / "results.csv").write_text(
            f"index,category,prompt,seed,file,seconds,settings,score,wrong\n5,,a,5,{file},,,,\n"
        )
        with touched() as paths, pytest.raises(ValueError, match="is no table of a run: number 5 names the file"):
            call(node_classes, loaded, "PixArtContactSheet", "run", "shared")
        assert strays(paths, place) == []


def test_a_picture_of_a_run_replaces_a_link_and_never_goes_through_it(place, node_classes, loaded):
    run = place.host / "output" / "shared"
    run.mkdir()
    for name in ("00000.png", "00000.partial", "sheet.png"):
        (run / name).symlink_to(place.outside / "secret.csv")
    call(node_classes, loaded, "PixArtContactSheet", "run", "shared")
    assert (place.outside / "secret.csv").read_text() == "prompt\nstolen\n"
    assert not (run / "00000.png").is_symlink() and not (run / "sheet.png").is_symlink()


def test_a_folder_of_models_that_the_owner_linked_is_followed_as_in_the_hosts_loaders(place, node_classes, loaded):
    (place.host / "models" / "loras" / "mine").symlink_to(place.outside)
    with pytest.raises(ValueError, match="No layer of a PixArt transformer or of T5 is named in this file"):
        call(node_classes, loaded, "PixArtLoadLora", "lora_name", "mine/secret.safetensors")


def test_the_states_of_a_training_do_not_leave_the_output_folder(place, pack):
    training = import_module(f"{pack.__name__}.nodes.host.training")
    states = place.host / "output" / training.STATES
    states.mkdir()
    (states / "mine").symlink_to(place.outside)
    with pytest.raises(ValueError, match="is a link out of the output folder"):
        training.state_folder("mine")
    assert training.state_folder("other") == states / "other"


def test_a_training_writes_a_lora_and_its_states_and_nothing_else(place, pack, loaded, node_classes):
    host = f"{pack.__name__}.nodes.host"
    clip = import_module(f"{host}.text").load_clip(str(DEMO / "pixart-demo-t5.safetensors"))
    vae = import_module("comfy.sd").VAE(sd=load_file(DEMO / "pixart-demo-vae.safetensors"))
    before = snapshot(place.all)
    node_classes["PixArtTrainLora"].PREPARE_CLASS_CLONE(None).execute(
        [loaded.model], [clip], [vae], [torch.rand(1, 64, 64, 3)], ["a red star"], ["mine"], steps=[1], rank=[2],
        resolution=[64], preview_every=[0], save_every=[1],
    )  # fmt: skip
    after = snapshot(place.all)
    assert {name: after[name] for name in before} == before
    files = [Path(name) for name in after if name not in before and after[name] is not None]
    written = {path.relative_to(place.host).as_posix() for path in files}
    assert "models/loras/mine.safetensors" in written
    assert all(name == "models/loras/mine.safetensors" or name.startswith("output/pixart_training/mine/")
               for name in written), written  # fmt: skip


def test_a_check_that_finds_nothing_would_fail(place):
    """The watch itself sees an open, a listing and a write."""
    with touched() as paths:
        (place.outside / "secret.csv").read_text()
        os.listdir(place.outside)
        (place.outside / "new").write_text("x")
    assert len(strays(paths, place)) == 3
