"""``python3 tools/version_matrix.py``: which versions of ComfyUI, Python and PyTorch the pack works with.

    python3 tools/version_matrix.py --python 3.10 3.13 --torch 2.14.1
    python3 tools/version_matrix.py --python 3.11 --torch 2.7.1 --install-only

In every ComfyUI that is found (see COMFYUI_PATH), under every Python and PyTorch that is named, a server is started
with this checkout as its one custom node. Three things must go well: the pack is imported, the host lists all of its
nodes, and the workflow workflows/api/text_to_image.json draws a picture that shows what its prompt says. What does
not is named with the host's reason. An environment of some gigabytes is made for each pair of versions, once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.comfyui import PACK_FOLDER, Host, HostError, Server, find_hosts, read_host
from tools.environment import ROOT, Requirements, SetupError, build, cache_folder, environment, python_of, say
from tools.picture import WORKFLOW, failure, pictures_of
from tools.workflow import ending

OUTPUT = ROOT / "output" / "version-matrix"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NEWEST_TORCHAUDIO = (2, 11, 0)
"""Of the package index; its releases no longer follow PyTorch's."""
HOST_FILES = (Requirements(ROOT / "requirements.txt"), Requirements(ROOT / "tests" / "host" / "requirements.txt"))
MORE = ("pillow", "tqdm")
"""What a host imports and our tests' environment has from elsewhere."""
DRAWING_TIMEOUT = 600.0  # s

JUDGE = """
import sys, numpy, torch
from PIL import Image
from pixart.training.demo.captions import Scene
from pixart.training.demo.judge import mistakes
pixels = [numpy.asarray(Image.open(path).convert("RGB")).astype(int) for path in sys.argv[1:]]
wanted = Scene(size="small", colour="red", shape="star", position="left", background="blue")
print(",".join(mistakes(wanted, torch.from_numpy(pixels[0]).movedim(-1, 0) / 255)))
print(abs(pixels[0] - pixels[-1]).max())
"""
"""What of the workflow's prompt a picture does not show, and how far it is from another at most, 0 … 255."""


class MatrixError(RuntimeError):
    """A cell of the table that does not pass; the message is the reason that stands in it."""


@dataclass(frozen=True)
class Versions:
    """An environment of the matrix. without: packages that are taken out of it again."""

    python: str
    torch: str
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"Python {self.python}, torch {self.torch_cell}"

    @property
    def torch_cell(self) -> str:
        return self.torch + (f" without {', '.join(self.without)}" if self.without else "")

    @property
    def folder(self) -> str:
        return "-".join([f"python{self.python}", f"torch{self.torch}", *(f"without-{name}" for name in self.without)])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def companions(torch: str) -> tuple[str, str]:
    """The releases of torchvision and torchaudio that belong to one of torch."""
    major, minor, patch = numbers(torch)
    audio = min(NEWEST_TORCHAUDIO, (major, minor, patch))
    return f"0.{minor + 15}.{patch}", ".".join(map(str, audio))


def pinned_torch() -> str:
    """The version that the tests run with."""
    text = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    return re.search(r"^torch==(\S+)$", text, re.MULTILINE).group(1)


def interpreter(python: str) -> Path:
    """The newest interpreter of a version such as 3.12, on the PATH or among pyenv's. Raises MatrixError."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [path for path in versions.glob(f"{python}.*/bin/python") if re.fullmatch(r"[\d.]+", path.parts[-3])]
    on_path = shutil.which(f"python{python}")
    if found:
        return max(found, key=lambda path: numbers(path.parts[-3]))
    if on_path is None:
        raise MatrixError("no such interpreter here")
    return Path(on_path)


def prepared(versions: Versions) -> Path:
    """The interpreter of the environment with these versions, made where missing. Raises MatrixError."""
    if versions == Versions(f"{sys.version_info[0]}.{sys.version_info[1]}", pinned_torch()):
        return environment(for_host=True)  # which the tests use too
    place = cache_folder() / f"matrix-{versions.folder}"
    if not place.is_dir():
        base = interpreter(versions.python)
        vision, audio = companions(versions.torch)
        pinned = (f"torch=={versions.torch}", f"torchvision=={vision}", *MORE)
        say(f"Setting up {versions} in {place} (once; later runs reuse it).")
        try:
            build(place, HOST_FILES, pinned, without_dependencies=(f"torchaudio=={audio}",), interpreter=base)
        except SetupError as error:
            wheel = re.search(r"ERROR: (Could not find a version .*|No matching distribution .*)", str(error))
            raise MatrixError(wheel.group(1)[:160] if wheel else str(error).splitlines()[-1]) from error
    python = python_of(place)
    if versions.without:
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *versions.without], capture_output=True)
    torch = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    if torch.stdout.strip().partition("+")[0] != versions.torch:
        raise MatrixError(f"torch {torch.stdout.strip() or 'cannot be imported'} was installed")
    return python


def node_ids() -> set[str]:
    """Every node of the pack, by the literals that its sources hold."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    return set(re.findall(r'node_id="(\w+)"', sources))


