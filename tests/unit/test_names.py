"""Which file names a workflow may give, and which are refused on every system alike."""

from __future__ import annotations

import pytest

from pixart.names import leads_out, oddity

FINE = [
    "a.csv", "captions/PixArt", "sub/two/a b.safetensors", "./a.csv", "a//b.csv", "v1.5.safetensors", "..a", "a..b.csv",
    "提示词：第一（1）.csv", "наброски.txt", "نماذج.csv", "family\u200demoji.csv", "console.csv", "nullable.txt",
    "com10.csv",     "%year%-%month%/PixArt", "half …and more.csv", "",
]  # fmt: skip

OUT = [
    "..", "../a.csv", "a/../../b.csv", "a/..", "..\\a.csv", "a\\..\\..\\b", "/etc/passwd", "//server/share/a.csv",
    "\\\\server\\share\\a.csv", "\\a.csv", "C:\\a.csv", "C:a.csv", "c:/a.csv", "\\\\?\\C:\\a.csv", "\\\\.\\NUL",
]  # fmt: skip

ODD = {
    "a\0.csv": "U+0000", "a\n.csv": "U+000A", "a\x1b[2J.csv": "U+001B", "a\x7f.csv": "U+007F",
    "a\u202egnp.csv": "U+202E", "a\u2066b.csv": "U+2066", "\u200fa.csv": "U+200F", "\ufeffa.csv": "U+FEFF",
    "a\ud800.csv": "U+D800", "a\u2028b.csv": "U+2028",
    "..\uff0fa.csv": "slash", "a\uff3cb.csv": "slash", "\u2100.csv": "slash",
    "\uff0e\uff0e": "looks like", "\u2025": "looks like", "sub/\uff0e./a.csv": "looks like",
    "..\u2215a.csv": "slash", "1\u20442.csv": "slash", "\u2024\u2024/a": "looks like",
    "a.csv.": "dot or a space", "a.csv ": "dot or a space", "a /b.csv": "dot or a space", "...": "dot or a space",
    "CON": "device", "nul.csv": "device", "sub/aux.txt": "device", "com1.safetensors": "device", "LPT9": "device",
    "COM¹": "device", "con .txt": "device", "prn.tar.gz": "device", "CONIN$": "device", "nul/a.csv": "device",
    "a" * 256 + ".csv": "255 bytes", "é" * 130: "255 bytes", "a/" * 600 + "b": "more than 1000",
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_ordinary_names_in_every_script_pass(name):
    assert not leads_out(name) and oddity(name) == ""


@pytest.mark.parametrize("name", OUT)
def test_a_name_that_is_absolute_or_climbs_on_any_system_leads_out(name):
    assert leads_out(name) and oddity(name) == "leads out of its folder"


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_is_not_what_it_seems_is_refused_with_the_reason(name):
    assert not leads_out(name)
    assert ODD[name] in oddity(name)


def test_a_colon_is_refused_where_it_names_a_stream():
    assert oddity("a.csv:hidden", windows=True).startswith("holds a colon")
    assert oddity("12:30.csv", windows=False) == ""
