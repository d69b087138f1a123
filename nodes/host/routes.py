"""What the widgets in the browser ask the server: token counts, what a file is, the trained sizes, the doctor.

Pages of other sites are refused, as by the host, whose older versions look at fewer of the signs. Files are only ever
named by what the loaders offer, and no answer holds a path of this machine or a stack.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from aiohttp import web
from comfy.cli_args import args

from ...pixart.doctor import CAPTION, CHECKPOINT, CONTROLNET, LORA, T5, look_at
from ...pixart.resolution import OTHER_NAMES, size_table
from ...pixart.text.cleaning import clean_prompt
from . import doctor, folders
from .caption_files import find_caption
from .text import Counter

log = logging.getLogger(__name__)

MOST_BYTES = 256 * 1024
"""Of a request: a prompt that is longer has no place in a model that reads 300 tokens."""

MOST_CHARACTERS = 4096  # of a file's name
MOST_WAITING = 64
"""Questions at a time; a page of many widgets asks twenty."""

REMEMBERED = 16
MOST_TOKENS = 4096
FOLDERS = {
    CHECKPOINT: folders.CHECKPOINTS,
    T5: folders.TEXT_ENCODERS,
    LORA: folders.LORAS,
    CONTROLNET: folders.CONTROL_NETS,
}
KINDS = (*FOLDERS, CAPTION)
"""What a file may be asked about as; captions lie in input and output too, and have a finder of their own."""


class Desk:
    """Answers questions one at a time, off the event loop, and remembers what it learned about unchanged files."""

    def __init__(self):
        self.lock = asyncio.Lock()
        self.waiting = 0
        self.known: OrderedDict[tuple, Any] = OrderedDict()

    async def ask(self, question: Callable[[], Any]) -> Any:
        if self.waiting >= MOST_WAITING:
            raise web.HTTPServiceUnavailable(reason="Too many questions at once; ask again later.")
        self.waiting += 1
        try:
            async with self.lock:
                return await asyncio.to_thread(question)
        finally:
            self.waiting -= 1

    def recall(self, use: str, path: str, learn: Callable[[], Any]) -> Any:
        """``learn()``, called again only when the file at ``path`` has changed."""
        state = os.stat(path)
        key = (use, path, state.st_mtime_ns, state.st_size)
        if key not in self.known:
            self.known[key] = learn()
            while len(self.known) > REMEMBERED:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key]

    def count(self, t5_name: str | None, text: str, max_tokens: int, clean: bool) -> dict:
        """How many tokens a prompt has for an encoder (None: the host's own T5), and the text beyond the limit."""
        path = None
        try:
            if t5_name:
                path = folders.find(folders.TEXT_ENCODERS, t5_name)
            counter = self.recall("count", path or __file__, lambda: Counter(path))
            count, lost = counter.count(clean_prompt(text) if clean else text, max_tokens)
        except (ValueError, OSError, ImportError) as error:
            return {"trouble": told(error, path)}
        return {"tokens": count, "limit": max_tokens, "lost": lost}

    def detect(self, kind: str, name: str) -> dict:
        """What the file that a loader's list names is."""
        try:
            path = find_caption(name) if kind == CAPTION else folders.find(FOLDERS[kind], name)
            found = self.recall(kind, path, lambda: look_at(path, kind))
        except (ValueError, OSError) as error:
            return {"title": "", "facts": {}, "trouble": told(error, None)}
        return {"title": found.title, "facts": found.facts, "trouble": without_folder(found.trouble, path)}


def told(error: Exception, path: str | None) -> str:
    """What may be said of an error; that of the system names a path, of which only the reason is."""
    if isinstance(error, OSError):
        return f"The file cannot be read: {error.strerror or type(error).__name__}."
    return without_folder(str(error), path)


def without_folder(text: str, path: str | None) -> str:
    """A message about a file without the folders of this machine, and without its name where it begins with that."""
    if path is None:
        return text
    text = text.removeprefix(f"{path}: ")
    return text.replace(path, os.path.basename(path)).replace(os.path.dirname(path) + os.sep, "")


def refuse(message: str, status: int = 400) -> web.Response:
    return web.json_response({"error": message}, status=status)


def of_another_site(request: web.Request) -> bool:
    """Whether a browser says that a page of another site asks. The host compares origins as well, and JSON is all that
    is read, which such a page cannot send unasked."""
    # Whoever starts ComfyUI for pages elsewhere wants their questions.
    return not args.enable_cors_header and request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")


def answering(handler):
    """Turn what a user can mend into a sentence, and what he cannot into a line that points to the log."""

    async def answer(request: web.Request) -> web.Response:
        try:
            if of_another_site(request):
                raise web.HTTPForbidden(reason="Pages of other sites may not ask.")
            return web.json_response(await handler(request))
        except web.HTTPException as error:
            return refuse(error.reason, error.status)
        except ValueError as error:
            return refuse(str(error))
        except Exception:
            log.exception("PixArt: %s failed.", request.path)
            return refuse("The server failed at this; its log says why.", 500)

    return answer


async def read_question(request: web.Request) -> dict:
    """The JSON object in a request. JSON alone, so that no form of another page can send one."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason="Send JSON.")
    if request.content_length is None or request.content_length > MOST_BYTES:
        raise web.HTTPRequestEntityTooLarge(MOST_BYTES, request.content_length or 0, reason="The text is too long.")
    try:
        question = json.loads((await request.read()).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("The request is not JSON in UTF-8.") from error
    if not isinstance(question, dict):
        raise ValueError("Send a JSON object.")
    return question


def field(question: dict, name: str, kind: type, default: Any) -> Any:
    value = question.get(name, default)
    if type(value) is not kind and value is not default:
        raise ValueError(f"{name} must be {kind.__name__}, not {type(value).__name__}.")
    if kind is str and value and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} holds half of a character.")
    return value


def file_name(name: str | None) -> str | None:
    if name is not None and len(name) > MOST_CHARACTERS:
        raise ValueError(f"The file's name has {len(name)} characters, more than {MOST_CHARACTERS}.")
    return name


def register() -> None:
    """Add the routes to the host's server; in scripts and tests without one there is nothing to do."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is not None:
        add_routes(instance.routes)


def add_routes(routes: web.RouteTableDef) -> None:
    desk = Desk()

    @routes.post("/pixart/tokens")
    @answering
    async def tokens(request: web.Request) -> dict:
        question = await read_question(request)
        name = file_name(field(question, "t5_name", str, None))
        text = field(question, "text", str, "")
        limit = min(max(field(question, "max_tokens", int, 300), 1), MOST_TOKENS)
        clean = field(question, "clean_caption", bool, False)
        return await desk.ask(lambda: desk.count(name, text, limit, clean))

    @routes.get("/pixart/detect")
    @answering
    async def detect(request: web.Request) -> dict:
        kind, name = request.query.get("kind", ""), request.query.get("name", "")
        file_name(name)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}.")
        return await desk.ask(lambda: desk.detect(kind, name))

    @routes.get("/pixart/resolutions")
    @answering
    async def resolutions(request: web.Request) -> dict:
        return {**size_table(), "other_names": OTHER_NAMES}

    @routes.get("/pixart/doctor")
    @answering
    async def examine(request: web.Request) -> dict:
        return {"report": await desk.ask(lambda: "\n".join(doctor.report()))}
