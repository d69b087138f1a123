"""Faults in a running ComfyUI: each ends in a clear error or the right picture, and the next prompt is as before.

The rows are in tests/harness/faults.py; tests/FAULTS.md shows them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import demo_files
import faults
import graphs
import pytest
from faults import FAULTS, NEARLY, PICTURE, STOPPED, Fault
from host_client import GUARD, Client, Result
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import load_file

from tools.comfyui import Server, find_hosts

ROOT = Path(__file__).resolve().parents[2]
HOSTS = find_hosts()
HARNESS = ROOT / "tests" / "harness"
LORA, HINT = "faults.safetensors", "circle.png"
ADDED = {"checkpoint": "checkpoints", "T5": "text_encoders", "ControlNet": "controlnet", "LoRA": "loras"}
SOURCES = {"checkpoint": demo_files.CHECKPOINT, "T5": demo_files.T5, "ControlNet": demo_files.CONTROLNET}


@pytest.fixture(scope="module")
def server(host) -> Iterator[Server]:
    """A ComfyUI of its own, with the node that makes it fail."""
    log = ROOT / "output" / "test-logs" / f"faults-{host.version}.log"
    with Server(host, Path(sys.executable), cpu=True, log=log, others=[HARNESS / "fault_pack"]) as running:
        demo_files.write_lora(running.base / "models" / "loras" / LORA, seed=1)
        demo_files.write_hint(running.base / "input" / HINT)
        yield running


numbers = itertools.count(1)
"""Every prompt of this file has one of its own, so that nothing but the loaders' results comes from ComfyUI's cache."""


@pytest.fixture
def arm(server) -> Iterator[Callable[..., None]]:
    """Makes something happen in the server, until the test ends."""

    def disarm() -> None:
        server.request(urllib.request.Request(f"{server.url}/test-fault", method="DELETE"), 10)

    yield lambda at, do, call=1, times=1: server.post("/test-fault", dict(at=at, do=do, call=call, times=times))
    disarm()


@dataclass(frozen=True)
class Workflow:
    """make: the graph for a number, which names whatever is to be new each time. outcome: a digest of what came out."""

    make: Callable[[int], graphs.Graph]
    outcome: Callable[[Client, Result, int], str]


def picture(client: Client, result: Result, number: int) -> str:
    return graphs.digest(client.images(result, "9"))


def loaded_from(kind: str, number: int) -> str:
    """The name of a model file that the server has not opened yet."""
    return f"{kind}-{number}.safetensors"


def lay(server: Server, kind: str, number: int) -> Path:
    """Copy a model of the demo under that name into the server's folder."""
    place = server.base / "models" / ADDED[kind] / loaded_from(kind, number)
    place.parent.mkdir(parents=True, exist_ok=True)
    source = server.base / "models" / "loras" / LORA if kind == "LoRA" else demo_files.DEMO / SOURCES[kind]
    shutil.copyfile(source, place)
    return place


def load_workflow(kind: str) -> Workflow:
    """Opens a file that nobody has opened; ``test_fault`` lays it there."""

    def make(number: int) -> graphs.Graph:
        name = loaded_from(kind, number)
        if kind == "checkpoint":
            return graphs.text_to_image(number, checkpoint=name)
        if kind == "T5":
            return graphs.text_to_image(number, t5=name)
        if kind == "ControlNet":
            return graphs.with_control(graphs.text_to_image(number), HINT, net=name)
        return graphs.with_lora(graphs.text_to_image(number), name)

    return Workflow(make, picture)


