"""PixArtTransformer as the host's MODEL."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.supported_models
import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...pixart.checkpoint import Checkpoint, open_checkpoint, state_dict_to_save
from ...pixart.checkpoint.fp8 import FLOAT8, kept_dtype
from ...pixart.config import ALPHA, PixArtConfig
from ...pixart.text.provenance import T5Mark, check_t5, expected_t5
from ...pixart.transformer import PixArtTransformer
from . import compat, memory, run, sizes
from .conds import PaddedCond
from .diagnosis import explain, is_finite

log = logging.getLogger(__name__)

WEIGHT_DTYPES = {
    "auto": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}

ENCODERS = {
    512: "T5 small",
    768: "CLIP-L and T5 base",
    1024: "CLIP-H and T5 large",
    1280: "CLIP-G",
    2048: "SDXL's pair of CLIPs and T5 XL",
    2304: "Gemma 2",
    4096: "T5 XXL",
}
"""Whose features are how wide, for people who connected another text encoder."""

ALIGNMENT = 64
"""Bytes; what PyTorch allocates begins on a multiple of it, what lies in a file need not."""


def host_attention(q, k, v, heads: int, mask=None, transformer_options=None) -> torch.Tensor:
    """The host's chosen attention backend, with overrides from ``transformer_options``."""
    return compat.attention(q.device)(q, k, v, heads, mask=mask, transformer_options=transformer_options or {})


class HostTransformer(PixArtTransformer):
    """The transformer with the host's call: wrappers around it, the host's names for its inputs."""

    def __init__(self, pixart_config: PixArtConfig, dtype=None, device=None, operations=None, **shape):
        super().__init__(pixart_config, attention=host_attention, dtype=dtype, device=device, operations=operations)

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **kwargs):
        transformer_options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, control, transformer_options, **kwargs)

    def _forward(
        self, x, timesteps, context, control, transformer_options, caption_mask=None, c_size=None, c_ar=None, **ignored
    ):
        return super().forward(
            x,
            timesteps,
            context,
            caption_mask=caption_mask,
            size=c_size,
            aspect_ratio=c_ar,
            control=control,
            transformer_options=transformer_options,
        )


class PixArtModel(comfy.model_base.PixArt):
    """The host's PixArt model with our transformer inside, so that its LoRA maps and type checks apply."""

    def __init__(self, model_config, facts: CheckpointFacts, device=None):
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=HostTransformer
        )
        self.pixart = facts

    def apply_model(self, x, *args, **kwargs):
        """The host's, stopped with the layer at fault when the prediction is not finite: every later step,
        and the picture, would be NaN."""
        out = super().apply_model(x, *args, **kwargs)
        if not is_finite(out):
            again = super().apply_model
            raise ValueError(explain(self, x, kwargs.get("c_crossattn"), lambda: again(x, *args, **kwargs)))
        return out

    def _apply_model(
        self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
    ):
        """The host's, with what the sampling run has learned of these captions at an earlier step."""
        options = transformer_options or {}
        state = options.get(run.STATE)
        if state is not None:
            state.keep_loaded(self)
        if state is not None and c_crossattn is not None:
            c_crossattn, options = state.prepare(self, x, c_crossattn, kwargs.get("caption_mask"), options)
        return super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def process_timestep(self, timestep, **kwargs):
        """One timestep of the whole batch as one number, expanded, which the transformer knows by its stride."""
        return one_timestep(super().process_timestep(timestep, **kwargs))

    def extra_conds(self, **kwargs) -> dict:
        out = comfy.model_base.BaseModel.extra_conds(self, **kwargs)
        caption = kwargs.get("cross_attn")
        if caption is not None:
            self.check_caption(caption)
            check_t5(self.pixart.t5, kwargs.get("pixart_caption"), self.pixart.name)
            out["c_crossattn"] = PaddedCond(caption)
            out["caption_mask"] = PaddedCond(caption_mask(caption, kwargs.get("attention_mask")))
        if self.pixart.config.micro_condition:
            out |= size_conds(kwargs)
        return out

    def memory_required(self, input_shape, cond_shapes={}):  # noqa: B006 - the host's signature
        """Bytes that a forward needs at its peak beside the weights, for latents of (B, C, H, W)."""
        device = self.current_patcher.load_device if self.current_patcher else self.device
        return memory.forward_bytes(self.pixart.config, input_shape, self.get_dtype_inference(), device)

    def null_caption(self) -> torch.Tensor:
        """The learned null caption (1, L, C); ValueError where the file has none, as diffusers files have."""
        if self.pixart.null_caption is None:
            raise ValueError(
                f"{self.pixart.name} holds no learned null caption (diffusers files leave it out). "
                "Use “PixArt Text Encode” with an empty text for the negative instead, or load the original file."
            )
        return self.pixart.null_caption[None].float()

    def describe(self) -> list[str]:
        """What was detected, and from what: one line each."""
        config = self.pixart.config
        family = "PixArt-α" if config.family == ALPHA else "PixArt-Σ"
        size = "with" if config.micro_condition else "without"
        return [
            f"{self.pixart.name}: {family}, {config.depth} blocks of width {config.hidden_size}, "
            f"{config.num_heads} heads",
            f"native size {config.native_pixels} × {config.native_pixels} pixels, "
            f"position interpolation {config.pe_interpolation:g}, {size} size conditioning",
            f"captions {config.caption_channels} wide, up to {config.max_caption_tokens} tokens",
            f"latent scale {self.latent_format.scale_factor:g}, weights {self.get_dtype()}, "
            f"computed in {self.get_dtype_inference()}",
            *(f"quantised layers are kept as {kind}" for kind in self.pixart.formats),
            *(f"· {line}" for line in self.pixart.evidence),
        ]

    def check_caption(self, caption: torch.Tensor) -> None:
        expected = self.pixart.config.caption_channels
        width = caption.shape[-1]
        if width != expected:
            whose = f"; {width} is the width of {ENCODERS[width]}" if width in ENCODERS else ""
            raise ValueError(
                f"The caption is {width} wide, but {self.pixart.name} was trained on captions {expected} "
                f"wide: the text encoder does not belong to this checkpoint{whose}. Encode the prompt with the T5 "
                "that it was trained with (PixArtLoadT5; for the released checkpoints T5 v1.1 XXL)."
            )


