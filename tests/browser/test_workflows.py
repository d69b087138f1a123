"""Every workflow and blueprint of the pack, and old ones of another pack, opened in the front end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from front_end import FrontEnd
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
OLD = ROOT / "tests" / "data" / "extramodels"
LANGUAGES = ("zh", "ja", "ko")

TYPES = "() => app.graph.nodes.map(node => node.type)"
LOAD = "data => app.loadGraphData(data)"
LABELS = """type => {
    const node = LiteGraph.createNode(type);
    const widgets = (node.widgets ?? []).filter(widget => widget.serialize !== false);
    return {
        title: node.title,
        inputs: Object.fromEntries([...node.inputs ?? [], ...widgets]
            .map(each => [each.name, each.label ?? each.name])),
    };
}"""


def pack_nodes() -> list[str]:
    return sorted(json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes-2.0"])
def test_every_workflow_opens_whole(front_end: FrontEnd, nodes_2: bool):
    front_end.open({"Comfy.VueNodes.Enabled": nodes_2, "Comfy.Locale": "en",
                    "Comfy.Workflow.ShowMissingModelsWarning": False})  # fmt: skip
    for name in WORKFLOWS:
        data = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        front_end.page.evaluate(LOAD, data)
        front_end.page.wait_for_function(f"() => app.graph.nodes.length === {len(data['nodes'])}")
        assert front_end.unknown_nodes() == [], name
        front_end.page.wait_for_timeout(300)
        front_end.screenshot(front_end.pictures / f"{name}-{'nodes-2.0' if nodes_2 else 'canvas'}.png")
    assert front_end.errors == []


def test_blueprints_are_offered_and_hold_only_known_nodes(front_end: FrontEnd):
    front_end.open({"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en"})
    page = front_end.page
    for path in sorted((ROOT / "subgraphs").glob("*.json")):
        page.evaluate(LOAD, json.loads(path.read_text(encoding="utf-8")))
        page.wait_for_function("() => app.graph.nodes.length === 1 && app.graph.nodes[0].subgraph")
        inner = page.evaluate("() => app.graph.nodes[0].subgraph.nodes.map(node => [node.type, !!node.has_errors])")
        assert [kind for kind, broken in inner if broken] == []
        shown = page.evaluate("() => app.graph.nodes[0].widgets.map(widget => widget.label ?? widget.name)")
        assert {"prompt", "ratio", "checkpoint"} <= set(shown)
        queued = page.evaluate("async () => (await app.graphToPrompt()).output")
        assert {node["class_type"] for node in queued.values()} >= {"PixArtTextEncode", "PixArtResolution", "KSampler"}
        front_end.screenshot(front_end.pictures / f"blueprint-{path.stem}.png")
    assert front_end.errors == []


@pytest.mark.parametrize("name", ["sigma", "alpha_reference", "simple"])
def test_an_old_workflow_is_replaced_and_draws(front_end: FrontEnd, name: str):
    front_end.open({"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en", "Comfy.NodeReplacement.Enabled": True})
    page = front_end.page
    page.evaluate(LOAD, json.loads((OLD / f"{name}.json").read_text(encoding="utf-8")))
    page.get_by_role("button", name="View details").click(timeout=60_000)
    page.get_by_role("button", name=re.compile("Replace All|Replace Node")).first.click(timeout=60_000)
    page.wait_for_function(f"() => !({TYPES})().some(type => /^(PixArtCheckpointLoader|T5)/.test(type))")
    assert front_end.unknown_nodes() == []
    expect(page.locator(".pixart-tokens")).to_have_count(2)
    expect(page.locator("textarea").locator("visible=true")).to_have_count(2)
    values = page.evaluate("""() => Object.fromEntries(app.graph.nodes.filter(node => node.type.startsWith("PixArt"))
        .map(node => [node.type, node.widgets.filter(w => w.serialize !== false).map(w => w.value)]))""")
    assert values["PixArtLoadCheckpoint"] == ["pixart-demo-sigma.safetensors", "auto", "auto"]
    if name == "sigma":
        page.wait_for_function(
            "() => app.graph.nodes.find(n => n.type === 'PixArtResolution').widgets[0].value === '512'"
        )
        assert page.locator(".pixart-aspect").inner_text().startswith("384 × 672")
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
            if label != expected[kind]["inputs"].get(name, {}).get("name"):
                english.append(f"{kind}.{name}: {label}")
    assert english == []
    front_end.page.evaluate("() => { app.graph.clear(); }")
    front_end.page.evaluate("""() => { ["PixArtResolution", "PixArtTextEncode", "PixArtLoadT5"].forEach((type, i) => {
        const node = LiteGraph.createNode(type); node.pos = [100 + 420 * i, 200]; app.graph.add(node); }); }""")
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["pixart"]
    size = words["size"].replace("%width%", "1024").replace("%height%", "1024").replace("%tokens%", "4096")
    expect(front_end.page.locator(".pixart-aspect")).to_contain_text(size)
    assert front_end.errors == []
