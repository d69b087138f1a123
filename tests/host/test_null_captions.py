"""Each kind of null caption against the pipeline that it is from."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from pixart.text.encoder import load_transformers_t5, open_t5

DEMO = Path(__file__).resolve().parents[2] / "demo"


@pytest.fixture(scope="module")
def model(pack):
    return import_module(f"{pack.__name__}.nodes.host.model").load_model(str(DEMO / "pixart-demo-sigma.safetensors"))


@pytest.fixture(scope="module")
def clip(pack):
    return import_module(f"{pack.__name__}.nodes.host.text").load_clip(
        str(DEMO / "pixart-demo-t5.safetensors"), dtype="fp32"
    )


@pytest.fixture(scope="module")
def reference():
    """transformers' own T5, as the official scripts and diffusers run it."""
    return load_transformers_t5(open_t5(DEMO / "pixart-demo-t5.safetensors"), dtype=torch.float32)


def null(node_classes, *args, **kwargs) -> torch.Tensor:
    output = node_classes["PixArtNullCaption"].execute(*args, **kwargs)
    (((tensor, values),),) = output.result
    assert values.get("attention_mask") is None  # every token that is handed on counts
    return tensor


def padded(reference, length: int) -> torch.Tensor:
    """T5("") padded to ``length`` and run with its own mask: all rows, as in PixArt-Σ's inference script."""
    ids = torch.tensor([[1] + [0] * (length - 1)])
    return reference(input_ids=ids, attention_mask=(ids == 1).long()).last_hidden_state


def test_padded_is_what_sigmas_script_feeds_cut_to_the_prompts_tokens(model, clip, reference, node_classes):
    theirs = padded(reference, 300)
    positive = [[torch.zeros(1, 13, 128), {}]]
    ours = null(node_classes, model, positive, "padded", clip)
    assert ours.shape == (1, 13, 128)
    assert (ours - theirs[:, :13]).abs().max() <= 1e-4
    assert (ours[:, 1] - ours[:, 0]).abs().max() > 0.01  # the padding's rows are not the end token's
    whole = null(node_classes, model, None, "padded", clip)
    assert whole.shape == (1, 300, 128) and (whole - theirs).abs().max() <= 1e-4


def test_empty_is_the_end_token_alone_as_diffusers_mask_leaves_it(model, clip, reference, node_classes):
    ours = null(node_classes, model, [[torch.zeros(1, 13, 128), {}]], "empty", clip)
    assert ours.shape == (1, 1, 128)
    assert (ours - padded(reference, 300)[:, :1]).abs().max() <= 1e-4


def test_learned_is_the_checkpoints_own_and_the_default(model, node_classes):
    from safetensors.torch import load_file

    stored = load_file(DEMO / "pixart-demo-sigma.safetensors")["y_embedder.y_embedding"].float()
    assert torch.equal(null(node_classes, model)[0], stored)
    assert torch.equal(null(node_classes, model, [[torch.zeros(1, 13, 128), {}]])[0], stored[:13])


def test_kinds_that_need_t5_say_so(model, node_classes):
    for kind in ("padded", "empty"):
        with pytest.raises(ValueError, match=f"{kind}.*connect clip"):
            node_classes["PixArtNullCaption"].execute(model, None, kind)
