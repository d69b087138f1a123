"""``python3 tools/test.py``: all tests, in an environment that is made when it is missing.

Unit tests run once, host tests once for every ComfyUI that is found (see COMFYUI_PATH). Where there is a Chromium,
browser tests run on the newest of them, and those marked ``oldest`` also on the oldest with the front end of its time.
Arguments go to pytest: a path limits what runs, ``-k name`` as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.terminal import leave
from tools.comfyui import Host, HostError, find_hosts
from tools.environment import ROOT, SetupError, environment, say
from tools.front_end import own_front_end

SUITES = ("unit", "host", "browser")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OLDEST = "oldest"  # the mark of browser tests that the oldest host's front end has to pass as well
NO_TESTS_COLLECTED = 5  # pytest's exit code


@dataclass(frozen=True)
class Count:
    """How many tests ended how; ``broken`` when pytest itself did not end as it should."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    broken: bool = False

    def __add__(self, other: Count) -> Count:
        return Count(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.broken or other.broken,
        )

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Test paths by suite, and everything else, which is for every run of pytest.

    Without a path, or with the tests folder, every suite runs whole.
    """
    paths: dict[str, list[str]] = {}
    rest = []
    tests = ROOT / "tests"
    for argument in arguments:
        path = Path(argument.partition("::")[0]).resolve()
        if argument.startswith("-") or not path.exists() or not path.is_relative_to(tests):
            rest.append(argument)
        elif path == tests:
            paths.update({suite: [str(tests / suite)] for suite in SUITES})
        else:
            paths.setdefault(path.relative_to(tests).parts[0], []).append(argument)
    return paths or {suite: [str(tests / suite)] for suite in SUITES}, rest


def count_results(report: Path) -> Count:
    """The figures of a JUnit report; a broken run where there is none."""
    if not report.is_file():
        return Count(broken=True)
    total = Count()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        tests, failures, errors, skipped = (
            int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
        )
        total += Count(tests - failures - errors - skipped, failures + errors, skipped)
    return total


def run_pytest(python: Path, paths: Sequence[str], rest: Sequence[str], env: dict[str, str]) -> Count:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(python), "-m", "pytest", "-q", f"--junitxml={report}", *paths, *rest]
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}).returncode
        count = count_results(report)
    if code not in (0, NO_TESTS_COLLECTED) and not count.failed:
        return count + Count(broken=True)
    return count


def find_browser() -> str | None:
    """A Chromium: PLAYWRIGHT_CHROMIUM names one, else the PATH is looked at."""
    return os.environ.get("PLAYWRIGHT_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def run_suite(
    suite: str, paths: Sequence[str], rest: Sequence[str], python: Path, hosts: Sequence[Host]
) -> dict[str, Count | str]:
    """The figures of a suite, or why it was left out; the browser's for each host."""
    if suite == "unit":
        say("== unit tests")
        return {suite: run_pytest(python, paths, rest, {})}
    if not hosts:
        return {suite: "no ComfyUI found (COMFYUI_PATH, ~/comfy/ComfyUI*)"}
    if suite == "host":
        total = Count()
        for host in hosts:
            say(f"== host tests, ComfyUI {host.version} in {host.path}")
            total += run_pytest(python, paths, rest, {"COMFYUI_PATH": str(host.path)})
        return {suite: total}
    browser = find_browser()
    if browser is None:
        return {suite: f"no Chromium found ({', '.join(BROWSERS)} or PLAYWRIGHT_CHROMIUM)"}
    newest, oldest = hosts[0], hosts[-1]
    outcomes = {f"browser, ComfyUI {newest.version}": run_browser(newest, browser, paths, rest, python)}
    if oldest != newest:
        name = f"browser, ComfyUI {oldest.version}"
        try:
            own_front_end(oldest, python)
            outcomes[name] = run_browser(oldest, browser, paths, ["-m", OLDEST, *rest], python)
        except SetupError as error:
            outcomes[name] = str(error)
    return outcomes


def run_browser(host: Host, browser: str, paths: Sequence[str], rest: Sequence[str], python: Path) -> Count:
    say(f"== browser tests, {browser}, ComfyUI {host.version} in {host.path}")
    return run_pytest(python, paths, rest, {"COMFYUI_PATH": str(host.path), "PLAYWRIGHT_CHROMIUM": browser})


def main(arguments: Sequence[str]) -> int:
    paths, rest = split_arguments(arguments)
    unknown = [suite for suite in paths if suite not in SUITES]
    if unknown:
        print(f"There is no suite {', '.join(unknown)} in tests/: choose from {', '.join(SUITES)}.", file=sys.stderr)
        return 2
    try:
        hosts = find_hosts()
        wanted = [host for host in hosts if "host" in paths or "browser" in paths]
        python = environment(for_host=bool(wanted))
    except (SetupError, HostError) as error:
        print(error, file=sys.stderr)
        return 2
    outcomes: dict[str, Count | str] = {}
    for suite in SUITES:
        if suite in paths:
            outcomes |= run_suite(suite, paths[suite], rest, python, hosts)
    say("")
    total = Count()
    for name, outcome in outcomes.items():
        if isinstance(outcome, str):
            say(f"{name}: not run, {outcome}")
        else:
            say(f"{name}: {outcome}{' (pytest broke off)' if outcome.broken else ''}")
            total += outcome
    say(str(total))
    return 1 if total.failed or total.broken or not total.passed else 0


if __name__ == "__main__":
    try:
        leave(lambda: main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
