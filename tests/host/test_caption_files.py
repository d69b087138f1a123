"""Captions saved and loaded by nodes: the same picture, no T5, and nothing outside of the host's folders."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from random_models import random_checkpoint
from safetensors.torch import load_file, save_file

from pixart.config import PixArtConfig
from pixart.text.__main__ import main
from pixart.text.captions import load_caption
from pixart.text.encoder import open_t5
from pixart.text.layout import T5Config
from pixart.text.provenance import mark_t5
from pixart.training.demo.text import train_tokenizer
from tools.comfyui import HostError

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a small red star on the left, blue background"
PROMPTS = [PROMPT, "a circle", "a large yellow square", "a green triangle at the top", "a star"]
WIDTH = 64


def write_t5(path: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """Random weights, each of them of effect, and a real tokenizer."""
    config = T5Config(vocab_size=160, d_model=WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    generator = torch.Generator().manual_seed(seed)
    shapes = config.shapes()
    state = {name: torch.randn(s, generator=generator) * 0.1 + ("norm" in name) for name, s in shapes.items()}
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    state["spiece_model"] = torch.frombuffer(bytearray(train_tokenizer(0)), dtype=torch.uint8)
    save_file(state, path)
    return path


def write_checkpoint(path: Path, **metadata: str) -> Path:
    config = PixArtConfig(
        hidden_size=144, depth=2, num_heads=2, mlp_hidden_size=288, caption_channels=WIDTH, base_size=8,
        pe_interpolation=0.25,
    )  # fmt: skip
    return Path(random_checkpoint(path, config, metadata=metadata))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> SimpleNamespace:
    """Two T5 of one shape, the first also in fp16 and fp8; checkpoints that name the first, and none."""
    folder = tmp_path_factory.mktemp("models")
    t5 = write_t5(folder / "t5.safetensors", 1)
    return SimpleNamespace(
        t5=t5,
        half=write_t5(folder / "t5_fp16.safetensors", 1, torch.float16),
        fp8=write_t5(folder / "t5_fp8.safetensors", 1, torch.float8_e4m3fn),
        other=write_t5(folder / "other.safetensors", 2),
        named=write_checkpoint(folder / "named.safetensors", **mark_t5(open_t5(t5)).metadata("pixart.")),
        unnamed=write_checkpoint(folder / "unnamed.safetensors"),
    )


@pytest.fixture
def folders(tmp_path, monkeypatch, node_classes) -> SimpleNamespace:
    """Empty input, output and models/captions folders in place of the host's."""
    import folder_paths

    found = SimpleNamespace(**{name: tmp_path / name for name in ("input", "output", "captions")})
    for folder in vars(found).values():
        folder.mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(found.input))
    monkeypatch.setattr(folder_paths, "output_directory", str(found.output))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "captions", ([str(found.captions)], set()))
    return found


@pytest.fixture(scope="module")
def hosted(pack):
    name = f"{pack.__name__}.nodes.host"
    parts = {part: import_module(f"{name}.{part}") for part in ("caption_files", "model", "text")}
    return SimpleNamespace(**parts)


def ran(node: type, **inputs):
    """What a node answers when it runs in a graph."""
    return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


def encoded(node_classes, clip, prompt: str) -> list:
    return ran(node_classes["PixArtTextEncode"], clip=clip, text=prompt).args[0]


def sampled(patcher, positive, negative) -> torch.Tensor:
    import comfy.sample

    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    return comfy.sample.sample(
        patcher, noise, 3, 4.5, "dpmpp_2m", "normal", positive, negative, torch.zeros_like(noise), seed=3
    )


