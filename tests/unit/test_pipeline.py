"""Prompt to picture with no host, on tiny models."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from pixart import pipeline as module
from pixart.__main__ import main
from pixart.checkpoint import config_metadata
from pixart.config import PixArtConfig
from pixart.noise import NoiseSchedule
from pixart.pipeline import (
    Captions,
    PixArtPipeline,
    first_noise,
    load_autoencoder,
    nearest_timesteps,
    official_scheduler,
    sigma_scheduler,
)
from pixart.training.demo import text
from pixart.training.demo.autoencoder import to_taesd
from pixart.training.initialise import initialise
from pixart.transformer import PixArtTransformer

SIGMA = PixArtConfig(
    hidden_size=48,
    depth=2,
    num_heads=4,
    mlp_hidden_size=96,
    caption_channels=32,
    base_size=4,
    pe_interpolation=0.125,
)
ALPHA = PixArtConfig(
    family="alpha",
    hidden_size=48,
    depth=2,
    num_heads=4,
    mlp_hidden_size=96,
    caption_channels=32,
    max_caption_tokens=120,
    base_size=64,
    pe_interpolation=2.0,
    micro_condition=True,
)
PROMPTS = ["a small red star on the left, blue background", "a star", "a large circle"]


def transformer(config: PixArtConfig) -> PixArtTransformer:
    """Random weights throughout: those that training starts from zero would make captions of no effect."""
    generator = torch.Generator().manual_seed(0)
    model = initialise(PixArtTransformer(config), generator).requires_grad_(False).eval()
    model.y_embedder.y_embedding.normal_(generator=generator)
    for layer in (model.final_layer.linear, *(block.cross_attn.proj for block in model.blocks)):
        layer.weight.normal_(std=0.1, generator=generator)
    return model


def random_weights(model, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            parameter.data *= 0.75  # so that pictures are not black and white alone
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint, a T5 with its tokenizer inside, and a TAESD, as files; "alpha" is a second checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    names = ("sigma", "alpha", "t5", "vae", "bare_t5")
    paths = {name: folder / f"{name}.safetensors" for name in names}
    for name, config in (("sigma", SIGMA), ("alpha", ALPHA)):
        save_file(transformer(config).state_dict(), paths[name], metadata=config_metadata(config))
    tokenizer = text.train_tokenizer(0)
    (folder / "spiece.model").write_bytes(tokenizer)
    paths["tokenizer"] = folder / "spiece.model"
    config = T5Config(
        vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(0)
    state = T5EncoderModel(config).state_dict()
    state = {name: value.clone() for name, value in state.items() if not name.endswith("embed_tokens.weight")}
    save_file(state, paths["bare_t5"])
    save_file(state | {"spiece_model": torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)}, paths["t5"])
    scale = {"vae_scale": torch.tensor(0.13025), "vae_shift": torch.tensor(0.0)}
    save_file(to_taesd(random_weights(AutoencoderTiny())) | scale, paths["vae"])
    return paths


@pytest.fixture(scope="module")
def sigma(files) -> PixArtPipeline:
    return PixArtPipeline.load(files["sigma"], files["t5"], files["vae"])


@pytest.fixture(scope="module")
def alpha(files) -> PixArtPipeline:
    return PixArtPipeline.load(files["alpha"], files["t5"], files["vae"])


def watch(layer: torch.nn.Module) -> tuple[list, object]:
    """The positional arguments of every forward of ``layer``, and the handle that ends the watch."""
    calls: list = []
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    return calls, handle


# Captions


def test_prompts_in_a_batch_are_encoded_as_each_alone(sigma):
    together = sigma.encode(PROMPTS)
    assert together.embeddings.shape == (3, max(together.tokens), 32)
    assert len(set(together.tokens)) == 3
    for index, prompt in enumerate(PROMPTS):
        alone = sigma.encode([prompt])
        length = together.tokens[index]
        assert alone.tokens == (length,)
        assert together.mask[index].tolist() == [1] * length + [0] * (max(together.tokens) - length)
        assert torch.allclose(together.embeddings[index, :length], alone.embeddings[0], atol=1e-5)
        assert together.embeddings[index, length:].abs().sum() == 0
    assert together.embeddings[0].abs().max() > 0.1


def test_equal_prompts_of_a_batch_are_encoded_once(sigma):
    calls, handle = watch(sigma.t5)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    together = sigma.encode(prompts)
    handle.remove()
    assert sum(kwargs["input_ids"].shape[0] for _, kwargs in calls) == 2
    for index, prompt in enumerate(prompts):
        alone = sigma.encode([prompt])
        assert torch.allclose(together.embeddings[index, : alone.tokens[0]], alone.embeddings[0], atol=1e-5)
    assert torch.equal(together.embeddings[0], together.embeddings[3])


def test_no_padding_enters_the_text_encoder(sigma):
    calls, handle = watch(sigma.t5)
    sigma.encode([*PROMPTS, "a blue star"])
    handle.remove()
    shapes = sorted(tuple(kwargs["input_ids"].shape) for _, kwargs in calls)
    assert sum(rows for rows, _ in shapes) == 4
    assert all((kwargs["input_ids"] != 0).all() for _, kwargs in calls)
    assert all((kwargs["input_ids"][:, -1] == 1).all() for _, kwargs in calls)


def test_the_empty_prompt_is_one_token(sigma):
    assert sigma.encode([""]).tokens == (1,)


def test_a_long_prompt_is_cut_to_the_checkpoints_budget_and_the_loss_is_told(sigma, alpha, caplog):
    prompt = "red star, " * 200
    with caplog.at_level(logging.WARNING):
        short, long = alpha.encode([prompt]), sigma.encode([prompt])
    assert (short.tokens, long.tokens) == ((120,), (300,))
    assert prompt.endswith(short.lost[0]) and len(short.lost[0]) > len(long.lost[0]) > 0
    assert len(caplog.records) == 2 and "cut to 120" in caplog.records[0].getMessage()
    assert sigma.encode(["a star"]).lost == ("",)


def test_max_tokens_overrides_the_budget(sigma):
    assert sigma.encode([PROMPTS[0]], max_tokens=5).tokens == (5,)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        sigma.encode(["a star"], max_tokens=0)


def test_cleaning_is_applied_when_asked_for(sigma):
    clean = sigma.encode(["A <b>red</b> STAR https://example.com/x"], clean=True)
    assert torch.equal(clean.embeddings, sigma.encode(["a red star"]).embeddings)
    dirty = sigma.encode(["A <b>red</b> STAR https://example.com/x"])
    assert dirty.tokens[0] > clean.tokens[0]


# Sampling


def test_guidance_is_one_forward_a_step_over_both_captions(sigma):
    positive, negative = sigma.encode([PROMPTS[0]]), sigma.encode([""])
    calls, handle = watch(sigma.transformer)
    sigma.sample(positive, negative, height=64, width=64, steps=3)
    sigma.sample(positive, negative, height=64, width=64, steps=3, cfg=1)
    handle.remove()
    assert [args[0].shape[0] for args, _ in calls] == [2, 2, 2, 1, 1, 1]
    mask = calls[0][0][3]
    assert mask.sum(dim=1).tolist() == [positive.tokens[0], 1]


def test_prompts_of_unequal_length_do_not_change_each_others_pictures(sigma):
    positive, negative = sigma.encode(PROMPTS), sigma.encode([""])
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    together = sigma.sample(positive, negative, height=64, width=64, steps=4, noise=noise)
    for index, prompt in enumerate(PROMPTS):
        one = sigma.sample(
            sigma.encode([prompt]), negative, height=64, width=64, steps=4, noise=noise[index : index + 1]
        )
        assert (together[index] - one[0]).abs().max() < 1e-3 * one.abs().max()
    assert (together[0] - together[1]).abs().max() > 0.1


def reference_dpmpp_2m(denoise, x, sigmas):
    """DPM-Solver++(2M), Lu et al. 2211.01095, algorithm 2, in the variance-exploding space of k-diffusion."""
    previous = None
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[i])
        best = denoised
        if previous is not None and sigmas[i + 1] > 0:
            r = (sigmas[i - 1].log() - sigmas[i].log()) / (sigmas[i].log() - sigmas[i + 1].log())
            best = (1 + 1 / (2 * r)) * denoised - previous / (2 * r)
        ratio = sigmas[i + 1] / sigmas[i]
        x = ratio * x + (1 - ratio) * best
        previous = denoised
    return x


def log_linear(first: float, last: float, count: int) -> torch.Tensor:
    return torch.linspace(first, last, count, dtype=torch.float64).exp().float()


@pytest.mark.parametrize(
    ("sigmas", "full"),
    [
        (torch.cat([log_linear(5.0588, -4.6, 20), torch.zeros(1)]), True),
        (torch.cat([log_linear(1.0, -4.6, 6), torch.zeros(1)]), False),
        (log_linear(5.0588, -1.0, 7), True),
        (torch.tensor([20.0, 5.0, 1.0, 0.3, 0.1, 0.03, 0.0115, 0.01, 0.0]), False),
    ],
    ids=["whole", "starts late", "stops early", "steps that share a timestep"],
)
def test_given_sigmas_are_sampled_as_dpmpp_2m(sigma, sigmas, full):
    positive, negative = sigma.encode([PROMPTS[0]]), sigma.encode([""])
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))

    def denoise(x, level):
        scaled = x / (1 + level**2).sqrt()
        t = nearest_timesteps(level[None]).float()
        out = [sigma.transformer(scaled, t, c.embeddings) for c in (positive, negative)]
        return x - level * (out[1] + 4.5 * (out[0] - out[1]))

    start = noise * (1 + sigmas[0] ** 2).sqrt() if full else noise * sigmas[0]
    wanted = reference_dpmpp_2m(denoise, start, sigmas)
    found = sigma.sample(positive, negative, height=64, width=96, noise=noise, sigmas=sigmas)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_default_timesteps_are_the_official_ones():
    steps = official_scheduler(20).timesteps.tolist()
    assert steps == [999, 949, 899, 849, 799, 749, 699, 649, 599, 549, 500, 450, 400, 350, 300, 250, 200, 150, 100, 50]
    scheduler = official_scheduler(20)
    assert (scheduler.config.algorithm_type, scheduler.config.solver_order) == ("dpmsolver++", 2)
    assert scheduler.sigmas[0].item() == pytest.approx(157.407, abs=1e-2)
    assert scheduler.sigmas[-1].item() == 0.0


def test_a_sigma_is_told_to_the_model_as_the_nearest_timestep():
    table = NoiseSchedule().snr.rsqrt().float()
    assert nearest_timesteps(table).tolist() == list(range(1000))
    assert nearest_timesteps(torch.tensor([1e4, 157.407, 0.010001, 1e-6])).tolist() == [999, 999, 0, 0]
    between = (table[500].log() * 0.6 + table[501].log() * 0.4).exp()
    assert nearest_timesteps(between[None]).tolist() == [500]


def test_noise_is_scaled_only_where_the_schedule_starts_late():
    noise = torch.ones(1, 4, 2, 2)
    assert torch.equal(first_noise(noise, torch.tensor(157.407)), noise)
    assert first_noise(noise, torch.tensor(1.0))[0, 0, 0, 0].item() == pytest.approx(0.70711, abs=1e-5)


def test_a_seed_draws_the_noise_that_the_host_draws(sigma):
    noise = sigma.initial_noise(2, 64, 96, 11, None)
    torch.manual_seed(11)
    assert torch.equal(noise, torch.randn(2, 4, 8, 12))
    captions = sigma.encode(["a star"]), sigma.encode([""])
    seeded = sigma.sample(*captions, height=64, width=96, steps=2, seed=11)
    torch.manual_seed(11)
    given = sigma.sample(*captions, height=64, width=96, steps=2, noise=torch.randn(1, 4, 8, 12))
    assert torch.equal(seeded, given)


def test_alpha_is_told_the_size_and_ratio_of_the_picture(alpha):
    captions = alpha.encode(["a star"]), alpha.encode([""])
    calls, handle = watch(alpha.transformer)
    alpha.sample(*captions, height=64, width=96, steps=1)
    handle.remove()
    size, ratio = calls[0][0][4:6]
    assert size.tolist() == [[64.0, 96.0]]
    assert ratio.tolist() == [[pytest.approx(2 / 3)]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"height": 60}, r"64 x 60 is not possible.*multiples of 8"),
        ({"height": 0}, r"64 x 0 is not possible"),
        ({"noise": torch.zeros(1, 4, 8, 9)}, r"\(1, 4, 8, 9\).*need \(1, 4, 8, 8\)"),
        ({"noise": torch.zeros(1, 4, 8, 8), "seed": 1}, r"Both seed and noise"),
        ({"steps": 0}, r"steps is 0"),
        ({"sigmas": torch.tensor([1.0, 2.0, 0.0])}, r"falling row"),
        ({"sigmas": torch.tensor([1.0, -1.0])}, r"not negative"),
        ({"sigmas": torch.tensor([1.0])}, r"at least two"),
    ],
)
def test_settings_that_do_not_fit_are_named(sigma, wrong, message):
    settings = {"height": 64, "width": 64, "steps": 1} | wrong
    with pytest.raises(ValueError, match=message):
        sigma.sample(sigma.encode(["a star"]), sigma.encode([""]), **settings)


def test_negative_captions_must_be_one_for_all_or_one_each(sigma):
    with pytest.raises(ValueError, match="2 negative captions for 3 prompts"):
        sigma.sample(sigma.encode(PROMPTS), sigma.encode(["", "a"]), height=64, width=64, steps=1)


# Autoencoders


def unit_latents(channels: int = 4) -> torch.Tensor:
    return torch.randn(1, channels, 4, 6, generator=torch.Generator().manual_seed(2))


def test_pictures_are_rows_columns_and_colours_in_0_to_1(sigma):
    pictures = sigma.decode(unit_latents())
    assert pictures.shape == (1, 32, 48, 3)
    assert 0 <= pictures.min() < 0.4 and 0.6 < pictures.max() <= 1
    model = random_weights(AutoencoderTiny())
    wanted = (model.decode(unit_latents()).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert torch.allclose(pictures, wanted, atol=1e-5)


def test_a_taesd_without_scale_decodes_the_hosts_latents(tmp_path):
    model = random_weights(AutoencoderTiny())
    save_file(to_taesd(model), tmp_path / "taesd.safetensors")
    found = load_autoencoder(tmp_path / "taesd.safetensors", 0.13025).decode(unit_latents())
    assert torch.allclose(found, (model.decode(unit_latents()).sample / 2 + 0.5).clamp(0, 1), atol=1e-6)


def test_a_taesd_needs_no_encoder_but_all_of_its_decoder(tmp_path):
    state = to_taesd(AutoencoderTiny())
    decoder = {name: value for name, value in state.items() if name.startswith("taesd_decoder.")}
    save_file(decoder, tmp_path / "decoder.safetensors")
    load_autoencoder(tmp_path / "decoder.safetensors", 0.13025)
    del decoder["taesd_decoder.3.conv.0.weight"]
    save_file(decoder, tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=r"damaged\.safetensors.*1 weights are missing.*decoder\.layers\.2"):
        load_autoencoder(tmp_path / "damaged.safetensors", 0.13025)


def test_a_diffusers_taesd_folder_takes_the_transformers_latents(tmp_path):
    model = random_weights(AutoencoderTiny())
    model.save_pretrained(tmp_path)
    found = load_autoencoder(tmp_path, 0.13025).decode(unit_latents() / 0.13025)
    assert torch.allclose(found, (model.decode(unit_latents()).sample / 2 + 0.5).clamp(0, 1), atol=1e-5)


TO_ORIGINAL = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def original_names(model: AutoencoderKL) -> dict[str, torch.Tensor]:
    """SD's names for an AutoencoderKL; its attention projections are 1 × 1 convolutions there."""
    state = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in TO_ORIGINAL:
            name = re.sub(pattern, replacement, name)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        state[name] = tensor[:, :, None, None].contiguous() if convolution else tensor
    return state


