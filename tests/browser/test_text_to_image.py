"""From the Templates dialog to the picture, as on a user's first day."""

from __future__ import annotations

import pytest
from front_end import FrontEnd
from PIL import Image
from playwright.sync_api import expect

PROMPT = "a small red star on the left, blue background"


def reddish(pixel: tuple[int, int, int]) -> bool:
    red, green, blue = pixel
    return red > 150 and red > green + 60 and red > blue + 60


def bluish(pixel: tuple[int, int, int]) -> bool:
    red, green, blue = pixel
    return blue > 120 and blue > red + 60 and blue > green + 20


def share(picture: Image.Image, box: tuple[float, float, float, float], test) -> float:
    """The share of pixels in a part of the picture (left, top, right, bottom from 0 to 1) that pass a test."""
    width, height = picture.size
    left, top, right, bottom = box
    part = picture.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
    pixels = [part.getpixel((x, y)) for y in range(part.height) for x in range(part.width)]
    return sum(map(test, pixels)) / len(pixels)


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes-2.0"])
def test_the_template_draws_what_its_prompt_says(front_end: FrontEnd, nodes_2: bool):
    front_end.open({"Comfy.VueNodes.Enabled": nodes_2})
    front_end.open_template("text_to_image")
    assert "PixArtTextEncode" in front_end.node_types()
    assert front_end.unknown_nodes() == []
    expect(front_end.page.get_by_test_id("error-overlay")).to_have_count(0)

    front_end.run()
    kind = next(name for name in front_end.node_types() if name in ("SaveImage", "PreviewImage"))
    picture = front_end.picture(kind)

    assert share(picture, (0.6, 0.0, 1.0, 1.0), bluish) > 0.9, "the background on the right is not blue"
    assert share(picture, (0.0, 0.2, 0.5, 0.8), reddish) > 0.05, "there is no red shape on the left"
    assert share(picture, (0.6, 0.0, 1.0, 1.0), reddish) < 0.01, "there is red on the right"
    assert front_end.errors == []
