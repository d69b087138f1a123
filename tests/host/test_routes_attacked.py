"""Questions that no widget asks: each is answered in one line, soon, with nothing of the machine, and others go on."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import threading
import time

import pytest

ROUTES = {
    "/pixart/tokens": "POST", "/pixart/detect": "GET", "/pixart/resolutions": "GET", "/pixart/doctor": "GET",
}  # fmt: skip
ANSWERS = {200, 400, 403, 404, 405, 413, 415}
DEEP = b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}"


def ask(server, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
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
        start = time.monotonic()
        status, answer = ask(server, "POST", "/pixart/tokens", body)
        assert time.monotonic() - start < 20
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


def test_slow_questions_leave_other_routes_at_once_answered(server):
    """The slowest prompts that are taken, all at once, and the host's own route asked again and again meanwhile."""
    slow = [
        {"text": "a." * 2500, "clean_caption": True}, {"text": "a small red star " * 14_000},
        {"text": "a." * 2500, "clean_caption": True, "t5_name": "pixart-demo-t5.safetensors"},
        {"text": "x" * 250_000, "t5_name": "pixart-demo-t5.safetensors"},
    ]  # fmt: skip
    took: list[float] = []

    def question(asked: dict) -> None:
        start = time.monotonic()
        status, _ = ask(server, "POST", "/pixart/tokens", json.dumps(asked).encode())
        took.append(time.monotonic() - start)
        assert status == 200

    def ping() -> float:
        start = time.monotonic()
        assert ask(server, "GET", "/prompt")[0] == 200
        return time.monotonic() - start

    idle = statistics.median(ping() for _ in range(5))
    threads = [threading.Thread(target=question, args=(asked,)) for asked in slow]
    threads.append(threading.Thread(target=ask, args=(server, "GET", "/pixart/doctor")))
    for thread in threads:
        thread.start()
    pings = []
    while any(thread.is_alive() for thread in threads):
        pings.append(ping())
    for thread in threads:
        thread.join()
    print(f"idle {idle:.3f} s; {len(pings)} pings, worst {max(pings):.3f} s; questions {sorted(took)[-1]:.2f} s")
    assert max(took) > 1.5 * max(pings), "the questions were not slow enough to tell"
    assert max(pings) < 2


def test_too_many_questions_at_once_are_sent_away_and_the_rest_answered(server):
    body = json.dumps({"text": "a small red star " * 14_000}).encode()
    told: list[int] = []
    threads = [
        threading.Thread(target=lambda: told.append(ask(server, "POST", "/pixart/tokens", body)[0])) for _ in range(90)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(told) == {200, 503} and told.count(200) >= 64
    assert ask(server, "POST", "/pixart/tokens", b'{"text": "a"}')[0] == 200
