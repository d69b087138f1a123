"""LoRA files of every dialect give the weights that their own tools, or their documented layout, give."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pytest
import torch
from lora_files import DATA, tiny_file
from safetensors.torch import load_file, save_file

from pixart.adapters import merge
from pixart.checkpoint import detect_config, to_original
from pixart.lora import fit, open_lora
from pixart.transformer import PixArtTransformer

OFFICIAL_TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "proj",
                    "linear", "linear_1", "linear_2"]  # fmt: skip
"""What PixArt's own training scripts adapt."""


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def tiny_diffusers(family: str = "sigma"):
    diffusers = pytest.importorskip("diffusers")
    alpha = family == "alpha"
    torch.manual_seed(3)
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=72, num_layers=2, cross_attention_dim=144, caption_channels=32,
        sample_size=128 if alpha else 64, interpolation_scale=None if alpha else 1,
        use_additional_conditions=None if alpha else False,
    )  # fmt: skip
    return fill(model).eval()


def fill(model):
    """Random numbers where zeros would hide a mistake."""
    for value in model.parameters():
        if not value.any() or value.ndim == 1:
            value.copy_(torch.randn_like(value) * 0.05)
    return model


def ours_of(state: dict, config_json: dict | None = None) -> PixArtTransformer:
    state = to_original(state)
    config, _ = detect_config({key: tuple(tensor.shape) for key, tensor in state.items()}, None, config_json)
    model = PixArtTransformer(config, device="meta")
    model.load_state_dict(state, assign=True)
    return model.eval()


INPUTS = {
    "x": torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(1)),
    "t": torch.tensor([987.0, 13.0]),
    "y": torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2)),
    "size": torch.tensor([[128.0, 192.0], [64.0, 96.0]]),
    "ratio": torch.tensor([[0.67], [1.5]]),
}


def theirs(model, inputs=INPUTS) -> torch.Tensor:
    added = {"resolution": inputs.get("size"), "aspect_ratio": inputs.get("ratio")}
    return model(
        inputs["x"], encoder_hidden_states=inputs["y"], timestep=inputs["t"], added_cond_kwargs=added, return_dict=False
    )[0]


def ours(model: PixArtTransformer, inputs=INPUTS) -> torch.Tensor:
    return model(
        inputs["x"],
        inputs["t"],
        inputs["y"],
        size=inputs.get("size"),
        aspect_ratio=inputs.get("ratio"),
        learned_variance=True,
    )


def with_lora(model: PixArtTransformer, path: Path, strength: float = 1.0):
    """Our transformer with all of a file's adapters worked in, and the file."""
    lora = open_lora(path)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    fitting, absent = fit(lora.transformer, shapes, "PixArt model")
    assert (absent, lora.leftover) == ([], ())
    merged = PixArtTransformer(model.config, device="meta")
    merged.load_state_dict(merge(model.state_dict(), fitting, strength), assign=True)
    return merged.eval(), lora


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


PEFT_CASES = {
    "as the official scripts leave it": {},
    "alpha 32": {"lora_alpha": 32},
    "rank-stabilised": {"lora_alpha": 6, "use_rslora": True},
    "alpha and rank by pattern": {
        "lora_alpha": 3,
        "rank_pattern": {"attn1.to_q": 6},
        "alpha_pattern": {"attn1.to_q": 12, "^proj_out": 1},
    },
    "DoRA": {"use_dora": True, "lora_alpha": 5, "target_modules": ["to_k", "to_q", "to_v", "ff.net.2", "linear_1"]},
    "a bias on B": {"lora_bias": True, "lora_alpha": 4, "target_modules": ["to_k", "to_q", "ff.net.2"]},
    "a whole layer saved beside": {"modules_to_save": ["proj_out"], "target_modules": ["to_k", "to_v"]},
}


