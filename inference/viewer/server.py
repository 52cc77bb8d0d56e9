"""The viewer's server: a `Site` for whoever has the token, on this machine alone unless asked otherwise.

What it keeps out: requests without the token, requests under a foreign name (DNS rebinding), every method but GET and
HEAD, whatever is no address of the site. Pages may run and load nothing but their own files. What readers draw is
written by PUT, which takes a second token, that only a page of this server can know, and the page's own origin.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from inference.viewer.drawing import Drawing
from inference.viewer.marks import MAX_BYTES, MarkFolder
from inference.viewer.site import Site
from tiling.core.errors import SpecslideError
from tiling.core.threads import usable_cores

log = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",  # pictures of patients' slides stay in no browser
}
_MAX_TARGET = 200
"""Characters of a path or query: no address is longer."""
_MAX_WAITING = 500
"""Requests that may wait for a thread; more are told to come again."""


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(32)


def make_app(
    site: Site,
    token: str,
    *,
    cookie: str = "specslide",
    names: frozenset[str] = frozenset(),
    marks: MarkFolder | None = None,
) -> ASGIApp:
    """The ASGI application of a site.

    Args:
        site: What is served.
        token: What a request must bring, once in the address of the first page, then as a cookie.
        cookie: The cookie's name; cookies of all ports of a machine lie in one jar.
        names: Host names it is reached by, beside `localhost` and addresses of this machine.
        marks: Where what readers draw is kept; None: they cannot draw.

    Returns:
        The application.
    """
    limiter = anyio.CapacityLimiter(usable_cores())
    waiting = 0
    write_token = hmac.new(token.encode(), b"marks", "sha256").hexdigest()
    drawing = None if marks is None else Drawing(site, marks, write_token)

    async def answer(request: Request) -> Response:
        nonlocal waiting
        address = request.scope["path"].removeprefix("/") or "index.html"
        if waiting >= _MAX_WAITING:
            return _refusal(503, "busy; try again", {"retry-after": "1"})
        waiting += 1
        try:
            if drawing is not None and (place := drawing.place(address)) is not None:
                body = await _body(request) if request.method == "PUT" else None
                return await run_sync(drawing.answer, place, body, limiter=limiter)
            found = None if request.method == "PUT" else await run_sync(site.get, address, limiter=limiter)
        except (SpecslideError, ClientDisconnect) as error:
            log.warning("%s: %s", address, getattr(error, "what", "the client went away"))
            return _refusal(409, "cannot be read; see the terminal")
        finally:
            waiting -= 1
        if found is None:
            return _refusal(404, "no such page")
        return Response(found.data, media_type=found.media)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":  # a websocket: refused before it is accepted
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        response = _refused(request, token, cookie, names, None if marks is None else write_token) or await answer(
            request
        )
        if _brings_token(request, token):
            response.set_cookie(cookie, token, httponly=True, samesite="strict", path="/")
        response.headers.update(_HEADERS)
        await response(scope, receive, send)

    return app


def _refused(
    request: Request, token: str, cookie: str, names: frozenset[str], write_token: str | None
) -> Response | None:
    """Why a request is not answered; None if it is."""
    scope = request.scope
    if len(scope.get("raw_path") or b"") > _MAX_TARGET or len(scope.get("query_string", b"")) > _MAX_TARGET:
        return _refusal(414, "too long")
    if not is_own_host(request.headers.get("host", ""), names):
        return _refusal(421, "this server has another name")
    if request.method not in ("GET", "HEAD", "PUT"):
        return _refusal(405, "only GET", {"allow": "GET, HEAD"})
    if request.method == "PUT" and not _may_write(request, write_token):
        return _refusal(405 if write_token is None else 403, "only from a page of this server", {"allow": "GET, HEAD"})
    if not (_brings_token(request, token) or _same(_cookie_of(request, cookie), token)):
        return _refusal(403, "open the address that specslide view printed")
    return None


def _may_write(request: Request, write_token: str | None) -> bool:
    """Whether a PUT comes from a page of this server, which alone can have read the second token."""
    if write_token is None or not _same(request.headers.get("x-specslide-token", ""), write_token):
        return False
    return request.headers.get("origin", "") == f"{request.scope['scheme']}://{request.headers.get('host', '')}"


async def _body(request: Request) -> bytes:
    """The body of a request, as far as it may be; one byte more of what is too long. Raises ClientDisconnect."""
    parts, length = list[bytes](), 0
    async for part in request.stream():
        parts.append(part)
        length += len(part)
        if length > MAX_BYTES:
            break
    return b"".join(parts)[: MAX_BYTES + 1]


def is_own_host(host: str, names: frozenset[str] = frozenset()) -> bool:
    """Whether a Host header names this machine: by a number, which no foreign site can claim, or a known name."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if port and not (port.isascii() and port.isdigit()):
        return False
    if name.lower() in names | {"localhost"}:
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _brings_token(request: Request, token: str) -> bool:
    """Whether the first page is asked for with the token in its address."""
    if request.scope["path"] != "/" or request.method != "GET":
        return False
    name, _, given = request.scope.get("query_string", b"").decode("latin-1").partition("=")
    return name == "token" and _same(given, token)


def _cookie_of(request: Request, name: str) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), token.encode())


def _refusal(status: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(why, status, headers=dict(headers or {}))


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
