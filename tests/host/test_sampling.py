"""Sampling in a running ComfyUI: progress, previews, interrupt, and what is said on the nodes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from pixart.adapters import merge
from pixart.checkpoint import open_checkpoint, state_dict_to_save
from pixart.lora import open_lora

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
SAMPLER, PROMPT, SAVE = "7", "4", "9"


@pytest.fixture
def workflow() -> dict:
    return json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fine_tune(server):
    """The demo with its LoRA worked in, where the workflow for fine-tunes looks for one: none comes with the pack."""
    base = open_checkpoint(DEMO / "pixart-demo-sigma.safetensors")
    tuned = merge(base.state_dict, open_lora(DEMO / "pixart-demo-lora.safetensors").transformer)
    folder = server.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state_dict_to_save(tuned, base.config), folder / "pixart-demo-dreambooth.safetensors")


def test_every_workflow_for_scripts_runs(client, fine_tune):
    files = sorted((ROOT / "workflows" / "api").glob("*.json"))
    assert files
    for file in files:
        if file.stem.startswith("offline_captions"):
            continue  # these need each other's files: test_caption_files.py runs them in order
        result = client.run(json.loads(file.read_text(encoding="utf-8")))
        assert result.error is None, (file.name, result.error)


def test_the_sampler_reports_every_step_and_shows_previews(client, workflow):
    workflow[SAMPLER]["inputs"]["seed"] = 77
    result = client.run(workflow)
    assert result.error is None
    steps = [(value, most) for node, value, most in result.progress if node == SAMPLER]
    assert (20, 20) in steps
    assert len(result.previews) >= 1
    (picture,) = client.images(result, SAVE)
    assert picture.size == (128, 128)


def test_an_interrupted_run_ends_and_the_next_one_draws(client, workflow):
    long = copy.deepcopy(workflow)
    long[SAMPLER]["inputs"] |= {"steps": 2000, "seed": 78}
    prompt_id = client.queue(long)
    client.wait_for("progress")
    client.interrupt()
    assert client.result(prompt_id).interrupted

    workflow[SAMPLER]["inputs"]["seed"] = 79
    result = client.run(workflow)
    assert result.error is None and client.images(result, SAVE)


def test_the_prompts_node_tells_its_tokens_and_what_was_cut(client, workflow):
    workflow[PROMPT]["inputs"]["text"] = "a large green square on the right, black background"
    texts = dict(client.run(workflow).texts)
    assert texts[PROMPT].endswith("of 300 tokens")

    workflow[PROMPT]["inputs"]["max_tokens"] = 6
    texts = dict(client.run(workflow).texts)
    assert "6 fit" in texts[PROMPT] and texts[PROMPT].endswith("black background”")


def test_a_missing_file_is_refused_before_anything_runs(client, workflow):
    from tools.comfyui import HostError

    workflow["1"]["inputs"]["ckpt_name"] = "no-such-file.safetensors"
    with pytest.raises(HostError, match="no-such-file.safetensors"):
        client.run(workflow)


def test_an_autoencoder_offered_as_checkpoint_is_named_in_the_error(client, workflow):
    workflow["1"]["inputs"]["ckpt_name"] = "pixart-demo-vae.safetensors"
    error = client.run(workflow).error
    assert error["node_id"] == "1"
    assert "pixart-demo-vae.safetensors" in error["exception_message"]
    assert "VAE" in error["exception_message"] or "autoencoder" in error["exception_message"]
