"""What compression costs the pictures of the demo: right pictures, and how far the prediction moves.

    python benchmarks/kv_demo.py --demo demo --count 40

The same prompts and seeds go through the dense model, the dense model with training-free compression, and the one whose
convolutions were trained (pixart-demo-sigma-kv.safetensors). A picture is right when its background, colour, shape and
position are those of the prompt.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from pixart.compression import COMPRESSION, KVCompression  # noqa: E402
from pixart.noise import NoiseSchedule  # noqa: E402
from pixart.pipeline import PixArtPipeline  # noqa: E402
from pixart.training.demo.captions import random_scene  # noqa: E402
from pixart.training.demo.drawing import draw, place  # noqa: E402
from pixart.training.demo.judge import mistakes  # noqa: E402
from pixart.training.demo.latents import CONTRAST, teacher_latents  # noqa: E402

ASKED = ("background", "colour", "shape", "position")
SEED = 20240307
TIMESTEPS = (950, 700, 400, 100)


@dataclass(frozen=True)
class Row:
    """One line of the table: which file, and what its MODEL is told."""

    name: str
    is_trained: bool = False
    compression: KVCompression | None = None


ROWS = (
    Row("dense"),
    Row("average 2, blocks 2-4", compression=KVCompression("average", 2, 2)),
    Row("uniform 2, blocks 2-4", compression=KVCompression("uniform", 2, 2)),
    Row("uniform_every 4, blocks 2-4", compression=KVCompression("uniform_every", 4, 2)),
    Row("conv 2 untrained, blocks 2-4", compression=KVCompression("conv", 2, 2)),
    Row("conv 2 trained, blocks 2-4", is_trained=True),
    Row("average 2, all blocks", compression=KVCompression("average", 2)),
    Row("average 4, blocks 2-4", compression=KVCompression("average", 4, 2)),
    Row("average 4, all blocks", compression=KVCompression("average", 4)),
)


def told(transformer, compression: KVCompression | None):
    """Have every forward of ``transformer`` compressed; returns what undoes it."""

    def add(module, args, keywords):
        if compression is None:
            return None
        return args, {**keywords, "transformer_options": {COMPRESSION: compression}}

    return transformer.register_forward_pre_hook(add, with_kwargs=True)


@torch.inference_mode()
def predictions(pipeline: PixArtPipeline, size: int) -> torch.Tensor:
    """Noise predictions for a drawn scene, as noisy as each of several timesteps has it."""
    rng = random.Random(1)
    scene = random_scene(rng)
    captions = pipeline.encode([scene.caption()])
    latents = teacher_latents(draw([place(scene, size, size, rng)], size, size)) * CONTRAST
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor(TIMESTEPS)
    x = NoiseSchedule().add(latents.expand(len(t), -1, -1, -1), noise.expand(len(t), -1, -1, -1), t)
    features, mask = (part.expand(len(t), *part.shape[1:]) for part in (captions.embeddings, captions.mask))
    return pipeline.transformer(x, t.float(), features, mask)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=ROOT / "demo")
    parser.add_argument("--trained", type=Path, help="default: pixart-demo-sigma-kv.safetensors in the demo folder")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of the rows to measure; default all")
    args = parser.parse_args()
    files = {False: args.demo / "pixart-demo-sigma.safetensors"}
    files[True] = args.trained or args.demo / "pixart-demo-sigma-kv.safetensors"
    encoder, autoencoder = (args.demo / f"pixart-demo-{part}.safetensors" for part in ("t5", "vae"))
    rng = random.Random(SEED)
    scenes = [random_scene(rng) for _ in range(args.count)]
    pipelines = {
        is_trained: PixArtPipeline.load(path, encoder, autoencoder)
        for is_trained, path in files.items()
        if path.exists()
    }
    dense = predictions(pipelines[False], args.size)
    print(f"{args.count} prompts, seed {SEED}, {args.size} x {args.size}, 20 steps, cfg 4.5")
    print(f"{'':32}{'right':>8}{'error of the prediction':>26}")
    for index, row in enumerate(ROWS):
        if row.is_trained not in pipelines or (args.rows and index not in args.rows):
            continue
        pipeline = pipelines[row.is_trained]
        undo = told(pipeline.transformer, row.compression)
        error = (predictions(pipeline, args.size) - dense).pow(2).mean().sqrt() / dense.pow(2).mean().sqrt()
        right, empty = 0, pipeline.encode([""])
        for number, scene in enumerate(scenes):
            captions = pipeline.encode([scene.caption()])
            latents = pipeline.sample(captions, empty, height=args.size, width=args.size, seed=SEED + number)
            picture = pipeline.decode(latents)[0].movedim(-1, 0)
            right += not set(mistakes(scene, picture)) & set(ASKED)
        undo.remove()
        print(f"{row.name:32}{right:5} / {args.count}{error.item():20.2%}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
