"""The commands of a checkout: how they find a host, change a workflow, and count results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import comfyui, environment, front_end
from tools import test as command
from tools.workflow import WorkflowError, personalise

ROOT = Path(__file__).resolve().parents[2]


def workflow() -> dict:
    return {
        "1": {"class_type": "PixArtLoadT5", "inputs": {"t5_name": "t5.safetensors"}},
        "2": {"class_type": "PixArtTextEncode", "inputs": {"clip": ["1", 0], "text": "old", "max_tokens": 300}},
        "3": {"class_type": "PixArtTextEncode", "inputs": {"clip": ["1", 0], "text": "none", "max_tokens": 300}},
        "4": {"class_type": "PixArtSizeConditioning", "inputs": {"conditioning": ["2", 0], "width": 64, "height": 64}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "6": {
            "class_type": "KSampler",
            "inputs": {"positive": ["4", 0], "negative": ["3", 0], "latent_image": ["5", 0], "seed": 1, "steps": 20},
        },
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "x"}},
    }


def make_host(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def test_the_prompt_goes_to_the_positive_side_alone_and_the_original_stays():
    original = workflow()
    changed, node = personalise(original, "new", seed=7, steps=3, width=256, height=192)
    assert node == "8"
    assert changed["2"]["inputs"]["text"] == "new"
    assert changed["3"]["inputs"]["text"] == "none"
    assert (changed["6"]["inputs"]["seed"], changed["6"]["inputs"]["steps"]) == (7, 3)
    assert changed["5"]["inputs"] == {"width": 256, "height": 192, "batch_size": 1}
    assert changed["4"]["inputs"]["width"] == 64
    assert original == workflow()


def test_the_negative_prompt_goes_to_the_negative_side():
    changed, _ = personalise(workflow(), "new", negative="blur")
    assert (changed["2"]["inputs"]["text"], changed["3"]["inputs"]["text"]) == ("new", "blur")


@pytest.mark.parametrize("source", [["2", 0], ["9", 0]], ids=["shared with the positive", "a null caption"])
def test_a_negative_prompt_gets_a_node_of_its_own_where_there_is_none(source):
    graph = workflow() | {"9": {"class_type": "PixArtNullCaption", "inputs": {"model": ["1", 0]}}}
    graph["6"]["inputs"]["negative"] = source
    changed, _ = personalise(graph, "new", negative="blur")
    node = changed["6"]["inputs"]["negative"][0]
    assert node not in graph
    assert changed[node]["inputs"] == {"clip": ["1", 0], "text": "blur", "max_tokens": 300}
    assert changed["2"]["inputs"]["text"] == "new"


def test_a_setting_without_a_place_is_refused():
    with pytest.raises(WorkflowError, match="no node with a cfg"):
        personalise(workflow(), "new", cfg=4.5)


def test_the_shipped_workflow_takes_every_setting():
    shipped = json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text(encoding="utf-8"))
    changed, node = personalise(shipped, "p", negative="n", seed=5, steps=6, cfg=7.0, width=80, height=96)
    values = [value for data in changed.values() for value in data["inputs"].items()]
    for expected in [("text", "p"), ("text", "n"), ("seed", 5), ("steps", 6), ("cfg", 7.0), ("width", 80)]:
        assert expected in values
    assert changed[node]["class_type"] in ("SaveImage", "PreviewImage")


def test_hosts_are_listed_newest_first_and_versions_are_numbers(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    make_host(tmp_path / "comfy" / "ComfyUI", "0.9.2")
    make_host(tmp_path / "comfy" / "ComfyUI-new", "0.33.0")
    (tmp_path / "comfy" / "ComfyUI-notes").mkdir()
    assert [host.version for host in comfyui.find_hosts()] == ["0.33.0", "0.9.2"]


def test_a_named_folder_that_is_no_host_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(comfyui.HostError, match="COMFYUI_PATH names .* where there is no ComfyUI"):
        comfyui.find_hosts()


def test_a_refused_workflow_is_explained_in_one_line_a_reason():
    problem = {"message": "Value not in list", "details": "vae_name: 'a' not in ['b']", "extra_info": {"much": 1}}
    body = {
        "error": {"message": "Prompt outputs failed validation", "details": "", "extra_info": {}},
        "node_errors": {"3": {"class_type": "VAELoader", "errors": [problem], "dependent_outputs": ["9"]}},
    }
    assert comfyui.refusal(json.dumps(body)).splitlines() == [
        "Prompt outputs failed validation",
        "VAELoader (3): Value not in list, vae_name: 'a' not in ['b']",
    ]
    assert comfyui.refusal("<html>") == "<html>"


def test_an_interrupted_set_up_leaves_nothing_that_a_later_run_takes_for_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    place = tmp_path / "env-1"
    with pytest.raises(KeyboardInterrupt):
        environment.build(place)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_set_up_has_a_python_that_runs(tmp_path):
    environment.build(tmp_path / "env-1")
    ended = subprocess.run([environment.python_of(tmp_path / "env-1"), "-m", "pip", "--version"], capture_output=True)
    assert ended.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["env-1"]


def test_what_a_failed_step_said_is_in_the_error():
    with pytest.raises(environment.SetupError, match="(?s)exit code 3:.*no such wheel.*Try again"):
        environment.run([sys.executable, "-c", "print('no such wheel'); raise SystemExit(3)"], 60, "Try again.")


def test_the_environment_changes_with_the_requirements(tmp_path):
    first = environment.Requirements(tmp_path / "requirements.txt")
    first.path.write_text("torch\n")
    before = environment.fingerprint([first])
    assert before == environment.fingerprint([first])
    first.path.write_text("torch>2\n")
    assert environment.fingerprint([first]) != before


def test_paths_choose_suites_and_options_go_to_all_of_them():
    here = "tests/unit/test_tools.py::test_paths_choose_suites_and_options_go_to_all_of_them"
    assert command.split_arguments([str(ROOT / here), "-k", "paths"]) == ({"unit": [str(ROOT / here)]}, ["-k", "paths"])
    assert set(command.split_arguments(["-x"])[0]) == {"unit", "host", "browser"}


def test_the_front_end_of_a_host_is_the_one_that_it_pins(tmp_path):
    host = comfyui.Host(make_host(tmp_path / "host", "0.14.0"), "0.14.0")
    (host.path / "requirements.txt").write_text(
        "torch\ncomfyui-frontend-package==1.38.14\ncomfyui-workflow-templates\n"
    )
    assert front_end.pinned_version(host) == "1.38.14"
    (host.path / "requirements.txt").write_text("comfyui-frontend-package\n")
    with pytest.raises(environment.SetupError, match="names no version of comfyui-frontend-package"):
        front_end.pinned_version(host)


def test_the_browser_opens_the_newest_host_whole_and_the_oldest_in_part(tmp_path, monkeypatch):
    hosts = [comfyui.Host(tmp_path / version, version) for version in ("0.33.0", "0.24.0", "0.14.0")]
    runs = []

    def note(python, paths, rest, env):
        runs.append((env["COMFYUI_PATH"], list(rest)))
        return command.Count(passed=len(runs))

    def unreachable(host, python):
        raise environment.SetupError("no network")

    monkeypatch.setattr(command, "run_pytest", note)
    monkeypatch.setattr(command, "find_browser", lambda: "/usr/bin/chromium")
    monkeypatch.setattr(command, "own_front_end", lambda host, python: None)
    outcomes = command.run_suite("browser", ["tests/browser"], ["-x"], Path(sys.executable), hosts)
    assert runs == [(str(hosts[0].path), ["-x"]), (str(hosts[2].path), ["-m", "oldest", "-x"])]
    assert outcomes == {
        "browser, ComfyUI 0.33.0": command.Count(passed=1),
        "browser, ComfyUI 0.14.0": command.Count(passed=2),
    }
    monkeypatch.setattr(command, "own_front_end", unreachable)
    outcomes = command.run_suite("browser", ["tests/browser"], [], Path(sys.executable), hosts)
    assert outcomes["browser, ComfyUI 0.14.0"] == "no network"
    assert list(command.run_suite("browser", [], [], Path(sys.executable), hosts[:1])) == ["browser, ComfyUI 0.33.0"]


def test_results_are_counted_from_a_real_report(tmp_path):
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): pass\n"
        "def test_c(): raise ValueError\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_d(broken): pass\n"
        "def test_e(): pytest.skip('why')\n"
    )
    report = tmp_path / "report.xml"
    alone = ["-c", os.devnull, f"--rootdir={tmp_path}"]
    command_line = [sys.executable, "-m", "pytest", "-q", *alone, f"--junitxml={report}", str(tests)]
    subprocess.run(command_line, capture_output=True, cwd=tmp_path)
    assert command.count_results(report) == command.Count(passed=2, failed=2, skipped=1)
    assert str(command.count_results(report)) == "2 passed, 2 failed, 1 skipped"
    assert command.count_results(tmp_path / "missing.xml").broken


def test_the_registry_file_repeats_the_requirements():
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = project.partition("dependencies = [")[2].partition("]")[0]
    assert [line.strip().strip('",') for line in block.strip().splitlines()] == listed
    assert not any(line.startswith("torch") for line in listed)


def test_the_readme_lists_the_nodes_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| PixArt [^|]+\| `(\w+)` \|", readme, re.MULTILINE)
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "nodes").glob("*.py"))
    assert sorted(listed) == sorted(re.findall(r'node_id="(\w+)"', sources))


IN_BOTH_READMES = {
    "sections": r"^##(?= )",
    "commands": r"^```\n[^`]*```",
    "nodes": r"`PixArt\w+`",
    "links": r"\]\((?!README)[^)]+\)",
    "rows of tables": r"^\|(?= )",
    "figures of speed": r"^\| \d+ (?=\|.*\.)|(?<=\| )\d\.\d\d(?= \|.*\d\.\d\d \|$)|\d\.\d\d(?= \|$)",
    "points of lists": r"^- \*\*",
    "options, endings and folders": r"`(?:--[\w-]+|\.\w+|models/\w+)",
}


@pytest.mark.parametrize("what", IN_BOTH_READMES)
def test_the_chinese_readme_has_all_that_the_english_one_has(what):
    english, chinese = (
        re.findall(IN_BOTH_READMES[what], (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in ("README.md", "README.zh.md")
    )
    assert len(english) > 4 or what == "commands"
    assert english == chinese


COMFYUI = """
import http.server, json, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"system": {"argv": sys.argv}}).encode())

class Server(http.server.HTTPServer):
    allow_reuse_address = False

Server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""
"""As much of one as answers which base folder it was started with."""


def test_a_port_that_another_comfyui_has_taken_meanwhile_is_left_to_it(tmp_path):
    (tmp_path / "main.py").write_text(COMFYUI)
    host = comfyui.Host(tmp_path, "1.0.0")

    def server(name: str) -> comfyui.Server:
        return comfyui.Server(host, Path(sys.executable), cpu=True, log=tmp_path / f"{name}.log", pack=tmp_path)

    with server("first") as first:
        second = server("second")
        second.port = first.port
        with second:
            assert second.port != first.port
            assert str(second.base) in second.get_json("/system_stats")["system"]["argv"]
        third = server("third")
        third.port = first.port
        third.port_was_taken = lambda: False
        with pytest.raises(comfyui.HostError, match="ended with exit code 1 while it started"), third:
            pass
