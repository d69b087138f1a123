"""LoRA and full fine-tunes on the host's MODEL and CLIP: strength, stacking, offload, fp8, hooks, saving."""

from __future__ import annotations

import copy
import dataclasses
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lora_files import DATA, tiny_file
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from pixart.adapters import merge
from pixart.checkpoint import config_metadata, to_diffusers, to_original
from pixart.config import PixArtConfig
from pixart.lora import open_lora
from pixart.text.tokens import SentencePieceTokenizer
from pixart.training.demo.text import encoder_config, train_tokenizer
from pixart.training.initialise import initialise
from pixart.transformer import PixArtTransformer

TINY = PixArtConfig(
    hidden_size=144, depth=2, num_heads=2, mlp_hidden_size=576, caption_channels=32, base_size=8, pe_interpolation=0.25
)
LYCORIS = PixArtConfig(
    hidden_size=24, depth=1, num_heads=2, mlp_hidden_size=96, caption_channels=16, base_size=8, pe_interpolation=0.5,
    null_caption=False,
)  # fmt: skip
ONETRAINER = "lora_onetrainer_legacy_sigma_r16"


@torch.no_grad()
def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = initialise(PixArtTransformer(TINY))
    for value in model.parameters():
        if not value.any():
            value.normal_(std=0.05)
    model.y_embedder.y_embedding.normal_()
    return model.state_dict()


def write(path: Path, state: dict, config: PixArtConfig = TINY) -> str:
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata=config_metadata(config))
    return str(path)


@pytest.fixture(scope="module")
def host(pack):
    return {
        name: import_module(f"{pack.__name__}.nodes.host.{name}")
        for name in ("model", "lora", "dreambooth", "text", "patches")
    }


@pytest.fixture(scope="module")
def base_file(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("base") / "base.safetensors", random_state())


@pytest.fixture
def base(host, base_file):
    return host["model"].load_model(base_file)


@pytest.fixture(scope="module")
def lora_folder(pack, tmp_path_factory) -> Path:
    import folder_paths

    folder = tmp_path_factory.mktemp("loras")
    folder_paths.add_model_folder_path("loras", str(folder))
    return folder


def predict(patcher, **load) -> torch.Tensor:
    """One evaluation through the host, with its own loading of patched weights."""
    import comfy.model_management

    if load:
        patcher.load(patcher.load_device, **load)
    else:
        comfy.model_management.load_models_gpu([patcher], force_patch_weights=True)
    generator = torch.Generator().manual_seed(4)
    channels = patcher.model.pixart.config.caption_channels
    x, caption = (torch.randn(size, generator=generator) for size in ((1, 4, 16, 16), (1, 6, channels)))
    return patcher.model.apply_model(x, torch.ones(1), c_crossattn=caption, transformer_options={})


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def merged_file(path: Path, state: dict, lora: Path, strength: float = 1.0, config: PixArtConfig = TINY) -> str:
    return write(path, merge(state, open_lora(lora).transformer, strength), config)


DIALECTS = [ONETRAINER, "lora_onetrainer_diffusers_sigma_r16", "lora_simpletuner_peft_sigma_r16",
            "lora_peft_sigma_1024_r16", "lora_kohya_sigma_r16", "lora_comfy_names_sigma_r16",
            "lora_original_names_sigma_r16"]  # fmt: skip


@pytest.mark.parametrize("manifest", DIALECTS)
def test_every_dialect_draws_as_the_merged_weights_do(manifest, host, base, tmp_path):
    lora = tmp_path / "l.safetensors"
    tiny_file(manifest, lora)
    patched, clip, report = host["lora"].load_lora(base, None, str(lora), 1.0, 1.0)
    modules = len(open_lora(lora).transformer)
    assert clip is None and f"transformer: {modules} of {modules} modules matched, strength 1" in report
    merged = host["model"].load_model(merged_file(tmp_path / "m.safetensors", random_state(), lora))
    assert distance(predict(patched), predict(merged)) <= 1e-5
    assert distance(predict(patched), predict(base)) > 1e-2


