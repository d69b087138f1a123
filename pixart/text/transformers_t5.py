"""A T5 file as transformers' T5EncoderModel, for use without a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import T5EncoderModel

    from .encoder import T5File

_SCALES = (".scale_weight", ".weight_scale")
_DERIVED = ("model_type", "dense_act_fn", "is_gated_act")
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def load_transformers_t5(
    t5: T5File, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> T5EncoderModel:
    """The encoder with its weights in ``dtype`` on ``device``, in evaluation mode and without gradients.

    Weights are converted one by one; scaled fp8 is multiplied out. In float16 the output projections of the
    feed-forward layers stay float32, as transformers itself keeps them: XXL overflows there.
    Raises ValueError for weights quantised in a way that is not known here.
    """
    from transformers import T5Config, T5EncoderModel

    # transformers derives the activation from feed_forward_proj and wants it from there alone.
    settings = {key: value for key, value in t5.config.host_dict().items() if key not in _DERIVED}
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**settings))
    for name in t5.config.shapes():
        keep = dtype == torch.float16 and name.endswith(".wo.weight")
        weight = _dense(t5, name).to(device=device, dtype=torch.float32 if keep else dtype)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(weight, requires_grad=False))
    model.encoder.embed_tokens.weight = model.shared.weight
    return model.eval()


def _dense(t5: T5File, name: str) -> torch.Tensor:
    weight = t5.state_dict[name]
    scales = [name.removesuffix(".weight") + suffix for suffix in _SCALES]
    scale = next((t5.state_dict[scale] for scale in scales if scale in t5.state_dict), None)
    if scale is None:
        if not weight.is_floating_point():
            raise ValueError(f"{t5.path}: {name} is stored as {weight.dtype} without a scale; choose an fp16 file.")
        return weight
    if weight.dtype not in _FP8 or scale.numel() != 1:
        raise ValueError(
            f"{t5.path}: {name} is stored as {weight.dtype} with {scale.numel()} scales; of scaled weights only fp8 "
            "with one scale each is read without a host. Choose an fp16 file."
        )
    return weight.float() * scale.float().reshape(())
