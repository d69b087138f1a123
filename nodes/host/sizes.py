"""One line in the log where a picture's size is far from what its checkpoint was trained on."""

from __future__ import annotations

import logging

from comfy.patcher_extension import WrappersMP

from ...pixart.resolution import advice

log = logging.getLogger(__name__)

KEY = "pixart_size"


def note(executor, noise, *args, **kwargs):
    """OUTER_SAMPLE: once a sampling run, before it."""
    model = executor.class_obj.model_patcher.model
    height, width = (side * 8 for side in noise.shape[-2:])
    line = advice(height, width, model.pixart.config.native_pixels)
    if line:
        log.warning("%s: %s", model.pixart.name, line)
    return executor(noise, *args, **kwargs)


def attach(patcher) -> None:
    """Have it said for this MODEL and all clones of it."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, note)
