"""``python tools/thumbnails.py NAME …``: the pictures that the Templates dialog shows of workflows, drawn by them.

Runs workflows/api/NAME.json in a ComfyUI and keeps what it saves as workflows/NAME.jpg. A workflow that reads captions
needs the one before it that makes them: name both, in order. Templates that save no picture, or need released
checkpoints, have cards from tools/brand.py.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from tools.comfyui import HostError, Server, find_hosts
from tools.environment import ROOT, say

SIDE = 512  # pixels, the longest
LOG = ROOT / "output" / "thumbnails.log"


def pictures(entry: dict) -> list[dict]:
    """References of what a run saved; previews are left out."""
    return [
        reference
        for output in entry["outputs"].values()
        for reference in output.get("images", ())
        if reference["type"] == "output"
    ]


def draw(server: Server, name: str) -> Image.Image | None:
    """The last picture that a workflow saves; None where it saves none. Raises HostError when it fails."""
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    entry = server.wait(server.queue(graph), timeout=1800)
    if entry["status"]["status_str"] != "success":
        raise HostError(f"{name} failed; the log is {server.log}.")
    saved = pictures(entry)
    return Image.open(io.BytesIO(server.file(saved[-1]))).convert("RGB") if saved else None


def fitted(picture: Image.Image) -> Image.Image:
    """A picture whose longest side is SIDE; small ones are enlarged without inventing detail."""
    scale = SIDE / max(picture.size)
    size = tuple(round(side * scale) for side in picture.size)
    return picture.resize(size, Image.BICUBIC if scale > 1 else Image.LANCZOS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="workflows in workflows/api, without .json")
    names = parser.parse_args().names
    hosts = find_hosts()
    try:
        if not hosts:
            raise HostError("No ComfyUI found: set COMFYUI_PATH to its folder.")
        with Server(hosts[0], Path(sys.executable), cpu=True, log=LOG) as server:
            for name in names:
                picture = draw(server, name)
                if picture is not None:
                    fitted(picture).save(ROOT / "workflows" / f"{name}.jpg", quality=88, optimize=True)
                say(f"{name}: {'drawn' if picture is not None else 'saves no picture'}")
    except HostError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
