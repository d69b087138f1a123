"""Aspect-ratio bins: every size of the tables, the reference's choice among them, and names people can read."""

import json
import math
from pathlib import Path

import pytest

from pixart.resolution import (
    BASES,
    Bin,
    advice,
    bin_named,
    bins,
    default_ratio_option,
    nearest_base,
    nearest_bin,
    ratio_options,
)

# PixArt's table for 1024, height × width.
REFERENCE_1024 = """
0.25 512x2048, 0.26 512x1984, 0.27 512x1920, 0.28 512x1856, 0.32 576x1792, 0.33 576x1728, 0.35 576x1664, 0.4 640x1600,
0.42 640x1536, 0.48 704x1472, 0.5 704x1408, 0.52 704x1344, 0.57 768x1344, 0.6 768x1280, 0.68 832x1216, 0.72 832x1152,
0.78 896x1152, 0.82 896x1088, 0.88 960x1088, 0.94 960x1024, 1.0 1024x1024, 1.07 1024x960, 1.13 1088x960, 1.21 1088x896,
1.29 1152x896, 1.38 1152x832, 1.46 1216x832, 1.67 1280x768, 1.75 1344x768, 2.0 1408x704, 2.09 1472x704, 2.4 1536x640,
2.5 1600x640, 2.89 1664x576, 3.0 1728x576, 3.11 1792x576, 3.62 1856x512, 3.75 1920x512, 3.88 1984x512, 4.0 2048x512
"""
# PixArt's table for 2880.
REFERENCE_2880 = """
0.25 1408x5760, 0.26 1408x5568, 0.27 1408x5376, 0.28 1408x5184, 0.32 1600x4992, 0.33 1600x4800, 0.34 1600x4672,
0.4 1792x4480, 0.42 1792x4288, 0.47 1920x4096, 0.49 1920x3904, 0.51 1920x3776, 0.55 2112x3840, 0.59 2112x3584,
0.68 2304x3392, 0.72 2304x3200, 0.78 2496x3200, 0.83 2496x3008, 0.89 2688x3008, 0.93 2688x2880, 1.0 2880x2880,
1.07 2880x2688, 1.12 3008x2688, 1.21 3008x2496, 1.28 3200x2496, 1.39 3200x2304, 1.47 3392x2304, 1.7 3584x2112,
1.82 3840x2112, 2.03 3904x1920, 2.13 4096x1920, 2.39 4288x1792, 2.5 4480x1792, 2.92 4672x1600, 3.0 4800x1600,
3.12 4992x1600, 3.68 5184x1408, 3.82 5376x1408, 3.95 5568x1408, 4.0 5760x1408
"""
NOT_IN_4096 = {"0.27", "0.28", "2.89", "3.11", "3.62", "3.75", "3.88"}
EVERY_BIN = [entry for base in BASES for entry in bins(base)]


def parse(text):
    return {ratio: tuple(map(int, size.split("x"))) for ratio, size in (entry.split() for entry in text.split(","))}


