"""Training a LoRA as a node: in a running server, with bar, previews and interrupt; and the file in the host."""

from __future__ import annotations

import copy
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from host_client import Result, take_binary, take_message
from safetensors import safe_open
from safetensors.torch import load_file

from pixart.checkpoint.keys import diffusers_names

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
WORKFLOW = json.loads((ROOT / "workflows" / "api" / "dreambooth_train.json").read_text(encoding="utf-8"))
TRAIN, PREVIEWS = "12", "13"


def graph(**inputs) -> dict:
    """The workflow with fewer pictures and steps, up to the trained file and its previews."""
    kept = {key: copy.deepcopy(node) for key, node in WORKFLOW.items() if int(key) <= 13}
    kept["7"]["inputs"]["batch_size"] = 2
    for sampler in ("8", "10"):
        kept[sampler]["inputs"]["steps"] = 4
    # A name of its own: the server may have trained the workflow's under other tests.
    own = {"lora_name": "pixart-stopped", "batch_size": 2, "preview_every": 1, "save_every": 0}
    kept[TRAIN]["inputs"] |= own | inputs
    return kept


@pytest.fixture(scope="module")
def parts(pack):
    """MODEL, CLIP, VAE of the demo, and the module of the training's host side."""
    import comfy.sd
    import comfy.utils

    nodes = f"{pack.__name__}.nodes.host"
    model = import_module(f"{nodes}.model").load_model(str(DEMO / "pixart-demo-sigma.safetensors"))
    clip = import_module(f"{nodes}.text").load_clip(str(DEMO / "pixart-demo-t5.safetensors"))
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(DEMO / "pixart-demo-vae.safetensors")))
    return model, clip, vae, import_module(f"{nodes}.training")


def execute(node_classes, parts, **inputs):
    """The node as the host runs one that takes lists."""
    model, clip, vae, _ = parts
    images = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    given = {"images": images, "captions": "a zork", "lora_name": "zork", "steps": 2, "targets": "all"}
    given |= {"learning_rate": 0.01, "rank": 4} | inputs
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return node_classes["PixArtTrainLora"].execute(model=[model], clip=[clip], vae=[vae], **lists)


