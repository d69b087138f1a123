"""Workflows in API format on the demo model, put together from what a test needs."""

from __future__ import annotations

import hashlib

from demo_files import CHECKPOINT, CONTROLNET, T5, VAE
from PIL import Image

PROMPT = "a small red star on the left, blue background"
SIDE = 128
MOST_TOKENS, LAST_STEP = 300, 10000

Graph = dict[str, dict]


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def text_to_image(
    nonce: int = 0,
    *,
    checkpoint: str = CHECKPOINT,
    t5: str = T5,
    prompt: str = PROMPT,
    seed: int = 1,
    steps: int = 4,
    size: tuple[int, int] = (SIDE, SIDE),
    batch: int = 1,
    cfg: float = 4.5,
) -> Graph:
    """Ends with the picture in node "9". ``nonce`` makes the host encode and sample anew without changing either.

    Captions of the demo are far shorter than the limit of tokens, and there are no steps that late, so that
    both may be lower by the nonce.
    """
    return {
        "1": node("PixArtLoadCheckpoint", ckpt_name=checkpoint, weight_dtype="auto", variant="auto"),
        "2": node("PixArtLoadT5", t5_name=t5, dtype="auto", device="auto"),
        "3": node("VAELoader", vae_name=VAE),
        "4": node("PixArtTextEncode", clip=["2", 0], text=prompt, max_tokens=MOST_TOKENS - nonce, clean_caption=False),
        "5": node("PixArtTextEncode", clip=["2", 0], text="", max_tokens=MOST_TOKENS - nonce, clean_caption=False),
        "6": node("EmptyLatentImage", width=size[0], height=size[1], batch_size=batch),
        "7": node(
            "KSamplerAdvanced",
            model=["1", 0],
            positive=["4", 0],
            negative=["5", 0],
            latent_image=["6", 0],
            add_noise="enable",
            noise_seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name="dpmpp_2m",
            scheduler="normal",
            start_at_step=0,
            end_at_step=LAST_STEP - nonce,
            return_with_leftover_noise="disable",
        ),
        "8": node("VAEDecode", samples=["7", 0], vae=["3", 0]),
        "9": node("PreviewImage", images=["8", 0]),
    }


def with_model(graph: Graph, name: str, kind: str, **inputs) -> Graph:
    """A node that takes the MODEL that the sampler has, and hands it on."""
    sampler = graph["7"]["inputs"]
    graph[name] = node(kind, model=sampler["model"], **inputs)
    sampler["model"] = [name, 0]
    return graph


def with_lora(graph: Graph, lora: str, strength: float = 1.0) -> Graph:
    return with_model(graph, "lora", "PixArtLoadLora", lora_name=lora, strength_model=strength, strength_clip=strength)


def with_control(graph: Graph, hint: str, net: str = CONTROLNET, strength: float = 1.0) -> Graph:
    """hint: a picture in the input folder."""
    sampler = graph["7"]["inputs"]
    graph["hint"] = node("LoadImage", image=hint)
    graph["net"] = node("PixArtLoadControlNet", control_net_name=net)
    graph["control"] = node(
        "ControlNetApplyAdvanced",
        positive=sampler["positive"],
        negative=sampler["negative"],
        control_net=["net", 0],
        image=["hint", 0],
        strength=strength,
        start_percent=0.0,
        end_percent=1.0,
        vae=["3", 0],
    )
    sampler["positive"], sampler["negative"] = ["control", 0], ["control", 1]
    return graph


def digest(pictures: list[Image.Image]) -> str:
    """SHA-256 of the pixels, in hexadecimal."""
    total = hashlib.sha256()
    for picture in pictures:
        total.update(f"{picture.size} {picture.mode}".encode() + picture.tobytes())
    return total.hexdigest()
