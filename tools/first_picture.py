"""``python3 tools/first_picture.py``: how long a new user waits, from a clone to the first picture.

In a clean copy of the newest ComfyUI that is found, whose environment is there already, the steps of the README: clone
into custom_nodes, start ComfyUI, open the template "text_to_image", press Run. Opening and pressing are done over the
API here; what a person needs for them is not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.comfyui import PACK_FOLDER, Host, HostError, find_hosts
from tools.environment import ROOT, SetupError, environment, say
from tools.install_check import Installed, Wrong, copy_clean, said

WORKFLOW = f"/api/workflow_templates/{PACK_FOLDER}/text_to_image.json"


def main() -> int:
    try:
        hosts = find_hosts()
        if not hosts:
            raise HostError("No ComfyUI found: set COMFYUI_PATH to its folder.")
        python = environment(for_host=True)
        with tempfile.TemporaryDirectory(prefix="pixart-first-") as scratch:
            host = Host(Path(scratch, "ComfyUI"), hosts[0].version)
            copy_clean(hosts[0].path, host.path)
            first = last = time.monotonic()

            def step(what: str) -> None:
                nonlocal last
                now = time.monotonic()
                say(f"{now - last:6.1f} s  {what}")
                last = now

            said(["git", "clone", "--quiet", ROOT, host.path / "custom_nodes" / PACK_FOLDER])
            step("git clone into custom_nodes")
            with Installed(host, python, cpu=True, log=Path(scratch, "log")) as server:
                step(f"start ComfyUI {host.version}")
                server.get_json(WORKFLOW)
                step("open the template")
                graph = json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text(encoding="utf-8"))
                entry = server.wait(server.queue(graph), timeout=1800)
                if entry["status"]["status_str"] != "success":
                    raise HostError(f"The first picture failed:\n{server.log_tail()}")
                step("press Run: the picture is there")
            say(f"{last - first:6.1f} s  in four steps")
    except (SetupError, HostError, Wrong) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
