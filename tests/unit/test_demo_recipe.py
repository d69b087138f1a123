"""A few steps of every stage of the demo's recipe, and what is exported from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pixart.checkpoint import load_transformer
from pixart.pipeline import load_autoencoder
from pixart.text.encoder import load_transformers_t5, open_t5
from pixart.text.provenance import mark_t5
from pixart.training.demo import alpha, autoencoder, diffusion, export, outlines, restore, text
from pixart.training.demo.latents import CONTRAST
from pixart.training.demo.run import Resumable
from pixart.transformer import PixArtTransformer

STEPS = 3
SEED = 7


def text_run(out, stop=STEPS):
    if not (out / "tokenizer.model").exists():
        (out / "tokenizer.model").write_bytes(text.train_tokenizer(SEED))
    task = text.TextTask((out / "tokenizer.model").read_bytes(), SEED, STEPS, batch=8)
    return task, Resumable(task, out / "text.state.pt"), stop


def autoencoder_run(part, out, stop=STEPS):
    task = autoencoder.AutoencoderTask(SEED, STEPS, part, batch=2)
    return task, Resumable(task, out / f"autoencoder-{part}.state.pt"), stop


def diffusion_run(out, stop=STEPS):
    task = diffusion.DiffusionTask(out, SEED, STEPS)
    return task, Resumable(task, out / "diffusion.state.pt"), stop


def sharpen_run(out, stop=STEPS):
    task = autoencoder.SharpenTask(out, SEED, STEPS, batch=2)
    return task, Resumable(task, out / "autoencoder-sharpen.state.pt"), stop


def outlines_run(out, stop=STEPS):
    task = outlines.OutlineTask(out, SEED, STEPS)
    return task, Resumable(task, out / "outlines.state.pt"), stop


def polish_run(out, stop=STEPS):
    task = outlines.PolishTask(out, SEED, STEPS)
    return task, Resumable(task, out / "polish.state.pt"), stop


def practice_run(out, stop=STEPS):
    task = outlines.PracticeTask(out, SEED, STEPS)
    return task, Resumable(task, out / "practice.state.pt"), stop


STAGES = {
    "text": text_run,
    "autoencoder-encoder": lambda out, stop=STEPS: autoencoder_run("encoder", out, stop),
    "autoencoder-decoder": lambda out, stop=STEPS: autoencoder_run("decoder", out, stop),
    "autoencoder-sharpen": sharpen_run,
    "diffusion": diffusion_run,
    "outlines": outlines_run,
    "polish": polish_run,
    "practice": practice_run,
}

NEEDS = {
    "autoencoder-sharpen": ("autoencoder-decoder.state.pt",),
    "diffusion": ("tokenizer.model", "text.state.pt"),
    "outlines": ("tokenizer.model", "text.state.pt", "diffusion.state.pt"),
    "polish": ("tokenizer.model", "text.state.pt", "outlines.state.pt"),
    "practice": ("tokenizer.model", "text.state.pt", "polish.state.pt"),
}
"""Files of earlier stages that a stage starts from."""


def run(stage, out, stop=STEPS):
    task, loop, stop = STAGES[stage](out, stop)
    loop.run(stop)
    return task


@pytest.fixture(scope="module")
def small_steps():
    """One step of each phase with fewer tokens than the published demo was trained with; the rest is the recipe's."""
    phases = tuple(dataclasses.replace(phase, steps=1, tokens=256) for phase in diffusion.PHASES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "PHASES", phases)
        for phase in ("OUTLINE_PHASE", "POLISH_PHASE", "PRACTICE_PHASE"):
            patch.setattr(outlines, phase, dataclasses.replace(getattr(outlines, phase), tokens=256))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_steps):
    """A folder with the states of all stages, and the tasks that made them."""
    out = tmp_path_factory.mktemp("recipe")
    return out, {stage: run(stage, out) for stage in STAGES}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained):
    demo = tmp_path_factory.mktemp("exported")
    return demo, export.export(trained[0], demo)


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_exported_transformer_is_the_average_model(trained, exported):
    task = trained[1]["practice"]
    model = load_transformer(exported[0] / export.TRANSFORMER, dtype=torch.float32, device="cpu")
    assert model.config == diffusion.CONFIG
    weights = model.state_dict()
    for name, value in task.ema.average.state_dict().items():
        assert torch.equal(weights[name], value.half().float()), name
    last = task.model.state_dict()
    moved = [name for name, value in weights.items() if not torch.equal(value, last[name].half().float())]
    assert "final_layer.linear.weight" in moved  # so the test tells the average from the last model


