"""PixArt's ControlNet as the host's CONTROL_NET."""

from __future__ import annotations

import comfy.controlnet
import comfy.latent_formats
import comfy.model_management
import comfy.ops
import torch

from ...pixart.checkpoint.controlnet import ControlNetFile, open_controlnet
from ...pixart.compression import COMPRESSION
from ...pixart.config import SIGMA
from ...pixart.controlnet import PixArtControlNet, check_base
from . import compat, run
from .model import PixArtModel, host_attention, one_timestep

BASE, OPTIONS, RUN = "base", "options", "run"
"""What the host's ControlNet hands to the network beside its usual arguments, while a run lasts."""

PASSED_ON = (COMPRESSION, "optimized_attention_override")
"""Of the base's options, what the copied blocks heed too. Patches of blocks and attention are the base's alone: some
count their calls."""

MASK, OTHER_CAPTION = "caption_mask", "crossattn_controlnet"
"""The base's mask of its caption, and the host's name for a caption that ControlNets get in place of the base's."""

EXTRA_CONDS = [MASK, "c_size", "c_ar"]


class ControlModel(PixArtControlNet):
    """The network with the host's call. It computes in the base's type, whatever its own weights are kept in."""

    dtype = torch.float32
    """The type in which the host hands over its arguments: a timestep above 256 is no whole number in fp16 or bf16."""

    def forward(
        self, x, hint, timesteps, context, base=None, options=None, run=None,
        caption_mask=None, c_size=None, c_ar=None, **ignored,
    ):  # fmt: skip
        """base: the PixArtModel that is steered; run: its sampling run's ``RunState``, where there is one."""
        dtype = base.get_dtype_inference()
        if run is not None:
            context, options = run.prepare_control(base, self, x, context, caption_mask, options)
        residuals = super().forward(
            base.diffusion_model, x.to(dtype), hint.to(dtype), one_timestep(timesteps), context, caption_mask, c_size,
            c_ar, options,
        )  # fmt: skip
        return {"output": residuals}


class PixArtControl(comfy.controlnet.ControlNet):
    """The host's ControlNet, which owns hint, VAE, strength, range, stacking and offload, given the base's blocks."""

    def __init__(self, *args, file: ControlNetFile | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.file = file

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        name = self.file.path.name
        if not isinstance(model, PixArtModel):
            raise ValueError(
                f"{name} is a ControlNet for PixArt, and this MODEL is {type(model).__name__}, not a PixArt model of "
                "this pack. Load the checkpoint with the node “PixArt Load Checkpoint” (PixArtLoadCheckpoint)."
            )
        check_base(self.file.config, model.pixart.config, name, model.pixart.name)
        self.latent_format = model.latent_format
        self.set_extra_arg(BASE, model)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.set_extra_arg(OPTIONS, {key: transformer_options[key] for key in PASSED_ON if key in transformer_options})
        self.set_extra_arg(RUN, transformer_options.get(run.STATE))
        if OTHER_CAPTION in cond:  # a caption that the host repeats instead of padding it; the mask is not its own
            cond = {key: value for key, value in cond.items() if key != MASK}
        return super().get_control(x_noisy, t, cond, batched_number, transformer_options)

    def cleanup(self):
        for argument in (BASE, OPTIONS, RUN):
            self.extra_args.pop(argument, None)
        super().cleanup()

    def copy(self):
        c = PixArtControl(file=self.file, load_device=self.load_device, manual_cast_dtype=self.manual_cast_dtype)
        c.control_model = self.control_model
        c.control_model_wrapped = self.control_model_wrapped
        self.copy_to(c)
        return c


def load_control(path: str) -> PixArtControl:
    """Load a ControlNet as a CONTROL_NET. Raises ValueError as ``open_controlnet`` does."""
    management = comfy.model_management
    file = open_controlnet(path)
    stored = file.state_dict["controlnet.0.after_proj.weight"].dtype
    device = management.get_torch_device()
    dtype = stored
    if not management.is_device_cpu(device):
        parameters = sum(tensor.nelement() for tensor in file.state_dict.values())
        dtype = management.unet_dtype(model_params=parameters, weight_dtype=stored)
    meta, operations = torch.device("meta"), comfy.ops.manual_cast
    network = ControlModel(file.config, attention=host_attention, dtype=dtype, device=meta, operations=operations)
    network.load_state_dict({name: keep(tensor, dtype) for name, tensor in file.state_dict.items()}, assign=True)
    network = network.eval().requires_grad_(False)
    is_sigma = file.config.family == SIGMA
    return PixArtControl(
        network,
        file=file,
        compression_ratio=1,
        # Without one the host would not take a VAE; the base's own replaces it when a run begins.
        latent_format=comfy.latent_formats.SDXL() if is_sigma else comfy.latent_formats.SD15(),
        load_device=device,
        extra_conds=EXTRA_CONDS,
    )


def keep(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight as it is to lie in memory: in the file's own pages where the type is right and the user allows it."""
    if tensor.dtype != dtype:
        return tensor.to(dtype)
    return tensor if compat.keeps_files_mapped() else tensor.clone()


def describe(control: PixArtControl) -> list[str]:
    """What was detected, and from what: one line each."""
    file = control.file
    return [f"{file.path.name}: ControlNet for {file.config.describe()}", *(f"· {line}" for line in file.evidence)]
