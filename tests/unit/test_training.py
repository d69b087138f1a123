"""Training: what it learns from, what it writes, and that stopping or sharing it changes nothing."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import stopped
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixart.checkpoint import load_transformer, open_checkpoint, state_dict_to_save, to_diffusers
from pixart.config import ALPHA, PixArtConfig
from pixart.training import __main__ as command
from pixart.training import features as cache
from pixart.training import sources as training_sources
from pixart.training.adapters import add_adapters
from pixart.training.batches import Order, draw, generator
from pixart.training.initialise import initialise
from pixart.training.pictures import Example, concerns, fit, read_folder
from pixart.training.settings import TrainSettings
from pixart.training.trainer import LOG, STATE, Trainer, make_accelerator
from pixart.transformer import PixArtTransformer

ROOT = Path(__file__).resolve().parents[2]

CONFIG = PixArtConfig(
    family="sigma",
    hidden_size=72,
    depth=2,
    num_heads=2,
    mlp_hidden_size=144,
    caption_channels=128,
    base_size=4,
    pe_interpolation=0.125,
)
"""Tiny, with captions as wide as the demo's T5 makes them; its own size is 64 × 64 pixels."""


def write_base(path: Path, config: PixArtConfig = CONFIG) -> Path:
    """A checkpoint whose layers all do something, which zeros at the output would hide."""
    model = initialise(PixArtTransformer(config), torch.Generator().manual_seed(1))
    chance = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor += 0.05 * torch.randn(tensor.shape, generator=chance)
    save_file(state_dict_to_save(model.state_dict(), config), path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "tiny.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Five pictures of a concept in two shapes, and three of its class, with captions beside them."""
    root = tmp_path_factory.mktemp("pictures")
    rng = random.Random(0)
    for folder, sizes in (("concept", [(64, 64)] * 3 + [(96, 48)] * 2), ("class", [(64, 64)] * 3)):
        (root / folder).mkdir()
        for number, (width, height) in enumerate(sizes):
            colour = tuple(rng.randrange(256) for _ in range(3))
            picture = Image.new("RGB", (width, height), colour)
            picture.paste((255 - colour[0], colour[1], 30), (10, 10, 30, 40))
            picture.save(root / folder / f"{number}.png")
            (root / folder / f"{number}.txt").write_text(f"a {folder} picture number {number}")
    return root / "concept", root / "class"


def random_features(shapes=((4, 8, 8),) * 4 + ((4, 6, 10),) * 2, prior=2) -> cache.Features:
    chance = torch.Generator().manual_seed(3)
    captions = [torch.randn(length, 128, generator=chance) for length in (1, 5, 9, 4)]
    count = len(shapes)
    return cache.Features(
        latents=tuple(torch.randn(shape, generator=chance) for shape in shapes),
        captions=tuple(captions),
        caption_of=tuple(1 + i % 3 for i in range(count)),
        prior=tuple(i >= count - prior for i in range(count)),
        null=0,
        previews=(1, 2),
    )


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator(cpu=True)


def trainer(base: Path, out: Path, accelerator, features=None, run="run", **settings) -> Trainer:
    chosen = {"steps": 6, "batch_size": 4, "rank": 4, "learning_rate": 1e-2, "save_every": 2} | settings
    features = random_features() if features is None else features
    return Trainer(open_checkpoint(base), features, TrainSettings(**chosen), out, run, accelerator=accelerator)


def train(base, out, accelerator, **settings) -> dict[str, torch.Tensor]:
    return load_file(trainer(base, out, accelerator, **settings).train())


def furthest(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


# ------------------------------------------------------------------------------------------------ the loop


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_file(base, tmp_path, accelerator):
    files = [trainer(base, tmp_path / str(n), accelerator, seed=s).train() for n, s in enumerate((7, 7, 8))]
    first, second, other = (file.read_bytes() for file in files)
    assert first == second
    assert first != other


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.9, "schedule": "cosine", "warmup": 2}, {"method": "full"}], ids=["lora", "ema", "full"]
)
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_stopped_at_any_update_goes_on_as_if_it_had_not_been(base, tmp_path, accelerator, settings, stop):
    whole = train(base, tmp_path / "whole", accelerator, **settings)

    class Stop(BaseException):
        pass

    def on_step(progress):
        if progress.step == stop:
            raise Stop

    with pytest.raises(Stop):
        trainer(base, tmp_path / "cut", accelerator, **settings).train(on_step)
    again = trainer(base, tmp_path / "cut", accelerator, **settings)
    assert again.step == stop
    assert furthest(whole, load_file(again.train())) == 0


