"""Captions that a run has prepared: no work on padding, and the same numbers as with a mask over it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_models import SMALL, random_transformer

from pixart.attention import is_patched, sdpa
from pixart.prepared import LEAST_PADDING, MOST_SPANS, PREPARED, spans
from pixart.transformer import PixArtTransformer, run_options

LONG = 2 * LEAST_PADDING + 6


def mask_of(*lengths: int, tokens: int | None = None) -> torch.Tensor:
    tokens = tokens or max(lengths)
    return (torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]).float()


def test_neighbours_of_one_length_share_a_span():
    assert spans(mask_of(LONG, LONG, 5, 5)) == ((0, 2, LONG), (2, 4, 5))
    assert spans(mask_of(5, LONG)) == ((0, 1, 5), (1, 2, LONG))


@pytest.mark.parametrize(
    "mask",
    [
        mask_of(LONG, LONG),
        mask_of(40, 8),  # little padding
        mask_of(LONG, 0),  # a caption with no token attends to all of them alike
        mask_of(*(1 + row % 2 for row in range(MOST_SPANS)), 1, LONG * 4),  # a launch for every row
        mask_of(LONG, 5).flip(1),  # padded in front
    ],
    ids=["none", "short", "empty", "many", "front"],
)
def test_a_mask_is_kept_where_spans_do_not_pay_or_do_not_tell_it(mask):
    assert spans(mask) is None


@pytest.fixture
def model() -> PixArtTransformer:
    return random_transformer(SMALL).eval()


class Kernel:
    """The usual one, with a note of what it was given of captions."""

    def __init__(self):
        self.calls: list[tuple[int, int, bool]] = []  # rows, tokens, with a mask

    def __call__(self, q, k, v, heads, mask=None, transformer_options=None):
        if k.shape[1] != q.shape[1]:
            self.calls.append((k.shape[0], k.shape[1], mask is not None))
        return sdpa(q, k, v, heads, mask)


@pytest.fixture
def kernel(model) -> Kernel:
    kernel = Kernel()
    for block in model.blocks:
        block.attn.attention = block.cross_attn.attention = kernel
    return kernel


def inputs(lengths=(LONG, 5)) -> dict:
    generator = torch.Generator().manual_seed(1)
    batch, tokens = len(lengths), max(lengths) + 3  # three are padding in all of them
    return {
        "x": torch.randn(batch, 4, 16, 12, generator=generator),
        "timesteps": torch.tensor([500.0]).expand(batch),
        "caption": torch.randn(batch, tokens, 64, generator=generator),
        "caption_mask": mask_of(*lengths, tokens=tokens),
    }


@torch.inference_mode()
def test_each_caption_is_attended_to_without_its_padding(model, kernel):
    given = inputs()
    expected = model(**given)
    assert set(kernel.calls) == {(2, LONG + 3, True)}
    kernel.calls.clear()
    out = model(
        **given, transformer_options=run_options(model.prepare_caption(given["caption"], given["caption_mask"]))
    )
    assert kernel.calls == [(1, LONG, False), (1, 5, False)] * SMALL.depth
    assert (out - expected).abs().max() <= 2e-6 * expected.abs().max()


@torch.inference_mode()
def test_each_caption_is_its_own_picture(model):
    """A batch against single pictures whose captions hold no padding at all."""
    given = inputs()
    options = run_options(model.prepare_caption(given["caption"], given["caption_mask"]))
    out = model(**given, transformer_options=options)
    for row, length in enumerate((LONG, 5)):
        alone = model(given["x"][row : row + 1], given["timesteps"][:1], given["caption"][row : row + 1, :length])
        assert (out[row] - alone[0]).abs().max() <= 2e-6 * alone.abs().max()


@pytest.mark.parametrize("kind", ["patch", "output patch", "override", "another mask", "gradient"])
def test_whoever_looks_on_is_shown_the_whole_batch_and_its_mask(model, kernel, kind):
    given = inputs()
    with torch.no_grad():
        prepared = model.prepare_caption(given["caption"], given["caption_mask"])
    options = run_options(prepared)
    if kind == "patch":
        options["patches"] = {"attn2_patch": [lambda q, k, v, pe, attn_mask, extra_options: {}]}
    elif kind == "output patch":
        options["patches"] = {"attn2_output_patch": [lambda out, options: out]}
        assert is_patched("attn2", options, output=True)
    elif kind == "override":
        options["optimized_attention_override"] = object()
    elif kind == "another mask":
        options["patches_replace"] = {"dit": {("double_block", index): swap_mask for index in range(SMALL.depth)}}
    with torch.set_grad_enabled(kind == "gradient"):
        model(**given, transformer_options=options)
    assert kernel.calls == [(2, LONG, True)] * SMALL.depth


def swap_mask(args, more):
    return more["original_block"]({**args, "attn_mask": args["attn_mask"].clone()})


@torch.inference_mode()
def test_spans_of_other_captions_are_not_used(model, kernel):
    given = inputs()
    options = run_options(model.prepare_caption(given["caption"], given["caption_mask"]))
    options[PREPARED] = replace(options[PREPARED], source=given["caption"].clone())
    model(**given, transformer_options=options)
    assert set(kernel.calls) == {(2, LONG + 3, True)}