@pytest.mark.parametrize("case", PEFT_CASES)
def test_a_file_of_peft_gives_the_forward_of_diffusers_and_peft(case, tmp_path):
    peft = pytest.importorskip("peft")
    family = "alpha" if case == "alpha 32" else "sigma"
    reference = tiny_diffusers(family)
    model = ours_of(reference.state_dict(), dict(reference.config))
    wrapped = peft.get_peft_model(
        reference, peft.LoraConfig(r=4, **{"target_modules": OFFICIAL_TARGETS} | PEFT_CASES[case])
    )
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path)
    merged, lora = with_lora(model, tmp_path / "adapter_model.safetensors")
    assert lora.dialect == "PEFT (base_model.model.…)"
    if case == "as the official scripts leave it":
        # Ten in each block, the patch convolution, four of captions and times, adaln's linear and the last layer.
        assert len(lora.transformer) == 10 * 2 + 7
        assert lora.scale_rule == "alpha 8 from adapter_config.json"
    expected = theirs(wrapped.eval())
    assert distance(ours(merged), expected) <= 1e-5
    assert distance(ours(model), expected) > 1e-3


def randomise(wrapped) -> None:
    for name, value in wrapped.named_parameters():
        if any(mark in name for mark in ("lora_", "modules_to_save", "hada_", "lokr_")):
            value.add_(torch.randn_like(value) * 0.05)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr of full factors"])
def test_pefts_other_kinds_give_its_forward(kind, tmp_path):
    peft = pytest.importorskip("peft")
    reference = tiny_diffusers()
    model = ours_of(reference.state_dict(), dict(reference.config))
    targets = {"target_modules": ["to_k", "to_q", "to_v", "ff.net.2", "linear_1"]}
    config = {
        "LoHa": lambda: peft.LoHaConfig(r=4, alpha=6, **targets),
        "LoKr": lambda: peft.LoKrConfig(r=2, alpha=6, **targets),
        "LoKr of full factors": lambda: peft.LoKrConfig(r=64, alpha=32, **targets),
    }[kind]()
    wrapped = peft.get_peft_model(reference, config)
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path)
    merged, _ = with_lora(model, tmp_path / "adapter_model.safetensors")
    expected = theirs(wrapped.eval())
    assert distance(ours(merged), expected) <= 1e-5
    assert distance(ours(model), expected) > 1e-3


@pytest.mark.parametrize("saved", ["transformer with metadata", "transformer without", "the official scripts' copy"])
def test_what_diffusers_saves_gives_the_forward_of_diffusers_and_peft(saved, tmp_path):
    """diffusers' own writers: for a transformer its adapter's configuration goes into the metadata."""
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    reference = tiny_diffusers()
    model = ours_of(reference.state_dict(), dict(reference.config))
    alpha = {"transformer with metadata": 2, "transformer without": 4, "the official scripts' copy": 8}[saved]
    config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=OFFICIAL_TARGETS)
    if saved.startswith("transformer"):
        wrapped = reference
        peft.inject_adapter_in_model(config, reference)
        randomise(reference)
        layers = peft.get_peft_model_state_dict(reference)
        metadata = {"transformer_lora_adapter_metadata": config.to_dict()} if saved.endswith("metadata") else {}
        diffusers.StableDiffusion3Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, **metadata)
    else:
        wrapped = peft.get_peft_model(reference, config)
        randomise(wrapped)
        layers = {f"base_model.model.{k}": v for k, v in peft.get_peft_model_state_dict(reference).items()}
        layers = {k.replace("base_model.model.base_model.model.", "base_model.model."): v for k, v in layers.items()}
        diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    merged, lora = with_lora(model, tmp_path / "pytorch_lora_weights.safetensors")
    assert (
        lora.scale_rule
        == {
            "transformer with metadata": "alpha 2 from lora_adapter_metadata in the file",
            "transformer without": "alpha = rank, since neither the file nor its metadata states one",
            "the official scripts' copy": "PEFT's default alpha 8, for lack of its adapter_config.json beside the file",
        }[saved]
    )
    assert len(lora.transformer) == 27
    assert distance(ours(merged), theirs(wrapped)) <= 1e-5


