"""Faster sampling at a measured price."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..pixart.caching import METHODS, CacheSettings
from .host.step_cache import add_step_cache


class PixArtStepCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PixArtStepCache",
            display_name="PixArt Step Cache",
            category="PixArt/sampling",
            description="Samples faster: at some steps, what blocks added at earlier steps stands in for computing "
            "them. Pictures change a little. After a run the node shows how many block computations it saved.",
            search_aliases=["t-gate", "tgate", "teacache", "fbcache", "first block cache", "speed", "block cache"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from PixArt Load Checkpoint."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="balanced",
                    tooltip="gentle, balanced and fast are tables for about 20 steps; schedule computes all blocks at "
                    "every so many evaluations; threshold when the first blocks change; tgate ends guidance early.",
                ),
                io.Int.Input("every", default=2, min=1, max=20, tooltip="For schedule: all blocks at each so many."),
                io.Float.Input(
                    "threshold",
                    default=0.1,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="For threshold: how much of itself the first blocks' work may change. Higher is faster.",
                ),
                io.Int.Input(
                    "first_blocks",
                    default=1,
                    min=0,
                    max=100,
                    tooltip="For schedule and threshold: blocks at the start that are always computed.",
                    advanced=True,
                ),
                io.Int.Input(
                    "last_blocks",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="For schedule and threshold: blocks at the end that are always computed.",
                    advanced=True,
                ),
                io.Float.Input(
                    "gate",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="For tgate: the part of the steps after which the caption is no longer read.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The part of the run before which nothing is cached. tgate has its gate instead.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The part of the run after which nothing is cached. tgate has its gate instead.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL with the cache; the one put in is left as it is.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        method: str = "balanced",
        every: int = 2,
        threshold: float = 0.1,
        first_blocks: int = 1,
        last_blocks: int = 0,
        gate: float = 0.5,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        settings = CacheSettings(method, every, threshold, first_blocks, last_blocks, gate)
        return io.NodeOutput(add_step_cache(model, settings, start_percent, end_percent, cls.hidden.unique_id))


NODES = [PixArtStepCache]
