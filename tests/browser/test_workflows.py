"""Every workflow and blueprint of the pack, and old ones of another pack, opened in the front end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from front_end import OLDEST_TOO, FrontEnd
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
OLD = ROOT / "tests" / "data" / "extramodels"
LANGUAGES = ("zh", "ja", "ko")

UNREGISTERED = """() => app.graph.nodes.map(node => node.type)
    .filter(type => !LiteGraph.registered_node_types[type])"""
TYPES = "() => app.graph.nodes.map(node => node.type)"
LOAD = "data => app.loadGraphData(data)"
VALUES = """() => Object.fromEntries(app.graph.nodes.filter(node => node.type.startsWith("PixArt"))
    .map(node => [node.type, node.widgets.filter(each => each.serialize !== false).map(each => each.value)]))"""
LABELS = """type => {
    const node = LiteGraph.createNode(type);
    const widgets = (node.widgets ?? []).filter(widget => widget.serialize !== false);
    return {
        title: node.title,
        outputs: (node.outputs ?? []).map(each => each.label ?? each.localized_name ?? each.name),
        inputs: Object.fromEntries([...node.inputs ?? [], ...widgets]
            .map(each => [each.name, each.label ?? each.localized_name ?? each.name])),
    };
}"""

THREE = """() => ["PixArtResolution", "PixArtTextEncode", "PixArtLoadT5"].forEach((type, index) => {
    const node = LiteGraph.createNode(type);
    node.pos = [100 + 420 * index, 200];
    app.graph.add(node);
    if (type !== "PixArtLoadT5") return;
    const file = node.widgets.find(widget => widget.name === "t5_name");
    file.value = "pixart-demo-t5.safetensors";
    file.callback?.(file.value);
})"""


def pack_nodes() -> list[str]:
    return sorted(json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")))


@OLDEST_TOO
def test_every_workflow_opens_whole(front_end: FrontEnd, nodes_2: bool):
    front_end.open({"Comfy.VueNodes.Enabled": nodes_2, "Comfy.Locale": "en",
                    "Comfy.Workflow.ShowMissingModelsWarning": False})  # fmt: skip
    for name in WORKFLOWS:
        data = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        front_end.page.evaluate(LOAD, data)
        front_end.page.wait_for_function(f"() => app.graph.nodes.length === {len(data['nodes'])}")
        assert front_end.page.evaluate(UNREGISTERED) == [], name
        front_end.page.wait_for_timeout(300)
        front_end.screenshot(front_end.pictures / f"{name}-{'nodes-2.0' if nodes_2 else 'canvas'}.png")
    assert front_end.errors == []


BLUEPRINTS = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json"))
SHOWN = "() => app.graph.nodes[0].widgets.map(widget => widget.label ?? widget.name)"
CHOOSE = """([label, value]) => {
    const widget = app.graph.nodes[0].widgets.find(each => (each.label ?? each.name) === label);
    widget.value = value;
    widget.callback?.(value);
}"""
CHOSEN = {
    "prompt": "a star", "negative prompt": "blur", "seed": 7, "steps": 3, "cfg": 2.5, "enlarge": 1.5, "strength": 0.5,
    "checkpoint": "pixart-demo-sigma.safetensors", "base": "512",
}  # fmt: skip


@pytest.mark.oldest
def test_blueprints_are_one_node_whose_widgets_reach_the_nodes_inside(front_end: FrontEnd):
    front_end.open({"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en"})
    page = front_end.page
    assert len(BLUEPRINTS) == 3
    for name in BLUEPRINTS:
        source = json.loads((ROOT / "tools" / "blueprints" / f"{name}.json").read_text(encoding="utf-8"))
        page.evaluate(LOAD, json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8")))
        page.wait_for_function("() => app.graph.nodes.length === 1 && app.graph.nodes[0].subgraph")
        inner = page.evaluate("() => app.graph.nodes[0].subgraph.nodes.map(node => [node.type, !!node.has_errors])")
        assert [kind for kind, broken in inner if broken] == []
        labels = list(dict.fromkeys(label for _, entry, label in source["inputs"] if entry != "image"))
        assert page.evaluate(SHOWN) == labels, name
        assert page.evaluate("() => app.graph.nodes[0].size[1]") < 900, "its text fields have grown out of hand"
        chosen = {label: value for label, value in CHOSEN.items() if label in labels}
        for label, value in chosen.items():
            page.evaluate(CHOOSE, [label, value])
        queued = page.evaluate("async () => (await app.graphToPrompt()).output")
        holder = page.evaluate("() => app.graph.nodes[0].id")
        reached = {
            (label, queued[f"{holder}:{key}"]["inputs"][entry])
            for key, entry, label in source["inputs"]
            if label in chosen
        }
        assert reached == set(chosen.items()), name
        front_end.screenshot(front_end.pictures / f"blueprint-{name}.png")
    assert front_end.errors == []


def test_old_workflows_are_replaced_and_draw(front_end: FrontEnd):
    front_end.open({"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en", "Comfy.NodeReplacement.Enabled": True})
    page = front_end.page
    for name in ("alpha_reference", "simple", "sigma"):
        page.evaluate(LOAD, json.loads((OLD / f"{name}.json").read_text(encoding="utf-8")))
        replace = page.get_by_role("button", name="Replace All")
        details = page.get_by_role("button", name="View details")
        expect(details.or_(replace).first).to_be_visible()
        if details.is_visible():
            details.click()
        replace.click()
        page.wait_for_function(f"() => !({TYPES})().some(type => /^(PixArtCheckpointLoader|T5)/.test(type))")
        assert front_end.unknown_nodes() == [], name
        expect(page.locator(".pixart-tokens")).to_have_count(2)
        values = page.evaluate(VALUES)
        assert values["PixArtLoadCheckpoint"] == ["pixart-demo-sigma.safetensors", "auto", "auto"]
        assert values["PixArtLoadT5"] == ["pixart-demo-t5.safetensors", "auto", "auto"]
        assert values["PixArtTextEncode"][1:] == ([120, True] if name == "alpha_reference" else [300, False])
        if name == "sigma":
            expect(page.locator(".pixart-aspect")).to_contain_text("384 × 672")
            assert values["PixArtResolution"] == ["512", "1.75 portrait · 768 × 1344 at 1024", 1]
        front_end.screenshot(front_end.pictures / f"replaced-{name}.png")
        front_end.run()
        front_end.picture("SaveImage")
    assert front_end.errors == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_speak_the_users_language(front_end: FrontEnd, language: str):
    front_end.open({"Comfy.VueNodes.Enabled": False, "Comfy.Locale": language})
    expected = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    english = []
    for kind in pack_nodes():
        found = front_end.page.evaluate(LABELS, kind)
        if found["title"] != expected[kind]["display_name"]:
            english.append(kind)
        for name, label in found["inputs"].items():
            if name == "control_after_generate":
                continue  # the host's own, put under a seed and named by the host
            if label != expected[kind]["inputs"].get(name, {}).get("name"):
                english.append(f"{kind}.{name}: {label}")
        for slot, output in expected[kind].get("outputs", {}).items():
            if "name" in output and found["outputs"][int(slot)] != output["name"]:
                english.append(f"{kind} output {slot}: {found['outputs'][int(slot)]}")
    assert english == []
    page = front_end.page
    page.evaluate("() => { app.graph.clear(); }")
    page.evaluate(THREE)
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["pixart"]

    def said(key: str, **values: str | int) -> str:
        text = words[key]
        for name, value in values.items():
            text = text.replace(f"%{name}%", str(value))
        return text

    expect(page.locator(".pixart-aspect")).to_contain_text(said("size", width=1024, height=1024, tokens=4096))
    expect(page.locator(".pixart-tokens")).to_contain_text(said("tokens", tokens=1, limit=300))
    badge = ["T5 v1.1", said("blocks", blocks=3), said("width", width=128), "fp16"]
    expect(page.locator(".pixart-badge")).to_have_text(" · ".join(badge))
    assert front_end.errors == []
