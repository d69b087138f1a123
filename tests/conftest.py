"""What all tests share: marks by folder, the ComfyUI under test, and its server."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from host_client import Client

from tools.comfyui import Host, Server, find_hosts

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
LOGS = ROOT / "output" / "test-logs"
SUITES = ("unit", "host", "browser")


class RootIsNoTestPackage:
    """Keeps pytest from importing the pack's own ``__init__.py`` as the package that the tests are in."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsNoTestPackage())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        suite = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if suite in SUITES:
            item.add_marker(suite)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same numbers for what a test or its fixtures draw without a seed, whichever tests ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(server, Server):
        report.sections.append((f"ComfyUI's log, {server.log}", server.log_tail(60)))
    return report


@pytest.fixture(scope="session")
def host() -> Host:
    """The ComfyUI under test: the newest of those that COMFYUI_PATH names or that are found."""
    hosts = find_hosts()
    if not hosts:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to its folder")
    return hosts[0]


@pytest.fixture(scope="session")
def host_path(host: Host) -> Path:
    return host.path


@pytest.fixture(scope="session")
def host_version(host: Host) -> tuple[int, ...]:
    """For example (0, 33, 0)."""
    return host.order


@pytest.fixture(scope="session")
def server(host: Host) -> Iterator[Server]:
    """A running ComfyUI on the processor, with this checkout as its one custom node."""
    log = LOGS / f"comfyui-{host.version}.log"
    with Server(host, Path(sys.executable), cpu=True, log=log, options=("--preview-method", "latent2rgb")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A connection of its own to the server, as a browser tab has."""
    with Client(server) as connected:
        yield connected
