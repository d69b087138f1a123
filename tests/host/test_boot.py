"""The pack in a running ComfyUI, as a user of a fresh installation gets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from tools.comfyui import PACK_FOLDER

ROOT = Path(__file__).resolve().parents[2]

CONTRACT = {
    "PixArtLoadCheckpoint": ("ckpt_name", "weight_dtype", "variant"),
    "PixArtLoadT5": ("t5_name", "dtype", "device"),
    "PixArtTextEncode": ("clip", "text", "max_tokens", "clean_caption"),
    "PixArtNullCaption": ("model",),
    "PixArtSizeConditioning": ("conditioning", "width", "height"),
    "PixArtSaveCaption": ("conditioning", "filename_prefix"),
    "PixArtLoadCaption": ("caption_name",),
    "PixArtResolution": ("base", "ratio", "batch_size"),
    "PixArtNearestResolution": ("width", "height", "base", "batch_size"),
    "PixArtKVCompression": ("model", "sampling", "ratio", "first_block", "last_block", "min_tokens"),
    "PixArtLoadControlNet": ("control_net_name",),
    "PixArtLoadLora": ("model", "clip", "lora_name", "strength_model", "strength_clip"),
    "PixArtLoadDreamBooth": ("model", "ckpt_name", "strength"),
    "PixArtStepCache": ("model", "method"),
    "PixArtFewStep": ("model", "method", "steps"),
    "PixArtReferenceSampling": ("method", "steps", "denoise"),
    "PixArtGuidanceInterval": ("model", "start_percent", "end_percent"),
    "PixArtDynamicThresholding": ("model", "mode", "percentile"),
    "PixArtUpscaleLatent": ("latent",),
    "PixArtPromptSet": ("file", "category", "limit"),
    "PixArtContactSheet": ("images", "labels", "columns"),
    "PixArtTrainLora": ("model", "clip", "vae", "images", "captions"),
    "PixArtModelInfo": ("model",),
}
"""Every id that the pack may register, and the inputs that saved workflows rely on."""

INSTALLED_BY_EXTRAMODELS = (
    "PixArtCheckpointLoader",
    "PixArtCheckpointLoaderSimple",
    "PixArtResolutionSelect",
    "PixArtLoraLoader",
    "PixArtT5TextEncode",
    "PixArtResolutionCond",
    "PixArtControlNetCond",
    "PixArtT5FromSD3CLIP",
    "T5v11Loader",
    "T5TextEncode",
)


SOURCE = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "nodes").glob("*.py")))
WRITTEN = [node_id for node_id in CONTRACT if f'node_id="{node_id}"' in SOURCE]
"""Those that this version has: ids are literals in the source, where registries look for them too."""


@pytest.fixture(scope="module")
def ours(server) -> dict[str, dict]:
    """What the running host tells about the nodes that come from the pack."""
    nodes = server.get_json("/object_info")
    return {name: info for name, info in nodes.items() if info["python_module"] == f"custom_nodes.{PACK_FOLDER}"}


def inputs(info: dict) -> dict[str, list]:
    return {name: spec for group in ("required", "optional") for name, spec in info["input"].get(group, {}).items()}


def test_the_log_reports_no_trouble_with_the_pack(server):
    log = server.log_text()
    place = rf"[^\n]*custom_nodes[/\\]{PACK_FOLDER}"
    assert re.search(rf"seconds: {place}\r?\n", log), server.log_tail()
    assert not re.search(rf"IMPORT FAILED\S*: {place}", log)
    assert not re.search(rf"Error while calling comfy_entrypoint in {place}", log)
    assert not re.search(rf'File "{place}', log), "a traceback passes through the pack"


def test_what_the_source_defines_is_what_the_host_lists(ours):
    assert sorted(ours) == sorted(WRITTEN)


def test_the_loaders_and_the_prompt_are_there(ours):
    assert {"PixArtLoadCheckpoint", "PixArtLoadT5", "PixArtTextEncode"} <= set(ours)


def test_no_id_outside_the_contract_is_registered(ours):
    assert set(ours) - set(CONTRACT) == set()


def test_no_id_of_the_other_pixart_pack_is_taken(server):
    assert set(INSTALLED_BY_EXTRAMODELS) & set(server.get_json("/object_info")) == set()


@pytest.mark.parametrize("node_id", WRITTEN)
def test_a_node_keeps_its_inputs_and_explains_itself(ours, node_id):
    info = ours[node_id]
    found = inputs(info)
    assert [name for name in CONTRACT[node_id] if name not in found] == []
    assert info["category"].split("/")[0] == "PixArt"
    assert info["display_name"].startswith("PixArt ")
    assert info["description"].strip()
    assert [name for name, spec in found.items() if len(spec) < 2 or not spec[1].get("tooltip")] == []
    assert info["search_aliases"]


def test_the_demo_models_can_be_chosen(ours, server):
    demo = {path.name for path in (ROOT / "demo").glob("pixart-demo-*.safetensors")}
    assert demo, "demo/ holds no models"
    nodes = server.get_json("/object_info")
    offered = set()
    loaders = {"PixArtLoadCheckpoint": "ckpt_name", "PixArtLoadT5": "t5_name", "VAELoader": "vae_name"}
    for node_id, name in loaders.items():
        offered |= set(choices(inputs(nodes[node_id])[name]))
    assert demo - offered == set()


def choices(spec: list) -> list[str]:
    """The options of a combo, in either of the two ways in which hosts write them."""
    return spec[0] if isinstance(spec[0], list) else spec[1]["options"]


def test_every_script_of_the_front_end_extension_is_served(server):
    scripts = [path.relative_to(ROOT / "js").as_posix() for path in sorted((ROOT / "js").rglob("*.js"))]
    listed = server.get_json("/extensions")
    assert [script for script in scripts if f"/extensions/{PACK_FOLDER}/{script}" not in listed] == []
    assert sum(PACK_FOLDER in script for script in listed) == len(scripts)


def test_help_pages_are_served(server):
    for page in sorted((ROOT / "js" / "docs").rglob("*.md")):
        route = quote(f"/extensions/{PACK_FOLDER}/{page.relative_to(ROOT / 'js').as_posix()}")
        assert server.get(route) == page.read_bytes()


def test_translations_are_served(server):
    served = server.get_json("/i18n")
    for file in sorted((ROOT / "locales").glob("*/nodeDefs.json")):
        translated = json.loads(file.read_text(encoding="utf-8"))
        nodes = served[file.parent.name]["nodeDefs"]
        assert {name: nodes.get(name) for name in translated} == translated


def test_every_workflow_is_a_template(server):
    files = sorted((ROOT / "workflows").glob("*.json"))
    assert files, "workflows/ holds no template"
    assert sorted(server.get_json("/workflow_templates")[PACK_FOLDER]) == [file.stem for file in files]
    for file in files:
        served = server.get(f"/api/workflow_templates/{PACK_FOLDER}/{quote(file.name)}")
        assert served == file.read_bytes()
        assert server.get(f"/api/workflow_templates/{PACK_FOLDER}/{quote(file.stem)}.jpg")[:2] == b"\xff\xd8"
