"""Few-step and reference samplers, thresholding, guidance interval and cascade, in the host's own sampling nodes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    LCMScheduler,
    PixArtSigmaPipeline,
    SASolverScheduler,
)
from diffusers_twin import pipeline_latents, twin

from pixart.checkpoint import load_transformer, open_checkpoint
from pixart.pipeline import BETAS

DEMO = Path(__file__).resolve().parents[2] / "demo" / "pixart-demo-sigma.safetensors"
SEED, TOKENS, CFG = 21, 9, 4.5


@pytest.fixture(scope="module")
def model(pack):
    return import_module(f"{pack.__name__}.nodes.host.model").load_model(str(DEMO))


@pytest.fixture(scope="module")
def captions() -> torch.Tensor:
    return torch.randn(2, 1, TOKENS, 128, generator=torch.Generator().manual_seed(3))


def nodes_of(name: str):
    """One of the host's node modules, with its classes."""
    return import_module(f"comfy_extras.{name}")


def conditioning(embedding: torch.Tensor) -> list:
    return [[embedding, {"pooled_output": None}]]


def result(output) -> tuple:
    return output.result if hasattr(output, "result") else output


def advanced(model, captions, sigmas, sampler, cfg=1.0, latent=None, noise=True, seed=SEED) -> torch.Tensor:
    """Sampler Custom Advanced with the nodes that people connect to it; its latents as the host hands them on."""
    custom = nodes_of("nodes_custom_sampler")
    positive, negative = map(conditioning, captions)
    if cfg == 1:
        (guider,) = result(custom.BasicGuider.execute(model, positive))
    else:
        (guider,) = result(custom.CFGGuider.execute(model, positive, negative, cfg))
    (noise,) = result(custom.RandomNoise.execute(seed) if noise else custom.DisableNoise.execute())
    latent = {"samples": torch.zeros(1, 4, 16, 16)} if latent is None else latent
    out = result(custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent))
    return out[0]["samples"]


def run(node_classes, node_id: str, *args, **kwargs) -> tuple:
    return result(node_classes[node_id].execute(*args, **kwargs))


def in_model_scale(model, latents: torch.Tensor) -> torch.Tensor:
    return model.model.process_latent_in(latents)


def diffusers_latents(captions, scheduler, steps: int, cfg: float) -> torch.Tensor:
    """The same through diffusers' pipeline, from the same seed."""
    ours = load_transformer(open_checkpoint(DEMO), dtype=torch.float32)
    return pipeline_latents(PixArtSigmaPipeline, twin(ours), scheduler, captions, steps, cfg, SEED)


def test_lcm_in_four_steps_draws_what_diffusers_draws_from_the_same_seed(model, captions, node_classes):
    patched, sigmas, sampler = run(node_classes, "PixArtFewStep", model, "lcm", 4)
    ours = in_model_scale(model, advanced(patched, captions, sigmas, sampler))
    theirs = diffusers_latents(captions, LCMScheduler(**BETAS), 4, 1.0)
    difference = (ours - theirs).abs().max().item()
    print(f"LCM in the host: largest difference {difference:.2e}")
    assert difference <= 1e-4


def test_dmd_starts_from_unit_noise_at_timestep_400(model, captions, node_classes):
    """The published formula; the host's own turbo scheduler and sampler miss it."""
    patched, sigmas, sampler = run(node_classes, "PixArtFewStep", model, "dmd", 1)
    ours = in_model_scale(model, advanced(patched, captions, sigmas, sampler))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(SEED))
    transformer = load_transformer(open_checkpoint(DEMO), dtype=torch.float32)
    predicted = transformer(noise, torch.tensor([400.0]), captions[0])
    published = (noise - 0.8980133575472881 * predicted) / 0.43996819165326784
    difference = (ours - published).abs().max().item()

    custom = nodes_of("nodes_custom_sampler")
    (turbo,) = result(custom.SDTurboScheduler.execute(model, 1, 0.4))
    (euler,) = result(custom.KSamplerSelect.execute("euler"))
    missed = (in_model_scale(model, advanced(model, captions, turbo, euler)) - published).abs().max().item()
    print(f"DMD in the host: largest difference {difference:.2e}; the host's own scheduler {missed:.2e}")
    assert difference <= 1e-5
    assert missed > 0.05


@pytest.mark.parametrize(
    ("method", "scheduler"),
    [("dpm-solver++", DPMSolverMultistepScheduler), ("sa-solver", SASolverScheduler)],
)
def test_reference_sampling_draws_what_the_official_pipeline_draws(model, captions, node_classes, method, scheduler):
    sigmas, sampler = run(node_classes, "PixArtReferenceSampling", method, 20)
    ours = in_model_scale(model, advanced(model, captions, sigmas, sampler, cfg=CFG))
    theirs = diffusers_latents(captions, scheduler(**BETAS), 20, CFG)
    difference = (ours - theirs).abs().max().item()
    print(f"{method} in the host: largest difference {difference:.2e}")
    assert difference <= 1e-3