@pytest.mark.parametrize("form", ["original file", "diffusers file", "whole checkpoint", "folder"])
def test_sd_autoencoders_are_read_in_every_form(form, tmp_path, monkeypatch):
    small = {**module.KL_CONFIG, "block_out_channels": (32, 32, 32, 64)}
    monkeypatch.setattr(module, "KL_CONFIG", small)
    model = random_weights(AutoencoderKL(**small))
    path = tmp_path / "vae.safetensors"
    if form == "original file":
        save_file(original_names(model), path)
    elif form == "diffusers file":
        save_file(model.state_dict(), path)
    elif form == "whole checkpoint":
        save_file({f"first_stage_model.{name}": value for name, value in original_names(model).items()}, path)
    else:
        path = tmp_path / "vae"
        model.save_pretrained(path)
    found = load_autoencoder(path, 0.13025).decode(unit_latents())
    wanted = (model.decode(unit_latents()).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert wanted.std() > 0.01


def test_a_file_that_is_no_autoencoder_is_named(files, tmp_path):
    with pytest.raises(ValueError, match=r"t5\.safetensors is no SD or SDXL autoencoder"):
        load_autoencoder(files["t5"], 0.13025)
    with pytest.raises(ValueError, match=r"No autoencoder at .*missing"):
        load_autoencoder(tmp_path / "missing", 0.13025)


def test_the_autoencoder_keeps_float32_under_float16(files):
    pipeline = PixArtPipeline.load(files["sigma"], files["t5"], files["vae"], dtype=torch.float16)
    assert pipeline.dtype == torch.float16
    assert pipeline.autoencoder.model.dtype == torch.float32


# All of it


def test_a_prompt_becomes_a_picture_of_the_checkpoints_size(sigma):
    pictures = sigma(PROMPTS[:2], steps=2, seed=4)
    assert [picture.size for picture in pictures] == [(64, 64), (64, 64)]
    assert np.array(pictures[0]).std() > 1
    again = sigma(PROMPTS[:2], steps=2, seed=4)
    assert np.array_equal(np.array(pictures[0]), np.array(again[0]))
    assert not np.array_equal(np.array(pictures[0]), np.array(sigma(PROMPTS[:2], steps=2, seed=5)[0]))
    assert not np.array_equal(np.array(pictures[0]), np.array(sigma(PROMPTS[:2], "red", steps=2, seed=4)[0]))


def test_bfloat16_runs_and_stays_near_float32(files, sigma):
    half = PixArtPipeline.load(files["sigma"], files["t5"], files["vae"], dtype=torch.bfloat16)
    settings = {"height": 64, "width": 64, "steps": 2, "seed": 0}
    found, wanted = (p.sample(p.encode(["a star"]), p.encode([""]), **settings) for p in (half, sigma))
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_text_encoder_of_another_width_is_refused(sigma):
    t5 = T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=4))
    with pytest.raises(ValueError, match="text encoder is 16 wide.*captions of 32"):
        PixArtPipeline(sigma.transformer, t5, sigma.tokenizer, sigma.autoencoder)


