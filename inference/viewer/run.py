"""Runs the viewer's server until Ctrl-C."""

from __future__ import annotations

import html
import ipaddress
import logging
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from inference.viewer.marks import MarkFolder
from inference.viewer.server import make_app, new_token
from inference.viewer.site import Site
from tiling.core.errors import ConfigError

log = logging.getLogger(__name__)

_END_S = 1
"""How long an answer that is under way may take when the server is told to end."""


def serve(
    site: Site,
    host: str,
    port: int,
    *,
    say: Callable[[str], None],
    open_browser: bool,
    marks: MarkFolder | None = None,
) -> None:
    """Serve a site until the process is told to end.

    Args:
        site: What is served.
        host: The address to listen at.
        port: 0: any that is free.
        say: Called with the address to open, and with a warning where others can reach it.
        open_browser: Whether the address is opened here.
        marks: Where what readers draw is kept; None: they cannot draw.

    Raises:
        ConfigError: If the address cannot be listened at.
    """
    token = new_token()
    with _listening(host, port) as listener:
        own_port = listener.getsockname()[1]
        names = frozenset({socket.gethostname().lower(), host.lower()})
        app = make_app(site, token, cookie=f"specslide-{own_port}", names=names, marks=marks)
        address = f"http://{f'[{host}]' if ':' in host else host}:{own_port}/?token={token}"
        say(address)
        if not _is_local(host):
            say("Others on the network can reach it: who sees this address sees the slides, and so does who listens.")
        say("Ctrl-C ends it.")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off",
            ws="none", timeout_keep_alive=30, timeout_graceful_shutdown=_END_S, h11_max_incomplete_event_size=16_384,
        )  # fmt: skip
        with leading_to(address) as page:
            if open_browser:
                webbrowser.open(page)
            try:
                uvicorn.Server(config).run(sockets=[listener])
            except KeyboardInterrupt:
                log.info("ended")


@contextmanager
def leading_to(address: str) -> Iterator[str]:
    """The address of a file that leads a browser to another address, which only this user can read.

    All users of a machine see with which arguments a browser is begun: the token must not be among them.
    """
    with tempfile.TemporaryDirectory(prefix="specslide-view-") as folder:
        page = Path(folder) / "view.html"
        page.touch(mode=0o600)
        page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}">')
        yield page.as_uri()


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise ConfigError(
            "view", f"cannot listen at {host}, port {port} ({reason})", "pass another --port or --host"
        ) from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
