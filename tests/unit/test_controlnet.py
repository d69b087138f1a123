"""ControlNet: the original code's stored results, every file layout, and the bases that a file refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import pixart.embeddings
from pixart.checkpoint import detect_config, to_diffusers, to_original
from pixart.checkpoint.controlnet import controlnet_metadata, load_controlnet, open_controlnet
from pixart.config import PixArtConfig
from pixart.controlnet import ControlNetConfig, check_base
from pixart.training.hints import edges
from pixart.training.initialise import initialise
from pixart.training.initialise_controlnet import Controlled, first_controlnet
from pixart.transformer import PixArtTransformer

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "alpha_controlnet_1024_ms.safetensors"
STATED = {
    "pixart.family": "alpha",
    "pixart.num_heads": "4",
    "pixart.base_size": "64",
    "pixart.pe_interpolation": "2.0",
    "pixart.max_caption_tokens": "10",
}
SMALL = PixArtConfig(
    hidden_size=72, depth=4, num_heads=1, mlp_hidden_size=288, caption_channels=16, max_caption_tokens=300,
    base_size=8, pe_interpolation=0.25,
)  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with safe_open(GOLDEN, framework="pt") as file:
        assert json.loads(file.metadata()["meta"])["controlnet_blocks"] == 2
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def weights_of(golden) -> dict[str, torch.Tensor]:
    return {key[2:]: value for key, value in golden.items() if key.startswith("w.")}


def base_of(golden) -> PixArtTransformer:
    state = to_original({k.removeprefix("base_model."): v for k, v in weights_of(golden).items() if "base_model." in k})
    config, _ = detect_config({key: tuple(tensor.shape) for key, tensor in state.items()}, STATED)
    base = PixArtTransformer(config, device="meta")
    base.load_state_dict(state, assign=True)
    return base.eval()


def control_only(golden) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights_of(golden).items() if key.startswith("controlnet.")}


def adapter(golden) -> dict[str, torch.Tensor]:
    """The same copies under the names of diffusers' research adapter."""
    renamed = {}
    for key, value in control_only(golden).items():
        _, index, part, rest = key.split(".", 3)
        if part == "copied_block":
            for name, tensor in to_diffusers({f"blocks.0.{rest}": value}).items():
                inner = name.removeprefix("transformer_blocks.0.")
                renamed[f"controlnet_blocks.{index}.transformer_block.{inner}"] = tensor.contiguous()
        else:
            renamed[f"controlnet_blocks.{index}.{part}.{rest}"] = value
    return renamed


def arguments(golden) -> tuple:
    return (
        golden["in.t"], golden["in.y"][:, 0], golden["in.mask"], golden["in.img_hw"], golden["in.aspect_ratio"],
    )  # fmt: skip


@pytest.fixture
def golden_frequencies(monkeypatch):
    """The timestep's frequencies as the golden files' processor rounded them, two of 128 by one unit."""
    exact = pixart.embeddings.frequencies

    def rounded(count: int) -> torch.Tensor:
        values = exact(count)
        for index in (12, 106):
            values[index] = torch.nextafter(values[index], torch.tensor(1.0))
        return values

    monkeypatch.setattr(pixart.embeddings, "frequencies", rounded)


@torch.no_grad()
def test_the_original_codes_result_is_reproduced(golden, golden_frequencies, tmp_path):
    save_file(weights_of(golden), tmp_path / "control.safetensors", STATED)
    control, base = load_controlnet(tmp_path / "control.safetensors"), base_of(golden)
    residuals = control(base, golden["in.x"], golden["in.c"], *arguments(golden))
    out = base(golden["in.x"], *arguments(golden), control={"output": residuals}, learned_variance=True)
    assert (out - golden["out"]).abs().max() <= 1e-5
    plain = base(golden["in.x"], *arguments(golden), learned_variance=True)
    assert (plain - golden["out"]).abs().max() > 1  # so the residuals matter


