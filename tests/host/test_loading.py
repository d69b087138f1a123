"""Every container and weight type through the loaders; what stays in memory; what is said when numbers go wrong."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import known_files
import pytest
import torch
from random_models import random_transformer
from safetensors.torch import save_file

from pixart.checkpoint import config_metadata, load_transformer, open_checkpoint, to_diffusers
from pixart.config import PixArtConfig
from pixart.text.layout import T5Config
from pixart.transformer import PixArtTransformer

TINY = PixArtConfig(
    hidden_size=144, depth=3, num_heads=2, mlp_hidden_size=288, caption_channels=64, base_size=8, pe_interpolation=0.25
)
MATRICES = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj", "mlp.fc1")


def random_state(config: PixArtConfig = TINY) -> dict[str, torch.Tensor]:
    return random_transformer(config).state_dict()


def write(path: Path, state: dict[str, torch.Tensor], config: PixArtConfig = TINY, **metadata: str) -> str:
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata=config_metadata(config) | metadata)
    return str(path)


@pytest.fixture(scope="module")
def host_model(pack):
    return import_module(f"{pack.__name__}.nodes.host.model")


@pytest.fixture(scope="module")
def folders(pack):
    return import_module(f"{pack.__name__}.nodes.host.folders")


@pytest.fixture
def plain_file(tmp_path) -> str:
    return write(tmp_path / "plain.safetensors", random_state())


def predict(patcher, caption: torch.Tensor | None = None, x: torch.Tensor | None = None) -> torch.Tensor:
    """One prediction through the host, on seeded noise and a seeded caption."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    words = torch.randn(1, 7, 64, generator=generator)
    sigma = torch.tensor([2.0])
    x, words = noise if x is None else x, words if caption is None else caption
    return patcher.model.apply_model(x, sigma, c_crossattn=words, transformer_options={})


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).double().pow(2).mean() / wanted.double().pow(2).mean()).sqrt().item()


# Scaled fp8


def quantise(state: dict[str, torch.Tensor], layout: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The blocks' matrices as scaled fp8 in one of the host's layouts, the rest in fp16; and the metadata."""
    out, layers, metadata = {}, {}, {}
    config = {"format": "float8_e4m3fn"}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if not (name.startswith("blocks.") and layer.split(".", 2)[2] in MATRICES):
            out[name] = tensor.half()
            continue
        scale = tensor.abs().max() / 448
        out[name] = (tensor / scale).to(torch.float8_e4m3fn)
        out[f"{layer}.{'scale_weight' if layout.startswith('old') else 'weight_scale'}"] = scale.float()
        if layout == "comfy_quant":
            out[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
        layers[layer] = config
    if layout.startswith("old"):
        out["scaled_fp8"] = torch.zeros(2 if layout == "old, full precision" else 0, dtype=torch.float8_e4m3fn)
    if layout == "metadata":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    return out, metadata


def multiplied_out(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a scaled fp8 file means, in fp32."""
    ordinary = {k: v for k, v in state.items() if v.dtype != torch.uint8 and "scale_weight" not in k}
    ordinary = {k: v for k, v in ordinary.items() if "weight_scale" not in k and k != "scaled_fp8"}
    for name in ordinary:
        layer = name.removesuffix(".weight")
        scale = state.get(f"{layer}.scale_weight", state.get(f"{layer}.weight_scale"))
        ordinary[name] = ordinary[name].float() * (1 if scale is None or not name.endswith(".weight") else scale)
    return ordinary


LAYOUTS = ["old", "old, full precision", "comfy_quant", "metadata"]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scaled_fp8_draws_what_its_numbers_times_its_scales_draw(layout, prefix, host_model, tmp_path):
    state, metadata = quantise(random_state(), layout)
    metadata = {k: v.replace('"blocks', f'"{prefix}blocks') for k, v in metadata.items()}
    path = write(tmp_path / "q.safetensors", {prefix + k: v for k, v in state.items()}, **metadata)
    wanted = host_model.load_model(write(tmp_path / "f.safetensors", multiplied_out(state)), "fp32")
    patcher = host_model.load_model(path)
    weight = patcher.model.diffusion_model.blocks[1].attn.qkv.weight
    assert type(weight).__name__ == "QuantizedTensor" or type(weight.data).__name__ == "QuantizedTensor"
    assert relative(predict(patcher), predict(wanted)) <= 1e-6
    assert relative(predict(host_model.load_model(path, "fp32")), predict(wanted)) <= 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scaled_fp8_is_multiplied_out_without_a_host(layout, tmp_path):
    state, metadata = quantise(random_state(), layout)
    path = write(tmp_path / "q.safetensors", state, **metadata)
    wanted = multiplied_out(state)
    found = load_transformer(path, dtype=torch.float32).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in found) and set(found) == set(wanted)
    checkpoint = open_checkpoint(path)
    assert len(checkpoint.quantised) == 2 * len(MATRICES) * TINY.depth
    assert json.loads(bytes(checkpoint.quantised["blocks.2.attn.qkv.comfy_quant"].tolist())) == {
        "format": "float8_e4m3fn",
        **({"full_precision_matrix_mult": True} if layout == "old, full precision" else {}),
    }


