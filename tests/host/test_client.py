"""The client that host tests speak through, on the host's own nodes."""

from __future__ import annotations

import pytest

from tools.comfyui import HostError


def red_square(side: int = 24) -> dict:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": side, "height": side, "batch_size": 2, "color": 0xFF0000},
        },
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def test_pictures_come_back_and_a_second_run_is_cached(client):
    first = client.run(red_square())
    assert first.executed == ["1", "2"]
    assert first.error is None and not first.interrupted
    pictures = client.images(first, "2")
    assert [(p.size, p.getpixel((0, 0))) for p in pictures] == [((24, 24), (255, 0, 0))] * 2
    second = client.run(red_square())
    assert sorted(second.cached) == ["1", "2"]
    assert second.executed == []


def test_the_history_tells_the_same(server):
    entry = server.wait(server.queue(red_square(32)), timeout=900)
    assert entry["status"]["status_str"] == "success"
    assert len(entry["outputs"]["2"]["images"]) == 2


def test_a_refused_workflow_names_node_and_input(client):
    graph = red_square()
    graph["1"]["inputs"]["width"] = 0
    with pytest.raises(HostError, match=r"EmptyImage \(1\): Value 0 smaller than min of 1, width"):
        client.run(graph)


def test_an_error_while_running_is_reported_with_its_node(client):
    graph = red_square(40)
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "../../outside"}}
    del graph["2"]
    result = client.run(graph)
    assert result.error["node_id"] == "3"
    assert result.error["node_type"] == "SaveImage"
    assert "outside the output folder" in result.error["exception_message"]
    assert result.outputs == {}
