"""Prompt sets and contact sheets as nodes, and a run of them in a real server that stops and goes on."""

from __future__ import annotations

import csv
import io
import json
from importlib import import_module
from pathlib import Path

import folder_paths
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prompt_set(node_classes):
    node = node_classes["PixArtPromptSet"].PREPARE_CLASS_CLONE(None)
    return lambda *args, **kwargs: node.execute(*args, **kwargs).result


@pytest.fixture
def contact_sheet(node_classes):
    """The sheet as a picture, and the table's path."""

    def make(images, labels, columns=2, **more) -> tuple[Image.Image, str]:
        lists = {name: value if isinstance(value, list) else [value] for name, value in more.items()}
        node = node_classes["PixArtContactSheet"].PREPARE_CLASS_CLONE(None)
        sheet, table = node.execute(images, labels, [columns], **lists).result
        return Image.fromarray((sheet[0] * 255).round().to(torch.uint8).numpy()), table

    return make


def write_input(name: str, text: str) -> None:
    path = Path(folder_paths.get_input_directory(), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_the_demos_prompts_are_offered_and_read(node_classes, prompt_set):
    schema = node_classes["PixArtPromptSet"].GET_SCHEMA()
    assert schema.inputs[0].options[0] == "prompts.csv [demo]"
    prompts, categories, seeds, _ = prompt_set("prompts.csv [demo]", "squares, stars", 12, 100)
    assert len(prompts) == 12 and categories == ["squares"] * 10 + ["stars"] * 2
    assert seeds == [*range(110, 120), 130, 131]


def test_files_in_the_input_folder_are_offered_and_nothing_else_can_be_named(node_classes, prompt_set):
    write_input("sets/mine.tsv", "Prompt\tCategory\na cat\tanimals\n")
    options = node_classes["PixArtPromptSet"].define_schema().inputs[0].options
    assert "sets/mine.tsv" in options
    assert prompt_set("sets/mine.tsv")[:3] == (["a cat"], ["animals"], [0])
    for name in ("../elsewhere.csv", "/etc/passwd", "missing.csv"):
        with pytest.raises(ValueError, match="input folder"):
            prompt_set(name)


def picture(colour: float) -> torch.Tensor:
    return torch.full((1, 32, 32, 3), colour)


def test_a_sheet_takes_lists_and_batches_and_saves_nothing_without_a_run(contact_sheet):
    before = sorted(Path(folder_paths.get_output_directory()).rglob("*"))
    sheet, table = contact_sheet([picture(0.0), torch.cat([picture(0.5), picture(1.0)])], ["one", "two", "three"], 3)
    assert sheet.width == 2 * 12 + 3 * 32 + 2 * 8 and table == ""
    assert sheet.getpixel((12 + 16, 12 + 16)) == (0, 0, 0)
    assert sorted(Path(folder_paths.get_output_directory()).rglob("*")) == before


def test_a_run_is_saved_goes_on_with_what_is_missing_and_ends(prompt_set, contact_sheet):
    write_input("five.txt", "# a\none\ntwo\n# b\nthree\nfour\nfive\n")
    arguments = {"file": "five.txt", "seed": 7, "run": "runs/five"}
    for expected in (["one", "two"], ["three", "four"], ["five"]):
        prompts, _, _, chosen = prompt_set(**arguments, limit=2)
        assert prompts == expected
        images = [picture(0.5) for _ in prompts]
        _, table = contact_sheet(images, prompts, prompt_set=chosen, run="runs/five")
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["category"], row["seed"]) for row in rows] == [
        ("one", "a", "7"),
        ("two", "a", "8"),
        ("three", "b", "9"),
        ("four", "b", "10"),
        ("five", "b", "11"),
    ]
    assert all(float(row["seconds"]) >= 0 for row in rows)
    assert Path(table).with_name("sheet.png").is_file()
    with pytest.raises(ValueError, match="All prompts of this run are drawn"):
        prompt_set(**arguments)
    with pytest.raises(ValueError, match="has changed"):
        prompt_set(**{**arguments, "seed": 8})
    with pytest.raises(ValueError, match="leads out of the output folder"):
        prompt_set(**{**arguments, "run": "../outside"})


def test_a_run_that_goes_on_with_other_settings_says_so_and_shows_both(pack, prompt_set, monkeypatch):
    host = import_module(f"{pack.__name__}.nodes.host.evaluation")
    headings = []
    draw = host.draw_sheet
    monkeypatch.setattr(host, "draw_sheet", lambda *args: headings.append(args[2]) or draw(*args))
    write_input("pair.txt", "one\ntwo\n")
    messages = []
    for settings in ("cfg 4.5", "cfg 7"):
        *_, chosen = prompt_set("pair.txt", limit=1, run="runs/pair")
        messages.append(host.contact_sheet([picture(0.5)], [], 2, None, None, chosen, "runs/pair", settings)[2])
    assert headings == ["cfg 4.5", "cfg 4.5 | cfg 7"]
    assert ["different settings" in message for message in messages] == [False, True]


def test_pictures_that_do_not_fit_the_prompts_are_refused(prompt_set, contact_sheet):
    *_, chosen = prompt_set("prompts.csv [demo]", limit=2)
    with pytest.raises(ValueError, match="1 pictures have come for 2 prompts"):
        contact_sheet([picture(0.5)], ["x"], prompt_set=chosen)
    with pytest.raises(ValueError, match="connect prompt_set"):
        contact_sheet([picture(0.5)], ["x"], run="runs/x")


def test_the_workflow_draws_each_prompt_with_its_seed_and_goes_on_at_the_next_queue(client, server):
    graph = json.loads((ROOT / "workflows" / "api" / "prompt_set.json").read_text(encoding="utf-8"))
    ids = {node["class_type"]: key for key, node in graph.items()}
    chosen, sheet = (graph[ids[name]]["inputs"] for name in ("PixArtPromptSet", "PixArtContactSheet"))
    chosen |= {"limit": 2, "category": "squares", "run": "runs/server"}
    sheet |= {"run": "runs/server", "columns": 2}
    graph[ids["KSampler"]]["inputs"]["steps"] = 2
    sizes = []
    for _ in range(2):
        result = client.run(graph)
        assert result.error is None, result.error
        (drawn,) = client.images(result, ids["SaveImage"])
        sizes.append(drawn.size)
    assert sizes[1][1] > sizes[0][1]  # the second sheet shows the first two pictures as well
    reference = {"filename": "results.csv", "subfolder": "runs/server", "type": "output"}
    rows = list(csv.DictReader(io.StringIO(server.file(reference).decode("utf-8"))))
    assert [int(row["seed"]) for row in rows] == [10, 11, 12, 13]
    assert "cfg 4.5" in rows[0]["settings"] and "pixart-demo-sigma.safetensors" in rows[0]["settings"]