def check_imported(log: str) -> None:
    """Raises MatrixError with the reason that a host's log gives for the pack not being there."""
    failed = re.search(rf"(?:IMPORT FAILED\S*: |Error while calling comfy_entrypoint in )\S*{PACK_FOLDER}(.*)", log)
    if failed:
        reasons = re.findall(r"^(?:\w+\.)*(?:\w+Error|\w+Exception): .*$", log, re.MULTILINE)
        raise MatrixError(f"import: {reasons[-1] if reasons else failed.group(1).strip(' :')}")


def check_listed(info: dict) -> None:
    """Raises MatrixError where the host lists other nodes of the pack than there are."""
    ours = {name for name, node in info.items() if node["python_module"] == f"custom_nodes.{PACK_FOLDER}"}
    if ours != node_ids():
        raise MatrixError(f"object_info: missing or strange {', '.join(sorted(ours ^ node_ids()))}")


def draw(server: Server, target: Path) -> None:
    """The workflow's picture, into a file. Raises MatrixError with the host's reason."""
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    entry = server.wait(server.queue(graph), DRAWING_TIMEOUT)
    pictures = list(pictures_of(entry, ending(graph)))
    if not pictures:
        raise MatrixError(f"text to image: {failure(entry)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(server.file(pictures[0]))


def judge(python: Path, picture: Path, reference: Path) -> int:
    """How far a picture is from the reference, 0 … 255. Raises MatrixError where it is not what the prompt says."""
    said = subprocess.run([python, "-c", JUDGE, picture, reference], cwd=ROOT, capture_output=True, text=True)
    if said.returncode:
        raise MatrixError(f"text to image: the picture cannot be judged: {said.stderr.strip().splitlines()[-1]}")
    wrong, difference = said.stdout.splitlines()
    if wrong:
        raise MatrixError(f"text to image: the picture's {wrong} is not the prompt's")
    return int(difference)


def cell(versions: Versions, python: Path, host: Host, reference: Path | None) -> tuple[str, Path | None]:
    """What the table says of one host under one environment, and the picture where all went well."""
    name = f"comfyui{host.version}-{versions.folder}"
    picture = OUTPUT / f"{name}.png"
    picture.unlink(missing_ok=True)
    try:
        with Server(host, python, cpu=True, log=OUTPUT / f"{name}.log") as server:
            check_imported(server.log_text())
            check_listed(server.get_json("/object_info"))
            draw(server, picture)
        difference = judge(python, picture, reference or picture)
    except (MatrixError, HostError) as error:
        return reason(error), None
    return "pass" if reference is None or not difference else f"pass, {difference}", picture


def reason(error: Exception) -> str:
    """One line for the table: of a host that ended with a traceback in its log, the last one's error."""
    errors = re.findall(r"^(?:[\w.]+)(?:Error|Exception): .*$", str(error), re.MULTILINE)
    if isinstance(error, HostError) and errors:
        return f"ComfyUI does not start or failed: {errors[-1]}"[:240]
    return str(error).strip().replace("\n", " ")[:240]


def table(hosts: Sequence[Host], rows: dict[Versions, list[str]]) -> str:
    """The matrix in Markdown."""
    lines = ["| Python | torch | " + " | ".join(f"ComfyUI {host.version}" for host in hosts) + " |"]
    lines.append("|---" * (2 + len(hosts)) + "|")
    lines += [
        f"| {versions.python} | {versions.torch_cell} | {' | '.join(cells)} |" for versions, cells in rows.items()
    ]
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=list(PYTHONS), help=f"versions (default {' '.join(PYTHONS)})")
    parser.add_argument("--torch", nargs="+", default=[pinned_torch()], help="versions (default: the tests')")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="what to take out of an environment again, such as triton, which old releases cannot load without a card",
    )
    parser.add_argument("--comfyui", nargs="+", type=Path, help="ComfyUI trees (default: all that are found)")
    parser.add_argument("--install-only", action="store_true", help="make the environments and stop")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    hosts = [read_host(folder) for folder in args.comfyui] if args.comfyui else find_hosts()
    if not hosts or None in hosts:
        print("No ComfyUI was found: name its folder with --comfyui or COMFYUI_PATH.", file=sys.stderr)
        return 2
    rows: dict[Versions, list[str]] = {}
    reference = None
    without = tuple(args.without)
    for versions in (Versions(python, torch, without) for torch in args.torch for python in args.python):
        try:
            python = prepared(versions)
        except MatrixError as error:
            rows[versions] = [str(error)] * len(hosts)
            say(f"{versions}: {error}")
            continue
        if args.install_only:
            continue
        rows[versions] = []
        for host in hosts:
            said, picture = cell(versions, python, host, reference)
            reference = reference or picture
            rows[versions].append(said)
            say(f"ComfyUI {host.version}, {versions}: {said}")
    if args.install_only:
        return 0
    say(f"\n{datetime.date.today()}. A number: how far the picture is from the first one at most, of 255.\n")
    say(table(hosts, rows))
    return 0 if all(said.startswith("pass") for cells in rows.values() for said in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
