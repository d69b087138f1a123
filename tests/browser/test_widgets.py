"""What the pack draws on its nodes, used as people use it: pointing, typing, undoing, copying, saving."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from front_end import OLDEST_TOO, RENDERERS, FrontEnd
from playwright.sync_api import Locator, expect

from pixart.text.captions import Caption, save_caption
from tools.comfyui import Server

ROOT = Path(__file__).resolve().parents[2]
SQUARE = "1024 × 1024"
LONG = "a small red star on the left, blue background"

ADD = """([type, x, y]) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node.id;
}"""
VALUES = """id => Object.fromEntries(app.graph.getNodeById(id).widgets
    .filter(widget => widget.serialize !== false).map(widget => [widget.name, widget.value]))"""
SET = """([id, name, value]) => {
    const widget = app.graph.getNodeById(id).widgets.find(each => each.name === name);
    widget.value = value;
    widget.callback?.(value);
}"""
# Every second node of the type is a copy; ids change with a reload, positions do not.
IDS = "type => app.graph.nodes.filter(node => node.type === type).map(node => node.id)"


@pytest.fixture
def empty(front_end: FrontEnd, nodes_2: bool) -> FrontEnd:
    front_end.open({"Comfy.VueNodes.Enabled": nodes_2, "Comfy.Locale": "en"})
    front_end.page.evaluate("() => { app.graph.clear(); }")
    return front_end


def add(tab: FrontEnd, kind: str, x: int = 500, y: int = 200) -> int:
    return tab.page.evaluate(ADD, [kind, x, y])


def ratio(tab: FrontEnd, node: int) -> str:
    return tab.page.evaluate(VALUES, node)["ratio"].split()[0]


@OLDEST_TOO
def test_a_shape_is_chosen_by_mouse_and_keys_and_outlives_what_people_do(empty: FrontEnd, nodes_2: bool):
    page = empty.page
    node = add(empty, "PixArtResolution")
    drawing = page.locator(".pixart-aspect")
    expect(drawing).to_contain_text(SQUARE + " · 4096 tokens")
    empty.remember()

    box = drawing.locator("svg").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.click(middle[0] + box["width"] * 0.42, middle[1] - box["height"] * 0.1)
    assert float(ratio(empty, node)) < 0.3
    expect(drawing).to_contain_text(" × 512 · ")

    drawing.press("Home")
    assert ratio(empty, node) == "0.25"
    expect(drawing).to_contain_text("2048 × 512 · 4096 tokens")
    drawing.press("ArrowRight")
    assert ratio(empty, node) == "0.26"
    drawing.press("End")
    assert ratio(empty, node) == "4.0"
    expect(drawing).to_contain_text("512 × 2048")

    empty.command("Comfy.Undo")
    expect(drawing).to_contain_text("1984 × 512")
    empty.command("Comfy.Redo")
    expect(drawing).to_contain_text("512 × 2048")
    (node,) = page.evaluate(IDS, "PixArtResolution")
    page.evaluate(SET, [node, "base", "512"])
    expect(drawing).to_contain_text("256 × 1024 · 1024 tokens")

    page.evaluate("id => { app.graph.getNodeById(id).title = 'My size'; }", node)
    saved = page.evaluate("() => app.graph.serialize()")
    (stored,) = saved["nodes"]
    assert stored["widgets_values"] == ["512", "4.0 portrait · 512 × 2048 at 1024", 1], "only values are saved"
    page.evaluate("data => app.loadGraphData(data)", saved)
    expect(drawing).to_contain_text("256 × 1024")

    page.evaluate("""() => { app.canvas.selectItems(app.graph.nodes);
        app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }""")
    expect(drawing).to_have_count(2)
    expect(drawing.nth(1)).to_contain_text("256 × 1024")
    first, second = page.evaluate(IDS, "PixArtResolution")
    page.evaluate(SET, [second, "ratio", "1.0 square · 1024 × 1024 at 1024"])
    expect(drawing.filter(has_text="512 × 512")).to_have_count(1)
    assert ratio(empty, first) == "4.0", "a copy is a node of its own"

    page.evaluate("""() => { app.canvas.selectItems(app.graph.nodes);
        app.graph.convertToSubgraph(app.canvas.selectedItems); }""")
    expect(drawing.locator("visible=true")).to_have_count(0)
    page.evaluate("() => app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
    expect(drawing.filter(has_text="256 × 1024").locator("visible=true")).to_have_count(1)
    assert empty.errors == []


LOADERS = {
    "PixArtLoadCheckpoint": ("ckpt_name", "pixart-demo-sigma.safetensors", "PixArt-Σ · 128 px · 5 blocks · fp16"),
    "PixArtLoadT5": ("t5_name", "pixart-demo-t5.safetensors", "T5 v1.1 · 3 blocks · 128 wide"),
    "PixArtLoadLora": ("lora_name", "seen-by-tests.safetensors", "LoRA + DoRA · rank 2 · 13 layers"),
    "PixArtLoadControlNet": ("control_net_name", "pixart-demo-controlnet.safetensors", "ControlNet · for PixArt-Σ · "),
    "PixArtLoadDreamBooth": ("ckpt_name", "pixart-demo-alpha.safetensors", "PixArt-α · 128 px · 5 blocks · fp16"),
    "PixArtLoadCaption": ("caption_name", "seen-by-tests.safetensors [input]", "“a star” · 3 tokens · 16 wide · fp32"),
}
"""Loader → the widget that names a file, a file, and what the badge says of it."""

FILE = """([type, number]) => {
    const inner = app.canvas.graph.nodes.filter(node => node.type === type)[number];
    return inner?.widgets.find(widget => /_name$/.test(widget.name)).value;
}"""
RENAME = """([type, title]) => {
    const node = app.graph.nodes.find(each => each.type === type);
    node.title = title;
    node.onPropertyChanged?.("title", title);
    app.graph.setDirtyCanvas(true, true);
}"""
COPY = """() => {
    app.canvas.selectItems(app.graph.nodes);
    app.canvas.copyToClipboard();
    app.canvas.pasteFromClipboard();
}"""
INTO_SUBGRAPH = """() => {
    app.canvas.selectItems(app.graph.nodes);
    app.graph.convertToSubgraph(app.canvas.selectedItems);
    const holder = app.graph.nodes.find(node => node.subgraph);
    app.canvas.openSubgraph(holder.subgraph, holder);
}"""


@pytest.fixture(scope="module")
def files(server: Server) -> None:
    """A LoRA and a caption for the loaders whose kind the demo has no file of."""
    for folder in ("models/loras", "input"):
        (server.base / folder).mkdir(parents=True, exist_ok=True)
    lora = server.base / "models" / "loras" / "seen-by-tests.safetensors"
    shutil.copy(ROOT / "tests" / "data" / "lora" / "dora_out.safetensors", lora)
    save_caption(Caption(torch.zeros(3, 16), prompt="a star"), server.base / "input" / "seen-by-tests.safetensors")


def shown(badges: Locator, said: str, count: int = 1) -> None:
    expect(badges.filter(has_text=said)).to_have_count(count)


@OLDEST_TOO
def test_every_loader_says_what_its_file_is_and_keeps_saying_it(files: None, empty: FrontEnd, nodes_2: bool):
    page, badges = empty.page, empty.page.locator(".pixart-badge")
    for number, (kind, (name, file, _)) in enumerate(LOADERS.items()):
        node = add(empty, kind, 150 + 420 * (number % 3), 150 + 320 * (number // 3))
        page.evaluate(SET, [node, name, file])
    for _, _, said in LOADERS.values():
        shown(badges, said)
    empty.remember()
    empty.screenshot(empty.pictures / f"badges-{'nodes-2.0' if nodes_2 else 'canvas'}.png")

    (node,) = page.evaluate(IDS, "PixArtLoadLora")
    page.evaluate(SET, [node, "lora_name", "pixart-demo-sigma.safetensors"])
    shown(badges.and_(page.locator(".pixart-trouble")), "This is a whole PixArt model, not a LoRA.")
    empty.remember()
    empty.command("Comfy.Undo")
    shown(badges, LOADERS["PixArtLoadLora"][2])

    page.evaluate(RENAME, ["PixArtLoadControlNet", "My edges"])
    shown(badges, LOADERS["PixArtLoadControlNet"][2])
    saved = page.evaluate("() => app.graph.serialize()")
    assert sorted(len(node["widgets_values"]) for node in saved["nodes"]) == [1, 1, 2, 3, 3, 3], "only values are saved"
    page.evaluate("data => app.loadGraphData(data)", saved)
    assert "My edges" in page.evaluate("() => app.graph.nodes.map(node => node.title)")
    for _, _, said in LOADERS.values():
        shown(badges, said)

    page.evaluate(COPY)
    for kind, (_, file, said) in LOADERS.items():
        shown(badges, said, 2)
        assert page.evaluate(FILE, [kind, 1]) == file
    first, second = page.evaluate(IDS, "PixArtLoadDreamBooth")
    page.evaluate(SET, [second, "ckpt_name", "pixart-demo-t5.safetensors"])
    shown(badges, "This is a T5 text encoder")
    shown(badges, LOADERS["PixArtLoadDreamBooth"][2])

    page.evaluate("ids => ids.forEach(id => app.graph.remove(app.graph.getNodeById(id)))", [second])
    page.evaluate(INTO_SUBGRAPH)
    inside = badges.locator("visible=true")
    shown(inside, LOADERS["PixArtLoadDreamBooth"][2])
    shown(inside, LOADERS["PixArtLoadCaption"][2], 2)
    assert empty.errors == []


@RENDERERS
def test_the_count_of_tokens_outlives_what_people_do(empty: FrontEnd, nodes_2: bool):
    page, counter = empty.page, empty.page.locator(".pixart-tokens")
    add(empty, "PixArtTextEncode")
    page.locator("textarea").first.fill(LONG)
    expect(counter).to_contain_text("12 of 300 tokens")
    empty.remember()
    counter.get_by_role("button", name="α 120").focus()
    page.keyboard.press("Enter")
    expect(counter).to_contain_text("12 of 120 tokens")
    empty.remember()
    empty.command("Comfy.Undo")
    expect(counter).to_contain_text("12 of 300 tokens")
    empty.command("Comfy.Redo")
    expect(counter).to_contain_text("12 of 120 tokens")

    page.evaluate(RENAME, ["PixArtTextEncode", "My prompt"])
    saved = page.evaluate("() => app.graph.serialize()")
    assert [node["widgets_values"] for node in saved["nodes"]] == [[LONG, 120, False]], "only values are saved"
    page.evaluate("data => app.loadGraphData(data)", saved)
    expect(counter).to_contain_text("12 of 120 tokens")
    assert page.evaluate("() => app.graph.nodes[0].title") == "My prompt"

    page.evaluate(COPY)
    expect(counter).to_have_count(2)
    _, second = page.evaluate(IDS, "PixArtTextEncode")
    page.evaluate(SET, [second, "max_tokens", 8])
    expect(counter.filter(has_text="12 of 8 tokens")).to_have_count(1)
    expect(counter.filter(has_text="12 of 120 tokens")).to_have_count(1)

    page.evaluate(INTO_SUBGRAPH)
    inside = counter.locator("visible=true")
    expect(inside.filter(has_text="12 of 120 tokens")).to_have_count(1)
    expect(inside.filter(has_text="12 of 8 tokens").locator(".pixart-lost")).to_contain_text("blue background")
    assert empty.errors == []


@RENDERERS
def test_all_three_are_there_again_after_the_page_was_reloaded(empty: FrontEnd, nodes_2: bool):
    page = empty.page
    size, prompt, loader = (
        add(empty, kind, 150 + 420 * number)
        for number, kind in enumerate(("PixArtResolution", "PixArtTextEncode", "PixArtLoadCheckpoint"))
    )
    page.locator(".pixart-aspect").press("End")
    page.locator("textarea").first.fill(LONG)
    expect(page.locator(".pixart-tokens")).to_contain_text("12 of 300 tokens")
    page.evaluate(SET, [loader, "ckpt_name", LOADERS["PixArtLoadCheckpoint"][1]])
    empty.remember()
    empty.reload(LOADERS["PixArtLoadCheckpoint"][1])
    expect(page.locator(".pixart-aspect")).to_contain_text("512 × 2048")
    expect(page.locator(".pixart-tokens")).to_contain_text("12 of 300 tokens")
    shown(page.locator(".pixart-badge"), LOADERS["PixArtLoadCheckpoint"][2])
    assert empty.errors == []


@RENDERERS
def test_tokens_are_counted_by_the_connected_encoder_and_lost_words_shown(empty: FrontEnd, nodes_2: bool):
    page = empty.page
    loader, prompt = add(empty, "PixArtLoadT5", 100), add(empty, "PixArtTextEncode", 560)
    badge, counter = page.locator(".pixart-badge"), page.locator(".pixart-tokens")
    page.evaluate(SET, [loader, "t5_name", "pixart-demo-sigma.safetensors"])
    expect(badge).to_contain_text("not a T5 v1.1 encoder")
    page.evaluate(SET, [loader, "t5_name", "pixart-demo-t5.safetensors"])
    expect(badge).to_contain_text("T5 v1.1 · ")
    page.evaluate("""([from, to]) => app.graph.getNodeById(from).connect(0, app.graph.getNodeById(to), 0)""",
                  [loader, prompt])  # fmt: skip
    page.locator("textarea").first.fill(LONG)
    expect(counter).to_contain_text("12 of 300 tokens")

    counter.get_by_role("button", name="α 120").press("Enter")
    assert page.evaluate(VALUES, prompt)["max_tokens"] == 120
    expect(counter).to_contain_text("12 of 120 tokens")
    counter.get_by_role("button", name="Σ 300").click()
    expect(counter).to_contain_text("12 of 300 tokens")
    page.evaluate(SET, [prompt, "max_tokens", 8])
    expect(counter.locator(".pixart-lost")).to_contain_text("blue background")
    assert page.evaluate(VALUES, prompt) == {"text": LONG, "max_tokens": 8, "clean_caption": False}

    queued = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert set(queued[str(prompt)]["inputs"]) == {"clip", "text", "max_tokens", "clean_caption"}
    page.evaluate(
        "() => { app.canvas.selectItems(app.graph.nodes); "
        "app.graph.convertToSubgraph(new Set([app.graph.nodes.find(n => n.type === 'PixArtTextEncode')])); }"
    )
    page.evaluate("""() => { const holder = app.graph.nodes.find(node => node.subgraph);
        app.canvas.openSubgraph(holder.subgraph, holder); }""")
    page.locator("textarea").locator("visible=true").first.fill("a star")
    expect(counter.filter(has_text="3 of 8 tokens")).to_have_count(1)
    assert empty.errors == []


@pytest.mark.parametrize("nodes_2", [False], ids=["canvas"])
def test_the_doctor_is_in_the_settings_and_says_what_was_found(empty: FrontEnd, nodes_2: bool):
    page = empty.page
    empty.command("Comfy.ShowSettingsDialog")
    settings = page.get_by_role("dialog")
    settings.get_by_placeholder("Search").first.fill("PixArt")
    expect(settings.get_by_text("Count tokens on PixArt Text Encode")).to_be_visible()
    settings.get_by_role("button", name="PixArt doctor").click()
    report = page.locator(".pixart-doctor pre")
    expect(report).to_contain_text("checkpoints/pixart-demo-sigma.safetensors: PixArt-Σ")
    expect(report).to_contain_text("attention: ")
    empty.screenshot(empty.pictures / "doctor.png")
    page.locator(".pixart-doctor").get_by_role("button", name="Close").click()
    expect(page.locator(".pixart-doctor")).to_have_count(0)
    assert empty.errors == []