def cached(number: int) -> graphs.Graph:
    graph = graphs.text_to_image(number, steps=6)
    return graphs.with_model(
        graph, "cache", "PixArtStepCache", method="schedule", every=2, threshold=0.1, first_blocks=1, last_blocks=0,
        gate=0.5, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip


def compressed(number: int) -> graphs.Graph:
    graph = graphs.text_to_image(number)
    return graphs.with_model(
        graph, "kv", "PixArtKVCompression", sampling="average", ratio=2, first_block=2, last_block=4, min_tokens=0
    )


def captioned(number: int) -> graphs.Graph:
    whole = graphs.text_to_image(number)
    save = graphs.node("PixArtSaveCaption", conditioning=["4", 0], filename_prefix=f"faults/{number}", dtype="auto")
    return {"2": whole["2"], "4": whole["4"], "9": save}


def caption_file(client: Client, result: Result, number: int) -> str:
    folder = client.server.base / "output" / "faults"
    (path,) = folder.glob(f"{number}_*.safetensors")
    tensors = load_file(path)
    return hashlib.sha256(tensors["embedding"].numpy().tobytes()).hexdigest()


def sheet(number: int) -> graphs.Graph:
    graph = graphs.text_to_image(number)
    graph["set"] = graphs.node("PixArtPromptSet", file="prompts.csv [demo]", category="", limit=2, seed=1, run="")
    graph["4"]["inputs"]["text"] = ["set", 0]
    graph["7"]["inputs"]["noise_seed"] = ["set", 2]
    graph["9"] = graphs.node(
        "PixArtContactSheet", images=["8", 0], labels=["set", 0], columns=2, prompt_set=["set", 3],
        run=f"faults/run-{number}",
    )  # fmt: skip
    graph["10"] = graphs.node("PreviewImage", images=["9", 0])
    return graph


def sheet_files(client: Client, result: Result, number: int) -> str:
    folder = client.server.base / "output" / "faults" / f"run-{number}"
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png", "results.csv", "sheet.png"]
    assert len((folder / "results.csv").read_text(encoding="utf-8").splitlines()) == 3
    return graphs.digest([Image.open(folder / f"{index:05}.png") for index in range(2)])


def trained(number: int) -> graphs.Graph:
    whole = graphs.text_to_image()
    return {
        **{name: whole[name] for name in "123"},
        "hint": graphs.node("LoadImage", image=HINT),
        "train": graphs.node(
            "PixArtTrainLora", model=["1", 0], clip=["2", 0], vae=["3", 0], images=["hint", 0], captions="a zork",
            lora_name=f"faults-{number}", trigger="zork", steps=3, batch_size=1, learning_rate=0.001, rank=4, seed=0,
            preview_every=0, save_every=0,
        ),
        "9": graphs.node("PreviewImage", images=["train", 2]),
    }  # fmt: skip


def trained_file(client: Client, result: Result, number: int) -> str:
    """Of its numbers and of the preview."""
    path = client.server.base / "models" / "loras" / f"faults-{number}.safetensors"
    tensors = load_file(path)
    digest = hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)))
    return digest.hexdigest() + picture(client, result, number)


WORKFLOWS = {
    "text": Workflow(graphs.text_to_image, picture),
    "LoRA": Workflow(lambda number: graphs.with_lora(graphs.text_to_image(number), LORA), picture),
    "control": Workflow(lambda number: graphs.with_control(graphs.text_to_image(number), HINT), picture),
    "cache": Workflow(cached, picture),
    "compression": Workflow(compressed, picture),
    "caption": Workflow(captioned, caption_file),
    "sheet": Workflow(sheet, sheet_files),
    "train": Workflow(trained, trained_file),
    **{f"load {kind}": load_workflow(kind) for kind in ADDED},
}


@pytest.fixture(scope="module")
def undisturbed(server) -> dict[str, str]:
    """What each workflow gives in this server where nothing goes wrong; filled before a fault is armed."""
    return {}


def run(server: Server, client: Client, name: str, number: int) -> tuple[Result, str]:
    """The result, and the digest of what came out ("" where something went wrong)."""
    workflow = WORKFLOWS[name]
    result = client.run(workflow.make(number))
    went_well = result.error is None and not result.interrupted
    return result, workflow.outcome(client, result, number) if went_well else ""


