"""Programs run where no network can be reached, as on a cluster's node or in a container without one."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

NOWHERE = "http://127.0.0.1:9"
"""The discard port: nothing answers."""


@functools.cache
def without_network() -> tuple[str, ...]:
    """What to put before a command: a network namespace of its own, where the system allows one; else nothing."""
    for prefix in (("unshare", "--net"), ("unshare", "--net", "--map-root-user")):
        try:
            if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
                return prefix
        except FileNotFoundError:
            break
    return ()


def run_offline(
    command: Sequence[str | Path],
    cwd: Path,
    variables: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> str:
    """What a command says, on standard output and error; it must succeed.

    Proxies that do not answer are set too, for what reaches the network in spite of all. PYTHON* variables and a
    virtual environment of the caller's are kept away.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    done = subprocess.run(
        [*without_network(), *command], cwd=cwd, env=kept | proxies | (variables or {}), preexec_fn=before,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout
