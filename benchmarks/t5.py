"""Times T5 on a short prompt: only its own tokens, as here, against diffusers' caption padded to 300 tokens.

    python benchmarks/t5.py --tokens 20

One encoder of T5 XL's size (1.2 billion numbers, 2048 wide, 24 blocks; random) serves both: this project's
``encode_prompts``, and the call that diffusers' PixArt pipelines make of the same tokens, padded, with their mask. Both
run in every round. The difference is the largest at the prompt's own tokens by the largest value there. Five prompts,
of three lengths, are encoded one by one and as one set. Needs 6 GB of memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "harness")]

import torch  # noqa: E402
from forward import measure  # noqa: E402
from loading import XL, random  # noqa: E402

from pixart.text.batch import encode_prompts  # noqa: E402
from pixart.text.encoder import T5File, load_transformers_t5, open_t5  # noqa: E402
from pixart.text.layout import T5Config  # noqa: E402
from pixart.text.tokens import encode_prompt  # noqa: E402

PADDED = 300
WORDS = "a small red circle on the left, blue background, "


def random_t5(config: T5Config):
    state = random(config.shapes(), torch.float32)
    return load_transformers_t5(T5File(Path("random"), config, state, None, {}, (), "random"))


def prompt_of(tokenizer, tokens: int) -> str:
    """A prompt of so many tokens, the end included."""
    for length in range(1, 20 * tokens):
        text = (WORDS * tokens)[:length].strip()
        if text and len(encode_prompt(tokenizer, text, 10 * tokens).ids) == tokens:
            return text
    raise ValueError(f"No prompt of {tokens} tokens was found.")


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[20])
    parser.add_argument("--layers", type=int, default=XL.num_layers)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="whose tokenizer is taken")
    args = parser.parse_args()
    t5 = random_t5(T5Config(d_model=XL.d_model, d_ff=XL.d_ff, num_heads=XL.num_heads, num_layers=args.layers))
    tokenizer = open_t5(args.demo / "pixart-demo-t5.safetensors").make_tokenizer()
    cpu = torch.device("cpu")
    for tokens in args.tokens:
        prompt = prompt_of(tokenizer, tokens)
        ids = torch.zeros(1, PADDED, dtype=torch.int64)
        ids[0, :tokens] = torch.tensor(list(encode_prompt(tokenizer, prompt, PADDED).ids))
        mask = (torch.arange(PADDED) < tokens)[None].long()
        calls = {
            "ours": lambda: encode_prompts(t5, tokenizer, [prompt], PADDED).embeddings,  # noqa: B023 - called here
            "diffusers": lambda: t5(ids, attention_mask=mask)[0],  # noqa: B023
        }
        ours, theirs = calls["ours"](), calls["diffusers"]()
        away = (ours - theirs[:, :tokens]).abs().max() / ours.abs().max()
        times = measure(calls, args.rounds, cpu)
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times["diffusers"], strict=True))
        print(
            f"{tokens} tokens: ours {statistics.median(times['ours']):.3f} s, padded to {PADDED} "
            f"{statistics.median(times['diffusers']):.3f} s, ratio {ratio:.1f}, difference {away.item():.1e}",
            flush=True,
        )
    prompts = [prompt_of(tokenizer, n) for n in (18, 20, 20, 24, 24)]
    sets = {
        "set": lambda: encode_prompts(t5, tokenizer, prompts, PADDED),
        "one by one": lambda: [encode_prompts(t5, tokenizer, [prompt], PADDED) for prompt in prompts],
    }
    times = measure(sets, args.rounds, cpu)
    ratio = statistics.median(b / a for a, b in zip(times["set"], times["one by one"], strict=True))
    print(f"five prompts: {statistics.median(times['set']):.3f} s as a set; one by one {ratio:.2f} times as long")
    return 0


if __name__ == "__main__":
    sys.exit(main())