def prepare(server: Server, name: str, number: int) -> None:
    if name.startswith("load "):
        lay(server, name.removeprefix("load "), number)


def half_written(base: Path) -> list[str]:
    """Files below the output and model folders that are not whole, whatever their name says."""
    found = []
    for path in [*(base / "output").rglob("*"), *(base / "models").rglob("*")]:
        if path.suffix == ".partial":
            found.append(path.name)
        try:
            if path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    file.keys()
        except Exception as error:  # noqa: BLE001 - whatever a reader says of half a file
            found.append(f"{path.name}: {error}")
    return found


ROWS = FAULTS if HOSTS and HOSTS[0].order >= (0, 33) else FAULTS[::3]
"""All of them in the newest supported host, every third in the others."""


def furthest(some: list[Image.Image], others: list[Image.Image]) -> int:
    """The largest difference of a channel between pictures of the same size, of 255."""
    return max(
        max(high for _, high in ImageChops.difference(a, b).getextrema()) for a, b in zip(some, others, strict=True)
    )


def name_of(fault: Fault) -> str:
    return f"{fault.do}, {fault.what}, {fault.workflow}"


@pytest.mark.parametrize("fault", ROWS, ids=name_of)
def test_fault(server, client, arm, undisturbed, fault):
    if fault.workflow not in undisturbed:
        number = next(numbers)
        prepare(server, fault.workflow, number)
        result, undisturbed[fault.workflow] = run(server, client, fault.workflow, number)
        assert result.error is None, result.error["exception_message"]
    number = next(numbers)
    prepare(server, fault.workflow, number)
    arm(fault.at, fault.do, fault.call, fault.times)
    result, outcome = run(server, client, fault.workflow, number)
    told = server.get_json("/test-fault")
    assert told["done"] >= 1, f"{fault.at} was reached {told['calls']} times"
    if fault.sees == PICTURE:
        assert result.error is None and outcome == undisturbed[fault.workflow]
    elif fault.sees == NEARLY:
        assert result.error is None
        plain, _ = run(server, client, fault.workflow, next(numbers))
        assert furthest(client.images(result, "9"), client.images(plain, "9")) <= 2
    elif fault.sees == STOPPED:
        assert result.interrupted and result.error is None
    else:
        assert not result.interrupted and result.error is not None
        assert fault.sees in result.error["exception_message"]
        assert result.error["node_type"] == fault.node
    assert half_written(server.base) == []

    arm("block", "wait", 10**9)  # another place, so that the first one is as it was
    after = number if fault.sees not in (PICTURE, NEARLY) else next(numbers)
    result, outcome = run(server, client, fault.workflow, after)
    assert result.error is None, result.error["exception_message"]
    assert outcome == undisturbed[fault.workflow]


def told_by(test: str) -> str:
    """The words that the table promises for a test of this file."""
    return next(row.sees for row in (*faults.FILES, *faults.CLIENTS) if row.test == test)


def run_after(
    server: Server,
    client: Client,
    arm,
    graph: graphs.Graph,
    change: Callable[[], object],
    before: graphs.Graph | None = None,
) -> Result:
    """Queue a workflow behind another one, change something, and let both run; the result of the second.

    before: the other one, which has drawn and waits with its decoding. Where it uses what is changed, the host still
    holds that in memory when the second one's turn comes.
    """
    arm("VAE decode", "wait")
    first = client.queue(before or graphs.text_to_image(next(numbers)))
    give_up = time.monotonic() + GUARD
    while not server.get_json("/test-fault")["waiting"]:
        assert time.monotonic() < give_up, "the first prompt never came to its decoding"
        time.sleep(0.05)
    second = client.queue(graph)
    change()
    server.post("/test-release", {})
    assert client.result(first).error is None
    return client.result(second)


def check_error(result: Result, words: str) -> None:
    assert result.error is not None, "no error was shown"
    assert words in result.error["exception_message"]


