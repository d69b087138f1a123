"""Kept memory for linear layers: the same numbers to the last bit, and nothing that somebody keeps is overwritten."""

from __future__ import annotations

import pytest
import torch
from random_models import SMALL, random_transformer
from torch import nn

from pixart.attention import GATE, WORKSPACE
from pixart.transformer import PixArtTransformer, run_options
from pixart.workspace import NARROW, WIDE, Workspace


@pytest.fixture
def model() -> PixArtTransformer:
    return random_transformer(SMALL).eval()


def given(size=(16, 12), batch=2) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, 4, *size, generator=generator),
        "timesteps": torch.tensor([500.0]).expand(batch),
        "caption": torch.randn(batch, 7, 64, generator=generator),
    }


def with_and_without(model, inputs: dict, **more) -> tuple[torch.Tensor, torch.Tensor, Workspace]:
    options = run_options(model.prepare_caption(inputs["caption"])) | more
    kept = model(**inputs, transformer_options=options)
    workspace = options.pop(WORKSPACE)
    return kept, model(**inputs, transformer_options=options), workspace


@torch.inference_mode()
def test_the_same_to_the_last_bit_in_any_order_of_sizes(model):
    options = None
    for size, batch in (((16, 12), 2), ((8, 8), 1), ((24, 20), 3), ((16, 12), 2)):
        inputs = given(size, batch)
        fresh = run_options(model.prepare_caption(inputs["caption"]))
        options = fresh if options is None else {**fresh, WORKSPACE: options[WORKSPACE]}
        kept = model(**inputs, transformer_options=options)
        plain = model(**inputs, transformer_options={k: v for k, v in options.items() if k != WORKSPACE})
        assert torch.equal(kept, plain)
    tokens = 3 * 12 * 10
    assert options[WORKSPACE].slots[WIDE].numel() == tokens * 3 * 144  # the largest of all, once
    assert options[WORKSPACE].slots[NARROW].numel() == tokens * 144


@torch.inference_mode()
def test_results_do_not_alias(model):
    """What a forward returned stays as it is while the next one runs."""
    inputs = given()
    options = run_options(model.prepare_caption(inputs["caption"]))
    first = model(**inputs, transformer_options=options)
    copy = first.clone()
    model(**{**inputs, "x": -inputs["x"]}, transformer_options=options)
    assert torch.equal(first, copy)


@pytest.mark.parametrize("name", ["attn1", "attn2"])
@torch.inference_mode()
def test_queries_that_a_patch_keeps_are_not_written_over(model, name):
    kept, copies = [], []

    def patch(q, k, v, pe, attn_mask, extra_options):
        kept.append((q, k, v))
        copies.append(tuple(t.clone() for t in (q, k, v)))
        return {}

    inputs = given()
    with_and_without(model, inputs, patches={f"{name}_patch": [patch]})
    assert len(kept) == 2 * SMALL.depth
    for mine, copied in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, copied, strict=True))


@torch.inference_mode()
def test_what_an_override_of_attention_keeps_is_not_written_over(model):
    kept, copies = [], []

    def kernel(q, k, v, heads, mask=None, transformer_options=None):
        if "optimized_attention_override" in transformer_options:
            kept.extend((q, k))
            copies.extend((q.clone(), k.clone()))
        return q + v.mean(dim=1, keepdim=True)

    for block in model.blocks:
        block.attn.attention = block.cross_attn.attention = kernel
    with_and_without(model, given(), optimized_attention_override=object())
    assert len(kept) == 2 * 2 * 2 * SMALL.depth
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@torch.inference_mode()
def test_a_frozen_cross_attention_is_not_written_over(model):
    class Gate(dict):
        keep = dict.__setitem__

    gate = Gate()
    inputs = given()
    options = run_options(model.prepare_caption(inputs["caption"])) | {GATE: gate}
    model(**inputs, transformer_options=options)
    copies = {index: out.clone() for index, out in gate.items()}
    assert len(copies) == SMALL.depth
    model(**{**inputs, "x": -inputs["x"]}, transformer_options=options)
    assert all(torch.equal(gate[index], copy) for index, copy in copies.items())


def lora(layer):
    layer.weight_function = [lambda weight: weight]


def wrapped(layer):
    layer.forward = lambda x: nn.functional.linear(x, layer.weight, layer.bias)


def cast(layer):
    layer.comfy_cast_weights = True


def hooked(layer):
    layer.register_forward_hook(lambda *_: None)


def parametrized(layer):
    nn.utils.parametrizations.weight_norm(layer)


def without_bias(layer):
    layer.bias = None


class Quantised(torch.Tensor):
    """As hosts keep weights of other formats."""


def quantised(layer):
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Quantised), requires_grad=False)


@pytest.mark.parametrize("touch", [lora, wrapped, cast, hooked, parametrized, without_bias, quantised])
def test_a_layer_that_somebody_has_touched_runs_itself(touch):
    layer, x, workspace = nn.Linear(8, 12), torch.randn(2, 5, 8), Workspace()
    with torch.no_grad():
        assert torch.equal(workspace.linear(layer, x, WIDE), layer(x))
        assert workspace.slots.pop(WIDE) is not None
    touch(layer)
    with torch.no_grad():
        assert torch.equal(workspace.linear(layer, x, WIDE), layer(x))
        assert not workspace.slots


@torch.inference_mode()
def test_other_classes_and_types_run_themselves():
    class Other(nn.Linear):
        pass

    workspace = Workspace()
    workspace.linear(Other(8, 12), torch.randn(2, 5, 8), WIDE)
    workspace.linear(nn.Linear(8, 12).double(), torch.randn(2, 5, 8).double(), WIDE)
    workspace.linear(nn.Linear(8, 12).bfloat16(), torch.randn(2, 5, 8).bfloat16(), WIDE)
    assert not workspace.slots
    known = Workspace((Other,))
    known.linear(Other(8, 12), torch.randn(2, 5, 8), WIDE)
    assert known.slots


def test_a_gradient_goes_through_the_layer():
    layer, workspace = nn.Linear(8, 12), Workspace()
    workspace.linear(layer, torch.randn(2, 5, 8), WIDE).sum().backward()
    assert layer.weight.grad is not None and not workspace.slots


def test_memory_of_inference_mode_is_not_used_outside_of_it():
    layer, x, workspace = nn.Linear(8, 12), torch.randn(2, 5, 8), Workspace()
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(workspace.linear(layer, x, WIDE), layer(x))


@torch.inference_mode()
def test_an_interruption_ends_the_run_at_a_layer():
    class Interrupted(Exception):
        pass

    def before():
        raise Interrupted

    with pytest.raises(Interrupted):
        Workspace(before=before).linear(nn.Linear(8, 12), torch.randn(2, 5, 8), WIDE)
