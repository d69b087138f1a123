"""torch.compile takes the transformer, and each block, as one graph, whatever a sampling run asks of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from random_models import SMALL, random_transformer

from pixart.compression import COMPRESSION, KVCompression
from pixart.transformer import PixArtTransformer, run_options


@pytest.fixture
def model() -> PixArtTransformer:
    return random_transformer(SMALL).eval()


@pytest.fixture
def graphs() -> Iterator[list]:
    """What a compiler that computes as usual was given."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def compiled(function, graphs: list):
    """Raises where a graph would break."""

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)


def inputs(model) -> dict:
    generator = torch.Generator().manual_seed(1)
    caption = torch.randn(2, 7, 64, generator=generator)
    mask = torch.ones(2, 7)
    mask[0, 3:] = 0
    return {
        "x": torch.randn(2, 4, 16, 12, generator=generator),
        "timesteps": torch.tensor([500.0]).expand(2),
        "caption": caption,
        "caption_mask": mask,
    }


@pytest.mark.parametrize("kind", ["plain", "prepared", "compressed", "controlled", "two timesteps", "half"])
@torch.inference_mode()
def test_a_forward_is_one_graph(model, graphs, kind):
    given, options = inputs(model), {}
    if kind == "prepared":
        options = run_options(model.prepare_caption(given["caption"], given["caption_mask"]))
    elif kind == "compressed":
        options = {COMPRESSION: KVCompression("average", 2, 1, 2)}
    elif kind == "controlled":
        given["control"] = {"output": [torch.randn(2, 48, 144), None]}
    elif kind == "two timesteps":
        given["timesteps"] = torch.tensor([500.0, 20.0])
    elif kind == "half":
        model, given = model.half(), {name: value.half() for name, value in given.items()}
    plain = model(**given, transformer_options=dict(options))
    out = compiled(model, graphs)(**given, transformer_options=dict(options))
    assert len(graphs) == 1
    assert (out - plain).abs().max() <= 1e-5 * plain.abs().max()


@torch.inference_mode()
def test_a_block_is_one_graph_and_serves_every_step(model, graphs):
    given = inputs(model)
    prepared = model.prepare_caption(given["caption"], given["caption_mask"])
    plain = [model(**given | {"timesteps": torch.tensor([t]).expand(2)}) for t in (900.0, 500.0, 20.0)]
    for block in model.blocks:
        block.forward = compiled(block.forward, graphs)
    for t, expected in zip((900.0, 500.0, 20.0), plain, strict=True):
        given["timesteps"] = torch.tensor([t]).expand(2)
        out = model(**given, transformer_options=run_options(prepared))
        assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert len(graphs) == SMALL.depth
