"""The training loop, on one process or many, resumable at any update; here for a LoRA or all weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from ..checkpoint import Checkpoint, load_transformer
from ..config import ALPHA
from ..files import written
from ..noise import NoiseSchedule
from .adapters import add_adapters, to_diffusers
from .batches import Order, Sample, draw, forwards, generator
from .features import Features
from .preview import ddim, pad
from .settings import FULL, LORA, TrainSettings
from .writing import Base, common_metadata, full_checkpoint, lora_metadata, write_safetensors

STATE = "training.state"
LOG = "training.log.jsonl"

PREVIEW_STEPS, PREVIEW_CFG = 20, 4.5

Group = list[tuple[int, Sample]]

MISSING = (
    "Training needs the package accelerate, which is not installed here. Install it into the Python environment that "
    "runs this (ComfyUI's own, for its nodes): python -m pip install accelerate"
)


@dataclass(frozen=True)
class Progress:
    """After an update. step: updates done; loss: of this process's pictures; norm: of the gradient before clipping."""

    step: int
    steps: int
    loss: float
    norm: float


def make_accelerator(cpu: bool = False):
    """accelerate's Accelerator, which finds the other processes and, unless ``cpu``, this one's card.

    Raises ValueError where the package is missing.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ModuleNotFoundError as error:
        raise ValueError(MISSING) from error
    # Its own mixed precision is a setting of the whole process; here it is one of the run.
    return Accelerator(
        cpu=cpu,
        mixed_precision="no",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


class Trainer:
    """One training run on cached features.

    out: folder for the state, the log, and the trained file ``<name>.safetensors`` unless ``file`` says otherwise.
    run: what ``TrainSettings.identity`` says of the settings and the data; a state of another run is refused, or
        replaced where ``replace`` is set.

    Raises ValueError for settings that the processes cannot share, and for a state that does not belong here.
    """

    def __init__(
        self,
        base: Checkpoint,
        features: Features,
        settings: TrainSettings,
        out: Path,
        run: str,
        *,
        accelerator,
        name: str = "pixart-lora",
        file: Path | None = None,
        trigger: str = "",
        save_dtype: torch.dtype = torch.float32,
        replace: bool = False,
    ):
        self.features, self.settings, self.out, self.run_id = features, settings, Path(out), run
        self.accelerator, self.trigger, self.save_dtype, self.replace = accelerator, trigger, save_dtype, replace
        self.name, self.file = name, Path(file or self.out / f"{name}.safetensors")
        self.base = Base.of(base)
        self.noise = NoiseSchedule()
        self.local = settings.local_batch(accelerator.num_processes)
        self.step = 0
        self.is_whole = True
        """Whether weights, moments and average are of one update: not while a step is being taken."""

        self.network = self.build(base)
        named = [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        self.trained: dict[str, torch.nn.Parameter] = dict(named)
        optimizer = torch.optim.AdamW(
            self.trained.values(), lr=settings.learning_rate, betas=(0.9, 0.999), weight_decay=settings.weight_decay
        )
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.average = {n: p.detach().clone() for n, p in named} if settings.ema else {}
        self.options = checkpointing_options(len(self.transformer.blocks)) if settings.checkpointing else {}
        self.weights = self.noise.min_snr_weights(settings.min_snr) if settings.min_snr else torch.ones(1000)
        self.shapes = [tuple(latent.shape) for latent in features.latents]
        self.concept, self.prior = (self.order(prior) for prior in (False, True))
        if self.concept is None:
            raise ValueError("There is no picture of the concept to learn from.")
        self.load()
        self.trim_log()

    def build(self, base: Checkpoint) -> torch.nn.Module:
        """What is called for a prediction; of its parameters those that want a gradient are trained.

        Sets ``transformer``, and what else ``content`` needs.
        """
        settings = self.settings
        is_lora = settings.method == LORA
        is_narrow = is_lora and settings.precision == "bf16"
        self.transformer = load_transformer(base, dtype=torch.bfloat16 if is_narrow else torch.float32)
        self.adapters = {}
        if is_lora:
            self.adapters = add_adapters(
                self.transformer, settings.targets, settings.rank, settings.scale, settings.seed
            )
        else:
            for parameter in self.transformer.parameters():
                parameter.data = parameter.data.clone()  # the file's own pages are not to be written into
        return self.transformer

    def told(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the network is told of some examples beside noise, timestep and caption, by its arguments' names."""
        return {}

    def order(self, prior: bool) -> tuple[Order, list[int]] | None:
        """The order of the concept's or the class's pictures, and their indices; None where there are none."""
        indices = self.features.indices(prior)
        if not indices or (prior and not self.settings.prior_weight):
            return None
        shapes = [self.shapes[index] for index in indices]
        return Order(shapes, self.settings.batch_size, self.settings.seed, "prior" if prior else "concept"), indices

    def samples(self, step: int) -> list[tuple[int, Sample]]:
        """This process's share of an update: indices of examples, and what is drawn for them."""
        first = self.accelerator.process_index * self.local
        places = range(first, first + self.local)
        found = []
        for order, weight in ((self.concept, 1.0), (self.prior, self.settings.prior_weight)):
            if order is not None:
                drawn = draw(order[0], step, places, weight / self.local, self.settings.caption_dropout, 1000)
                found += [(order[1][sample.index], sample) for sample in drawn]
        return found

    def captions(self, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions (B, L, C) and mask (B, L) of some samples, dropped ones replaced by the null caption.

        α learned a null caption of its own, which takes the place of the features and leaves the mask; Σ's is the
        empty text.
        """
        features, null = self.features, self.transformer.y_embedder.y_embedding
        learned = null if self.base.config.family == ALPHA else None
        rows = []
        for index, sample in group:
            caption = features.captions[features.caption_of[index]]
            if sample.dropped:
                caption = features.captions[features.null] if learned is None else learned[: len(caption)].float().cpu()
            rows.append(caption)
        return pad(rows)

    def loss(self, group: Group) -> torch.Tensor:
        """Weighted squared error of the predicted noise, summed over some samples of one shape."""
        device = self.accelerator.device
        latents = torch.stack([self.features.latents[index] for index, _ in group])  # (B, C, h, w)
        noise = torch.stack([sample.noise for _, sample in group])
        t = torch.tensor([sample.t for _, sample in group])
        weights = torch.tensor([sample.weight for _, sample in group]) * self.weights[t]
        caption, mask = self.captions(group)
        noisy = self.noise.add(latents, noise, t)
        with self.computing():
            predicted = self.model(
                noisy.to(device),
                t.to(device),
                caption.to(device),
                mask.to(device),
                transformer_options=self.options,
                **self.told([index for index, _ in group]),
            )
        error = (predicted.float() - noise.to(device)).pow(2).mean(dim=(1, 2, 3))  # (B,)
        return (error * weights.to(device)).sum()

    @contextmanager
    def computing(self) -> Iterator[None]:
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            yield

    def update(self) -> Progress:
        """One update of the weights. Raises ValueError when the training has diverged, before it touches them."""
        settings = self.settings
        groups = forwards(self.samples(self.step), self.local // settings.accumulation)
        total = 0.0
        for number, group in enumerate(groups):
            is_last = number == len(groups) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self.loss(group)
                self.accelerator.backward(loss)
            total += loss.item()
        norm = float(self.accelerator.clip_grad_norm_(self.trained.values(), settings.max_grad_norm))
        if norm != norm or norm == float("inf"):
            raise ValueError(
                f"The training diverged at update {self.step + 1}: the gradient is not finite. The weights of update "
                f"{self.step} are kept. Lower learning_rate ({settings.learning_rate:g})"
                + (", or compute in fp32." if settings.precision == "bf16" else ".")
            )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        self.is_whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            decay = min(settings.ema, (1 + self.step) / (10 + self.step))  # early values fade soon
            parameters = [p.detach() for p in self.trained.values()]
            torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)
        self.step += 1
        self.is_whole = True
        return Progress(self.step, settings.steps, total, norm)

    def train(
        self,
        on_step: Callable[[Progress], None] | None = None,
        on_preview: Callable[[int, torch.Tensor], None] | None = None,
    ) -> Path:
        """Train to the end, or go on from where the run was; the trained file.

        on_step may raise to stop the training; state and file are then those of the last update.
        on_preview: gets the updates done and latents (B, C, h, w), one for each preview caption.
        """
        settings = self.settings
        try:
            while self.step < settings.steps:
                progress = self.update()
                is_last = self.step == settings.steps
                self.log(progress)
                if settings.save_every and self.step % settings.save_every == 0 and not is_last:
                    self.save()
                if on_preview and self.features.previews and self.is_main:
                    if is_last or (settings.preview_every and self.step % settings.preview_every == 0):
                        on_preview(self.step, self.preview())
                if on_step:
                    on_step(progress)
        except BaseException:
            self.save()
            raise
        self.save()
        self.accelerator.wait_for_everyone()
        return self.file

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def log(self, progress: Progress) -> None:
        if self.is_main:
            self.out.mkdir(parents=True, exist_ok=True)
            line = {"step": progress.step, "loss": round(progress.loss, 6), "norm": round(progress.norm, 6)}
            with (self.out / LOG).open("a") as file:
                file.write(json.dumps(line) + "\n")

    def trim_log(self) -> None:
        """Take out of the log what comes after the state: updates of another run, or lost in a kill and done again."""
        path = self.out / LOG
        if not self.is_main or not path.is_file():
            return

        def stays(line: str) -> bool:
            try:
                return line.endswith("\n") and json.loads(line)["step"] <= self.step
            except (ValueError, KeyError, TypeError):
                return False

        lines = path.read_text(errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if stays(line)]
        if kept != lines:
            with written(path) as partial:
                partial.write_text("".join(kept))

    def values(self) -> dict[str, torch.Tensor]:
        """What is saved: the trained weights, or their average."""
        return self.average or {name: parameter.detach() for name, parameter in self.trained.items()}

    def save(self) -> None:
        """Write the state to go on from, and the trained file as of now; not before the first update, nor amid one."""
        if not self.is_main or not self.step or not self.is_whole:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "run": self.run_id,
            "step": self.step,
            "trained": {name: parameter.detach().cpu() for name, parameter in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": {name: value.cpu() for name, value in self.average.items()},
        }
        with written(self.out / STATE) as partial, partial.open("wb") as file:
            torch.save(state, file)
        self.write()

    def write(self) -> None:
        """The trained file."""
        metadata = common_metadata(self.base, self.settings, self.step, self.trigger, self.name, self.run_id)
        state, told = self.content()
        write_safetensors(self.file, state, metadata | told)

    def content(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Tensors of the trained file, in ``save_dtype``, and the metadata of its kind."""
        if self.settings.method == FULL:
            state = self.transformer.state_dict() | self.values()
            return full_checkpoint({n: t.cpu() for n, t in state.items()}, self.base, self.save_dtype)
        state = to_diffusers(self.adapters, self.values())
        state = {name: tensor.to("cpu", self.save_dtype) for name, tensor in state.items()}
        return state, lora_metadata(state, self.settings.rank)

    def load(self) -> None:
        """Go on from the state in ``out``, where there is one."""
        path = self.out / STATE
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["run"] != self.run_id:
            if self.replace:
                return
            raise ValueError(
                f"{path} is of a training with other settings, pictures, captions or models. Choose another output "
                "folder, or delete that file to begin anew."
            )
        if state["step"] > self.settings.steps:
            raise ValueError(
                f"{path} has {state['step']} updates behind it, and steps is {self.settings.steps}. Ask for more "
                "steps, or choose another output folder."
            )
        with torch.no_grad():
            for name, value in state["trained"].items():
                self.trained[name].copy_(value)
            for name, value in state["average"].items():
                self.average[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average weights in the model, for the time of the block."""
        kept = {name: self.trained[name].detach().clone() for name in self.average}
        with torch.no_grad():
            for name, value in self.average.items():
                self.trained[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.trained[name].copy_(value)

    def preview_setting(self, count: int) -> tuple[tuple[int, ...], dict[str, torch.Tensor]]:
        """The shape (C, h, w) of previews, and ``told`` for ``count`` rows: conditional ones, then as many others."""
        side = (self.settings.resolution or self.base.config.native_pixels) // 8
        return (self.base.config.in_channels, side, side), {}

    @torch.no_grad()
    def preview(self) -> torch.Tensor:
        """Latents (B, C, h, w) of the preview captions with what would be saved now, the same noise every time."""
        features, device = self.features, self.accelerator.device
        wanted = [features.captions[index] for index in features.previews]
        caption, mask = pad([*wanted, *[features.captions[features.null]] * len(wanted)])
        caption, mask = caption.to(device), mask.to(device)
        chance = generator(self.settings.seed, "preview")
        shape, told = self.preview_setting(2 * len(wanted))
        x = torch.randn(len(wanted), *shape, generator=chance).to(device)

        def predict(x: torch.Tensor, t: int) -> torch.Tensor:
            with self.computing():
                times = torch.full((2 * len(x),), t, device=device)
                both = self.network(torch.cat([x, x]), times, caption, mask, **told)
            conditional, unconditional = both.float().chunk(2)
            return unconditional + PREVIEW_CFG * (conditional - unconditional)

        with self.averaged():
            return ddim(predict, x, PREVIEW_STEPS)


def checkpointing_options(depth: int) -> dict:
    """``transformer_options`` under which every block keeps its input alone and is computed again for gradients."""

    def replacement(args: dict, extra: dict) -> dict:
        def block(img: torch.Tensor) -> torch.Tensor:
            return extra["original_block"](args | {"img": img})["img"]

        return {"img": checkpoint(block, args["img"], use_reentrant=False)}

    return {"patches_replace": {"dit": {("double_block", index): replacement for index in range(depth)}}}
