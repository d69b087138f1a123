"""Tests in a real Chromium. Where there is none, or no ComfyUI, they are skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_end import LOADING, PICTURES, FrontEnd
from playwright.sync_api import Browser, expect, sync_playwright

from tools.comfyui import Host, Server
from tools.front_end import own_front_end
from tools.test import find_browser

LOGS = Path(__file__).resolve().parents[2] / "output" / "test-logs"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


expect.set_options(timeout=LOADING)  # its own five seconds are not enough for a busy machine


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium found: set PLAYWRIGHT_CHROMIUM to one")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
        yield running
        running.close()


@pytest.fixture(scope="session")
def server(host: Host) -> Iterator[Server]:
    """A running ComfyUI, as for all tests, with the front end that this version was released with."""
    python = Path(sys.executable)
    own = own_front_end(host, python)
    options = ("--preview-method", "latent2rgb", *(("--front-end-root", str(own)) if own else ()))
    with Server(host, python, cpu=True, log=LOGS / f"comfyui-{host.version}.log", options=options) as running:
        yield running


@pytest.fixture
def front_end(browser: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    """A fresh tab; how it looked at the end of the test is kept as a picture in output/browser."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(LOADING)
    tab = FrontEnd(context.new_page(), server.url)
    yield tab
    tab.screenshot(PICTURES / f"{request.node.name}.png")
    context.close()
