"""Times whole sampling runs under guidance: this pack and ComfyUI's own PixArt in its sampler, diffusers' pipeline.

    python benchmarks/sampling.py --comfyui ../ComfyUI                  # about fifteen minutes on one core
    python benchmarks/sampling.py --only "512/*" "memory/512/*" --steps 20
    python benchmarks/sampling.py --depth 28 --steps 20 --rounds 5      # as people run it; hours on one core

The same random weights of the released width (1152, 16 heads), noise, prompt and negative for all; prompt and negative
differ in length. The depth is cut, as time grows in proportion to it. Each case runs in every round with all three, the
first of a round changing: --only chooses cases by “pixels/tokens/attention” and “memory/pixels/who”, with * and ?.

Two processes, since ComfyUI chooses its attention at its start: its default, and --use-pytorch-cross-attention.
diffusers pads captions to 300 tokens, as its pipelines do. ComfyUI's class cannot draw 256 pixels and below.

Steps beyond the first cost the same, so that a few stand for 20: the first step is timed apart, with all that a run
does once, and the seconds printed are first + 19 × the mean of the others (at --steps 20 the measured time itself).
ratio: median over rounds of that peer's time by ours. of peak: speed of the matrix products by this machine's best one.
difference: largest from ours by our largest; of ComfyUI in the result of the whole run, of diffusers, whose sampler
has other noise levels, in one forward.

Memory is measured in processes of their own: the peak of a run over what is resident after a small one.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness"), str(ROOT / "benchmarks")]

import peers  # noqa: E402
import torch  # noqa: E402
from forward import forward_flops, matmul_speed  # noqa: E402
from loading import reset_peak, status  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from pixart.config import PixArtConfig  # noqa: E402
from tools.comfyui import Host, find_hosts, read_host  # noqa: E402

SIZES = (256, 320, 512, 1024)
TOKENS = (20, 120)
NEGATIVE_TOKENS, PADDED = 8, 300
CFG, STATED = 4.5, 20
SMALL = 272
"""Pixels of a run that warms up: ComfyUI draws no less."""
OURS, COMFYUI, DIFFUSERS = "ours", "ComfyUI", "diffusers"
ATTENTION = ("default", "pytorch")
DEPTH, STEPS = {1024: 1}, {1024: 2}
"""Where not 2 blocks and 4 steps."""
Run = Callable[[], tuple[torch.Tensor, float]]


class Case:
    """Weights, noise and captions of one size, and everyone who samples them."""

    def __init__(self, pixels: int, tokens: int, path: Path, config: PixArtConfig, steps: int):
        generator = torch.Generator().manual_seed(0)
        self.config, self.steps, self.path = config, steps, path
        self.pixels, self.tokens = pixels, tokens
        self.noise = torch.randn(1, 4, pixels // 8, pixels // 8, generator=generator)
        self.positive = torch.randn(1, tokens, config.caption_channels, generator=generator)
        self.negative = torch.randn(1, NEGATIVE_TOKENS, config.caption_channels, generator=generator)

    def load(self, who: str) -> Run:
        """A call that samples once and returns (latents, seconds of 20 steps)."""
        if who == DIFFUSERS:
            self.pipe = diffusers_pipeline(self.config, self.path)
            return self.sample_diffusers
        if who == OURS:
            self.ours = load_ours(self.path, self.config)
            return lambda: self.sample_comfyui(self.ours)
        import comfy.sd

        theirs = comfy.sd.load_diffusion_model(str(self.path))
        return lambda: self.sample_comfyui(theirs)

    def warm_up(self, run: Run) -> None:
        """A small run, which reads all weights and imports what is imported late."""
        pixels, steps, noise = self.pixels, self.steps, self.noise
        self.pixels, self.steps, self.noise = SMALL, 2, torch.zeros(1, 4, SMALL // 8, SMALL // 8)
        run()
        self.pixels, self.steps, self.noise = pixels, steps, noise

    def sample_comfyui(self, model) -> tuple[torch.Tensor, float]:
        import comfy.sample

        clock = Clock(self.steps)
        latents = comfy.sample.sample(
            model, self.noise, self.steps, CFG, "dpmpp_2m", "normal", [[self.positive, {}]], [[self.negative, {}]],
            torch.zeros_like(self.noise), callback=lambda *_: clock.step(), disable_pbar=True, seed=1,
        )  # fmt: skip
        return latents, clock.stop()

    def sample_diffusers(self) -> tuple[torch.Tensor, float]:
        clock = Clock(self.steps)
        positive, positive_mask = padded(self.positive)
        negative, negative_mask = padded(self.negative)
        latents = self.pipe(
            prompt=None, negative_prompt=None, prompt_embeds=positive, prompt_attention_mask=positive_mask,
            negative_prompt_embeds=negative, negative_prompt_attention_mask=negative_mask, latents=self.noise,
            guidance_scale=CFG, num_inference_steps=self.steps, height=self.pixels, width=self.pixels,
            use_resolution_binning=False, output_type="latent", callback=lambda *_: clock.step(),
        ).images  # fmt: skip
        return latents, clock.stop()

    def diffusers_difference(self) -> float:
        """Between one forward of both, of the prompt alone, ours without and diffusers' with the padding."""
        t = torch.tensor([500.0])
        ours = self.ours.model.diffusion_model(self.noise, t, self.positive)
        theirs = peers.diffusers_forward(self.pipe.transformer, self.noise, t, *padded(self.positive))
        return difference(ours, theirs)