LYCORIS = ["locon", "loha", "lokr", "lokr_both", "lokr_full", "full", "dora_out", "dora_in", "dokr", "loha_tucker",
           "locon_tucker", "lokr_tucker"]  # fmt: skip


@pytest.mark.parametrize("kind", LYCORIS)
def test_a_file_of_lycoris_gives_the_forward_of_lycoris(kind, tmp_path):
    """As SimpleTuner saves it; tests/data/lora/make.py made the files."""
    base, stored = load_file(DATA / "lora" / "base.safetensors"), load_file(DATA / "lora" / f"{kind}.safetensors")
    weights = {name[2:]: value for name, value in base.items() if name.startswith("w.")}
    inputs = {name[3:]: value for name, value in base.items() if name.startswith("in.")}
    expected = stored.pop("out")
    save_file(stored, tmp_path / "l.safetensors")
    config = {"num_attention_heads": 2, "sample_size": 16, "interpolation_scale": 0.5}
    model = ours_of(weights, config)
    merged, lora = with_lora(model, tmp_path / "l.safetensors")
    assert lora.dialect == "LyCORIS (lycoris_…)"
    assert len({adapter.name for adapter in lora.transformer}) == 13
    assert distance(ours(merged, inputs), expected) <= 1e-5
    assert distance(ours(model, inputs), expected) > 1e-2


def by_hand(module: torch.nn.Module, tensors: dict[str, torch.Tensor], prefix: str, flat: bool) -> int:
    """Add every pair's product to the layer whose name the file holds; how many there were."""
    layers = {(name.replace(".", "_") if flat else name): layer for name, layer in module.named_modules()}
    count = 0
    for name, down in tensors.items():
        for a, b in ((".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")):
            if name.endswith(a):
                stem = name[: -len(a)]
                up = tensors[stem + b].flatten(1)
                alpha = tensors.get(f"{stem}.alpha", torch.tensor(8.0 if "base_model" in prefix else len(down)))
                layer = layers[stem.removeprefix(prefix)]
                layer.weight += (alpha / len(down) * (up @ down.flatten(1))).reshape(layer.weight.shape)
                count += 1
    return count


DOCUMENTED = {
    "lora_onetrainer_legacy_sigma_r16": ("lora_transformer_", True, "diffusers", "OneTrainer (lora_transformer_…)"),
    "lora_onetrainer_diffusers_sigma_r16": ("transformer.", False, "diffusers", "diffusers/PEFT (transformer.…)"),
    "lora_simpletuner_peft_sigma_r16": ("transformer.", False, "diffusers", "diffusers/PEFT (transformer.…)"),
    "lora_peft_sigma_1024_r16": ("base_model.model.", False, "diffusers", "PEFT (base_model.model.…)"),
    "lora_peft_LCM_alpha_1024-MS_r32": ("base_model.model.", False, "diffusers", "PEFT (base_model.model.…)"),
    "lora_kohya_sigma_r16": ("lora_unet_", True, "original", "kohya-style (lora_unet_…)"),
    "lora_comfy_names_sigma_r16": ("diffusion_model.", False, "original", "ComfyUI (diffusion_model.…)"),
    "lora_original_names_sigma_r16": ("", False, "original", "original PixArt names"),
}


@pytest.mark.parametrize("manifest", DOCUMENTED)
def test_a_documented_layout_gives_the_weights_merged_by_hand(manifest, tmp_path):
    prefix, flat, names, dialect = DOCUMENTED[manifest]
    tensors = tiny_file(manifest, tmp_path / "l.safetensors")
    reference = tiny_diffusers("alpha" if "alpha" in manifest else "sigma")
    model = ours_of(reference.state_dict(), dict(reference.config))
    merged, lora = with_lora(model, tmp_path / "l.safetensors")
    assert lora.dialect == dialect
    if names == "diffusers":
        count = by_hand(reference, tensors, prefix, flat)
        expected = to_original(reference.state_dict())
    else:
        expected_model = ours_of(reference.state_dict(), dict(reference.config))
        count = by_hand(expected_model, tensors, prefix, flat)
        expected = expected_model.state_dict()
    assert count == len(lora.transformer) > 0
    state = merged.state_dict()
    assert state.keys() == expected.keys()
    assert max((state[name] - expected[name]).abs().max().item() for name in state) <= 1e-5
    assert any(not torch.equal(state[name], value) for name, value in model.state_dict().items())


