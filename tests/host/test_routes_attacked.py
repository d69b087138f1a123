"""Questions that no widget asks: each is answered in one line, soon, with nothing of the machine, and others go on."""

from __future__ import annotations

import http.client
import json
import random
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tools.comfyui import Host, Server

HARNESS = Path(__file__).resolve().parents[1] / "harness"
GUARD = 300
"""Seconds after which what gives no answer is taken for hung; no test waits for them to pass."""

ROUTES = {
    "/pixart/tokens": "POST", "/pixart/detect": "GET", "/pixart/resolutions": "GET", "/pixart/doctor": "GET",
}  # fmt: skip
ANSWERS = {200, 400, 403, 404, 405, 413, 415}
DEEP = b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}"


@pytest.fixture(scope="module")
def holding(host: Host) -> Iterator[Server]:
    """A ComfyUI of its own, in which a question can be held in its work."""
    log = HARNESS.parents[1] / "output" / "test-logs" / f"routes-{host.version}.log"
    with Server(host, Path(sys.executable), cpu=True, log=log, others=[HARNESS / "fault_pack"]) as running:
        yield running


def ask(server, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=GUARD)
    try:
        connection.putrequest(method, path, skip_host=bool(headers and "Host" in headers))
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= headers or {}
        if body is not None and "Transfer-Encoding" not in sent:
            sent.setdefault("Content-Length", str(len(body)))
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders()
        if body is not None:
            connection.send(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def check(server, sent, status: int, answer: bytes) -> None:
    assert status in ANSWERS, (sent, status, answer[:300])
    text = answer.decode("utf-8", "replace")
    for secret in ("Traceback", 'File "', str(server.base), str(server.host.path), str(server.pack), "site-packages"):
        assert secret not in text, (sent, text[:500])
    if answer[:1] == b"{" and status != 200:
        assert "\n" not in json.loads(answer)["error"]


def random_value(rng: random.Random, depth: int = 0):
    kinds = [
        lambda: rng.choice([None, True, False, 0, -1, 1, 4096, 2**31, 2**63, 2**64, 10**400, -0.0, 1e308]),
        lambda: rng.choice(["", "a", "\0", "\ud800", "\udfff", "../x", "/etc/passwd", "\u202e", "a" * 5000, "☃" * 50,
                            "pixart-demo-t5.safetensors", "pixart-demo-sigma.safetensors", "<![x", "((((a:1.1)",
                            "embedding:../../x", "CON", "a\nb"]),
        lambda: "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xD7FF)])) for _ in range(40)),
        lambda: float(rng.choice(["nan", "inf", "-inf"])),
    ]  # fmt: skip
    if depth < 3:
        kinds += [
            lambda: [random_value(rng, depth + 1) for _ in range(rng.randrange(4))],
            lambda: {str(random_value(rng, 3)): random_value(rng, depth + 1) for _ in range(rng.randrange(4))},
        ]
    return rng.choice(kinds)()


def random_question(rng: random.Random) -> bytes:
    names = ["t5_name", "text", "max_tokens", "clean_caption", "more", "__class__"]
    question = {name: random_value(rng) for name in rng.sample(names, rng.randrange(len(names) + 1))}
    if rng.random() < 0.5:  # near enough to a good one to come further
        question = {"t5_name": rng.choice([None, "pixart-demo-t5.safetensors"]), "text": "a star"} | question
    try:
        body = json.dumps(question, ensure_ascii=rng.random() < 0.5).encode()
    except (UnicodeEncodeError, ValueError):
        body = json.dumps(question).encode()
    if rng.random() < 0.3:
        damaged = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        body = bytes(damaged)
    return body


def test_four_hundred_random_questions_are_answered_in_a_line(server):
    rng = random.Random(20240403)
    before = len(server.log.read_text(errors="replace"))
    counts: dict[int, int] = {}
    for _ in range(400):
        body = random_question(rng)
        status, answer = ask(server, "POST", "/pixart/tokens", body)
        check(server, body, status, answer)
        counts[status] = counts.get(status, 0) + 1
    print(counts)
    assert counts[200] > 50 and counts[400] > 100
    assert "Traceback" not in server.log.read_text(errors="replace")[before:]


def test_random_names_and_queries_are_answered_in_a_line(server):
    from urllib.parse import quote_from_bytes

    rng = random.Random(7)
    for _ in range(150):
        raw = bytes(rng.randrange(256) for _ in range(rng.randrange(30)))
        name = rng.choice([quote_from_bytes(raw), "..%2f..%2fx", "%00", "x" * 5000, "%ff%fe", "CON", "C:%5cx", "a%0ab"])
        path = f"/pixart/detect?kind={rng.choice(['checkpoint', 't5', 'vae', '', '%00'])}&name={name}"
        check(server, path, *ask(server, "GET", path))


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (DEEP, {}, 400),
        (b'{"text": "\xff\xfe"}', {}, 400),
        ('{"text": "a"}'.encode("utf-16"), {"Content-Type": "application/json; charset=utf-16"}, 400),
        (b'{"text": "a"}', {"Content-Type": "application/json; charset=nonsense"}, 200),
        (b'{"max_tokens": ' + b"9" * 10_000 + b"}", {}, 400),
        (b'{"text": "\\ud800"}', {}, 400),
        (b"", {}, 400),
        (b"null", {}, 400),
        (b'{"text": "a"}', {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b'{"text": "a"}', {"Content-Type": "multipart/form-data; boundary=x"}, 415),
        (b'{"text": "' + b"a" * 300_000 + b'"}', {}, 413),
        (b'd\r\n{"text": "a"}\r\n0\r\n\r\n', {"Transfer-Encoding": "chunked"}, 413),
        (b'{"text": "a"}', {"Sec-Fetch-Site": "cross-site"}, 403),
        (b'{"text": "a"}', {"Sec-Fetch-Site": "same-site"}, 403),
        (b'{"text": "a"}', {"Sec-Fetch-Site": "same-origin"}, 200),
        (b'{"t5_name": "' + b"x" * 5000 + b'", "text": "a"}', {}, 400),
    ],
    ids=range(16),
)
def test_a_question_out_of_form_has_its_own_answer(body, headers, expected, server):
    status, answer = ask(server, "POST", "/pixart/tokens", body, headers)
    assert status == expected
    check(server, body[:80], status, answer)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_refuses_other_sites_and_other_methods(route, server):
    body = b'{"text": "a"}' if ROUTES[route] == "POST" else None
    status, answer = ask(server, ROUTES[route], route, body, {"Sec-Fetch-Site": "cross-site"})
    assert status == 403
    check(server, route, status, answer)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "BREW", "POST" if ROUTES[route] == "GET" else "GET"):
        status, answer = ask(server, method, route, b"{}")
        assert status in (200, 400, 404, 405)
        if method != "OPTIONS":
            assert status in (400, 404, 405), (method, status)
        check(server, (method, route), status, answer)