@torch.no_grad()
def test_every_layout_gives_the_same_residuals(golden, tmp_path):
    base = base_of(golden)
    torch.save({"state_dict": weights_of(golden)}, tmp_path / "original.pth")
    save_file(control_only(golden), tmp_path / "ours.safetensors", controlnet_metadata(base.config))
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(adapter(golden), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_layers": 2, "num_attention_heads": 4}))
    save_file(weights_of(golden), tmp_path / "whole.safetensors", STATED)

    results = []
    for name in ("whole.safetensors", "ours.safetensors", "adapter"):
        control = load_controlnet(tmp_path / name)
        assert control.config.num_heads == 4
        results.append(control(base, golden["in.x"], golden["in.c"], *arguments(golden)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert open_controlnet(tmp_path / "ours.safetensors").config.micro_condition is True
    assert open_controlnet(tmp_path / "adapter").config.family is None
    assert "any base of this width" in " ".join(open_controlnet(tmp_path / "adapter").evidence)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: {k: v for k, v in w.items() if ".1.after_proj.bias" not in k}, r"not complete.*1\.after_proj\.bias"),
        (lambda w: {k: v for k, v in w.items() if not k.startswith("controlnet.0.")}, r"not complete.*copies \[0\]"),
        (lambda w: w | {"controlnet.0.after_proj.weight": torch.zeros(48, 24)}, r"has shape \[48, 24\].*damaged"),
        (lambda w: w | {"controlnet.1.copied_block.attn.odd.weight": torch.zeros(2)}, "no place in a PixArt Contr"),
        (lambda w: w | {"controlnet.0.after_proj.bias": torch.full((48,), torch.nan)}, "NaN or infinity"),
        (lambda w: w | {"controlnet.9999999.after_proj.bias": torch.zeros(1)}, "no PixArt has as many"),
        (
            lambda w: w | {"controlnet.0.after_proj.weight": torch.tensor(1.0)},
            r"has shape \[\], where a matrix belongs",
        ),
        (lambda w: w | {f"ema.{k}": 2 * v for k, v in w.items()}, r"two ControlNets, with .* and ema\.controlnet"),
        (lambda w: {"input_hint_block.0.weight": torch.zeros(1)}, "a Stable Diffusion ControlNet.*Choose a PixArt Con"),
        (lambda w: {"some.weight": torch.zeros(1)}, "not a PixArt ControlNet's weights"),
        (lambda w: {"x.lora_A.weight": torch.zeros(1)}, "a LoRA, not a PixArt ControlNet"),
    ],
)
def test_a_file_that_is_no_controlnet_says_what_it_is(golden, tmp_path, change, says):
    save_file(change(control_only(golden)), tmp_path / "bad.safetensors", STATED)
    with pytest.raises(ValueError, match=rf"bad\.safetensors: .*{says}"):
        load_controlnet(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({}, "number of attention heads is unknown: the width 48"),
        ({"pixart.num_heads": "0"}, "stated as 0; it must be 1 or more"),
        ({"pixart.num_heads": "-4"}, "stated as -4; it must be 1 or more"),
        ({"pixart.num_heads": "four"}, "stated as 'four', which is no number"),
        ({"pixart.num_heads": "5"}, "48 is not a multiple of num_heads 5"),
    ],
)
def test_heads_are_never_guessed_where_the_width_does_not_tell_them(golden, tmp_path, stated, says):
    save_file(control_only(golden), tmp_path / "bad.safetensors", stated)
    with pytest.raises(ValueError, match=rf"bad\.safetensors: .*{says}"):
        load_controlnet(tmp_path / "bad.safetensors")


def test_a_checkpoint_is_not_taken_for_a_controlnet(golden, tmp_path):
    base = {k.removeprefix("base_model."): v for k, v in weights_of(golden).items() if k.startswith("base_model.")}
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match="PixArt checkpoint without a ControlNet. Open it with PixArt Load Checkpoint"):
        open_controlnet(tmp_path / "base.safetensors")


