"""What a user is shown when a ControlNet does not belong, is none, or lacks its VAE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from front_end import DRAWING, FrontEnd
from playwright.sync_api import expect
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tools.comfyui import Server

ROOT = Path(__file__).resolve().parents[2]
CONTROL = ROOT / "demo" / "pixart-demo-controlnet.safetensors"
LOADER, APPLY, SAMPLERS = "11", "13", ("7", "14")


@pytest.fixture(scope="module")
def files(server: Server) -> Path:
    """In the server's models/controlnet: the demo's as if trained on α, and one with Stable Diffusion's names."""
    folder = server.base / "models" / "controlnet"
    folder.mkdir(parents=True, exist_ok=True)
    with safe_open(CONTROL, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(CONTROL), folder / "for-alpha.safetensors", {**metadata, "pixart.family": "alpha"})
    names = ("input_hint_block.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.weight")
    save_file({f"control_model.{name}": torch.zeros(4, 4) for name in names}, folder / "for-sd.safetensors")
    return folder


def wrong_base(graph: dict) -> None:
    graph[LOADER]["inputs"]["control_net_name"] = "for-alpha.safetensors"


def wrong_file(graph: dict) -> None:
    graph[LOADER]["inputs"]["control_net_name"] = "for-sd.safetensors"


def no_vae(graph: dict) -> None:
    del graph[APPLY]["inputs"]["vae"]


CASES = {
    "wrong-base": (wrong_base, ("for-alpha.safetensors is for PixArt-α", "pixart-demo-sigma.safetensors is PixArt-Σ")),
    "wrong-file": (wrong_file, ("for-sd.safetensors", "Choose a PixArt ControlNet.")),
    "no-vae": (no_vae, ("needs a VAE",)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_error_is_shown_where_the_user_looks(front_end: FrontEnd, files: Path, case: str):
    change, told = CASES[case]
    graph = json.loads((ROOT / "workflows" / "api" / "controlnet.json").read_text(encoding="utf-8"))
    for sampler in SAMPLERS:
        graph[sampler]["inputs"]["steps"] = 2
    change(graph)
    front_end.open({"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en"})
    front_end.page.evaluate("graph => app.loadApiJson(graph, 'controlnet')", graph)
    front_end.page.wait_for_function(f"() => app.graph.nodes.length === {len(graph)}")
    front_end.run()
    front_end.page.get_by_role("button", name="View details").click(timeout=DRAWING)
    front_end.screenshot(front_end.pictures / f"controlnet-{case}.png")
    for words in told:
        expect(front_end.page.get_by_text(words).locator("visible=true").first).to_be_visible()
    assert front_end.errors == []
