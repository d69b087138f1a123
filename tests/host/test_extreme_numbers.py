"""Every number that a node takes, at its ends and far beyond them: a result or a sentence, and never NaN let in.

The host holds whole numbers and fractions against a node's limits, but NaN passes through its comparisons.
"""

from __future__ import annotations

import math
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pixart.checkpoint import open_checkpoint

DEMO = Path(__file__).resolve().parents[2] / "demo"
NUMBERS = ("INT", "FLOAT")
HUGE = [2**31, 2**63, 2**64, -(2**63), 10**30, 1e308]
SECONDS = 10

PAIRED = {
    # An end of one range that the default of the other forbids.
    ("PixArtGuidanceInterval", "start_percent"), ("PixArtGuidanceInterval", "end_percent"),
    ("PixArtStepCache", "start_percent"), ("PixArtStepCache", "end_percent"),
    ("PixArtKVCompression", "first_block"), ("PixArtKVCompression", "last_block"),
    ("PixArtUpscaleLatent", "steps"),
    ("PixArtStepCache", "first_blocks"), ("PixArtStepCache", "last_blocks"),
}  # fmt: skip
OWN = {
    ("PixArtLoadLora", "lora_name"): "one.safetensors",
    ("PixArtKVCompression", "first_block"): 2, ("PixArtKVCompression", "last_block"): 4,
}  # fmt: skip
"""Values in place of defaults, which are for models of 28 blocks."""

SPARED = {
    # Memory in proportion to the number, which is the user's to give, as in the host's own empty latents.
    ("PixArtResolution", "batch_size"), ("PixArtNearestResolution", "batch_size"),
}  # fmt: skip


@pytest.fixture(scope="module")
def things(pack) -> dict:
    """One of everything that a node may want beside numbers."""
    host = f"{pack.__name__}.nodes.host"
    caption = torch.zeros(1, 3, 64)
    return {
        "model": import_module(f"{host}.model").load_model(str(DEMO / "pixart-demo-sigma.safetensors")),
        "clip": import_module(f"{host}.text").load_clip(str(DEMO / "pixart-demo-t5.safetensors")),
        "vae": SimpleNamespace(), "latent": {"samples": torch.zeros(1, 4, 16, 16)}, "conditioning": [[caption, {}]],
        "positive": [[caption, {}]], "text": "a star", "images": torch.zeros(1, 16, 16, 3), "labels": "a",
        "lora_name": "none", "captions": "a star", "ckpt_name": "pixart-demo-sigma.safetensors",
        "control_net_name": "pixart-demo-controlnet.safetensors", "t5_name": "pixart-demo-t5.safetensors",
        "file": "prompts.csv [demo]",
    }  # fmt: skip


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    stem = "transformer.transformer_blocks.0.attn1.to_out.0"
    width = open_checkpoint(DEMO / "pixart-demo-sigma.safetensors").config.hidden_size
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, width), f"{stem}.lora_B.weight": torch.ones(width, 2)}
    save_file(tensors, folder / "one.safetensors")
    return folder


@pytest.fixture(autouse=True)
def loras(lora, monkeypatch, node_classes):
    import folder_paths

    suffixes = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(lora)], suffixes))
    folder_paths.filename_list_cache.pop("loras", None)
    yield
    folder_paths.filename_list_cache.pop("loras", None)


def numbers(node_classes) -> list[tuple[str, object]]:
    return [
        (name, item)
        for name, cls in node_classes.items()
        for item in cls.GET_SCHEMA().inputs
        if item.get_io_type() in NUMBERS
    ]


def run(node_classes, things, node: str, **given) -> str | None:
    """The node with defaults for all else; the sentence with which it refuses, None where it does not."""
    cls = node_classes[node]
    schema = cls.GET_SCHEMA()
    arguments = {}
    for item in schema.inputs:
        default = getattr(item, "default", None)
        value = things.get(item.id) if default is None or item.id == "model" else default
        if value is None and item.get_io_type() == "COMBO":
            value = item.options[0]
        value = OWN.get((node, item.id), value)
        if value is not None and not (item.optional and item.id in ("clip", "positive")):
            arguments[item.id] = [value] if schema.is_input_list else value
    arguments |= {name: [value] if schema.is_input_list else value for name, value in given.items()}
    try:
        cls.PREPARE_CLASS_CLONE(None).execute(**arguments)
    except ValueError as error:
        assert str(error).strip() and len(str(error)) < 2000
        return str(error)
    return None


def test_there_are_numbers_to_try(node_classes):
    assert len(numbers(node_classes)) > 45


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_by_name(value, node_classes, things):
    let_in, unnamed = [], []
    for node, item in numbers(node_classes):
        said = run(node_classes, things, node, **{item.id: value})
        if said is None:
            let_in.append(f"{node}.{item.id}")
        elif item.id not in said:
            unnamed.append(f"{node}.{item.id}: {said}")
    assert let_in == [] and unnamed == []


def test_ends_and_what_lies_beyond_give_a_result_or_a_sentence(node_classes, things):
    for node, item in numbers(node_classes):
        if node == "PixArtTrainLora" or (node, item.id) in SPARED:
            continue
        for value in {item.min, item.max} - {None}:
            start = time.process_time()
            said = run(node_classes, things, node, **{item.id: value})
            assert said is None or (node, item.id) in PAIRED, (node, item.id, value, said)
            assert time.process_time() - start < SECONDS, (node, item.id, value)


def test_numbers_beyond_the_ends_are_refused_by_name(node_classes, things):
    let_in, unnamed = [], []
    for node, item in numbers(node_classes):
        kind = int if item.get_io_type() == "INT" else float
        if item.min is None:
            continue  # what is only written on a sheet
        beyond = [kind(item.min - 1), kind(item.max + 1), *map(kind, HUGE)]
        beyond = [value for value in beyond if not item.min <= value <= item.max]
        for value in beyond:
            said = run(node_classes, things, node, **{item.id: value})
            if said is None:
                let_in.append(f"{node}.{item.id} = {value}")
            elif item.id not in said:
                unnamed.append(f"{node}.{item.id} = {value}: {said}")
    assert let_in == [] and unnamed == []
