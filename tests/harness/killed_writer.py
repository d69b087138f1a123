"""``python killed_writer.py COMFYUI KIND FOLDER``: kills a process at chosen points while it saves.

A child writes version 1 of its files over version 0, and is held and sent SIGKILL: for each file before its first byte,
after the first, in the middle, before the last one, before its renaming, and after it. A limit on the size of files
holds it amid the bytes, so that it does not matter which library writes (one that sets the file's size before it writes
is held there, with none of the bytes). Then what lies under the final
names must be, file by file, exactly the version that had taken its place. Prints JSON: how many kills there were, and
what was wrong. The child is a fork, so that only one process loads ComfyUI.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness")]

import host_process  # noqa: E402
import stopped  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from tools.comfyui import read_host  # noqa: E402

BEFORE, AFTER = "before its renaming", "after its renaming"


@dataclass(frozen=True)
class Kind:
    """write: saves version 0 or 1. files: what it writes, in order. read: the version of a file that is whole; raises
    or gives something else for any other."""

    write: Callable[[int], object]
    files: tuple[Path, ...]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Point:
    """Where a child is killed. file: its number among those written. at: bytes of it that are written, or a word."""

    file: int
    at: int | str


def tensors(version: int) -> dict[str, torch.Tensor]:
    return {f"layer.{i}": torch.full((512, 256), float(version)) for i in range(16)}  # 8 MB


def version_of(tensors: dict[str, torch.Tensor]) -> object:
    found = {float(value) for tensor in tensors.values() for value in (tensor.min(), tensor.max())}
    return int(found.pop()) if len(found) == 1 else f"numbers of {sorted(found)}"


def caption(pack: str, folder: Path) -> Kind:
    captions = import_module(f"{pack}.pixart.text.captions")
    path = folder / "caption.safetensors"

    def write(version: int) -> None:
        captions.save_caption(
            captions.Caption(torch.full((300, 4096), float(version)), None, "a prompt", None, {}), path
        )

    return Kind(write, (path,), lambda path: version_of({"embedding": captions.load_caption(path).embedding}))


def lora(pack: str, folder: Path) -> Kind:
    writing = import_module(f"{pack}.pixart.training.writing")
    path = folder / "lora.safetensors"
    return Kind(
        lambda version: writing.write_safetensors(path, tensors(version), {}),
        (path,),
        lambda path: version_of(load_file(path)),
    )


def state(pack: str, folder: Path) -> Kind:
    """As a training saves itself, by the trainer's own method on a stand-in that has what it reads."""
    trainer = import_module(f"{pack}.pixart.training.trainer")

    class Training:
        is_main = is_whole = True
        out, run_id, average = folder, "run", {}

        def __init__(self, version: int):
            self.step = version + 1
            self.trained = tensors(version)
            self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])

        def write(self) -> None:
            """The trained file is another row's."""

    return Kind(
        lambda version: trainer.Trainer.save(Training(version)),
        (folder / trainer.STATE,),
        lambda path: version_of(torch.load(path, weights_only=True)["trained"]),
    )


def features(pack: str, folder: Path) -> Kind:
    module = import_module(f"{pack}.pixart.training.features")
    path = folder / "features.safetensors"

    def write(version: int) -> None:
        latents = tuple(torch.full((4, 128, 128), float(version)) for _ in range(16))
        module.save(module.Features(latents, (torch.zeros(1, 1) + version,), (0,), (False,), 0, (), ()), path, "id")

    def read(path: Path) -> object:
        found = load_file(path)
        return version_of({name: found[name] for name in found if name.startswith(("latent", "caption."))})

    return Kind(write, (path,), read)


