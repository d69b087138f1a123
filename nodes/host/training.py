"""Training inside the host: its text encoder and VAE make the features, its bar and previews show how it goes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ...pixart import names
from ...pixart.checkpoint import open_checkpoint
from ...pixart.text.provenance import check_t5
from ...pixart.training import features as cache
from ...pixart.training.pictures import Example, concerns
from ...pixart.training.settings import TrainSettings
from . import text as t5
from .model import PixArtModel, pixart_model

STATES = "pixart_training"
"""Folder below the output folder for the states that interrupted trainings go on from."""

PREVIEW_PIXELS = 768

PRECISIONS = ("auto", "fp32", "bf16")


def precision_for(choice: str) -> str:
    """What “auto” stands for: bf16 where the device computes in it at full speed."""
    if choice != "auto":
        return choice
    return "bf16" if comfy.model_management.should_use_bf16(comfy.model_management.get_torch_device()) else "fp32"


@dataclass(frozen=True)
class Trained:
    """name: of the LoRA as the loaders list it; pictures: every preview (B, H, W, 3), in the order of training."""

    name: str
    path: Path
    report: str
    pictures: torch.Tensor


def examples_from(images: Sequence[torch.Tensor], captions: Sequence[str], prior: bool = False) -> list[Example]:
    """Pictures of one or more IMAGE batches (B, H, W, C) with a caption each.

    captions: one text whose lines are captions, or several texts; as many as pictures, or one for all.
    Raises ValueError when the numbers do not fit, and as ``Example`` does.
    """
    what = "class_images" if prior else "images"
    pictures = [picture for batch in images for picture in batch]
    if not pictures:
        raise ValueError(f"{what} is empty: connect pictures.")
    texts = captions[0].splitlines() if len(captions) == 1 else list(captions)
    texts = [text.strip() for text in texts if text.strip()] if len(captions) == 1 else texts
    texts = texts or [""]
    blank = next((number for number, text in enumerate(texts, start=1) if not text.strip()), None)
    if blank is not None:
        raise ValueError(
            f"Picture {blank} of {what} has no caption: write one into {'class_captions' if prior else 'captions'}, "
            "a line for each picture or one line for all."
        )
    if len(texts) not in (1, len(pictures)):
        raise ValueError(
            f"{what} has {len(pictures)} pictures, and there are {len(texts)} captions for them: give one caption a "
            "line, as many as pictures and in their order, or a single one for all."
        )
    texts *= len(pictures) // len(texts)
    return [
        Example(on_white(picture), text, f"Picture {number} of {what}", prior)
        for number, (picture, text) in enumerate(zip(pictures, texts, strict=True), start=1)
    ]


def on_white(picture: torch.Tensor) -> torch.Tensor:
    """(H, W, 3 or 4) → (3, H, W), in memory of its own; what is transparent becomes white."""
    picture = picture.float().cpu().movedim(-1, 0)
    if picture.shape[0] == 4:
        picture = picture[:3] * picture[3:] + 1 - picture[3:]
    return picture[:3].clamp(0, 1).clone()


def text_encoder(clip, model: PixArtModel):
    """Captions through the host's CLIP: real tokens only, checked to be what the checkpoint was trained with."""

    def encode(text: str) -> torch.Tensor:
        limit = model.pixart.config.max_caption_tokens
        tokens, count, _ = t5.cut(clip, text, limit)
        caption, values = clip.encode_from_tokens_scheduled(tokens)[0]
        model.check_caption(caption)
        check_t5(model.pixart.t5, t5.carried(clip, text, min(count, limit))[t5.PROVENANCE], model.pixart.name)
        mask = values.get("attention_mask")
        return caption[0] if mask is None else caption[0][mask.reshape(-1).bool()[: caption.shape[1]]]

    return encode