def test_a_saved_and_loaded_caption_draws_the_same_picture_bit_for_bit(models, folders, node_classes, hosted):
    clip, model = hosted.text.load_clip(str(models.t5)), hosted.model.load_model(str(models.named))
    written, loaded = [encoded(node_classes, clip, prompt) for prompt in (PROMPT, "")], []
    for number, conditioning in enumerate(written, start=1):
        out = ran(node_classes["PixArtSaveCaption"], conditioning=conditioning, filename_prefix="a/b")
        name = f"a/b_{number:05}_.safetensors [output]"
        assert name in out.ui.as_dict()["text"][0]
        assert name in hosted.caption_files.caption_names()
        loaded.append(ran(node_classes["PixArtLoadCaption"], caption_name=name).args[0])
    assert torch.equal(loaded[0][0][0], written[0][0][0]) and loaded[0][0][0].dtype == written[0][0][0].dtype
    assert loaded[0][0][1]["pixart_caption"] == written[0][0][1]["pixart_caption"]
    picture = sampled(model, *written)
    assert torch.equal(sampled(model, *loaded), picture)
    assert (sampled(model, written[1], written[0]) - picture).abs().max() > 1e-2


def test_the_text_node_says_what_was_encoded_and_by_which_t5(models, node_classes, hosted):
    clip = hosted.text.load_clip(str(models.t5))
    mark = mark_t5(open_t5(models.t5))
    ((tensor, values),) = encoded(node_classes, clip, PROMPT)
    expected = {"prompt": PROMPT, "tokens": tensor.shape[1]}
    assert values["pixart_caption"] == expected | {
        "t5": mark.identity, "t5_signs": mark.signs, "t5_config": mark.config
    }  # fmt: skip
    cut = ran(node_classes["PixArtTextEncode"], clip=clip, text=PROMPT, max_tokens=4).args[0][0][1]
    assert (cut["pixart_caption"]["prompt"], cut["pixart_caption"]["tokens"]) == (PROMPT, 4)
    del clip.cond_stage_model.pixart_t5  # as a CLIP of the host's own loader
    assert encoded(node_classes, clip, PROMPT)[0][1]["pixart_caption"] == expected


def test_mask_and_numbers_come_back_and_the_rest_is_told(folders, node_classes, hosted):
    tensor, mask = torch.randn(1, 6, WIDTH), torch.tensor([[1, 1, 1, 1, 0, 0]])
    size = ran(
        node_classes["PixArtSizeConditioning"],
        conditioning=[[tensor, {"pooled_output": None, "attention_mask": mask, "area": (1, 2, 3, 4), "strength": 0.5}]],
        width=1088,
        height=1872,
    ).args[0]
    out = ran(node_classes["PixArtSaveCaption"], conditioning=size)
    report = out.ui.as_dict()["text"][0]
    name = "captions/PixArt_00001_.safetensors [output]"
    assert report == f"{name} (4 tokens, 64 wide); a file cannot hold area, which was left out"
    ((back, values),) = ran(node_classes["PixArtLoadCaption"], caption_name=name).args[0]
    assert torch.equal(back, tensor) and torch.equal(values.pop("attention_mask"), mask)
    assert values.pop("pixart_caption") == {"prompt": None, "tokens": 4}
    assert values == {"pooled_output": None, "width": 1088, "height": 1872, "strength": 0.5}


def test_every_entry_and_every_row_gets_a_file_of_its_own(folders, hosted):
    rows = torch.randn(2, 3, WIDTH)
    conditioning = [[rows, {}], [rows[:1] + 1, {}]]
    saved = hosted.caption_files.save_conditioning(conditioning, "c", None)
    again = hosted.caption_files.save_conditioning(conditioning[:1], "c", torch.float16)
    assert [s.name for s in saved + again] == [f"c_{number:05}_.safetensors [output]" for number in range(1, 6)]
    files = [load_caption(folders.output / f"c_{number:05}_.safetensors").embedding for number in range(1, 6)]
    assert torch.equal(torch.stack(files[:3]), torch.cat([rows, rows[:1] + 1]))
    assert torch.equal(files[3], rows[0].half())
    assert len(list(folders.output.iterdir())) == 5