def test_a_saved_scaled_fp8_model_reads_back_as_the_same_model(host_model, tmp_path):
    from comfy_extras.nodes_model_merging import save_checkpoint

    state, metadata = quantise(random_state(), "comfy_quant")
    patcher = host_model.load_model(write(tmp_path / "q.safetensors", state, **metadata))
    (tmp_path / "out").mkdir()
    save_checkpoint(patcher, filename_prefix="saved", output_dir=str(tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    again = host_model.load_model(str(file))
    assert len(open_checkpoint(file).quantised) == 2 * len(MATRICES) * TINY.depth
    assert torch.equal(predict(again), predict(patcher))


def change(state: dict, **changes) -> dict:
    """``state`` with tensors set, or left out where None; two underscores stand for a dot."""
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    return {k: v for k, v in (state | changes).items() if v is not None}


def json_bytes(content: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"blocks__0__attn__qkv__weight_scale": None}, "blocks.0.attn.qkv is scaled fp8 but has no scale"),
        ({"blocks__0__attn__qkv__weight_scale": torch.ones(432)}, "blocks.0.attn.qkv is scaled fp8 but has 432 scales"),
        (
            {"blocks__0__attn__qkv__comfy_quant": json_bytes({"format": "nvfp4"})},
            "blocks.0.attn.qkv is quantised as nvfp4; this loader reads scaled fp8",
        ),
        ({"blocks__0__attn__qkv__comfy_quant": torch.zeros(3, dtype=torch.uint8)}, "comfy_quant is not JSON"),
        ({"t_block__1__weight_scale": torch.ones(())}, "t_block.1 is quantised as float16; this loader reads"),
    ],
)
def test_a_quantised_layer_that_cannot_be_read_is_named(changes, message, tmp_path):
    state, metadata = quantise(random_state(), "comfy_quant")
    path = write(tmp_path / "q.safetensors", change(state, **changes), **metadata)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(path)


def test_scaled_fp8_under_diffusers_names_is_refused_with_the_reason(tmp_path):
    state = {k: v for k, v in to_diffusers(random_state()).items()}
    name = "transformer_blocks.0.attn1.to_q"
    state[f"{name}.weight"] = state[f"{name}.weight"].to(torch.float8_e4m3fn)
    state[f"{name}.weight_scale"] = torch.ones(())
    with pytest.raises(ValueError, match="queries, keys and values have a scale each"):
        open_checkpoint(write(tmp_path / "q.safetensors", state))


# Formats that only the host's layers compute with


MIXED = replace(TINY, hidden_size=288, num_heads=4, mlp_hidden_size=576)
"""Widths that every group size of the formats divides, but 256."""


def host_formats() -> dict[str, str]:
    """Format → the host's layout, of all that it knows beside fp8 with one scale."""
    from comfy.quant_ops import QUANT_ALGOS

    return {
        kind: algorithm["comfy_tensor_layout"]
        for kind, algorithm in QUANT_ALGOS.items()
        if not kind.startswith("float8") and kind not in ("convrot_w4a4", "asym_w4a8_int8")  # K is no multiple of 256
    }


