"""The server against whoever has no business with it: tokens, hosts, methods, paths, thousands of seeded requests."""

from __future__ import annotations

import random
import socket
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

import anyio
import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

from inference.viewer.server import is_own_host, make_app
from inference.viewer.site import Site
from tests.inference.viewer.conftest import TOKEN, Served, got

COOKIE = {"specslide": TOKEN}
SECRETS = (b"Traceback", b"one-file", b"/tmp/", b"site-packages", TOKEN.encode())


@pytest.fixture(scope="module")
def app(site: Site) -> ASGIApp:
    return make_app(site, TOKEN)


@pytest.fixture
def stranger(app: ASGIApp) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False)


@pytest.fixture
def reader(app: ASGIApp) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8000", cookies=COOKIE, follow_redirects=False)


def test_the_token_in_the_first_address_becomes_a_cookie(stranger: TestClient) -> None:
    first = stranger.get("/", params={"token": TOKEN})
    assert first.status_code == 200
    said = first.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert stranger.get("/data/slides.json").status_code == 200


@pytest.mark.parametrize(
    "address", ["/", "/index.html", "/viewer.css", "/data/slides.json", "/leaflet/leaflet.js", "/absent"]
)
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\xe9"])
def test_without_the_token_nothing_is_said(stranger: TestClient, address: str, token: str | None) -> None:
    headers = {} if token is None or not token.isascii() else {"cookie": f"specslide={token}"}
    answer = stranger.get(address, params={} if token is None else {"token": token}, headers=headers)
    assert answer.status_code == 403
    assert b"slide_id" not in answer.content


def test_a_token_in_another_address_opens_nothing(stranger: TestClient) -> None:
    assert stranger.get("/data/slides.json", params={"token": TOKEN}).status_code == 403


def test_every_answer_has_its_guards(reader: TestClient, stranger: TestClient) -> None:
    answers = [reader.get("/"), reader.get("/data/0/0/0-0.jpg"), reader.get("/absent"), stranger.get("/")]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http:" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_only_reading(reader: TestClient, method: str) -> None:
    assert reader.request(method, "/data/slides.json").status_code == 405


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True), ("127.0.0.1:8000", True), ("localhost:1", True), ("LOCALHOST", True), ("[::1]:80", True),
        ("[::1]", True), ("10.0.0.7:8000", True), ("work-station:80", True), ("evil.example", False), ("", False),
        ("127.0.0.1.evil.example", False), ("localhost.evil.example:80", False), ("127.0.0.1:80@evil.example", False),
        ("localhost:80:80", False), ("127.0.0.1:８０", False),
        ("evil.example:127.0.0.1", False), ("localhost:x", False),
    ],
)  # fmt: skip
def test_a_foreign_name_is_refused(reader: TestClient, host: str, own: bool) -> None:
    assert is_own_host(host, frozenset({"work-station"})) == own
    if host.isascii():
        answer = reader.get("/data/slides.json", headers={"host": host})
        assert (answer.status_code == 200) == (own and "work" not in host)


# ------------------------------------------------------------------------------------------------- seeded requests


def hostile(random_: random.Random) -> tuple[str, bytes, bytes, list[tuple[bytes, bytes]]]:
    """A request: method, path as sent, query, headers."""
    parts = [
        "..", ".", "", "%2e%2e", "%2f", "..%2f", "%00", "\\", "~root", "etc", "passwd", "data", "0", "1", "-1", "00",
        "9" * random_.randint(1, 60), "0x1", "1e9", "slide.json", "tiles.bin", "0-0.jpg", "map-0.bin", "thumbnail.jpg",
        "recoloured", "occlusion-0.bin", "occlusion-999999999.bin",
        "slides.json", "leaflet", "leaflet.js", "%ff%fe", "%F0%9F%92%A9", "<script>", "one-file.tif", "tmp", "NaN",
        "a" * random_.randint(1, 400), ";", "?", "#", "\r\nX: y", "con", "slide.py", "__pycache__", "static", "*",
    ]  # fmt: skip
    path = "/" + "/".join(random_.choice(parts) for _ in range(random_.randint(0, 6)))
    query = random_.choice(["", f"token={TOKEN}", "token=" + "A" * random_.randint(0, 300), "a=b&" * 90, "token=%ff"])
    method = random_.choice(["GET"] * 8 + ["HEAD", "POST", "PUT", "DELETE", "get", "OPTIONS", "X" * 50])
    host = random_.choice([b"127.0.0.1:8000"] * 6 + [b"localhost", b"evil.example", b"", b"[", b"a:b:c", b"\xff"])
    cookie = random_.choice(
        [f"specslide={TOKEN}"] * 5 + ["", "specslide=x", "specslide", "=;=;", "specslide=\xff", "a=b; " * 50]
    )
    headers = [(b"host", host), (b"cookie", cookie.encode("latin-1"))]
    headers += [(b"range", b"bytes=0-99999999999")] * random_.randint(0, 1)
    headers += [(b"x-forwarded-host", b"evil.example"), (b"content-length", b"99999999")] * random_.randint(0, 1)
    return method, path.encode("utf-8", "replace"), query.encode(), headers