def test_no_steps_are_taken_at_denoise_0(model, captions, node_classes):
    sigmas, sampler = run(node_classes, "PixArtReferenceSampling", "dpm-solver++", 20, 0.0)
    latent = {"samples": torch.randn(1, 4, 16, 16)}
    assert torch.equal(advanced(model, captions, sigmas, sampler, latent=latent), latent["samples"])


def test_a_latent_that_is_not_empty_begins_a_one_step_model_where_the_host_would(model, captions, node_classes):
    """Image to image: the picture and its noise at timestep 400."""
    patched, sigmas, sampler = run(node_classes, "PixArtFewStep", model, "nitro", 2)
    picture = torch.randn(1, 4, 16, 16)
    one, other = ({"samples": picture * scale} for scale in (1.0, 2.0))
    drawn = [advanced(patched, captions, sigmas, sampler, latent=latent) for latent in (one, other)]
    assert (drawn[0] - drawn[1]).abs().max() > 0.01


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_thresholding_bounds_a_strongly_guided_picture_and_leaves_an_unguided_one(model, captions, node_classes, mode):
    sigmas, sampler = run(node_classes, "PixArtReferenceSampling", "dpm-solver++", 6)
    reference = {"samples": torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(9)) * 9}
    reference = None if mode == "static" else reference
    (bounded,) = run(node_classes, "PixArtDynamicThresholding", model, mode, 99.0, reference)
    plain, kept = (advanced(m, captions, sigmas, sampler, cfg=25.0) for m in (model, bounded))
    unguided = advanced(model, captions, sigmas, sampler)
    print(f"{mode}: spread {unguided.std():.2f} unguided, {plain.std():.2f} at cfg 25, {kept.std():.2f} with the node")
    assert kept.std() < 0.7 * plain.std()
    assert torch.equal(unguided, advanced(bounded, captions, sigmas, sampler))


def test_thresholding_keeps_to_the_range_of_reference_latents(model, captions, node_classes):
    """Static, at the full range: no value of the last prediction is outside of what the reference holds."""
    sigmas, sampler = run(node_classes, "PixArtReferenceSampling", "dpm-solver++", 6)
    reference = {"samples": torch.rand(3, 4, 16, 16) * 4 - 2}
    (bounded,) = run(node_classes, "PixArtDynamicThresholding", model, "static", 100.0, reference)
    drawn = advanced(bounded, captions, sigmas, sampler, cfg=25.0)
    low, high = (reference["samples"].movedim(1, 0).flatten(1).aminmax(dim=1)[i][:, None, None] for i in (0, 1))
    assert (drawn[0] >= low - 1e-4).all() and (drawn[0] <= high + 1e-4).all()


def test_a_reference_of_another_latent_space_or_none_for_dynamic_is_refused(model, node_classes):
    with pytest.raises(ValueError, match="to reference, or choose the mode static"):
        run(node_classes, "PixArtDynamicThresholding", model, "dynamic", 99.5)
    with pytest.raises(ValueError, match="16, 8, 8.*encode the pictures with the VAE"):
        run(node_classes, "PixArtDynamicThresholding", model, "static", 99.5, {"samples": torch.zeros(1, 16, 8, 8)})


def counted(patcher) -> tuple:
    """A clone of the MODEL that notes the batch of every forward."""
    from comfy.patcher_extension import WrappersMP

    batches = []

    def note(executor, x, *args, **kwargs):
        batches.append(len(x))
        return executor(x, *args, **kwargs)

    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note)
    return clone, batches


def test_outside_of_the_guidance_interval_only_the_positive_is_computed(model, captions, node_classes):
    watched, batches = counted(model)
    sigmas, sampler = run(node_classes, "PixArtReferenceSampling", "dpm-solver++", 10)
    (limited,) = run(node_classes, "PixArtGuidanceInterval", watched, 0.25, 0.75)
    drawn = advanced(limited, captions, sigmas, sampler, cfg=CFG)
    # Timesteps 999, 899, 799 | 699, 599, 500, 400, 300 | 200, 100; the interval is 749 to 250.
    assert batches == [1, 1, 1, 2, 2, 2, 2, 2, 1, 1]
    assert not torch.allclose(drawn, advanced(model, captions, sigmas, sampler, cfg=CFG), atol=1e-3)