def drawn(client: Client, graph: graphs.Graph) -> str:
    result = client.run(graph)
    assert result.error is None, result.error["exception_message"]
    return graphs.digest(client.images(result, "9"))


def replace_with(source: Path, target: Path) -> None:
    """As a program does that writes beside and renames."""
    beside = target.with_suffix(".new")
    shutil.copyfile(source, beside)
    os.replace(beside, target)


def overwrite_with(source: Path, target: Path) -> None:
    """As cp does: the file stays the same one, and its pages in memory change with it."""
    data = source.read_bytes()
    assert len(data) == target.stat().st_size
    with target.open("r+b") as file:
        file.write(data)
    os.utime(target)


def test_a_checkpoint_removed_after_queueing_is_named(server, client, arm):
    number = next(numbers)
    path = lay(server, "checkpoint", number)
    graph = graphs.text_to_image(number, checkpoint=path.name)
    check_error(
        run_after(server, client, arm, graph, path.unlink),
        told_by("test_a_checkpoint_removed_after_queueing_is_named"),
    )
    lay(server, "checkpoint", number)
    assert drawn(client, graph) == drawn(client, graphs.text_to_image(next(numbers)))


@pytest.fixture
def swapped(server, client, arm, tmp_path) -> Callable[..., None]:
    """Acts out: a file that a prompt has used becomes another one while the next prompt waits in the queue."""

    def act(kind: str, make: Callable[[int, str], graphs.Graph], swap: Callable[[Path, Path], None], seed: int) -> None:
        number = next(numbers)
        path = lay(server, kind, number)
        other = lay(server, kind, next(numbers))
        if kind == "LoRA":
            demo_files.write_lora(other, seed=seed)
        else:
            demo_files.write_variant(path, other, seed=seed)
        old, new = (drawn(client, make(next(numbers), name)) for name in (path.name, other.name))
        assert old != new
        graph = make(next(numbers), path.name)
        result = run_after(server, client, arm, graph, lambda: swap(other, path), make(next(numbers), path.name))
        assert result.error is None, result.error["exception_message"]
        assert graphs.digest(client.images(result, "9")) == new
        assert drawn(client, make(next(numbers), other.name)) == new
        assert drawn(client, graphs.text_to_image(next(numbers))) == drawn(client, graphs.text_to_image(next(numbers)))

    return act


def test_a_checkpoint_replaced_after_queueing_is_opened_anew(swapped):
    swapped("checkpoint", lambda n, name: graphs.text_to_image(n, checkpoint=name), replace_with, seed=2)


def test_a_checkpoint_overwritten_in_place_is_opened_anew(swapped):
    swapped("checkpoint", lambda n, name: graphs.text_to_image(n, checkpoint=name), overwrite_with, seed=3)


def test_a_lora_replaced_after_queueing_is_opened_anew(swapped):
    swapped("LoRA", lambda n, name: graphs.with_lora(graphs.text_to_image(n), name), replace_with, seed=4)


def test_a_control_net_replaced_after_queueing_is_opened_anew(swapped):
    swapped(
        "ControlNet", lambda n, name: graphs.with_control(graphs.text_to_image(n), HINT, net=name), replace_with, seed=5
    )