def one_timestep(timestep: torch.Tensor) -> torch.Tensor:
    """(B,) of one number as that number, expanded."""
    if timestep.ndim == 1 and timestep.shape[0] > 1 and bool((timestep == timestep[0]).all()):
        return timestep[:1].expand(timestep.shape[0])
    return timestep


def caption_mask(caption: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The caption's own mask (B, L) where the conditioning carries one, else every token counts."""
    if mask is not None and mask.shape[-1] == caption.shape[1]:
        return mask.reshape(-1, mask.shape[-1]).expand(caption.shape[0], -1).to(torch.int32)
    return torch.ones(caption.shape[:2], dtype=torch.int32, device=caption.device)


def size_conds(kwargs: dict) -> dict:
    """α's height and width in pixels, as whole numbers: the host would round floats to the model's dtype."""
    height, width = round(kwargs["height"]), round(kwargs["width"])
    conds = {"c_size": comfy.conds.CONDRegular(torch.tensor([[height, width]], dtype=torch.int32))}
    ratio = kwargs.get("aspect_ratio")
    if ratio is not None:
        conds["c_ar"] = comfy.conds.CONDRegular(torch.tensor([[float(ratio)]]))
    return conds


@dataclass(frozen=True)
class CheckpointFacts:
    """What stays of a checkpoint file after its weights are in the model.

    t5: the encoder that it names, if any. formats: the quantised formats, besides fp8, that some layers are kept in.
    path: the file or folder, for training, which starts from it anew.
    """

    name: str
    config: PixArtConfig
    evidence: tuple[str, ...]
    null_caption: torch.Tensor | None
    t5: T5Mark | None = None
    formats: tuple[str, ...] = ()
    path: Path | None = None


class PixArtSupport:
    """Shared by the two model configs: builds the model, and saves it as the released files are."""

    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]

    def process_unet_state_dict_for_saving(self, state_dict: dict) -> dict:
        config = self.unet_config["pixart_config"]
        return super().process_unet_state_dict_for_saving(state_dict_to_save(state_dict, config))


class AlphaSupport(PixArtSupport, comfy.supported_models.PixArtAlpha):
    """PixArt-α: SD's latent format."""


class SigmaSupport(PixArtSupport, comfy.supported_models.PixArtSigma):
    """PixArt-Σ: SDXL's latent format."""


def load_model(path: str, weight_dtype: str = "auto", family: str = "auto", disable_dynamic: bool = False):
    """Load a PixArt checkpoint as a MODEL (the host's ModelPatcher).

    path: any file or folder that ``pixart.checkpoint`` reads; weight_dtype: a key of WEIGHT_DTYPES;
    family: "auto", or "alpha" / "sigma" where the file cannot tell. Raises ValueError as the reader does.
    """
    checkpoint = open_checkpoint(path, family=family, formats=compat.quantised_formats())
    return build_patcher(checkpoint, path, weight_dtype, family, disable_dynamic)


