"""Makes a LoRA out of a fine-tuned or distilled checkpoint: what it differs by from its base, at a given rank.

    python -m pixart.training.extract base.safetensors tuned.safetensors --rank 32 --out tuned-lora.safetensors

Of each linear layer's difference the largest singular values are kept, which no matrix of that rank comes closer to
(Eckart and Young, 1936). What the rest amounts to is said at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..checkpoint import load_transformer, open_checkpoint
from ..checkpoint.keys import diffusers_names, list_names
from ..command import carry_out
from ..terminal import leave
from ..transformer import PixArtTransformer
from .adapters import PREFIX
from .writing import SOFTWARE, Base, lora_metadata, write_safetensors

FACTORS = ("lora_A.weight", "lora_B.weight")


def thin(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (R, in) and B (out, R) whose product is nearest to a difference (out, in), each with half of its size."""
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    root = values[:rank].sqrt()
    return (root[:, None] * right[:rank]).contiguous(), (left[:, :rank] * root).contiguous()


@torch.no_grad()
def extract(base: PixArtTransformer, tuned: PixArtTransformer, rank: int) -> tuple[dict[str, torch.Tensor], float]:
    """A LoRA under diffusers' names, and the share of the squared difference that it leaves out.

    Left out are the smaller singular values, and biases, tables and convolutions, which no LoRA holds. Layers that do
    not differ get none. Raises ValueError when the two are of different shape, when no layer differs, and for a rank
    below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, not {rank}.")
    if wrong := base.config.other_shape(tuned.config):
        raise ValueError(f"The two checkpoints are not of one model: the other has {wrong}.")
    linear = {f"{name}.weight" for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    before = dict(base.named_parameters())
    if added := [name for name, _ in tuned.named_parameters() if name not in before]:
        raise ValueError(
            f"The two checkpoints are not of one model: the other holds {list_names(added)}, which the base lacks."
        )
    state: dict[str, torch.Tensor] = {}
    total = kept = 0.0
    for name, after in tuned.named_parameters():
        difference = after.float() - before[name].float()
        total += difference.pow(2).sum().item()
        parts = diffusers_names(name) if name in linear else ()
        for part, rows in zip(parts, difference.chunk(max(1, len(parts))), strict=False):
            if rows.any():
                down, up = thin(rows, rank)
                layer = PREFIX + part.removesuffix(".weight")
                state |= dict(zip((f"{layer}.{factor}" for factor in FACTORS), (down, up), strict=True))
                kept += (up @ down).pow(2).sum().item()
    if not state:
        raise ValueError("No linear layer of the two checkpoints differs: there is nothing to extract.")
    return state, max(0.0, 1 - kept / total)


def extract_file(base_path: Path, tuned_path: Path, rank: int, out: Path, trigger: str = "") -> float:
    """Write the LoRA in fp16; the share of the squared difference that it leaves out."""
    base = open_checkpoint(base_path)
    state, lost = extract(load_transformer(base), load_transformer(open_checkpoint(tuned_path)), rank)
    write_safetensors(
        out, {name: t.half() for name, t in state.items()}, extract_metadata(base, state, rank, out.stem, trigger)
    )
    return lost


def extract_metadata(base, state: dict[str, torch.Tensor], rank: int, title: str, trigger: str = "") -> dict[str, str]:
    """What the file tells beside its weights. base: the opened checkpoint."""
    made_from = Base.of(base)
    told = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"pixart-{base.config.family}/lora",
        "modelspec.implementation": SOFTWARE,
        "modelspec.title": title,
        "modelspec.license": base.metadata.get("modelspec.license", ""),
        "modelspec.trigger_phrase": trigger,
        "pixart_base": made_from.name,
        "pixart_base_sha": made_from.sha,
        "pixart_trigger": trigger,
    }
    return {name: value for name, value in told.items() if value} | lora_metadata(state, rank)


def main(argv: list[str] | None = None) -> int:
    """0 when the file is there, 2 and one line on standard error when it cannot be."""
    p = argparse.ArgumentParser(
        prog="python -m pixart.training.extract",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("base", type=Path, help="checkpoint that the other one was made from")
    p.add_argument("tuned", type=Path, help="fine-tuned or distilled checkpoint")
    p.add_argument("--out", type=Path, required=True, help="LoRA file to write")
    p.add_argument("--rank", type=int, default=32, help="default: %(default)s")
    p.add_argument("--trigger", default="", help="word that calls up what was learned, noted in the file")
    args = p.parse_args(argv)

    def work() -> str:
        lost = extract_file(args.base, args.tuned, args.rank, args.out, args.trigger)
        return f"{args.out}: rank {args.rank} leaves out {lost:.1%} of the squared difference"

    return carry_out(work)


if __name__ == "__main__":
    leave(main)