def test_trained_in_a_server_with_bar_and_previews_stopped_and_gone_on(client, server):
    prompt_id = client.queue(graph(steps=5000))
    seen = Result(prompt_id)
    for event in client.events(240):
        if isinstance(event, bytes):
            take_binary(event, seen)
        else:
            assert not take_message(event, seen), seen.error
        if any(node == TRAIN for node, *_ in seen.progress) and TRAIN in seen.executed and len(seen.previews) >= 12:
            break
    client.interrupt()
    stopped = client.result(prompt_id)
    assert stopped.interrupted
    bar = [(value, most) for node, value, most in seen.progress if node == TRAIN]
    assert bar and {most for _, most in bar} == {5000}

    file = server.base / "models" / "loras" / "pixart-stopped.safetensors"
    with safe_open(file, framework="pt") as opened:
        told = opened.metadata()
    done = int(told["pixart_steps"])
    assert 0 < done < 5000 and told["pixart_trigger"] == "zork"
    state = server.base / "output" / "pixart_training" / "pixart-stopped" / "training.state"
    assert torch.load(state, weights_only=True)["step"] == done

    result = client.run(graph(steps=done + 3))
    assert result.error is None
    report = "\n".join(result.outputs[TRAIN]["text"])
    assert f"went on from update {done}" in report and f"{done + 3} updates" in report
    assert len(client.images(result, PREVIEWS)) == 2 * 3
    listed = client.object_info("LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    assert "pixart-stopped.safetensors" in json.dumps(listed)


def test_the_file_is_the_same_every_time_and_as_the_host_applies_it(node_classes, parts):
    import comfy.model_management
    import folder_paths

    model, _, _, training = parts
    first = execute(node_classes, parts, lora_name="first")
    second = execute(node_classes, parts, lora_name="second")
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    state = load_file(folder / first[0])
    other = load_file(folder / second[0])
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert first[2].shape == (1, 128, 128, 3)

    patched = first[3]
    before = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
    comfy.model_management.load_models_gpu([patched], force_patch_weights=True)
    after = patched.model.diffusion_model.state_dict()
    touched = 0
    for name, weight in before.items():
        layers = [f"transformer.{part.removesuffix('.weight')}" for part in diffusers_names(name)]
        if name.endswith("weight") and layers and f"{layers[0]}.lora_A.weight" in state:
            delta = torch.cat([state[f"{p}.lora_B.weight"] @ state[f"{p}.lora_A.weight"] for p in layers])
            expected = weight.float() + delta
            assert (after[name].float() - expected).abs().max() <= max(1e-5, 2e-3 * expected.abs().max().item()), name
            touched += 1
        else:
            assert torch.equal(after[name], weight), name
    assert touched == sum("lora_A" in name for name in state) - 3 * 5  # q, k, v and k, v are stacked
    comfy.model_management.unload_all_models()


def test_another_training_never_overwrites_a_file(node_classes, parts):
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    names = [execute(node_classes, parts, lora_name="kept", seed=seed)[0] for seed in (0, 1, 0)]
    assert names == ["kept.safetensors", "kept-2.safetensors", "kept.safetensors"]
    assert load_file(folder / names[0]).keys() == load_file(folder / names[1]).keys()


def test_pictures_of_any_sizes_come_as_a_list(node_classes, parts):
    images = [torch.rand(1, 100, 160, 3), torch.rand(1, 160, 100, 4)]
    output = execute(
        node_classes, parts, images=images, captions=["a zork", "two zorks"], trigger="zork", lora_name="list"
    )
    assert "trigger" not in output[1]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"captions": "one\ntwo\nthree"}, "images has 2 pictures, and there are 3 captions"),
        ({"captions": " \n"}, "Picture 1 of images has no caption: write one into captions, "),
        ({"images": torch.zeros(0, 64, 64, 3)}, "images is empty"),
        ({"class_images": torch.rand(1, 64, 64, 3)}, "class_images has no caption: write one into class_captions, "),
        ({"images": torch.full((1, 64, 64, 3), float("nan"))}, "holds NaN"),
        ({"captions": ["one", " "]}, "Picture 2 of images has no caption: write one into captions"),
        ({"lora_name": "../elsewhere"}, "no plain file name"),
        ({"lora_name": " "}, "lora_name is empty: write a name"),
        ({"batch_size": 3, "accumulation": 2}, "batch_size 3 .* multiple of 2"),
    ],
)
def test_wrong_inputs_are_named(node_classes, parts, inputs, message):
    with pytest.raises(ValueError, match=message):
        execute(node_classes, parts, **inputs)


def test_a_model_with_a_lora_on_it_and_a_foreign_vae_are_refused(node_classes, parts):
    model, clip, vae, _ = parts
    patched = model.clone()
    patched.add_patches({"diffusion_model.t_block.1.bias": ("diff", (torch.zeros(6 * 216),))})
    with pytest.raises(ValueError, match="carries changes to its weights"):
        execute(node_classes, (patched, clip, vae, None))

    class FiveChannels:
        def encode(self, pixels):
            return torch.zeros(1, 5, 16, 16)

    with pytest.raises(ValueError, match="SD's VAE for α, SDXL's for Σ"):
        execute(node_classes, (model, clip, FiveChannels(), None))


def test_without_accelerate_the_node_says_what_to_install(node_classes, parts, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match="pip install accelerate"):
        execute(node_classes, parts, lora_name="none")


def test_features_are_those_of_the_training_without_a_host(parts):
    """The host's T5 and VAE say of captions and pictures what the command line's say."""
    from pixart.checkpoint import open_checkpoint
    from pixart.training.sources import Sources

    model, clip, vae, training = parts
    files = [DEMO / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae")]
    sources = Sources(open_checkpoint(files[0]), files[1], files[2])
    picture = torch.rand(3, 96, 160, generator=torch.Generator().manual_seed(1))
    scale = sources.checkpoint.config.latent_scale
    theirs = training.picture_encoder(vae, model.model, 0)(picture)
    ours = sources.autoencoder().encode(picture[None])[0] * scale
    assert theirs.shape == (4, 12, 20)
    print(f"latents: largest difference {(theirs - ours).abs().max():.2e} of {ours.abs().max():.2f}")
    assert (theirs - ours).abs().max() < 0.02 * ours.abs().max()
    for text in ("a small red star on the left", ""):
        theirs, ours = (encode(text) for encode in (training.text_encoder(clip, model.model), sources.text_encoder()))
        assert (theirs - ours).abs().max() < 1e-2 * ours.abs().max()