def build_patcher(checkpoint: Checkpoint, path: str, weight_dtype: str, family: str, disable_dynamic: bool):
    management = comfy.model_management
    config = checkpoint.config
    support = AlphaSupport if config.family == ALPHA else SigmaSupport
    model_config = support(
        {
            "image_model": f"pixart_{config.family}",
            "depth": config.depth,
            "hidden_size": config.hidden_size,
            "num_heads": config.num_heads,
            "in_channels": config.in_channels,
            "pixart_config": config,
        }
    )
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    dtype, compute = choose_dtypes(checkpoint, weight_dtype, load_device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(dtype, None if compute == dtype else compute)
    quantised = keeps_scales(checkpoint, dtype)
    if quantised:
        model_config.quant_config = comfy.utils.detect_layer_quantization(checkpoint.quantised, "")

    null = checkpoint.state_dict.get("y_embedder.y_embedding")
    facts = CheckpointFacts(
        checkpoint.path.name,
        config,
        checkpoint.evidence,
        None if null is None else null.clone(),
        expected_t5(checkpoint.metadata, checkpoint.path),
        tuple(sorted(set(checkpoint.formats.values()))),
        checkpoint.path,
    )
    # On no device, since every parameter is replaced by the file's own tensor, not copied into. The layers of
    # quantised weights move what they are given to the device that they were made on.
    model = PixArtModel(model_config, facts, device=None if quantised else torch.device("meta")).eval()
    model.device = offload_device
    patcher = compat.core_patcher(model, load_device, offload_device, disable_dynamic)
    run.attach(patcher)
    in_use = dtype == compute and management.is_device_cpu(load_device)
    state = weights_to_keep(checkpoint, dtype, compute, in_use)
    model.load_model_weights(state, "", assign=True)
    compat.archive_dtypes(model.diffusion_model)
    if not management.is_device_cpu(offload_device):
        model.to(offload_device)
    sizes.attach(patcher)
    compat.remember_loader(patcher, load_model, (path, weight_dtype, family))
    for note in checkpoint.notes:
        log.info("%s: %s", checkpoint.path.name, note)
    return patcher


def keeps_scales(checkpoint: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether the host's layers are given quantised weights and their scales as the file has them."""
    return bool(checkpoint.quantised) and (dtype in FLOAT8 or bool(checkpoint.formats))


def choose_dtypes(checkpoint: Checkpoint, weight_dtype: str, device, supported) -> tuple[torch.dtype, torch.dtype]:
    """The type to keep weights in and the type to compute in; where they differ the host casts at every layer."""
    management = comfy.model_management
    stored = checkpoint.state_dict["blocks.0.attn.qkv.weight"].dtype
    dtype = WEIGHT_DTYPES[weight_dtype]
    if checkpoint.formats:
        if dtype is not None:
            kinds = ", ".join(sorted(set(checkpoint.formats.values())))
            raise ValueError(
                f"{checkpoint.path.name} is quantised as {kinds} and stays so: set weight_dtype to auto in "
                f"PixArt Load Checkpoint instead of {weight_dtype}, or choose a file that is not quantised."
            )
        dtype = management.unet_dtype(supported_dtypes=list(supported))  # of the layers that are not quantised
    elif dtype is None and checkpoint.quantised:
        layer = next(name for name in checkpoint.quantised if name.endswith(".comfy_quant")).rpartition(".")[0]
        dtype = checkpoint.state_dict[f"{layer}.weight"].dtype
    elif dtype is None:
        dtype = management.unet_dtype(
            model_params=sum(t.nelement() for t in checkpoint.state_dict.values()),
            supported_dtypes=list(supported),
            weight_dtype=stored,
        )
        if dtype == torch.float32 and stored in (torch.float16, torch.bfloat16):
            # Where only fp32 is computed, keeping it as well would double the memory and add no precision. It would
            # save the cast of every weight at every step: whoever has the memory can choose fp32.
            dtype = stored
    compute = management.unet_manual_cast(dtype, device, supported)
    return dtype, dtype if compute is None else compute


def weights_to_keep(
    checkpoint: Checkpoint, dtype: torch.dtype, compute: torch.dtype, in_use: bool
) -> dict[str, torch.Tensor]:
    """The transformer's weights as they are to lie in memory; those already of the right type stay in the file's pages.

    The pages are mapped privately: a weight that the host writes into, as when it adds a LoRA in place, is copied by
    the system, and the file stays as it is.
    in_use: layers compute with the very tensors that are kept, neither moved to a card nor cast.
    """
    scaled = checkpoint.quantised if keeps_scales(checkpoint, dtype) else {}
    keep_mapped = compat.keeps_files_mapped()
    state = {}
    for name, tensor in checkpoint.state_dict.items():
        if name.endswith(".weight") and f"{name.removesuffix('.weight')}.comfy_quant" in scaled:
            kept = tensor
        else:
            # Whoever scaled some matrices to fp8 left the others as they are for their precision.
            kept = checkpoint.tensor(name, compute if scaled else kept_dtype(name, dtype, compute))
        # The processor's matrix products round otherwise where numbers do not begin on such a boundary, so that two
        # files of the same weights would not draw the same picture bit for bit.
        is_aligned = kept.data_ptr() % ALIGNMENT == 0
        state[name] = kept if kept is not tensor or (keep_mapped and (is_aligned or not in_use)) else kept.clone()
    return state | dict(scaled)


def pixart_model(patcher) -> PixArtModel:
    """The PixArtModel inside a MODEL; raises ValueError when it is another model."""
    model = getattr(patcher, "model", None)
    if not isinstance(model, PixArtModel):
        raise ValueError(
            f"This MODEL is {type(model).__name__}, not a PixArt model of this pack. "
            "Load it with the node “PixArt Load Checkpoint” (PixArtLoadCheckpoint)."
        )
    return model