def test_the_whole_guidance_interval_changes_nothing_and_an_empty_one_is_no_guidance(model, captions, node_classes):
    sigmas, sampler = run(node_classes, "PixArtReferenceSampling", "dpm-solver++", 5)
    (whole,) = run(node_classes, "PixArtGuidanceInterval", model, 0.0, 1.0)
    assert torch.equal(
        advanced(whole, captions, sigmas, sampler, cfg=CFG), advanced(model, captions, sigmas, sampler, cfg=CFG)
    )
    (none,) = run(node_classes, "PixArtGuidanceInterval", model, 0.5, 0.5)
    unguided = advanced(model, captions, sigmas, sampler)
    assert torch.allclose(advanced(none, captions, sigmas, sampler, cfg=CFG), unguided, atol=1e-4)
    with pytest.raises(ValueError, match="end_percent"):
        run(node_classes, "PixArtGuidanceInterval", model, 0.5, 0.4)


def forwards_of(patcher, captions, sigmas, sampler) -> tuple[torch.Tensor, int]:
    watched, batches = counted(patcher)
    return advanced(watched, captions, sigmas, sampler, cfg=CFG), sum(batches)


@pytest.mark.parametrize(
    ("module", "node", "values", "extra"),
    [
        ("nodes_pag", "PerturbedAttentionGuidance", {"scale": 3.0}, 6),
        (
            "nodes_slg",
            "SkipLayerGuidanceDiT",
            {"scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "double_layers": "2", "single_layers": ""},
            6,
        ),
        ("nodes_model_advanced", "RescaleCFG", {"multiplier": 0.7}, 0),
        ("nodes_apg", "APG", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0}, 0),
        ("nodes_tcfg", "TCFG", {}, 0),
        ("nodes_cfg", "CFGZeroStar", {}, 0),
    ],
)
def test_the_hosts_guidance_nodes_reach_our_blocks(model, captions, node_classes, module, node, values, extra):
    """Each changes the picture; those that perturb blocks take a forward more a step, and that forward differs."""
    sigmas, sampler = run(node_classes, "PixArtReferenceSampling", "dpm-solver++", 6)
    plain, before = forwards_of(model, captions, sigmas, sampler)
    kind = getattr(nodes_of(module), node)
    call = kind.execute if hasattr(kind, "execute") else kind().patch
    patched = result(call(model, **values))[0]
    guided, after = forwards_of(patched, captions, sigmas, sampler)
    print(f"{node}: mean change {(guided - plain).abs().mean():.4f}, {after - before} forwards more")
    assert (guided - plain).abs().mean() > 1e-3
    assert after - before == extra


def test_a_cascade_keeps_the_picture_at_little_noise_and_draws_anew_at_all(model, captions, node_classes):
    sigmas, sampler = run(node_classes, "PixArtReferenceSampling", "dpm-solver++", 6)
    first = {"samples": advanced(model, captions, sigmas, sampler, cfg=CFG)}
    distances = []
    for level in (0.0, 0.1, 0.4, 1.0):
        latent, levels, width, height = run(
            node_classes, "PixArtUpscaleLatent", model, first, "scale", 2.0, level, 5, 6
        )
        assert (width, height) == (256, 256) and latent["samples"].shape[-2:] == (32, 32)
        second = advanced(model, captions, levels, sampler, cfg=CFG, latent=latent, noise=False)
        plain = torch.nn.functional.interpolate(first["samples"], scale_factor=2, mode="bicubic")
        distances.append((second - plain).abs().mean().item())
    print("distance from the plain upscale at 0, 0.1, 0.4, 1: " + ", ".join(f"{d:.3f}" for d in distances))
    assert distances[0] == 0 and distances == sorted(distances)


def test_the_second_pass_begins_at_the_noise_that_was_added(model, node_classes):
    zeros = {"samples": torch.full((1, 4, 16, 16), 0.5)}
    latent, sigmas, _, _ = run(node_classes, "PixArtUpscaleLatent", model, zeros, "scale", 4.0, 0.5, 5, 10)
    noise = in_model_scale(model, latent["samples"]) - in_model_scale(model, torch.tensor(0.5))
    print(f"noise {noise.std():.4f} for σ = {sigmas[0]:.4f}")
    assert abs(noise.std().item() / sigmas[0].item() - 1) < 0.02
    timestep = model.model.model_sampling.timestep(sigmas[:1]).item()
    assert timestep == 500  # half of 999, and the model is told so
    assert sigmas[-1] == 0 and len(sigmas) == 11
    assert torch.equal(zeros["samples"], torch.full((1, 4, 16, 16), 0.5))


def test_a_base_as_target_gives_a_trained_size_of_the_latents_shape(model, node_classes):
    wide = {"samples": torch.zeros(1, 4, 12, 20)}
    latent, _, width, height = run(node_classes, "PixArtUpscaleLatent", model, wide, "256", 2.0, 0.3, 0, 4)
    assert (width, height) == (336, 192) or width / height == pytest.approx(20 / 12, rel=0.1)
    assert latent["samples"].shape[-2:] == (height // 8, width // 8)
    with pytest.raises(ValueError, match="larger target"):
        run(node_classes, "PixArtUpscaleLatent", model, {"samples": torch.zeros(1, 4, 64, 64)}, "256", 2.0, 0.3, 0, 4)
