"""``python3 tools/install_check.py``: the pack installed as people install it, into a clean copy of a ComfyUI.

By comfyui-manager's own command line and by comfy-cli from git, and by comfy-cli from the archive that the registry
would hand out. After each, ComfyUI must boot with every node, and no package may be another one than before. Then the
checks that the registry's tools offer: ``comfy node validate``, ``comfy workflow validate`` and comfy-lint.

git and the registry are a web server on this machine (port 8080, which comfy-cli expects of a registry under test);
while something is being installed, nothing else can be reached. The committed state is what is installed.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.comfyui import PACK_FOLDER, Host, HostError, Server, find_hosts
from tools.environment import ROOT, SetupError, cache_folder, environment, install, python_of, run, say
from tools.schemas import read_nodes

PACKAGES = ("comfy-cli==1.23.0", "comfyui-manager==4.2.2", "comfy-lint==0.1.0")
PORT = 8080
NOWHERE = "http://127.0.0.1:9"
UNWANTED = (".ci/", ".github/", "assets/", "benchmarks/", "demo/logs/", "pixart/training/demo/", "tests/", "tools/")
"""What the archive must not hold."""

FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")
LOADED = {
    "ckpt_name": "checkpoints", "t5_name": "text_encoders", "vae_name": "vae", "control_net_name": "controlnet",
}  # fmt: skip


class Wrong(RuntimeError):
    """Something that was installed or checked is not as it should be."""


def installers(base: Path) -> Path:
    """An environment that has everything of the host's and the installers besides; made once."""
    place = cache_folder() / f"installers-{base.parents[1].name}"
    if not place.is_dir():
        unfinished = Path(tempfile.mkdtemp(prefix=f"{place.name}-unfinished-", dir=place.parent))
        try:
            run([str(base), "-m", "venv", str(unfinished)], timeout=300, hint="On Debian: apt install python3-venv.")
            python = python_of(unfinished)
            show = "import sysconfig; print(sysconfig.get_path('purelib'))"
            packages = [said([p, "-c", show]).strip() for p in (python, base)]
            Path(packages[0], "host.pth").write_text(packages[1] + "\n", encoding="utf-8")
            install(python, ", ".join(PACKAGES), *PACKAGES)
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return python_of(place)


