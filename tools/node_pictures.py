"""``python tools/node_pictures.py http://127.0.0.1:8188``: a picture of every node, for the help pages.

Opens a running ComfyUI in a Chromium (see tools/test.py), puts each node of the pack on an empty canvas, and writes
js/docs/<id>/node.png, and node.zh.png in Chinese. Help pages show them as ``![name](<id>/node.png)``: the front end
resolves that from js/docs/. Ids after the address limit what is taken.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tools.environment import ROOT, say
from tools.test import find_browser

PICTURES = {"en": "node.png", "zh": "node.zh.png"}
"""Language of the front end → name of the picture: a language that has help pages of its own has pictures too."""

READY = "() => window.app?.vueAppReady && window.app.extensionManager?.workflow?.activeWorkflow"
PLACE = """([type, number]) => {
    app.graph.clear();
    // A new number each time: the front end (1.49) keeps widgets' values by it, and would show the last node's.
    app.graph.state.lastNodeId = number;
    const node = LiteGraph.createNode(type);
    node.pos = [300, 200];
    // Wide enough for its title, which the canvas cuts otherwise.
    node.setSize([Math.max(node.size[0], 240), node.size[1]]);
    app.graph.add(node);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 0];
    app.canvas.setDirty(true, true);
    const box = app.canvas.canvas.getBoundingClientRect();
    const models = {
        ckpt_name: "pixart-demo-sigma.safetensors",
        t5_name: "pixart-demo-t5.safetensors",
        control_net_name: "pixart-demo-controlnet.safetensors",
    };
    for (const widget of node.widgets ?? []) {
        // A LoRA of the user's, where there is one: the demo's other files are no LoRAs.
        const own = widget.name === "lora_name" && widget.options?.values?.find?.(name => !name.startsWith("pixart-"));
        const file = own || models[widget.name];
        if (file) { widget.value = file; widget.callback?.(file); }
    }
    return {x: box.x + 284, y: box.y + 154, width: node.size[0] + 32, height: node.size[1] + 62};
}"""


def open_page(page: Page, address: str, language: str) -> None:
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False, "Comfy.Locale": language,
                "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}  # fmt: skip
    for name, value in settings.items():
        page.request.post(f"{address}/settings/{name}", data=json.dumps(value))
    page.goto(address, timeout=180_000)
    page.wait_for_function(READY, timeout=180_000)


def main() -> int:
    address, *wanted = sys.argv[1:]
    nodes = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport={"width": 1200, "height": 1000}).new_page()
        for language, name in PICTURES.items():
            open_page(page, address, language)
            for number, node_id in enumerate(wanted or nodes, start=1):
                clip = page.evaluate(PLACE, [node_id, number])
                page.wait_for_timeout(1200)
                picture = Image.open(io.BytesIO(page.screenshot(clip=clip)))
                target = ROOT / "js" / "docs" / node_id / name
                picture.convert("RGB").quantize(64).save(target, optimize=True)
                say(f"{target.relative_to(ROOT)}: {target.stat().st_size} bytes")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
