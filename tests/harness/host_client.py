"""A client of a running ComfyUI that hears what a browser would: progress, previews, outputs and errors."""

from __future__ import annotations

import io
import json
import struct
import time
import uuid
from dataclasses import dataclass, field

import websocket
from PIL import Image

from tools.comfyui import HostError, Server

# ComfyUI's numbers for what a binary frame of the websocket holds.
PREVIEW_IMAGE = 1
TEXT = 3
PREVIEW_IMAGE_WITH_METADATA = 4

GUARD = 900
"""Seconds after which a workflow that does not end, or a message that does not come, is taken for hung."""

ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class Result:
    """One run of a workflow, as told over the websocket.

    outputs: what nodes handed to the front end, by node. executed: nodes that ran, in order. cached: nodes that
    did not need to. progress: (node, value, max). texts: (node, text) shown under nodes. previews: encoded pictures.
    error: the whole ``execution_error`` message, or None. interrupted: whether it was stopped.
    """

    prompt_id: str
    outputs: dict[str, dict] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, float, float]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    error: dict | None = None
    interrupted: bool = False


class Client:
    """Connected from ``with`` to the end of the block."""

    def __init__(self, server: Server):
        self.server = server
        self.id = uuid.uuid4().hex

    def __enter__(self) -> Client:
        address = self.server.url.replace("http", "ws", 1)
        self.socket = websocket.create_connection(
            f"{address}/ws?clientId={self.id}", timeout=GUARD, http_no_proxy=["127.0.0.1"]
        )
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def object_info(self, node_id: str | None = None) -> dict:
        """What the host tells about all nodes, or {id: …} of one ({} where there is none of that id)."""
        return self.server.get_json("/object_info" + (f"/{node_id}" if node_id else ""))

    def queue(self, prompt: dict) -> str:
        """Queue a workflow in API format; its id. Raises HostError with the host's answer when it is refused."""
        return self.server.queue(prompt, self.id)

    def interrupt(self) -> None:
        self.server.post("/interrupt", {})

    def run(self, prompt: dict, timeout: float = GUARD) -> Result:
        """Queue a workflow and wait for its end. Raises HostError when refused or not done within ``timeout`` s."""
        return self.result(self.queue(prompt), timeout)

    def result(self, prompt_id: str, timeout: float = GUARD) -> Result:
        """Listen until a queued workflow has ended, well or not."""
        result = Result(prompt_id)
        for event in self.events(timeout):
            if isinstance(event, bytes):
                take_binary(event, result)
            elif event["data"].get("prompt_id", prompt_id) == prompt_id and take_message(event, result):
                return result
        raise HostError(f"The workflow {prompt_id} did not end within {timeout:.0f} s.")

    def wait_for(self, kind: str, timeout: float = GUARD) -> dict:
        """The data of the next message of one kind, for example "progress"."""
        for event in self.events(timeout):
            if isinstance(event, dict) and event["type"] == kind:
                return event["data"]
        raise HostError(f"No message {kind!r} came within {timeout:.0f} s.")

    def events(self, timeout: float):
        """Messages as they come: dicts from JSON and bytes from binary frames; ends after ``timeout`` s."""
        give_up = time.monotonic() + timeout
        while (left := give_up - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                frame = self.socket.recv()
            except websocket.WebSocketTimeoutException:
                return
            yield json.loads(frame) if isinstance(frame, str) else frame

    def images(self, result: Result, node: str) -> list[Image.Image]:
        """The pictures that a node saved or showed."""
        references = result.outputs.get(node, {}).get("images", ())
        return [Image.open(io.BytesIO(self.server.file(reference))) for reference in references]


def take_message(event: dict, result: Result) -> bool:
    """Note a message in ``result``; True when it is the last of its workflow."""
    kind, data = event["type"], event["data"]
    if kind == "executing" and data.get("node"):
        result.executed.append(data["node"])
    elif kind == "execution_cached":
        result.cached.extend(data["nodes"])
    elif kind == "progress":
        result.progress.append((data.get("node"), data["value"], data["max"]))
    elif kind == "executed":
        result.outputs[data["node"]] = data.get("output") or {}
    elif kind == "execution_error":
        result.error = data
    elif kind == "execution_interrupted":
        result.interrupted = True
    return kind in ENDS


def take_binary(frame: bytes, result: Result) -> None:
    """Note a preview picture or a node's text in ``result``."""
    (kind,) = struct.unpack(">I", frame[:4])
    if kind == PREVIEW_IMAGE:
        result.previews.append(frame[8:])  # after the number of the picture's format
    elif kind == PREVIEW_IMAGE_WITH_METADATA:
        (length,) = struct.unpack(">I", frame[4:8])
        result.previews.append(frame[8 + length :])
    elif kind == TEXT:
        (length,) = struct.unpack(">I", frame[4:8])
        node = frame[8 : 8 + length].decode()
        result.texts.append((node, frame[8 + length :].decode()))
