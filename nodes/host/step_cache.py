"""Step caches in the host's sampling: state for one run, a window of steps, and a report at its end."""

from __future__ import annotations

import logging

import torch
from comfy.patcher_extension import WrappersMP

from ...pixart.attention import GATE
from ...pixart.caching import BlockCache, CacheSettings, CrossAttentionGate
from ...pixart.transformer import CACHE
from .messages import say
from .model import pixart_model
from .run import options_of_run

log = logging.getLogger(__name__)

KEY = "pixart_step_cache"


class RunCache:
    """A step cache during one run of one MODEL."""

    def __init__(self, settings: CacheSettings, window: tuple[float, float], gate: float, steps: torch.Tensor):
        """window: noise levels σ between which caching is allowed, the larger first; gate: T-GATE's;
        steps: the run's σ (n + 1,)."""
        self.blocks = BlockCache(settings)
        self.window, self.gate = window, gate
        self.steps = steps[:-1].tolist()
        self.gates: dict[tuple, CrossAttentionGate] = {}
        self.halves: dict[object, CrossAttentionGate] = {}
        """By the identity of the positive condition, what both halves read before the gate."""

    def progress(self, sigma: float) -> float:
        """0 to 1: the part of the run's steps before this noise level."""
        return sum(step > sigma * (1 + 1e-4) for step in self.steps) / max(len(self.steps), 1)

    def is_inside(self, sigma: float) -> bool:
        return self.window[1] < sigma <= self.window[0]

    def __call__(self, x: torch.Tensor, depth: int, run, residuals, options: dict) -> torch.Tensor:
        """The transformer's blocks; see ``pixart.transformer.CACHE``."""
        sigma = float(options["sigmas"].max())
        stream = (tuple(options.get("uuids", ())), tuple(x.shape), x.device, patched_places(options))
        if self.blocks.settings.method == "tgate":
            return self.gated(x, depth, run, options, stream, sigma)
        if not self.is_inside(sigma):
            self.blocks.forget(stream)
            self.blocks.asked += depth * x.shape[0]
            return self.blocks.compute(x, range(depth), run)

        def added(indices: range) -> torch.Tensor | None:
            parts = [residuals[i] for i in indices if i < len(residuals) and residuals[i] is not None]
            return sum(parts[1:], parts[0]) if parts else None

        position = torch.tensor(max(sigma, 1e-4)).log().item()
        return self.blocks.run(x, depth, run, added, stream, position, self.progress(sigma))

    @torch.compiler.disable(recursive=False)
    def gated(self, x, depth: int, run, options: dict, stream: tuple, sigma: float) -> torch.Tensor:
        is_past = sigma <= self.gate
        gate = self.halves.get(stream[0][0]) if is_past and len(stream[0]) == 1 else None
        if gate is None:
            gate = self.gates.setdefault(stream, CrossAttentionGate())
            gate.is_closed = is_past
        options[GATE] = gate
        self.blocks.asked += depth * x.shape[0]
        return self.blocks.compute(x, range(depth), run)

    def guide(self, executor, model, conds: list, x: torch.Tensor, timestep: torch.Tensor, options: dict):
        """CALC_COND_BATCH: after T-GATE's gate the positive half alone, reading what both read before."""
        both = [cond for cond in conds if cond]
        plain = len(conds) == len(both) == 2 and all(len(cond) == 1 for cond in both)
        pair = next((key for key in self.gates if len(key[0]) == 2), None)
        if float(timestep.max()) > self.gate or not plain or pair is None:
            return executor(model, conds, x, timestep, options)
        positive = conds[0][0]["uuid"]
        if positive not in self.halves:
            self.halves[positive] = self.gates[pair].mean_of_halves()
        out = executor(model, [conds[0], None], x, timestep, options)
        self.blocks.asked += self.blocks_left_out(x)
        return [out[0], out[0]]

    def blocks_left_out(self, x: torch.Tensor) -> int:
        depth = max((len(gate.kept) for gate in self.gates.values()), default=0)
        return depth * x.shape[0]

    def report(self) -> str:
        computed, asked = self.blocks.computed, self.blocks.asked
        saved = 1 - computed / asked if asked else 0.0
        return f"{computed} of {asked} block computations; {saved:.0%} saved"


def patched_places(options: dict) -> frozenset:
    """Where other nodes stand in for blocks and attention. Guidance by perturbed attention or skipped layers asks twice
    at a step for one condition, the second time with more such places: what comes of it is not to be mixed up.
    """
    replaced = options.get("patches_replace", {})
    added = options.get("patches", {})
    places = [(kind, place) for kind, known in replaced.items() for place in known]
    return frozenset([*places, *((kind, len(known)) for kind, known in added.items())])


def add_step_cache(patcher, settings: CacheSettings, start: float, end: float, node_id: str | None = None):
    """A clone of a MODEL whose sampling runs are cached between two parts of a run, 0 to 1.

    node_id: where the report of a run is shown. Raises ValueError when the MODEL is none of this pack's.
    """
    pixart_model(patcher)
    if not 0 <= start <= end <= 1:
        raise ValueError(f"start_percent is {start} and end_percent {end}: they must rise from 0 to 1.")
    sampling = patcher.get_model_object("model_sampling")  # which another node may have replaced
    window = (sampling.percent_to_sigma(start), sampling.percent_to_sigma(end))

    def outer(executor, noise, latent, sampler, sigmas, *args, **kwargs):
        gate = float(sigmas[min(round(settings.gate * (len(sigmas) - 1)), len(sigmas) - 1)])
        cache = RunCache(settings, window, gate, sigmas)
        try:
            with options_of_run(executor.class_obj) as options:
                options[CACHE] = cache
                return executor(noise, latent, sampler, sigmas, *args, **kwargs)
        finally:
            log.info("PixArt Step Cache (%s): %s", settings.method, cache.report())
            say(cache.report(), node_id)

    def guide(executor, model, conds, x, timestep, options):
        return options["transformer_options"][CACHE].guide(executor, model, conds, x, timestep, options)

    patcher = patcher.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.CALC_COND_BATCH):
        patcher.remove_wrappers_with_key(kind, KEY)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer)
    if settings.method == "tgate":
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, guide)
    return patcher