def quantise_by_host(state: dict[str, torch.Tensor], kind: str) -> tuple[dict, dict]:
    """The blocks' matrices as the host writes them in a format, the rest in fp16; and what the file means, in fp32."""
    from comfy.quant_ops import QuantizedTensor

    stored, meant = {}, {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if not (name.startswith("blocks.") and layer.split(".", 2)[2] in MATRICES):
            stored[name], meant[name] = tensor.half(), tensor.half().float()
            continue
        recalculate = {"scale": "recalculate"} if kind == "int8_tensorwise" else {}
        quantised = QuantizedTensor.from_float(tensor.clone(), host_formats()[kind], **recalculate)
        stored |= quantised.state_dict(name)
        stored[f"{layer}.comfy_quant"] = json_bytes({"format": kind})
        meant[name] = quantised.dequantize().float()
    return stored, meant


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_formats_of_the_host_draw_what_its_own_dequantised_weights_draw(prefix, host_model, tmp_path):
    assert "nvfp4" in host_formats()
    for kind in host_formats():
        stored, meant = quantise_by_host(random_state(MIXED), kind)
        path = write(tmp_path / f"{kind}.safetensors", {prefix + k: v for k, v in stored.items()}, config=MIXED)
        patcher = host_model.load_model(path)
        assert vars(patcher.model.pixart.config) == vars(MIXED)
        assert type(patcher.model.diffusion_model.blocks[1].attn.qkv.weight.data).__name__ == "QuantizedTensor"
        assert f"quantised layers are kept as {kind}" in patcher.model.describe()
        wanted = predict(host_model.load_model(write(tmp_path / "f.safetensors", meant, config=MIXED), "fp32"))
        plain = predict(host_model.load_model(write(tmp_path / "p.safetensors", random_state(MIXED), config=MIXED)))
        # int8 layers round what they are given as well; the others multiply out.
        limit = 0.03 if kind == "int8_tensorwise" else 1e-5
        assert relative(predict(patcher), wanted) <= limit, kind
        assert relative(plain, wanted) > 1e-3, kind


def test_a_saved_nvfp4_model_reads_back_as_the_same_model(host_model, tmp_path):
    from comfy_extras.nodes_model_merging import save_checkpoint

    stored, _ = quantise_by_host(random_state(MIXED), "nvfp4")
    patcher = host_model.load_model(write(tmp_path / "q.safetensors", stored, config=MIXED))
    (tmp_path / "out").mkdir()
    save_checkpoint(patcher, filename_prefix="saved", output_dir=str(tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert torch.equal(predict(host_model.load_model(str(file))), predict(patcher))


def test_a_format_is_refused_where_nothing_computes_it_and_where_another_type_is_asked(host_model, tmp_path):
    stored, _ = quantise_by_host(random_state(MIXED), "nvfp4")
    path = write(tmp_path / "q.safetensors", stored, config=MIXED)
    with pytest.raises(ValueError, match="attn.proj is quantised as nvfp4; this loader reads scaled fp8.*Update"):
        load_transformer(path)
    with pytest.raises(ValueError, match="q.safetensors is quantised as nvfp4 and stays so: set weight_dtype to auto"):
        host_model.load_model(path, "fp16")
    lost = {name: tensor for name, tensor in stored.items() if name != "blocks.1.mlp.fc1.bias"}
    with pytest.raises(ValueError, match="the first: blocks.1.mlp.fc1.bias"):
        host_model.load_model(write(tmp_path / "l.safetensors", lost, config=MIXED))


# Which weights are kept in which type


def test_only_the_blocks_matrices_are_kept_in_fp8(host_model, plain_file):
    model = host_model.load_model(plain_file, "fp8_e4m3fn").model.diffusion_model
    kept = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float8_e4m3fn}
    assert kept == {f"blocks.{i}.{layer}.weight" for i in range(3) for layer in (*MATRICES, "mlp.fc2")}
    assert {t.dtype for name, t in model.state_dict().items() if name not in kept} == {torch.float32}


def test_embedders_in_fp8_would_raise_the_error_by_half(host_model, plain_file):
    wanted = predict(host_model.load_model(plain_file, "fp32"))
    lower = host_model.load_model(plain_file, "fp8_e4m3fn")
    kept = relative(predict(lower), wanted)
    for name, tensor in lower.model.diffusion_model.state_dict().items():
        if tensor.dtype == torch.float32 and "y_embedding" not in name:
            tensor.copy_(tensor.to(torch.float8_e4m3fn))
    assert 0.02 > kept > 0 and relative(predict(lower), wanted) > 1.5 * kept


def test_a_plain_fp8_file_keeps_its_numbers(host_model, tmp_path):
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in random_state().items()}
    wanted = host_model.load_model(
        write(tmp_path / "f.safetensors", {name: tensor.float() for name, tensor in state.items()}), "fp32"
    )
    path = write(tmp_path / "q.safetensors", state)
    patcher = host_model.load_model(path, "fp8_e4m3fn")
    assert patcher.model.diffusion_model.blocks[0].mlp.fc2.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(predict(patcher), predict(wanted))
    assert torch.equal(predict(host_model.load_model(path)), predict(wanted))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_auto_does_not_widen_a_half_precision_file_on_the_processor(dtype, host_model, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in random_state().items()}
    patcher = host_model.load_model(write(tmp_path / "h.safetensors", state))
    assert {tensor.dtype for tensor in patcher.model.diffusion_model.state_dict().values()} == {dtype}
    assert patcher.model.get_dtype_inference() == torch.float32
    wide = host_model.load_model(str(tmp_path / "h.safetensors"), "fp32")
    assert torch.equal(predict(patcher), predict(wide))


@pytest.mark.parametrize("peak", [1e5, 3e5])
def test_fp16_draws_the_same_where_the_sum_over_blocks_passes_its_range(peak):
    model = PixArtTransformer(TINY)
    model.load_state_dict(random_state())
    block, sums = model.blocks[1], []
    with torch.no_grad():
        block.scale_shift_table[5] = 0
        block.scale_shift_table[5, :3] = 60
        block.mlp.fc2.bias[:3] = peak / 60
    model.eval().blocks[2].register_forward_hook(lambda *call: sums.append(call[2].abs().max().item()))
    generator = torch.Generator().manual_seed(1)
    x, caption = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 9, 64, generator=generator)
    t = torch.tensor([500.0, 20.0])
    wanted = model(x, t, caption)
    found = model.half()(x.half(), t, caption.half())
    assert min(sums) > 0.95 * peak and found.dtype == torch.float16
    assert relative(found.float(), wanted) <= 2e-3