@pytest.mark.parametrize(
    "control",
    [
        ControlNetConfig(2, 72, 1, 288, "alpha", False),
        ControlNetConfig(2, 72, 1, 288, "sigma", True),
        ControlNetConfig(2, 144, 2, 288, "sigma", False),
        ControlNetConfig(4, 72, 1, 288, "sigma", False),
    ],
    ids=["family", "size conditioning", "width", "depth"],
)
def test_another_base_is_refused_by_both_names(control):
    with pytest.raises(ValueError) as error:
        check_base(control, SMALL, "edges.safetensors", "base.safetensors")
    assert f"edges.safetensors is for {control.describe()}" in str(error.value)
    assert "base.safetensors is PixArt-Σ without size conditioning, width 72, 1 heads, 4 blocks" in str(error.value)


def test_what_a_file_does_not_tell_is_taken_to_fit():
    check_base(ControlNetConfig(3, 72, 1, 288), SMALL, "a", "b")


@torch.no_grad()
def test_a_controlnet_before_training_changes_nothing():
    torch.manual_seed(0)
    base = initialise(PixArtTransformer(SMALL))
    torch.nn.init.normal_(base.final_layer.linear.weight)
    control = first_controlnet(base, 2)
    x, hint, caption = torch.randn(2, 4, 6, 10), torch.randn(1, 4, 6, 10), torch.randn(2, 5, 16)
    t = torch.tensor([700.0, 700.0])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert torch.equal(Controlled(base, control)(x, t, caption, mask, hint=hint), base(x, t, caption, mask))
    torch.nn.init.normal_(control.controlnet[1].after_proj.weight, std=0.1)
    assert not torch.equal(Controlled(base, control)(x, t, caption, mask, hint=hint), base(x, t, caption, mask))


@torch.no_grad()
def test_one_hint_serves_a_batch_and_a_hint_of_another_size_is_refused():
    torch.manual_seed(0)
    base = initialise(PixArtTransformer(SMALL))
    control = first_controlnet(base, 1)
    torch.nn.init.normal_(control.controlnet[0].before_proj.weight, std=0.1)
    torch.nn.init.normal_(control.controlnet[0].after_proj.weight, std=0.1)
    x, hint, caption, t = torch.randn(2, 4, 7, 9), torch.randn(1, 4, 7, 9), torch.randn(2, 5, 16), torch.ones(2)
    both = control(base, x, hint, t, caption)
    assert both[0].shape == (2, 4 * 5, 72)
    alone = control(base, x[1:], hint, t[1:], caption[1:])
    assert (both[0][1:] - alone[0]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="hint is 8 × 8 latent pixels and the picture 9 × 7"):
        control(base, x, torch.zeros(1, 4, 8, 8), t, caption)


def test_too_many_copies_are_refused():
    with pytest.raises(ValueError, match="4 blocks cannot be copied: the base has 4"):
        ControlNetConfig.of_base(SMALL, 4)
    with pytest.raises(ValueError, match="from block 2 on the base compresses.*at most 2 blocks"):
        ControlNetConfig.of_base(replace(SMALL, kv_ratios=(1, 1, 2, 2)), 3)
    assert ControlNetConfig.of_base(replace(SMALL, kv_ratios=(1, 1, 2, 2)), 2).copied_blocks == 2
    with pytest.raises(ValueError, match="qk_norm"):
        ControlNetConfig.of_base(replace(SMALL, qk_norm=True), 2)


def test_edges_are_one_pixel_lines_where_colours_meet():
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, 0, :, 8:] = 1.0  # a red half: its luminance is 0.299
    drawn = edges(picture, low=0.05, high=0.1)
    assert drawn.shape == (1, 3, 16, 16)
    assert ((drawn[0, 0] > 0.5).sum(dim=1) <= 2).all()
    assert (drawn[0, 0, :, 7:9].amax(dim=1) == 1).all()
    assert drawn[0, 0, :, :6].max() == drawn[0, 0, :, 10:].max() == 0
