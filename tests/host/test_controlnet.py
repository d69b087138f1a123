"""ControlNet through the host's own apply node and sampler, on the demo."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
CHECKPOINT, ENCODER, AUTOENCODER, CONTROL = (
    DEMO / f"pixart-demo-{part}.safetensors" for part in ("sigma", "t5", "vae", "controlnet")
)
STEPS, CFG, SEED = 4, 4.5, 3
PROMPT = "a large red circle on the left, blue background"


@pytest.fixture(scope="module")
def host_nodes(pack):
    return import_module(f"{pack.__name__}.nodes.host.control"), import_module(f"{pack.__name__}.nodes.host.model")


@pytest.fixture(scope="module")
def models(pack, host_nodes):
    import comfy.sd
    import comfy.utils

    clip = import_module(f"{pack.__name__}.nodes.host.text").load_clip(str(ENCODER))
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(AUTOENCODER)))
    return host_nodes[1].load_model(str(CHECKPOINT)), clip, vae


@pytest.fixture
def control(host_nodes):
    return host_nodes[0].load_control(str(CONTROL))


def encode(clip, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def ring(count: int = 1, size: int = 128) -> torch.Tensor:
    """White rings on black, (B, H, W, 3), each at another place."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pictures = [
        ((torch.hypot(x - size * (0.7 - 0.15 * i), y - size * 0.5) - size * 0.2).abs() < 1).float() for i in range(count)
    ]
    return torch.stack(pictures)[..., None].expand(-1, -1, -1, 3)


def draw(models, applied=None, batch: int = 1, model=None, cfg: float = CFG, size=(16, 16)) -> torch.Tensor:
    """Latents; ``applied`` turns the two conditionings into those with ControlNet."""
    import comfy.sample

    positive, negative = encode(models[1], PROMPT), encode(models[1], "")
    if applied is not None:
        positive, negative = applied(positive, negative)
    latent = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(latent, SEED)
    return comfy.sample.sample(
        model or models[0], noise, STEPS, cfg, "euler", "normal", positive, negative, latent, seed=SEED
    )


def apply(models, control, image=None, strength: float = 1.0, start: float = 0.0, end: float = 1.0, vae=True):
    import nodes

    def applied(positive, negative):
        return nodes.ControlNetApplyAdvanced().apply_controlnet(
            positive, negative, control, ring() if image is None else image, strength, start, end,
            models[2] if vae else None,
        )  # fmt: skip

    return applied


def test_strength_and_range_are_the_hosts(models, control):
    plain = draw(models)
    full = draw(models, apply(models, control))
    assert torch.equal(draw(models, apply(models, control, strength=0.0)), plain)
    assert not torch.allclose(full, plain, atol=1e-2)
    half = draw(models, apply(models, control, strength=0.5))
    assert not torch.allclose(half, full, atol=1e-3) and not torch.allclose(half, plain, atol=1e-3)
    early = draw(models, apply(models, control, end=0.5))
    late = draw(models, apply(models, control, start=0.5))
    assert not torch.equal(early, late) and not torch.equal(early, full)
    assert torch.equal(draw(models), plain)  # nothing is left behind


def test_untrained_projections_change_nothing(models, host_nodes, tmp_path):
    from safetensors import safe_open

    with safe_open(CONTROL, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: torch.zeros_like(t) if "_proj" in name.split(".")[2] else t for name, t in load_file(CONTROL).items()}
    save_file(tensors, tmp_path / "zero.safetensors", metadata)
    zero = host_nodes[0].load_control(str(tmp_path / "zero.safetensors"))
    assert torch.equal(draw(models, apply(models, zero)), draw(models))


def test_two_nets_add_up_and_one_forward_serves_both_prompts(models, control, host_nodes):
    second = host_nodes[0].load_control(str(CONTROL))

    def both(positive, negative):
        positive, negative = apply(models, control, strength=0.6)(positive, negative)
        return apply(models, second, image=ring(2)[1:], strength=0.4)(positive, negative)

    calls = []
    model = models[0].clone()
    model.set_model_unet_function_wrapper(
        lambda run, args: calls.append(args["input"].shape[0]) or run(args["input"], args["timestep"], **args["c"])
    )
    out = draw(models, both, model=model)
    assert calls == [2] * STEPS  # a prompt of 11 tokens and an empty one in one batch
    assert torch.isfinite(out).all()
    assert not torch.allclose(out, draw(models, apply(models, control, strength=0.6)), atol=1e-3)


def test_a_batch_of_hints_gives_each_picture_its_own(models, control):
    rings = ring(3)
    together = draw(models, apply(models, control, image=rings), batch=3)
    same = draw(models, apply(models, control, image=rings[:1]), batch=3)
    assert (together[:1] - same[:1]).abs().max() < 1e-2  # of latents around 50: batches round otherwise
    assert (together[1:] - same[1:]).abs().amax(dim=(1, 2, 3)).min() > 1


def test_a_hint_of_another_size_and_an_odd_latent(models, control):
    out = draw(models, apply(models, control, image=ring(size=200)), size=(17, 13))
    assert out.shape == (1, 4, 17, 13) and torch.isfinite(out).all()


def test_without_a_vae_the_host_says_so(models, control):
    with pytest.raises(ValueError, match="(?i)needs a VAE"):
        draw(models, apply(models, control, vae=False))


def test_the_wrong_base_is_named(models, host_nodes, tmp_path):
    from safetensors import safe_open

    with safe_open(CONTROL, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(CONTROL), tmp_path / "alpha.safetensors", metadata | {"pixart.family": "alpha"})
    wrong = host_nodes[0].load_control(str(tmp_path / "alpha.safetensors"))
    with pytest.raises(ValueError, match="alpha.safetensors is for PixArt-α.*pixart-demo-sigma.safetensors is PixArt-Σ"):
        draw(models, apply(models, wrong))
    assert torch.isfinite(draw(models)).all()  # and the next prompt works


def test_a_lora_on_the_base_reaches_the_block_that_the_controlnet_sees(models, control):
    model = models[0].clone()
    weight = models[0].model.diffusion_model.blocks[0].mlp.fc2.weight
    model.add_patches({"diffusion_model.blocks.0.mlp.fc2.weight": (torch.full_like(weight, 0.02),)}, 1.0)
    plain, patched = draw(models, apply(models, control)), draw(models, apply(models, control), model=model)
    assert not torch.allclose(plain, patched, atol=1e-4)
    assert torch.equal(draw(models, apply(models, control)), plain)
