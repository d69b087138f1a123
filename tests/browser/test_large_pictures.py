"""The 2K and 4K templates open as they were saved."""

from __future__ import annotations

import pytest
from front_end import FrontEnd
from playwright.sync_api import expect


@pytest.mark.parametrize("template", ["sigma_2k", "sigma_4k"])
def test_the_templates_for_large_pictures_open_without_trouble(front_end: FrontEnd, template: str):
    front_end.open({})
    front_end.open_template(template)
    types = front_end.node_types()
    assert {"PixArtKVCompression", "PixArtResolution", "LatentUpscale", "KSampler"} <= set(types)
    assert front_end.unknown_nodes() == []
    expect(front_end.page.get_by_test_id("error-overlay")).to_have_count(0)
    assert front_end.errors == []