def test_exported_transformer_carries_what_released_files_carry(exported):
    tensors = load_file(exported[0] / export.TRANSFORMER)
    expected = PixArtTransformer(diffusion.CONFIG, device="meta").state_dict().keys() | {"pos_embed"}
    assert tensors.keys() == expected
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert tensors["pos_embed"].shape == (1, 64, 216)
    # token 1 of the first row is at column coordinate 1 / (8 / 8) / 0.25 = 4, row coordinate 0
    assert tensors["pos_embed"][0, 1, 0].item() == pytest.approx(torch.tensor(4.0).sin().item(), abs=1e-3)
    assert tensors["pos_embed"][0, 1, 108].item() == 0.0
    mark = mark_t5(open_t5(exported[0] / export.ENCODER))
    assert metadata(exported[0] / export.TRANSFORMER) == {
        "pixart.t5_identity": mark.identity,
        "pixart.t5_signs": mark.signs,
        "pixart.t5_config": str(mark.config),
        "pixart.family": "sigma",
        "pixart.num_heads": "3",
        "pixart.base_size": "8",
        "pixart.pe_interpolation": "0.25",
        "pixart.max_caption_tokens": "300",
        "license": "Apache-2.0",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": "PixArt demo",
        "modelspec.description": "A small PixArt-Sigma that draws one shape on a plain background.",
        "modelspec.architecture": "pixart-sigma",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "128x128",
        "modelspec.license": "Apache-2.0",
    }


def test_null_caption_is_the_encoded_empty_prompt_300_times(trained, exported):
    null = load_file(exported[0] / export.TRANSFORMER)["y_embedder.y_embedding"]
    _, encoder = text.load(trained[0])
    with torch.no_grad():
        empty = encoder(input_ids=torch.tensor([[text.EOS]])).last_hidden_state[0, 0]
    assert null.shape == (300, 128)
    assert torch.allclose(null.float(), empty.expand(300, -1), atol=2e-3)
    assert empty.abs().max() > 0.5


def test_exported_text_encoder_says_what_the_trained_one_says(trained, exported):
    path = exported[0] / export.ENCODER
    tensors = load_file(path)
    assert {name.split(".")[0] for name in tensors} == {"shared", "encoder", "spiece_model"}
    assert "encoder.embed_tokens.weight" not in tensors
    assert tensors["spiece_model"].dtype == torch.uint8
    assert tensors["spiece_model"].numpy().tobytes() == (trained[0] / "tokenizer.model").read_bytes()

    tokenizer, encoder = text.load(trained[0])
    ids = torch.tensor([[*tokenizer.encode("a small red star"), text.EOS]])
    with torch.no_grad():
        wanted = encoder(input_ids=ids).last_hidden_state
        found = load_transformers_t5(open_t5(path), dtype=torch.float32, device="cpu")(input_ids=ids).last_hidden_state
    assert (found - wanted).abs().max() < 5e-3 < wanted.abs().max()


def test_exported_autoencoder_decodes_the_transformers_own_latents(trained, exported):
    path = exported[0] / export.AUTOENCODER
    tensors = load_file(path)
    assert tensors["taesd_decoder.1.weight"].shape == (64, 4, 3, 3)
    assert tensors["taesd_encoder.14.weight"].shape == (4, 64, 3, 3)
    assert tensors["vae_scale"].dtype == torch.float32
    assert (tensors["vae_scale"].item(), tensors["vae_shift"].item()) == (pytest.approx(0.13025 / CONTRAST), 0.0)

    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = load_autoencoder(path, 0.13025).decode(latents * CONTRAST / 0.13025)
    with torch.no_grad():
        wanted = (autoencoder.assemble(trained[0]).decoder(latents) / 2 + 0.5).clamp(0, 1)
    assert (found - wanted).abs().max() < 5e-3
    assert wanted.std() > 0.01


def test_figures_are_those_of_the_files_and_of_the_logs(trained, exported):
    demo, figures = exported
    assert json.loads((demo / export.FIGURES).read_text()) == figures
    assert set(figures["stages"]) == set(STAGES)
    for stage, told in figures["stages"].items():
        last = json.loads((trained[0] / f"{stage}.log.jsonl").read_text().splitlines()[-1])
        assert told["steps"] == STEPS
        assert told["final"]["loss"] == last["loss"] > 0
    for name, told in figures["files"].items():
        data = (demo / name).read_bytes()
        assert told["bytes"] == len(data)
        assert told["sha256"] == hashlib.sha256(data).hexdigest()
    assert sum(told["bytes"] for told in figures["files"].values()) <= 16 * 2**20
    model = trained[1]["diffusion"].model
    parameters = sum(p.numel() for p in model.parameters()) + 300 * 128 + 64 * 216  # null caption, pos_embed
    assert figures["files"][export.TRANSFORMER]["parameters"] == parameters