def test_a_file_that_vanishes_between_list_and_look_is_told_without_its_path(server):
    models = server.base / "models" / "checkpoints"
    models.mkdir(parents=True, exist_ok=True)
    (models / "broken.safetensors").symlink_to(server.base / "nowhere.safetensors")
    try:
        status, answer = ask(server, "GET", "/pixart/detect?kind=checkpoint&name=broken.safetensors")
    finally:
        (models / "broken.safetensors").unlink()
    check(server, "broken", status, answer)
    assert json.loads(answer)["trouble"]


@pytest.fixture
def held(holding: Server) -> Iterator[Server]:
    """A server in which the next questions for tokens wait in their work until ``release``."""
    holding.post("/test-fault", {"at": "counting tokens", "do": "wait", "times": 10**9})
    yield holding
    release(holding)
    holding.request(urllib.request.Request(f"{holding.url}/test-fault", method="DELETE"), 60)


def release(server: Server) -> None:
    server.post("/test-release", {})


def until(is_so: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + GUARD
    while not is_so():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)


def test_while_a_question_is_worked_on_other_routes_are_answered(held):
    """Work in the event loop would let nobody else be answered before it has ended, and here it does not end."""
    body = json.dumps({"text": "a small red star"}).encode()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, held, "POST", "/pixart/tokens", body)
        try:
            until(lambda: held.get_json("/test-fault")["waiting"], "the question never came to its work")
            for path in ("/prompt", "/object_info/PixArtTextEncode", "/pixart/resolutions") * 5:
                assert ask(held, "GET", path)[0] == 200
            assert not asked.done()
        finally:
            release(held)
        status, answer = asked.result(GUARD)
    assert status == 200 and json.loads(answer)["tokens"] > 3


SLOW = [
    {"text": "a." * 2500, "clean_caption": True}, {"text": "a small red star " * 14_000},
    {"text": "a." * 2500, "clean_caption": True, "t5_name": "pixart-demo-t5.safetensors"},
    {"text": "x" * 250_000, "t5_name": "pixart-demo-t5.safetensors"},
]  # fmt: skip


def test_the_slowest_questions_are_answered_and_others_meanwhile(server):
    """The slowest prompts that are taken, all at once, and the host's own route asked until they have their answers.

    What they may hold up is measured by the server's own processor time, which other programs do not prolong.
    """
    process, took = psutil.Process(server.process.pid), []

    def spent() -> float:
        times = process.cpu_times()
        return times.user + times.system

    with ThreadPoolExecutor(len(SLOW) + 1) as pool:
        questions = [pool.submit(ask, server, "POST", "/pixart/tokens", json.dumps(each).encode()) for each in SLOW]
        questions.append(pool.submit(ask, server, "GET", "/pixart/doctor"))
        while not all(question.done() for question in questions):
            before = spent()
            assert ask(server, "GET", "/prompt")[0] == 200
            took.append(spent() - before)
        assert [question.result()[0] for question in questions] == [200] * 5
    print(f"{len(took)} answers meanwhile, each after at most {max(took):.2f} s of the server's work")
    assert max(took) < 4


def test_of_too_many_questions_at_once_those_that_find_no_place_are_sent_away(held):
    most, more = 64, 26
    body = json.dumps({"text": "a small red star"}).encode()
    with ThreadPoolExecutor(most + more) as pool:
        asked = [pool.submit(ask, held, "POST", "/pixart/tokens", body) for _ in range(most + more)]
        try:  # nobody gets an answer while the first one is held, but those who are sent away
            until(lambda: sum(question.done() for question in asked) >= more, "too few were sent away")
            assert [question.result()[0] for question in asked if question.done()] == [503] * more
        finally:
            release(held)
        told = [question.result(GUARD)[0] for question in asked]
    assert (told.count(200), told.count(503)) == (most, more)
    assert ask(held, "POST", "/pixart/tokens", b'{"text": "a"}')[0] == 200
