"""What a sampling run remembers: exact savings that change nothing, caches that change a little, and no trace after."""

from __future__ import annotations

import gc
from importlib import import_module

import pytest
import torch
from random_models import random_checkpoint

from pixart.config import PixArtConfig

CONFIG = PixArtConfig(
    hidden_size=144, depth=4, num_heads=2, mlp_hidden_size=288, caption_channels=64, base_size=8, pe_interpolation=0.25
)
METHODS = ("gentle", "balanced", "fast", "schedule", "threshold", "tgate")


@pytest.fixture(scope="module")
def model(pack, tmp_path_factory):
    return random_model(pack, tmp_path_factory, 0)


@pytest.fixture(scope="module")
def another(pack, tmp_path_factory):
    return random_model(pack, tmp_path_factory, 1)


def random_model(pack, tmp_path_factory, seed: int):
    path = random_checkpoint(tmp_path_factory.mktemp("cache") / "m.safetensors", CONFIG, seed)
    return import_module(f"{pack.__name__}.nodes.host.model").load_model(path)


def caption(tokens: int, seed: int) -> list:
    return [[torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(seed)), {}]]


def sample(patcher, positive=None, steps=8, batch=1, callback=None, noise=None) -> torch.Tensor:
    import comfy.sample

    if noise is None:
        noise = torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    positive = caption(9, 1) if positive is None else positive
    return comfy.sample.sample(
        patcher, noise, steps, 4.5, "dpmpp_2m", "normal", positive, caption(2, 2), torch.zeros_like(noise), seed=3,
        callback=callback, disable_pbar=True,
    )  # fmt: skip


def without_memory(patcher):
    clone = patcher.clone()
    clone.remove_wrappers_with_key("outer_sample", "pixart_run")
    return clone


@pytest.fixture(scope="module")
def cached(pack):
    host = import_module(f"{pack.__name__}.nodes.host.step_cache")
    settings = import_module(f"{pack.__name__}.pixart.caching").CacheSettings

    def add(patcher, method: str, start: float = 0.0, end: float = 1.0, **more):
        return host.add_step_cache(patcher, settings(method, **more), start, end)

    return add


def count(patcher) -> list[int]:
    """The block indices that are computed from now on."""
    seen = []
    for index, block in enumerate(patcher.model.diffusion_model.blocks):
        block.register_forward_hook(lambda *_, index=index: seen.append(index))
    return seen


def test_keys_of_a_caption_are_computed_once_a_run_and_change_nothing(model):
    calls = []
    layer = model.model.diffusion_model.blocks[0].cross_attn.kv_linear
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    remembered = sample(model)
    assert len(calls) == 1
    plain = sample(without_memory(model))
    handle.remove()
    assert len(calls) == 1 + 8
    assert (remembered - plain).abs().max() <= 1e-4
    other = sample(model, caption(9, 7))
    assert (other - remembered).abs().max() > 1e-2
    assert (other - sample(without_memory(model), caption(9, 7))).abs().max() <= 1e-4


def test_a_lora_whose_strength_changes_within_a_run_is_obeyed(model):
    import comfy.hooks

    down, up = torch.randn(2, 144) * 0.5, torch.randn(288, 2) * 0.5
    lora = {
        "lora_unet_blocks_1_cross_attn_kv_linear.lora_down.weight": down,
        "lora_unet_blocks_1_cross_attn_kv_linear.lora_up.weight": up,
    }

    def hooked() -> list:
        group = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
        frames = comfy.hooks.HookKeyframeGroup()
        frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
        frames.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.5))
        group.set_keyframes_on_hooks(frames)
        positive = comfy.hooks.set_hooks_for_conditioning(caption(9, 1), hooks=group)
        return positive

    scheduled = sample(model, hooked())
    assert (scheduled - sample(without_memory(model), hooked())).abs().max() <= 1e-4
    assert (scheduled - sample(model)).abs().max() > 1e-3