def reference(base):
    if base == 2880:
        return parse(REFERENCE_2880)
    table = {
        ratio: (height * base // 1024, width * base // 1024) for ratio, (height, width) in parse(REFERENCE_1024).items()
    }
    return {ratio: size for ratio, size in table.items() if base != 4096 or ratio not in NOT_IN_4096}


@pytest.mark.parametrize("base", BASES)
def test_every_size_of_every_table_is_the_references(base):
    assert {entry.ratio: (entry.height, entry.width) for entry in bins(base)} == reference(base)
    assert len(bins(base)) == (33 if base == 4096 else 40)


def test_the_shipped_file_holds_these_six_tables_and_nothing_else():
    path = Path(__file__).parent.parent.parent / "pixart" / "data" / "aspect_ratios.json"
    assert list(json.loads(path.read_text())) == [str(base) for base in BASES]


@pytest.mark.parametrize("entry", EVERY_BIN, ids=lambda entry: f"{entry.base}-{entry.ratio}")
def test_a_bin_is_what_its_name_says(entry):
    assert entry.height % 16 == 0 and entry.width % 16 == 0
    assert abs(float(entry.ratio) - entry.height / entry.width) <= 0.0910  # 2880's "4.0" is 4.09
    wanted = "square" if entry.ratio == "1.0" else "landscape" if float(entry.ratio) < 1 else "portrait"
    assert entry.orientation == wanted
    assert entry.label == f"{float(entry.ratio):.2f} · {entry.width} × {entry.height} ({wanted})"
    assert 0.87 < entry.height * entry.width / entry.base**2 <= 1
    assert entry.tokens * 256 == entry.height * entry.width


def test_labels_put_width_first():
    assert bin_named(1024, "0.57").label == "0.57 · 1344 × 768 (landscape)"
    assert bin_named(1024, "1.75").label == "1.75 · 768 × 1344 (portrait)"
    assert bin_named(1024, "1.00").label == "1.00 · 1024 × 1024 (square)"
    assert bin_named(1024, "1.00").tokens == 4096


class TestNames:
    @pytest.mark.parametrize("base", BASES)
    def test_labels_options_and_keys_name_every_bin_of_their_base(self, base):
        options = {option.split()[0]: option for option in ratio_options()}
        for entry in bins(base):
            assert bin_named(base, entry.label) is entry
            assert bin_named(base, entry.ratio) is entry
            assert bin_named(base, f"{float(entry.ratio):.2f}") is entry
            assert bin_named(base, options[entry.ratio]) is entry

    @pytest.mark.parametrize("base", BASES)
    def test_every_option_works_at_every_base_and_keeps_its_orientation(self, base):
        for option in ratio_options():
            entry = bin_named(base, option)
            assert entry.base == base
            assert entry.orientation == option.split()[1]
            assert abs(float(entry.ratio) - float(option.split()[0])) <= 0.38

    def test_options_are_the_63_ratios_of_all_tables_widest_first(self):
        options = ratio_options()
        ratios = [float(option.split()[0]) for option in options]
        assert len(options) == len(set(options)) == 63
        assert ratios == sorted({float(entry.ratio) for entry in EVERY_BIN})

    def test_options_show_orientation_and_pixels(self):
        options = ratio_options()
        assert options[0] == "0.25 landscape · 2048 × 512 at 1024"
        assert options[-1] == "4.0 portrait · 512 × 2048 at 1024"
        assert "0.55 landscape · 3840 × 2112 at 2880" in options
        assert default_ratio_option() == "1.0 square · 1024 × 1024 at 1024"

    def test_a_ratio_that_the_base_lacks_takes_the_nearest(self):
        assert bin_named(1024, "0.55").ratio == "0.57"  # 2112 / 3840 = 0.55, from 2880's table
        assert bin_named(2880, "0.57").ratio == "0.59"  # 768 / 1344 = 0.571
        assert bin_named(4096, "3.88").ratio == "4.0"

    def test_an_unknown_ratio_names_near_ones(self):
        with pytest.raises(ValueError, match=r"ratio 0\.9 .*0\.88 · 1088 × 960 \(landscape\); 0\.94 · 1024 × 960"):
            bin_named(1024, "0.9")

    @pytest.mark.parametrize("text", ["", "square", "16:9", "1024 × 1024", "1.0x", "1024x1024"])
    def test_a_text_without_a_ratio_is_refused(self, text):
        with pytest.raises(ValueError, match="names no aspect ratio"):
            bin_named(1024, text)

    def test_an_unknown_base_is_refused(self):
        with pytest.raises(ValueError, match="for base 768; choose one of 256, 512, 1024, 2048, 2880, 4096"):
            bins(768)


class TestNearest:
    @pytest.mark.parametrize("base", [base for base in BASES if base != 2880])
    def test_a_bins_own_size_gives_the_bin(self, base):
        for entry in bins(base):
            assert nearest_bin(entry.height, entry.width, base) is entry

    def test_three_keys_of_2880_are_so_rounded_that_the_reference_takes_their_neighbour(self):
        found = {entry.ratio: nearest_bin(entry.height, entry.width, 2880).ratio for entry in bins(2880)}
        assert {key: ratio for key, ratio in found.items() if key != ratio} == {
            "0.26": "0.25", "0.27": "0.26", "0.28": "0.27"
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("height", "width", "ratio"),
        [(1080, 1920, "0.57"), (1920, 1080, "1.75"), (3, 4, "0.72"), (1, 100, "0.25"), (100, 1, "4.0"), (7, 7, "1.0")],
    )
    def test_the_reference_rule(self, height, width, ratio):
        table = parse(REFERENCE_1024)
        assert min(table, key=lambda key: abs(float(key) - height / width)) == ratio
        assert nearest_bin(height, width, 1024).ratio == ratio

    def test_of_two_equally_near_ratios_the_first_wins(self):
        # 2.25 lies between 2.0 and 2.5 with the same distance in binary too; 2.09 and 2.4 are nearer.
        assert nearest_bin(9, 4, 1024).ratio == "2.4"
        # 3.8125 = 61/16 is nearest to 3.82 at 2880; 3.5 lies exactly between 3.0 and 4.0 at 4096.
        assert abs(3.0 - 3.5) == abs(4.0 - 3.5)
        assert nearest_bin(7, 2, 4096).ratio == "3.0"

    def test_without_a_base_the_nearest_area_decides(self):
        assert nearest_bin(1080, 1920) == Bin(1024, "0.57", 768, 1344)
        assert nearest_bin(2160, 3840) == Bin(2880, "0.55", 2112, 3840)
        assert nearest_bin(64, 64).base == 256
        assert nearest_bin(9000, 9000).base == 4096

    def test_bases_change_at_the_geometric_mean(self):
        edge = math.sqrt(512 * 1024)  # 724.08
        assert nearest_base(724, 724) == 512 and nearest_base(725, 725) == 1024
        assert 724 < edge < 725

    def test_a_size_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="0 pixels has no aspect ratio"):
            nearest_bin(0, 512)


class TestAdvice:
    @pytest.mark.parametrize("native", [256, 512, 1024, 2048])
    def test_every_bin_of_the_checkpoints_own_base_needs_none(self, native):
        assert [advice(entry.height, entry.width, native) for entry in bins(native)] == [None] * 40

    def test_a_picture_too_large_or_too_small_names_the_bin(self):
        assert advice(1080, 1920, 512) == (
            "1920 × 1080 is 7.9 times the area for a checkpoint trained around 512 × 512; 672 × 384 fits."
        )
        assert advice(512, 512, 1024) == (
            "512 × 512 is 0.25 times the area for a checkpoint trained around 1024 × 1024; 1024 × 1024 fits."
        )

    def test_a_picture_too_long_names_the_bin(self):
        assert advice(320, 2560, 1024) == (
            "2560 × 320 is an aspect of 8:1 for a checkpoint trained up to 4:1; 2048 × 512 fits."
        )

    def test_twice_the_area_is_far_and_less_is_not(self):
        assert advice(1440, 1440, 1024) is None
        assert "2 times the area" in advice(1024, 2048, 1024)

    def test_a_native_size_without_a_table_is_scaled_from_1024(self):
        assert advice(128, 128, 128) is None
        assert advice(768, 1344, 128).endswith("trained around 128 × 128; 160 × 96 fits.")
