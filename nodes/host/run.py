"""What one sampling run remembers from step to step. It lives in the run's own options and goes with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP

from ...pixart.attention import WORKSPACE
from ...pixart.compression import COMPRESSION
from ...pixart.controlnet import COPIES
from ...pixart.prepared import PREPARED, SamplingRun
from ...pixart.transformer import FIRST, GRIDS
from . import compat, memory

log = logging.getLogger(__name__)

STATE = "pixart_run"
"""Where ``transformer_options`` holds the run's state, and the key of the wrapper that puts it there."""


class RunState:
    """What is known of one run, for each copy of the model that takes part in it.

    patcher: the MODEL that is sampled.
    """

    def __init__(self, patcher=None):
        self.of: dict[int, SamplingRun] = {}
        self.patcher = patcher
        self.loaded: object = None

    def keep_loaded(self, model) -> None:
        """Load the MODEL again when someone has unloaded it since the last step, as some nodes do in a callback.

        What the host adds to the weights, LoRAs above all, goes with an unloading, and the steps that follow would
        be taken without it.
        """
        if self.patcher is None or self.patcher.model is not model:
            return
        if self.loaded is None:
            self.loaded = compat.loaded_weights(model)
        elif compat.loaded_weights(model) != self.loaded:
            log.info("%s was unloaded between two steps; it is loaded again.", model.pixart.name)
            comfy.model_management.load_models_gpu([self.patcher])
            self.loaded = compat.loaded_weights(model)

    def prepare(self, model, x: torch.Tensor, caption: torch.Tensor, mask, options: dict) -> tuple[torch.Tensor, dict]:
        """(the caption as the transformer will see it, options that hold what is known of it).

        caption: (B, L, C), as the host hands it over; mask: (B, L). The options are a copy.
        """
        transformer = model.diffusion_model
        dtype = model.get_dtype_inference()
        known = self.of.setdefault(id(model), SamplingRun(compat.workspace()))
        caption = comfy.model_management.cast_to_device(caption, x.device, caption.dtype)
        mask = None if mask is None else mask.to(x.device)
        layers = [transformer.y_embedder.y_proj.fc1, *key_layers(transformer.blocks)]
        weights = (dtype, identities(layers), compat.weights_in_use(getattr(model, "current_patcher", None)))
        prepared = known.caption(transformer, caption, mask, dtype, weights)
        options = {**options, PREPARED: prepared, GRIDS: known.grids, WORKSPACE: known.workspace}
        return prepared.source, options | ({FIRST: known.first} if known.first else {})

    def prepare_control(self, model, network, x, caption, mask, options: dict) -> tuple[torch.Tensor, dict]:
        """``prepare`` for a ControlNet on the model, whose copies' keys and values are remembered too."""
        caption, options = self.prepare(model, x, caption, mask, options)
        known = self.of[id(model)]
        blocks = [part.copied_block for part in network.controlnet]

        def copies(prepared):
            return known.for_copies(blocks, prepared, (id(network), identities(key_layers(blocks))))

        return caption, {**options, FIRST: known.first, COPIES: copies}


def key_layers(blocks) -> list:
    return [block.cross_attn.kv_linear for block in blocks]


def identities(layers) -> tuple[int, ...]:
    """Of the weights that captions go through: others have taken their place when this changes."""
    return tuple(id(layer.weight) for layer in layers)


@contextmanager
def options_of_run(guider) -> Iterator[dict]:
    """The ``transformer_options`` of this run: a copy, which ends with the run however it ends."""
    before = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    try:
        yield guider.model_options["transformer_options"]
    finally:
        guider.model_options = before


def start(executor, *args, **kwargs):
    """OUTER_SAMPLE: a state for this run, whose estimates of memory know of the MODEL's compression."""
    guider = executor.class_obj
    with options_of_run(guider) as options:
        options[STATE] = RunState(getattr(guider, "model_patcher", None))
        token = memory.active_compression.set(options.get(COMPRESSION))
        try:
            return executor(*args, **kwargs)
        finally:
            memory.active_compression.reset(token)


def attach(patcher) -> None:
    """Make every sampling run with this MODEL, or a clone of it, remember what stays the same."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, STATE, start)
