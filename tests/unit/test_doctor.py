"""The doctor says what files are, and why some are of no use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixart import doctor
from pixart.doctor import CAPTION, CHECKPOINT, CONTROLNET, LORA, VAE, look_at
from pixart.text.captions import Caption, save_caption

DEMO = Path(__file__).resolve().parents[2] / "demo"
LORAS = Path(__file__).resolve().parents[1] / "data" / "lora"


def test_a_checkpoint_is_told_by_family_size_depth_and_vae():
    found = look_at(DEMO / "pixart-demo-sigma.safetensors", CHECKPOINT)
    assert found.trouble == ""
    assert {**found.facts, "dtype": ""} == {
        "family": "PixArt-Σ", "pixels": 128, "blocks": 5, "tokens": 300, "vae": "SDXL", "dtype": "",
    }  # fmt: skip


def test_the_demo_is_whole():
    lines = list(doctor.model_lines(doctor.demo_files()))
    assert [line.split(":")[0].split("/")[0] for line in lines][:1] == ["checkpoints"]
    assert not [line for line in lines if "not usable" in line]
    assert {line.split("/")[0] for line in lines} == {"checkpoints", "text_encoders", "vae", "controlnet", "loras"}
    assert len(lines) == len(list(DEMO.glob("pixart-demo-*.safetensors")))


def test_a_file_of_the_wrong_kind_says_what_it_is_without_its_folder():
    found = look_at(DEMO / "pixart-demo-t5.safetensors", CHECKPOINT)
    assert found.facts == {}
    assert found.trouble.startswith("This is a T5 text encoder")


@pytest.mark.parametrize(
    ("file", "facts"),
    [
        ("locon", {"family": "LoRA", "rank": "2", "layers": 13, "t5_layers": 0}),
        ("dora_out", {"family": "LoRA + DoRA", "rank": "2", "layers": 13, "t5_layers": 0}),
        ("lokr_full", {"family": "LoKr", "rank": "", "layers": 13, "t5_layers": 0}),
        ("full", {"family": "", "rank": "", "layers": 26, "t5_layers": 0}),
    ],
)
def test_a_lora_is_told_by_kind_rank_and_layers(file, facts):
    found = look_at(LORAS / f"{file}.safetensors", LORA)
    assert (found.facts, found.trouble) == (facts, "")


def test_a_lora_is_told_without_its_numbers_being_read(tmp_path):
    names = [f"transformer_blocks.0.attn1.to_q.lora_{part}.weight" for part in "AB"]
    save_file({name: torch.full((4, 4), torch.nan) for name in names}, tmp_path / "l.safetensors")
    assert look_at(tmp_path / "l.safetensors", LORA).facts["rank"] == "4"


def test_a_controlnet_is_told_by_its_base_and_copies():
    found = look_at(DEMO / "pixart-demo-controlnet.safetensors", CONTROLNET)
    assert (found.facts["family"], found.facts["base"], found.trouble) == ("ControlNet", "PixArt-Σ", "")
    assert found.facts["blocks"] >= 1
    assert "a whole PixArt model" in look_at(DEMO / "pixart-demo-sigma.safetensors", LORA).trouble


def test_a_caption_is_told_by_its_prompt(tmp_path):
    for name, prompt in (("told", "a star"), ("untold", None)):
        save_caption(Caption(torch.zeros(3, 16), prompt=prompt), tmp_path / f"{name}.safetensors")
    found = look_at(tmp_path / "told.safetensors", CAPTION)
    assert found.facts == {"prompt": "a star", "length": 3, "width": 16, "dtype": "fp32"}
    assert "not recorded" in look_at(tmp_path / "untold.safetensors", CAPTION).title
    assert "no caption" in look_at(DEMO / "pixart-demo-sigma.safetensors", CAPTION).trouble


def test_the_latent_channels_of_an_autoencoder_are_counted(tmp_path):
    for channels in (4, 16):
        save_file({"decoder.conv_in.weight": torch.zeros(8, channels, 3, 3)}, tmp_path / f"{channels}.safetensors")
    assert look_at(tmp_path / "4.safetensors", VAE).facts == {"family": "KL"}
    assert "16 latent channels" in look_at(tmp_path / "16.safetensors", VAE).trouble


def test_models_of_others_are_counted_and_broken_encoders_named(tmp_path):
    for folder, name in (("checkpoints", "other"), ("checkpoints", "pixart-mine"), ("text_encoders", "cut")):
        (tmp_path / folder).mkdir(exist_ok=True)
        save_file({"some.weight": torch.zeros(2)}, tmp_path / folder / f"{name}.safetensors")
    (tmp_path / "text_encoders" / "empty.safetensors").touch()
    lines = list(doctor.model_lines(doctor.model_files(tmp_path)))
    assert [line.split(":")[0] for line in lines] == [
        "checkpoints/pixart-mine.safetensors",
        "text_encoders/cut.safetensors",
        "text_encoders/empty.safetensors",
        "checkpoints",
    ]
    assert lines[2].endswith("not usable. The file is empty. Download it again.")
    assert lines[3] == "checkpoints: 1 files of other models"


def test_the_command_reads_a_comfyui_and_refuses_a_folder_that_is_none(tmp_path, capsys):
    assert doctor.main(["--comfyui", str(tmp_path)]) == 2
    assert "holds no ComfyUI" in capsys.readouterr().err
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.33.0"\n')
    assert doctor.main(["--comfyui", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "ComfyUI 0.33.0" in told
    assert f"torch {torch.__version__}" in told


@pytest.mark.parametrize("kind", list(doctor.LOOKS))
def test_a_file_that_is_not_there_is_no_crash(tmp_path, kind):
    assert look_at(tmp_path / "gone.safetensors", kind).trouble