def test_same_seed_gives_the_same_bytes(tmp_path, exported, small_steps):
    for stage in STAGES:
        run(stage, tmp_path)
    export.export(tmp_path, tmp_path / "demo")
    for name in (export.TRANSFORMER, export.ENCODER, export.AUTOENCODER):
        assert (tmp_path / "demo" / name).read_bytes() == (exported[0] / name).read_bytes(), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_stopped_and_resumed_ends_where_one_run_through_ends(stage, tmp_path, trained, small_steps):
    for name in NEEDS.get(stage, ()):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    run(stage, tmp_path, stop=1)
    assert torch.load(tmp_path / f"{stage}.state.pt", weights_only=True)["next_step"] == 1
    run(stage, tmp_path)
    resumed = torch.load(tmp_path / f"{stage}.state.pt", weights_only=True)
    through = torch.load(trained[0] / f"{stage}.state.pt", weights_only=True)
    for part in ("model", "ema"):
        for name, value in through.get(part, {}).items():
            assert torch.equal(resumed[part][name], value), (part, name)


def test_stages_restored_from_published_files_are_exported_to_the_same_bytes(trained, exported, tmp_path):
    out, demo = tmp_path / "out", tmp_path / "published"
    shutil.copytree(exported[0], demo)
    (demo / "logs").mkdir()
    for log in trained[0].glob("*.log.jsonl"):
        shutil.copyfile(log, demo / "logs" / log.name)
    assert restore.restore(out, demo) == list(STAGES)
    assert restore.restore(out, demo) == []
    assert export.export(out, tmp_path / "demo") == exported[1]
    with pytest.raises(ValueError, match=r"training\.json is missing: give the folder"):
        restore.restore(out, out)


def test_export_names_the_stage_that_was_not_run(trained, tmp_path):
    for path in trained[0].iterdir():
        if path.name != "autoencoder-encoder.state.pt":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"autoencoder-encoder\.state\.pt is missing.*demo encoder --out"):
        export.export(tmp_path, tmp_path / "demo")


def test_export_refuses_files_that_are_too_large(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LIMIT", 2**20)
    with pytest.raises(ValueError, match=r"more than the 1048576 that are allowed"):
        export.export(trained[0], tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.fixture
def alpha_run(trained, monkeypatch, tmp_path):
    """Three steps of α's stage on the other stages' states; the folder, the task and a copy of the exported demo."""
    monkeypatch.setattr(alpha, "ALPHA_PHASE", dataclasses.replace(alpha.ALPHA_PHASE, tokens=256))
    for path in trained[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    task = alpha.AlphaTask(tmp_path, SEED, STEPS, learning_rate=4e-4)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    Resumable(task, tmp_path / "alpha.state.pt").run(STEPS)
    return tmp_path, task, before


def test_alpha_begins_as_sigma_and_leaves_its_null_alone(trained, alpha_run):
    _, task, before = alpha_run
    sigma = trained[1]["practice"].ema.average.state_dict()
    after = task.model.state_dict()
    assert all(torch.equal(before[name], sigma[name]) for name in sigma if name != "y_embedder.y_embedding")
    assert before["y_embedder.y_embedding"].shape == (120, 128)
    assert torch.equal(after["y_embedder.y_embedding"], before["y_embedder.y_embedding"])
    assert not before["csize_embedder.mlp.2.weight"].any() and after["csize_embedder.mlp.2.weight"].any()
    assert not before["ar_embedder.mlp.2.weight"].any() and after["ar_embedder.mlp.2.weight"].any()


def test_alpha_is_exported_beside_the_others(alpha_run, exported, tmp_path_factory):
    out, task, _ = alpha_run
    demo = tmp_path_factory.mktemp("alpha")
    for path in exported[0].iterdir():
        (demo / path.name).write_bytes(path.read_bytes())
    figures = export.export_alpha(out, demo)
    assert {name: figures["files"][name] for name in exported[1]["files"]} == exported[1]["files"]
    assert figures["stages"]["alpha"]["steps"] == STEPS
    data = (demo / export.ALPHA).read_bytes()
    assert figures["files"][export.ALPHA]["sha256"] == hashlib.sha256(data).hexdigest() and len(data) < 16 * 2**20
    assert json.loads((demo / export.FIGURES).read_text()) == figures
    assert metadata(demo / export.ALPHA)["modelspec.description"].startswith("A small PixArt-Alpha")

    model = load_transformer(demo / export.ALPHA, dtype=torch.float32)
    assert model.config == alpha.ALPHA_CONFIG
    for name, value in task.ema.average.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.half().float()), name


def test_alpha_is_not_exported_without_its_stage_or_without_the_demo(trained, exported, alpha_run, tmp_path):
    with pytest.raises(ValueError, match=r"alpha\.state\.pt is missing.*demo alpha --out"):
        export.export_alpha(trained[0], exported[0])
    with pytest.raises(ValueError, match="pixart-demo-t5.safetensors is missing: export the demo itself first"):
        export.export_alpha(alpha_run[0], tmp_path / "nowhere")