def test_a_text_encoder_without_tokenizer_takes_one_from_a_file(files, sigma, tmp_path):
    with pytest.raises(ValueError, match=r"bare_t5\.safetensors brings no tokenizer.*spiece\.model"):
        PixArtPipeline.load(files["sigma"], files["bare_t5"], files["vae"])
    for place in (files["tokenizer"], files["tokenizer"].parent):
        pipeline = PixArtPipeline.load(files["sigma"], files["bare_t5"], files["vae"], tokenizer=place)
        assert torch.equal(pipeline.encode(["a star"]).embeddings, sigma.encode(["a star"]).embeddings)
    with pytest.raises(ValueError, match="No tokenizer at .*nowhere"):
        PixArtPipeline.load(files["sigma"], files["bare_t5"], files["vae"], tokenizer=tmp_path / "nowhere")


def test_captions_count_their_prompts():
    assert len(Captions(torch.zeros(3, 2, 8), torch.ones(3, 2), (2, 2, 2), ("", "", ""))) == 3


def test_two_sigmas_may_share_a_timestep():
    scheduler = sigma_scheduler(torch.tensor([157.4, 157.39, 0.0]))
    assert scheduler.timesteps.tolist() == [999, 999]


# The command


def arguments(files, out, *more: str) -> list[str]:
    models = ["--checkpoint", str(files["sigma"]), "--t5", str(files["t5"]), "--vae", str(files["vae"])]
    return ["a small red star", "--out", str(out), "--steps", "2", *models, *more]


