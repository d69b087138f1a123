"""Times whole sampling runs under guidance in ComfyUI's KSampler: this pack's MODEL against ComfyUI's own.

The weights are the same.


    python benchmarks/sampling.py --comfyui ../ComfyUI --pixels 320 512 --tokens 20 120

True width (1152, 16 heads) and random weights in one file, which both load in one process; the depth is cut, as time
grows in proportion to it. Prompt and negative differ in length. Both run in every round, the first of a round changing,
with ComfyUI's default attention and with PyTorch's (what --use-pytorch-cross-attention sets). The ratio is the median
over rounds of ComfyUI's time by ours. Also printed: GFLOP/s by this machine's best matrix product, and that both give
one result, at the sizes where ComfyUI's position grid is right.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from forward import forward_flops, matmul_speed, transformer  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from pixart.config import PixArtConfig  # noqa: E402
from tools.comfyui import find_hosts, read_host  # noqa: E402

NEGATIVE_TOKENS = 8


def load_both(pixels: int, depth: int, folder: Path):
    """(our MODEL, ComfyUI's) of one file."""
    import comfy.sd
    import host_process

    pack = host_process.load_pack(ROOT).__name__
    __import__(f"{pack}.nodes.host.model")
    config = PixArtConfig(depth=depth, base_size=pixels // 16, pe_interpolation=pixels / 512)
    path = folder / f"{pixels}.safetensors"
    save_file(transformer(config, torch.float32).state_dict(), path)
    ours = sys.modules[f"{pack}.nodes.host.model"].load_model(str(path))
    # A file of a cut depth does not say for which size it is: both are told the same grid.
    ours.model.diffusion_model.config = config
    theirs = comfy.sd.load_diffusion_model(str(path))
    return config, ours, theirs


def sample(model, x: torch.Tensor, positive, negative, steps: int) -> torch.Tensor:
    import comfy.sample

    return comfy.sample.sample(
        model, x, steps, 4.5, "dpmpp_2m", "normal", positive, negative, torch.zeros_like(x), disable_pbar=True, seed=1
    )


def set_attention(name: str) -> None:
    """One of the host's kernels, everywhere where the host's own PixArt looks for it."""
    import comfy.cli_args
    import comfy.ldm.modules.attention as attention
    import comfy.ldm.pixart.blocks as blocks

    comfy.cli_args.args.use_pytorch_cross_attention = name == "pytorch"
    kernel = attention.attention_pytorch if name == "pytorch" else attention.attention_sub_quad
    attention.optimized_attention = blocks.optimized_attention = kernel


def compare(pixels: int, tokens: int, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="pixart-benchmark-") as folder, torch.inference_mode():
        config, ours, theirs = load_both(pixels, args.depth, Path(folder))
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, pixels // 8, pixels // 8, generator=generator)
        positive = [[torch.randn(1, tokens, 4096, generator=generator), {}]]
        negative = [[torch.randn(1, NEGATIVE_TOKENS, 4096, generator=generator), {}]]
        peak = matmul_speed(torch.float32, torch.device("cpu"))
        flops = args.steps * forward_flops(config, 2, (pixels // 16) ** 2, tokens)
        for attention in ("default", "pytorch"):
            set_attention(attention)
            out = {name: sample(m, x, positive, negative, 2) for name, m in (("ours", ours), ("ComfyUI", theirs))}
            away = (out["ours"] - out["ComfyUI"]).abs().max() / out["ComfyUI"].abs().max()
            times: dict[str, list[float]] = {"ours": [], "ComfyUI": []}
            for index in range(args.rounds):
                pair = [("ours", ours), ("ComfyUI", theirs)]
                for name, model in pair[:: 1 if index % 2 else -1]:
                    started = time.perf_counter()
                    sample(model, x, positive, negative, args.steps)
                    times[name].append(time.perf_counter() - started)
            ratio = statistics.median(b / a for a, b in zip(times["ours"], times["ComfyUI"], strict=True))
            ours_s, theirs_s = (statistics.median(times[name]) for name in ("ours", "ComfyUI"))
            print(
                f"{pixels:5} px  {tokens:3} tokens  {attention:8} ours {ours_s:7.2f} s  ComfyUI {theirs_s:7.2f} s  "
                f"ratio {ratio:5.2f}  {flops / ours_s / peak:4.0%} of matrix product  difference {away:.1e}",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI tree (default: COMFYUI_PATH, or one found nearby)")
    parser.add_argument("--pixels", type=int, nargs="+", default=[320, 512, 1024])
    parser.add_argument("--tokens", type=int, nargs="+", default=[20, 120])
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    host = read_host(args.comfyui) if args.comfyui else next(iter(find_hosts()), None)
    if host is None:
        parser.error("no ComfyUI found: name its folder with --comfyui or COMFYUI_PATH")
    import host_process

    host_process.enter(host)
    for pixels in args.pixels:
        for tokens in args.tokens:
            compare(pixels, tokens, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
