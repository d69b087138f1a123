"""Training a ControlNet: from folders to the file, and that stopping it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixart.checkpoint import load_transformer, open_checkpoint, state_dict_to_save
from pixart.checkpoint.controlnet import load_controlnet, open_controlnet
from pixart.config import PixArtConfig
from pixart.training import __main__ as command
from pixart.training.controlnet import ControlTrainer
from pixart.training.features import Features
from pixart.training.hints import edges, hint_function, with_made_hints, with_read_hints
from pixart.training.initialise import initialise
from pixart.training.pictures import read_folder
from pixart.training.settings import TrainSettings
from pixart.training.trainer import LOG, make_accelerator
from pixart.transformer import PixArtTransformer

CONFIG = PixArtConfig(
    family="sigma", hidden_size=72, depth=4, num_heads=2, mlp_hidden_size=144, caption_channels=128, base_size=4,
    pe_interpolation=0.125,
)  # fmt: skip
"""Tiny, with captions as wide as the demo's T5 makes them; its own size is 64 × 64 pixels."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A checkpoint whose layers all do something, which zeros at the output would hide."""
    model = initialise(PixArtTransformer(CONFIG), torch.Generator().manual_seed(1))
    chance = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor += 0.05 * torch.randn(tensor.shape, generator=chance)
    path = tmp_path_factory.mktemp("base") / "tiny.safetensors"
    save_file(state_dict_to_save(model.state_dict(), CONFIG), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Five pictures in two shapes with captions, and in ``hints`` beside them a hint for each, one of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "hints").mkdir()
    for number, (width, height) in enumerate([(64, 64)] * 3 + [(96, 48)] * 2):
        picture = Image.new("RGB", (width, height), (30, 40 * number, 200))
        picture.paste((250, 240, 60), (8 + 4 * number, 10, 30 + 4 * number, 36))
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a yellow box, number {number}")
        scale = 2 if number == 1 else 1
        Image.new("RGB", (width * scale, height * scale), (50 * number,) * 3).save(folder / "hints" / f"{number}.webp")
    return folder


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator(cpu=True)


def features() -> Features:
    chance = torch.Generator().manual_seed(3)
    shapes = [(4, 8, 8)] * 4 + [(4, 6, 10)] * 2
    return Features(
        latents=tuple(torch.randn(shape, generator=chance) for shape in shapes),
        captions=tuple(torch.randn(length, 128, generator=chance) for length in (1, 5, 9, 4)),
        caption_of=tuple(1 + i % 3 for i in range(6)),
        prior=(False,) * 6,
        null=0,
        previews=(1, 2),
        hints=tuple(torch.randn(shape, generator=chance) for shape in shapes),
    )


def trainer(base: Path, out: Path, accelerator, given: Features | None = None, **settings) -> ControlTrainer:
    chosen = {"method": "controlnet", "steps": 6, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2} | settings
    given = features() if given is None else given
    return ControlTrainer(
        open_checkpoint(base), given, TrainSettings(**chosen), out, "run", accelerator=accelerator, name="control",
        hint="edges",
    )  # fmt: skip


