"""Damages files at random and watches the readers: ``python tests/fuzz/run.py --seconds 600``.

    --engine mutate    seeded damage that knows the formats (default); the same cases for the same seed and --cases
    --engine atheris   guided by the lines that a case reaches (``pip install atheris``), beginning from the same files;
                       one --target at a time, since libFuzzer ends the process with its run

What is no documented error is a crash: it is kept in --out with what was raised, and the run ends with 1. Damaged
files of earlier crashes lie in ``tests/fuzz/corpus`` and are tried first.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import sys
import tempfile
import time
import traceback
import zlib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).resolve().parent / "corpus"
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

RESET_EVERY = 16
"""Cases from one measurement of memory in full to the next."""

HANG = 60
"""Seconds after which cases that do not come back end the process, with its stack on standard error."""


@dataclass
class Tally:
    """What became of a target's cases. crashes: place in the code → what was raised there first."""

    cases: int = 0
    read: int = 0
    slowest: float = 0.0
    largest: float = 0.0
    crashes: dict[str, str] = field(default_factory=dict)

    def line(self, name: str) -> str:
        return (
            f"{name:13} {self.cases:8} cases, {self.cases - self.read:8} refused, slowest {self.slowest:6.3f} s, "
            f"largest growth {self.largest:5.1f} MiB, crashes {len(self.crashes)}"
        )


