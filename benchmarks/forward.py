"""Times one forward of a PixArt transformer against its peers, with the same weights and inputs.

    python benchmarks/forward.py --pixels 512 --depth 2 --comfyui ../ComfyUI

The width is the released models' (1152, 16 heads) and the weights are random; the depth is cut, since time
grows in proportion to it. Peers: diffusers' PixArtTransformer2DModel, and ComfyUI's own PixArtMS where a tree
is given or found. All of them run in every round, one after the other, so that a machine that slows down
slows all alike; the ratio is the median over rounds of a peer's time by ours in the same round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from diffusers import PixArtTransformer2DModel  # noqa: E402

from pixart.checkpoint import to_diffusers  # noqa: E402
from pixart.config import PixArtConfig  # noqa: E402
from pixart.training.initialise import initialise  # noqa: E402
from pixart.transformer import PixArtTransformer  # noqa: E402

SIZES = (256, 512, 1024)
CAPTION_TOKENS = 300
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Forward = Callable[[], torch.Tensor]


def transformer(config: PixArtConfig, dtype: torch.dtype) -> PixArtTransformer:
    """Random weights, with those filled in that training starts from zero, so that outputs can be compared."""
    generator = torch.Generator().manual_seed(0)
    model = initialise(PixArtTransformer(config), generator)
    with torch.no_grad():
        for layer in [model.final_layer.linear, *(block.cross_attn.proj for block in model.blocks)]:
            layer.weight.normal_(std=0.02, generator=generator)
    return model.to(dtype).eval().requires_grad_(False)


def diffusers_peer(model: PixArtTransformer, x, t, caption, mask) -> Forward:
    config = model.config
    peer = PixArtTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.depth,
        cross_attention_dim=config.hidden_size,
        caption_channels=config.caption_channels,
        sample_size=config.base_size * config.patch_size,
        interpolation_scale=config.pe_interpolation,
        use_additional_conditions=False,
    )
    state = to_diffusers(model.state_dict())
    state.pop("caption_projection.y_embedding", None)  # the null caption, for which the class has no place
    peer.load_state_dict(state)
    peer.to(x.dtype).eval().requires_grad_(False)
    none = {"resolution": None, "aspect_ratio": None}

    def forward() -> torch.Tensor:
        out = peer(
            x, encoder_hidden_states=caption, timestep=t, encoder_attention_mask=mask, added_cond_kwargs=none
        ).sample
        return out.chunk(2, dim=1)[0]

    return forward


def find_comfyui() -> Path | None:
    """A ComfyUI tree: ``COMFYUI_PATH``, or the tree that this project lies in as a custom node, or beside it."""
    places = [ROOT.parent.parent, ROOT.parent / "ComfyUI"]
    if os.environ.get("COMFYUI_PATH"):
        places.insert(0, Path(os.environ["COMFYUI_PATH"]))
    return next((place for place in places if (place / "comfy" / "ldm" / "pixart").is_dir()), None)


def comfyui_peer(tree: Path, model: PixArtTransformer, x, t, caption, mask) -> Forward:
    """ComfyUI's own class. It knows no caption mask, which makes no difference here: no token is masked."""
    sys.path.insert(0, str(tree))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args

    comfy.cli_args.args.cpu = x.device.type == "cpu"
    import comfy.ops
    from comfy.ldm.pixart.pixartms import PixArtMS

    config = model.config
    peer = PixArtMS(
        input_size=config.base_size * config.patch_size,
        hidden_size=config.hidden_size,
        depth=config.depth,
        num_heads=config.num_heads,
        caption_channels=config.caption_channels,
        pe_interpolation=config.pe_interpolation,
        model_max_length=config.max_caption_tokens,
        micro_condition=False,
        dtype=x.dtype,
        device=x.device,
        operations=comfy.ops.disable_weight_init,
    )
    peer.load_state_dict(model.state_dict())
    peer.to(x.dtype).eval().requires_grad_(False)
    return lambda: peer(x, t, caption)


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


def forward_flops(config: PixArtConfig, batch: int, tokens: int, caption: int) -> int:
    """Multiplications and additions of the matrix products of one forward."""
    d, mlp = config.hidden_size, config.mlp_hidden_size
    per_token = 4 * d * d + 2 * tokens * d  # qkv and output projection; scores and values
    per_token += 2 * d * d + 2 * caption * d + 2 * d * mlp  # query and output of cross-attention, its scores, the MLP
    block = tokens * per_token + caption * 2 * d * d  # and the caption's keys and values
    ends = tokens * d * config.patch_size**2 * (config.in_channels + config.out_channels)
    ends += caption * (config.caption_channels * d + d * d)
    modulation = 256 * d + d * d + 6 * d * d
    return 2 * batch * (config.depth * block + ends + modulation)


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


def compare(pixels: int, args: argparse.Namespace) -> None:
    dtype, device = DTYPES[args.dtype], torch.device(args.device)
    # The base size is that of the released model of this size, where all three compute the same position grid.
    config = PixArtConfig(depth=args.depth, base_size=pixels // 16, pe_interpolation=pixels / 512)
    model = transformer(config, dtype).to(device)
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    x = random(args.batch, 4, pixels // 8, pixels // 8)
    caption = random(args.batch, CAPTION_TOKENS, config.caption_channels)
    t = torch.full((args.batch,), 500.0, device=device)
    mask = torch.ones(args.batch, CAPTION_TOKENS, device=device, dtype=torch.int64)

    forwards: dict[str, Forward] = {"this project": lambda: model(x, t, caption, mask)}
    forwards["diffusers"] = diffusers_peer(model, x, t, caption, mask)
    tree = args.comfyui or find_comfyui()
    if tree is not None:
        forwards["ComfyUI"] = comfyui_peer(tree, model, x, t, caption, mask)

    with torch.inference_mode():
        outputs, failed = first_outputs(forwards)
        times = measure({name: forwards[name] for name in outputs}, args.rounds, device)
    ours = outputs["this project"]
    flops = forward_flops(config, args.batch, (pixels // 16) ** 2, CAPTION_TOKENS)
    peak = matmul_speed(dtype, device)
    print(
        f"\n{pixels} x {pixels}, batch {args.batch}, depth {args.depth}, {args.dtype}, {device}, "
        f"{torch.get_num_threads()} threads, {args.rounds} rounds: {flops / 1e9:.1f} GFLOP a forward, "
        f"matrix product {peak / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':14}{'median s':>10}{'time / ours':>13}{'GFLOP/s':>10}{'of peak':>9}{'difference':>12}")
    for name, taken in times.items():
        median = statistics.median(taken)
        ratio = statistics.median(a / b for a, b in zip(taken, times["this project"], strict=True))
        away = (outputs[name] - ours).abs().max() / ours.abs().max()
        speed = flops / median
        print(f"{name:14}{median:10.3f}{ratio:13.2f}{speed / 1e9:10.1f}{speed / peak:9.0%}{away.item():12.1e}")
    for name, reason in failed.items():
        print(f"{name:14} cannot run this size ({reason})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", default=SIZES, help="sides of the picture")
    parser.add_argument("--depth", type=int, default=2, help="blocks (released models: 28)")
    parser.add_argument("--batch", type=int, default=2, help="2 is one picture under guidance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI tree (default: COMFYUI_PATH, or one found nearby)")
    args = parser.parse_args()
    if bad := [pixels for pixels in args.pixels if pixels < 16 or pixels % 16]:
        parser.error(f"--pixels {bad[0]}: a side must be a multiple of 16")
    for pixels in args.pixels:
        compare(pixels, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