def test_the_log_of_a_run_that_goes_on_tells_every_update_once(base, tmp_path, accelerator):
    """What another run, a kill or a hand has left in it goes."""
    train(base, tmp_path, accelerator)
    log = tmp_path / LOG
    whole = log.read_text()
    log.write_text(f'{whole}{{"step": 999, "loss": 1}}\nno line of a log\n{{"step": 3, "lo')
    trainer(base, tmp_path, accelerator)
    assert log.read_text() == whole != ""


def test_a_stop_amid_an_update_keeps_the_last_saved_state(base, tmp_path, accelerator):
    whole = train(base, tmp_path / "whole", accelerator)
    cut = trainer(base, tmp_path / "cut", accelerator)
    take = cut.optimizer.step

    def half_a_step(*args, **kwargs):
        take()
        if cut.step == 3:
            raise KeyboardInterrupt

    cut.optimizer.step = half_a_step
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = trainer(base, tmp_path / "cut", accelerator)
    assert again.step == 2
    assert furthest(whole, load_file(again.train())) == 0


def test_accumulation_and_checkpointing_change_memory_and_not_the_result(base, tmp_path, accelerator):
    plain = train(base, tmp_path / "plain", accelerator)
    assert furthest(plain, train(base, tmp_path / "parts", accelerator, accumulation=4)) < 1e-4
    assert furthest(plain, train(base, tmp_path / "twice", accelerator, checkpointing=True)) < 1e-6


