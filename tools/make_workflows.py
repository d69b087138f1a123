"""Writes workflows/NAME.json (what people open) from workflows/api/NAME.json (what scripts run).

The API form says what is connected to what; a running ComfyUI's /object_info says what every widget is called
and in which order it is saved. Nodes are laid out in columns by their distance from the loaders.

Where tools/workflow_extras.json has a twin for it, the same graph is written once more with the released checkpoints'
names, sizes and download links: it opens with ComfyUI's offer to fetch what is missing. Blueprints, which people add as
one node, are made from tools/blueprints/NAME.json into subgraphs/NAME.json.

    python tools/make_workflows.py http://127.0.0.1:8188
"""

from __future__ import annotations

import argparse
import copy
import json
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN, GAP = 320, 30
TALL_TEXT = 90  # of a text field on a blueprint's node
NOTE = "MarkdownNote"
TALL = {
    "PixArtLoadCheckpoint": 66,
    "PixArtLoadT5": 66,
    "PixArtTextEncode": 180,
    "PixArtResolution": 180,
    "PixArtSaveCaption": 70,
    "PixArtLoadCaption": 70,
    "PixArtLoadLora": 66,
    "PixArtLoadControlNet": 66,
    "PixArtLoadDreamBooth": 66,
    "SaveImage": 300,
    "PreviewImage": 300,
}
"""Pixels below the ordinary widgets: text, pictures, and what js/ adds."""


def is_widget(spec: list) -> bool:
    """Whether an input of object_info is a widget and not a socket."""
    forced = len(spec) > 1 and spec[1].get("forceInput")
    return not forced and (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES)


def socket(name: str, spec: list) -> dict:
    """An input to link to; a widget that is linked keeps its name, and its value for when the link is removed."""
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    made = {"name": name, "type": kind, "link": None}
    return {**made, "widget": {"name": name}} if is_widget(spec) else made


def inputs_of(info: dict) -> dict[str, list]:
    """Name → spec of a node's inputs, required first, as the front end orders them."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def widget_values(info: dict, given: dict) -> list:
    """Saved values of a node's widgets; a seed is followed by its "after generate" mode."""
    values = []
    for name, spec in inputs_of(info).items():
        if not is_widget(spec):
            continue
        options = spec[1] if len(spec) > 1 else {}
        value = given.get(name)
        values.append(options.get("default", "") if value is None or isinstance(value, list) else value)
        if options.get("control_after_generate"):
            values.append("randomize")
    return values


def depth_of(api: dict, key: str, known: dict[str, int]) -> int:
    """Column of a node: one right of the last node it needs."""
    if key not in known:
        sources = [v[0] for v in api[key]["inputs"].values() if isinstance(v, list)]
        known[key] = 1 + max((depth_of(api, s, known) for s in sources), default=-1)
    return known[key]


def height_of(node: dict) -> int:
    """Rough height in pixels of a node: sockets, widgets, and room for text or a picture."""
    rows = max(len(node["inputs"]), len(node["outputs"])) + len(node["widgets_values"])
    tall = TALL.get(node["type"], 0)
    return 30 + 26 * rows + tall