def test_a_file_of_peft_draws_as_diffusers_and_peft_do(host, tmp_path):
    """The model in the host, beside diffusers' own with peft's own adapter on it: the same file, the same forward."""
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    torch.manual_seed(2)
    reference = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=72, num_layers=2, cross_attention_dim=144, caption_channels=32,
        sample_size=64, interpolation_scale=1, use_additional_conditions=False,
    ).eval()  # fmt: skip
    state = to_original(reference.state_dict())
    config = dataclasses.replace(TINY, base_size=32, pe_interpolation=1.0, null_caption=False)
    base = host["model"].load_model(write(tmp_path / "b.safetensors", state, config))
    targets = [
        "to_k",
        "to_q",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "proj",
        "linear",
        "linear_1",
        "linear_2",
    ]
    wrapped = peft.get_peft_model(reference, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            value.data.add_(torch.randn_like(value) * 0.05)
    wrapped.save_pretrained(tmp_path)
    patched, _, report = host["lora"].load_lora(base, None, str(tmp_path / "adapter_model.safetensors"), 1.0, 0.0)
    assert "alpha 6 (scale 1.5): alpha 6 from adapter_config.json" in report
    x, caption, t = torch.randn(1, 4, 16, 16), torch.randn(1, 6, 32), torch.tensor([700.0])
    added = {"resolution": None, "aspect_ratio": None}
    expected = wrapped(x, encoder_hidden_states=caption, timestep=t, added_cond_kwargs=added, return_dict=False)[0][
        :, :4
    ]
    plain = base.model.diffusion_model(x, t, caption)
    predict(patched)  # the host works the LoRA in
    assert distance(patched.model.diffusion_model(x, t, caption), expected) <= 1e-5
    assert distance(plain, expected) > 1e-2


KINDS = sorted(file.stem for file in (DATA / "lora").glob("*.safetensors") if file.stem != "base")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lycoris_draws_as_the_merged_weights_do(kind, host, tmp_path):
    """Through the host's own adapters, and ours for DoRA."""
    weights = load_file(DATA / "lora" / "base.safetensors")
    state = to_original({name[2:]: value for name, value in weights.items() if name.startswith("w.")})
    stored = load_file(DATA / "lora" / f"{kind}.safetensors")
    del stored["out"]
    save_file(stored, tmp_path / "l.safetensors")
    base = host["model"].load_model(write(tmp_path / "b.safetensors", state, LYCORIS))
    merged_path = merged_file(tmp_path / "m.safetensors", state, tmp_path / "l.safetensors", config=LYCORIS)
    patched, _, report = host["lora"].load_lora(base, None, str(tmp_path / "l.safetensors"), 1.0, 1.0)
    assert "without a place" not in report
    plain = predict(base)
    assert distance(predict(patched), predict(host["model"].load_model(merged_path))) <= 1e-5
    assert distance(predict(patched), plain) > 1e-2
    half, _, _ = host["lora"].load_lora(base, None, str(tmp_path / "l.safetensors"), 0.5, 1.0)
    merged_path = merged_file(tmp_path / "h.safetensors", state, tmp_path / "l.safetensors", 0.5, LYCORIS)
    assert distance(predict(half), predict(host["model"].load_model(merged_path))) <= 1e-5


def test_strength_zero_gives_the_very_same_model(host, base, tmp_path):
    tiny_file(ONETRAINER, tmp_path / "l.safetensors")
    model, _, report = host["lora"].load_lora(base, None, str(tmp_path / "l.safetensors"), 0.0, 0.0)
    assert model is base and "strength 0" in report


def test_strengths_add_up_and_below_zero_takes_away(host, base, tmp_path):
    path = tmp_path / "l.safetensors"
    tiny_file(ONETRAINER, path)
    load = host["lora"].load_lora
    plain = predict(base)
    twice = load(load(base, None, str(path), 0.75, 1.0)[0], None, str(path), 0.25, 1.0)[0]
    assert distance(predict(twice), predict(load(base, None, str(path), 1.0, 1.0)[0])) <= 1e-5
    undone = load(load(base, None, str(path), 0.75, 1.0)[0], None, str(path), -0.75, 1.0)[0]
    assert distance(predict(undone), plain) <= 1e-5
    merged = host["model"].load_model(merged_file(tmp_path / "m.safetensors", random_state(), path, -0.5))
    assert distance(predict(load(base, None, str(path), -0.5, 1.0)[0]), predict(merged)) <= 1e-5
    assert torch.equal(predict(base), plain), "the model that came in was changed"


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_weights_that_stay_offloaded_are_patched_as_they_are_used(kind, host, tmp_path):
    weights = load_file(DATA / "lora" / "base.safetensors")
    state = to_original({name[2:]: value for name, value in weights.items() if name.startswith("w.")})
    stored = load_file(DATA / "lora" / ("dora_out.safetensors" if kind == "dora" else "locon.safetensors"))
    del stored["out"]
    save_file(stored, tmp_path / "l.safetensors")
    base = host["model"].load_model(write(tmp_path / "b.safetensors", state, LYCORIS))
    patched = host["lora"].load_lora(base, None, str(tmp_path / "l.safetensors"), 1.0, 1.0)[0]
    partly = predict(patched, lowvram_model_memory=64)
    assert patched.model.model_lowvram and patched.model.lowvram_patch_counter > 0
    patched.unpatch_model(patched.offload_device)
    assert distance(partly, predict(patched)) <= 1e-6


def test_a_lora_on_fp8_weights_draws_nearly_the_same(host, base_file, base, tmp_path):
    tiny_file(ONETRAINER, tmp_path / "l.safetensors")
    exact = predict(host["lora"].load_lora(base, None, str(tmp_path / "l.safetensors"), 1.0, 1.0)[0])
    coarse_base = host["model"].load_model(base_file, "fp8_e4m3fn")
    coarse = predict(host["lora"].load_lora(coarse_base, None, str(tmp_path / "l.safetensors"), 1.0, 1.0)[0])
    relative = ((coarse - exact).pow(2).mean() / exact.pow(2).mean()).sqrt().item()
    assert 0 < relative < 0.2
    assert ((exact - predict(base)).pow(2).mean() / exact.pow(2).mean()).sqrt().item() > 2 * relative


def test_a_model_with_a_lora_is_saved_with_it(host, base, tmp_path):
    from comfy_extras.nodes_model_merging import save_checkpoint

    tiny_file(ONETRAINER, tmp_path / "l.safetensors")
    patched = host["lora"].load_lora(base, None, str(tmp_path / "l.safetensors"), 1.0, 1.0)[0]
    save_checkpoint(patched, filename_prefix="saved", output_dir=str(tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert distance(predict(host["model"].load_model(str(file))), predict(patched)) <= 1e-5


@pytest.mark.parametrize("manifest", ["lora_simpletuner_peft_sigma_r16", "lora_kohya_sigma_r16"])
def test_the_hosts_own_loader_gives_the_same_where_it_knows_the_dialect(manifest, host, base, lora_folder):
    import nodes

    tiny_file(manifest, lora_folder / "known.safetensors")
    theirs, _ = nodes.LoraLoader().load_lora(base, None, "known.safetensors", 0.8, 0.0)
    ours, _, _ = host["lora"].load_lora(base, None, str(lora_folder / "known.safetensors"), 0.8, 0.0)
    assert distance(predict(theirs), predict(ours)) <= 1e-6
    assert distance(predict(base), predict(ours)) > 1e-2


def sample(patcher, positive, negative) -> torch.Tensor:
    import comfy.sample

    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    zeros = torch.zeros_like(noise)
    return comfy.sample.sample(patcher, noise, 3, 4.0, "euler", "normal", positive, negative, zeros, seed=3)


def test_the_hosts_scheduled_loras_work_beside_ours(host, base, lora_folder):
    """A hook over the whole run is the LoRA itself, one of strength 0 is none, one that ends half-way is neither."""
    import comfy.hooks
    from comfy_extras.nodes_hooks import CreateHookLora

    tiny_file("lora_simpletuner_peft_sigma_r16", lora_folder / "hooked.safetensors")
    tiny_file(ONETRAINER, lora_folder / "ours.safetensors", alpha=1.0)
    ours = host["lora"].load_lora(base, None, str(lora_folder / "ours.safetensors"), 1.0, 0.0)[0]
    both = host["lora"].load_lora(ours, None, str(lora_folder / "hooked.safetensors"), 1.0, 0.0)[0]
    generator = torch.Generator().manual_seed(1)
    captions = [[[torch.randn(1, tokens, 32, generator=generator), {}]] for tokens in (5, 2)]

    def scheduled(*keyframes: tuple[float, float]):
        (hooks,) = CreateHookLora().create_hook("hooked.safetensors", 1.0, 0.0)
        group = comfy.hooks.HookKeyframeGroup()
        for start, strength in keyframes:
            group.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
        hooks.set_keyframes_on_hooks(group)
        return sample(ours, *(comfy.hooks.set_hooks_for_conditioning(caption, hooks) for caption in captions))

    plain, patched = sample(ours, *captions), sample(both, *captions)
    scale = plain.abs().max().item()
    assert distance(plain, patched) > 1e-2 * scale
    assert distance(scheduled((0.0, 1.0)), patched) <= 1e-5 * scale
    assert distance(scheduled((0.0, 0.0)), plain) <= 1e-5 * scale
    half = scheduled((0.0, 1.0), (0.5, 0.0))
    assert min(distance(half, plain), distance(half, patched)) > 1e-4 * scale


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A tiny T5 of transformers, and its file."""
    vocabulary = train_tokenizer(seed=0)
    torch.manual_seed(0)
    model = T5EncoderModel(encoder_config(SentencePieceTokenizer(vocabulary).processor.vocab_size())).eval()
    path = tmp_path_factory.mktemp("t5") / "t5.safetensors"
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(state | {"spiece_model": torch.frombuffer(bytearray(vocabulary), dtype=torch.uint8)}, path)
    return model, path


def t5_lora(model, path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """A LoRA on every attention and feed-forward layer; name in T5 → what it adds."""
    generator = torch.Generator().manual_seed(6)
    flat, tensors, added = prefix.startswith("lora_"), {}, {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            down = torch.randn(3, layer.in_features, generator=generator) * 0.1
            up = torch.randn(layer.out_features, 3, generator=generator) * 0.1
            stem = prefix + (name.replace(".", "_") if flat else name)
            a, b = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
            tensors |= {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up, f"{stem}.alpha": torch.tensor(1.5)}
            added[f"{name}.weight"] = up @ down * 0.5
    save_file(tensors, path)
    return added


@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_", "text_encoder.", "text_encoders.t5xxl.transformer."])
def test_the_text_encoders_part_changes_captions_as_merged_weights_do(prefix, host, base, t5, tmp_path):
    reference, file = t5
    added = t5_lora(reference, tmp_path / "l.safetensors", prefix)
    clip = host["text"].load_clip(str(file))
    model, patched, report = host["lora"].load_lora(base, clip, str(tmp_path / "l.safetensors"), 1.0, 0.5)
    assert model is base and f"text encoder: {len(added)} of {len(added)} modules matched, strength 0.5" in report
    assert "transformer: nothing in the file" in report

    def encode(which):
        return which.encode_from_tokens_scheduled(which.tokenize("a small red star"))[0][0]

    merged = copy.deepcopy(reference)
    state = merged.state_dict()
    merged.load_state_dict({name: value + 0.5 * added.get(name, torch.zeros(())) for name, value in state.items()})
    ids = [token for token, _ in clip.tokenize("a small red star")["t5xxl"][0]]
    expected = merged(torch.tensor([ids])).last_hidden_state
    assert distance(encode(patched), expected) <= 1e-5
    assert distance(encode(clip), expected) > 1e-2


def test_a_text_encoder_part_without_a_clip_is_told(host, base, t5, tmp_path):
    t5_lora(t5[0], tmp_path / "l.safetensors", "lora_te_")
    with pytest.raises(ValueError, match=r"l.safetensors: The LoRA changes only the text encoder .* Connect the CLIP"):
        host["lora"].load_lora(base, None, str(tmp_path / "l.safetensors"), 1.0, 1.0)
    both = tiny_file(ONETRAINER, tmp_path / "m.safetensors") | load_file(tmp_path / "l.safetensors")
    save_file(both, tmp_path / "l.safetensors")
    _, _, report = host["lora"].load_lora(base, None, str(tmp_path / "l.safetensors"), 1.0, 1.0)
    assert "modules left out, since no clip is connected" in report
    with pytest.raises(ValueError, match="The LoRA has a part for T5, but the CLIP that is connected holds none"):
        host["lora"].load_lora(base, object(), str(tmp_path / "l.safetensors"), 1.0, 1.0)


def pair(name: str, out: int, inner: int) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(2, inner), f"{name}.lora_B.weight": torch.ones(out, 2)}


WRONG = {
    r"made for a model of width 1152 \(PixArt XL's\); this PixArt model is 144 wide": pair(
        "transformer.transformer_blocks.0.attn1.to_q", 1152, 1152
    ),
    r"changes blocks up to number 27, but the PixArt model has 2": pair("blocks.27.attn.proj", 144, 144),
    r"None of the LoRA's 1 modules has a place in this model. The first: csize_embedder.mlp.0": pair(
        "csize_embedder.mlp.0", 48, 256
    ),
    r"This is a LoRA for SDXL": pair("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 640, 2048),
}


@pytest.mark.parametrize("message", WRONG)
def test_the_node_says_what_is_wrong_with_a_file(message, node_classes, base, lora_folder):
    save_file(WRONG[message], lora_folder / "wrong.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        node_classes["PixArtLoadLora"].execute(base, "wrong.safetensors")
    assert "wrong.safetensors" in str(caught.value)


def test_a_model_that_is_not_pixart_is_refused(host, tmp_path):
    tiny_file(ONETRAINER, tmp_path / "l.safetensors")
    with pytest.raises(ValueError, match="This MODEL is NoneType, not a PixArt model"):
        host["lora"].load_lora(None, None, str(tmp_path / "l.safetensors"), 1.0, 1.0)


def test_the_report_names_kind_rank_alpha_and_what_has_no_place(node_classes, base, lora_folder):
    tensors = tiny_file(ONETRAINER, lora_folder / "l.safetensors")
    tensors |= pair("csize_embedder.mlp.0", 48, 256) | {"bundle_emb.sks.t5": torch.ones(1, 32)}
    metadata = {"pixart_trigger": "a sks star", "pixart_base_sha": "0123456789abcdef0123", "pixart_steps": "300"}
    save_file(tensors, lora_folder / "l.safetensors", metadata=metadata)
    model, clip, report = node_classes["PixArtLoadLora"].execute(base, "l.safetensors", 0.5, 1.0).args
    lines = report.split("\n")
    assert lines == [
        "l.safetensors: OneTrainer (lora_transformer_…), original PixArt names, LoRA",
        "rank 2 to 4, alpha 2 to 3 (scale 0.75 to 1): the alpha tensors in the file; alpha = rank, since neither the "
        "file nor its metadata states one",
        "transformer: 26 of 27 modules matched, strength 0.5",
        "text encoder: nothing in the file",
        "trigger: a sks star",
        "trained on the base 0123456789abcdef",
        "training: steps 300",
        "without a place: 2",
        "· csize_embedder.mlp.0: the PixArt model has no csize_embedder.mlp.0.weight",
        "· bundle_emb.sks.t5: an embedding, not a LoRA",
    ]


def test_a_lora_file_written_anew_is_read_anew(node_classes, lora_folder):
    node = node_classes["PixArtLoadLora"]
    tiny_file(ONETRAINER, lora_folder / "again.safetensors")
    before = node.fingerprint_inputs(lora_name="again.safetensors", strength_model=1.0)
    tiny_file("lora_kohya_sigma_r16", lora_folder / "again.safetensors")
    assert node.fingerprint_inputs(lora_name="again.safetensors", strength_model=1.0) != before
    assert node.fingerprint_inputs(lora_name=None) == node.fingerprint_inputs(lora_name="gone.safetensors") == ""


def fine_state(scale: float = 0.02) -> dict[str, torch.Tensor]:
    """A fine-tune: every parameter moved a little, the null caption as it was."""
    generator = torch.Generator().manual_seed(8)
    return {
        name: value if name.endswith("y_embedding") else value + scale * torch.randn(value.shape, generator=generator)
        for name, value in random_state().items()
    }


@pytest.mark.parametrize("dialect", ["original", "diffusers", "bf16"])
def test_a_fine_tune_at_strength_one_is_the_fine_tune(dialect, host, base, tmp_path):
    state = fine_state()
    if dialect == "bf16":
        state = {name: value.bfloat16() for name, value in state.items()}
    path = write(tmp_path / "fine.safetensors", to_diffusers(state) if dialect == "diffusers" else state)
    merged = host["dreambooth"].load_dreambooth(base, path, 1.0)
    plain, drawn = predict(base), predict(merged)
    alone = host["model"].load_model(path, "fp32")
    assert distance(drawn, predict(alone)) <= 1e-5
    assert distance(drawn, plain) > 1e-2
    assert torch.equal(predict(base), plain), "the model that came in was changed"


def test_a_fine_tune_has_a_strength(host, base, tmp_path):
    fine = fine_state()
    path = write(tmp_path / "fine.safetensors", fine)
    load = host["dreambooth"].load_dreambooth
    assert load(base, path, 0.0) is base
    for strength in (0.3, -1.0, 1.5):
        mixed = {name: value + strength * (fine[name] - value) for name, value in random_state().items()}
        expected = host["model"].load_model(write(tmp_path / "mixed.safetensors", mixed))
        assert distance(predict(load(base, path, strength)), predict(expected)) <= 1e-5
        (tmp_path / "mixed.safetensors").unlink()


def test_fine_tunes_and_loras_add_up_in_any_order(host, base, tmp_path):
    fine = write(tmp_path / "fine.safetensors", fine_state())
    tiny_file(ONETRAINER, tmp_path / "l.safetensors")

    def with_fine(model, strength):
        return host["dreambooth"].load_dreambooth(model, fine, strength)

    def with_lora(model):
        return host["lora"].load_lora(model, None, str(tmp_path / "l.safetensors"), 1.0, 0.0)[0]

    once = predict(with_lora(with_fine(base, 1.0)))
    assert distance(once, predict(with_fine(with_lora(base), 1.0))) <= 1e-5
    assert distance(once, predict(with_lora(with_fine(with_fine(base, 0.4), 0.6)))) <= 1e-5
    loaded = with_fine(base, 1.0)
    predict(loaded)  # the host holds the patched weights now; the base beneath them is still the base
    assert distance(once, predict(with_lora(with_fine(base, 1.0)))) <= 1e-5


def test_a_model_with_a_fine_tune_is_saved_with_it(host, base, tmp_path):
    from comfy_extras.nodes_model_merging import save_checkpoint

    merged = host["dreambooth"].load_dreambooth(base, write(tmp_path / "fine.safetensors", fine_state()), 1.0)
    save_checkpoint(merged, filename_prefix="saved", output_dir=str(tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    saved = load_file(file)
    fine = fine_state()
    for name in ("blocks.1.scale_shift_table", "blocks.1.attn.qkv.weight", "final_layer.scale_shift_table"):
        (key,) = (key for key in saved if key.endswith(name))
        assert distance(saved[key], fine[name]) <= 1e-6
    assert distance(predict(host["model"].load_model(str(file))), predict(merged)) <= 1e-5


def test_a_fine_tune_on_fp8_weights_draws_nearly_as_the_fine_tune(host, base, base_file, tmp_path):
    path = write(tmp_path / "fine.safetensors", fine_state(0.05))
    exact = predict(host["model"].load_model(path))
    coarse = predict(host["dreambooth"].load_dreambooth(host["model"].load_model(base_file, "fp8_e4m3fn"), path, 1.0))
    relative = ((coarse - exact).pow(2).mean() / exact.pow(2).mean()).sqrt().item()
    assert 0 < relative < 0.2


def scaled_fp8(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The stacked projections as scaled fp8, as ComfyUI's newer layout has it; and what the numbers mean in fp32."""
    config = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    stored, meant = dict(state), dict(state)
    for name, value in state.items():
        if name.endswith(("attn.qkv.weight", "cross_attn.kv_linear.weight")):
            layer, scale = name.removesuffix(".weight"), value.abs().max() / 448
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            stored |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": config.clone()}
            meant[name] = stored[name].float() * scale
    return stored, meant


@pytest.mark.parametrize("what", ["lora", "fine-tune"])
def test_scaled_fp8_is_changed_as_the_same_numbers_in_fp32_are(what, host, tmp_path):
    stored, meant = scaled_fp8(random_state())
    quantised = host["model"].load_model(write(tmp_path / "q.safetensors", stored))
    wide = host["model"].load_model(write(tmp_path / "f.safetensors", meant))
    tiny_file(ONETRAINER, tmp_path / "l.safetensors")
    fine = write(tmp_path / "fine.safetensors", fine_state(0.05))

    def change(model):
        if what == "lora":
            return host["lora"].load_lora(model, None, str(tmp_path / "l.safetensors"), 1.0, 0.0)[0]
        return host["dreambooth"].load_dreambooth(model, fine, 1.0)

    plain, wanted, got = predict(wide), predict(change(wide)), predict(change(quantised))
    # The changed matrices are rounded to fp8 anew.
    assert 0 < (got - wanted).norm() < 0.15 * (plain - wanted).norm()


def test_a_fine_tune_of_another_model_is_refused(host, base, tmp_path):
    torch.manual_seed(1)
    other = PixArtConfig(
        hidden_size=72, depth=3, num_heads=1, mlp_hidden_size=288, caption_channels=32, base_size=8,
        pe_interpolation=0.25,
    )  # fmt: skip
    state = initialise(PixArtTransformer(other)).state_dict()
    save_file(state, tmp_path / "other.safetensors", metadata=config_metadata(other))
    message = (
        r"other.safetensors is no fine-tune of base.safetensors: it has hidden_size 72 instead of 144, depth 3 instead"
    )
    with pytest.raises(ValueError, match=message):
        host["dreambooth"].load_dreambooth(base, str(tmp_path / "other.safetensors"), 1.0)


def test_a_fine_tune_of_the_other_family_is_refused_by_its_name(host):
    demo = Path(__file__).resolve().parents[2] / "demo"
    model = host["model"].load_model(str(demo / "pixart-demo-sigma.safetensors"))
    with pytest.raises(ValueError, match="alpha.safetensors is PixArt-alpha, pixart-demo-sigma.* is PixArt-sigma"):
        host["dreambooth"].load_dreambooth(model, str(demo / "pixart-demo-alpha.safetensors"), 1.0)


def test_a_checkpoint_that_hardly_is_a_fine_tune_is_remarked_upon(host, base, tmp_path, caplog):
    path = write(tmp_path / "stranger.safetensors", random_state(seed=5))
    host["dreambooth"].load_dreambooth(base, path, 1.0)
    assert "it hardly was trained from it" in caplog.text