def sheet(pack: str, folder: Path) -> Kind:
    """By the node's own code: two pictures, the table and the sheet."""
    evaluation = import_module(f"{pack}.nodes.host.evaluation")
    import folder_paths

    folder_paths.set_output_directory(str(folder))
    side = 384
    images = [[torch.full((2, side, side, 3), float(version)) for _ in "1"] for version in (0, 1)]
    prompt = import_module(f"{pack}.pixart.evaluation.prompts").Prompt
    shown = tuple(prompt(index, "a prompt", "") for index in range(2))
    begun = float("-inf")  # so that the time taken, which is drawn on the sheet, makes no version longer than the other
    prompts = evaluation.PromptSet(shown, (0, 1), begun)

    def write(version: int) -> None:
        evaluation.contact_sheet(images[version], ["a"], 2, None, None, prompts, "run", f"version {version}")

    def read(path: Path) -> object:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                black = picture.convert("L").histogram()[0]
            return 0 if black >= side * side else 1  # the pictures' own; letters on the sheet are far fewer
        rows = path.read_text(encoding="utf-8").splitlines()
        whole = len(rows) == 3 and all(row.count(",") == rows[0].count(",") for row in rows)
        found = [version for version in (0, 1) if all(f"version {version}" in row for row in rows[1:])]
        return found[0] if whole and found else f"rows of {rows}"

    names = ("00000.png", "00001.png", "results.csv", "sheet.png")
    return Kind(write, tuple(folder / "run" / name for name in names), read)


KINDS = {"caption": caption, "lora": lora, "state": state, "features": features, "sheet": sheet}


def points(kind: Kind) -> list[Point]:
    """All points of a kind whose version 1 lies there."""
    found = []
    for number, path in enumerate(kind.files):
        size = path.stat().st_size
        found += [Point(number, at) for at in (0, 1, size // 2, size - 1, BEFORE, AFTER)]
    return found


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def hold(_signal: int) -> None:
    stopped.stop()


def hold_beyond(size: int) -> None:
    """Hold this process in the call that would make a file longer than ``size`` bytes.

    The kernel signals it there. Python's own handlers run only after the call has failed, as on a full disk, and then
    the writer would clean up; hence one of the C library's, which stops the process within the call.
    """
    signal_of_libc = ctypes.CDLL(None).signal
    signal_of_libc.argtypes, signal_of_libc.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    signal_of_libc(signal.SIGXFSZ, ctypes.cast(hold, ctypes.c_void_p))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def arm(point: Point) -> None:
    """Make this process stop there."""
    replace, renamed = os.replace, 0

    def counting(*args, **kwargs) -> None:
        nonlocal renamed
        if (renamed, BEFORE) == (point.file, point.at):
            stopped.stop()
        replace(*args, **kwargs)
        if (renamed, AFTER) == (point.file, point.at):
            stopped.stop()
        renamed += 1
        if renamed == point.file and isinstance(point.at, int):
            hold_beyond(point.at)

    os.replace = counting
    if point.file == 0 and isinstance(point.at, int):
        hold_beyond(point.at)


def unfinished(folder: Path) -> list[Path]:
    """What is written to take another file's place: hidden ones, whether this project or a library has named them."""
    return sorted(folder.rglob(".*"))


def kill_at(kind: Kind, point: Point) -> None:
    """Have a child write version 1, and kill it there. Raises AssertionError when it does not come there."""
    child = os.fork()
    if not child:
        try:
            arm(point)
            kind.write(1)
        finally:
            os._exit(0)
    stopped.wait_until_stopped(child)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def what_is_wrong(kind: Kind, folder: Path, point: Point) -> list[str]:
    """Of what a killed child has left; its half file is taken away."""
    wrong = []
    for number, path in enumerate(kind.files):
        wanted = int(number < point.file or (number == point.file and point.at == AFTER))
        try:
            found = kind.read(path)
        except Exception as error:  # noqa: BLE001 - whatever a reader says of half a file
            found = f"{type(error).__name__}: {error}"
        if found != wanted:
            wrong.append(f"{path.name} holds {found}, not version {wanted}")
    halves = unfinished(folder)
    if bool(halves) != (point.at != AFTER):
        wrong.append(f"half written files: {[path.name for path in halves]}")
    for path in halves:
        path.unlink()
    return wrong


def main(comfyui: str, name: str, folder: str) -> int:
    torch.set_num_threads(1)
    host_process.enter(read_host(Path(comfyui)))
    pack = host_process.load_pack(ROOT).__name__
    place = Path(folder)
    kind = KINDS[name](pack, place)
    kind.write(1)
    chosen, wrong = points(kind), []
    for point in chosen:
        kind.write(0)
        try:
            kill_at(kind, point)
            said = what_is_wrong(kind, place, point)
        except AssertionError as error:
            said = [str(error)]
        wrong += [f"{kind.files[point.file].name}, {point.at}: {text}" for text in said]
    sys.stdout.write(json.dumps({"kills": len(chosen), "wrong": wrong}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