# The file's own memory


def mapped(tensor: torch.Tensor, path: str) -> bool:
    """Whether a tensor's numbers lie in the memory pages of a file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(os.path.realpath(path)):
            first, last = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return True
    return False


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")


@needs_proc
@pytest.mark.parametrize("container", ["safetensors", "pth"])
def test_weights_of_the_right_type_are_not_copied(container, host_model, tmp_path):
    path = str(tmp_path / f"m.{container}")
    state = {name: tensor.half() for name, tensor in random_state().items()}
    torch.save({"state_dict": state}, path) if container == "pth" else write(path, state)
    same = host_model.load_model(path, "fp16").model.diffusion_model
    other = host_model.load_model(path, "bf16").model.diffusion_model
    assert all(mapped(value, path) for value in same.state_dict().values())
    assert not any(mapped(value, path) for value in other.state_dict().values())


def test_weights_that_the_processor_computes_with_begin_on_64_bytes(host_model, tmp_path):
    state = {"epoch": torch.zeros(1, dtype=torch.int64)} | random_state()
    path = write(tmp_path / "odd.safetensors", {name: tensor for name, tensor in state.items()}, padding="x" * 9)
    assert any(tensor.data_ptr() % 64 for tensor in open_checkpoint(path).state_dict.values())
    model = host_model.load_model(path, "fp32").model.diffusion_model
    assert not any(tensor.data_ptr() % 64 for tensor in model.state_dict().values())


@needs_proc
def test_nothing_stays_mapped_where_the_host_was_started_without(host_model, plain_file, monkeypatch):
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", True)
    model = host_model.load_model(plain_file, "fp32").model.diffusion_model
    assert not any(mapped(value, plain_file) for value in model.state_dict().values())


def test_no_parameter_is_left_without_numbers(host_model, plain_file):
    model = host_model.load_model(plain_file).model
    assert not [name for name, value in model.state_dict().items() if value.is_meta]
    assert not [name for name, value in model.named_buffers() if value.is_meta]


def add_lora(patcher):
    """A clone of the MODEL with a LoRA on one matrix that all layouts above have scaled."""
    import comfy.sd

    generator = torch.Generator().manual_seed(3)
    name = "diffusion_model.blocks.1.mlp.fc1"
    lora = {
        f"{name}.lora_up.weight": torch.randn(288, 4, generator=generator) * 0.3,
        f"{name}.lora_down.weight": torch.randn(4, 144, generator=generator) * 0.3,
        f"{name}.alpha": torch.tensor(4.0),
    }
    return comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0)[0]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("weight_dtype", ["fp32", "fp16", "fp8_e4m3fn"])
def test_a_lora_changes_the_picture_and_is_undone_and_the_file_stays(weight_dtype, in_place, host_model, tmp_path):
    state = random_state()
    if weight_dtype == "fp16":
        state = {name: tensor.half() for name, tensor in state.items()}
    path = write(tmp_path / "m.safetensors", state)
    before = Path(path).read_bytes()
    patcher = host_model.load_model(path, weight_dtype)
    patcher.weight_inplace_update = in_place
    plain = predict(patcher)
    with_lora = add_lora(patcher)
    changed = predict(with_lora)
    assert relative(changed, plain) > 1e-2
    with_lora.detach()
    assert torch.equal(predict(patcher), plain)
    assert Path(path).read_bytes() == before


def test_a_lora_changes_a_scaled_fp8_model_as_it_does_the_same_in_fp32(host_model, tmp_path):
    state, metadata = quantise(random_state(), "comfy_quant")
    wide = host_model.load_model(write(tmp_path / "f.safetensors", multiplied_out(state)), "fp32")
    patcher = host_model.load_model(write(tmp_path / "q.safetensors", state, **metadata))
    plain, wanted = predict(patcher), predict(add_lora(wide))
    # The changed matrix is rounded to fp8 anew.
    assert relative(predict(add_lora(patcher)), wanted) < 0.1 * relative(plain, wanted)


def test_a_model_that_the_host_moves_away_and_back_draws_the_same(host_model, plain_file):
    import comfy.model_management

    patcher = host_model.load_model(plain_file, "fp16")
    plain = predict(patcher)
    comfy.model_management.unload_all_models()
    assert torch.equal(predict(patcher), plain)


def test_original_and_diffusers_names_draw_the_same_bit_for_bit(host_model, plain_file, tmp_path):
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in to_diffusers(random_state()).items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "PixArtTransformer2DModel", "sample_size": 16, "interpolation_scale": 0.25}
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    one, other = host_model.load_model(plain_file, "fp32"), host_model.load_model(str(folder.parent), "fp32")
    assert one.model.pixart.config == other.model.pixart.config
    assert torch.equal(predict(one), predict(other))


# Numbers that go wrong


def spoilt(host_model, tmp_path, dtype: str, name: str, value: float):
    state = random_state()
    state[name] = torch.full_like(state[name], value)
    return host_model.load_model(write(tmp_path / "s.safetensors", state), dtype)


def test_a_prediction_that_is_not_finite_stops_with_the_layer_and_what_to_change(host_model, tmp_path):
    patcher = spoilt(host_model, tmp_path, "fp32", "blocks.1.mlp.fc2.weight", 3e38)
    with pytest.raises(ValueError, match="s.safetensors gave NaN.* not finite in blocks.1.mlp.fc2 at fp32, where"):
        predict(patcher)
    model = patcher.model.diffusion_model
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize(
    "kept, computed, advice",
    [
        (torch.float16, torch.float16, "in blocks.1.mlp.fc2 at fp16; choose weight_dtype bf16 or fp32 in PixArt Load"),
        (torch.float8_e4m3fn, torch.bfloat16, "at bf16, weights kept in float8_e4m3fn; choose weight_dtype bf16 or"),
        (torch.bfloat16, torch.bfloat16, "at bf16; choose weight_dtype fp32 in PixArt Load Checkpoint, or lower"),
    ],
)
def test_the_advice_follows_the_weight_type(kept, computed, advice, pack, host_model, tmp_path, monkeypatch):
    """The processor computes in fp32 whatever is asked, so only the types that are told differ here."""
    diagnosis = import_module(f"{pack.__name__}.nodes.host.diagnosis")
    model = spoilt(host_model, tmp_path, "fp32", "blocks.1.mlp.fc2.weight", 3e38).model
    monkeypatch.setattr(model, "get_dtype", lambda: kept)
    monkeypatch.setattr(model, "get_dtype_inference", lambda: computed)
    x, caption = torch.ones(1, 4, 16, 16), torch.ones(1, 3, 64)
    told = diagnosis.explain(model, x, caption, lambda: model.diffusion_model(x, torch.zeros(1), caption))
    assert advice in told


def test_a_fault_before_the_model_is_not_blamed_on_it(host_model, plain_file):
    patcher = host_model.load_model(plain_file)
    with pytest.raises(ValueError, match="The caption handed to plain.safetensors holds NaN.*PixArt Load T5"):
        predict(patcher, caption=torch.full((1, 7, 64), torch.inf))
    with pytest.raises(ValueError, match="The latents that the sampler handed to plain.safetensors hold NaN"):
        predict(patcher, x=torch.full((1, 4, 16, 16), torch.nan))


@pytest.mark.parametrize("width, whose", [(768, "CLIP-L"), (1280, "CLIP-G"), (2048, "SDXL's pair of CLIPs"), (100, "")])
def test_a_caption_of_another_encoder_is_told_by_its_width(width, whose, host_model, plain_file):
    patcher = host_model.load_model(plain_file)
    told = f"belong to this checkpoint; {width} is the width of {whose}" if whose else r"belong to this checkpoint\. "
    with pytest.raises(ValueError, match=f"{width} wide, but plain.safetensors .* 64 wide: .*{told}"):
        patcher.model.extra_conds(cross_attn=torch.zeros(1, 77, width), noise=torch.zeros(1, 4, 16, 16), device="cpu")


# T5


TINY_T5 = T5Config(vocab_size=32128, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def text(pack):
    return import_module(f"{pack.__name__}.nodes.host.text")


def random_t5(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = TINY_T5.shapes().items()
    return {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes}


def encode(clip) -> torch.Tensor:
    return clip.encode_from_tokens_scheduled(clip.tokenize("a small red star on the left"))[0][0]


def test_only_the_blocks_matrices_of_t5_are_kept_in_fp8(text, tmp_path):
    save_file(random_t5(torch.float16), tmp_path / "t5.safetensors")
    clip = text.load_clip(str(tmp_path / "t5.safetensors"), "fp8_e4m3fn")
    state = clip.cond_stage_model.t5xxl.transformer.state_dict()
    kept = {name for name, tensor in state.items() if tensor.dtype == torch.float8_e4m3fn}
    assert len(kept) == 2 * 7 and all(name.startswith("encoder.block.") for name in kept)
    assert {tensor.dtype for name, tensor in state.items() if name not in kept} == {torch.float16}
    assert encode(clip).isfinite().all()


@needs_proc
def test_the_encoder_stays_in_the_files_pages_and_a_decoder_is_left_there(text, tmp_path):
    path = str(tmp_path / "t5.safetensors")
    decoder = {"decoder.block.0.layer.1.EncDecAttention.q.weight": torch.ones(32, 32), "lm_head.weight": torch.ones(2)}
    save_file(random_t5(torch.float16) | decoder, path)
    state = text.load_clip(path).cond_stage_model.t5xxl.transformer.state_dict()
    assert set(TINY_T5.shapes()) <= set(state) and not any("decoder" in name or "lm_head" in name for name in state)
    assert all(mapped(state[name], path) for name in TINY_T5.shapes())


def test_t5_from_a_folder_of_shards_and_from_gguf_reads_the_same_captions(text, tmp_path):
    gguf = pytest.importorskip("gguf")
    state = random_t5(torch.float16)
    save_file(state, tmp_path / "t5.safetensors")
    wanted = encode(text.load_clip(str(tmp_path / "t5.safetensors")))

    folder, names = tmp_path / "folder", sorted(state)
    folder.mkdir()
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(encode(text.load_clip(str(folder))), wanted)

    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5encoder")
    for name, tensor in state.items():
        writer.add_tensor(gguf_name(name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert torch.equal(encode(text.load_clip(str(tmp_path / "t5.gguf"))), wanted)


def gguf_name(name: str) -> str:
    top = {"shared.weight": "token_embd.weight", "encoder.final_layer_norm.weight": "enc.output_norm.weight"}
    if name in top:
        return top[name]
    block, inner = name.split(".")[2], name.split(".", 3)[3]
    names = {"SelfAttention.q": "attn_q", "SelfAttention.k": "attn_k", "SelfAttention.v": "attn_v"}
    names |= {"SelfAttention.o": "attn_o", "relative_attention_bias": "attn_rel_b", "0.layer_norm": "attn_norm"}
    names |= {"wi_0": "ffn_gate", "wi_1": "ffn_up", "wo": "ffn_down", "1.layer_norm": "ffn_norm"}
    (short,) = {short for part, short in names.items() if f"{part}.weight" in inner}
    return f"enc.blk.{block}.{short}.weight"


# Names in the lists


@pytest.fixture
def models(folders, tmp_path, monkeypatch):
    """Model folders of this test alone, among the host's."""
    import folder_paths

    for kind in ("checkpoints", "diffusion_models", "diffusers", "text_encoders"):
        (tmp_path / "models" / kind).mkdir(parents=True)
        _, suffixes = folder_paths.folder_names_and_paths[kind]
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, kind, ([str(tmp_path / "models" / kind)], suffixes)
        )
        monkeypatch.delitem(folder_paths.filename_list_cache, kind, raising=False)
    yield tmp_path / "models"
    for kind in ("checkpoints", "diffusion_models", "diffusers", "text_encoders"):
        folder_paths.filename_list_cache.pop(kind, None)