TEXT_PREFIXES = ["lora_te_", "lora_te1_", "text_encoder.", "text_encoders.t5xxl.transformer.", "t5."]


@pytest.mark.parametrize("prefix", TEXT_PREFIXES)
def test_every_name_of_the_text_encoder_is_found(prefix, tmp_path):
    path = DATA / "manifests" / "lora_t5_onetrainer_legacy_r16.json.gz"
    listed = [name.removeprefix("lora_te_") for name in json.loads(gzip.decompress(path.read_bytes()))["tensors"]]
    flat = prefix.startswith("lora_")
    tensors = {}
    for name in listed:
        layer, _, role = name.partition(".")
        if not flat:
            for word in ("encoder", "block", "layer", "SelfAttention", "DenseReluDense"):
                layer = layer.replace(f"{word}_", f"{word}.")
            layer = ".".join(re.split(r"\.|(?<=\d)_", layer))
            role = role.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
        tensors[f"{prefix}{layer}.{role}"] = torch.ones(()) if role == "alpha" else torch.ones(2, 2)
    save_file(tensors, tmp_path / "l.safetensors")
    lora = open_lora(tmp_path / "l.safetensors")
    assert (len(lora.text), lora.transformer, lora.leftover) == (168, (), ())
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in {adapter.target for adapter in lora.text}
    assert {adapter.scale for adapter in lora.text} == {0.5}


@pytest.mark.parametrize(
    ("told", "scales", "place"),
    [
        ({"transformer.lora_alpha": 8, "text_encoder.lora_alpha": 2}, (2.0, 0.5), "adapter"),
        ({"text_encoder.lora_alpha": 2}, (1.0, 0.5), "alpha = rank"),
        ({"transformer.lora_alpha": 8, "text_encoder.lora_alpha": 2, "text_encoder.use_rslora": True}, (2.0, 1.0), ""),
        ({"transformer.lora_alpha": 8}, (2.0, 2.0), ""),
    ],
)
def test_the_text_encoders_alpha_is_its_own_where_the_metadata_tells_two(told, scales, place, tmp_path):
    shapes = {"transformer.transformer_blocks.0.attn1.to_q": (144, 144)}
    shapes["text_encoder.encoder.block.0.layer.0.SelfAttention.q"] = (64, 32)
    state = {f"{layer}.lora_A.weight": torch.ones(4, inner) for layer, (_, inner) in shapes.items()}
    state |= {f"{layer}.lora_B.weight": torch.ones(outer, 4) for layer, (outer, _) in shapes.items()}
    save_file(state, tmp_path / "two.safetensors", metadata={"lora_adapter_metadata": json.dumps(told)})
    lora = open_lora(tmp_path / "two.safetensors")
    assert (lora.transformer[0].scale, lora.text[0].scale) == scales
    assert place in lora.scale_rule


def test_a_magnitude_on_a_norm_is_refused_in_words(tmp_path):
    layer = "blocks.0.attn.q_norm"
    state = {f"{layer}.lora_up.weight": torch.ones(144, 2), f"{layer}.lora_down.weight": torch.ones(2, 1)}
    save_file(state | {f"{layer}.dora_scale": torch.ones(7, 1)}, tmp_path / "norm.safetensors")
    with pytest.raises(ValueError, match="another shape"):
        fit(open_lora(tmp_path / "norm.safetensors").transformer, {f"{layer}.weight": (144,)}, "PixArt model")