def test_a_changed_caption_inside_the_model_is_not_mistaken_for_the_remembered_one(model):
    from comfy.patcher_extension import WrappersMP

    def halve(executor, x, timesteps, context, *args, **kwargs):
        return executor(x, timesteps, context * 0.5, *args, **kwargs)

    changed = model.clone()
    changed.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", halve)
    assert (sample(changed) - sample(without_memory(changed))).abs().max() <= 1e-4
    assert (sample(changed) - sample(model)).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_saves_work_changes_little_and_leaves_no_trace(method, model, cached):
    plain = sample(model, batch=2)
    fast = cached(model, method, threshold=1.0)
    seen = count(model)
    rows = []
    handle = model.model.diffusion_model.register_forward_hook(lambda _, args, out: rows.append(out.shape[0]))
    drawn = sample(fast, batch=2)
    handle.remove()
    for block in model.model.diffusion_model.blocks:
        block._forward_hooks.clear()
    if method == "tgate":
        assert rows == [4] * 4 + [2] * 4  # guidance ends at the gate
    else:
        assert len(seen) < 0.8 * 4 * 8
    error = (drawn - plain).pow(2).mean().sqrt() / plain.pow(2).mean().sqrt()
    assert 1e-6 < error < 0.5
    assert torch.equal(drawn, sample(fast, batch=2))
    assert torch.equal(plain, sample(model, batch=2))


def test_an_interrupted_run_leaves_no_trace(model, cached):
    class Stop(Exception):
        pass

    def stop(step, *_):
        if step == 3:
            raise Stop

    before = sample(model)
    fast = cached(model, "balanced")
    first = sample(fast)
    with pytest.raises(Stop):
        sample(fast, callback=stop)
    assert torch.equal(first, sample(fast))
    assert torch.equal(before, sample(model))
    options = fast.model_options["transformer_options"]
    assert "pixart_cache" not in options and "pixart_run" not in options


@pytest.mark.parametrize("method", METHODS)
def test_two_models_at_once_do_not_see_each_others_memory(method, model, another, cached):
    """One run begins and ends within the other's, as where a node samples inside another one's callback."""
    fast, other = (cached(m, method, threshold=1.0) for m in (model, another))
    alone, other_alone = sample(fast), sample(other, caption(5, 9))
    inside = []

    def nested(step, *_):
        if step in (1, 4):
            inside.append(sample(other, caption(5, 9)))

    assert torch.equal(sample(fast, callback=nested), alone)
    assert len(inside) == 2 and all(torch.equal(drawn, other_alone) for drawn in inside)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_after_others_is_the_run_before_them(method, model, cached):
    """Another caption, another batch and an interrupted run in between; then the same once more."""

    class Stop(Exception):
        pass

    def stop(step, *_):
        if step == 5:
            raise Stop

    fast, twin = (cached(model, method, threshold=1.0) for _ in range(2))
    exact, first = sample(model), sample(fast)
    assert torch.equal(sample(twin), first)
    other = sample(fast, caption(4, 8), batch=3)
    with pytest.raises(Stop):
        sample(fast, batch=2, callback=stop)
    assert torch.equal(sample(fast), first)
    assert torch.equal(sample(fast, caption(4, 8), batch=3), other)
    assert torch.equal(sample(model), exact)
    gc.collect()
    assert not any(type(o).__name__ in ("BlockCache", "CrossAttentionGate", "SamplingRun") for o in gc.get_objects())


@pytest.mark.parametrize("method", ["balanced", "schedule", "threshold"])
def test_what_a_controlnet_adds_is_that_of_the_step_itself(method, pack, cached):
    """Blocks that add one each: what is cached of four of them is four, and residuals come on top as they are now."""
    host = import_module(f"{pack.__name__}.nodes.host.step_cache")
    settings = import_module(f"{pack.__name__}.pixart.caching").CacheSettings(method, threshold=2.0)
    steps = torch.linspace(10, 0, 21)
    run = host.RunCache(settings, (99.0, 0.0), 0.0, steps)
    computed = []
    for number, sigma in enumerate(steps[:-1]):
        residuals = [torch.full((1, 2, 2), 10.0 * number), None, torch.full((1, 2, 2), 3.0 * number)]

        def block(index, x, residuals=residuals):
            computed.append(index)
            return x + 1 + (residuals[index] if index < 3 and residuals[index] is not None else 0)

        out = run(torch.full((1, 2, 2), 100.0 * number), 4, block, residuals, {"sigmas": sigma[None], "uuids": [1]})
        assert torch.allclose(out, torch.full((1, 2, 2), 113.0 * number + 4))
    assert len(computed) < 0.8 * 4 * 20


