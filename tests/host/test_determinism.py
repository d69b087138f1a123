"""The same seed gives the same picture: in another process, after other work, in a batch, in every ComfyUI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from draw_latents import KINDS, Demo
from safetensors.torch import load_file

from tools.comfyui import Host, read_host

SCRIPT = Path(__file__).resolve().parents[1] / "harness" / "draw_latents.py"
BATCH_TOLERANCE = 5e-4
"""Of a picture in a batch of four against the same alone, relative to the largest latent: products of matrices of
other sizes, and on another number of threads, add up in another order. Measured: 0 on one thread, 7.6e-5 on two, with a
ControlNet."""
HOST_TOLERANCE = 1e-5
"""Between versions of ComfyUI, relative to the largest latent. With one PyTorch on one machine they are equal bit for
bit where they compute the same; this leaves room for a schedule computed in another order."""


@pytest.fixture(scope="module")
def demo(pack, tmp_path_factory) -> Demo:
    with torch.inference_mode():
        return Demo(pack.__name__, tmp_path_factory.mktemp("determinism"))


def drawn_in_a_process(host: Host, out: Path, hash_seed: str = "0") -> dict[str, torch.Tensor]:
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(host.path), str(out)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return load_file(out)


@pytest.fixture(scope="module")
def once(host, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Drawn in a process of its own, in the ComfyUI under test."""
    return drawn_in_a_process(host, tmp_path_factory.mktemp("once") / "latents.safetensors")


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative to the largest number."""
    return ((a - b).abs().max() / a.abs().max()).item()


def test_in_another_process_bit_for_bit(host, once, tmp_path):
    """Where hashes, and so the order of sets, are others."""
    again = drawn_in_a_process(host, tmp_path / "again.safetensors", hash_seed="1")
    assert {name: torch.equal(again[name], tensor) for name, tensor in once.items()} == dict.fromkeys(once, True)
    assert len({tuple(once[kind].flatten()[:8].tolist()) for kind in KINDS}) == len(KINDS), "kinds that do not differ"


def test_after_other_work_bit_for_bit(demo):
    """Each kind of sampling first, and again after all the others and a run that was broken off."""
    first = {kind: demo.draw(kind).clone() for kind in KINDS}
    with pytest.raises(RuntimeError):
        demo.draw("LoRA", noise=torch.zeros(1, 3, 16, 16))
    demo.draw("plain", seed=9)
    again = {kind: demo.draw(kind) for kind in reversed(KINDS)}
    assert {kind: torch.equal(first[kind], again[kind]) for kind in KINDS} == dict.fromkeys(KINDS, True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "wide"])
def test_a_batch_of_four_draws_what_four_singles_do(demo, kind):
    seeds = range(1, 5)
    noise = torch.cat([demo.noise(seed) for seed in seeds])
    batch = demo.draw(kind, noise=noise)
    singles = torch.cat([demo.draw(kind, noise=demo.noise(seed)) for seed in seeds])
    found = difference(singles, batch)
    print(f"{kind}: largest difference {found:.2e} of the largest latent")
    assert found <= BATCH_TOLERANCE
    assert difference(singles, batch.roll(1, 0)) > 0.01


def other_hosts(host: Host) -> list[Host]:
    """Older ComfyUIs that lie beside the one under test."""
    beside = (read_host(folder) for folder in sorted(host.path.parent.glob("ComfyUI*")))
    return [other for other in beside if other is not None and other.order < host.order]


def test_every_comfyui_draws_the_same(host, once, tmp_path):
    """From the newest one's run all older ones are asked; in theirs there is nothing left to compare."""
    others = other_hosts(host)
    if not others:
        pytest.skip("no older ComfyUI lies beside this one")
    for other in others:
        theirs = drawn_in_a_process(other, tmp_path / f"{other.version}.safetensors")
        found = {name: difference(tensor, theirs[name]) for name, tensor in once.items()}
        print(f"{other.version} against {host.version}:", {name: f"{value:.1e}" for name, value in found.items()})
        assert max(found.values()) <= HOST_TOLERANCE, (other.version, found)
