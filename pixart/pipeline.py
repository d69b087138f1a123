"""From a prompt to a picture with no host: T5, the transformer, diffusers' sampler and autoencoder.

The same weights, noise and sigmas give the picture that ComfyUI gives, so that either can be checked
against the other. ``python -m pixart --help`` is this pipeline as a command.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DPMSolverMultistepScheduler
from diffusers.loaders.single_file_utils import SingleFileComponentError
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import T5EncoderModel

from .adapters import merge
from .checkpoint import load_transformer, open_checkpoint
from .lora import fit, open_lora
from .noise import NoiseSchedule
from .text.batch import Captions, encode_prompts, tokenizer_for
from .text.captions import load_caption
from .text.encoder import load_transformers_t5, open_t5
from .text.provenance import T5Mark, check_t5, expected_t5
from .text.tokens import Tokenizer
from .transformer import PixArtTransformer, run_options

log = logging.getLogger(__name__)

PIXELS = 8
"""Pixels of a picture to one latent pixel, along either side."""

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}

KL_CONFIG = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "sample_size": 1024,
}
"""The architecture that SD's and SDXL's autoencoders share, for files that come without a config.json."""


def join(captions: Sequence[Captions]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and mask of several captions in one batch, padded to the longest."""
    length = max(c.mask.shape[1] for c in captions)
    pads = [length - c.mask.shape[1] for c in captions]
    embeddings = [
        torch.nn.functional.pad(c.embeddings, (0, 0, 0, p)) for c, p in zip(captions, pads, strict=True)
    ]
    masks = [torch.nn.functional.pad(c.mask, (0, p)) for c, p in zip(captions, pads, strict=True)]
    return torch.cat(embeddings), torch.cat(masks)


@dataclass(frozen=True)
class Autoencoder:
    """One of diffusers' autoencoders, and how its latents relate to those that hosts pass around.

    The model decodes ``(z - shift) * scale``, z being the transformer's latents over its ``latent_scale``.
    """

    model: AutoencoderKL | AutoencoderTiny
    scale: float = 1.0
    shift: float = 0.0

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) → pictures (B, 3, 8h, 8w) in [0, 1]."""
        z = (z - self.shift) * self.scale
        dtype = next(self.model.decoder.parameters()).dtype
        return (self.model.decode(z.to(dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, 8h, 8w) in [0, 1] → z (B, C, h, w), float32: what ``decode`` takes, the mean where the model
        gives a distribution.
        """
        encoder = next(self.model.encoder.parameters())
        encoded = self.model.encode((pictures * 2 - 1).to(encoder))
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return z.float() / self.scale + self.shift


def load_autoencoder(
    path: str | Path, latent_scale: float, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Autoencoder:
    """Read an SD or SDXL autoencoder or a TAESD: a file, or a folder that diffusers saved.

    latent_scale: the transformer's; tells the meaning of a TAESD folder's latents, which are already scaled.
    Raises ValueError when there is no autoencoder at ``path``.
    """
    path = Path(path)
    if path.is_dir():
        loaded = autoencoder_from_folder(path, latent_scale, dtype)
    elif path.is_file():
        loaded = tiny_from_file(path, dtype) if is_taesd(path) else Autoencoder(kl_from_file(path, dtype))
    else:
        raise ValueError(f"No autoencoder at {path}: the vae setting must name a file or a diffusers folder.")
    loaded.model.to(device).eval().requires_grad_(False)
    return loaded


def autoencoder_from_folder(path: Path, latent_scale: float, dtype: torch.dtype) -> Autoencoder:
    """One of diffusers' autoencoders from a folder that it saved. Raises ValueError for one of another class."""
    kind = AutoencoderKL.load_config(path, local_files_only=True).get("_class_name")
    if kind == "AutoencoderTiny":
        model = AutoencoderTiny.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
        return Autoencoder(model, scale=latent_scale / model.config.scaling_factor)
    if kind == "AutoencoderKL":
        return Autoencoder(AutoencoderKL.from_pretrained(path, torch_dtype=dtype, local_files_only=True))
    raise ValueError(
        f"{path}/config.json describes {kind!r}: the vae setting needs an AutoencoderKL or an AutoencoderTiny."
    )


def is_taesd(path: Path) -> bool:
    """Whether a file is in TAESD's format: its decoder's first layer says so."""
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, framework="pt") as file:
        return "taesd_decoder.1.weight" in file.keys()


