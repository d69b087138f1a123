"""Translations and help pages say what the nodes say, in every language."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tools import locales
from tools.schemas import SchemaError, Slot, read_nodes

ROOT = Path(__file__).resolve().parents[2]
NODES = read_nodes(ROOT / "nodes")
ENGLISH = locales.english(NODES)
LANGUAGES = ("de", "en", "es", "fr", "ja", "ko", "zh", "zh-TW")
OTHERS = tuple(language for language in LANGUAGES if language != "en")
CJK = ("ja", "ko", "zh", "zh-TW")
PURE_NAMES = {"CLIP", "Latent", "PixArt"}
"""Strings that people who read Chinese, Japanese or Korean see in ComfyUI in Latin letters as well."""

MESSAGE_SYNTAX = re.compile(r"[{}@|]")
"""What vue-i18n takes for placeholders, linked messages and plural forms instead of text."""

KEPT = re.compile(
    r"\b(?:models/\w+|KSampler|ComfyUI|CLIP|T5|safetensors|diffusers|auto|cpu|fp(?:8|16|32)|pixart|LCM|UHD)\b"
    r"|PixArt-[αΣ]|\.pth|\(word:1\.2\)|%year%"
)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)*(?![\d])")

PLACEHOLDER = re.compile(r"%\w+%")

PICTURES = {"en": "node.png", "zh": "node.zh.png"}
PAGES = {"en": "## Inputs", "zh": "## 输入"}
GRAPHS = {"en": "## A minimal graph", "zh": "## 最小工作流"}


def translation(language: str) -> dict[tuple[str, ...], str]:
    return dict(locales.strings(locales.read(language)))


def name_of(path: tuple[str, ...]) -> str:
    return ".".join(path)


def test_the_nodes_are_found():
    assert {"PixArtLoadCheckpoint", "PixArtLoadT5", "PixArtTextEncode"} <= set(ENGLISH)


def test_every_language_has_its_folder():
    assert locales.languages() == list(LANGUAGES)


def test_english_is_what_the_schemas_say():
    assert locales.read("en") == ENGLISH, "python3 tools/locales.py writes it anew"


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_untranslated_and_nothing_is_stale(language):
    untranslated, stale = locales.compare(ENGLISH, locales.read(language))
    assert (untranslated, stale) == ([], [])


@pytest.mark.parametrize("language", OTHERS)
def test_sentences_are_not_english(language):
    words, found = dict(locales.strings(ENGLISH)), translation(language)
    sentences = [path for path in words if path[-1] != "name"]
    assert [name_of(path) for path in sentences if found[path] == words[path]] == []


@pytest.mark.parametrize("language", CJK)
def test_cjk_strings_hold_their_script(language):
    plain = {name_of(path): text for path, text in translation(language).items() if text.isascii()}
    assert {path: text for path, text in plain.items() if text not in PURE_NAMES} == {}


@pytest.mark.parametrize("language", OTHERS)
def test_numbers_values_and_folders_survive_translation(language):
    found = translation(language)
    lost = {}
    for path, text in locales.strings(ENGLISH):
        if path[-1] in ("tooltip", "description"):
            kept = {*KEPT.findall(text), *NUMBER.findall(text)}
            missing = sorted(word for word in kept if word not in found[path])
            lost |= {name_of(path): missing} if missing else {}
    assert lost == {}


def words_of(language: str, file: str) -> dict:
    return json.loads((ROOT / "locales" / language / f"{file}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_front_end_takes_every_string_literally(language):
    every = translation(language)
    for file in ("main", "settings", "commands"):
        every |= dict(locales.strings(words_of(language, file), (file,)))
    assert {name_of(path): text for path, text in every.items() if MESSAGE_SYNTAX.search(text)} == {}
    assert {name_of(path) for path, text in every.items() if text != text.strip()} == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_only_the_packs_own_words_are_named(language):
    """ComfyUI's own words for loaders, conditioning and latent would be overwritten for all other nodes."""
    main = words_of(language, "main")
    assert set(main) == {"nodeCategories", "settingsCategories", "pixart"}
    assert main["nodeCategories"] == {"PixArt": "PixArt"}
    assert {name for name in main["settingsCategories"] if not name.startswith("PixArt")} == set()


@pytest.mark.parametrize("file", ["main", "settings", "commands"])
@pytest.mark.parametrize("language", OTHERS)
def test_widgets_settings_and_commands_are_translated_whole(language, file):
    english = dict(locales.strings(words_of("en", file)))
    found = dict(locales.strings(words_of(language, file)))
    assert set(found) == set(english)
    for path, text in english.items():
        assert sorted(PLACEHOLDER.findall(found[path])) == sorted(PLACEHOLDER.findall(text)), path
        words = PLACEHOLDER.sub("", text).replace("tokens", "").split()
        if len(words) > 1 and path[-1] != "size":
            assert found[path] != text, path
            assert language not in CJK or not found[path].isascii(), path


def test_the_front_end_extension_speaks_only_translated_words():
    source = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "js").glob("*.*js")))
    used = set(re.findall(r'say\((?:\w+ \? )?"(\w+)"(?: : "(\w+)")?', source))
    used = {word for pair in used for word in pair if word}
    assert used == set(words_of("en", "main")["pixart"])
    settings = words_of("en", "settings")
    ids = set(re.findall(r'shown\("(\w+)"', source))
    assert {f"PixArt_Widgets_{name}" for name in ids} | {"PixArt_Widgets_Delay", "PixArt_Doctor_Open"} == set(settings)
    for entry in settings.values():
        assert f'"{entry["name"]}"' in source and f'"{entry["tooltip"]}"' in source


