"""What a training run is told."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

LORA, FULL, CONTROLNET, COMPRESSION = "lora", "full", "controlnet", "compression"
METHODS = (LORA, FULL, CONTROLNET, COMPRESSION)
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("fp32", "bf16")

TARGETS = {
    "attention": ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"),
    "blocks": (
        *("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"),
        *("mlp.fc1", "mlp.fc2"),
    ),
    "all": (
        *("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"),
        *("mlp.fc1", "mlp.fc2", "y_proj.fc1", "y_proj.fc2", "t_block.1", "t_embedder.mlp.0", "t_embedder.mlp.2"),
        "final_layer.linear",
    ),
}
"""Which linear layers of the transformer get a LoRA, by the end of their names."""


@dataclass(frozen=True)
class TrainSettings:
    """One training run. Raises ValueError, naming the setting, for a value that makes no sense.

    method: "lora", "full" for all weights (DreamBooth), "controlnet", or "compression" of keys and values.
    batch_size: pictures of the concept in one update, over all processes; with prior preservation as many
        class pictures are added. accumulation: into how many forwards an update is split, on each process.
    warmup: updates over which the learning rate rises; schedule: what it does afterwards.
    alpha: 0 takes the rank. targets: a key of ``TARGETS``.
    copied_blocks: of a ControlNet; 0 takes half of the base's, less one where it has an even number.
    kv_ratio: of the compression, the side of the windows that become one key; kv_first_block, kv_last_block: inclusive,
        -1 for the middle and the last.
    caption_dropout: share of captions replaced by the null caption, which keeps guidance working.
    prior_weight: what the class pictures' loss counts beside the concept's.
    min_snr: γ of min-SNR loss weighting (Hang et al., 2303.09556), 5 in the paper; 0 leaves the loss plain.
    ema: decay of the average of the weights that is saved instead of the last ones; 0 saves the last ones.
    precision: "bf16" computes in bfloat16 and keeps what is trained in float32.
    checkpointing: recompute blocks in the backward pass, for memory.
    resolution: side in pixels of the square that pictures have the area of; 0 takes the checkpoint's own.
    save_every, preview_every: updates between saved states and between previews; 0 only at the end, or never.
    """

    method: str = LORA
    steps: int = 1000
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rank: int = 16
    alpha: float = 0.0
    targets: str = "attention"
    copied_blocks: int = 0
    kv_ratio: int = 2
    kv_first_block: int = -1
    kv_last_block: int = -1
    caption_dropout: float = 0.1
    prior_weight: float = 1.0
    min_snr: float = 0.0
    ema: float = 0.0
    precision: str = "fp32"
    checkpointing: bool = False
    resolution: int = 0
    seed: int = 0
    save_every: int = 250
    preview_every: int = 0

    def __post_init__(self):
        for name, choices in (
            ("method", METHODS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("targets", tuple(TARGETS)),
        ):
            require(getattr(self, name) in choices, f"{name} must be one of {', '.join(choices)}", getattr(self, name))
        for name in ("steps", "batch_size", "accumulation", "rank"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more", getattr(self, name))
        require(self.kv_ratio >= 2, "kv_ratio must be 2 or more", self.kv_ratio)
        for name in ("kv_first_block", "kv_last_block"):
            require(getattr(self, name) >= -1, f"{name} must be -1 or more", getattr(self, name))
        for name in ("copied_blocks", "warmup", "save_every", "preview_every", "resolution", "seed"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more", getattr(self, name))
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be above 0", value)
        for name in ("weight_decay", "prior_weight", "min_snr", "alpha"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} must be 0 or more", value)
        require(0 <= self.caption_dropout < 1, "caption_dropout must be from 0 to below 1", self.caption_dropout)
        require(0 <= self.ema < 1, "ema must be from 0 to below 1", self.ema)
        require(not self.resolution % 16, "resolution must be a multiple of 16", self.resolution)

    @property
    def scale(self) -> float:
        """Factor of a LoRA's product: alpha / rank."""
        return (self.alpha or self.rank) / self.rank

    def local_batch(self, processes: int) -> int:
        """Pictures of the concept that one process takes in one update.

        Raises ValueError where they cannot be shared evenly: another number would be another training.
        """
        if self.batch_size % (processes * self.accumulation):
            raise ValueError(
                f"batch_size {self.batch_size} is over all processes and cannot be shared evenly by {processes} "
                f"process(es) with {self.accumulation} accumulation step(s): make it a multiple of "
                f"{processes * self.accumulation}."
            )
        return self.batch_size // processes

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of an update, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def identity(self, data: Sequence[str]) -> str:
        """A digest of all that decides the result: two runs of one identity are one training.

        data: digests of what is trained on and from. How often the run saves does not count, nor does its length
        where the learning rate does not depend on it, so that it can be made longer.
        """
        told = asdict(self)
        del told["save_every"], told["preview_every"], told["checkpointing"], told["accumulation"]
        if self.schedule == "constant":
            del told["steps"]
        if self.method != CONTROLNET:
            del told["copied_blocks"]
        if self.method != COMPRESSION:
            del told["kv_ratio"], told["kv_first_block"], told["kv_last_block"]
        return hashlib.sha256(json.dumps([told, list(data)], sort_keys=True).encode()).hexdigest()[:32]


def require(condition: bool, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{rule}, not {value!r}.")
