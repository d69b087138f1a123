"""Every known layout of a PixArt transformer is recognised from shapes and statements, never from a name."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from pixart.checkpoint import config_metadata, detect_config
from pixart.checkpoint.keys import plan_keys
from pixart.checkpoint.loading import _expected_shapes
from pixart.config import PixArtConfig

MANIFESTS = Path(__file__).parents[1] / "data" / "manifests"

# name: family, depth, base size, interpolation, size conditioning, caption tokens, null caption in the file
KNOWN = {
    "alpha_orig_256x256": ("alpha", 28, 16, 1.0, False, 120, True),
    "alpha_orig_SAM-256x256": ("alpha", 28, 16, 1.0, False, 120, True),
    "alpha_orig_512x512": ("alpha", 28, 32, 1.0, False, 120, True),
    "alpha_orig_512-MS_unreleased": ("alpha", 28, 32, 1.0, True, 120, True),
    "alpha_orig_1024-MS": ("alpha", 28, 64, 2.0, True, 120, True),
    "alpha_diffusers_256x256": ("alpha", 28, 16, 1.0, False, 120, True),
    "alpha_diffusers_SAM-256x256": ("alpha", 28, 16, 1.0, False, 120, True),
    "alpha_diffusers_512x512": ("alpha", 28, 32, 1.0, False, 120, True),
    "alpha_diffusers_DMD-512x512": ("alpha", 28, 32, 1.0, False, 120, False),
    "alpha_diffusers_1024-MS": ("alpha", 28, 64, 2.0, True, 120, True),
    "alpha_diffusers_LCM-1024-MS": ("alpha", 28, 64, 2.0, True, 120, False),
    # The Σ 256 and 512 files hold nothing that tells their size: 64 is the stated default.
    "sigma_orig_256x256": ("sigma", 28, 64, 2.0, False, 300, True),
    "sigma_orig_512-MS": ("sigma", 28, 64, 2.0, False, 300, True),
    "sigma_orig_1024-MS": ("sigma", 28, 64, 2.0, False, 300, True),
    "sigma_orig_2K-MS": ("sigma", 28, 128, 4.0, False, 300, True),
    "sigma_orig_900M-depth42_community": ("sigma", 42, 64, 2.0, False, 300, True),
    "sigma_diffusers_256x256": ("sigma", 28, 16, 0.5, False, 300, False),
    "sigma_diffusers_512-MS": ("sigma", 28, 32, 1.0, False, 300, False),
    "sigma_diffusers_1024-MS": ("sigma", 28, 64, 2.0, False, 300, False),
    "sigma_diffusers_2K-MS": ("sigma", 28, 128, 4.0, False, 300, False),
    "sigma_diffusers_900M-depth42_community": ("sigma", 42, 64, 2.0, False, 300, False),
    "community_fp16_sigma_256x256_safetensors": ("sigma", 28, 64, 2.0, False, 300, True),
    "community_fp16_sigma_512-MS_safetensors": ("sigma", 28, 64, 2.0, False, 300, True),
    "community_fp16_sigma_1024-MS_safetensors": ("sigma", 28, 64, 2.0, False, 300, True),
    "community_fp16_sigma_2K-MS_safetensors": ("sigma", 28, 128, 4.0, False, 300, True),
    "onetrainer_full_export_alpha": ("alpha", 28, 64, 2.0, True, 120, False),
    "onetrainer_full_export_sigma": ("sigma", 28, 64, 2.0, False, 300, False),
}


def read_manifest(name: str) -> tuple[dict[str, tuple[int, ...]], dict | None]:
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        manifest = json.load(file)
    return {key: tuple(shape) for key, (shape, _) in manifest["tensors"].items()}, manifest.get("config")


def summary(config: PixArtConfig) -> tuple:
    return (
        config.family, config.depth, config.base_size, config.pe_interpolation,
        config.micro_condition, config.max_caption_tokens, config.null_caption,
    )  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_layout_is_recognised(name):
    shapes, config_json = read_manifest(name)
    config, evidence = detect_config(shapes, None, config_json)
    assert summary(config) == KNOWN[name]
    assert (config.hidden_size, config.num_heads, config.mlp_hidden_size) == (1152, 16, 4608)
    assert (config.patch_size, config.in_channels, config.out_channels, config.caption_channels) == (2, 4, 8, 4096)
    assert len(evidence) >= 5


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model.", "base_model.", "module."])
@pytest.mark.parametrize("name", KNOWN)
def test_every_key_of_a_known_layout_is_explained(name, prefix):
    shapes, config_json = read_manifest(name)
    shapes = {prefix + key: shape for key, shape in shapes.items()}
    plan = plan_keys(shapes)
    config, _ = detect_config(shapes, None, config_json)
    assert plan.prefix == prefix
    assert plan.dialect == ("diffusers" if "diffusers" in name else "original")
    assert (plan.unexplained, plan.companions, plan.missing(shapes)) == ((), (), [])
    assert set(plan.sources) == set(_expected_shapes(config))


def test_manifests_without_an_expectation_are_not_transformers_or_not_supported():
    names = {file.name.removesuffix(".json.gz") for file in MANIFESTS.iterdir()}
    others = names - set(KNOWN)
    assert len(KNOWN) == 27 and len(others) == 27
    assert not [name for name in others if "_orig_" in name and "unreleased" not in name and "controlnet" not in name]


def tiny_shapes(**changes) -> dict[str, tuple[int, ...]]:
    config = PixArtConfig(**({"hidden_size": 144, "num_heads": 2, "depth": 2, "mlp_hidden_size": 576} | changes))
    return _expected_shapes(config)


def without_null(**changes) -> dict[str, tuple[int, ...]]:
    return tiny_shapes(null_caption=False, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 3, "hidden_size": 216, "num_heads": 3, "mlp_hidden_size": 500},
        {"hidden_size": 144, "num_heads": 4, "base_size": 8, "pe_interpolation": 0.25, "caption_channels": 64},
        {"family": "alpha", "micro_condition": True, "null_caption": False, "max_caption_tokens": 77},
        {"micro_condition": True, "null_caption": False, "base_size": 180, "pe_interpolation": 5.625},
        {"in_channels": 16, "out_channels": 32, "patch_size": 1, "max_caption_tokens": 64},
        {"out_channels": 4, "family": "alpha", "max_caption_tokens": 120, "base_size": 16, "pe_interpolation": 1.0},
    ],
    ids=str,
)
def test_any_config_comes_back_from_its_shapes_and_metadata(changes):
    base = PixArtConfig(hidden_size=144, num_heads=2, depth=2, mlp_hidden_size=576)
    config = PixArtConfig(**{**vars(base), **changes})
    assert detect_config(_expected_shapes(config), config_metadata(config))[0] == config


def test_rows_of_the_null_caption_outweigh_statements():
    shapes = tiny_shapes(max_caption_tokens=120)
    pipeline = {"_pipeline_class_name": "PixArtSigmaPipeline"}
    config, evidence = detect_config(shapes, {"pixart.family": "sigma"}, pipeline)
    assert config.family == "alpha"
    assert "α: y_embedder.y_embedding has 120 rows." in evidence


@pytest.mark.parametrize(
    "metadata, config_json, family, reason",
    [
        ({"pixart.family": "alpha"}, None, "alpha", "pixart.family in the metadata is alpha"),
        ({"modelspec.architecture": "pixart-alpha"}, None, "alpha", "modelspec.architecture"),
        ({"modelspec.architecture": "PixArt-Sigma"}, None, "sigma", "modelspec.architecture"),
        ({"pixart.family": "sigma"}, {"sample_size": 64}, "alpha", "states no interpolation_scale"),
        (None, {"sample_size": 64, "interpolation_scale": 1}, "sigma", "states interpolation_scale"),
        (None, {"sample_size": 128}, "sigma", "size conditioning"),
        (None, {"sample_size": 64, "_pipeline_class_name": "PixArtSigmaPipeline"}, "sigma", "model_index.json"),
        (None, {"_pipeline_class_name": "PixArtAlphaPipeline"}, "alpha", "model_index.json"),
    ],
)
def test_family_is_read_from_statements_in_order(metadata, config_json, family, reason):
    config, evidence = detect_config(without_null(), metadata, config_json)
    assert config.family == family
    assert any(reason in sentence for sentence in evidence)


def test_size_conditioning_alone_means_alpha():
    config, evidence = detect_config(without_null(micro_condition=True))
    assert (config.family, config.base_size, config.pe_interpolation) == ("alpha", 64, 2.0)
    assert "α: size conditioning, which no released Σ has." in evidence


def test_sigma_with_size_conditioning_is_believed_when_stated():
    config, _ = detect_config(without_null(micro_condition=True), {"pixart.family": "sigma"})
    assert (config.family, config.micro_condition) == ("sigma", True)


def test_a_guess_is_logged_with_its_reason(caplog):
    with caplog.at_level(logging.WARNING):
        config, evidence = detect_config(without_null())
    assert config.family == "sigma"
    assert [s for s in evidence if s.startswith("Guessed Σ: nothing in the file tells the family")]
    assert len([s for s in evidence if s.startswith("Guessed")]) == len(caplog.records) == 2


def test_no_guess_is_logged_when_the_file_tells_all(caplog):
    shapes, _ = read_manifest("sigma_orig_2K-MS")
    with caplog.at_level(logging.WARNING):
        detect_config(shapes)
    assert caplog.records == []


def test_users_choice_wins_over_a_guess_and_over_statements():
    assert detect_config(without_null(), family="alpha")[0].family == "alpha"
    config, evidence = detect_config(without_null(), {"pixart.family": "sigma"}, family="alpha")
    assert config.family == "alpha"
    assert "α: chosen by hand." in evidence


@pytest.mark.parametrize("rows, chosen, right", [(300, "alpha", "sigma"), (120, "sigma", "alpha")])
def test_users_choice_against_the_weights_is_refused(rows, chosen, right):
    with pytest.raises(ValueError, match=f"to {chosen}, but y_embedder.y_embedding has {rows} rows.*or {right}"):
        detect_config(tiny_shapes(max_caption_tokens=rows), family=chosen)


def test_alpha_without_size_conditioning_defaults_to_512():
    config, _ = detect_config(without_null(), family="alpha")
    assert (config.base_size, config.pe_interpolation, config.native_pixels) == (32, 1.0, 512)


def test_grid_length_of_a_trainers_export_is_left_aside_where_no_such_model_exists():
    shapes = without_null() | {"pos_embed": (1, 4096, 144)}
    config, evidence = detect_config(shapes, {"modelspec.architecture": "pixart-alpha"})
    assert (config.base_size, config.pe_interpolation) == (32, 1.0)
    assert any("OneTrainer" in sentence for sentence in evidence)


def test_grid_that_is_no_square_is_left_aside():
    config, evidence = detect_config(tiny_shapes() | {"pos_embed": (1, 1000, 144)}, {"pixart.base_size": "16"})
    assert config.base_size == 16
    assert any("not a square grid" in sentence for sentence in evidence)


def test_stored_grid_length_outweighs_config_json():
    config, _ = detect_config(tiny_shapes() | {"pos_embed": (1, 1024, 144)}, None, {"sample_size": 256})
    assert config.base_size == 32


def test_early_sigma_1024_config_is_not_read_as_alpha():
    shapes, config_json = read_manifest("sigma_diffusers_1024-MS")
    early = {k: v for k, v in config_json.items() if k not in ("interpolation_scale", "use_additional_conditions")}
    config, _ = detect_config(shapes, None, early)
    assert summary(config) == ("sigma", 28, 64, 2.0, False, 300, False)


def test_silent_interpolation_of_a_sigma_256_follows_the_family_not_diffusers_default():
    config, _ = detect_config(without_null(), None, {"sample_size": 32, "_pipeline_class_name": "PixArtSigmaPipeline"})
    assert (config.base_size, config.pe_interpolation) == (16, 0.5)


def test_blocks_are_counted_not_read_from_config_json():
    shapes, config_json = read_manifest("sigma_diffusers_900M-depth42_community")
    assert detect_config(shapes, None, config_json | {"num_layers": 28})[0].depth == 42


BAD_STATEMENTS = [
    ({"pixart.num_heads": "zwei"}, None, "pixart.num_heads in the metadata is 'zwei'"),
    ({"pixart.num_heads": "0"}, None, "must be a whole number above 0"),
    ({"pixart.num_heads": "7"}, None, "does not divide the width 144"),
    ({"pixart.base_size": "-8"}, None, "pixart.base_size in the metadata is '-8'"),
    ({"pixart.pe_interpolation": "nan"}, None, "must be a number above 0"),
    ({"pixart.pe_interpolation": "inf"}, None, "must be a number above 0"),
    ({"pixart.family": "beta"}, None, "pixart.family in the metadata is 'beta'; it must be alpha or sigma"),
    (None, {"num_attention_heads": True}, "num_attention_heads in config.json is 'True'"),
    (None, {"num_attention_heads": [2]}, "num_attention_heads in config.json"),
    (None, {"sample_size": "many", "interpolation_scale": 1}, "sample_size in config.json is 'many'"),
    (None, {"interpolation_scale": 10**400}, "interpolation_scale in config.json"),
]


@pytest.mark.parametrize("metadata, config_json, message", BAD_STATEMENTS)
def test_statements_that_make_no_sense_are_refused_with_their_place(metadata, config_json, message):
    with pytest.raises(ValueError) as error:
        detect_config(without_null(), metadata, config_json)
    assert message in str(error.value)


def test_width_that_is_no_multiple_of_72_needs_a_statement():
    shapes = _expected_shapes(PixArtConfig(hidden_size=48, num_heads=4, depth=1))
    with pytest.raises(ValueError, match="the width 48 is not a multiple of 72.*pixart.num_heads"):
        detect_config(shapes)
    assert detect_config(shapes, {"pixart.num_heads": "4"})[0].num_heads == 4
    assert detect_config(shapes, {"pixart.num_heads": "4"}, {"num_attention_heads": 2})[0].num_heads == 2


@pytest.mark.parametrize(
    "name, ratios, qk_norm",
    [
        ("sigma_orig_1024-MS_kvcompress_unreleased", (1,) * 14 + (2,) * 14, False),
        ("sigma_orig_2K-MS_kvcompress_unreleased", (1,) * 14 + (2,) * 14, False),
        ("sigma_orig_1024-MS_qknorm_unreleased", (), True),
    ],
)
def test_compression_and_norms_of_attention_are_read_from_the_weights(name, ratios, qk_norm):
    config, evidence = detect_config(read_manifest(name)[0])
    assert (config.kv_ratios, config.qk_norm) == (ratios, qk_norm)
    said = "qk_norm: the" if qk_norm else "Keys and values compressed 2 × 2 in blocks 14–27: these hold attn.sr."
    assert any(line.startswith(said) for line in evidence)


def test_control_model_with_eight_input_channels_is_named():
    with pytest.raises(ValueError, match="takes 8 channels: this is a control model"):
        detect_config(tiny_shapes(in_channels=8))


def test_a_gap_in_the_blocks_is_named():
    shapes = {key: shape for key, shape in tiny_shapes(depth=4).items() if not key.startswith("blocks.2.")}
    with pytest.raises(ValueError, match="Block 2 is missing, though there are blocks up to 3"):
        detect_config(shapes)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="must be auto, alpha or sigma, not 'gamma'"):
        detect_config(tiny_shapes(), family="gamma")
