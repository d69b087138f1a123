"""Prompt files, the command that draws them, going on after a kill, several processes, and the contact sheet."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stopped
from PIL import Image

from pixart.evaluation.__main__ import main, parser, unusual
from pixart.evaluation.judges import named, scene_of
from pixart.evaluation.prompts import Prompt, choose, read_prompts
from pixart.evaluation.results import Result, append, by_category, read_table, recorded, write_table
from pixart.evaluation.run import Settings
from pixart.evaluation.sheet import Entry, draw_sheet
from pixart.sampling_transformer import Recipe
from pixart.training.demo import captions
from pixart.training.demo.drawing import draw, place

ROOT = Path(__file__).resolve().parents[2]
SET = ROOT / "demo" / "prompts.csv"
QUICK = ["--steps", "2", "--limit", "4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("drawbench.csv", 'Prompts,Category\n"A red car, and a sheep.",Colors\nA cat,Counting\n'),
        (
            "parti.tsv",
            "Prompt\tCategory\tChallenge\tNote\nA red car, and a sheep.\tColors\tx\ty\nA cat\tCounting\tx\ty\n",
        ),
        (
            "list.json",
            '[{"prompt": "A red car, and a sheep.", "category": "Colors"}, {"text": "A cat", "tag": "Counting"}]',
        ),
        ("groups.json", '{"Colors": ["A red car, and a sheep."], "Counting": [{"prompt": "A cat"}]}'),
        ("lines.txt", "# Colors\nA red car,  and a sheep.\n\n# Counting\nA cat\n"),
    ],
)
def test_prompts_and_categories_are_read_from_every_layout(tmp_path, name, text):
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == [
        Prompt(0, "A red car, and a sheep.", "Colors"),
        Prompt(1, "A cat", "Counting"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        (
            "a.csv",
            'prompt,category\n"a ""red"" cat, and",x\nthe "blue" one,y\n',
            ['a "red" cat, and', 'the "blue" one'],
        ),
        ("a.tsv", 'Prompt\tCategory\n"a ""red"" cat"\tx\nb\ty\n', ['a "red" cat', "b"]),
        ("a.tsv", 'Prompt\tCategory\n"Exit" sign\tx\nb\ty\n', ['"Exit" sign', "b"]),
        ("a.tsv", 'Prompt\tCategory\n"Oh no!\tx\nb\ty\nsay "hi"\tz\n', ['"Oh no!', "b", 'say "hi"']),
    ],
)
def test_quotation_marks_in_prompts_swallow_nothing(tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    assert [prompt.text for prompt in read_prompts(tmp_path / name)] == found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_prompt_file_may_be_in_what_windows_writes(tmp_path, encoding, end):
    for name, lines in {"a.txt": ["# Tiere", "ein Käfer", "二"], "a.csv": ["prompt", "ein Käfer", "二"]}.items():
        text = ("\ufeff" if encoding == "utf-16-be" else "") + end.join(lines) + end
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert [prompt.text for prompt in read_prompts(tmp_path / name)] == ["ein Käfer", "二"]


def test_one_object_with_a_prompt_is_one_prompt(tmp_path):
    (tmp_path / "a.json").write_text('{"Prompt": "a cat", "category": "cats", "seed": 4}')
    assert read_prompts(tmp_path / "a.json") == [Prompt(0, "a cat", "cats", 4)]


def test_a_category_is_one_line_as_a_prompt_is(tmp_path):
    (tmp_path / "a.json").write_text('[{"prompt": "a\\n cat", "category": "two\\nlines"}]')
    assert read_prompts(tmp_path / "a.json") == [Prompt(0, "a cat", "two lines")]


def test_a_seed_is_the_files_own_or_follows_from_the_place_in_the_file(tmp_path):
    (tmp_path / "seeds.csv").write_text("prompt,seed,category\none,,a\ntwo,77,b\nthree,,b\n")
    prompts = read_prompts(tmp_path / "seeds.csv")
    assert [prompt.seed_from(100) for prompt in prompts] == [100, 77, 102]
    assert [prompt.seed_from(100) for prompt in choose(prompts, "b")] == [77, 102]
    assert [prompt.text for prompt in choose(prompts, "A, B", limit=2)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("words.csv", "sentence,kind\nA cat,x\n", "columns 'sentence', 'kind'.*“prompt”"),
        ("empty.txt", "# only a heading\n", "empty.txt holds no prompt: write one on every line"),
        ("open.csv", 'prompt,category\n"a cat,x\nb,y\n', "unexpected end of data.*written twice"),
        ("bare.csv", 'prompt,category\n"Exit" sign,x\n', "expected after.*written twice"),
        ("latin.csv", "prompt\n\udce9\n", "no UTF-8 text .see byte 7.: save it as UTF-8"),
        ("odd.json", '[{"prompt": 3}]', "entry 1"),
        ("odd.json", "{", "no JSON"),
        ("odd.json", '"text"', "holds a str"),
        ("seeds.csv", "prompt,seed\nA cat,-4\n", "line 2.*'-4'"),
        ("prompts.xlsx", "", r"\.csv, \.tsv, \.json, \.txt"),
    ],
)
def test_what_is_no_prompt_file_is_refused_with_the_remedy(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_an_unknown_category_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'cats'.*'circles', 'squares'"):
        choose(read_prompts(SET), "cats")


def test_the_demos_prompts_are_forty_in_four_categories_and_say_what_the_judge_reads():
    prompts = read_prompts(SET)
    counts = {name: len(choose(prompts, name)) for name in ("circles", "squares", "triangles", "stars")}
    assert counts == dict.fromkeys(counts, 10) and len(prompts) == 40 == len({prompt.text for prompt in prompts})
    for prompt in prompts:
        scene = scene_of(prompt.text, captions)
        assert scene.caption() == prompt.text


def test_the_judge_tells_right_from_wrong():
    judge = named("demo")
    scene = captions.Scene("large", "red", "square", "left", "white")
    (picture,) = draw([place(scene, 128, 128)], 128, 128)
    assert judge("a large red square on the left, white background", picture) == (1.0, [])
    share, wrong = judge("a large blue square on the right, white background", picture)
    assert wrong == ["colour", "position"] and share == pytest.approx(3 / 5)
    assert judge("hello", picture) is None


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: Image.open(file).tobytes() for file in sorted(folder.glob("0*.png"))}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pixart.evaluation", *arguments]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command("--out", str(folder), *QUICK, "--judge", "demo"), env=ENVIRONMENT, check=True, cwd=ROOT)
    return folder


def test_a_run_leaves_pictures_a_table_and_a_sheet(whole, capsys):
    rows = read_table(whole / "results.csv")
    assert [(row.index, row.seed, row.category) for row in rows] == [(i, i, "circles") for i in range(4)]
    assert all(
        float(row.seconds) > 0 and row.score and "dpm-solver++, 2 steps, cfg 4.5" in row.settings for row in rows
    )
    assert len(pictures(whole)) == 4 == len(set(pictures(whole).values()))
    assert Image.open(whole / "sheet.png").width > 4 * 128


def test_a_killed_run_goes_on_where_it_was_and_draws_the_same(whole, tmp_path):
    after_two = stopped.command("pixart.evaluation.run:append", 2, "pixart.evaluation", "--out", str(tmp_path), *QUICK)
    stopped.kill_when_stopped(subprocess.Popen(after_two, env=ENVIRONMENT, cwd=ROOT))
    table, done = tmp_path / "results-0.csv", len(recorded(tmp_path))
    assert done == 2
    with table.open("a") as file:
        file.write('3,colours,"a gre')  # as if it had died while writing
    kept = {name: (tmp_path / name).stat().st_mtime_ns for name in pictures(tmp_path) if name < f"{done:05}"}
    subprocess.run(command("--out", str(tmp_path), *QUICK), env=ENVIRONMENT, check=True, cwd=ROOT)
    assert pictures(tmp_path) == pictures(whole)
    assert [row.index for row in read_table(tmp_path / "results.csv")] == [0, 1, 2, 3]
    assert kept == {name: (tmp_path / name).stat().st_mtime_ns for name in kept}


def test_two_processes_draw_what_one_draws(whole, tmp_path):
    # As accelerate launch does for several cards; for the processor it starts one process, whatever it is asked for.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*launch, "-m", "pixart.evaluation", "--device", "cpu", "--out", str(tmp_path), *QUICK]
    done = subprocess.run(
        line, env=ENVIRONMENT, check=True, cwd=ROOT, capture_output=True, text=True, timeout=stopped.GUARD
    )
    assert done.stderr.count("1 of 2: ") == done.stderr.count("2 of 2: ") == 2, "each draws half of them"
    assert pictures(tmp_path) == pictures(whole)
    assert [row.index for row in read_table(tmp_path / "results.csv")] == [0, 1, 2, 3]


def test_a_folder_of_other_settings_or_prompts_is_refused(whole, capsys):
    assert main(["--out", str(whole), "--steps", "3", "--limit", "4"]) == 2
    assert "2 steps" in (told := capsys.readouterr().err) and "choose another folder" in told
    assert main(["--out", str(whole), *QUICK, "--seed", "5"]) == 2
    assert "the prompts or the seed have changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("--dtype", "bf16"), "bf16"),
        (("--t5", "other/t5.safetensors"), "t5 t5.safetensors"),
        (("--vae", "other/vae"), "vae vae"),
        (("--method", "lcm", "--timesteps", "original"), "original timesteps"),
        (("--negative", "no\nred"), "without “no red”"),
    ],
)
def test_whatever_changes_a_picture_is_among_the_settings_of_its_run(changed, told):
    """A run that goes on compares them, so that one folder never holds pictures of two."""

    def settings(*options: str) -> str:
        args = parser().parse_args(["--out", "x", *options])
        recipe = Recipe(args.method, 2, 1.0, source=args.timesteps)
        return str(Settings("m", recipe, 8, 8, args.negative, others=unusual(args)))

    assert told in settings(*changed) and told not in settings(*changed[:2] if len(changed) > 2 else ())
    assert "\n" not in settings(*changed)


def test_no_steps_at_all_are_refused(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--steps", "0"]) == 2
    assert "steps is 0" in capsys.readouterr().err


def test_rows_of_several_tables_are_joined_and_counted_by_category(tmp_path):
    for index in range(3):
        (tmp_path / f"{index:05}.png").write_bytes(b"x")
        row = Result(index, "ab"[index % 2], "p", index, f"{index:05}.png", "2.0", "s", "1" if index else "0.5")
        append(tmp_path / f"results-{index % 2}.csv", row)
    (tmp_path / "00001.png").unlink()
    done = recorded(tmp_path)
    assert sorted(done) == [0, 2]
    assert by_category(list(done.values())) == [("a", 2, 1, 2.0), ("all", 2, 1, 2.0)]
    write_table(tmp_path / "results.csv", done.values())
    with (tmp_path / "results.csv").open() as file:
        assert [row["index"] for row in csv.DictReader(file)] == ["0", "2"]


def test_a_sheet_has_its_pictures_in_rows_under_their_categories():
    colours = ("red", "lime", "blue", "yellow")
    entries = [
        Entry(Image.new("RGB", (64, 64), c), "a label that is far too long " * 9, "seed", "ab"[i > 1])
        for i, c in enumerate(colours)
    ]
    sheet = draw_sheet(entries, columns=2, title="settings")
    names = {colour: colour for colour in colours}
    places = {}
    for colour in names:
        mask = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        points = [(x, y) for y in range(sheet.height) for x in range(sheet.width) if sheet.getpixel((x, y)) == mask]
        assert len(points) >= 64 * 64 - 64
        places[colour] = points[0]
    assert places["red"][1] == places["lime"][1] < places["blue"][1] == places["yellow"][1]
    assert places["red"][0] == places["blue"][0] < places["lime"][0]
    with pytest.raises(ValueError, match="no picture"):
        draw_sheet([], 2)
    with pytest.raises(ValueError, match="columns is 0"):
        draw_sheet(entries, 0)
    with pytest.raises(ValueError, match="set more columns"):
        draw_sheet(entries * 200, 1)
