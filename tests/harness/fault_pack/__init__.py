"""A custom node for tests alone: makes a running ComfyUI fail, wait or be stopped at a named place in its work.

``POST /test-fault`` with ``{"at": place, "do": action, "call": n, "times": m}`` arms the n-th call of a function of
the host or of the pack and the m - 1 calls after it; ``POST /test-release`` lets what waits go on; ``GET /test-fault``
tells how often the place was reached and how often something was done there; ``DELETE /test-fault`` takes it away.
"""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.taesd.taesd
import comfy.text_encoders.t5
import torch
from aiohttp import web
from server import PromptServer

import nodes

NODE_CLASS_MAPPINGS: dict[str, type] = {}

MESSAGE = "out of memory, for a test"
WAIT_LIMIT = 1800  # s; ends what a test has left waiting, and must be longer than its other limits


def of_pack(name: str):
    """A module of the pack, whatever name the host gave to its folder."""
    return next(module for full, module in sys.modules.items() if full.endswith(f"pixart-nodes.{name}"))


PLACES: dict[str, Callable[[], tuple[object, str]]] = {
    "load checkpoint": lambda: (of_pack("nodes.host.model"), "weights_to_keep"),
    "load T5": lambda: (of_pack("nodes.host.text"), "weights_to_keep"),
    "load ControlNet": lambda: (of_pack("nodes.host.control"), "keep"),
    "load LoRA": lambda: (of_pack("nodes.host.lora"), "adapter_patches"),
    "T5": lambda: (comfy.text_encoders.t5.T5, "forward"),
    "ControlNet": lambda: (of_pack("pixart.controlnet").PixArtControlNet, "forward"),
    "sampling step": lambda: (of_pack("nodes.host.model").PixArtModel, "_apply_model"),
    "embedding": lambda: (of_pack("pixart.embeddings").PatchEmbed, "forward"),
    "block": lambda: (of_pack("pixart.transformer").Block, "forward"),
    "self-attention": lambda: (of_pack("pixart.attention").SelfAttention, "forward"),
    "final layer": lambda: (of_pack("pixart.transformer").FinalLayer, "forward"),
    "VAE decode": lambda: (comfy.taesd.taesd.TAESD, "decode"),
    "training": lambda: (of_pack("pixart.training.trainer").Trainer, "update"),
    "save": lambda: (of_pack("pixart.files"), "partial_of"),
    "counting tokens": lambda: (of_pack("nodes.host.text").Counter, "count"),
    "node": lambda: (of_pack("nodes.resolution").PixArtResolution, "execute"),
}


def out_of_memory(*_):
    raise comfy.model_management.OOM_EXCEPTION(MESSAGE)


def no_memory(*_):
    """What PyTorch raises on the processor: asks for more than any machine has."""
    return torch.empty(2**55, dtype=torch.uint8)


def interrupt(*_) -> None:
    nodes.interrupt_processing()


def unload(*_) -> None:
    comfy.model_management.unload_all_models()


def wait(*_) -> None:
    state.reached.set()
    if not state.released.wait(WAIT_LIMIT):
        raise TimeoutError("nobody let the test go on")


def full_disk(partial: Path) -> None:
    """The name that is written under leads to a device on which every write says that there is no room."""
    partial.symlink_to("/dev/full")


def no_replacing(partial: Path) -> None:
    """What is written is there, and cannot take the final name."""

    def refuse(*_):
        files.os.replace = original
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    files = of_pack("pixart.files")
    original, files.os.replace = files.os.replace, refuse


ACTIONS = {
    "out of memory": out_of_memory,
    "no memory": no_memory,
    "interrupt": interrupt,
    "unload": unload,
    "wait": wait,
    "disk full": full_disk,
    "no replacing": no_replacing,
}
AFTER = ("disk full", "no replacing")
"""Actions on what the function has returned; all others come before it runs."""


class State:
    """What is armed."""

    def __init__(self):
        self.undo: Callable[[], None] = lambda: None
        self.calls = self.done = 0
        self.reached, self.released = threading.Event(), threading.Event()

    def arm(self, at: str, do: str, call: int, times: int) -> None:
        self.clear()
        owner, name = PLACES[at]()
        original, action = vars(owner)[name], ACTIONS[do]
        function = original.__func__ if isinstance(original, classmethod) else original

        def faulty(*args, **kwargs):
            self.calls += 1
            is_now = call <= self.calls < call + times
            self.done += is_now
            if is_now and do not in AFTER:
                action()
            result = function(*args, **kwargs)
            if is_now and do in AFTER:
                action(result)
            return result

        setattr(owner, name, classmethod(faulty) if isinstance(original, classmethod) else faulty)
        self.undo = lambda: setattr(owner, name, original)

    def clear(self) -> None:
        self.undo()
        self.released.set()
        self.__init__()


state = State()
routes = PromptServer.instance.routes


@routes.post("/test-fault")
async def arm(request: web.Request) -> web.Response:
    wanted = await request.json()
    state.arm(wanted["at"], wanted["do"], wanted.get("call", 1), wanted.get("times", 1))
    return web.json_response({})


@routes.get("/test-fault")
async def tell(request: web.Request) -> web.Response:
    return web.json_response({"calls": state.calls, "done": state.done, "waiting": state.reached.is_set()})


@routes.post("/test-release")
async def release(request: web.Request) -> web.Response:
    state.released.set()
    return web.json_response({})


@routes.delete("/test-fault")
async def clear(request: web.Request) -> web.Response:
    state.clear()
    return web.json_response({})