def write_folder(folder: Path, part: str = "transformer", shards: bool = True) -> Path:
    """A diffusers pipeline with a transformer of two shards."""
    inner = folder / part
    inner.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    (inner / "config.json").write_text('{"sample_size": 16, "interpolation_scale": 0.25, "num_attention_heads": 2}')
    state = {k: v.contiguous() for k, v in to_diffusers(random_state()).items()}
    stem, names = "diffusion_pytorch_model", sorted(state)
    parts = {f"{stem}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part_names in parts.items():
        save_file({name: state[name] for name in part_names}, inner / file)
    index = {"weight_map": {name: file for file, part_names in parts.items() for name in part_names}}
    (inner / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_pipelines_and_shards_are_listed_as_one_name_each_and_load(models, folders, host_model, node_classes, tmp_path):
    write_folder(models / "diffusers" / "author" / "sigma")
    write_folder(models / "checkpoints" / "loose").joinpath("model_index.json").unlink()
    write_folder(models / "diffusers" / "only-text", part="text_encoder")
    assert list(folders.model_folders(folders.CHECKPOINTS)) == [os.path.join("loose", "transformer"), "author/sigma"]
    wanted = predict(host_model.load_model(write(tmp_path / "f.safetensors", random_state())))
    node = node_classes["PixArtLoadCheckpoint"]
    options = node.GET_SCHEMA().inputs[0].options
    for name in ("author/sigma", "loose/transformer"):
        assert name in options
        assert torch.equal(predict(node.execute(name, "fp32").args[0]), wanted)


def test_one_shard_chosen_by_hand_is_answered_with_what_to_choose(models, node_classes):
    write_folder(models / "checkpoints" / "m")
    name = "m/transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
    with pytest.raises(ValueError, match="It is shard 1 of 2: choose the .index.json beside it, or their folder"):
        node_classes["PixArtLoadCheckpoint"].execute(name)


def test_gguf_files_are_offered_as_t5_and_the_hosts_suffixes_stay_as_they_are(models, folders):
    import folder_paths

    (models / "text_encoders" / "big").mkdir()
    (models / "text_encoders" / "big" / "t5-Q8_0.GGUF").write_bytes(b"GGUF")
    (models / "checkpoints" / "flux.gguf").write_bytes(b"GGUF")
    suffixes = set(folder_paths.supported_pt_extensions)
    assert os.path.join("big", "t5-Q8_0.GGUF") in folders.names(folders.TEXT_ENCODERS)
    assert folders.find(folders.TEXT_ENCODERS, "big/t5-Q8_0.GGUF") == str(models / "text_encoders/big/t5-Q8_0.GGUF")
    assert "flux.gguf" not in folders.names(folders.CHECKPOINTS)
    assert folder_paths.supported_pt_extensions == suffixes and ".gguf" not in suffixes


def test_a_pipelines_text_encoder_is_offered_as_t5(models, folders):
    write_folder(models / "diffusers" / "sigma", part="text_encoder")
    write_folder(models / "diffusers" / "bare", part="transformer")
    assert "sigma" in folders.names(folders.TEXT_ENCODERS) and "bare" not in folders.names(folders.TEXT_ENCODERS)
    assert "bare" in folders.names(folders.CHECKPOINTS) and "sigma" not in folders.names(folders.CHECKPOINTS)


@pytest.mark.parametrize("name", ["../secret.safetensors", "a/../../secret.safetensors", "..\\x.pth", "C:\\x.pth", "/"])
def test_names_that_lead_out_of_the_model_folders_are_refused(name, models, folders):
    write(models / "secret.safetensors", random_state())
    with pytest.raises(ValueError, match="leads out of the model folders"):
        folders.find(folders.CHECKPOINTS, name)


def test_an_absolute_name_is_refused_even_inside_a_model_folder(models, folders):
    path = write(models / "checkpoints" / "m.safetensors", random_state())
    assert folders.find(folders.CHECKPOINTS, "m.safetensors") == path
    with pytest.raises(ValueError, match="leads out of the model folders"):
        folders.find(folders.CHECKPOINTS, path)


def test_a_file_that_is_no_model_is_not_found_though_it_lies_there(models, folders):
    (models / "checkpoints" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"'notes.txt' is not in models/checkpoints or models/diffusion_models"):
        folders.find(folders.CHECKPOINTS, "notes.txt")


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="links need rights on Windows")
def test_a_linked_folder_is_followed_inside_the_model_folders_only(models, folders, tmp_path):
    write_folder(tmp_path / "elsewhere")
    write_folder(models / "diffusers" / "real")
    (models / "diffusers" / "out").symlink_to(tmp_path / "elsewhere")
    (models / "diffusers" / "inside").symlink_to(models / "diffusers" / "real")
    assert list(folders.model_folders(folders.CHECKPOINTS)) == ["inside", "real"]
    with pytest.raises(ValueError, match="'out' leads out of the model folders"):
        folders.find(folders.CHECKPOINTS, "out")


# Every published layout


@pytest.mark.parametrize("name", known_files.KNOWN)
def test_a_published_layout_cut_to_one_block_loads_as_what_it_is(name, host_model, tmp_path, caplog):
    """As it is published; tests/unit/test_known_files.py has the other containers."""
    container = next(iter(known_files.containers(name)))
    path = known_files.write(name, container, tmp_path, depth=1, dtype=torch.float16)
    with caplog.at_level("WARNING"):
        patcher = host_model.load_model(str(path), "fp16")
    known = known_files.KNOWN[name]
    assert vars(patcher.model.pixart.config) == vars(known.config(depth=1))
    assert patcher.model.latent_format.scale_factor == known.latent_scale
    assert set(open_checkpoint(path).state_dict) == set(patcher.model.diffusion_model.state_dict())
    assert not [record for record in caplog.records if "missing" in record.message or "unexpected" in record.message]