def furthest(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


def arguments(base: Path, pictures: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--method", "controlnet", "--pictures", str(pictures), "--checkpoint", str(base), "--out", str(out)),
        *("--device", "cpu", "--steps", "4", "--learning-rate", "1e-3"),
        *more,
    ]


def test_it_begins_as_the_base_and_learns_from_the_hints(base, tmp_path, accelerator):
    run = trainer(base, tmp_path, accelerator, learning_rate=3e-3)
    group = run.samples(0)[:1]
    latent, noise = torch.randn(1, 4, 8, 8), torch.tensor([500])
    caption, mask = run.captions(group)
    with torch.no_grad():
        first = run.network(latent, noise, caption, mask, hint=torch.randn(1, 4, 8, 8))
        assert torch.equal(first, run.transformer(latent, noise, caption, mask))
    before = {name: tensor.clone() for name, tensor in run.transformer.state_dict().items()}
    assert all(name.startswith("control.controlnet.") for name in run.trained)

    run.train()
    assert furthest(before, run.transformer.state_dict()) == 0
    with torch.no_grad():
        one, other = (run.network(latent, noise, caption, mask, hint=torch.full((1, 4, 8, 8), v)) for v in (-1.0, 1.0))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "precision": "bf16"}], ids=["plain", "ema, bf16"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(base, tmp_path, accelerator, settings):
    whole = load_file(trainer(base, tmp_path / "whole", accelerator, **settings).train())

    class Stop(BaseException):
        pass

    def on_step(progress):
        if progress.step == 3:
            raise Stop

    with pytest.raises(Stop):
        trainer(base, tmp_path / "cut", accelerator, **settings).train(on_step)
    again = trainer(base, tmp_path / "cut", accelerator, **settings)
    assert again.step == 3
    assert furthest(whole, load_file(again.train())) == 0


def test_checkpointing_and_accumulation_change_memory_and_not_the_result(base, tmp_path, accelerator):
    def kept(run) -> int:
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            run.loss(run.samples(0)[:2])
        return total

    alike = {"copied_blocks": 3, "steps": 3, "learning_rate": 1e-4}  # Adam enlarges what rounding leaves of a zero
    plain = trainer(base, tmp_path / "plain", accelerator, **alike)
    twice = trainer(base, tmp_path / "twice", accelerator, **alike, checkpointing=True)
    parts = trainer(base, tmp_path / "parts", accelerator, **alike, accumulation=4)
    assert kept(twice) < kept(plain) / 2
    expected = load_file(plain.train())
    assert furthest(expected, load_file(twice.train())) < 1e-6
    assert furthest(expected, load_file(parts.train())) < 2e-5
    assert expected["controlnet.2.after_proj.weight"].abs().max() > 1e-4


def test_previews_show_each_hint_before_what_was_drawn_by_it(base, tmp_path, accelerator):
    shown = []
    run = trainer(base, tmp_path, accelerator, preview_every=4)
    run.train(None, lambda step, latents: shown.append((step, latents)))
    assert [step for step, _ in shown] == [4, 6]
    assert shown[0][1].shape == (4, 4, 8, 8)
    assert torch.equal(shown[0][1][::2], torch.stack(run.features.hints[:2]))
    assert not torch.allclose(shown[0][1][1::2], shown[1][1][1::2])


def test_the_file_is_a_controlnet_of_our_own_layout(base, tmp_path, accelerator):
    run = trainer(base, tmp_path, accelerator, steps=1)
    opened = open_controlnet(run.train())
    assert opened.config.family == "sigma" and opened.config.num_heads == 2
    assert opened.config.copied_blocks == 1  # the default: half of four, less one
    assert opened.metadata["modelspec.architecture"] == "pixart-sigma/controlnet"
    assert opened.metadata["pixart_hint"] == "edges" and opened.metadata["pixart_base"] == "tiny.safetensors"
    group, plain = run.samples(0)[:1], load_transformer(base)
    caption, mask = run.captions(group)
    x, t, hint = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        residuals = load_controlnet(opened)(plain, x, hint, t, caption, mask)
        drawn = plain(x, t, caption, mask, control={"output": residuals})
        assert torch.equal(drawn, run.network(x, t, caption, mask, hint=hint))


def test_without_hints_or_with_too_many_copies_it_is_refused(base, tmp_path, accelerator):
    from dataclasses import replace

    with pytest.raises(ValueError, match="6 pictures and 0 hints"):
        trainer(base, tmp_path, accelerator, replace(features(), hints=()))
    with pytest.raises(ValueError, match="Choose 1 to 3"):
        trainer(base, tmp_path, accelerator, copied_blocks=4)


# ------------------------------------------------------------------------------------------------ hints and command


def test_hints_are_made_at_the_size_that_is_trained(pictures):
    made = with_made_hints(read_folder(pictures), edges, 32)
    assert {tuple(example.picture.shape) for example in made} == {(3, 32, 32), (3, 16, 48)}
    for example in made:
        assert torch.equal(example.hint, edges(example.picture[None])[0]) and example.hint.max() > 0.2
    others = with_made_hints(read_folder(pictures), lambda picture: 1 - picture, 32)
    assert others[0].digest() != made[0].digest()
    with pytest.raises(ValueError, match="not within 0 to 1"):
        with_made_hints(read_folder(pictures), lambda picture: picture * 2, 32)


def test_hints_are_read_by_name_and_must_fit(pictures, tmp_path):
    read = with_read_hints(read_folder(pictures), pictures / "hints")
    assert [round(example.hint.mean().item() * 255) for example in read] == [0, 50, 100, 150, 200]
    assert all(example.hint.shape == example.picture.shape for example in read)
    for number in range(5):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match=r"3\.png is 64 × 64 and .*3\.png 96 × 48"):
        with_read_hints(read_folder(pictures), tmp_path)
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match="no hint for .*2.png"):
        with_read_hints(read_folder(pictures), tmp_path)


def test_a_hint_function_of_ones_own_is_found_by_its_name():
    assert hint_function("edges") is edges
    assert hint_function("pixart.training.hints:edges") is edges
    for name in ("hed", "no.such.module:f", "pixart.training.hints:nothing", "pixart.training.hints:LUMA"):
        with pytest.raises(ValueError, match="hint function"):
            hint_function(name)


def test_the_command_trains_shows_and_goes_on(base, pictures, tmp_path, capsys):
    out = tmp_path / "run"
    first = arguments(base, pictures, out, "--hint", "edges", "--preview", "a red box", "--preview-every", "2")
    assert command.main(first) == 0
    file = out / "pixart-controlnet.safetensors"
    assert capsys.readouterr().out.strip() == str(file.resolve())
    assert {path.name for path in out.glob("*.png")} == {"preview-000002.png", "preview-000004.png"}
    assert command.main([*first, "--preview-every", "0", "--steps", "6"]) == 0
    steps = [json.loads(line)["step"] for line in (out / LOG).read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["pixart_steps"] == "6"
    capsys.readouterr()
    assert command.main(arguments(base, pictures, out, "--hints", str(pictures / "hints"))) == 2
    assert "other settings, pictures, captions or models" in capsys.readouterr().err
    assert command.main(arguments(base, pictures, tmp_path / "read", "--hints", str(pictures / "hints"))) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "needs --hint"),
        (("--hint", "edges", "--class-pictures", "x"), "--class-pictures and --class-count are not for it"),
        (("--hint", "edges", "--method", "lora"), "--hint and --hints are for --method controlnet"),
        (("--hints", "nowhere"), "nowhere is no folder"),
    ],
)
def test_options_that_do_not_go_together_are_told(base, pictures, tmp_path, capsys, more, message):
    if "--class-pictures" in more:
        more = (*more[:-1], str(pictures))
    assert command.main(arguments(base, pictures, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