class Clock:
    """Seconds that 20 steps take, from a run of a few: the first apart, since it includes what is done once."""

    def __init__(self, steps: int):
        self.steps, self.first = steps, None
        self.started = time.perf_counter()

    def step(self) -> None:
        if self.first is None:
            self.first = time.perf_counter() - self.started

    def stop(self) -> float:
        rest = time.perf_counter() - self.started - self.first
        return self.first + (STATED - 1) * rest / (self.steps - 1)


def padded(caption: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(caption (1, 300, C), its mask (1, 300)) as diffusers' pipelines encode prompts."""
    count = caption.shape[1]
    mask = torch.zeros(1, PADDED, dtype=torch.int64)
    mask[:, :count] = 1
    return torch.nn.functional.pad(caption, (0, 0, 0, PADDED - count)), mask


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


def load_ours(path: Path, config: PixArtConfig):
    import host_process

    pack = host_process.load_pack(ROOT).__name__
    __import__(f"{pack}.nodes.host.model")
    ours = sys.modules[f"{pack}.nodes.host.model"].load_model(str(path))
    # A file of a cut depth does not say for which size it is: all are told the same grid.
    ours.model.diffusion_model.config = config
    return ours


def diffusers_pipeline(config: PixArtConfig, path: Path):
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    transformer = peers.diffusers_model(config, load_file(path), torch.float32)
    pipe = PixArtSigmaPipeline(None, None, None, transformer, DPMSolverMultistepScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def enter(host: Host, attention: str) -> None:
    """ComfyUI in this process, started with its own choice of attention or with PyTorch's."""
    import host_process

    host_process.enter(host)
    import comfy.cli_args

    comfy.cli_args.args.use_pytorch_cross_attention = attention == "pytorch"
    import comfy.model_management  # noqa: F401 - reads the choice, once


def write(config: PixArtConfig, folder: str) -> Path:
    path = Path(folder) / "weights.safetensors"
    save_file(peers.transformer(config, torch.float32).state_dict(), path)
    return path


def compare(pixels: int, tokens: int, attention: str, args: argparse.Namespace) -> None:
    depth, steps = args.depth or DEPTH.get(pixels, 2), args.steps or STEPS.get(pixels, 4)
    config = peers.size_config(pixels, depth)
    with tempfile.TemporaryDirectory(prefix="pixart-benchmark-") as folder, torch.inference_mode():
        case = Case(pixels, tokens, write(config, folder), config, steps)
        names = [OURS, *(name for name in args.peers if name != COMFYUI or pixels > 256)]
        runs = {name: case.load(name) for name in names}
        peak = matmul_speed(torch.float32, torch.device("cpu"))
        away = {DIFFUSERS: case.diffusers_difference()} if DIFFUSERS in runs else {}
        for run in runs.values():
            case.warm_up(run)
        times: dict[str, list[float]] = {name: [] for name in names}
        latents = {}
        for index in range(args.rounds):
            start = index % len(names)
            for name in names[start:] + names[:start]:
                latents[name], seconds = runs[name]()
                times[name].append(seconds)
        if COMFYUI in runs:
            away[COMFYUI] = difference(latents[OURS], latents[COMFYUI])
    flops = STATED * forward_flops(config, 2, (pixels // 16) ** 2, tokens, prepared=True)
    ours = statistics.median(times[OURS])
    line = f"{pixels:5} px {tokens:4} tokens  {attention:8} depth {depth:2} steps {steps:2}  ours {ours:8.2f} s"
    print(f"{line} ({flops / ours / peak:4.0%} of peak {peak / 1e9:.0f} GFLOP/s)", flush=True)
    for name in names[1:]:
        ratio = statistics.median(b / a for a, b in zip(times[OURS], times[name], strict=True))
        seconds = statistics.median(times[name])
        print(f"{'':30}{name:10}{seconds:8.2f} s  ratio {ratio:5.2f}  difference {away[name]:.1e}", flush=True)


def measure_memory(pixels: int, who: str, args: argparse.Namespace) -> dict[str, int]:
    """Peak of a run in this process, in bytes over what was resident after a small one."""
    config = peers.size_config(pixels, 1)
    with tempfile.TemporaryDirectory(prefix="pixart-benchmark-") as folder, torch.inference_mode():
        case = Case(pixels, TOKENS[0], write(config, folder), config, steps=2)
        run = case.load(who)
        case.warm_up(run)
        release_free_memory()
        before = status("VmRSS")[0]
        reset_peak()
        run()
        return {"bytes": status("VmHWM")[0] - before}


def release_free_memory() -> None:
    """Give back what the allocator keeps for later, which would hide the first part of a growth (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def child(args: argparse.Namespace, attention: str, *more: str) -> subprocess.CompletedProcess:
    """This script in a new process that does one part of the work."""
    command = [sys.executable, __file__, "--worker", attention, "--comfyui", str(args.comfyui), *more]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if "--memory" in more else None)


def wanted(case: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatch.fnmatchcase(case, pattern) for pattern in only)


def memory_table(args: argparse.Namespace) -> None:
    for attention in ATTENTION:
        for pixels in args.pixels:
            for who in (OURS, *args.peers):
                is_same = who == DIFFUSERS and attention != ATTENTION[0]  # knows nothing of ComfyUI's choice
                if is_same or pixels <= SMALL or not wanted(f"memory/{pixels}/{who}", args.only):
                    continue
                done = child(args, attention, "--memory", str(pixels), who)
                grown = json.loads(done.stdout.splitlines()[-1])["bytes"]
                kind = "" if who == DIFFUSERS else attention
                print(f"{pixels:5} px  {who:10} {kind:8} peak of a run {grown / 2**20:7.0f} MiB", flush=True)


def work(args: argparse.Namespace, host: Host) -> None:
    """In a child: all timings with one attention, or one measurement of memory."""
    enter(host, args.worker)
    if args.memory:
        pixels, who = args.memory
        print(json.dumps(measure_memory(int(pixels), who, args)))
        return
    for pixels in args.pixels:
        for tokens in args.tokens:
            if wanted(f"{pixels}/{tokens}/{args.worker}", args.only):
                compare(pixels, tokens, args.worker, args)


def parse() -> tuple[argparse.Namespace, Host]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI tree (default: COMFYUI_PATH, or one found nearby)")
    parser.add_argument("--pixels", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="of the prompt; the negative has 8")
    parser.add_argument("--peers", nargs="*", choices=[COMFYUI, DIFFUSERS], default=[COMFYUI, DIFFUSERS])
    parser.add_argument("--depth", type=int, help="blocks; released: 28 (default: 2, at 1024 pixels 1)")
    parser.add_argument("--steps", type=int, help="timed steps of a run, 2 or more (default: 4, at 1024 pixels 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="such as 512/20/pytorch or memory/*")
    parser.add_argument("--worker", choices=ATTENTION, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2: the first is timed apart")
    host = read_host(args.comfyui) if args.comfyui else next(iter(find_hosts()), None)
    if host is None:
        parser.error("no ComfyUI found: name its folder with --comfyui or COMFYUI_PATH")
    args.comfyui = host.path
    return args, host


def main() -> int:
    args, host = parse()
    if args.worker:
        work(args, host)
        return 0
    passed = ["--pixels", *map(str, args.pixels), "--tokens", *map(str, args.tokens), "--peers", *args.peers]
    passed += ["--rounds", str(args.rounds)]
    for name in ("depth", "steps"):
        passed += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
    passed += ["--only", *args.only] if args.only else []
    print(
        f"seconds of {STATED} steps, guidance {CFG}, {torch.get_num_threads()} threads, {args.rounds} rounds",
        flush=True,
    )
    cases = [(p, t) for p in args.pixels for t in args.tokens]
    for attention in ATTENTION:
        if any(wanted(f"{p}/{t}/{attention}", args.only) for p, t in cases):
            child(args, attention, *passed)
    memory_table(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
