"""Every published transformer in full size, in every container that exists for it: what is detected, and what it costs.

    python benchmarks/files.py
    python benchmarks/files.py --only sigma_orig --folder /dev/shm

Files of random numbers under the published names and shapes are written one at a time and removed after, the first
container of each in the published type, the others in fp16. Every number is compared after loading. The time is that of
opening alone, until the config is known and all weights are mapped. Ends with 1 where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness")]

import known_files  # noqa: E402
import torch  # noqa: E402

from pixart.checkpoint import open_checkpoint  # noqa: E402

COLUMNS = "{:41} {:34} {:>5} {:7}{:>5} {:>8}{:>7}{:>5}{:>5}{:>6}{:>8}  {}"


def check(name: str, container: str, folder: Path) -> bool:
    """Write, open, compare, print a line."""
    is_first = container == next(iter(known_files.containers(name)))
    path = known_files.write(name, container, folder, None, None if is_first else torch.float16)
    size = sum(file.stat().st_size for file in folder.rglob("*"))
    _, variant = known_files.expected(name, container)
    started = time.perf_counter()
    checkpoint = open_checkpoint(path, variant)
    seconds = time.perf_counter() - started
    faults = known_files.faults(checkpoint, name, container, None)
    config = checkpoint.config
    row = (config.family, config.depth, f"{config.latent_scale:g}", config.max_caption_tokens, config.base_size)
    row += (f"{config.pe_interpolation:g}", "yes" if config.micro_condition else "no", f"{seconds:.2f}")
    print(COLUMNS.format(name, container, f"{size / 1e9:.2f}", *row, "; ".join(faults) or "as published"), flush=True)
    return not faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="manifests whose name contains this")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    logging.getLogger("pixart").setLevel(logging.ERROR)
    head = "manifest,container,GB,family,depth,scale,tokens,base,pe,micro,seconds,result"
    print(COLUMNS.format(*head.split(",")))
    right = tried = 0
    for name in known_files.KNOWN:
        for container in known_files.containers(name) if args.only in name else ():
            with tempfile.TemporaryDirectory(prefix="pixart-files-", dir=args.folder) as folder:
                right += check(name, container, Path(folder))
                tried += 1
    print(f"{right} of {tried} files as published")
    return 0 if tried and right == tried else 1


if __name__ == "__main__":
    sys.exit(main())