def memory(line: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    try:
        return int(Path("/proc/self/status").read_text().split(f"{line}:", 1)[1].split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError):
        return 0


def place_of(error: BaseException) -> str:
    """Where in the package an error came from: its deepest frame there, and its type."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "pixart" in frame.filename]
    deepest = frames[-1] if frames else None
    where = f"{Path(deepest.filename).name}:{deepest.name}" if deepest else "outside"
    return f"{type(error).__name__} in {where}"


class Judge:
    """Reads one damaged file after another, and says what is no documented end."""

    def __init__(self, name: str, target, folder: Path, out: Path | None):
        from targets import SECONDS, SLACK

        self.name, self.target, self.out = name, target, out
        self.path = folder / f"case{target.suffix}"
        self.tally, self.seconds, self.slack = Tally(), SECONDS, SLACK

    def __call__(self, data: bytes) -> bool:
        """Whether the file could be read."""
        self.path.unlink(missing_ok=True)  # an earlier one may be mapped still
        self.path.write_bytes(data)
        if self.out is not None:  # for a case that takes the process with it
            (self.out / f"last{self.target.suffix}").write_bytes(data)
        # Without the reset, which takes long, only what rises above every case before is seen.
        peak = Path("/proc/self/clear_refs")
        is_reset = self.tally.cases % RESET_EVERY == 0 and peak.exists()
        if is_reset:
            peak.write_text("5")
        before = memory("VmRSS" if is_reset else "VmHWM")
        start, trouble, fine = time.process_time(), "", False
        if self.tally.cases % RESET_EVERY == 0:
            faulthandler.dump_traceback_later(HANG, exit=True)  # starts a thread, so not for every case
        try:
            self.target.read(self.path)
            fine = True
        except self.target.documented as error:
            if not str(error).strip():
                trouble = f"an error without a word: {place_of(error)}"
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            trouble = f"{place_of(error)}: {str(error)[:200]}"
        took, grown = time.process_time() - start, max(0, memory("VmHWM") - before)
        self.tally.cases += 1
        self.tally.read += fine
        self.tally.slowest = max(self.tally.slowest, took)
        self.tally.largest = max(self.tally.largest, grown / 2**20)
        if took > self.seconds:
            trouble = f"it took {took:.1f} s"
        elif grown > 2 * len(data) + self.slack and self.tally.cases > 20:
            trouble = trouble or f"memory grew by {grown} bytes for a file of {len(data)}"
        if trouble:
            self.keep(trouble, data)
        return fine

    def keep(self, trouble: str, data: bytes) -> None:
        key = trouble.partition(":")[0].split(" bytes")[0]
        if key in self.tally.crashes:
            return
        self.tally.crashes[key] = trouble
        sys.stdout.write(f"CRASH {self.name}: {trouble}\n")
        sys.stdout.flush()  # libFuzzer ends the process without
        if self.out is not None:
            stem = f"{self.name.replace(' ', '-')}-{zlib.crc32(data):08x}"
            (self.out / f"{stem}{self.target.suffix}").write_bytes(data)
            (self.out / f"{stem}.txt").write_text(trouble + "\n")


def corpus_of(name: str) -> list[bytes]:
    folder = CORPUS / name.replace(" ", "-")
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def by_mutation(name: str, target, judge: Judge, seconds: float, cases: int, seed: int) -> None:
    from mutations import mutate

    rng = random.Random(f"{seed} {name}")
    sound, kept = target.seeds(), corpus_of(name)
    for data in sound:
        if not judge(data) and name not in ("names", "shard index", "caption", "prompts json"):
            judge.target.read(judge.path)  # says why: damage to what is refused anyway would be of no use
    for data in kept:
        judge(data)
    pool, give_up = [*sound, *kept], time.monotonic() + seconds
    while judge.tally.cases < cases and time.monotonic() < give_up:
        data = mutate(rng, rng.choice(pool), pool)
        # What is still read is a step further from the sound file, and worth going on from.
        if judge(data) and len(pool) < 60 and len(data) < 200_000:
            pool.append(data)


def by_coverage(name: str, target, judge: Judge, seconds: float, seed: int) -> None:
    """libFuzzer through atheris. Ends the process, so that what was found is written before."""
    import atheris
    from mutations import mutate

    seeds = [*target.seeds(), *corpus_of(name)]
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds):
            Path(folder, f"{number}").write_bytes(data)

        def structured(data: bytes, size: int, number: int) -> bytes:
            if number % 3 == 0 or not data:
                return atheris.Mutate(data, size)
            return mutate(random.Random(number), data, seeds)[:size]

        options = [f"-max_total_time={seconds:.0f}", "-max_len=400000", f"-seed={seed + 1}", "-rss_limit_mb=0",
                   "-print_final_stats=1", "-len_control=0", "-verbosity=0"]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, folder], lambda data: judge(data) and None, custom_mutator=structured)
        try:
            atheris.Fuzz()
        finally:
            sys.stdout.write(judge.tally.line(name) + "\n")
            sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", action="append", default=[], help="one of the readers; may be repeated (default: all)")
    p.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
    p.add_argument("--seconds", type=float, default=15, help="for all targets together (default: %(default)s)")
    p.add_argument("--cases", type=int, default=10**9, help="at most so many for each target")
    p.add_argument("--seed", type=int, default=20240403)
    p.add_argument("--out", type=Path, help="folder for crashes and the tally")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["pixart"]):
            from targets import TARGETS
    else:
        from targets import TARGETS
    import logging

    logging.disable(logging.WARNING)  # guesses about damaged files
    chosen = args.target or list(TARGETS)
    if unknown := [name for name in chosen if name not in TARGETS]:
        raise SystemExit(f"There is no target {unknown[0]!r}; there are {', '.join(TARGETS)}.")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            judge = Judge(name, TARGETS[name], Path(folder), args.out)
            tallies[name] = judge.tally
            if args.engine == "atheris":
                by_coverage(name, TARGETS[name], judge, args.seconds, args.seed)
            else:
                by_mutation(name, TARGETS[name], judge, args.seconds / len(chosen), args.cases, args.seed)
            sys.stdout.write(judge.tally.line(name) + "\n")
            sys.stdout.flush()
    faulthandler.cancel_dump_traceback_later()
    if args.out:
        told = {name: vars(tally) for name, tally in tallies.items()}
        (args.out / "tally.json").write_text(json.dumps(told, indent=1) + "\n")
    crashes = sum(len(tally.crashes) for tally in tallies.values())
    total = sum(tally.cases for tally in tallies.values())
    sys.stdout.write(f"{total} cases, {crashes} kinds of crash\n")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
