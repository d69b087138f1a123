"""Writes the files of this folder: adapters that LyCORIS makes, as SimpleTuner saves them, and what they give there.

    pip install --target /tmp/lycoris --no-deps lycoris-lora toml
    PYTHONPATH=/tmp/lycoris python tests/data/lora/make.py

base.safetensors holds a tiny transformer of diffusers as ``w.*`` and one forward's inputs as ``in.*``; each other file
an adapter under LyCORIS' names, and as ``out`` what the transformer gives under LyCORIS. Made with lycoris-lora 4.1.3
and diffusers 0.42.1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent

TARGETS = ("Attention", "FeedForward", "PatchEmbed", "PixArtAlphaTextProjection")
"""Classes whose layers are trained: SimpleTuner's first two, and a convolution and layers outside the blocks."""

KINDS = {
    "locon": {"algo": "locon"},
    "loha": {"algo": "loha"},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr_both": {"algo": "lokr", "factor": 8, "decompose_both": True, "linear_dim": 1},
    "lokr_full": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "full": {"algo": "full"},
    "dora_out": {"algo": "locon", "dora_wd": True, "wd_on_out": True},
    "dora_in": {"algo": "locon", "dora_wd": True, "wd_on_out": False},
    "dokr": {"algo": "lokr", "factor": 4, "dora_wd": True, "wd_on_out": True},
    "loha_tucker": {"algo": "loha", "use_tucker": True},
    "locon_tucker": {"algo": "locon", "use_tucker": True},
    "lokr_tucker": {"algo": "lokr", "factor": 2, "use_tucker": True, "linear_dim": 1},
}


INPUTS = {"x": (2, 4, 16, 16), "y": (2, 5, 16)}


def tiny_transformer() -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, cross_attention_dim=24, caption_channels=16,
        sample_size=16, interpolation_scale=0.5, use_additional_conditions=False,
    ).eval()  # fmt: skip
    for value in model.parameters():
        value.copy_(torch.randn_like(value) * (0.15 if value.ndim > 1 else 0.05))
    return model


def make(kind: str, options: dict) -> None:
    model = tiny_transformer()
    inputs = {name: torch.randn(shape) for name, shape in INPUTS.items()} | {"t": torch.tensor([999.0, 20.0])}
    weights = {f"w.{name}": value.clone() for name, value in model.state_dict().items()}
    save_file(weights | {f"in.{name}": value for name, value in inputs.items()}, HERE / "base.safetensors")

    LycorisNetwork.apply_preset({"target_module": list(TARGETS), "target_name": []})
    options = {"linear_dim": 2, "linear_alpha": 1, "conv_alpha": 1, **options}
    network = create_lycoris(model, 1.0, conv_dim=options["linear_dim"], **options)
    network.apply_to()
    for value in network.parameters():
        value.add_(torch.randn_like(value) * 0.1)
    out = model(
        inputs["x"], encoder_hidden_states=inputs["y"], timestep=inputs["t"], return_dict=False,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )[0]  # fmt: skip
    adapter = {name: value.clone().contiguous() for name, value in network.state_dict().items()}
    save_file({**adapter, "out": out.contiguous()}, HERE / f"{kind}.safetensors")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for kind, options in KINDS.items():
        make(kind, options)