def said(command: list, both: bool = False, **options) -> str:
    """What a command prints, its errors too when ``both``. Raises Wrong, with its output, when it fails."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, errors="replace", timeout=1800, **options
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise Wrong(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{tail}")
    return done.stdout + (done.stderr if both else "")


def module(name: str, python: Path) -> list:
    """A console script by its entry point: the scripts themselves name a folder that has been renamed."""
    start = {"comfy": "from comfy_cli.__main__ import main", "comfy-lint": "from comfy_lint.cli import main"}[name]
    return [python, "-c", f"import sys; {start}; sys.exit(main())"]


class Street(http.server.SimpleHTTPRequestHandler):
    """A folder of files, and the one question that comfy-cli asks a registry."""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != f"/nodes/{PACK_FOLDER}/install":
            return super().do_GET()
        answer = {"id": "1", "version": "0.0.1", "downloadUrl": f"http://localhost:{PORT}/node.zip"}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), functools.partial(Street, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class Installed(Server):
    """A ComfyUI that runs in its own folder with what is installed there."""

    def prepare(self) -> None:
        self.base = self.host.path

    def clean(self) -> None:
        pass


def boot(host: Host, python: Path, log: Path) -> dict:
    """object_info of the copy. Raises Wrong when a node of the pack is not in it."""
    with Installed(host, python, cpu=True, log=log) as server:
        info = server.get_json("/object_info")
        missing = sorted({node.node_id for node in read_nodes(ROOT / "nodes")} - info.keys())
        if missing:
            raise Wrong(f"After the boot {', '.join(missing)} are missing:\n{server.log_tail()}")
    return info


def check_archive(clone: Path, python: Path, street: Path) -> None:
    """``comfy node validate`` and ``pack``; the archive goes where the registry hands it out."""
    told = said([*module("comfy", python), "--skip-prompt", "node", "validate"], both=True, cwd=clone)
    if "warning" in told.lower() or "passed" not in told:
        raise Wrong(f"comfy node validate: {told}")
    said([*module("comfy", python), "--skip-prompt", "node", "pack"], cwd=clone)
    shutil.move(clone / "node.zip", street / "node.zip")
    with zipfile.ZipFile(street / "node.zip") as archive:
        names = archive.namelist()
    if wrong := [name for name in names if name.startswith(UNWANTED)]:
        raise Wrong(f"The archive holds {', '.join(wrong[:8])}.")
    size = (street / "node.zip").stat().st_size
    say(f"comfy node validate is clean; the archive holds {len(names)} files, {size} bytes")


def with_released_files(info: dict) -> dict:
    """object_info as if the files that workflows offer to download were there, and those that other workflows write."""
    extras = json.loads((ROOT / "tools" / "workflow_extras.json").read_text(encoding="utf-8"))
    offered = [entry for entries in extras["models"].values() for entry in entries]
    told = [setting for spec in extras["twins"].values() for setting in spec.get("set", {}).items()]
    trained = {f"{value}.safetensors" for place, value in told if place.endswith(".lora_name")}
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "workflows" / "api").glob("*.json")]
    nodes = [node for graph in graphs for node in graph.values()]
    captions = {node["inputs"]["caption_name"] for node in nodes if node["class_type"] == "PixArtLoadCaption"}
    tunes = {node["inputs"]["ckpt_name"] for node in nodes if node["class_type"] == "PixArtLoadDreamBooth"}
    for node in info.values():
        for name, spec in {**node["input"].get("required", {}), **node["input"].get("optional", {})}.items():
            more = [entry["name"] for entry in offered if entry["directory"] == LOADED.get(name)]
            more += sorted({"caption_name": captions, "ckpt_name": tunes, "lora_name": trained}.get(name, ()))
            options = spec[0] if isinstance(spec[0], list) else spec[1].get("options") if len(spec) > 1 else None
            if isinstance(options, list):
                options.extend(more)
    return info


def check_workflows(info: dict, python: Path, scratch: Path) -> None:
    """Every template through comfy-cli's validation, every script's form through comfy-lint as well."""
    known = scratch / "object_info.json"
    known.write_text(json.dumps(with_released_files(info)), encoding="utf-8")
    api = sorted((ROOT / "workflows" / "api").glob("*.json"))
    said([*module("comfy-lint", python), "--strict", "--schema-cache", known, *api])
    every = [*sorted((ROOT / "workflows").glob("*.json")), *api]
    for path in every:
        command = [*module("comfy", python), "--json", "workflow", "validate", "--workflow", path, "--input", known]
        told = json.loads(said(command))["data"]
        if not told["valid"] or told["warnings"]:
            raise Wrong(f"{path.name}: {told['errors']} {told['warnings']}")
    say(f"comfy-lint is clean on {len(api)} workflows, comfy workflow validate on {len(every)}")


def copy_clean(host: Path, copy: Path) -> None:
    """A ComfyUI as it was unpacked: without models, other packs and whatever its user made."""
    own = {".git", ".venv", "venv", *FOLDERS}
    shutil.copytree(host, copy, ignore=lambda folder, names: own & set(names) if Path(folder) == host else ())
    for name in FOLDERS:
        (copy / name).mkdir()


def check(host: Host, scratch: Path) -> None:
    python = installers(environment(for_host=True))
    copy, street, clone = scratch / "ComfyUI", scratch / "street", scratch / "clone"
    copy_clean(host.path, copy)
    said(["git", "clone", "--quiet", ROOT, clone])
    said(["git", "clone", "--quiet", "--bare", ROOT, street / f"{PACK_FOLDER}.git"])
    said(["git", "update-server-info"], cwd=street / f"{PACK_FOLDER}.git")
    check_archive(clone, python, street)
    away = {f"{name}_proxy".upper(): NOWHERE for name in ("http", "https")} | {"NO_PROXY": "127.0.0.1,localhost"}
    away |= {name.lower(): value for name, value in away.items()}
    away |= {
        "HOME": str(scratch),
        "COMFYUI_PATH": str(copy),
        "ENVIRONMENT": "dev",
        "VIRTUAL_ENV": str(python.parents[1]),
    }
    url = f"http://127.0.0.1:{PORT}/{PACK_FOLDER}.git"
    comfy = [*module("comfy", python), "--skip-prompt", "--workspace", copy, "node"]
    ways = {
        "comfyui-manager's cm_cli, from git": [python, "-m", "cm_cli", "install", url],
        "comfy-cli, from git": [*comfy, "install", url],
        "comfy-cli, from the registry's archive": [*comfy, "registry-install", PACK_FOLDER],
    }
    before = said([python, "-m", "pip", "freeze"]).splitlines()
    info: dict = {}
    for name, command in ways.items():
        started = time.monotonic()
        with serving(street):
            said(command, env={**os.environ, **away}, cwd=scratch)
        seconds = time.monotonic() - started
        placed = copy / "custom_nodes" / PACK_FOLDER
        if not placed.is_dir():
            raise Wrong(f"{name}: nothing was put into custom_nodes.")
        info = boot(Host(copy, host.version), python, scratch / "boot.log")
        changed = sorted(set(before) ^ set(said([python, "-m", "pip", "freeze"]).splitlines()))
        if changed:
            raise Wrong(f"{name}: packages changed: {', '.join(changed)}")
        shutil.rmtree(placed)
        say(f"{name}: {seconds:.0f} s; ComfyUI {host.version} boots with every node, no package changed")
    check_workflows(info, python, scratch)


def main() -> int:
    try:
        hosts = find_hosts()
        if not hosts:
            raise HostError("No ComfyUI found: set COMFYUI_PATH to its folder.")
        with tempfile.TemporaryDirectory(prefix="pixart-install-") as scratch:
            check(hosts[0], Path(scratch).resolve())
    except (SetupError, HostError, Wrong) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