def build(api: dict, object_info: dict, models: dict[str, list]) -> dict:
    """The UI form, version 0.4, of an API prompt.

    models: widget value → ``properties.models`` entries of the loader that names it.
    Raises ValueError when the running ComfyUI lacks a node.
    """
    missing = sorted({n["class_type"] for n in api.values()} - object_info.keys())
    if missing:
        raise ValueError(f"This ComfyUI has no node {', '.join(missing)}.")
    keys = {key: int(key) for key in api}
    nodes, links, depths = {}, [], {}
    for key, source in api.items():
        info = object_info[source["class_type"]]
        specs = inputs_of(info)
        sockets = [
            socket(name, spec)
            for name, spec in specs.items()
            if not is_widget(spec) or isinstance(source["inputs"].get(name), list)
        ]
        outputs = [
            {"name": name, "type": kind, "links": [], "slot_index": i}
            for i, (kind, name) in enumerate(zip(info["output"], info["output_name"], strict=True))
        ]
        properties = {"Node name for S&R": source["class_type"]}
        found = [m for value in source["inputs"].values() if isinstance(value, str) for m in models.get(value, [])]
        if found:
            properties["models"] = found
        nodes[key] = {
            "id": keys[key],
            "type": source["class_type"],
            "title": source["_meta"]["title"],
            "flags": {},
            "mode": 0,
            "inputs": sockets,
            "outputs": outputs,
            "properties": properties,
            "widgets_values": widget_values(info, source["inputs"]),
        }
    for key, source in api.items():
        for name, value in source["inputs"].items():
            if not isinstance(value, list):
                continue
            origin, slot = value
            link = len(links) + 1
            target = next(i for i, s in enumerate(nodes[key]["inputs"]) if s["name"] == name)
            nodes[key]["inputs"][target]["link"] = link
            output = nodes[origin]["outputs"][slot]
            output["links"].append(link)
            links.append([link, keys[origin], slot, keys[key], target, output["type"]])
    columns: dict[int, float] = {}
    for order, key in enumerate(sorted(api, key=lambda k: (depth_of(api, k, depths), int(k)))):
        column = depths[key]
        node = nodes[key]
        height = height_of(node)
        node["pos"] = [60 + column * (COLUMN + GAP), 60 + columns.get(column, 0)]
        node["size"] = [COLUMN, height]
        node["order"] = order
        columns[column] = columns.get(column, 0) + height + GAP + 26
    return {
        "id": "00000000-0000-0000-0000-000000000000",
        "revision": 0,
        "last_node_id": max(keys.values()),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def add_note(workflow: dict, text: str) -> None:
    """A note under the sampler's column and the next, where most graphs have room."""
    key = workflow["last_node_id"] + 1
    column = max(2, max(node["pos"][0] for node in workflow["nodes"]) // (COLUMN + GAP) - 2)
    left, width = 60 + column * (COLUMN + GAP), 2 * COLUMN + GAP
    above = [node for node in workflow["nodes"] if left - COLUMN < node["pos"][0] < left + width]
    workflow["last_node_id"] = key
    workflow["nodes"].append(
        {
            "id": key,
            "type": NOTE,
            "title": "Note",
            "pos": [left, max((node["pos"][1] + node["size"][1] for node in above), default=60) + GAP + 26],
            "size": [width, 60 + 30 * text.count("\n") + 20 * (len(text) // 100)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [text],
        }
    )


def twin(api: dict, spec: dict) -> dict:
    """The same graph with other nodes (``replace``), files (``files``, by the demo file's name) and values (``set``).

    outputs: "node.slot" → the slot of the node that replaces it. drop: nodes to leave out, which nothing may then use.

    Raises ValueError when the spec names an input that the graph does not have.
    """
    graph = copy.deepcopy(api)
    for key, node in spec.get("replace", {}).items():
        graph[key] = copy.deepcopy(node)
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                moved = spec.get("outputs", {}).get(f"{value[0]}.{value[1]}")
                node["inputs"][name] = [value[0], moved] if moved is not None else value
            else:
                node["inputs"][name] = spec.get("files", {}).get(value, value) if isinstance(value, str) else value
    for place, value in spec.get("set", {}).items():
        key, _, name = place.partition(".")
        if name not in graph.get(key, {}).get("inputs", {}):
            raise ValueError(f"The twin sets {place}, which the workflow does not have.")
        graph[key]["inputs"][name] = value
    for key in spec.get("drop", ()):
        del graph[key]
    return graph


def link_inputs(source: dict, nodes: dict[int, dict], links: list[dict], object_info: dict) -> dict[str, dict]:
    """Link the subgraph's inputs to the nodes' own; label → {"type", "links", "widget": whether it is one, "tall"}.

    Entries of one label are one input that sets all of them.
    """
    labels: dict[str, dict] = {}
    for key, entry, label in source["inputs"]:
        node, spec = nodes[int(key)], inputs_of(object_info[source["graph"][key]["class_type"]])[entry]
        found = next((i for i, each in enumerate(node["inputs"]) if each["name"] == entry), None)
        if found is None:
            found = len(node["inputs"])
            node["inputs"].append(socket(entry, spec))
        slot, link = node["inputs"][found], len(links) + 1
        tall = len(spec) > 1 and bool(spec[1].get("multiline"))
        shown = labels.setdefault(label, {"type": slot["type"], "links": [], "widget": "widget" in slot, "tall": tall})
        links.append({"id": link, "origin_id": -10, "origin_slot": list(labels).index(label),
                      "target_id": node["id"], "target_slot": found, "type": slot["type"]})  # fmt: skip
        slot["link"] = link
        shown["links"].append(link)
    return labels


def blueprint(name: str, source: dict, object_info: dict, models: dict[str, list]) -> dict:
    """A workflow of one subgraph node, as the front end keeps blueprints.

    source: ``graph`` in API form, ``inputs`` as [node, input, label] in the order they are shown, ``output`` as
    [node, slot, label], ``description`` and ``aliases``.
    """
    inner = build(source["graph"], object_info, models)
    nodes = {node["id"]: node for node in inner["nodes"]}
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
        for link in inner["links"]
    ]
    ours = uuid.uuid5(uuid.NAMESPACE_URL, f"pixart-nodes/subgraphs/{name}")
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values()) + GAP
    labels = link_inputs(source, nodes, links, object_info)
    slots = [
        {"id": str(uuid.uuid5(ours, label)), "name": label, "type": shown["type"], "linkIds": shown["links"],
         "pos": [0, 80 + 20 * row]}
        for row, (label, shown) in enumerate(labels.items())
    ]  # fmt: skip
    sockets = [
        {"name": label, "type": shown["type"], "link": None, **({"widget": {"name": label}} if shown["widget"] else {})}
        for label, shown in labels.items()
    ]
    key, slot, label = source["output"]
    kind = nodes[int(key)]["outputs"][slot]["type"]
    link = len(links) + 1
    links.append({"id": link, "origin_id": int(key), "origin_slot": slot, "target_id": -20, "target_slot": 0,
                  "type": kind})  # fmt: skip
    nodes[int(key)]["outputs"][slot]["links"].append(link)
    definition = {
        "id": str(ours),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": link, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "description": source["description"],
        "inputNode": {"id": -10, "bounding": [-160, 60, 120, 40 + 20 * len(slots)]},
        "outputNode": {"id": -20, "bounding": [right, 60, 120, 60]},
        "inputs": slots,
        "outputs": [{"id": str(uuid.uuid5(ours, f"out {label}")), "name": label, "type": kind, "linkIds": [link],
                     "pos": [right, 80]}],
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": links,
        "extra": {},
    }  # fmt: skip
    holder = {
        "id": max(nodes) + 1,
        "type": str(ours),
        "title": name,
        "pos": [60, 60],
        "size": [COLUMN + 60, 60 + 26 * len(labels) + TALL_TEXT * sum(shown["tall"] for shown in labels.values())],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": label, "type": kind, "links": []}],
        # No proxyWidgets: the links show the widgets by themselves, and ComfyUI 0.14's front end drops those whose
        # label is the widget's own name when both are there.
        "properties": {},
        "widgets_values": [],
    }
    return {
        "revision": 0,
        "last_node_id": holder["id"],
        "last_link_id": 0,
        "nodes": [holder],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {"BlueprintDescription": source["description"], "BlueprintSearchAliases": source["aliases"]},
    }


def write(path: Path, data: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="address of a running ComfyUI with this pack")
    parser.add_argument("names", nargs="*", help="workflows to write; default all")
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.server}/object_info") as answer:
        object_info = json.load(answer)
    folder = ROOT / "workflows"
    extras = json.loads((ROOT / "tools" / "workflow_extras.json").read_text(encoding="utf-8"))
    sources = sorted((folder / "api").glob("*.json"))
    if both := extras["twins"].keys() & {path.stem for path in sources}:
        raise SystemExit(f"{', '.join(both)}: a twin and a workflow of its own in workflows/api. Rename one.")
    for path in sources:
        if args.names and path.stem not in args.names:
            continue
        api = json.loads(path.read_text(encoding="utf-8"))
        forms = {path.stem: api}
        forms |= {name: twin(api, spec) for name, spec in extras["twins"].items() if spec["of"] == path.stem}
        for name, graph in forms.items():
            workflow = build(graph, object_info, extras["models"])
            if name in extras["notes"]:
                add_note(workflow, "\n".join(extras["notes"][name]))
            write(folder / f"{name}.json", workflow)
    for path in sorted((ROOT / "tools" / "blueprints").glob("*.json")):
        if not args.names or path.stem in args.names:
            source = json.loads(path.read_text(encoding="utf-8"))
            write(ROOT / "subgraphs" / path.name, blueprint(path.stem, source, object_info, extras["models"]))


if __name__ == "__main__":
    main()
