"""Our transformer as the host's MODEL: batching, patches, saving."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from random_models import random_checkpoint

from pixart.config import ALPHA, PixArtConfig

SIGMA_TINY = PixArtConfig(
    hidden_size=144, depth=4, num_heads=2, mlp_hidden_size=288, caption_channels=64, base_size=8, pe_interpolation=0.25
)
ALPHA_TINY = replace(SIGMA_TINY, family=ALPHA, micro_condition=True, max_caption_tokens=120)


@pytest.fixture(scope="module")
def host_model(pack):
    return import_module(f"{pack.__name__}.nodes.host.model")


@pytest.fixture(scope="module")
def sigma(host_model, tmp_path_factory):
    return host_model.load_model(random_checkpoint(tmp_path_factory.mktemp("sigma") / "s.safetensors", SIGMA_TINY))


@pytest.fixture(scope="module")
def alpha(host_model, tmp_path_factory):
    return host_model.load_model(random_checkpoint(tmp_path_factory.mktemp("alpha") / "a.safetensors", ALPHA_TINY))


def caption(tokens: int, seed: int, **extra) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, 64, generator=generator), extra]]


def sample(patcher, positive, negative, steps=4, cfg=4.5, size=(16, 16), batch=1, **more) -> torch.Tensor:
    import comfy.sample

    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(batch, 4, *size, generator=generator)
    latent = torch.zeros_like(noise)
    more = {"sampler": "dpmpp_2m", "scheduler": "normal", **more}
    sampler, scheduler = more.pop("sampler"), more.pop("scheduler")
    return comfy.sample.sample(patcher, noise, steps, cfg, sampler, scheduler, positive, negative, latent, seed=3)


def counted(patcher) -> tuple:
    """A clone of the MODEL that notes the shape of every forward."""
    from comfy.patcher_extension import WrappersMP

    calls = []

    def note(executor, x, *args, **kwargs):
        calls.append(tuple(x.shape))
        return executor(x, *args, **kwargs)

    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note)
    return clone, calls


def test_unequal_prompts_take_one_forward_a_step(sigma):
    model, calls = counted(sigma)
    sample(model, caption(23, 1), caption(1, 2), steps=5)
    assert calls == [(2, 4, 16, 16)] * 5


def denoise(patcher, conds: list, x: torch.Tensor) -> list[torch.Tensor]:
    """One evaluation of the model for each of several captions, batched as the host pleases."""
    import comfy.model_management
    import comfy.sampler_helpers
    import comfy.samplers

    comfy.model_management.load_models_gpu([patcher])
    model = patcher.model
    prepared = [comfy.sampler_helpers.convert_cond(c) for c in conds]
    prepared = [comfy.samplers.encode_model_conds(model.extra_conds, c, x, x.device, "positive") for c in prepared]
    options = {**patcher.model_options, "transformer_options": {**patcher.model_options["transformer_options"]}}
    patcher.pre_run()
    out = comfy.samplers.calc_cond_batch(model, prepared, x, torch.full((x.shape[0],), 3.0), options)
    patcher.cleanup()
    return out


def test_a_batch_of_unequal_prompts_equals_separate_forwards(sigma):
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    long, short = caption(41, 1), caption(3, 2)
    calls = []
    handle = sigma.model.diffusion_model.register_forward_hook(lambda _, args, out: calls.append(tuple(out.shape)))
    together = denoise(sigma, [long, short], x)
    apart = denoise(sigma, [long], x) + denoise(sigma, [short], x)
    handle.remove()
    assert calls == [(2, 4, 16, 16), (1, 4, 16, 16), (1, 4, 16, 16)]
    assert max((a - b).abs().max().item() for a, b in zip(together, apart, strict=True)) <= 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_an_attention_mask_in_the_conditioning_is_obeyed(sigma):
    x = torch.randn(1, 4, 16, 16)
    (tensor, _), *_ = caption(12, 5)
    mask = torch.tensor([[1] * 7 + [0] * 5])
    masked = denoise(sigma, [[[tensor, {"attention_mask": mask}]]], x)[0]
    cut = denoise(sigma, [[[tensor[:, :7], {}]]], x)[0]
    whole = denoise(sigma, [[[tensor, {}]]], x)[0]
    assert (masked - cut).abs().max() <= 1e-5
    assert (masked - whole).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (9, 32), (40, 24)])
def test_any_latent_size_is_sampled_and_comes_back_in_that_size(sigma, size):
    out = sample(sigma, caption(5, 1), caption(2, 2), steps=2, size=size)
    assert out.shape == (1, 4, *size)
    assert out.isfinite().all()


def test_size_conditioning_reaches_alpha_in_whole_pixels(alpha):
    seen = []

    def note(executor, *args, **kwargs):
        seen.append(kwargs["c_size"])
        return executor(*args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    model = alpha.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note)
    told = sample(model, caption(5, 1, width=1088, height=1872), caption(2, 2, width=1088, height=1872), steps=1)
    assert seen[0].tolist() == [[1872, 1088]] * 2 and not seen[0].is_floating_point()
    untold = sample(model, caption(5, 1), caption(2, 2), steps=1)
    assert seen[-1].tolist() == [[128, 128]] * 2
    assert (told - untold).abs().max() > 1e-3


def test_sigma_batches_although_only_one_prompt_has_a_size(sigma):
    model, calls = counted(sigma)
    sample(model, caption(5, 1, width=512, height=512), caption(2, 2), steps=2)
    assert calls == [(2, 4, 16, 16)] * 2


def test_latent_scales_follow_the_family(sigma, alpha):
    assert sigma.model.latent_format.scale_factor == 0.13025
    assert alpha.model.latent_format.scale_factor == 0.18215


def test_perturbed_attention_guidance_changes_the_picture(sigma):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    plain = sample(sigma, caption(5, 1), caption(2, 2))
    guided = sample(PerturbedAttentionGuidance.execute(sigma, 3.0).args[0], caption(5, 1), caption(2, 2))
    assert (plain - guided).abs().max() > 1e-2
    assert torch.equal(plain, sample(sigma, caption(5, 1), caption(2, 2)))


def test_skip_layer_guidance_changes_the_picture(sigma):
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    plain = sample(sigma, caption(5, 1), caption(2, 2), steps=6)
    pictures = []
    for layers in ({"double_layers": "1", "single_layers": ""}, {"double_layers": "", "single_layers": "2"}):
        node = SkipLayerGuidanceDiT.execute(sigma, 3.0, 0.0, 1.0, **layers)
        pictures.append(sample(node.args[0], caption(5, 1), caption(2, 2), steps=6))
    assert min((plain - p).abs().max().item() for p in pictures) > 1e-2
    assert not torch.equal(*pictures)


def test_easycache_skips_forwards_and_changes_the_picture(sigma):
    from comfy_extras.nodes_easycache import EasyCacheNode

    model, calls = counted(sigma)
    plain = sample(model, caption(5, 1), caption(2, 2), steps=12)
    assert len(calls) == 12
    cached_model = EasyCacheNode.execute(sigma, 0.5, 0.1, 0.95, False).args[0]
    # Added after the cache's own wrapper, this one sees only the forwards that are really computed.
    cached_model, real = counted(cached_model)
    cached = sample(cached_model, caption(5, 1), caption(2, 2), steps=12)
    assert len(real) < 12
    assert (plain - cached).abs().max() > 1e-3


def test_block_keys_and_replacements_reach_every_block(sigma):
    seen = []

    def watch(args, extra):
        options = args["transformer_options"]
        seen.append((options["block_index"], options["total_blocks"], options["block_type"]))
        return extra["original_block"](args)

    model = sigma.clone()
    for i in range(4):
        model.set_model_patch_replace(watch, "dit", ("double_block", "single_block", "block")[i % 3], i)
    plain = sample(sigma, caption(5, 1), caption(2, 2), steps=1)
    watched = sample(model, caption(5, 1), caption(2, 2), steps=1)
    assert torch.equal(plain, watched)
    assert seen == [(i, 4, "double") for i in range(4)]


def test_attention_patches_reach_self_and_cross_attention(sigma):
    shapes = {}

    def note(name):
        def patch(q, k, v, pe=None, attn_mask=None, extra_options=None):
            shapes.setdefault(name, (tuple(q.shape), tuple(k.shape)))
            return {"q": q, "k": k, "v": v}

        return patch

    model = sigma.clone()
    model.set_model_attn1_patch(note("self"))
    model.set_model_attn2_patch(note("cross"))
    patched = sample(model, caption(5, 1), caption(2, 2), steps=1)
    assert torch.equal(patched, sample(sigma, caption(5, 1), caption(2, 2), steps=1))
    assert shapes == {"self": ((2, 2, 64, 72), (2, 2, 64, 72)), "cross": ((2, 2, 64, 72), (2, 2, 5, 72))}

    model.set_model_attn1_output_patch(lambda x, options: x * 0)
    assert not torch.equal(patched, sample(model, caption(5, 1), caption(2, 2), steps=1))


@pytest.mark.parametrize("family", ["sigma", "alpha"])
def test_a_saved_model_reads_back_as_the_same_model(family, host_model, tmp_path, request):
    from comfy_extras.nodes_model_merging import save_checkpoint

    patcher = request.getfixturevalue(family)
    save_checkpoint(patcher, filename_prefix="saved", output_dir=str(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    again = host_model.load_model(str(file))
    assert again.model.pixart.config == patcher.model.pixart.config
    first = sample(patcher, caption(5, 1), caption(2, 2))
    assert torch.equal(first, sample(again, caption(5, 1), caption(2, 2)))


def test_the_hosts_lora_maps_know_our_model(sigma):
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(sigma.model, {})
    assert keys["transformer.transformer_blocks.3.attn1.to_q"][0] == "diffusion_model.blocks.3.attn.qkv.weight"
    assert keys["lora_unet_blocks_0_cross_attn_kv_linear"] == "diffusion_model.blocks.0.cross_attn.kv_linear.weight"


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3fn"])
def test_other_weight_types_draw_nearly_the_same(dtype, sigma, host_model, tmp_path):
    path = random_checkpoint(tmp_path / "s.safetensors", SIGMA_TINY)
    lower = host_model.load_model(path, dtype)
    assert lower.model.get_dtype() == host_model.WEIGHT_DTYPES[dtype]
    a = denoise(sigma, [caption(5, 1)], torch.ones(1, 4, 16, 16))[0]
    b = denoise(lower, [caption(5, 1)], torch.ones(1, 4, 16, 16))[0]
    difference = ((a - b).pow(2).mean() / a.pow(2).mean()).sqrt().item()
    assert 0 < difference < {"bf16": 0.02, "fp16": 0.005, "fp8_e4m3fn": 0.2}[dtype]


def test_a_caption_of_the_wrong_width_is_refused_with_the_remedy(sigma):
    with pytest.raises(ValueError, match="The caption is 768 wide, but s.safetensors was trained on captions 64 wide"):
        sample(sigma, [[torch.randn(1, 77, 768), {}]], caption(2, 2), steps=1)


def test_another_model_is_refused_by_name(host_model):
    with pytest.raises(ValueError, match="This MODEL is NoneType, not a PixArt model"):
        host_model.pixart_model(None)


def test_a_run_keeps_memory_for_its_layers_until_it_ends(sigma, pack, monkeypatch):
    """With this host's own layers, and to the same numbers as without."""
    compat = import_module(f"{pack.__name__}.nodes.host.compat")
    workspaces, make = [], compat.workspace

    def noted():
        workspace = make()
        workspaces.append((weakref.ref(workspace), workspace.slots))
        return workspace

    positive, negative = caption(9, 1), caption(4, 2)
    monkeypatch.setattr(compat, "workspace", noted)
    kept = sample(sigma, positive, negative)
    assert any(len(slots) == 2 for _, slots in workspaces)
    gc.collect()
    assert all(reference() is None for reference, _ in workspaces)

    monkeypatch.setattr(compat, "workspace", lambda: type(make())(plain=()))
    assert torch.equal(sample(sigma, positive, negative), kept)


def test_an_interruption_is_heeded_at_a_layer_that_writes_into_kept_memory(pack, monkeypatch):
    import comfy.model_management
    import comfy.ops

    compat = import_module(f"{pack.__name__}.nodes.host.compat")
    layer = comfy.ops.disable_weight_init.Linear(8, 12, dtype=torch.float32)
    x, workspace = torch.randn(1, 3, 8), compat.workspace()
    workspace.linear(layer, x, "wide")
    assert workspace.slots
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            workspace.linear(layer, x, "wide")
    finally:
        comfy.model_management.interrupt_current_processing(False)