def test_joined_captions_do_not_keep_the_prompt_of_their_first(models, folders, node_classes, hosted):
    from nodes import ConditioningConcat

    clip = hosted.text.load_clip(str(models.t5))
    first, second = encoded(node_classes, clip, "a star"), encoded(node_classes, clip, "a circle")
    (joined,) = ConditioningConcat().concat(first, second)
    (saved,) = hosted.caption_files.save_conditioning(joined, "c", None)
    assert saved.caption.prompt is None and saved.caption.t5.identity == open_t5(models.t5).identity
    (saved,) = hosted.caption_files.save_conditioning(first, "c", None)
    assert saved.caption.prompt == "a star"


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [([], "The conditioning is empty"), ([[torch.zeros(1, 64), {}]], r"has shape \[1, 64\], where captions have")],
)
def test_what_is_no_caption_is_not_saved(conditioning, message, folders, hosted):
    with pytest.raises(ValueError, match=message):
        hosted.caption_files.save_conditioning(conditioning, "c", None)
    assert list(folders.output.iterdir()) == []


# Which T5


@pytest.mark.parametrize("t5", ["t5", "half", "fp8"])
def test_the_checkpoints_own_t5_is_accepted_in_every_type(t5, models, node_classes, hosted):
    model = hosted.model.load_model(str(models.named))
    clip = hosted.text.load_clip(str(getattr(models, t5)))
    positive, negative = (encoded(node_classes, clip, prompt) for prompt in (PROMPT, ""))
    assert sampled(model, positive, negative).isfinite().all()


def test_a_loaded_caption_of_another_t5_is_refused_with_both_named(models, folders, node_classes, hosted):
    clip = hosted.text.load_clip(str(models.other))
    (saved,) = hosted.caption_files.save_conditioning(encoded(node_classes, clip, PROMPT), "c", None)
    loaded = ran(node_classes["PixArtLoadCaption"], caption_name=saved.name).args[0]
    wanted, found = (mark_t5(open_t5(file)).identity for file in (models.t5, models.other))
    with pytest.raises(
        ValueError, match=rf"made by the T5 {found} \(.*\), but named.safetensors was trained with the T5 {wanted} \("
    ):
        sampled(hosted.model.load_model(str(models.named)), loaded, loaded)
    assert sampled(hosted.model.load_model(str(models.unnamed)), loaded, loaded).isfinite().all()


def test_the_command_and_the_nodes_write_the_same_captions(models, folders, node_classes, hosted, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    assert main([str(prompts), "--t5", str(models.t5), "--out", str(folders.captions), "--batch", "3"]) == 0
    names = hosted.caption_files.caption_names()
    assert len(names) == 5
    clip = hosted.text.load_clip(str(models.t5))
    worst = 0.0
    for name, prompt in zip(names, PROMPTS, strict=True):
        ((theirs, told),) = ran(node_classes["PixArtLoadCaption"], caption_name=name).args[0]
        ((ours, said),) = encoded(node_classes, clip, prompt)
        assert theirs.shape == ours.shape and told["pixart_caption"] == said["pixart_caption"]
        worst = max(worst, (theirs - ours).abs().max().item())
    assert worst <= 1e-5


# Names from workflows of strangers


@pytest.fixture
def laid(folders, hosted, tmp_path) -> SimpleNamespace:
    """A caption in each folder, one outside of all, links to it, and files that are no captions."""
    outside = tmp_path / "outside"
    outside.mkdir()
    tensor = torch.randn(1, 3, WIDTH)
    (saved,) = hosted.caption_files.save_conditioning([[tensor, {}]], "sub/c", None)
    content = (folders.output / "sub" / "c_00001_.safetensors").read_bytes()
    for place in (folders.input / "i.safetensors", folders.captions / "m.safetensors", outside / "o.safetensors"):
        place.write_bytes(content)
    (folders.output / "file.safetensors").symlink_to(outside / "o.safetensors")
    (folders.output / "folder").symlink_to(outside)
    (folders.captions / "text.txt").write_bytes(content)
    save_file({"lora_A.weight": tensor}, folders.output / "lora.safetensors")
    return folders


def test_captions_of_all_folders_are_listed_and_nothing_else(laid, hosted):
    assert hosted.caption_files.caption_names() == [
        "m.safetensors",
        "i.safetensors [input]",
        "sub/c_00001_.safetensors [output]",
    ]
    for name in hosted.caption_files.caption_names():
        assert Path(hosted.caption_files.find_caption(name)).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "../outside/o.safetensors",
        "../outside/o.safetensors [output]",
        "sub/../../outside/o.safetensors [output]",
        "..\\outside\\o.safetensors [input]",
        "/etc/passwd",
        "C:\\captions\\o.safetensors",
        "file.safetensors [output]",
        "folder/o.safetensors [output]",
    ],
)
def test_a_name_that_leads_out_is_refused(name, laid, hosted):
    with pytest.raises(ValueError, match="leads out of the caption folders. Choose a name from the list"):
        hosted.caption_files.find_caption(name)