def attack(app: ASGIApp, site: Site, count: int, seed: int) -> dict[int, int]:
    """How many of so many seeded requests had each status; no answer holds what was not listed."""
    random_ = random.Random(seed)
    listed = set(site.addresses())
    found: dict[int, int] = {}

    async def run() -> None:
        for _ in range(count):
            method, raw, query, headers = hostile(random_)
            path = raw.decode("utf-8", "replace")
            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method,
                "path": path, "raw_path": raw, "query_string": query, "headers": headers, "root_path": "",
                "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
            }  # fmt: skip
            sent: list[Message] = []

            async def receive() -> Message:
                return {"type": "http.request", "body": b"x" * 100, "more_body": False}

            async def send(message: Message, sent: list[Message] = sent) -> None:
                sent.append(message)

            await app(scope, receive, send)
            status, body = sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:])
            found[status] = found.get(status, 0) + 1
            assert status in (200, 403, 404, 405, 414, 421), (status, path)
            assert not any(secret in body for secret in SECRETS), path
            assert status != 200 or path.removeprefix("/") in listed | {""}, path

    anyio.run(run)
    return found


def test_seeded_requests_get_nothing_that_is_not_listed(app: ASGIApp, site: Site) -> None:
    found = attack(app, site, 3000, seed=1)
    assert {200, 403, 404, 405, 414, 421} <= set(found)


@pytest.mark.nightly
def test_fifty_thousand_requests_leave_no_memory_behind(app: ASGIApp, site: Site) -> None:
    attack(app, site, 5000, seed=2)
    tracemalloc.start()
    attack(app, site, 5000, seed=3)
    before = tracemalloc.get_traced_memory()[0]
    attack(app, site, 40_000, seed=4)
    assert tracemalloc.get_traced_memory()[0] - before < 2_000_000
    tracemalloc.stop()


# --------------------------------------------------------------------------------------------------- a real server


def talk(served: Served, data: bytes) -> bytes:
    """What the server says to raw bytes, until it ends or is silent."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=3) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while part := connection.recv(65536):
            said += part
    return said


def served_ok(served: Served) -> bool:
    request = Request(f"{served.address}/data/slides.json", headers={"Cookie": f"specslide={TOKEN}"})
    with urlopen(request, timeout=10) as answer:
        return bool(answer.status == 200)


RAW: tuple[Callable[[], bytes], ...] = (
    lambda: b"\x16\x03\x01\x02\x00" * 50,
    lambda: b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    lambda: b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    lambda: b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20,
    lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    lambda: (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET"
    ),
    lambda: b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    lambda: b"GET / HTTP/9.9\r\n\r\n",
    lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    lambda: b"\x00" * 70_000,
)


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
def test_what_is_no_request_costs_nothing_to_others(served: Served, data: Callable[[], bytes]) -> None:
    try:
        said = talk(served, data())
    except ConnectionError:
        said = b""
    assert not any(secret in said for secret in SECRETS)
    assert b" 200 " not in said.split(b"\r\n")[0]
    assert served_ok(served)


def test_clients_that_wait_do_not_stop_others(served: Served) -> None:
    """Sixty begin a request and never end it."""
    waiting = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(60)]
    for one in waiting:
        one.sendall(b"GET /data/slides.json HTTP/1.1\r\nHost: local")
    assert served_ok(served)
    for one in waiting:
        one.close()


def test_fifty_clients_at_once_lose_nothing(served: Served, site: Site) -> None:
    addresses = [address for address in site.addresses() if address.endswith(".jpg")]
    expected = {address: got(site, address) for address in addresses}

    def fetch(number: int) -> list[bool]:
        mine = addresses[number:] + addresses[:number]
        headers = {"Cookie": f"specslide={TOKEN}"}
        found: list[bool] = []
        for address in mine[:12]:
            with urlopen(Request(f"{served.address}/{address}", headers=headers), timeout=30) as answer:
                found.append(answer.read() == expected[address])
        return found

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(fetch, range(50)))
    assert all(all(found) for found in results)
    assert sum(map(len, results)) == 600
