"""What the widgets ask a running server, and what it refuses."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
import torch

from pixart.text.captions import Caption, save_caption

LONG = "a small red star on the left, blue background"


def ask(server, question, content_type="application/json", headers=None) -> tuple[int, dict]:
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    request = urllib.request.Request(
        server.url + "/pixart/tokens", body, {"Content-Type": content_type, **(headers or {})}
    )
    return answer(request)


def get(server, route: str) -> tuple[int, dict]:
    return answer(urllib.request.Request(server.url + route))


def answer(request) -> tuple[int, dict]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=300) as told:
            return told.status, json.loads(told.read())
    except urllib.error.HTTPError as error:
        body = error.read()
        return error.code, json.loads(body) if body.startswith(b"{") else {}


@pytest.mark.parametrize("text", [LONG, "a (small:1.3) red star", "", "red \\(star\\)", "embedding:../../secret star"])
def test_the_count_is_the_one_that_the_node_says(server, client, text):
    graph = {
        "1": {"class_type": "PixArtLoadT5", "inputs": {"t5_name": "pixart-demo-t5.safetensors", "dtype": "auto",
                                                       "device": "auto"}},
        "2": {"class_type": "PixArtTextEncode", "inputs": {"clip": ["1", 0], "text": text, "max_tokens": 9,
                                                           "clean_caption": False}},
        "3": {"class_type": "PixArtSaveCaption", "inputs": {"conditioning": ["2", 0], "filename_prefix": "count",
                                                            "dtype": "auto"}},
    }  # fmt: skip
    result = client.run(graph)
    (said,) = [words for node, words in result.texts if node == "2"]
    status, told = ask(server, {"t5_name": "pixart-demo-t5.safetensors", "text": text, "max_tokens": 9})
    assert (status, told["limit"]) == (200, 9)
    if told["lost"]:
        assert said == f"The prompt has {told['tokens']} tokens, 9 fit. Not read: “{told['lost']}”"
    else:
        assert said == f"{told['tokens']} of 9 tokens"


def test_without_an_encoder_the_hosts_own_vocabulary_counts(server):
    status, told = ask(server, {"t5_name": None, "text": LONG, "max_tokens": 300})
    assert (status, told) == (200, {"tokens": 12, "limit": 300, "lost": ""})


def test_a_file_is_said_to_be_what_it_is(server):
    _, found = get(server, "/pixart/detect?kind=checkpoint&name=pixart-demo-sigma.safetensors")
    assert (found["facts"]["family"], found["facts"]["pixels"], found["trouble"]) == ("PixArt-Σ", 128, "")
    _, found = get(server, "/pixart/detect?kind=t5&name=pixart-demo-sigma.safetensors")
    assert found["trouble"].startswith("This is a PixArt or DiT transformer")
    _, found = get(server, "/pixart/detect?kind=controlnet&name=pixart-demo-controlnet.safetensors")
    assert (found["facts"]["family"], found["facts"]["base"]) == ("ControlNet", "PixArt-Σ")
    _, found = get(server, "/pixart/detect?kind=lora&name=pixart-demo-sigma.safetensors")
    assert "a whole PixArt model" in found["trouble"]


def test_a_saved_caption_is_said_to_be_what_it_is(server):
    save_caption(Caption(torch.zeros(3, 16), prompt="a star"), server.base / "output" / "told.safetensors")
    name = urllib.parse.quote("told.safetensors [output]")
    _, found = get(server, f"/pixart/detect?kind=caption&name={name}")
    assert found["facts"] == {"prompt": "a star", "length": 3, "width": 16, "dtype": "fp32"}
    _, found = get(server, f"/pixart/detect?kind=caption&name=../{name}")
    assert "leads out of" in found["trouble"] and found["facts"] == {}


@pytest.mark.parametrize("name", ["../demo/pixart-demo-sigma.safetensors", "/etc/passwd", "nothing.safetensors", ""])
def test_only_files_that_a_loader_offers_are_opened(server, name):
    status, found = get(server, f"/pixart/detect?kind=checkpoint&name={name}")
    assert status == 200
    assert found["facts"] == {}
    assert "model folders" in found["trouble"] or "is not in models/" in found["trouble"]
    assert "models/" in ask(server, {"t5_name": "nothing.safetensors", "text": "a"})[1]["trouble"]


def test_requests_that_are_wrong_too_long_or_of_other_pages_are_refused_in_one_line(server):
    wrong = [
        (ask(server, b"{nonsense"), 400),
        (ask(server, [1]), 400),
        (ask(server, {"text": 5}), 400),
        (ask(server, {"text": "a", "max_tokens": "300"}), 400),
        (ask(server, {"text": "a"}, content_type="text/plain"), 415),
        (ask(server, {"text": "a" * 300_000}), 413),
        (get(server, "/pixart/detect?kind=vae&name=x"), 400),
    ]
    for (status, told), expected in wrong:
        assert status == expected
        assert told["error"] and "\n" not in told["error"] and "Traceback" not in told["error"]
    assert ask(server, {"text": "a"}, headers={"Origin": "http://elsewhere.example", "Host": "127.0.0.1"})[0] == 403


def test_every_size_is_told_as_the_node_makes_it(server):
    _, told = get(server, "/pixart/resolutions")
    assert set(told["bases"]) == {"256", "512", "1024", "2048", "2880", "4096"}
    assert all(len(sizes) == len(told["options"]) for sizes in told["bases"].values())
    square = told["options"].index(told["square"])
    assert told["bases"]["2048"][square] == [2048, 2048, 16384]


def test_the_doctor_names_versions_and_models_but_no_folders(server):
    _, told = get(server, "/pixart/doctor")
    report = told["report"]
    assert f"ComfyUI {server.host.version}" in report
    assert "checkpoints/pixart-demo-sigma.safetensors: PixArt-Σ, 128 px" in report
    assert str(server.base) not in report