def test_strength_is_a_factor_and_below_zero_takes_away(tmp_path):
    tiny_file("lora_onetrainer_legacy_sigma_r16", tmp_path / "l.safetensors")
    reference = tiny_diffusers()
    model = ours_of(reference.state_dict(), dict(reference.config))
    base = model.state_dict()
    whole = with_lora(model, tmp_path / "l.safetensors")[0].state_dict()
    half = with_lora(model, tmp_path / "l.safetensors", 0.5)[0].state_dict()
    away = with_lora(model, tmp_path / "l.safetensors", -1.0)[0].state_dict()
    for name in base:
        assert torch.allclose(half[name], (base[name] + whole[name]) / 2, atol=1e-6)
        assert torch.allclose(away[name], 2 * base[name] - whole[name], atol=1e-6)


METADATA_RULES = {
    "the alpha tensors in the file": ({"lora_alpha": "9"}, True, 3.0),
    "alpha 9 from the metadata (lora_alpha)": ({"lora_alpha": "9"}, False, 9.0),
    "alpha 5 from the metadata (pixart_alpha)": ({"pixart_alpha": "5", "pixart_rank": "4"}, False, 5.0),
    "alpha 2 from the metadata (ss_network_alpha)": ({"ss_network_alpha": "2"}, False, 2.0),
    "alpha = rank, since neither the file nor its metadata states one": ({}, False, 4.0),
}


@pytest.mark.parametrize("rule", METADATA_RULES)
def test_the_rule_for_alpha_is_applied_and_told(rule, tmp_path):
    metadata, keep_alpha, expected = METADATA_RULES[rule]
    tensors = tiny_file("lora_onetrainer_legacy_sigma_r16", tmp_path / "l.safetensors")
    kept = {name: value for name, value in tensors.items() if keep_alpha or not name.endswith(".alpha")}
    save_file(kept, tmp_path / "l.safetensors", metadata=metadata)
    lora = open_lora(tmp_path / "l.safetensors")
    assert lora.scale_rule == rule
    assert {adapter.alpha for adapter in lora.transformer} == {expected}