def tiny_from_file(path: Path, dtype: torch.dtype) -> Autoencoder:
    """A TAESD in one file; it counts its input clamp as decoder layer 0, diffusers' class does not.

    Raises ValueError, naming the file, for weights that are no TAESD of 4 latent channels.
    """
    tensors = load_file(path)
    scale, shift = (float(tensors.pop(name, default)) for name, default in (("vae_scale", 1.0), ("vae_shift", 0.0)))
    state = {}
    for name, tensor in tensors.items():
        part, _, rest = name.removeprefix("taesd_").partition(".")
        index, _, rest = rest.partition(".")
        state[f"{part}.layers.{int(index) - (part == 'decoder')}.{rest}"] = tensor.to(dtype)
    model = AutoencoderTiny()
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    missing = [name for name in missing if not name.startswith("encoder.")]  # decoding needs no encoder
    if missing or unexpected:
        raise ValueError(
            f"{path} is no TAESD of 4 latent channels: {len(missing)} weights are missing and {len(unexpected)} "
            f"unknown, such as {(missing + unexpected)[0]}. Choose the vae that belongs to the checkpoint."
        )
    return Autoencoder(model, scale, shift)


def kl_from_file(path: Path, dtype: torch.dtype) -> AutoencoderKL:
    """An SD or SDXL autoencoder in one file, under the original or diffusers' names.

    Raises ValueError, naming the file, for any other.
    """
    with tempfile.TemporaryDirectory() as folder:  # given a config, diffusers asks no server for one
        AutoencoderKL(**KL_CONFIG).save_config(folder)
        try:
            return AutoencoderKL.from_single_file(str(path), config=folder, torch_dtype=dtype, local_files_only=True)
        except (ValueError, KeyError, RuntimeError, SingleFileComponentError) as error:
            raise ValueError(
                f"{path} is no SD or SDXL autoencoder ({str(error).splitlines()[0]}). Choose the vae that belongs "
                "to the checkpoint: SD's for α, SDXL's for Σ."
            ) from error


def nearest_timesteps(sigmas: torch.Tensor) -> torch.Tensor:
    """Timesteps (n,), 0 to 999, whose noise level is nearest in log σ to each of ``sigmas`` (n,)."""
    table = NoiseSchedule().snr.rsqrt().float().log()
    return (sigmas.float().cpu().log() - table[:, None]).abs().argmin(dim=0)


def official_scheduler(steps: int) -> DPMSolverMultistepScheduler:
    """PixArt's sampler: DPM-Solver++ (Lu et al., 2211.01095), second order, multistep, over equal timesteps.

    Raises ValueError for steps outside 1 … 1000.
    """
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps is {steps}, but the sampler takes 1 to 1000.")
    scheduler = DPMSolverMultistepScheduler(**BETAS, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(steps)
    return scheduler


def sigma_scheduler(sigmas: torch.Tensor) -> DPMSolverMultistepScheduler:
    """The same solver along given noise levels σ (n + 1,), falling: what k-diffusion and hosts call dpmpp_2m.

    diffusers takes no sigmas for this solver but reads them from an attribute, where these are put; the
    model is told the nearest timestep, as in ComfyUI's discrete sampling. Raises ValueError for levels that do not
    fall, or fall below 0.
    """
    sigmas = sigmas.float().cpu()
    falling = sigmas.ndim == 1 and len(sigmas) > 1 and bool((sigmas.diff() < 0).all())
    if not falling or sigmas[-1] < 0:
        raise ValueError(f"sigmas must be one falling row of at least two numbers that are not negative, not {sigmas}.")
    scheduler = DPMSolverMultistepScheduler(
        **BETAS,
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=False,
        final_sigmas_type="zero" if sigmas[-1] == 0 else "sigma_min",
    )
    scheduler.set_timesteps(timesteps=nearest_timesteps(sigmas[:-1]).tolist())
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)  # two sigmas may share a timestep, which is then no index
    return scheduler