@pytest.mark.parametrize("name", ["none.safetensors", "i.safetensors", "text.txt", "sub [output]", ""])
def test_a_name_that_is_not_there_is_told_with_the_places(name, laid, hosted):
    with pytest.raises(ValueError, match="is not there. Caption files are looked for in models/captions, input and"):
        hosted.caption_files.find_caption(name)


@pytest.mark.parametrize("prefix", ["../c", "sub/../../c", "/tmp/c", "folder/c", "", "  ", "."])
def test_nothing_is_written_outside_of_the_output_folder(prefix, laid, hosted, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="leads out of the output folder, or names no file"):
        hosted.caption_files.save_conditioning([[torch.zeros(1, 3, WIDTH), {}]], prefix, None)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bad_file_is_told_by_the_node(laid, node_classes):
    (laid.captions / "bad.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="bad.safetensors: This is no checkpoint format"):
        ran(node_classes["PixArtLoadCaption"], caption_name="bad.safetensors")


def test_a_changed_file_makes_the_node_run_again(laid, node_classes):
    node, path = node_classes["PixArtLoadCaption"], laid.captions / "m.safetensors"
    first = node.fingerprint_inputs(caption_name="m.safetensors")
    assert node.fingerprint_inputs(caption_name="m.safetensors") == first
    os.utime(path, ns=(0, 1_000_000_000))
    second = node.fingerprint_inputs(caption_name="m.safetensors")
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(0, 1_000_000_000))
    third = node.fingerprint_inputs(caption_name="m.safetensors")
    assert len({first, second, third}) == 3


# Whole graphs in the host's executor


class SilentServer:
    """As much of the host's server as its executor speaks to."""

    client_id = None
    last_node_id = None
    last_prompt_id = None

    def send_sync(self, event, data, client_id=None) -> None:
        pass


def execute(graph: dict, outputs: list[str]):
    """Run a graph as the host does; its executor, which keeps what the nodes gave as long as it lives."""
    import execution

    sizes = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    executor = execution.PromptExecutor(SilentServer(), cache_type=False, cache_args=sizes)
    asyncio.run(executor.execute_async(graph, "test", {}, outputs))
    (end,) = (m for m in executor.status_messages if m[0] in ("execution_success", "execution_error"))
    assert end[0] == "execution_success", end[1].get("exception_message")
    return executor


def sampling_graph(checkpoint: str, captions: dict) -> dict:
    """KSampler from two nodes "p" and "n" of CONDITIONING, saving latents as out."""
    return captions | {
        "m": {"class_type": "PixArtLoadCheckpoint", "inputs": {"ckpt_name": checkpoint}},
        "l": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "k": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["m", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["l", 0], "seed": 1,
                "steps": 2, "cfg": 4.5, "sampler_name": "dpmpp_2m", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "s": {"class_type": "SaveLatent", "inputs": {"samples": ["k", 0], "filename_prefix": "latent"}},
    }  # fmt: skip


@pytest.fixture
def graph_host(models, folders, monkeypatch, node_classes) -> SimpleNamespace:
    """The pack's nodes known to the executor, the models in its folders, and a count of the T5 that are built."""
    import comfy.text_encoders.t5
    import folder_paths

    import nodes

    for name, node in node_classes.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    for kind in ("checkpoints", "text_encoders"):
        known, suffixes = folder_paths.folder_names_and_paths[kind]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(models.t5.parent)], suffixes))
    built = []
    init = comfy.text_encoders.t5.T5.__init__

    def counted(self, *args, **kwargs):
        built.append(self.__class__.__name__)
        init(self, *args, **kwargs)

    monkeypatch.setattr(comfy.text_encoders.t5.T5, "__init__", counted)
    return SimpleNamespace(built=built, folders=folders)