def test_checkpointing_keeps_fewer_activations(base, tmp_path, accelerator):
    def kept(checkpointing: bool) -> int:
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        run = trainer(base, tmp_path / str(checkpointing), accelerator, method="full", checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            run.loss(run.samples(0)[:2])
        return total

    assert kept(True) < kept(False) / 2


def test_bf16_trains_float32_adapters_to_nearly_the_same_loss(base, tmp_path, accelerator):
    losses = {}
    for precision in ("fp32", "bf16"):
        run = trainer(base, tmp_path / precision, accelerator, precision=precision, learning_rate=1e-3)
        assert run.transformer.blocks[0].attn.qkv.base.weight.dtype == getattr(
            torch, {"fp32": "float32", "bf16": "bfloat16"}[precision]
        )
        assert {p.dtype for p in run.trained.values()} == {torch.float32}
        seen = []
        run.train(lambda progress, seen=seen: seen.append(progress.loss))
        losses[precision] = torch.tensor(seen)
    assert torch.allclose(losses["fp32"], losses["bf16"], rtol=0.02)
    assert not torch.equal(losses["fp32"], losses["bf16"])


def test_the_average_lags_behind_the_weights_and_is_what_is_saved(base, tmp_path, accelerator):
    last = trainer(base, tmp_path / "last", accelerator, ema=0.0)
    average = trainer(base, tmp_path / "average", accelerator, ema=0.999)
    last.train(), average.train()
    name = "blocks.0.attn.qkv.lora_B"
    assert torch.equal(last.trained[name], average.trained[name])
    assert not torch.equal(average.average[name], average.trained[name])
    saved = load_file(average.file)["transformer.transformer_blocks.0.attn1.to_q.lora_B.weight"]
    assert torch.equal(saved, average.average[name][0])


def test_min_snr_lowers_the_weight_of_little_noise_alone(base, tmp_path, accelerator):
    weights = trainer(base, tmp_path, accelerator, min_snr=5.0).weights
    snr = trainer(base, tmp_path, accelerator).noise.snr
    assert torch.allclose(weights.double(), (snr.clamp(max=5) / snr), atol=1e-6)
    assert weights[10] < 0.02 and weights[900] == 1


def test_a_diverged_run_keeps_the_weights_before_and_says_so(base, tmp_path, accelerator):
    run = trainer(base, tmp_path, accelerator)
    honest = run.loss
    run.loss = lambda group: honest(group) * (float("nan") if run.step == 3 else 1)
    with pytest.raises(ValueError, match=r"diverged at update 4.*update 3 are kept.*learning_rate"):
        run.train()
    assert all(torch.isfinite(t).all() for t in load_file(run.file).values())
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == 3


def test_a_state_of_another_run_or_of_more_steps_is_refused(base, tmp_path, accelerator):
    trainer(base, tmp_path, accelerator).train()
    with pytest.raises(ValueError, match="other settings, pictures, captions or models"):
        trainer(base, tmp_path, accelerator, run="another")
    with pytest.raises(ValueError, match="6 updates behind it, and steps is 5"):
        trainer(base, tmp_path, accelerator, steps=5)
    longer = trainer(base, tmp_path, accelerator, steps=8)
    assert longer.step == 6
    longer.train()
    assert longer.step == 8


def test_previews_are_drawn_with_what_would_be_saved(base, tmp_path, accelerator):
    shown = []
    run = trainer(base, tmp_path, accelerator, preview_every=4, ema=0.5)
    before = run.preview()
    run.train(None, lambda step, latents: shown.append((step, latents)))
    assert [step for step, _ in shown] == [4, 6]
    assert shown[-1][1].shape == (2, 4, 8, 8)
    assert torch.equal(run.preview(), shown[-1][1]) and not torch.equal(before, shown[-1][1])


# ------------------------------------------------------------------------------------------------ what is drawn


def test_every_picture_comes_once_an_epoch_and_bins_stand_together():
    shapes = [(4, 8, 8)] * 5 + [(4, 6, 10)] * 5
    order = Order(shapes, 2, seed=1, stream="concept")
    updates = [order.update(step) for step in range(10)]
    for epoch in (updates[:5], updates[5:]):
        assert sorted(index for update in epoch for index in update) == list(range(10))
    mixed = sum(len({shapes[index] for index in update}) > 1 for update in updates)
    assert mixed <= 2  # five are odd in number: one update an epoch at most
    assert updates[:5] != updates[5:]


def test_processes_draw_together_what_one_draws_alone():
    order = Order([(4, 8, 8)] * 6, 4, seed=1, stream="concept")
    alone = draw(order, 3, range(0, 4), 1.0, 0.5, 1000)
    together = draw(order, 3, range(0, 2), 1.0, 0.5, 1000) + draw(order, 3, range(2, 4), 1.0, 0.5, 1000)
    for one, other in zip(alone, together, strict=True):
        assert (one.index, one.t, one.dropped) == (other.index, other.t, other.dropped)
        assert torch.equal(one.noise, other.noise)


def test_captions_are_dropped_as_often_as_asked_and_timesteps_cover_all():
    order = Order([(1, 1, 1)] * 10, 100, seed=0, stream="concept")
    samples = [s for step in range(40) for s in draw(order, step, range(100), 1.0, 0.1, 1000)]
    dropped = sum(sample.dropped for sample in samples) / len(samples)
    assert dropped == pytest.approx(0.1, abs=0.015)
    times = torch.tensor([sample.t for sample in samples]).float()
    assert times.min() < 10 and times.max() > 990 and times.mean() == pytest.approx(500, abs=20)


def test_a_dropped_caption_is_the_empty_text_for_sigma_and_the_learned_null_for_alpha(base, tmp_path, accelerator):
    alpha = replace(CONFIG, family=ALPHA, max_caption_tokens=120)
    write_base(tmp_path / "alpha.safetensors", alpha)
    for file, family in ((base, "sigma"), (tmp_path / "alpha.safetensors", "alpha")):
        run = trainer(file, tmp_path / family, accelerator)
        index, sample = run.samples(0)[0]
        told = run.features.captions[run.features.caption_of[index]]
        caption, mask = run.captions([(index, replace(sample, dropped=True)), (index, replace(sample, dropped=False))])
        assert torch.equal(caption[1, : len(told)], told)
        if family == "sigma":
            assert torch.equal(caption[0, :1], run.features.captions[0]) and mask[0].sum() == 1
        else:
            null = run.transformer.y_embedder.y_embedding[: len(told)]
            assert torch.equal(caption[0, : len(told)], null) and mask[0].sum() == len(told)


def test_class_pictures_count_by_their_weight(base, tmp_path, accelerator):
    def shares(weight: float) -> tuple[float, float]:
        run = trainer(base, tmp_path / str(weight), accelerator, prior_weight=weight)
        drawn = run.samples(0)
        return tuple(
            sum(sample.weight for index, sample in drawn if run.features.prior[index] == prior) for prior in (0, 1)
        )

    assert shares(1.0) == pytest.approx((1.0, 1.0))
    assert shares(0.5) == pytest.approx((1.0, 0.5))
    assert shares(0.0) == pytest.approx((1.0, 0.0))


def test_pictures_are_cropped_to_the_nearest_bin_of_the_resolution():
    assert fit(torch.rand(3, 100, 100), 64).shape == (3, 64, 64)
    assert fit(torch.rand(3, 768, 1344), 1024).shape == (3, 768, 1344)
    wide = fit(torch.rand(3, 300, 600), 128)
    assert wide.shape[2] / wide.shape[1] == pytest.approx(2, rel=0.15)
    assert wide.shape[1] % 16 == wide.shape[2] % 16 == 0
    framed = torch.zeros(3, 64, 74)
    framed[:, :, 5:69] = 1
    assert torch.equal(fit(framed, 64), torch.ones(3, 64, 64))


# ------------------------------------------------------------------------------------------------ what is written


def test_the_trained_file_is_what_peft_reads(base, tmp_path, accelerator):
    """The adapters that PEFT makes from the file's own metadata hold every tensor of it, and draw what was trained."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    run = trainer(base, tmp_path, accelerator, targets="all", alpha=2.0)
    file = run.train()
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    told = json.loads(metadata["lora_adapter_metadata"])
    told = {key.removeprefix("transformer."): value for key, value in told.items()}
    assert told.pop("peft_type") == "LORA"
    config = LoraConfig(**told)
    assert config.r == config.lora_alpha == int(metadata["pixart_rank"]) == int(metadata["pixart_alpha"]) == 4

    from diffusers import PixArtTransformer2DModel

    ours = load_transformer(base)
    theirs = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=36,
        num_layers=2,
        cross_attention_dim=72,
        sample_size=8,
        caption_channels=128,
        interpolation_scale=0.125,
        use_additional_conditions=False,
    )
    # diffusers' MLP is four times as wide; of this narrower one only the names matter, so its layers are replaced.
    for block in theirs.transformer_blocks:
        block.ff.net[0].proj, block.ff.net[2] = torch.nn.Linear(72, 144), torch.nn.Linear(144, 72)
    theirs.pos_embed.base_size = CONFIG.base_size
    state = to_diffusers({n: t for n, t in ours.state_dict().items() if n != "y_embedder.y_embedding"})
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("pos_embed" in name for name in missing)

    lora = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    inject_adapter_in_model(config, theirs)
    result = set_peft_model_state_dict(theirs, lora)
    assert not result.unexpected_keys and not [name for name in result.missing_keys if "lora" in name]

    chance = torch.Generator().manual_seed(9)
    x, t = torch.randn(2, 4, 8, 8, generator=chance), torch.tensor([17, 801])
    caption = torch.randn(2, 5, 128, generator=chance)
    with torch.no_grad():
        expected = theirs(
            x, caption, t, added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False
        )[0][:, :4]
        trained = run.transformer(x, t, caption)
        untrained = ours(x, t, caption)
    assert (trained - expected).abs().max() < 1e-5
    assert (trained - untrained).abs().max() > 1e-2


def test_a_lora_file_says_what_it_is(base, tmp_path, accelerator):
    settings = TrainSettings(steps=3, rank=4, seed=5, save_every=0)
    run = Trainer(
        open_checkpoint(base),
        random_features(),
        settings,
        tmp_path,
        "run-id",
        accelerator=accelerator,
        name="a concept",
        trigger="sks",
    )
    with safe_open(run.train(), framework="pt") as file:
        told = file.metadata()
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    expected = {
        "modelspec.architecture": "pixart-sigma/lora",
        "modelspec.title": "a concept",
        "modelspec.trigger_phrase": "sks",
        "modelspec.resolution": "64x64",
        "pixart_base": "tiny.safetensors",
        "pixart_run": "run-id",
        "pixart_seed": "5",
        "pixart_steps": "3",
        "pixart_trigger": "sks",
    }
    assert expected.items() <= told.items()
    import hashlib

    assert told["pixart_base_sha"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert len(shapes) == 2 * 8 * CONFIG.depth
    assert shapes["transformer.transformer_blocks.1.attn2.to_k.lora_A.weight"] == (4, 72)
    assert shapes["transformer.transformer_blocks.1.attn2.to_k.lora_B.weight"] == (72, 4)


def test_adapters_start_silent_and_cover_what_was_asked(base):
    counts = {}
    for targets in ("attention", "blocks", "all"):
        model = load_transformer(base)
        x, t, caption = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 3, 128)
        before = model(x, t, caption)
        adapters = add_adapters(model, targets, 4, 1.0, seed=0)
        assert torch.equal(before, model(x, t, caption))
        assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
        counts[targets] = len(adapters)
    assert counts == {"attention": 10, "blocks": 14, "all": 20}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_full_training_is_an_ordinary_checkpoint(base, tmp_path, accelerator, dtype):
    settings = TrainSettings(method="full", steps=4, learning_rate=1e-3)
    run = Trainer(
        open_checkpoint(base),
        random_features(),
        settings,
        tmp_path,
        "run",
        accelerator=accelerator,
        name="tuned",
        save_dtype=dtype,
    )
    opened = open_checkpoint(run.train())
    assert opened.config == CONFIG
    assert opened.metadata["modelspec.architecture"] == "pixart-sigma"
    before, after = load_transformer(base).state_dict(), load_transformer(opened, dtype=torch.float32).state_dict()
    for name, value in run.transformer.state_dict().items():
        assert torch.equal(after[name], value.to(dtype).float()), name
    changed = [name for name in before if not torch.equal(before[name].to(dtype).float(), after[name])]
    assert "blocks.1.attn.qkv.weight" in changed and "y_embedder.y_embedding" not in changed


def test_the_base_file_is_not_written_to(base, tmp_path, accelerator):
    before = base.read_bytes()
    trainer(base, tmp_path / "lora", accelerator).train()
    trainer(base, tmp_path / "full", accelerator, method="full").train()
    assert base.read_bytes() == before


# ------------------------------------------------------------------------------------------------ the command


def arguments(base: Path, folders, out: Path, *more: str) -> list[str]:
    return [
        *("--pictures", str(folders[0]), "--class-pictures", str(folders[1]), "--checkpoint", str(base)),
        *("--out", str(out), "--device", "cpu", "--batch-size", "4", "--rank", "4", "--learning-rate", "1e-3"),
        *more,
    ]


def start(
    command_line: list[str], program: Sequence[str] = (sys.executable, "-m", "pixart.training"), **environment: str
) -> subprocess.Popen:
    return subprocess.Popen(
        [*program, *command_line],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=stopped.GUARD)
    assert process.returncode == 0, errors
    return out


KILLED = ("--steps", "60", "--save-every", "7", "--ema", "0.9", "--min-snr", "5")


@pytest.fixture(scope="module")
def undisturbed(base, folders, tmp_path_factory) -> Path:
    """What a run trains that nothing disturbed, in a process like those that are killed."""
    out = tmp_path_factory.mktemp("undisturbed")
    finished(start(arguments(base, folders, out, *KILLED)))
    return out / "pixart-lora.safetensors"


@pytest.mark.parametrize("stop", [8, 26, 35], ids=["after a save", "amid", "before a save"])
def test_killed_after_an_update_and_started_again_the_result_is_the_same(base, folders, undisturbed, tmp_path, stop):
    line = arguments(base, folders, tmp_path, *KILLED)
    stopped.kill_when_stopped(
        start(line, stopped.command("pixart.training.trainer:Trainer.log", stop, "pixart.training"))
    )
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == (stop - 1) // 7 * 7
    finished(start(line))
    cut = tmp_path / "pixart-lora.safetensors"
    difference = furthest(load_file(undisturbed), load_file(cut))
    print(f"killed after update {stop}: largest difference {difference}")
    assert difference <= 1e-6
    assert undisturbed.read_bytes() == cut.read_bytes()
    logs = (path.with_name("training.log.jsonl").read_text() for path in (undisturbed, cut))
    assert next(logs) == next(logs)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_train_what_one_does(base, folders, tmp_path, method):
    """Adam divides by the gradient's size. Where that is rounding alone, as of biases of keys, which softmax cancels,
    two orders of a sum differ by a share of the learning rate; hence the rate of a real full training for the full one.
    """
    rate = {"lora": "1e-3", "full": "1e-4"}[method]
    more = ("--steps", "20", "--method", method, "--save-every", "0", "--learning-rate", rate)
    # Its agent holds the port by which the processes meet, so that nobody else can take it before they do.
    pair = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    together = start(
        arguments(base, folders, tmp_path / "two", *more), (*pair, "pixart.training"), ACCELERATE_USE_CPU="true"
    )
    finished(together)
    finished(start(arguments(base, folders, tmp_path / "one", *more)))
    one, two = (load_file(tmp_path / name / "pixart-lora.safetensors") for name in ("one", "two"))
    difference = furthest(one, two)
    start_values = load_transformer(base).state_dict() if method == "full" else {}
    moved = max(
        (value - start_values.get(name, torch.zeros_like(value))).abs().max().item()
        for name, value in one.items()
        if name in start_values or "lora_B" in name
    )
    print(f"{method}: largest difference {difference:.2e}, largest change by training {moved:.2e}")
    assert difference <= 1e-4
    assert moved > max(5 * difference, 1e-3)


def test_t5_is_gone_before_the_transformer_trains_and_not_read_again(base, folders, tmp_path, monkeypatch):
    from transformers import T5EncoderModel

    def encoders() -> int:
        gc.collect()
        return sum(isinstance(thing, T5EncoderModel) for thing in gc.get_objects())

    counted, loads = [], []
    load = training_sources.load_transformers_t5
    monkeypatch.setattr(training_sources, "load_transformers_t5", lambda *a, **k: loads.append(1) or load(*a, **k))
    update = Trainer.update

    def counting(self):
        counted.append(encoders())
        return update(self)

    monkeypatch.setattr(Trainer, "update", counting)
    others = encoders()
    assert command.main(arguments(base, folders, tmp_path, "--steps", "2")) == 0
    assert loads == [1] and counted == [others, others]
    assert command.main(arguments(base, folders, tmp_path, "--steps", "4")) == 0
    assert loads == [1], "the second run found the features in its folder"


def test_missing_class_pictures_are_drawn_by_the_model_itself(base, folders, tmp_path, capsys):
    line = arguments(base, (folders[0], tmp_path / "class"), tmp_path / "out", "--steps", "1", "--class-count", "3")
    assert command.main([*line, "--class-caption", "a red star", "--class-caption", "a blue circle"]) == 0
    drawn = read_folder(tmp_path / "class", prior=True)
    assert [example.caption for example in drawn] == ["a red star", "a blue circle", "a red star"]
    before = [file.stat().st_mtime_ns for file in sorted((tmp_path / "class").glob("*.png"))]
    assert command.main([*line, "--class-caption", "a red star"]) == 0
    assert before == [file.stat().st_mtime_ns for file in sorted((tmp_path / "class").glob("*.png"))]
    assert command.main(line) == 2
    assert "--class-count needs" in capsys.readouterr().err


def broken_picture(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")


WRONG = {
    "no folder": (lambda folder: folder.rmdir(), (), "is no folder"),
    "empty folder": (lambda folder: None, (), "holds no pictures of the concept"),
    "unreadable picture": (broken_picture, ("--caption", "x"), "bad.png is no picture that can be read"),
    "no caption": (lambda folder: Image.new("RGB", (64, 64)).save(folder / "a.png"), (), "a.png has no caption"),
    "no UTF-8": (
        lambda f: (Image.new("RGB", (64, 64)).save(f / "a.png"), (f / "a.txt").write_bytes(b"\xff\xfe1")),
        (),
        "a.txt is no UTF-8 text",
    ),
    "too narrow": (
        lambda folder: Image.new("RGB", (600, 60)).save(folder / "a.png"),
        ("--caption", "x"),
        "600 × 60, longer than 4.5 times",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("part", ["--pictures", "--class-pictures"])
def test_wrong_pictures_are_named(base, folders, tmp_path, capsys, case, part):
    prepare, more, message = WRONG[case]
    folder = tmp_path / "given"
    folder.mkdir()
    prepare(folder)
    line = arguments(base, folders, tmp_path / "out", *more, "--class-caption", more[-1] if more else "")
    line[line.index(part) + 1] = str(folder)
    assert command.main(line) == 2
    told = capsys.readouterr().err
    assert message.replace("pictures of the concept", "" if "class" in part else "pictures of the concept") in told
    assert str(folder) in told and told.count("\n") == 1


def test_one_picture_and_an_unused_trigger_are_told_and_not_refused(base, folders, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "one" / "a.png")
    line = ["--pictures", str(tmp_path / "one"), "--caption", "a dog", "--trigger", "sks", "--steps", "1"]
    assert command.main([*line, "--checkpoint", str(base), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert "There is one picture of the concept" in told and "The trigger 'sks' is not in 1 of 1 captions" in told
    assert "There are no class pictures" in told
    assert read_folder(tmp_path / "one", "x")[0].picture.min() == 1  # transparent is white
    assert concerns(read_folder(folders[0]) + read_folder(folders[1], prior=True), "concept") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dora"}, "method must be one of lora, full, controlnet, compression, not 'dora'"),
        ({"rank": 0}, "rank must be 1 or more, not 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, not nan"),
        ({"caption_dropout": 1.0}, "caption_dropout must be from 0 to below 1"),
        ({"resolution": 100}, "resolution must be a multiple of 16, not 100"),
    ],
)
def test_settings_without_sense_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)


def test_a_batch_that_cannot_be_shared_is_refused():
    settings = TrainSettings(batch_size=6, accumulation=2)
    assert settings.local_batch(3) == 2
    with pytest.raises(ValueError, match="cannot be shared evenly by 2 process.*a multiple of 4"):
        settings.local_batch(2)


def test_without_accelerate_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match="pip install accelerate"):
        make_accelerator(cpu=True)


def test_random_numbers_depend_on_the_key_alone():
    first = torch.rand(3, generator=generator(1, "a", 2))
    torch.rand(5)
    assert torch.equal(first, torch.rand(3, generator=generator(1, "a", 2)))
    assert not torch.equal(first, torch.rand(3, generator=generator(1, "a", 3)))


def test_features_of_other_pictures_or_cut_short_are_computed_anew(tmp_path):
    features, path = random_features(), tmp_path / "features.safetensors"
    examples = [Example(torch.rand(3, 8, 8), f"caption {i % 3}", str(i), p) for i, p in enumerate(features.prior)]
    cache.save(features, path, "these")
    loaded = cache.load(path, "these", examples, ())
    assert all(torch.equal(a, b) for a, b in zip(features.latents, loaded.latents, strict=True))
    assert loaded.caption_of == (1, 2, 3, 1, 2, 3)
    assert cache.load(path, "others", examples, ()) is None
    path.write_bytes(path.read_bytes()[:-10])
    assert cache.load(path, "these", examples, ()) is None
