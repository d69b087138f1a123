"""Every published transformer, its blocks cut to one, is recognised and read in every container that exists for it."""

from __future__ import annotations

from dataclasses import replace

import known_files
import pytest
import torch
from safetensors.torch import save_file

from pixart.checkpoint import config_metadata, load_transformer, open_checkpoint, to_diffusers
from pixart.config import RELEASED, PixArtConfig
from pixart.transformer import PixArtTransformer


@pytest.mark.parametrize("name", known_files.KNOWN)
def test_known_file_is_read_whole_from_every_container(name, tmp_path):
    for container in known_files.containers(name):
        folder = tmp_path / container.replace(" ", "-")
        folder.mkdir()
        path = known_files.write(name, container, folder, depth=1, dtype=torch.float16)
        checkpoint = open_checkpoint(path, known_files.expected(name, container)[1])
        assert known_files.faults(checkpoint, name, container, depth=1) == [], container
        del checkpoint
        for file in folder.rglob("*"):
            if file.is_file():
                file.unlink()


NARROW = {"hidden_size": 144, "num_heads": 2, "depth": 2, "mlp_hidden_size": 576, "caption_channels": 32}
RELEASED_WIDTH = {"depth": 1, "caption_channels": 64}


def state_of(config: PixArtConfig) -> dict[str, torch.Tensor]:
    model = PixArtTransformer(config, device="meta")
    return {name: known_files.numbers(name, tensor.shape, torch.float32) for name, tensor in model.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("cut", "container"), [(NARROW, "pth"), (NARROW, "safetensors"), (RELEASED_WIDTH, "safetensors")],
    ids=["narrow pth", "narrow safetensors", "released width"],
)
@pytest.mark.parametrize("variant", RELEASED, ids=lambda variant: variant.name)
def test_original_and_diffusers_names_give_the_same_output_bit_for_bit_in_fp32(variant, cut, container, tmp_path):
    config = replace(variant.config, **cut)
    state, path, folder = state_of(config), tmp_path / f"original.{container}", tmp_path / "diffusers"
    if container == "pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path, config_metadata(config))
    folder.mkdir()
    save_file(to_diffusers(state), folder / "diffusion_pytorch_model.safetensors", config_metadata(config))
    outputs = []
    for source in (path, folder):
        checkpoint = open_checkpoint(source)
        assert checkpoint.dialect == ("original" if source is path else "diffusers")
        # A .pth without a position grid states no size, and α's plain 256 would be read as 512: the grid is given.
        model = load_transformer(checkpoint)
        model.config = config
        outputs.append(model(**forward_inputs(config)))
    assert outputs[0].std() > 1e-2 and outputs[0].isfinite().all()
    assert torch.equal(*outputs)


def forward_inputs(config: PixArtConfig) -> dict[str, torch.Tensor]:
    """Noise, times, captions of two lengths, and the picture's size where the model wants it."""
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "x": torch.randn(2, 4, 24, 16, generator=generator),
        "timesteps": torch.tensor([999.0, 41.0]),
        "caption": torch.randn(2, 9, config.caption_channels, generator=generator),
        "caption_mask": torch.tensor([[1] * 9, [1] * 4 + [0] * 5]),
    }
    if config.micro_condition:
        inputs |= {"size": torch.tensor([[192.0, 128.0]] * 2), "aspect_ratio": torch.tensor([[1.5]] * 2)}
    return inputs
