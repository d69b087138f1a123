"""Times one forward of a PixArt transformer against its peers, with the same weights and inputs.

    python benchmarks/forward.py --pixels 512 --depth 2 --comfyui ../ComfyUI --extramodels ../ComfyUI_ExtraModels

The width is the released models' (1152, 16 heads) and the weights are random; the depth is cut, since time
grows in proportion to it. Peers: diffusers' PixArtTransformer2DModel; ComfyUI's own PixArtMS where a tree is given or
found; ComfyUI_ExtraModels' PixArtMS where a checkout of it is given. All of them run in every round, one after the
other, so that a machine that slows down slows all alike; the ratio is the median over rounds of a peer's time by ours
in the same round. “prepared” is this project's forward as a sampling run calls it after its first step, with the
caption's keys and values and the position grid known.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import peers  # noqa: E402
import torch  # noqa: E402
from peers import Forward, size_config, transformer  # noqa: E402

from pixart.config import PixArtConfig  # noqa: E402
from pixart.transformer import run_options  # noqa: E402

SIZES = (256, 512, 1024)
TOKENS = (300,)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OURS = "this project"


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def matmul_speed(dtype: torch.dtype, device: torch.device, side: int = 1152, repeat: int = 7) -> float:
    """The machine's best measured speed at a square matrix product, in FLOP/s: what a forward can hope for."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(repeat))


def forward_flops(config: PixArtConfig, batch: int, tokens: int, caption: int, prepared: bool = False) -> int:
    """Multiplications and additions of the matrix products of one forward.

    prepared: the caption's projection, keys and values were computed before.
    """
    d, mlp = config.hidden_size, config.mlp_hidden_size
    per_token = 4 * d * d + 2 * tokens * d  # qkv and output projection; scores and values
    per_token += 2 * d * d + 2 * caption * d + 2 * d * mlp  # query and output of cross-attention, its scores, the MLP
    ends = tokens * d * config.patch_size**2 * (config.in_channels + config.out_channels)
    total = config.depth * tokens * per_token + ends + 256 * d + d * d + 6 * d * d  # and the timestep's modulation
    return 2 * batch * total + (0 if prepared else caption_flops(config, batch, caption))


def caption_flops(config: PixArtConfig, batch: int, caption: int) -> int:
    """Of that, what depends on the caption alone: its projection, and the keys and values of every block."""
    d = config.hidden_size
    return 2 * batch * caption * (config.caption_channels * d + d * d + config.depth * 2 * d * d)


def first_outputs(forwards: dict[str, Forward]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What each forward returns, and of those that cannot run this size, why; also warms up."""
    outputs, failed = {}, {}
    for name, forward in forwards.items():
        try:
            outputs[name] = forward().float()
        except (ArithmeticError, ValueError, RuntimeError) as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return outputs, failed


def measure(forwards: dict[str, Forward], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every forward in every round; which one goes first changes from round to round."""
    names = list(forwards)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(seconds(forwards[name], device))
    return times


def build(args: argparse.Namespace, model, x, t, caption, mask) -> tuple[dict[str, Forward], dict[str, str]]:
    """Everyone's forward, and of those that cannot be built, why."""
    known = run_options(model.prepare_caption(caption, mask))
    forwards: dict[str, Forward] = {OURS: lambda: model(x, t, caption, mask)}
    forwards["prepared"] = lambda: model(x, t, caption, mask, transformer_options=known)
    diffusers = peers.diffusers_model(model.config, model.state_dict(), x.dtype).to(x.device)
    forwards["diffusers"] = lambda: peers.diffusers_forward(diffusers, x, t, caption, mask)
    failed = {}
    tree = args.comfyui or peers.find_comfyui()
    if tree is not None:
        peers.enter_comfyui(tree, x.device, args.use_pytorch_cross_attention)
        host = peers.comfyui_model(model, x)
        forwards["ComfyUI"] = lambda: host(x, t, caption)
    if args.extramodels is not None:
        try:
            if tree is None:
                raise ValueError("it runs inside ComfyUI: name its folder with --comfyui or COMFYUI_PATH")
            beside = peers.extramodels_model(args.extramodels, model, x)
            forwards["ExtraModels"] = lambda: beside(x, t, caption)
        except (ImportError, AttributeError, ValueError) as error:
            failed["ExtraModels"] = f"{type(error).__name__}: {error}"
    return forwards, failed


def compare(pixels: int, tokens: int, args: argparse.Namespace) -> None:
    dtype, device = DTYPES[args.dtype], torch.device(args.device)
    config = size_config(pixels, args.depth)
    model = transformer(config, dtype).to(device)
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    x = random(args.batch, 4, pixels // 8, pixels // 8)
    caption = random(args.batch, tokens, config.caption_channels)
    t = torch.full((1,), 500.0, device=device).expand(args.batch)  # as the host's sampler has it, one for the batch
    mask = torch.ones(args.batch, tokens, device=device, dtype=torch.int64)
    with torch.inference_mode():
        forwards, failed = build(args, model, x, t, caption, mask)
        outputs, cannot = first_outputs(forwards)
        times = measure({name: forwards[name] for name in outputs}, args.rounds, device)
        peak = matmul_speed(dtype, device)
    flops = forward_flops(config, args.batch, (pixels // 16) ** 2, tokens)
    print(
        f"\n{pixels} x {pixels}, {tokens} tokens, batch {args.batch}, depth {args.depth}, {args.dtype}, {device}, "
        f"{torch.get_num_threads()} threads, {args.rounds} rounds: {flops / 1e9:.1f} GFLOP a forward, "
        f"matrix product {peak / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':14}{'median s':>10}{'time / ours':>13}{'GFLOP/s':>10}{'of peak':>9}{'difference':>12}")
    for name, taken in times.items():
        median = statistics.median(taken)
        ratio = statistics.median(a / b for a, b in zip(taken, times[OURS], strict=True))
        away = (outputs[name] - outputs[OURS]).abs().max() / outputs[OURS].abs().max()
        work = flops - caption_flops(config, args.batch, tokens) if name == "prepared" else flops
        speed = work / median
        print(f"{name:14}{median:10.3f}{ratio:13.2f}{speed / 1e9:10.1f}{speed / peak:9.0%}{away.item():12.1e}")
    for name, reason in (failed | cannot).items():
        print(f"{name:14} cannot run ({reason})")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", default=SIZES, help="sides of the picture")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="lengths of the caption")
    parser.add_argument("--depth", type=int, default=2, help="blocks (released models: 28)")
    parser.add_argument("--batch", type=int, default=2, help="2 is one picture under guidance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI tree (default: COMFYUI_PATH, or one found nearby)")
    parser.add_argument("--extramodels", type=Path, help="a checkout of ComfyUI_ExtraModels; needs timm")
    parser.add_argument("--use-pytorch-cross-attention", action="store_true", help="for ComfyUI, as its own option")
    args = parser.parse_args()
    if bad := [pixels for pixels in args.pixels if pixels < 16 or pixels % 16]:
        parser.error(f"--pixels {bad[0]}: a side must be a multiple of 16")
    for pixels in args.pixels:
        for tokens in args.tokens:
            compare(pixels, tokens, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