@pytest.mark.parametrize("method", METHODS)
def test_a_lora_under_a_cache_is_drawn_and_leaves_no_trace(method, model, cached):
    key = "diffusion_model.blocks.2.mlp.fc2.weight"
    patched = model.clone()
    patched.add_patches({key: (torch.full_like(model.model.diffusion_model.blocks[2].mlp.fc2.weight, 0.05),)}, 1.0)
    before, lora = sample(model), sample(patched)
    assert (lora - before).abs().max() > 1e-2
    fast = cached(patched, method, threshold=1.0)
    drawn = sample(fast)
    near, far = ((drawn - of).pow(2).mean() for of in (lora, sample(cached(model, method, threshold=1.0))))
    assert near > 1e-12 and far > 1e-6
    assert torch.equal(sample(fast), drawn)
    assert torch.equal(sample(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_pictures_of_a_batch_are_cached_as_if_alone(method, model, cached):
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    fast = cached(model, method, threshold=1.0)
    together = sample(fast, noise=noise)
    for index in range(3):
        alone = sample(fast, noise=noise[index : index + 1])
        if method == "threshold":  # judges the batch as a whole
            continue
        assert (together[index] - alone[0]).abs().max() <= 1e-3 * together.abs().max()


def test_nothing_is_cached_outside_of_the_window(model, cached):
    assert torch.equal(sample(model), sample(cached(model, "schedule", start=1.0)))


def test_a_copy_for_another_card_draws_the_same(model):
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no multi-GPU copies")
    copy = model.deepclone_multigpu(torch.device("cpu"))
    assert copy.model is not model.model
    assert torch.equal(sample(model), sample(copy))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "tgate"])
def test_perturbed_attention_guides_a_cached_run_as_it_does_a_plain_one(model, cached, method):
    """Without a negative the second pass is of the same condition and size: it once took the first one's values."""
    import comfy.sample
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    def drawn(patcher) -> torch.Tensor:
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        return comfy.sample.sample(
            patcher, noise, 12, 1.0, "euler", "normal", caption(9, 1), caption(2, 2), torch.zeros_like(noise), seed=3,
            disable_pbar=True,
        )  # fmt: skip

    guided = PerturbedAttentionGuidance.execute(model, 3.0).args[0]
    effect = drawn(guided) - drawn(model)
    kept = drawn(cached(guided, method)) - drawn(cached(model, method))
    assert (kept - effect).norm() <= 0.25 * effect.norm()


def test_the_part_of_a_run_is_measured_on_the_noise_levels_of_that_model(model, cached, pack, monkeypatch):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    host = import_module(f"{pack.__name__}.nodes.host.step_cache")
    windows, kind = [], host.RunCache
    monkeypatch.setattr(host, "RunCache", lambda *args: windows.append(args[1]) or kind(*args))
    (other,) = ModelSamplingDiscrete().patch(model, "eps", True)
    levels = [part.get_model_object("model_sampling").percent_to_sigma(0.5) for part in (model, other)]
    for part in (model, other):
        sample(cached(part, "schedule", 0.5, 1.0), steps=2)
    assert [window[0] for window in windows] == levels and levels[0] != levels[1]


def test_impossible_settings_are_refused_in_words(model, cached):
    with pytest.raises(ValueError, match="start_percent is 0.8 and end_percent 0.2"):
        cached(model, "schedule", start=0.8, end=0.2)
    with pytest.raises(ValueError, match="first_blocks is 0, but the method threshold"):
        cached(model, "threshold", first=0)


def test_the_hosts_torch_compile_finds_one_graph_and_keeps_it(model):
    """A run of eight steps: no break anywhere, and no more than one graph for the first step and one for the others."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend=backend)
    drawn = sample(compiled)
    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    torch._dynamo.reset()
    plain = sample(model)
    assert (drawn - plain).abs().max() <= 1e-4 * plain.abs().max()
    assert breaks == {}
    assert len(graphs) <= 2


@pytest.mark.parametrize("method", [None, "balanced", "tgate"])
def test_the_hosts_split_of_guidance_over_two_devices_draws_the_same(model, cached, method):
    """The processor under two names stands for two cards: each half of guidance in its own thread and copy."""
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no multi-GPU copies")
    whole = model if method is None else cached(model, method)
    split = whole.clone()
    copy = whole.deepclone_multigpu(torch.device("cpu", 0))
    copy.is_multigpu_base_clone = True
    split.set_additional_models("multigpu", [copy])
    rows = {}
    handles = [
        part.model.diffusion_model.register_forward_hook(
            lambda _, args, out, name=name: rows.setdefault(name, []).append(out.shape[0])
        )
        for name, part in (("first", whole), ("second", copy))
    ]
    drawn = sample(split)
    for handle in handles:
        handle.remove()
    expected = sample(whole)
    assert rows["first"][0] == rows["second"][0] == 1
    assert (drawn - expected).abs().max() <= 1e-3 * expected.abs().max()