def first_noise(noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """``noise`` at level σ in the transformer's variance-preserving space; a full schedule starts at noise alone."""
    largest = NoiseSchedule().snr[-1].rsqrt()
    if sigma >= largest * (1 - 1e-5):
        return noise
    return noise * (sigma / (1 + sigma**2).sqrt())


class PixArtPipeline:
    """A PixArt checkpoint with its text encoder and autoencoder; see ``load`` and ``__call__``."""

    def __init__(
        self,
        transformer: PixArtTransformer,
        t5: T5EncoderModel | None,
        tokenizer: Tokenizer | None,
        autoencoder: Autoencoder,
        t5_mark: T5Mark | None = None,
    ):
        """t5, tokenizer: None where all captions come from files. t5_mark: what caption files must be of, if known."""
        wanted = transformer.config.caption_channels
        if t5 is not None and t5.config.d_model != wanted:
            raise ValueError(
                f"The text encoder is {t5.config.d_model} wide, but the checkpoint was trained on captions of {wanted} "
                "channels: the t5 setting must name the T5 that belongs to the checkpoint."
            )
        self.transformer, self.t5, self.tokenizer, self.autoencoder = transformer, t5, tokenizer, autoencoder
        self.t5_mark = t5_mark

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        t5: str | Path | None,
        vae: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: str | Path | None = None,
    ) -> PixArtPipeline:
        """Read the three models, from files or folders.

        t5: None leaves the text encoder out, for captions from files alone.
        tokenizer: a spiece.model, a tokenizer.json or a folder with one, for a T5 that brings none along.
        dtype: of transformer and T5; under float16 the autoencoder keeps float32, as SDXL's overflows.
        Raises ValueError when one of them is not what it should be or they do not belong together.
        """
        opened = open_checkpoint(checkpoint)
        transformer = load_transformer(opened, dtype=dtype, device=device).requires_grad_(False)
        encoder = words = None
        if t5 is not None:
            file = open_t5(t5)
            words = tokenizer_for(file, tokenizer)
            encoder = load_transformers_t5(file, dtype=dtype, device=device)
        decoder_dtype = torch.float32 if dtype == torch.float16 else dtype
        autoencoder = load_autoencoder(vae, transformer.config.latent_scale, decoder_dtype, device)
        return cls(transformer, encoder, words, autoencoder, expected_t5(opened.metadata, checkpoint))

    @torch.no_grad()
    def add_lora(self, path: str | Path, strength: float = 1.0) -> None:
        """Work a LoRA's changes into the weights of transformer and T5, in place; what has no place there is logged.

        Raises FileNotFoundError for a missing file, and ValueError, naming it, for one that is no LoRA for this model.
        """
        lora = open_lora(path)
        owners = [(self.transformer, lora.transformer, "PixArt model"), (self.t5, lora.text, "T5")]
        placed, unplaced = 0, list(lora.leftover)
        for module, adapters, owner in owners:
            if module is None:
                unplaced += [(adapter.name, f"no {owner} is loaded") for adapter in adapters]
            if module is None or not adapters:
                continue
            parameters = dict(module.named_parameters())
            try:
                fitting, absent = fit(adapters, {name: tuple(p.shape) for name, p in parameters.items()}, owner)
            except ValueError as error:
                raise ValueError(f"{lora.path}: {error}") from error
            placed += len(fitting)
            unplaced += absent
            for name, value in merge(parameters, fitting, strength).items():
                if value is not parameters[name]:
                    parameters[name].data = value
        if not placed:
            raise ValueError(f"{lora.path}: nothing in it has a place in this model. Choose a LoRA of this model.")
        if unplaced:
            name, why = unplaced[0]
            log.warning("%s: %d of its names have no place, the first: %s: %s", path, len(unplaced), name, why)

    @property
    def device(self) -> torch.device:
        return self.transformer.x_embedder.proj.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.x_embedder.proj.weight.dtype

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_tokens: int | None = None, clean: bool = False) -> Captions:
        """Run T5 over the prompts, each at its own length: no padding ever enters it.

        max_tokens: the end token included; the checkpoint's own limit where left out.
        clean: apply the training data's caption cleaning first, which α's official scripts do.
        """
        if self.t5 is None:
            raise ValueError("There is no text encoder to read a prompt: load one (t5), or give caption files alone.")
        limit = self.transformer.config.max_caption_tokens if max_tokens is None else max_tokens
        captions = encode_prompts(self.t5, self.tokenizer, prompts, limit, clean)
        return replace(
            captions,
            embeddings=captions.embeddings.to(self.device, self.dtype),
            mask=captions.mask.to(self.device),
        )

    def read_caption(self, path: str | Path) -> Captions:
        """One caption file in place of a prompt.

        Raises ValueError when it is none, or when it is not of this checkpoint's encoder.
        """
        caption = load_caption(path)
        width, wanted = caption.embedding.shape[1], self.transformer.config.caption_channels
        if width != wanted:
            raise ValueError(
                f"{path}: The caption is {width} wide, but the checkpoint was trained on captions {wanted} wide. "
                "Encode the prompt with the T5 that belongs to the checkpoint."
            )
        check_t5(self.t5_mark, caption.provenance(), "the checkpoint")
        embedding = caption.embedding.to(self.device, self.dtype)
        mask = caption.full_mask().to(self.device)
        return Captions(embedding[None], mask[None], (caption.tokens,), ("",))

    @torch.no_grad()
    def sample(
        self,
        positive: Captions,
        negative: Captions,
        *,
        height: int,
        width: int,
        steps: int = 20,
        cfg: float = 4.5,
        seed: int | None = None,
        noise: torch.Tensor | None = None,
        sigmas: torch.Tensor | None = None,
        progress: bool = False,
    ) -> torch.Tensor:
        """Denoise latents (B, C, height / 8, width / 8), float32, in the transformer's own space.

        height, width: pixels, multiples of 8. negative: as many captions as positive, or one for all.
        cfg: guidance scale; 1 leaves the negative out. Guidance is one forward over both.
        seed: of the noise, drawn as ComfyUI draws it; or noise: unit-variance, of the shape above.
        sigmas: noise levels (steps + 1,) of a ComfyUI schedule, in place of ``steps`` equal timesteps.
        progress: show a bar where standard error is a terminal.
        Raises ValueError for a size, noise, sigmas, or number of captions that does not fit.
        """
        noise = self.initial_noise(len(positive), height, width, seed, noise)
        captions = [positive] if cfg == 1 else [positive, matched(negative, len(positive))]
        embeddings, mask = join(captions)
        size = aspect_ratio = None
        if self.transformer.config.micro_condition:
            size = torch.tensor([[height, width]], device=self.device, dtype=torch.float32)
            aspect_ratio = size[:, :1] / size[:, 1:]

        prepared = self.transformer.prepare_caption(embeddings, mask)
        options = run_options(prepared)
        scheduler = official_scheduler(steps) if sigmas is None else sigma_scheduler(sigmas)
        x = noise if sigmas is None else first_noise(noise, scheduler.sigmas[0])
        for t in tqdm(scheduler.timesteps, desc="Sampling", disable=None if progress else True):
            batch = torch.cat([x] * len(captions)).to(self.dtype)
            timesteps = t.float().to(self.device).expand(len(batch))
            predicted = self.transformer(
                batch, timesteps, embeddings, mask, size, aspect_ratio, transformer_options=options
            ).float()
            if cfg != 1:
                conditional, unconditional = predicted.chunk(2)
                predicted = unconditional + cfg * (conditional - unconditional)
            x = scheduler.step(predicted, t, x).prev_sample
        return x * (1 + scheduler.sigmas[-1] ** 2).sqrt()  # a schedule that stops early leaves x scaled down

    def initial_noise(
        self, count: int, height: int, width: int, seed: int | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """The given noise, checked, or that of ``seed`` (0 where left out): (count, C, height / 8, width / 8)."""
        if min(height, width) < PIXELS or height % PIXELS or width % PIXELS:
            raise ValueError(f"A picture of {width} x {height} is not possible: both sides must be multiples of 8.")
        if seed is not None and noise is not None:
            raise ValueError("Both seed and noise are given: leave one of them out.")
        shape = (count, self.transformer.config.in_channels, height // PIXELS, width // PIXELS)
        if noise is None:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed or 0))
        elif tuple(noise.shape) != shape:
            raise ValueError(f"noise is of shape {tuple(noise.shape)}, but these captions and this size need {shape}.")
        return noise.to(device=self.device, dtype=torch.float32)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of ``sample`` → pictures (B, H, W, 3), float32 in [0, 1], as ComfyUI's IMAGE."""
        pictures = self.autoencoder.decode(latents / self.transformer.config.latent_scale)
        return pictures.movedim(1, -1)

    def __call__(
        self,
        prompt: str | Sequence[str] | Captions,
        negative: str | Captions = "",
        *,
        height: int | None = None,
        width: int | None = None,
        max_tokens: int | None = None,
        clean: bool = False,
        **sampling,
    ) -> list[Image.Image]:
        """One picture for each prompt or caption; where left out, height and width are the checkpoint's own.

        ``sampling`` is passed on to ``sample``: steps, cfg, seed, noise, sigmas, progress.
        """
        native = self.transformer.config.native_pixels
        prompts = [prompt] if isinstance(prompt, str) else prompt
        positive = prompts if isinstance(prompts, Captions) else self.encode(list(prompts), max_tokens, clean)
        unwanted = negative if isinstance(negative, Captions) else self.encode([negative], max_tokens, clean)
        latents = self.sample(positive, unwanted, height=height or native, width=width or native, **sampling)
        pictures = (self.decode(latents) * 255).round().to(torch.uint8).cpu().numpy()
        return [Image.fromarray(picture) for picture in pictures]


def matched(captions: Captions, count: int) -> Captions:
    """``captions`` repeated to ``count``, where there is one for all; ValueError where there is another number."""
    if len(captions) == count:
        return captions
    if len(captions) != 1:
        raise ValueError(f"There are {len(captions)} negative captions for {count} prompts: give one, or one each.")
    return Captions(
        captions.embeddings.expand(count, -1, -1),
        captions.mask.expand(count, -1),
        captions.tokens * count,
        captions.lost * count,
    )