def test_an_adapter_config_of_another_file_in_the_folder_is_left_alone(tmp_path):
    tensors = tiny_file("lora_peft_sigma_1024_r16", tmp_path / "one.safetensors")
    save_file(tensors, tmp_path / "two.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    assert "for lack of" in open_lora(tmp_path / "one.safetensors").scale_rule
    (tmp_path / "two.safetensors").unlink()
    assert open_lora(tmp_path / "one.safetensors").scale_rule == "alpha 16 from adapter_config.json"
    (tmp_path / "one.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    lora = open_lora(tmp_path / "one.safetensors")
    assert lora.scale_rule == "alpha 2 from one.json" and math.isclose(lora.transformer[0].scale, 0.5)


def pair(name: str, out: int = 8, inner: int = 8, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(rank, inner), f"{name}.lora_B.weight": torch.ones(out, rank)}


def flat_pair(name: str, out: int = 8, inner: int = 8) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_down.weight": torch.ones(2, inner), f"{name}.lora_up.weight": torch.ones(out, 2)}


NAN = torch.full((8, 2), float("nan"))
WRONG = {
    "This is a LoRA for SDXL, not for PixArt": flat_pair(
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 640, 2048
    ),
    "This is a LoRA for Stable Diffusion 1.x, not": pair(
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 320, 768
    ),
    "This is a LoRA for Flux or": pair("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072),
    "This is a LoRA for Flux": flat_pair("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072),
    "This is a LoRA for Stable Diffusion 3, not": pair("transformer.transformer_blocks.0.attn.add_k_proj"),
    "This is a LoRA for Wan": pair("diffusion_model.blocks.0.self_attn.q"),
    "This is a LoRA for Sana": pair("transformer.transformer_blocks.0.attn1.to_q")
    | pair("transformer.transformer_blocks.0.ff.conv_inverted"),
    "a CLIP text encoder; PixArt reads captions with T5": flat_pair("lora_te_text_model_encoder_layers_0_mlp_fc1"),
    "No layer of a PixArt transformer or of T5 is named in this file; it names thing.0": pair("thing.0"),
    "The file holds no tensors": {},
    "holds NaN or infinity": {
        "blocks.0.attn.proj.lora_A.weight": torch.ones(2, 8),
        "blocks.0.attn.proj.lora_B.weight": NAN,
    },
    "This is a whole PixArt model, not a LoRA": {"blocks.0.attn.proj.weight": torch.ones(8, 8)},
    "it is incomplete: only lora_down.weight": {"blocks.0.attn.proj.lora_A.weight": torch.ones(2, 8)},
    "lora_up.weight is of rank 3, lora_down.weight of rank 2": {
        "blocks.0.attn.proj.lora_A.weight": torch.ones(2, 8),
        "blocks.0.attn.proj.lora_B.weight": torch.ones(8, 3),
    },
    "change the same weight": pair("blocks.0.attn.proj") | pair("transformer.transformer_blocks.0.attn1.to_out.0"),
    "holds int8 values": {"blocks.0.attn.proj.lora_A.weight": torch.ones(2, 8, dtype=torch.int8)},
    "OFT, GLoRA, IA³ and norm adapters are not read": {"lycoris_blocks_0_attn_proj.oft_blocks": torch.ones(2, 4, 4)},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_file_is_named_with_the_remedy(message, tmp_path):
    path = tmp_path / "wrong.safetensors"
    save_file(WRONG[message], path)
    with pytest.raises(ValueError) as caught:
        open_lora(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_empty_file_and_a_text_file_are_told_apart(tmp_path):
    path = tmp_path / "l.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="The file is empty"):
        open_lora(path)
    path.write_text("<html>")
    with pytest.raises(ValueError, match="web page"):
        open_lora(path)


SHAPES = {
    "blocks.0.scale_shift_table": (6, 8), "blocks.0.attn.proj.weight": (8, 8), "blocks.0.attn.qkv.weight": (24, 8),
    "blocks.1.attn.proj.weight": (8, 8), "blocks.0.mlp.fc1.weight": (32, 8),
}  # fmt: skip
UNFIT = {
    "made for a model of width 1152 (PixArt XL's); this PixArt model is 8 wide": pair("blocks.0.attn.proj", 1152, 1152),
    "made for a model of width 2048 (LTX-Video's)": pair("transformer.transformer_blocks.0.attn1.to_q", 2048, 2048),
    "changes blocks up to number 41, but the PixArt model has 2": pair("blocks.0.attn.proj")
    | pair("blocks.41.attn.proj"),
    "blocks.0.mlp.fc1 is for 16 × 8, the PixArt model's blocks.0.mlp.fc1.weight wants 32 × 8": pair(
        "blocks.0.mlp.fc1", 16
    ),
}


@pytest.mark.parametrize("message", UNFIT)
def test_a_lora_of_another_width_or_depth_is_named_as_such(message, tmp_path):
    save_file(UNFIT[message], tmp_path / "l.safetensors")
    with pytest.raises(ValueError) as caught:
        fit(open_lora(tmp_path / "l.safetensors").transformer, SHAPES, "PixArt model")
    assert message in str(caught.value)


def test_a_layer_that_the_model_lacks_is_told_and_the_rest_fits(tmp_path):
    save_file(pair("blocks.0.attn.qkv", 24) | pair("csize_embedder.mlp.0"), tmp_path / "l.safetensors")
    fitting, absent = fit(open_lora(tmp_path / "l.safetensors").transformer, SHAPES, "PixArt model")
    assert [adapter.name for adapter in fitting] == ["blocks.0.attn.qkv"]
    assert absent == [("csize_embedder.mlp.0", "the PixArt model has no csize_embedder.mlp.0.weight")]