def test_a_checkpoint_cut_short_after_queueing_is_named(server, client, arm):
    number = next(numbers)
    path = lay(server, "checkpoint", number)
    before = drawn(client, graphs.text_to_image(number, checkpoint=path.name))
    graph = graphs.text_to_image(next(numbers), checkpoint=path.name)
    using = graphs.text_to_image(next(numbers), checkpoint=path.name)
    result = run_after(server, client, arm, graph, lambda: os.truncate(path, path.stat().st_size // 2), using)
    check_error(result, told_by("test_a_checkpoint_cut_short_after_queueing_is_named"))
    lay(server, "checkpoint", number)
    assert drawn(client, graph) == before


def test_a_t5_replaced_after_queueing_is_opened_anew(swapped):
    swapped("T5", lambda n, name: graphs.text_to_image(n, t5=name), replace_with, seed=6)


def test_a_lora_removed_after_queueing_is_named(server, client, arm):
    number = next(numbers)
    path = lay(server, "LoRA", number)
    before = drawn(client, graphs.with_lora(graphs.text_to_image(number), path.name))
    graph = graphs.with_lora(graphs.text_to_image(next(numbers)), path.name)
    result = run_after(server, client, arm, graph, path.unlink)
    check_error(result, told_by("test_a_lora_removed_after_queueing_is_named"))
    lay(server, "LoRA", number)
    assert drawn(client, graph) == before


def test_a_caption_removed_after_queueing_is_named(server, client, arm):
    number = next(numbers)
    result = client.run(captioned(number))
    assert result.error is None
    (path,) = (server.base / "output" / "faults").glob(f"{number}_*.safetensors")
    graph = graphs.text_to_image(number)
    graph["4"] = graphs.node("PixArtLoadCaption", caption_name=f"faults/{path.name} [output]")
    whole = path.read_bytes()
    result = run_after(server, client, arm, graph, path.unlink)
    check_error(result, told_by("test_a_caption_removed_after_queueing_is_named"))
    path.write_bytes(whole)
    assert drawn(client, graph) == drawn(client, graphs.text_to_image(next(numbers)))


def test_a_prompt_file_removed_after_queueing_is_named(server, client, arm):
    path = server.base / "input" / "prompts.txt"
    path.write_text("a red circle\na blue star\n", encoding="utf-8")
    graph = sheet(next(numbers))
    graph["set"]["inputs"]["file"] = path.name
    result = run_after(server, client, arm, graph, path.unlink)
    check_error(result, told_by("test_a_prompt_file_removed_after_queueing_is_named"))
    path.write_text("a red circle\na blue star\n", encoding="utf-8")
    result = client.run(graph)
    assert result.error is None and len(client.images(result, "10")) == 1


def test_two_clients_at_once_get_their_own_pictures(server, client):
    prompts = ["a red circle", "a large yellow square, black background", "a small green star on the top"]

    def graph(who: int, index: int) -> graphs.Graph:
        return graphs.text_to_image(next(numbers), prompt=prompts[index], seed=10 * who + index)

    alone = {(who, index): drawn(client, graph(who, index)) for who in range(2) for index in range(3)}
    assert len(set(alone.values())) == 6
    with Client(server) as first, Client(server) as second:
        queued = [
            (who, index, each, each.queue(graph(who, index)))
            for index in range(3)
            for who, each in enumerate((first, second))
        ]
        for who, index, each, prompt_id in queued:
            result = each.result(prompt_id)
            assert result.error is None
            assert graphs.digest(each.images(result, "9")) == alone[who, index], (who, index)
        for who, each in enumerate((first, second)):
            mine = {prompt_id for owner, _, _, prompt_id in queued if owner == who}
            told = {event["data"].get("prompt_id") for event in each.events(1) if isinstance(event, dict)}
            assert told - {None} <= mine


def test_one_client_stops_and_the_other_gets_its_picture(server, client, arm):
    expected = drawn(client, graphs.text_to_image(next(numbers)))
    with Client(server) as other:
        arm("sampling step", "wait", 2)
        stopped = client.queue(graphs.text_to_image(next(numbers), seed=5))
        client.wait_for("progress")
        waiting = other.queue(graphs.text_to_image(next(numbers)))
        client.interrupt()
        server.post("/test-release", {})
        assert client.result(stopped).interrupted
        result = other.result(waiting)
        assert result.error is None and not result.interrupted
        assert graphs.digest(other.images(result, "9")) == expected


def test_every_place_of_a_fault_is_one_that_can_be_armed(server, arm):
    for place in sorted({fault.at for fault in FAULTS}):
        arm(place, "wait", 10**9)
        assert json.loads(server.get("/test-fault"))["calls"] == 0
