"""Find a ComfyUI, run it without a window with this checkout as its only custom node, and talk to its HTTP API."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.environment import ROOT, cache_folder, python_of

PACK_FOLDER = "pixart-nodes"
BOOT_TIMEOUT = 900.0  # seconds; five minutes are not enough for a machine that does much else
ANSWER = 300.0  # seconds for the answer to a request
PORTS = 5
"""How many ports are tried: between the moment that one is found free and its use another program may take it."""
PORT_TAKEN = ("address already in use", "Errno 98", "Errno 48", "WinError 10048")
FIND_ALL = "import sys, importlib.util as u; (lambda names: sys.exit(not all(map(u.find_spec, names))))"


class HostError(RuntimeError):
    """ComfyUI did not start, or refused or failed a workflow."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI source tree."""

    path: Path
    version: str

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", self.version)[:3])


def installed_by_us() -> Path:
    """The folder of the ComfyUI that ``tools/picture.py`` installs when it finds no other."""
    return cache_folder() / "comfyui" / "ComfyUI"


def find_hosts() -> list[Host]:
    """Every ComfyUI on this machine, newest first.

    ``COMFYUI_PATH`` (one folder, or several joined as in ``PATH``) says which; where it is not set, ``~/comfy`` and
    our own installation are looked at. Raises HostError when ``COMFYUI_PATH`` names a folder that is no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folders = [Path(folder).expanduser() for folder in named.split(os.pathsep) if folder]
        wrong = [str(folder) for folder in folders if read_host(folder) is None]
        if wrong:
            raise HostError(f"COMFYUI_PATH names {', '.join(wrong)}, where there is no ComfyUI: set it right.")
    else:
        folders = [*sorted((Path.home() / "comfy").glob("ComfyUI*")), installed_by_us()]
    hosts = {host.path: host for host in map(read_host, folders) if host}
    return sorted(hosts.values(), key=lambda host: host.order, reverse=True)


def read_host(folder: Path) -> Host | None:
    """The ComfyUI in a folder, or None where there is none."""
    version_file = folder / "comfyui_version.py"
    if not (folder / "main.py").is_file() or not version_file.is_file():
        return None
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", version_file.read_text(encoding="utf-8"))
    return Host(folder.resolve(), found.group(1) if found else "0")


def own_python(host: Host, needs: Sequence[str]) -> Path | None:
    """The interpreter that came with a ComfyUI, if there is one that can import the modules in ``needs``."""
    path = host.path
    environments = (path / ".venv", path / "venv", path.parent / ".venv", path.parent / "venv")
    portable = path.parent / "python_embeded" / "python.exe"  # the folder's name in the portable build for Windows
    for python in (*map(python_of, environments), portable):
        if python.is_file() and answers(python, f"{FIND_ALL}({list(needs)!r})"):
            return python
    return None


def has_gpu(python: Path) -> bool:
    """Whether the torch of an environment sees an accelerator that ComfyUI can use."""
    return answers(
        python,
        "import sys, torch; a = getattr(torch, 'accelerator', None); "
        "sys.exit(not (a.is_available() if a else torch.cuda.is_available()))",
    )


def answers(python: Path, code: str) -> bool:
    """Whether a line of Python ends well in an environment."""
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_pack(source: Path, target: Path) -> None:
    """Make the checkout appear as a custom node; a copy where the system does not allow links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", "output", "__pycache__", ".venv"))


