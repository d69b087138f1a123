"""Processes that stop at a chosen point of their work, so that a test can kill them there and not by luck.

    python stopped.py pixart.evaluation.run:append 2 pixart.evaluation --out folder

runs ``python -m pixart.evaluation --out folder``, which stops itself when that function has returned for the second
time. It stays as it is until ``kill_when_stopped`` ends it with SIGKILL.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

GUARD = 900
"""Seconds after which a process that neither stops nor ends is taken for hung; no test waits for it to pass."""


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_after(place: str, call: int) -> None:
    """Stop this process when the function at ``module:name`` has returned for the ``call``-th time."""
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    owner = import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), 0

    def stopping(*args, **kwargs):
        nonlocal calls
        result = function(*args, **kwargs)
        calls += 1
        if calls == call:
            stop()
        return result

    setattr(owner, name, stopping)


def command(place: str, call: int, module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` until that point."""
    return [sys.executable, str(Path(__file__).resolve()), place, str(call), module, *arguments]


def wait_until_stopped(pid: int) -> None:
    """Wait for a child to stop itself. Raises AssertionError when it ends instead."""
    give_up = time.monotonic() + GUARD
    while time.monotonic() < give_up:
        found, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if found and os.WIFSTOPPED(status):
            return
        assert not found, f"it ended with {os.waitstatus_to_exitcode(status)} before it could be killed"
        time.sleep(0.01)
    raise AssertionError(f"it neither stopped nor ended in {GUARD} s")


def kill_when_stopped(process: subprocess.Popen) -> None:
    """Wait for the point where the process stops itself, and kill it there."""
    try:
        wait_until_stopped(process.pid)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as ``python -m`` has it
    stop_after(sys.argv[1], int(sys.argv[2]))
    sys.argv[:] = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
