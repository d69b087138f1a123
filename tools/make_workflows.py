"""Writes workflows/NAME.json (what people open) from workflows/api/NAME.json (what scripts run).

The API form says what is connected to what; a running ComfyUI's /object_info says what every widget is called
and in which order it is saved. Nodes are laid out in columns by their distance from the loaders.

    python tools/make_workflows.py http://127.0.0.1:8188
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN, GAP = 320, 30
NOTE = "MarkdownNote"


def is_widget(spec: list) -> bool:
    """Whether an input of object_info is a widget and not a socket."""
    return isinstance(spec[0], list) or spec[0] in WIDGET_TYPES


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
        values.append(options.get("default") if value is None or isinstance(value, list) else value)
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
    tall = {"PixArtTextEncode": 90, "SaveImage": 300, "PreviewImage": 300}.get(node["type"], 0)
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
            {"name": name, "type": spec[0], "link": None} | ({"widget": {"name": name}} if is_widget(spec) else {})
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
    """A note under the sampler's column, where most graphs have room."""
    key = workflow["last_node_id"] + 1
    column = max(2, max(node["pos"][0] for node in workflow["nodes"]) // (COLUMN + GAP) - 2)
    left = 60 + column * (COLUMN + GAP)
    below = [node["pos"][1] + node["size"][1] for node in workflow["nodes"] if node["pos"][0] == left]
    workflow["last_node_id"] = key
    workflow["nodes"].append(
        {
            "id": key,
            "type": NOTE,
            "title": "Note",
            "pos": [left, max(below, default=60) + GAP + 26],
            "size": [2 * COLUMN + GAP, 330],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [text],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="address of a running ComfyUI with this pack")
    parser.add_argument("names", nargs="*", help="workflows to write; default all")
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.server}/object_info") as answer:
        object_info = json.load(answer)
    folder = ROOT / "workflows"
    extras = json.loads((ROOT / "tools" / "workflow_extras.json").read_text(encoding="utf-8"))
    for path in sorted((folder / "api").glob("*.json")):
        if args.names and path.stem not in args.names:
            continue
        workflow = build(json.loads(path.read_text(encoding="utf-8")), object_info, extras["models"])
        if path.stem in extras["notes"]:
            add_note(workflow, "\n".join(extras["notes"][path.stem]))
        text = json.dumps(workflow, indent=2, ensure_ascii=False)
        (folder / f"{path.stem}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
