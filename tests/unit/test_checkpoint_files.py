"""A small real transformer comes back bit for bit from every container, prefix and dialect."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pixart.checkpoint import (
    config_metadata,
    load_transformer,
    open_checkpoint,
    state_dict_to_save,
    to_diffusers,
    to_original,
)
from pixart.config import PixArtConfig
from pixart.transformer import PixArtTransformer

CONFIG = PixArtConfig(hidden_size=144, num_heads=2, depth=2, mlp_hidden_size=576, caption_channels=32)


def tiny_state(config: PixArtConfig = CONFIG, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = PixArtTransformer(config, device="meta").state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) * 0.05 for name, tensor in names.items()}


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_same(found, expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def write(kind: str, folder, state: dict[str, torch.Tensor]):
    """Save ``state`` in a container and return the path to open."""
    noise = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    path = folder / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "flat pth":
        torch.save(state, path)
    elif kind == "training":
        optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-5}]}
        rest = {"optimizer": optimizer, "scheduler": {"last_epoch": 7}, "epoch": 7}
        torch.save({"state_dict": state, "state_dict_ema": noise, **rest}, path)
    elif kind == "nested":
        torch.save({"epoch": 3, "model": {"state_dict": state}}, path)
    else:
        torch.save({kind: state}, path)
    return path


CONTAINERS = ["safetensors", "flat pth", "state_dict", "state_dict_ema", "model", "training", "nested"]
PREFIXES = ["", "model.diffusion_model.", "model.", "base_model.", "module.", "_orig_mod.", "module.model."]


@pytest.mark.parametrize("dialect", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_weights_come_back_bit_for_bit(tmp_path, container, prefix, dialect):
    state = tiny_state()
    stored = state if dialect == "original" else to_diffusers(state)
    checkpoint = open_checkpoint(write(container, tmp_path, prefixed(stored, prefix)))
    assert_same(checkpoint.state_dict, state)
    assert checkpoint.dialect == dialect
    assert checkpoint.config == CONFIG
    assert any(repr(prefix) in note for note in checkpoint.notes) == bool(prefix)


def test_what_a_training_save_holds_besides_is_noted(tmp_path):
    checkpoint = open_checkpoint(write("training", tmp_path, tiny_state()))
    assert checkpoint.notes == ("Read from 'state_dict'; state_dict_ema, optimizer, scheduler, epoch left out.",)


def test_models_beside_the_transformer_are_left_out_and_noted(tmp_path):
    vae = {"first_stage_model.decoder.up.0.block.0.conv1.weight": torch.ones(2)}
    vae["first_stage_model.encoder.down.0.block.0.conv1.weight"] = torch.ones(2)
    text = {"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2)}
    text["text_encoders.t5xxl.transformer.encoder.block.0.layer.1.DenseReluDense.wo.weight"] = torch.ones(2)
    save_file(prefixed(tiny_state(), "model.diffusion_model.") | vae | text, tmp_path / "all.safetensors")
    checkpoint = open_checkpoint(tmp_path / "all.safetensors")
    assert_same(checkpoint.state_dict, tiny_state())
    assert any(note.startswith("4 tensors of other models left out") for note in checkpoint.notes)


@pytest.mark.parametrize("fill", [0.0, float("nan"), 1e30])
def test_values_of_a_stored_grid_are_never_used(tmp_path, fill):
    save_file(tiny_state() | {"pos_embed": torch.full((1, 256, 144), fill)}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert (checkpoint.config.base_size, checkpoint.config.pe_interpolation) == (16, 0.5)
    assert_same(checkpoint.state_dict, tiny_state())


def test_missing_null_caption_is_no_fault(tmp_path):
    config = replace(CONFIG, null_caption=False)
    save_file(tiny_state(config), tmp_path / "x.safetensors", config_metadata(config))
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.config == config
    assert checkpoint.metadata["pixart.family"] == "sigma"
    assert checkpoint.notes == ()


def test_bookkeeping_of_trainers_is_noted_and_left_out(tmp_path):
    torch.save(tiny_state() | {"num_updates": torch.tensor(5), "epoch": 3}, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path / "x.pth")
    assert_same(checkpoint.state_dict, tiny_state())
    assert checkpoint.notes == ("No tensors, left out: epoch.", "Not needed, left out: num_updates.")


DIFFUSERS_JSON = {"_class_name": "PixArtTransformer2DModel", "sample_size": 64, "num_attention_heads": 4}


def write_shards(folder, state: dict[str, torch.Tensor]):
    names = list(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: state[name].contiguous() for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards_are_joined_from_their_index_or_their_folder(tmp_path):
    index = write_shards(tmp_path, to_diffusers(tiny_state()))
    for name in ("", "diffusion_pytorch_model.safetensors.index.fp16.json", "renamed.safetensors.index.json"):
        index = index.rename(tmp_path / name) if name else index
        assert_shards_are_read(index, tmp_path)


def assert_shards_are_read(*paths):
    for path in paths:
        checkpoint = open_checkpoint(path)
        assert_same(checkpoint.state_dict, tiny_state())
        assert checkpoint.dialect == "diffusers"


@pytest.mark.parametrize("inner", ["", "transformer"])
def test_diffusers_folder_is_read_with_its_config(tmp_path, inner):
    state = tiny_state(replace(CONFIG, null_caption=False))
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    save_file(to_diffusers(state), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(DIFFUSERS_JSON))
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    for path in (tmp_path, folder, folder / "diffusion_pytorch_model.safetensors"):
        checkpoint = open_checkpoint(path)
        config = checkpoint.config
        assert (config.family, config.num_heads, config.base_size, config.pe_interpolation) == ("alpha", 4, 32, 1.0)
        assert "α: model_index.json names PixArtAlphaPipeline." in checkpoint.evidence
        assert_same(checkpoint.state_dict, state)


def test_config_beside_a_file_in_original_names_is_not_taken_for_its_own(tmp_path):
    save_file(tiny_state(), tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(DIFFUSERS_JSON))
    assert open_checkpoint(tmp_path / "x.safetensors").config.num_heads == 2


def test_wrong_block_count_in_config_json_is_noted(tmp_path):
    save_file(to_diffusers(tiny_state()), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"num_layers": 28}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.depth == 2
    assert checkpoint.notes == ("config.json speaks of 28 blocks; the weights have 2, and they count.",)


def test_file_name_is_no_evidence(tmp_path):
    save_file(tiny_state(), tmp_path / "PixArt-XL-2-512x512-alpha.safetensors")
    assert open_checkpoint(tmp_path / "PixArt-XL-2-512x512-alpha.safetensors").config == CONFIG


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"family": "alpha", "max_caption_tokens": 120, "base_size": 16, "pe_interpolation": 1.0},
        {"family": "alpha", "null_caption": False, "max_caption_tokens": 120, "base_size": 64},
        {"family": "sigma", "max_caption_tokens": 120, "base_size": 8, "pe_interpolation": 0.25},
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_we_save_opens_as_the_same_model(tmp_path, changes, prefix):
    config = replace(CONFIG, **changes)
    state = tiny_state(config)
    save_file(prefixed(state_dict_to_save(state, config), prefix), tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.config == config
    assert_same(checkpoint.state_dict, state)


def saved_with_stated_config(folder, **lies):
    config = replace(CONFIG, family="alpha", max_caption_tokens=300)
    state = state_dict_to_save(tiny_state(config), config)
    stated = json.loads(bytes(state["pixart_config"].tolist())) | lies
    state["pixart_config"] = torch.tensor(list(json.dumps(stated).encode()), dtype=torch.uint8)
    save_file(state, folder / "x.safetensors")
    return folder / "x.safetensors"


def test_stated_config_is_believed_where_the_weights_cannot_tell(tmp_path):
    assert open_checkpoint(saved_with_stated_config(tmp_path)).config.family == "alpha"
    with pytest.raises(ValueError, match="set to sigma, but the file states alpha"):
        open_checkpoint(tmp_path / "x.safetensors", family="sigma")


@pytest.mark.parametrize(
    "lies, message",
    [
        ({"depth": 10**9}, "but the weights are of"),
        ({"hidden_size": 288}, "but the weights are of"),
        ({"hidden_size": 0, "num_heads": 0}, "does not hold a PixArt configuration"),
        ({"num_heads": "2"}, "does not hold a PixArt configuration"),
        ({"colour": 1}, "does not hold a PixArt configuration"),
        ({"pe_interpolation": float("nan")}, "must be a number above 0"),
    ],
    ids=str,
)
def test_stated_config_that_the_weights_contradict_is_refused(tmp_path, lies, message):
    with pytest.raises(ValueError, match=message):
        open_checkpoint(saved_with_stated_config(tmp_path, **lies))


def run(model: PixArtTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 16, 24, generator=generator, dtype=torch.float32)
    caption = torch.randn(1, 7, 32, generator=generator)
    return model(x.to(model.dtype), torch.tensor([500.0]), caption.to(model.dtype))


@torch.no_grad()
def test_loaded_transformer_computes_what_the_saved_one_did(tmp_path):
    model = PixArtTransformer(CONFIG)
    model.load_state_dict(tiny_state())
    save_file(to_diffusers(model.state_dict()), tmp_path / "x.safetensors", config_metadata(CONFIG))
    loaded = load_transformer(tmp_path / "x.safetensors")
    assert not loaded.training
    assert run(loaded).std() > 1e-3
    assert torch.equal(run(loaded), run(model))
    assert torch.equal(run(load_transformer(open_checkpoint(tmp_path / "x.safetensors"))), run(model))


@pytest.mark.parametrize(
    "stored, asked, expected",
    [
        (torch.float16, None, torch.float16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float8_e4m3fn, None, torch.bfloat16),
        (torch.float8_e5m2, torch.float32, torch.float32),
    ],
    ids=str,
)
@torch.no_grad()
def test_dtype_is_the_files_unless_asked_otherwise(tmp_path, stored, asked, expected):
    state = {name: tensor.to(stored) for name, tensor in tiny_state().items()}
    save_file(to_diffusers(state), tmp_path / "x.safetensors")
    model = load_transformer(tmp_path / "x.safetensors", dtype=asked)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {expected}
    assert run(model).isfinite().all()


def test_attention_is_the_one_given(tmp_path):
    save_file(tiny_state(), tmp_path / "x.safetensors")
    calls = []

    def attention(q, k, v, heads, mask=None, transformer_options=None):
        calls.append(heads)
        return q

    with torch.no_grad():
        run(load_transformer(tmp_path / "x.safetensors", attention=attention))
    assert calls == [2] * 4


@pytest.mark.parametrize("kind", ["safetensors", "training"])
def test_opening_maps_the_weights_instead_of_copying_them(tmp_path, kind):
    path = write(kind, tmp_path, tiny_state())
    state = open_checkpoint(path).state_dict
    mapped = mappings_of(path)
    for name in state:
        assert any(start <= state[name].data_ptr() < end for start, end in mapped), name


def mappings_of(path) -> list[tuple[int, int]]:
    """Address ranges of this process that are pages of the file."""
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file if line.rstrip().endswith(str(path))]
    return [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]


@pytest.mark.parametrize("micro", [True, False])
def test_names_go_to_diffusers_and_back_bit_for_bit(micro):
    state = tiny_state(replace(CONFIG, family="alpha", micro_condition=micro))
    renamed = to_diffusers(state)
    assert len(renamed) == 16 + 2 * 21 + (8 if micro else 0)
    assert_same(to_original(renamed), state)


def test_position_grids_are_dropped_on_the_way():
    grid = {"pos_embed": torch.zeros(1, 256, 144)}
    assert "pos_embed" not in to_original(tiny_state() | grid)
    assert not [name for name in to_diffusers(tiny_state() | grid) if name == "pos_embed"]


def test_names_without_counterpart_are_refused():
    with pytest.raises(ValueError, match="no place for blocks.0.attn.sr.weight"):
        to_diffusers(tiny_state() | {"blocks.0.attn.sr.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="No original name is known for transformer_blocks.0.attn1.norm_q.weight"):
        to_original(to_diffusers(tiny_state()) | {"transformer_blocks.0.attn1.norm_q.weight": torch.zeros(1)})


def test_incomplete_stack_is_refused():
    renamed = to_diffusers(tiny_state())
    del renamed["transformer_blocks.1.attn1.to_k.weight"]
    with pytest.raises(ValueError, match="missing: transformer_blocks.1.attn1.to_k.weight"):
        to_original(renamed)
