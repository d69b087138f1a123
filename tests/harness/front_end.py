"""ComfyUI's front end in a real browser, driven as a user does: dialogs, buttons, pictures under nodes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, expect

from tools.comfyui import PACK_FOLDER

PICTURES = Path(__file__).resolve().parents[2] / "output" / "browser"
LOADING = 180_000  # ms; the front end is some megabytes of scripts and may share one core with the server
DRAWING = 300_000  # ms

NODES_2 = pytest.param(True, id="nodes-2.0")
RENDERERS = pytest.mark.parametrize("nodes_2", [pytest.param(False, id="canvas"), NODES_2])
OLDEST_TOO = pytest.mark.parametrize("nodes_2", [pytest.param(False, id="canvas", marks=pytest.mark.oldest), NODES_2])
"""A test in both renderers; and one whose canvas half is also for the oldest host's front end."""

# The front end writes down an unsaved workflow a moment after it was changed.
NOTED = """text => Object.entries(localStorage)
    .some(([key, value]) => key.startsWith("Comfy.Workflow.Draft") && value.includes(text))"""
READY = "() => window.app?.vueAppReady && window.app.extensionManager?.workflow?.activeWorkflow"
# The canvas keeps a node's pictures in node.imgs; Nodes 2.0 shows them as elements.
PICTURE = """type => window.app.graph.nodes
    .filter(node => node.type === type)
    .map(node => node.imgs?.[0] ?? document.querySelector(`[data-node-id="${node.id}"] img`))
    .find(image => image?.naturalWidth)?.src"""
UNKNOWN_NODES = """() => window.app.graph.nodes
    .filter(node => node.has_errors || !(node.comfyClass || node.isVirtualNode))
    .map(node => node.type)"""


class FrontEnd:
    """One browser tab. ``errors`` holds what went wrong in it so far, as text."""

    def __init__(self, page: Page, url: str):
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.pictures = PICTURES
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self.note)

    def note(self, message: ConsoleMessage) -> None:
        """Keep the console's errors that have to do with the pack; the host's own are not ours to mend."""
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and PACK_FOLDER in text:
            self.errors.append(text)

    def open(self, settings: dict[str, bool | str] | None = None) -> None:
        """Load the page, with these settings as the user's, without the tour for newcomers and with no panel open."""
        quiet = {"Comfy.TutorialCompleted": True, "Comfy.RightSidePanel.IsOpen": False}
        for name, value in {**quiet, **(settings or {})}.items():
            answer = self.page.request.post(
                f"{self.url}/settings/{name}", data=json.dumps(value), headers={"Content-Type": "application/json"}
            )
            expect(answer).to_be_ok()
        self.page.goto(self.url, timeout=LOADING)
        self.page.wait_for_function(READY, timeout=LOADING)

    def reload(self, last: str) -> None:
        """Load the page anew, as F5 does; the front end opens the workflows again that were open.

        last: what the last change has put into the workflow, which must have been written down before.
        """
        self.page.wait_for_function(NOTED, arg=last, timeout=LOADING)
        self.page.reload(timeout=LOADING)
        self.page.wait_for_function(READY, timeout=LOADING)

    def command(self, name: str) -> None:
        """Run one of the front end's own commands, which menus and shortcuts are bound to."""
        self.page.evaluate("name => { window.app.extensionManager.command.execute(name); }", name)

    def remember(self) -> None:
        """Let the front end note the workflow as it is, as the next thing that an undo goes back to."""
        self.page.evaluate("""() => {
            const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
            (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
        }""")

    def open_template(self, name: str) -> None:
        """Choose one of the pack's workflows in the Templates dialog, and wait until it is loaded."""
        self.command("Comfy.BrowseTemplates")
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(PACK_FOLDER, exact=True).first.click(timeout=LOADING)
        dialog.get_by_test_id(f"template-workflow-{name}").click(timeout=LOADING)
        expect(dialog).to_have_count(0, timeout=LOADING)

    def unknown_nodes(self) -> list[str]:
        """Types of the nodes in the open workflow that neither the host nor the front end itself knows."""
        return self.page.evaluate(UNKNOWN_NODES)

    def node_types(self) -> list[str]:
        return self.page.evaluate("() => window.app.graph.nodes.map(node => node.type)")

    def run(self) -> None:
        """Press the button that queues the open workflow."""
        self.page.get_by_test_id("queue-button").click(timeout=LOADING)

    def picture(self, node_type: str) -> Image.Image:
        """Wait for the picture under a node, and fetch it from where the page has it."""
        source = self.page.wait_for_function(PICTURE, arg=node_type, timeout=DRAWING).json_value()
        return Image.open(io.BytesIO(self.page.request.get(source).body())).convert("RGB")

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)