def test_the_command_writes_the_picture_and_says_where(files, sigma, tmp_path, capsys):
    out = tmp_path / "new" / "star.png"
    assert main(arguments(files, out, "--seed", "3", "--width", "96", "--height", "64")) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as picture:
        assert picture.size == (96, 64)
        wanted = sigma("a small red star", steps=2, seed=3, width=96, height=64)[0]
        assert np.array_equal(np.array(picture), np.array(wanted))


def test_the_command_fails_in_one_line_without_a_traceback(files, tmp_path):
    # A process of its own: what a person sees includes whatever libraries print.
    out = tmp_path / "never.png"
    command = [sys.executable, "-m", "pixart", *arguments(files, out, "--width", "100")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(module.__file__).parent.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pixart: A picture of 100 x 64 is not possible: both sides must be multiples of 8.\n"
    assert not out.exists()


def test_the_command_leaves_an_old_picture_whole_when_the_disk_is_full(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "star.png"
    out.write_bytes(b"old")

    def full(picture, file, format=None):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(arguments(files, out)) == 2
    assert "star.png could not be written" in capsys.readouterr().err
    assert out.read_bytes() == b"old" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("name", "format"), [("star.jpg", "JPEG"), ("star.WEBP", "WEBP")])
def test_the_command_writes_the_format_that_the_name_asks_for(files, tmp_path, name, format):
    assert main(arguments(files, tmp_path / name, "--width", "64", "--height", "64")) == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "star"))] == [name]
    with Image.open(tmp_path / name) as picture:
        assert picture.format == format


@pytest.mark.parametrize(("name", "found"), [("star.psd", "The ending .psd"), ("star", "A name without an ending")])
def test_the_command_refuses_a_name_that_is_no_pictures_before_it_draws(files, tmp_path, capsys, name, found):
    assert main(arguments(files, tmp_path / name, "--checkpoint", "nowhere.safetensors")) == 2
    assert f"{found} does not say how to write a picture. Name it .png, .jpg or .webp." in capsys.readouterr().err


def test_the_command_names_a_model_file_that_is_not_there(files, tmp_path, capsys):
    for setting in ("--checkpoint", "--t5", "--vae", "--tokenizer"):
        missing = str(tmp_path / f"nowhere{setting}.safetensors")
        assert main(arguments(files, tmp_path / "never.png", setting, missing)) == 2
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1
        assert missing in said.err
