"""Command line of the demo's recipe: one stage a call, each resumable."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...terminal import leave

STAGES = (
    "text", "encoder", "decoder", "sharpen", "diffusion", "outlines", "polish", "practice", "alpha", "kv", "controlnet",
    "controlnet-practice", "controlnet-finish", "lcm", "restore",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pixart.training.demo", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="folder for states and logs")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="published files, for kv and restore")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: what the published demo was trained with")
    args = parser.parse_args()
    if args.stage == "text":
        from . import text

        text.train(args.out, args.seed, args.steps or 1500)
    elif args.stage in ("encoder", "decoder"):
        from . import autoencoder

        autoencoder.train(args.out, args.stage, args.seed, args.steps or {"encoder": 250, "decoder": 900}[args.stage])
    elif args.stage == "sharpen":
        from . import autoencoder

        autoencoder.sharpen(args.out, args.seed, args.steps or 600)
    elif args.stage == "diffusion":
        from . import diffusion

        diffusion.train(args.out, args.seed, args.steps or diffusion.STEPS)
    elif args.stage == "outlines":
        from . import outlines

        outlines.train(args.out, args.seed, args.steps or outlines.OUTLINE_PHASE.steps)
    elif args.stage == "polish":
        from . import outlines

        outlines.polish(args.out, args.seed, args.steps or outlines.POLISH_PHASE.steps)
    elif args.stage == "practice":
        from . import outlines

        outlines.practise(args.out, args.seed, args.steps or outlines.PRACTICE_PHASE.steps)
    elif args.stage == "controlnet":
        from . import controlnet

        controlnet.train(args.out, args.seed, args.steps or controlnet.CONTROL_PHASE.steps)
    elif args.stage == "controlnet-practice":
        from . import controlnet

        controlnet.practise(args.out, args.seed, args.steps or controlnet.PRACTICE_STEPS)
    elif args.stage == "controlnet-finish":
        from . import controlnet

        controlnet.finish(args.out, args.seed, args.steps or controlnet.FINISH_STEPS)
        print("wrote", controlnet.export(args.out, args.demo))
    elif args.stage == "restore":
        from . import restore

        print("restored:", ", ".join(restore.restore(args.out, args.demo)) or "nothing, all states are there")
    elif args.stage == "alpha":
        from . import alpha

        alpha.train(args.out, args.seed, args.steps or alpha.ALPHA_PHASE.steps)
    elif args.stage == "lcm":
        from . import lcm

        lcm.train(args.out, args.seed, args.steps or lcm.LCM_PHASE.steps)
        print("wrote", lcm.export(args.out, args.demo))
    elif args.stage == "kv":
        from . import kv

        kv.train(args.out, args.seed, args.steps or kv.KV_PHASE.steps)
        print("wrote", kv.export(args.out, args.demo))


if __name__ == "__main__":
    leave(main)
