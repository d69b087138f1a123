"""Memory and time of loading a PixArt checkpoint and a T5 encoder, beside ComfyUI's own loader.

    python benchmarks/loading.py --comfyui ../ComfyUI
    python benchmarks/loading.py --only t5

Files of random weights are written to a temporary folder, one at a time, and removed. Every load runs in a process
of its own, in a ComfyUI that has started and computed nothing; loaders take turns, the first of a round changing
with it. All are told to keep the weights in the file's type, and on the processor nothing is moved to a card.

Columns: the peak of resident memory above that of the idle process, by the size of the weights; how much of what
stays is the process's own (the rest are pages of the file, which the system may take back); seconds until the loader
returns; and seconds until every weight has been read once, since a mapped file is read when it is used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness")]

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from pixart.config import PixArtConfig  # noqa: E402
from pixart.text.layout import T5Config  # noqa: E402
from pixart.transformer import PixArtTransformer  # noqa: E402
from tools.comfyui import Host, find_hosts, read_host  # noqa: E402

XL = T5Config(d_model=2048, d_ff=5120, num_heads=32)
MEBIBYTE = 2**20


def random(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Numbers that no file system can compress or share, quickly: one block of them over and over, shifted."""
    block = (torch.randn(4 * MEBIBYTE, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    state = {}
    for index, (name, shape) in enumerate(shapes.items()):
        count = torch.Size(shape).numel()
        state[name] = block.roll(index * 977).repeat(-(-count // len(block)))[:count].reshape(shape).clone()
    return state


def sigma_shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in PixArtTransformer(PixArtConfig(), device="meta").state_dict().items()}


def decoder_shapes() -> dict[str, tuple[int, ...]]:
    """As much again of names that a whole T5 has and its encoder does not."""
    return {"decoder." + name.removeprefix("encoder."): shape for name, shape in XL.shapes().items()}


def write(case: str, folder: Path) -> tuple[Path, int]:
    """The file of a case, and the bytes of the weights that a loader needs of it."""
    is_t5 = case.startswith("t5")
    shapes = XL.shapes() if is_t5 else sigma_shapes()
    state = random(shapes, torch.float16)
    wanted = sum(tensor.nbytes for tensor in state.values())
    if case == "t5 with decoder":
        state |= random(decoder_shapes(), torch.float16)
    path = folder / f"{case.replace(' ', '-')}.{'pth' if case == 'sigma pth' else 'safetensors'}"
    torch.save({"state_dict": state}, path) if path.suffix == ".pth" else save_file(state, path)
    return path, wanted


def status(*names: str) -> list[int]:
    """Lines of /proc/self/status or of /proc/self/smaps_rollup, in bytes."""
    text = Path("/proc/self/status").read_text() + Path("/proc/self/smaps_rollup").read_text()
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return [int(lines[name].split()[0]) * 1024 for name in names]


def load(case: str, loader: str, path: str, host: Host) -> dict[str, float]:
    """What is measured, in this process."""
    import host_process

    host_process.enter(host)
    if loader == "ours":
        module = f"{host_process.load_pack(ROOT).__name__}.nodes.host." + ("text" if case.startswith("t5") else "model")
        __import__(module)
        ours = sys.modules[module]
        call = ours.load_clip if case.startswith("t5") else ours.load_model
        arguments: tuple = (path, "fp16")
    else:
        import comfy.sd

        if case.startswith("t5"):
            call, arguments = comfy.sd.load_clip, ([path], None, comfy.sd.CLIPType.PIXART, {"dtype": torch.float16})
        else:
            call, arguments = comfy.sd.load_diffusion_model, (path, {"dtype": torch.float16})
    idle, idle_own = status("VmRSS", "Anonymous")
    reset_peak()
    with torch.inference_mode():
        started = time.perf_counter()
        loaded = call(*arguments)
        returned = time.perf_counter() - started
        model = loaded.cond_stage_model if case.startswith("t5") else loaded.model
        for tensor in model.state_dict().values():
            tensor.flatten().view(torch.uint8)[::4096].sum()
        used = time.perf_counter() - started
    peak, own = status("VmHWM", "Anonymous")
    return {"peak": peak - idle, "own": own - idle_own, "returned": returned, "used": used}


def reset_peak() -> None:
    """Set this process's recorded peak of memory to what it uses now."""
    Path("/proc/self/clear_refs").write_text("5")


def run(case: str, loader: str, path: Path, host: Host) -> dict[str, float]:
    """``load`` in a new process."""
    command = [sys.executable, __file__, "--case", case, "--loader", loader, "--file", str(path)]
    done = subprocess.run(
        [*command, "--comfyui", str(host.path)], capture_output=True, text=True, timeout=600, env=dict(os.environ)
    )
    if done.returncode:
        raise RuntimeError(f"{loader} could not load {path.name}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: str, host: Host, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="pixart-benchmark-") as folder:
        path, wanted = write(case, Path(folder))
        size = path.stat().st_size
        loaders = ["ours", "ComfyUI"] if case in ("sigma safetensors", "sigma pth") else ["ours"]
        taken: dict[str, list[dict[str, float]]] = {loader: [] for loader in loaders}
        for index in range(rounds):
            for loader in loaders[index % len(loaders) :] + loaders[: index % len(loaders)]:
                taken[loader].append(run(case, loader, path, host))
    print(f"\n{case}: {size / 1e9:.2f} GB, of which {wanted / 1e9:.2f} GB are loaded; {rounds} rounds")
    print(f"{'':10}{'peak / weights':>16}{'own / weights':>15}{'returned s':>12}{'used s':>9}")
    for loader, results in taken.items():
        median = {key: statistics.median(result[key] for result in results) for key in results[0]}
        print(
            f"{loader:10}{median['peak'] / wanted:16.2f}{median['own'] / wanted:15.2f}"
            f"{median['returned']:12.2f}{median['used']:9.2f}"
        )


CASES = ("sigma safetensors", "sigma pth", "t5", "t5 with decoder")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI tree (default: COMFYUI_PATH, or one found nearby)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("sigma", "t5"))
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--loader", choices=("ours", "ComfyUI"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("memory is read from /proc, which only Linux has")
    host = read_host(args.comfyui) if args.comfyui else next(iter(find_hosts()), None)
    if host is None:
        parser.error("no ComfyUI found: name its folder with --comfyui or COMFYUI_PATH")
    if args.case:
        print(json.dumps(load(args.case, args.loader, args.file, host)))
        return 0
    for case in CASES:
        if not args.only or case.startswith(args.only):
            compare(case, host, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
