"""``python forward_memory.py COMFYUI CHECKPOINT PIXELS …``: the memory of a forward, as the host is told and as it is.

A process of its own, to be started with a small ``MALLOC_MMAP_THRESHOLD_``: glibc then hands every tensor back to the
system when it is dropped, so that resident memory is what is in use, and not what some earlier work left behind in
holes. Prints JSON: for each case its pixels, whether it is compressed, bytes told and bytes taken.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness")]

import host_process  # noqa: E402
import torch  # noqa: E402

from pixart.attention import WORKSPACE  # noqa: E402
from pixart.compression import COMPRESSION  # noqa: E402
from tools.comfyui import read_host  # noqa: E402

CAPTION = (2, 20, 64)


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def peak_of(call: Callable[[], object]) -> int:
    """Bytes that the process takes at its peak beyond what it has before."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def compressed(pack, model):
    """By the node, every block's keys and values at a quarter of their number."""

    async def collect():
        return await (await pack.comfy_entrypoint()).get_node_list()

    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(collect())}
    node = nodes["PixArtKVCompression"]
    node.hidden = type("Hidden", (), {"unique_id": None})
    return node.execute(model, "average", 2, 0, 3, 0).args[0]


@torch.inference_mode()
def measure(pack, model, pixels: int) -> dict[str, int]:
    """One forward as a sampling run calls it, with the host's own choice of attention."""
    import comfy.model_management

    memory, compat = (import_module(f"{pack.__name__}.nodes.host.{name}") for name in ("memory", "compat"))
    comfy.model_management.load_models_gpu([model])
    shape = (2, 4, pixels // 8, pixels // 8)
    x, text, t = torch.randn(shape), torch.randn(CAPTION), torch.tensor([500.0]).expand(2)
    options = model.model_options["transformer_options"]
    chosen = options.get(COMPRESSION)
    token = memory.active_compression.set(chosen)
    try:
        told = model.model.memory_required(shape)
    finally:
        memory.active_compression.reset(token)

    def forward(x):
        kept = {WORKSPACE: compat.workspace()}
        model.model.diffusion_model(x, t, context=text, transformer_options={**options, **kept})

    forward(x[:, :, :8, :8])  # what is loaded at first use
    return {"pixels": pixels, "compressed": chosen is not None, "told": int(told), "taken": peak_of(lambda: forward(x))}


def main(comfyui: str, checkpoint: str, *pixels: str) -> None:
    torch.set_num_threads(1)  # each thread of a matrix product has a buffer of its own
    host_process.enter(read_host(Path(comfyui)))
    pack = host_process.load_pack(ROOT)
    model = import_module(f"{pack.__name__}.nodes.host.model").load_model(checkpoint)
    cases = [(chosen, int(size)) for chosen in (model, compressed(pack, model)) for size in pixels]
    measure(pack, model, int(pixels[0]))  # the first one also pays for the library's buffers
    print(json.dumps([measure(pack, chosen, size) for chosen, size in cases]))


if __name__ == "__main__":
    main(*sys.argv[1:])
