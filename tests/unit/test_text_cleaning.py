"""Caption cleaning against the reference's pairs and against diffusers."""

import builtins
import json
import random
import re
import time
import warnings
from pathlib import Path

import pytest

from pixart.text.cleaning import (
    _BEFORE_REPAIR,
    MAX_CHARACTERS,
    _substitute,
    clean_caption,
    clean_prompt,
)

CASES = json.loads((Path(__file__).parent.parent / "data" / "caption_clean_cases.json").read_text(encoding="utf-8"))

# Every rule of the cleaning finds something among these.
FRAGMENTS = (
    "a cat|<b>|</b>|<person>|http://x.com/a?b=1|https:abc|www:foo|foo.org/bar@x|shop.net/x-y/|@nick|漢字|猫|—|--|-|_|`|"
    "“q”|‘s’|&quot;|&quot|&amp;|&lt;|192.168.0.1|5:30 |\\n|#12|#12345|#1234|1234567|pic.jpg|\"\"|''|...|..|(|)|[x]|{y}|"
    "\\|/|*|~| . |this-is-my-cat|a_b|ab1234|ab12cd|12ab34|worldwide free shipping|free download free|click for me|"
    "png images|page 12|j2d1a2a|100x200|10.5×20|5х6| : |a,b.c/d|'|\"|:|;|,|+|.onlyone|é|ÃƒÂ©|100%20|a+b|UPPER|®•©™|ﬁ|½"
).split("|")


def random_caption(rng: random.Random) -> str:
    if rng.random() < 0.2:
        ranges = ((32, 126), (160, 255), (0x2000, 0x2070), (0x3000, 0x9FFF))
        return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(20))
    return "".join(rng.choice(FRAGMENTS) + rng.choice(("", " ", "  ", "\n")) for _ in range(rng.randint(1, 8)))


def test_there_are_42_reference_pairs():
    assert len(CASES) == 42


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["in"][:24])
def test_reference_pair(case):
    assert clean_caption(case["in"]) == case["once"]
    assert clean_prompt(case["in"]) == case["twice"]


def test_600_random_captions_come_out_as_diffusers_cleans_them():
    diffusers = pytest.importorskip("diffusers", reason="the comparison needs diffusers")
    pipeline = diffusers.PixArtSigmaPipeline.__new__(diffusers.PixArtSigmaPipeline)
    rng = random.Random(20240313)
    captions = [random_caption(rng) for _ in range(600)]
    changed = 0
    for caption in captions:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            once = pipeline._clean_caption(caption)
            twice = pipeline._clean_caption(once)
        assert (clean_caption(caption), clean_prompt(caption)) == (once, twice), caption
        changed += twice != caption.strip().lower()
    assert changed > 500


def test_a_caption_that_looks_like_a_file_name_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clean_caption("forest") == "forest"
        assert clean_caption("./cat") == ". cat"


@pytest.mark.parametrize("package", ["ftfy", "bs4"])
def test_a_missing_package_is_an_error_that_says_what_to_install(package, monkeypatch):
    real = builtins.__import__

    def without_package(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_package)
    with pytest.raises(ValueError, match="pip install ftfy beautifulsoup4"):
        clean_caption("a cat")


@pytest.mark.parametrize("unit", ["a", ".a", " ", " .", "a.com.", "1.1x", "<b>", "&#1", "http://a.", "(", "a1"])
def test_no_prompt_takes_long_to_clean(unit):
    start = time.process_time()
    clean_prompt((unit * MAX_CHARACTERS)[:MAX_CHARACTERS])
    assert time.process_time() - start < 4


@pytest.mark.parametrize("unit", ["a", " "])
def test_a_run_in_which_nothing_is_found_is_gone_through_once(unit):
    start = time.process_time()
    _substitute("x" + unit * 60_000 + "x", _BEFORE_REPAIR)  # by its square: more than 10 seconds
    assert time.process_time() - start < 4


def test_a_prompt_too_long_to_be_cleaned_is_refused_with_its_length():
    with pytest.raises(ValueError, match="The prompt has 5001 characters; at most 5000 are cleaned"):
        clean_prompt("a" * 5001)


@pytest.mark.parametrize("prompt", ["<![x]>", "a star <![foo bar]]>", "<![x["])
def test_what_is_no_html_is_refused_in_a_sentence(prompt):
    with pytest.raises(ValueError, match="something like HTML that cannot be read"):
        clean_prompt(prompt)


def test_rules_that_begin_at_a_runs_start_find_what_they_would_find_anywhere():
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choices(["a", ".", " ", "\t", "png", ".png", ".jpg", "b.", "\n", "é"], k=rng.randrange(14)))
        for anywhere, anchored in ((r"\S+\.(?:png|jpg)", r"(?<!\S)\S+\.(?:png|jpg)"),
                                   (r"\s+\.\s+", r"(?<!\s)\s+\.\s+")):  # fmt: skip
            assert re.sub(anywhere, "|", text) == re.sub(anchored, "|", text), text
