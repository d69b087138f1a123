"""``python killed_writer.py COMFYUI KIND FOLDER KILLS``: kills a process again and again while it saves.

A child writes two versions of a file over each other as fast as it can, and is sent SIGKILL after a random time; then
what lies under the final name is compared with the two. Prints JSON: how many kills there were, how many of them left
something half written beside, and what was wrong. The child is a fork, so that only one process loads ComfyUI.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness")]

import host_process  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from tools.comfyui import read_host  # noqa: E402

LONGEST = 0.15  # s from the start of a child to its end
Write = Callable[[int], None]
"""Save version 0 or 1."""
Check = Callable[[], str]
"""What is wrong with what is there now, "" for nothing."""


def tensors(version: int) -> dict[str, torch.Tensor]:
    return {f"layer.{i}": torch.full((512, 256), float(version)) for i in range(16)}  # 8 MB


def one_version(read: Callable[[], dict[str, torch.Tensor]]) -> Check:
    def check() -> str:
        found = {float(value) for tensor in read().values() for value in (tensor.min(), tensor.max())}
        return "" if found in ({0.0}, {1.0}) else f"numbers of {sorted(found)}"

    return check


def caption(pack: str, folder: Path) -> tuple[Write, Check]:
    captions = import_module(f"{pack}.pixart.text.captions")
    path = folder / "caption.safetensors"

    def write(version: int) -> None:
        captions.save_caption(
            captions.Caption(torch.full((300, 4096), float(version)), None, "a prompt", None, {}), path
        )

    return write, one_version(lambda: {"embedding": captions.load_caption(path).embedding})


def lora(pack: str, folder: Path) -> tuple[Write, Check]:
    writing = import_module(f"{pack}.pixart.training.writing")
    path = folder / "lora.safetensors"
    return lambda version: writing.write_safetensors(path, tensors(version), {}), one_version(lambda: load_file(path))


def state(pack: str, folder: Path) -> tuple[Write, Check]:
    """As a training saves itself, by the trainer's own method on a stand-in that has what it reads."""
    trainer = import_module(f"{pack}.pixart.training.trainer")
    path = folder / trainer.STATE

    class Training:
        is_main = is_whole = True
        out, run_id, average = folder, "run", {}

        def __init__(self, version: int):
            self.step = version + 1
            self.trained = tensors(version)
            self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])

        def write(self) -> None:
            """The trained file is another row's."""

    return (
        lambda version: trainer.Trainer.save(Training(version)),
        one_version(lambda: torch.load(path, weights_only=True)["trained"]),
    )


def features(pack: str, folder: Path) -> tuple[Write, Check]:
    module = import_module(f"{pack}.pixart.training.features")
    path = folder / "features.safetensors"

    def write(version: int) -> None:
        latents = tuple(torch.full((4, 128, 128), float(version)) for _ in range(16))
        module.save(module.Features(latents, (torch.zeros(1, 1) + version,), (0,), (False,), 0, (), ()), path, "id")

    return write, one_version(lambda: load_file(path))


def sheet(pack: str, folder: Path) -> tuple[Write, Check]:
    """By the node's own code: two pictures, the table and the sheet."""
    evaluation = import_module(f"{pack}.nodes.host.evaluation")
    import folder_paths

    folder_paths.set_output_directory(str(folder))
    images = [[torch.full((2, 384, 384, 3), float(version)) for _ in "1"] for version in (0, 1)]
    prompt = import_module(f"{pack}.pixart.evaluation.prompts").Prompt
    prompts = evaluation.PromptSet(tuple(prompt(index, "a prompt", "") for index in range(2)), (0, 1), time.monotonic())

    def write(version: int) -> None:
        evaluation.contact_sheet(images[version], ["a"], 2, None, None, prompts, "run", "")

    def check() -> str:
        for path in (folder / "run").glob("*.png"):
            with Image.open(path) as picture:
                picture.load()
        rows = (folder / "run" / "results.csv").read_text(encoding="utf-8").splitlines()
        return "" if len(rows) == 3 and rows[-1].count(",") == rows[0].count(",") else f"the table is {rows}"

    return write, check


KINDS = {"caption": caption, "lora": lora, "state": state, "features": features, "sheet": sheet}


def write_until_killed(write: Write) -> None:
    version = 0
    while True:
        write(version)
        version = 1 - version


def main(comfyui: str, kind: str, folder: str, kills: str) -> int:
    torch.set_num_threads(1)
    host_process.enter(read_host(Path(comfyui)))
    pack = host_process.load_pack(ROOT).__name__
    place = Path(folder)
    write, check = KINDS[kind](pack, place)
    write(0)  # what is there before anything goes wrong; and all that is loaded at first use is loaded
    chance, halves, wrong = random.Random(1), 0, []
    for _ in range(int(kills)):
        child = os.fork()
        if not child:
            try:
                write_until_killed(write)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.01, LONGEST))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            wrong.append(f"the child ended by itself with {status}")
        partials = list(place.rglob("*.partial"))
        halves += bool(partials)
        for partial in partials:
            partial.unlink()
        try:
            if said := check():
                wrong.append(said)
        except Exception as error:  # noqa: BLE001 - whatever a reader says of half a file
            wrong.append(f"{type(error).__name__}: {error}")
    sys.stdout.write(json.dumps({"kills": int(kills), "halves": halves, "wrong": wrong}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