@pytest.mark.parametrize("language", PAGES)
@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_help_page_explains_every_input_and_output(node, language):
    page = (locales.DOCS / node.node_id / f"{language}.md").read_text(encoding="utf-8")
    labels = locales.read(language)[node.node_id]
    assert page.startswith(f"# {labels['display_name']}\n")
    assert PAGES[language] in page and GRAPHS[language] in page
    picture = PICTURES[language]
    assert f"]({node.node_id}/{picture})" in page and (locales.DOCS / node.node_id / picture).is_file()
    rows = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    names = [entry.name for entry in node.inputs]
    assert rows[: len(names)] == names
    assert len(rows) == len(names) + len(node.outputs)


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_other_languages_fall_back_to_the_english_page(node):
    fallback = (locales.DOCS / f"{node.node_id}.md").read_bytes()
    assert fallback == (locales.DOCS / node.node_id / "en.md").read_bytes(), "python3 tools/locales.py copies it anew"


def test_no_help_page_is_for_a_node_that_is_gone():
    assert {page.stem for page in locales.DOCS.glob("*.md")} == set(ENGLISH)
    assert {folder.name for folder in locales.DOCS.iterdir() if folder.is_dir()} == set(ENGLISH)


@pytest.mark.parametrize("language", PAGES)
def test_help_pages_name_nodes_that_exist(language):
    named = set()
    for page in locales.DOCS.glob(f"*/{language}.md"):
        named |= set(re.findall(r"\bPixArt[A-Z]\w+", page.read_text(encoding="utf-8")))
    assert named - set(ENGLISH) == set()


SOURCE = '''
from .words import WIDTH, size

TAIL = "in pixels."

def batch(name="batch_size"):
    """One more."""
    return io.Int.Input(name, tooltip=f"How many {TAIL}")

class Node(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Node", display_name="A " "Node", description="Does it.",
            inputs=[io.Combo.Input("files", options=list_files(), tooltip="Any."), *size("Height " + TAIL), batch()],
            outputs=[io.Model.Output(tooltip="It."), io.Int.Output(display_name="w", tooltip=WIDTH)],
        )
'''
WORDS = """
WIDTH: str = "Width."

def size(tip, name="height"):
    return [io.Int.Input("width", tooltip=WIDTH), io.Int.Input(name, tooltip=tip)]
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "node.py").write_text(SOURCE)
    (tmp_path / "words.py").write_text(WORDS)
    return tmp_path


def test_schemas_are_read_through_constants_functions_and_imports(source):
    (node,) = read_nodes(source)
    assert (node.node_id, node.display_name, node.description) == ("Node", "A Node", "Does it.")
    assert node.inputs == (
        Slot("files", "Any."),
        Slot("width", "Width."),
        Slot("height", "Height in pixels."),
        Slot("batch_size", "How many in pixels."),
    )
    assert node.outputs == (Slot(None, "It."), Slot("w", "Width."))
    outputs = {"0": {"tooltip": "It."}, "1": {"name": "w", "tooltip": "Width."}}
    assert locales.english([node])["Node"]["outputs"] == outputs


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('tooltip="Any."', 'tooltip=help_for("files")', "line 15: tooltip must be .* found an expression"),
        ('tooltip="Any."', 'default="x"', "line 15: tooltip must be .* found nothing"),
        ('"Does it."', '"  "', "line 13: description must be .* found '  '"),
        ("*size(", "*more_sizes(", "line 13: inputs of the schema cannot be read"),
        ("return io.Schema(", "return make_schema(", "define_schema must end in"),
    ],
    ids=["made by a function elsewhere", "no tooltip", "blank", "list made elsewhere", "schema made elsewhere"],
)
def test_a_word_that_cannot_be_read_is_an_error_with_its_line(source, old, new, message):
    assert old in SOURCE
    (source / "node.py").write_text(SOURCE.replace(old, new))
    with pytest.raises(SchemaError, match=message):
        read_nodes(source)


def test_missing_blank_and_stale_keys_are_told_apart():
    expected = {"Node": {"display_name": "A", "inputs": {"x": {"name": "x"}}}}
    found = {"Node": {"display_name": " ", "inputs": {"y": {"name": "y"}}}}
    assert locales.compare(expected, found) == (["Node.display_name", "Node.inputs.x.name"], ["Node.inputs.y.name"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_are_called_by_the_name_that_their_users_see(language):
    """Tooltips, and Chinese help pages, name other nodes as this language does and never in English."""
    texts = {name_of(path): text for path, text in translation(language).items()}
    if language in PAGES:
        texts |= {str(page): page.read_text(encoding="utf-8") for page in locales.DOCS.glob(f"*/{language}.md")}
    own = {path[0]: text for path, text in translation(language).items() if path[1:] == ("display_name",)}
    english = {path[0]: text for path, text in locales.strings(ENGLISH) if path[1:] == ("display_name",)}
    foreign = {name for node_id, name in english.items() if own[node_id] != name}
    assert len(own) == len(english) and (foreign or language == "en")
    assert {where: name for where, text in texts.items() for name in foreign if name in text} == {}
