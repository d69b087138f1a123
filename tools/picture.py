"""``python3 tools/picture.py "a small red star on the left, blue background"``: a picture of the prompt.

ComfyUI makes it where there is one or one can be installed, from workflows/api/text_to_image.json and the
embedded demo checkpoint; otherwise the pack's own pipeline does. The last line names the file and the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.terminal import leave
from tools.comfyui import Host, HostError, Server, find_hosts, has_gpu, installed_by_us, own_python
from tools.environment import ROOT, SetupError, build, cache_folder, environment, python_of, run, say
from tools.workflow import WorkflowError, personalise

WORKFLOW = ROOT / "workflows" / "api" / "text_to_image.json"
OUTPUT = ROOT / "output"
LOG = OUTPUT / "comfyui.log"
HOST_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
INSTALLER = ("comfy-cli>=1.23",)
HOST_MODULES = ("aiohttp", "comfyui_frontend_package", "safetensors", "sentencepiece", "torch", "transformers")
WORK_TIMEOUT = 60 * 60.0  # seconds, for the workflow itself: a processor may be slow


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a picture of a prompt.")
    parser.add_argument("prompt", help='for example "a small red star on the left, blue background"')
    parser.add_argument("--negative", help="what the picture should not show")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cfg", type=float, help="guidance scale")
    parser.add_argument("--width", type=int, help="in pixels")
    parser.add_argument("--height", type=int, help="in pixels")
    parser.add_argument(
        "--engine",
        choices=("auto", "comfyui", "pipeline"),
        default="auto",
        help="auto: ComfyUI where there is one or GitHub can be reached to install one, else the pack's own pipeline",
    )
    return parser.parse_args(argv)


def settings(args: argparse.Namespace) -> dict:
    """The options that were given; what was not is left to the workflow or the pipeline."""
    names = ("negative", "seed", "steps", "cfg", "width", "height")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def free_name(prompt: str) -> Path:
    """A PNG in the output folder, named after the prompt, that does not exist yet."""
    stem = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    OUTPUT.mkdir(exist_ok=True)
    number = 1
    while (path := OUTPUT / f"{stem}-{number:03}.png").exists():
        number += 1
    return path


def with_comfyui(host: Host, prompt: str, options: dict, target: Path) -> str:
    """Make the picture in a ComfyUI; the engine's name. Raises HostError or WorkflowError when it cannot be made."""
    graph, output_node = personalise(json.loads(WORKFLOW.read_text(encoding="utf-8")), prompt, **options)
    python = own_python(host, HOST_MODULES) or environment(for_host=True)
    cpu = not has_gpu(python)
    say(f"Starting ComfyUI {host.version} in {host.path}{' on the processor' if cpu else ''}.")
    with Server(host, python, cpu=cpu, log=LOG) as server:
        say("Making the picture.")
        entry = server.wait(server.queue(graph), WORK_TIMEOUT)
        pictures = list(pictures_of(entry, output_node))
        if not pictures:
            raise HostError(f"ComfyUI made no picture: {failure(entry)} Its log is {LOG}.")
        target.write_bytes(server.file(pictures[0]))
    return f"ComfyUI {host.version}"


def pictures_of(entry: dict, node: str) -> Iterator[dict]:
    """References to the pictures of a node in a history entry."""
    yield from entry.get("outputs", {}).get(node, {}).get("images", ())


def failure(entry: dict) -> str:
    """What a history entry says about a workflow that failed, in one line."""
    for event, data in entry.get("status", {}).get("messages", ()):
        if event == "execution_error":
            return f"{data['node_type']}: {data['exception_message'].strip()}"
    return "it reports no error."


def with_pipeline(prompt: str, options: dict, target: Path) -> str:
    """Make the picture without ComfyUI; the engine's name. Raises SetupError when it cannot be made."""
    command = [str(environment(for_host=False)), "-m", "pixart", prompt, "--out", str(target)]
    for name, value in options.items():
        command.append(f"--{name}={value}")
    say("Making the picture.")
    ended = subprocess.run(command, cwd=ROOT, timeout=WORK_TIMEOUT, stdout=subprocess.DEVNULL)
    if ended.returncode or not target.is_file():
        raise SetupError(f"The pipeline ended with exit code {ended.returncode} and made no picture.")
    return "the pack's own pipeline (python -m pixart)"


def github_answers() -> bool:
    """Whether ComfyUI's repository can be reached, asked with a limit of 10 s."""
    if shutil.which("git") is None:
        return False
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        asked = subprocess.run(
            ["git", "ls-remote", HOST_REPOSITORY, "HEAD"],
            env=env, timeout=10, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def accelerator() -> str:
    """comfy-cli's option for this machine's accelerator."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "--m-series"
    if shutil.which("nvidia-smi"):
        return "--nvidia"
    if shutil.which("rocminfo"):
        return "--amd"
    return "--cpu"


def install_comfyui() -> Host:
    """Install a ComfyUI with comfy-cli into the cache folder, with an environment of its own. Raises SetupError."""
    place = installed_by_us()
    tool = cache_folder() / "comfy-cli"
    hint = "Install ComfyUI by hand and set COMFYUI_PATH to its folder, or use --engine pipeline."
    if not tool.is_dir():
        build(tool, packages=INSTALLER)
    say(f"Installing ComfyUI into {place} with comfy-cli (once; takes some minutes).")
    # Outside of any active environment comfy-cli makes ComfyUI one of its own.
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    env["DO_NOT_TRACK"] = "1"
    place.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python_of(tool)), "-m", "comfy_cli", "--skip-prompt", "--workspace", str(place)]
    run([*command, "install", "--skip-manager", accelerator()], timeout=45 * 60, hint=hint, env=env)
    installed = [host for host in find_hosts() if host.path == place.resolve()]
    if not installed:
        raise SetupError(f"comfy-cli ended well, but there is no ComfyUI in {place}. {hint}")
    return installed[0]


def find_or_install() -> Host:
    """The newest ComfyUI on this machine, or a new one. Raises HostError or SetupError where neither can be had."""
    hosts = find_hosts()
    if hosts:
        return hosts[0]
    if not github_answers():
        raise SetupError("No ComfyUI was found (COMFYUI_PATH, ~/comfy/ComfyUI*), and GitHub does not answer.")
    return install_comfyui()


def make(args: argparse.Namespace) -> tuple[Path, str]:
    """The picture's path and the name of the engine that made it."""
    target = free_name(args.prompt)
    if args.engine != "pipeline":
        try:
            return target, with_comfyui(find_or_install(), args.prompt, settings(args), target)
        except (HostError, SetupError) as error:
            if args.engine == "comfyui":
                raise
            say(f"{error}\nTherefore without ComfyUI, by the pack's own pipeline.")
    return target, with_pipeline(args.prompt, settings(args), target)


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a ComfyUI that was started ends as well
    try:
        path, engine = make(args)
    except (HostError, SetupError, WorkflowError, subprocess.TimeoutExpired) as error:
        print(f"No picture was made. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    say(f"{path} (made by {engine})")
    return 0


if __name__ == "__main__":
    leave(main)
