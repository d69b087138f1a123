"""``python draw_latents.py COMFYUI OUT.safetensors``: latents of the demo, drawn inside that ComfyUI with fixed seeds.

``Demo`` is the same for tests that draw in their own process.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # in a test's process the host comes first, and has a module called nodes too
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness")]

import demo_files  # noqa: E402
import host_process  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

STEPS, CFG = 4, 4.5
PROMPT = "a small red star on the left, blue background"
SIZE = (16, 16)
KINDS = ("plain", "LoRA", "cache", "compression", "control", "wide")


class Demo:
    """The demo's models in the host of this process."""

    def __init__(self, pack: str, folder: Path):
        import comfy.sd
        import comfy.utils

        seam = f"{pack}.nodes.host"
        self.host = {name: import_module(f"{seam}.{name}") for name in ("control", "lora", "step_cache", "compression")}
        self.caching = import_module(f"{pack}.pixart.caching")
        self.kv = import_module(f"{pack}.pixart.compression")
        demo = demo_files.DEMO
        self.model = import_module(f"{seam}.model").load_model(str(demo / demo_files.CHECKPOINT))
        self.clip = import_module(f"{seam}.text").load_clip(str(demo / demo_files.T5))
        self.vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(demo / demo_files.VAE)))
        self.control = self.host["control"].load_control(str(demo / demo_files.CONTROLNET))
        self.lora = demo_files.write_lora(folder / "determinism.safetensors", seed=1)

    def variant(self, kind: str):
        """The MODEL of a kind."""
        if kind == "LoRA":
            return self.host["lora"].load_lora(self.model, None, str(self.lora), 1.0, 1.0)[0]
        if kind == "cache":
            settings = self.caching.CacheSettings(method="schedule", every=2)
            return self.host["step_cache"].add_step_cache(self.model, settings, 0.0, 1.0)
        if kind == "compression":
            chosen = self.kv.KVCompression(self.kv.AVERAGE, 2, 2, 4, 0)
            return self.host["compression"].compressed(self.model, chosen)[0]
        return self.model

    def encode(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def noise(self, seed: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
        return torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed))

    def draw(self, kind: str = "plain", seed: int = 1, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Latents (B, 4, h, w), as many as there is noise."""
        import comfy.sample

        import nodes

        if noise is None:
            noise = self.noise(seed, (12, 20) if kind == "wide" else SIZE)
        positive, negative = self.encode(PROMPT), self.encode("")
        if kind == "control":
            hint = torch.zeros(1, 128, 128, 3)
            hint[:, 32:96, [32, 95]] = hint[:, [32, 95], 32:96] = 1.0
            apply = nodes.ControlNetApplyAdvanced().apply_controlnet
            positive, negative = apply(positive, negative, self.control, hint, 1.0, 0.0, 1.0, self.vae)
        return comfy.sample.sample(
            self.variant(kind), noise, STEPS, CFG, "dpmpp_2m", "normal", positive, negative, torch.zeros_like(noise),
            disable_pbar=True, seed=seed,
        )  # fmt: skip


def main(comfyui: str, out: str) -> int:
    from tools.comfyui import read_host

    torch.set_num_threads(1)
    host_process.enter(read_host(Path(comfyui)))
    pack = host_process.load_pack(ROOT).__name__
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        demo = Demo(pack, Path(folder))
        latents = {kind: demo.draw(kind).clone() for kind in KINDS}
        latents |= {f"{kind} picture": demo.vae.decode(latents[kind]).clone() for kind in ("plain", "wide")}
    save_file({name: tensor.contiguous() for name, tensor in latents.items()}, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