class Server:
    """A ComfyUI process with its own base folder, from ``with`` to the end of the block.

    The base folder holds custom_nodes (the pack alone), models, input and output, and is deleted afterwards;
    the ComfyUI tree and its user's files are not written to.
    """

    def __init__(
        self,
        host: Host,
        python: Path,
        *,
        cpu: bool,
        log: Path,
        pack: Path = ROOT,
        options: Sequence[str] = (),
        others: Sequence[Path] = (),
    ):
        """others: folders of further custom nodes."""
        self.host = host
        self.python = python
        self.cpu = cpu
        self.log = log
        self.pack = pack
        self.options = tuple(options)
        self.others = tuple(others)
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self.base: Path | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def prepare(self) -> None:
        """Make the base folder."""
        self.base = Path(tempfile.mkdtemp(prefix="pixart-comfyui-"))
        for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / folder).mkdir()
        link_pack(self.pack, self.base / "custom_nodes" / PACK_FOLDER)
        for other in self.others:
            shutil.copytree(other, self.base / "custom_nodes" / other.name)

    def start(self) -> None:
        """Start the process and wait until it answers. Raises HostError with the log's end when it does not."""
        for _ in range(PORTS - 1):
            try:
                return self.start_once()
            except HostError:
                if not self.port_was_taken():
                    raise
                self.port = free_port()
        self.start_once()

    def start_once(self) -> None:
        command = [
            str(self.python), str(self.host.path / "main.py"),
            "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base),
            "--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}",
            "--disable-auto-launch", "--disable-api-nodes", *self.options,
        ]  # fmt: skip
        if self.cpu:
            command.append("--cpu")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.host.path, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        give_up = time.monotonic() + BOOT_TIMEOUT
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                raise HostError(
                    f"ComfyUI {self.host.version} in {self.host.path} ended with exit code {self.process.returncode} "
                    f"while it started. The end of its log, {self.log}:\n{self.log_tail()}"
                )
            if self.answers():
                return
            time.sleep(0.25)
        raise HostError(
            f"ComfyUI {self.host.version} in {self.host.path} gave no answer within {BOOT_TIMEOUT:.0f} s. "
            f"The end of its log, {self.log}:\n{self.log_tail()}"
        )

    def answers(self) -> bool:
        """Whether this very process answers, and not another ComfyUI that has taken the port meanwhile."""
        try:
            return str(self.base) in self.get_json("/system_stats", timeout=30)["system"]["argv"]
        except (OSError, HostError, ValueError, KeyError, TypeError):  # the last three: another program's answer
            return False

    def port_was_taken(self) -> bool:
        """Whether the process ended because another one took the port after it had been found free."""
        return self.process.poll() is not None and any(words in self.log_text() for words in PORT_TAKEN)

    def stop(self) -> None:
        """End the process and delete the base folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.clean()

    def clean(self) -> None:
        """Delete the base folder."""
        if self.base is not None:
            link = self.base / "custom_nodes" / PACK_FOLDER
            if link.is_symlink():
                link.unlink()
            shutil.rmtree(self.base, ignore_errors=True)

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def get(self, route: str, timeout: float = ANSWER) -> bytes:
        """The body of a GET. Raises HostError for an HTTP error and OSError when the server cannot be reached."""
        return self.request(urllib.request.Request(self.url + route), timeout)

    def get_json(self, route: str, timeout: float = ANSWER):
        return json.loads(self.get(route, timeout))

    def post(self, route: str, data: dict, timeout: float = ANSWER) -> dict:
        """The JSON answer to a POST of JSON ({} when the answer is empty). Raises as ``get`` does."""
        request = urllib.request.Request(
            self.url + route, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        body = self.request(request, timeout)
        return json.loads(body) if body.strip() else {}

    def request(self, request: urllib.request.Request, timeout: float) -> bytes:
        # An empty ProxyHandler: a proxy in the environment must not be asked for this machine's own address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            said = refusal(error.read().decode(errors="replace"))
            raise HostError(f"{request.get_method()} {request.selector}: HTTP {error.code}\n{said}") from error

    def queue(self, prompt: dict, client_id: str = "pixart") -> str:
        """Queue a workflow in API format; its id. Raises HostError with the host's reasons when it is refused."""
        return self.post("/prompt", {"prompt": prompt, "client_id": client_id})["prompt_id"]

    def wait(self, prompt_id: str, timeout: float) -> dict:
        """The history entry of a queued workflow once it has ended, well or not.

        Raises HostError when the process ends first or the timeout (in s) is over.
        """
        give_up = time.monotonic() + timeout
        while time.monotonic() < give_up:
            if self.process is not None and self.process.poll() is not None:
                raise HostError(
                    f"ComfyUI ended with exit code {self.process.returncode} while it worked. "
                    f"The end of its log, {self.log}:\n{self.log_tail()}"
                )
            entry = self.get_json(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status", {}).get("completed") is not None:
                return entry
            time.sleep(0.2)
        raise HostError(f"The workflow did not end within {timeout:.0f} s. The log is {self.log}.")

    def file(self, reference: dict) -> bytes:
        """A file that an output names: ``{"filename", "subfolder", "type"}``."""
        return self.get("/view?" + urllib.parse.urlencode(reference))


def refusal(body: str) -> str:
    """What the host's answer to a refused workflow says, one line for each reason; other bodies as they are."""
    try:
        data = json.loads(body)
        general = [f"{data['error']['message']} {data['error']['details']}".strip()]
        reasons = [
            f"{node['class_type']} ({number}): {error['message']}, {error['details']}"
            for number, node in data["node_errors"].items()
            for error in node["errors"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return body
    return "\n".join(general + reasons)
