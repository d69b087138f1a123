"""The demo's two LoRAs draw what they were trained for, through our loader and through the host's own."""

from __future__ import annotations

import random
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torchvision.utils import make_grid, save_image

from pixart.evaluation.prompts import read_prompts
from pixart.training.demo.captions import SHAPES, random_scene
from pixart.training.demo.concept import CONCEPT, JUDGED, PICTURES, asked, contexts
from pixart.training.demo.judge import mistakes

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
SHEETS = ROOT / "output" / "test-pictures"
SUBJECT, LCM = "pixart-demo-lora.safetensors", "pixart-demo-lcm-lora.safetensors"
SEED, STEPS, CFG = 20240309, 20, 4.5


@pytest.fixture(scope="module")
def models(pack):
    import comfy.sd
    import comfy.utils

    model = import_module(f"{pack.__name__}.nodes.host.model").load_model(str(DEMO / "pixart-demo-sigma.safetensors"))
    clip = import_module(f"{pack.__name__}.nodes.host.text").load_clip(str(DEMO / "pixart-demo-t5.safetensors"))
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(DEMO / "pixart-demo-vae.safetensors")))
    return model, clip, vae


def encode(clip, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def draw(model, models, prompt: str, seed: int) -> torch.Tensor:
    """A picture (3, H, W) in [0, 1]."""
    import comfy.sample

    latent = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, seed)
    captions = encode(models[1], prompt), encode(models[1], "")
    samples = comfy.sample.sample(model, noise, STEPS, CFG, "dpmpp_2m", "normal", *captions, latent, seed=seed)
    return models[2].decode(samples)[0].movedim(-1, 0).clamp(0, 1)


def with_lora(node_classes, model, name: str, strength: float = 1.0):
    return node_classes["PixArtLoadLora"].execute(model, name, strength, 1.0)


def test_the_subject_is_drawn_where_it_was_never_seen_and_the_rest_is_kept(models, node_classes, host_version):
    """20 places and backgrounds that were not among its ten pictures, and 20 old prompts; 6 on older hosts.

    Right: shape, colour, place and background.
    """
    count = 20 if host_version >= (0, 33) else 6
    model = with_lora(node_classes, models[0], SUBJECT).result[0]
    new = random.Random(SEED).sample(contexts(seed=11)[PICTURES:], count)
    rng = random.Random(SEED)
    old = [random_scene(rng) for _ in range(count)]

    def right(patched, scenes, sheet: str = "") -> int:
        prompts = [asked(scene) if scene.shape == CONCEPT else scene.caption() for scene in scenes]
        pictures = [draw(patched, models, prompt, SEED + i) for i, prompt in enumerate(prompts)]
        if sheet:
            SHEETS.mkdir(parents=True, exist_ok=True)
            save_image(make_grid(pictures, nrow=10), SHEETS / f"{sheet}-{'.'.join(map(str, host_version))}.png")
        pairs = zip(scenes, pictures, strict=True)
        return sum(not set(mistakes(s, p, (*SHAPES, CONCEPT))) & set(JUDGED) for s, p in pairs)

    before, after = right(models[0], new), right(model, new, "lora-new")
    kept_before, kept_after = right(models[0], old), right(model, old, "lora-old")
    print(f"of {count}: the subject {before} → {after}, old prompts {kept_before} → {kept_after}")
    assert before <= count // 10
    assert after >= 0.85 * count
    assert kept_after >= 0.9 * kept_before


@pytest.mark.parametrize("name", [SUBJECT, LCM])
def test_the_hosts_own_loader_draws_the_same_with_it(models, node_classes, name):
    import nodes

    prompt = "a cross on the left, white background"
    theirs, _ = nodes.LoraLoader().load_lora(models[0], models[1], name, 1.0, 1.0)
    ours = with_lora(node_classes, models[0], name).result[0]
    difference = (draw(theirs, models, prompt, 3) - draw(ours, models, prompt, 3)).abs().max().item()
    print(f"{name}: largest difference of the pictures {difference:.2e}")
    assert difference <= 1e-5
    assert (draw(ours, models, prompt, 3) - draw(models[0], models, prompt, 3)).abs().mean() > 0.01


def test_four_steps_with_the_lcm_lora_draw_nearly_what_twenty_do(models, node_classes, host_version):
    """The prompts of demo/prompts.csv, 40 or 8: at most a tenth fewer are right than without it in 20 steps."""
    custom = import_module("comfy_extras.nodes_custom_sampler")
    judge = import_module("pixart.evaluation.judges").named("demo")
    prompts = [prompt.text for prompt in read_prompts(DEMO / "prompts.csv")]
    prompts = prompts if host_version >= (0, 33) else prompts[::5]

    def result(output) -> tuple:
        return output.result if hasattr(output, "result") else output

    model = with_lora(node_classes, models[0], LCM).result[0]
    patched, sigmas, sampler = node_classes["PixArtFewStep"].execute(model, "lcm", 4).result
    scores = {"twenty": 0, "four": 0}
    pictures = []
    for i, prompt in enumerate(prompts):
        (guider,) = result(custom.BasicGuider.execute(patched, encode(models[1], prompt)))
        (noise,) = result(custom.RandomNoise.execute(SEED + i))
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        out = result(custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent))[0]
        pictures.append(models[2].decode(out["samples"])[0].movedim(-1, 0).clamp(0, 1))
        drawn = {"four": pictures[-1], "twenty": draw(models[0], models, prompt, SEED + i)}
        for name, picture in drawn.items():
            scores[name] += judge(prompt, picture)[0] == 1
    SHEETS.mkdir(parents=True, exist_ok=True)
    save_image(make_grid(pictures, nrow=10), SHEETS / f"lcm-{'.'.join(map(str, host_version))}.png")
    print(f"of {len(prompts)} right: 20 steps {scores['twenty']}, 4 steps {scores['four']}")
    assert scores["four"] >= scores["twenty"] - len(prompts) // 10
