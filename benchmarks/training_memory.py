"""Memory of a training, stage by stage, with a large T5: how much of it is left when the transformer trains.

    python benchmarks/training_memory.py

Makes a T5 of some 600 MiB around the demo's vocabulary, encodes captions and pictures, trains the demo for some
updates, and prints the resident memory of the process (Linux) at every stage, in MiB, as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pixart.checkpoint import open_checkpoint, state_dict_to_save  # noqa: E402
from pixart.training.pictures import Example  # noqa: E402
from pixart.training.settings import TrainSettings  # noqa: E402
from pixart.training.sources import Sources, prepare  # noqa: E402
from pixart.training.trainer import Trainer, make_accelerator  # noqa: E402

DEMO = ROOT / "demo"
MIB = 2**20


def resident() -> int:
    """Resident memory of this process in MiB, mapped files included."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def write_t5(path: Path) -> int:
    """A T5 v1.1 of random weights as wide as the demo's and far larger; its size in MiB."""
    tokenizer = load_file(DEMO / "pixart-demo-t5.safetensors")
    config = T5Config(
        vocab_size=tokenizer["shared.weight"].shape[0],
        d_model=128,
        d_kv=32,
        d_ff=32768,
        num_layers=12,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        tie_word_embeddings=False,
    )
    state = {n: t.clone() for n, t in T5EncoderModel(config).state_dict().items() if "embed_tokens" not in n}
    save_file(state | {"spiece_model": tokenizer["spiece_model"]}, path)
    return path.stat().st_size // MIB


def write_base(path: Path) -> None:
    """The demo's transformer without the name of its T5, which this one is not."""
    demo = open_checkpoint(DEMO / "pixart-demo-sigma.safetensors")
    save_file(state_dict_to_save(dict(demo.state_dict), demo.config), path)


class Measured(Sources):
    """Sources that note the memory while T5 is there."""

    def text_encoder(self):
        encode = super().text_encoder()

        def measured(text: str) -> torch.Tensor:
            caption = encode(text)
            seen["encoding"] = max(seen.get("encoding", 0), resident())
            return caption

        return measured


seen: dict[str, int] = {}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        seen["t5_file"] = write_t5(out / "t5.safetensors")
        write_base(out / "base.safetensors")
        accelerator = make_accelerator(cpu=True)
        seen["before"] = resident()
        base = open_checkpoint(out / "base.safetensors")
        sources = Measured(base, out / "t5.safetensors", DEMO / "pixart-demo-vae.safetensors")
        examples = [Example(torch.rand(3, 128, 128), f"a red circle, number {i}", str(i)) for i in range(4)]
        features = prepare(sources, examples, (), 128, out, accelerator)
        seen["encoded"] = resident()
        settings = TrainSettings(steps=5, batch_size=4)
        trainer = Trainer(base, features, settings, out, "memory", accelerator=accelerator)
        trainer.train(lambda _: seen.update(training=max(seen.get("training", 0), resident())))
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
