"""What the reference pipelines do to a prompt before they tokenise it."""

from __future__ import annotations

import html
import re
import warnings
from urllib.parse import unquote_plus

_URL = r"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/\-]*\b/?(?!@))"
_FILE_TYPES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    "\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)

MAX_CHARACTERS = 5000
"""Of a caption to be cleaned: some of the rules take time by the square of its length. T5 reads 300 tokens."""

# Where a rule begins with a repetition, (?<!…) lets it begin at the first of a run alone. What is found is the same,
# and a long run in which nothing is found is gone through once instead of once for every character.
_BEFORE_HTML = (
    ("<person>", "person"),
    (_URL.format(scheme="https?"), ""),
    (_URL.format(scheme="www"), ""),
)

_BEFORE_REPAIR = (
    (r"@\w+\b", ""),  # nicknames
    ("[\u31c0-\u9fff]+", ""),  # CJK strokes through unified ideographs
    (rf"[\-{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a backslash and an n, as careless exports write line ends
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"(?<!\S)\S+\.{_FILE_TYPES}", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"(?<!\s)\s+\.\s+", " "),
)

_AFTER_REPAIR = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article codes: ab1234
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPES}(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # Latin x, Cyrillic х, multiplication sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # Outer spaces are still there, and keep the rules below from the characters behind them.
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str) -> str:
    """One pass of the reference's caption cleaning; lowercases, and removes links, markup and advertising.

    Raises ValueError when ftfy or beautifulsoup4 is not installed, or for more than ``MAX_CHARACTERS``.
    Source: PixArt-α, t5.py, clean_caption, in the form that the diffusers pipelines give it. The original strips
    once more before ``_AFTER_REPAIR``, which matters only to a dash, quote or dot beside removed matter at an end.
    """
    _check_length(text)
    return _clean(text)


def _check_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"The prompt has {len(text)} characters; at most {MAX_CHARACTERS} are cleaned. Shorten it, or switch "
            "clean_caption off."
        )


def _clean(text: str) -> str:
    fix_text, text_of_html = _libraries()
    text = _substitute(unquote_plus(text).strip().lower(), _BEFORE_HTML)
    text = _substitute(text_of_html(text), _BEFORE_REPAIR)
    if len(re.findall("[-_]", text)) > 3:  # words-joined-like-this
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(fix_text(text)))
    return _substitute(text, _AFTER_REPAIR).strip()


def clean_prompt(text: str) -> str:
    """Caption cleaning as the pipelines apply it: two passes. Raises ValueError as ``clean_caption`` does."""
    _check_length(text)
    return _clean(_clean(text))  # the first may have made it longer


def _substitute(text: str, rules) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _libraries():
    """``ftfy.fix_text`` and a function from HTML to its text; imported late because only cleaning needs them."""
    try:
        import ftfy
        from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
        from bs4.builder import ParserRejectedMarkup
    except ImportError as error:
        raise ValueError(
            f"Caption cleaning needs the Python packages ftfy and beautifulsoup4 ({error}). Install them with "
            "'pip install ftfy beautifulsoup4', or switch clean_caption off."
        ) from error

    def text_of_html(text: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a caption may look like a file name
            try:
                return BeautifulSoup(text, features="html.parser").text
            except (ParserRejectedMarkup, AssertionError, RecursionError) as error:
                raise ValueError(
                    "The prompt holds something like HTML that cannot be read as such. Take away its < and >, or "
                    "switch clean_caption off."
                ) from error

    return ftfy.fix_text, text_of_html
