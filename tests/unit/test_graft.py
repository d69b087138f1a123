"""KV compression grafted onto a model that was trained without it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixart.checkpoint import config_metadata, load_transformer, open_checkpoint, state_dict_to_save
from pixart.compression import COMPRESSION, KVCompression
from pixart.config import PixArtConfig
from pixart.training import __main__ as training_command
from pixart.training.graft import graft
from pixart.training.initialise import initialise
from pixart.training.settings import TrainSettings
from pixart.transformer import PixArtTransformer

TINY = PixArtConfig(hidden_size=72, depth=3, num_heads=1, mlp_hidden_size=144, caption_channels=16)


@pytest.fixture(scope="module")
def dense() -> PixArtTransformer:
    torch.manual_seed(0)
    model = initialise(PixArtTransformer(TINY)).eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if not value.any():
                value.normal_(std=0.05)
    return model


def inputs(seed: int, size=(16, 16)) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 4, *size, generator=generator)
    return x, torch.tensor([900.0, 600.0, 300.0, 10.0]), torch.randn(4, 5, 16, generator=generator)


@torch.no_grad()
def test_a_grafted_model_starts_as_the_untrained_convolution_on_the_dense_one(dense):
    before = copy.deepcopy(dense.state_dict())
    model = graft(dense, 2, 1, 2)
    assert model.config.kv_ratios == (1, 2, 2)
    options = {COMPRESSION: KVCompression("conv", 2, 1, 2)}
    wanted = dense(*inputs(1, (14, 18)), transformer_options=options)
    assert (model(*inputs(1, (14, 18))) - wanted).abs().max() <= 1e-5
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_tuning_brings_it_nearer_to_the_dense_one_and_its_file_reads_back(dense, tmp_path):
    model = graft(dense, 2, 1, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    with torch.no_grad():
        wanted = dense(*inputs(0))
    errors = []
    for _ in range(30):
        error = (model(*inputs(0)) - wanted).pow(2).mean()
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < errors[0] / 4
    assert not torch.equal(model.blocks[1].attn.sr.weight, torch.full((72, 1, 2, 2), 0.25))

    save_file(model.state_dict(), tmp_path / "kv.safetensors", metadata=config_metadata(model.config))
    again = load_transformer(tmp_path / "kv.safetensors")
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(*inputs(0)), model.eval()(*inputs(0)))


@pytest.mark.parametrize("arguments", [(1, 0, 2), (2, 2, 1), (2, 0, 3), (2, -1, 1)])
def test_a_range_that_is_none_is_refused(dense, arguments):
    with pytest.raises(ValueError, match="the model has blocks 0 to 2, and the ratio is at least 2"):
        graft(dense, *arguments)


def test_a_compressed_block_is_not_compressed_again(dense):
    with pytest.raises(ValueError, match="compressed already"):
        graft(graft(dense, 2, 1, 1), 2, 0, 2)


def test_the_command_trains_a_checkpoint_in_the_original_layout_and_goes_on_after_a_stop(tmp_path, capsys):
    """From a dense file and pictures to a file whose compressed blocks are detected; the others are as before."""
    config = replace(TINY, depth=4, caption_channels=128, base_size=4, pe_interpolation=0.125)
    model = initialise(PixArtTransformer(config))
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value += 0.05 * torch.randn_like(value)
    save_file(state_dict_to_save(model.state_dict(), config), tmp_path / "dense.safetensors")
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 40, 200)).save(tmp_path / "pictures" / f"{number}.png")

    def run(out: str, *more: str) -> int:
        return training_command.main(
            ["--method", "compression", "--checkpoint", str(tmp_path / "dense.safetensors"), "--caption", "a colour"]
            + ["--pictures", str(tmp_path / "pictures"), "--out", str(tmp_path / out), "--batch-size", "2"]
            + ["--learning-rate", "1e-3", "--device", "cpu", *more]
        )

    assert run("whole", "--steps", "4") == 0 and run("parts", "--steps", "2") == 0 and run("parts", "--steps", "4") == 0
    whole, parts = (tmp_path / out / "pixart-kv.safetensors" for out in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    assert "class pictures" not in capsys.readouterr().err  # nothing is taught that the model could forget
    opened = open_checkpoint(whole)
    assert opened.config == replace(config, kv_ratios=(1, 1, 2, 2))
    before, after = model.state_dict(), load_transformer(opened).state_dict()
    learned = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    assert learned and all(name.startswith(("blocks.2.attn.", "blocks.3.attn.")) for name in learned)
    assert {"blocks.2.attn.sr.weight", "blocks.3.attn.norm.weight", "blocks.3.attn.qkv.weight"} <= learned

    assert run("wrong", "--kv-first-block", "3", "--kv-last-block", "9") == 2
    assert "Blocks 3 to 9 at ratio 2 cannot be compressed: the model has blocks 0 to 3" in capsys.readouterr().err
    with pytest.raises(ValueError, match="kv_ratio must be 2 or more, not 1"):
        TrainSettings(method="compression", kv_ratio=1)