def resident() -> list[str]:
    """Classes of the models that the host holds on to."""
    import comfy.model_management

    loaded = (entry.model for entry in comfy.model_management.current_loaded_models)
    return sorted(patcher.model.__class__.__name__ for patcher in loaded if patcher is not None)


def forget_models() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.cleanup_models()


def test_a_graph_with_loaded_captions_builds_no_t5(graph_host):
    def text(prompt: str) -> dict:
        return {"class_type": "PixArtTextEncode", "inputs": {"clip": ["t", 0], "text": prompt}}

    def save(source: str) -> dict:
        return {"class_type": "PixArtSaveCaption", "inputs": {"conditioning": [source, 0], "filename_prefix": source}}

    def load(name: str) -> dict:
        return {"class_type": "PixArtLoadCaption", "inputs": {"caption_name": f"{name}_00001_.safetensors [output]"}}

    t5 = {"class_type": "PixArtLoadT5", "inputs": {"t5_name": "t5.safetensors"}}
    captions = {"t": t5, "p": text(PROMPT), "n": text(""), "sp": save("p"), "sn": save("n")}
    forget_models()
    executor = execute(sampling_graph("named.safetensors", captions), ["s", "sp", "sn"])
    assert graph_host.built == ["T5"]
    assert resident() == ["PixArtModel", "PixArtTextModel"]

    del executor
    forget_models()
    graph_host.built.clear()
    executor = execute(sampling_graph("named.safetensors", {"p": load("p"), "n": load("n")}), ["s"])
    assert graph_host.built == []
    assert resident() == ["PixArtModel"]
    del executor

    first, second = (graph_host.folders.output / f"latent_{number:05}_.latent" for number in (1, 2))
    assert torch.equal(load_file(first)["latent_tensor"], load_file(second)["latent_tensor"])


def workflow(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_two_workflows_draw_what_text_to_image_draws(client, server):
    saving = client.run(workflow("offline_captions_save"))
    assert saving.error is None
    assert saving.outputs["4"]["text"] == ["captions/star_00001_.safetensors [output] (12 tokens, 128 wide)"]
    names = client.object_info("PixArtLoadCaption")["PixArtLoadCaption"]["input"]["required"]["caption_name"]
    offered = names[0] if isinstance(names[0], list) else names[1]["options"]
    assert {"captions/star_00001_.safetensors [output]", "captions/empty_00001_.safetensors [output]"} <= set(offered)

    loading = client.run(workflow("offline_captions"))
    assert loading.error is None
    assert [text for node, text in loading.texts if "star" in text][-1].endswith(f"12 tokens: “{PROMPT}”")
    assert client.run(workflow("offline_captions")).executed == []
    os.utime(server.base / "output" / "captions" / "star_00001_.safetensors")
    assert client.run(workflow("offline_captions")).executed[0] == "3"
    direct = client.run(workflow("text_to_image"))
    (first,), (second,) = client.images(loading, "8"), client.images(direct, "9")
    assert first.tobytes() == second.tobytes()


def test_a_workflow_cannot_name_a_file_outside(client):
    graph = workflow("offline_captions")
    graph["3"]["inputs"]["caption_name"] = "../../etc/passwd [output]"
    with pytest.raises(HostError, match=r"PixArtLoadCaption \(3\): .*'../../etc/passwd \[output\]' not in"):
        client.run(graph)