def picture_encoder(vae, model: PixArtModel, seed: int):
    """Pictures through the host's VAE to the transformer's scale; what the VAE draws at random comes from ``seed``."""

    def encode(picture: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            latent = vae.encode(picture.movedim(0, -1)[None])
        channels = model.pixart.config.in_channels
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise ValueError(
                f"The VAE gives latents of shape {list(latent.shape)}, and {model.pixart.name} works on {channels} "
                "channels: connect SD's VAE for α, SDXL's for Σ."
            )
        return model.process_latent_in(latent)[0]

    return encode


def train_lora(
    model,
    clip,
    vae,
    examples: Sequence[Example],
    previews: Sequence[str],
    settings: TrainSettings,
    lora_name: str,
    trigger: str,
) -> Trained:
    """Train a LoRA on the checkpoint that a MODEL was loaded from; the file lies in the host's folder of LoRAs.

    The texts are encoded first. Then every model of the host leaves the card, T5 among them, and a copy of the
    transformer of its own is trained. Raises ValueError for what does not fit together, and lets the host's interrupt
    through once the last update is saved.
    """
    from ...pixart.training.trainer import Trainer, make_accelerator  # needs a package that drawing does not

    pixart = pixart_model(model)
    if model.patches:
        raise ValueError(
            "This MODEL carries changes to its weights, such as a LoRA, and training starts from the file alone: "
            "connect PixArt Load Checkpoint directly. To train on top of a LoRA, save the merged model as a checkpoint "
            "first."
        )
    management = comfy.model_management
    name = safe_name(lora_name)
    accelerator = make_accelerator(management.is_device_cpu(management.get_torch_device()))
    checkpoint = open_checkpoint(pixart.pixart.path, pixart.pixart.config.family)
    resolution = settings.resolution or checkpoint.config.native_pixels
    features = cache.compute(
        examples, lambda: text_encoder(clip, pixart), picture_encoder(vae, pixart, settings.seed), resolution, previews
    )
    management.unload_all_models()
    management.soft_empty_cache()

    digests = [example.digest() for example in examples]
    run = settings.identity([str(checkpoint.path.stat().st_size), feature_digest(features), *digests])
    file = free_path(Path(folder_paths.get_folder_paths("loras")[0]), name, run)
    bar, shown = comfy.utils.ProgressBar(settings.steps), []

    def on_preview(step: int, latents: torch.Tensor) -> None:
        with torch.inference_mode():  # as the host runs its VAE
            shown.append(vae.decode(pixart.process_latent_out(latents)).float().cpu())

    seen = 0

    def on_step(progress) -> None:
        nonlocal seen
        preview = None
        if len(shown) > seen:
            seen, preview = len(shown), ("JPEG", side_by_side(shown[-1]), PREVIEW_PIXELS)
        bar.update_absolute(progress.step, progress.steps, preview)
        losses.append(progress.loss)
        management.throw_exception_if_processing_interrupted()

    losses: list[float] = []
    # The host runs nodes without gradients; what is made in that mode can never have one.
    with torch.inference_mode(False), torch.enable_grad():
        trainer = Trainer(
            checkpoint,
            features,
            settings,
            state_folder(name),
            run,
            accelerator=accelerator,
            name=name,
            file=file,
            trigger=trigger,
            replace=True,
        )
        done = trainer.step
        trainer.train(on_step, on_preview)
        modules = len(trainer.adapters)
        if not shown and features.previews:  # nothing was left to train
            on_preview(done, trainer.preview())
    lines = [f"{file.name}: {modules} layers, rank {settings.rank}, {settings.steps} updates"]
    if done:
        lines.append(f"went on from update {done}")
    if losses:
        share = max(1, len(losses) // 10)
        first, last = (sum(part) / share for part in (losses[:share], losses[-share:]))
        lines.append(f"loss {first:.4f} → {last:.4f} (means of the first and last {share} updates)")
    lines += concerns(examples, trigger)
    pictures = torch.cat(shown) if shown else torch.zeros(0, 64, 64, 3)
    return Trained(file.name, file, "\n".join(lines), pictures)


def with_lora(model, file: Path):
    """The MODEL with a trained LoRA at strength 1, applied as the host's own loader does."""
    with torch.inference_mode(False):
        patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(file), 1.0, 0.0)
    return patched


def feature_digest(features: cache.Features) -> str:
    """Equal for the same encoded captions and pictures: a change of T5 or VAE is another training, one of the
    previews is not.
    """
    learned = [features.captions[index] for index in sorted({features.null, *features.caption_of})]
    return repr([float(t.double().abs().sum()) for t in (*learned, *features.latents)])


def safe_name(name: str) -> str:
    """A file name from what was typed; ValueError when it leads elsewhere or is none."""
    name = name.strip().removesuffix(".safetensors")
    if not name:
        raise ValueError("lora_name is empty: write a name for the file, such as my-concept.")
    if not re.fullmatch(r"[^\\/:*?\"<>|\x00-\x1f]{1,100}", name) or name.startswith("."):
        raise ValueError(f"lora_name {name!r} is no plain file name: leave out / \\ : * ? and leading dots.")
    if oddity := names.oddity(f"{name}.safetensors") or names.oddity(name):
        raise ValueError(f"lora_name {name!r} {oddity}. Choose a plain name such as my-concept.")
    return name


def state_folder(name: str) -> Path:
    """Where the states of an interrupted training lie; ValueError when a link leads it out of the output folder."""
    output = Path(folder_paths.get_output_directory())
    folder = output / STATES / name
    if not folder.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"{folder} is a link out of the output folder. Delete it, or choose another lora_name.")
    return folder


def free_path(folder: Path, name: str, run: str) -> Path:
    """Where to write: over a file of the very same training, and never over any other."""
    os.makedirs(folder, exist_ok=True)
    for number in range(1, 10000):
        path = folder / (f"{name}.safetensors" if number == 1 else f"{name}-{number}.safetensors")
        if not path.exists() or run_of(path) == run:
            return path
    raise ValueError(f"{folder} holds too many files called {name}: choose another lora_name.")


def run_of(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("pixart_run")
    except (SafetensorError, OSError):
        return None


def side_by_side(pictures: torch.Tensor) -> Image.Image:
    """(B, H, W, 3) in [0, 1] as one row."""
    row = torch.cat(list(pictures.clamp(0, 1)), dim=1)  # (H, B * W, 3)
    return Image.fromarray((row * 255).round().to(torch.uint8).numpy())
