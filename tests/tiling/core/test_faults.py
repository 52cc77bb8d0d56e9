"""A fault at every file operation of a tiling job, then the job again: an undisturbed run's bytes, nothing stray."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.demo.synthetic import write_pyramid
from tests.tiling.conftest import ram_folder
from tiling import TilingConfig, tile_slide
from tiling.core.artefact import content_hash
from tiling.core.errors import SpecslideError
from tiling.stores.store import verify_store

FileHashes = Callable[[Path], dict[str, str]]

CONFIG = TilingConfig(mpp=1, tile_px=128, min_tissue=0.1)
MADE_OTHERWISE = TilingConfig(mpp=1, tile_px=256, codec="lossless")
NEVER = 0
# Calls that change the disk, by where they are looked up; the last ones need no space, so a full disk lets them be.
BY_PATH = ("mkdir", "rename", "replace", "link", "symlink", "unlink", "remove", "rmdir")
NEEDS_NO_SPACE = {"unlink", "remove", "rmdir", "flock"}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 x 300 px at 1 mpp, a pink disc on glass: the minimum that has tissue."""
    picture = np.full((300, 300, 3), 244, np.uint8)
    cv2.circle(picture, (150, 150), 140, (222, 140, 180), -1)
    path = tmp_path_factory.mktemp("slides") / "small.tif"
    write_pyramid(path, picture, mpp=1)
    return path


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    with ram_folder(tmp_path) as folder:
        yield folder


class FaultyDisk:
    """Counts what changes the disk below `folder`; from the `last`-th operation on it fails, once or for good."""

    def __init__(self, folder: Path, last: int, code: int = errno.EIO, *, for_good: bool = False) -> None:
        self.folder, self.last, self.code, self.for_good = str(folder), last, code, for_good
        self.kinds: list[str] = []
        self._lock = threading.Lock()

    def step(self, kind: str) -> None:
        """One operation of that kind."""
        with self._lock:  # files are synced by several threads
            self.kinds.append(kind)
            number = len(self.kinds)
        later = self.for_good and number > self.last > 0 and kind not in NEEDS_NO_SPACE
        if number == self.last or later:
            raise OSError(self.code, os.strerror(self.code))

    def holds(self, path: object, dir_fd: int | None) -> bool:
        """Is that path below the folder? With a `dir_fd`, as shutil.rmtree works, it is."""
        return dir_fd is not None or str(path).startswith(self.folder)

    @contextmanager
    def plugged_in(self) -> Iterator[None]:
        """Python's ways to the disk lead through here. Nothing is synced: no power fails in a test."""
        with pytest.MonkeyPatch.context() as patch:
            for name in BY_PATH:
                patch.setattr(os, name, self._by_path(name, getattr(os, name)))
            patch.setattr(os, "open", self._os_open(os.open))
            patch.setattr(os, "write", self._before("write", os.write))
            patch.setattr(os, "fsync", self._before("fsync", lambda fd: None))
            patch.setattr(fcntl, "flock", self._before("flock", fcntl.flock))
            opener = self._open(io.open)
            patch.setattr(io, "open", opener)
            patch.setattr("builtins.open", opener)
            yield

    def _by_path(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self.holds(path, kwargs.get("dir_fd")):
                self.step(name)
            return call(path, *args, **kwargs)

        return faulty

    def _before(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*args: Any) -> Any:
            self.step(name)
            return call(*args)

        return faulty

    def _os_open(self, call: Callable[..., int]) -> Callable[..., int]:
        def faulty(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if self.holds(path, None) and not kwargs.get("dir_fd"):
                self.step("open")
            return call(path, flags, *args, **kwargs)

        return faulty

    def _open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> Any:
                disk.step("write")
                return super().write(data)

        def faulty(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode).isdisjoint("wax+") or not self.holds(path, None):
                return call(path, mode, *args, **kwargs)
            self.step("open")
            raw = Raw(os.fspath(path), mode.replace("b", "").replace("t", ""))
            file = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return file if "b" in mode else io.TextIOWrapper(file, "utf-8")

        return faulty


def job(slide: Path, out: Path, disk: FaultyDisk) -> SpecslideError | None:
    """Run the job on that disk and return its error; any other kind of exception is a failure of the test."""
    with disk.plugged_in():
        try:
            tile_slide(slide, out, CONFIG, overwrite=True)
        except SpecslideError as error:
            return error
    return None


def prepare(made: Path, out: Path) -> None:
    """What the job finds: nothing, or a store made otherwise."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(made, out)


def chosen(kinds: list[str], mode: str) -> list[int]:
    """Some operations: of an overwrite, which begins in the same way, fewer at first; those about publishing all."""
    publishing = kinds.index("rename") + 1
    first = range(1, publishing, 4 if mode == "fresh" else 12)
    return sorted({*first, *range(publishing, publishing + 6), *range(publishing, len(kinds) + 1, 7)})


def check_faults(slide: Path, ram: Path, file_hashes: FileHashes, mode: str, code: int, every: bool) -> None:
    """Fail at each chosen operation, look at what is there, and run the job again."""
    out, made = ram / "out", ram / "made"
    made.mkdir()
    if mode == "overwrite":
        tile_slide(slide, made, MADE_OTHERWISE)
    found = file_hashes(made)
    prepare(made, out)
    undisturbed = FaultyDisk(out, NEVER)
    assert job(slide, out, undisturbed) is None
    store, expected = out / "small.zarr", file_hashes(out)
    whole = {content_hash(path) for path in (store, made / "small.zarr") if path.exists()}
    errors = resumed = 0
    lasts = range(1, len(undisturbed.kinds) + 1) if every else chosen(undisturbed.kinds, mode)
    for last in lasts:
        where = f"operation {last} of {len(undisturbed.kinds)}, {undisturbed.kinds[last - 1]}"
        prepare(made, out)
        error = job(slide, out, FaultyDisk(out, last, code, for_good=code == errno.ENOSPC))
        if store.exists():
            assert verify_store(store) == [], where
            assert content_hash(store) in whole, where
        if error is None:  # it was of no account: making a folder that is there, or clearing up
            assert store.exists(), where
        else:
            errors += 1
            assert str(error).startswith(f"{out}{os.sep}small."), where
            assert os.strerror(code) in str(error), where
        if every or file_hashes(out) != found:  # else running it again is running it for the first time
            resumed += 1
            assert job(slide, out, FaultyDisk(out, NEVER)) is None, where
            assert file_hashes(out) == expected, where
    assert errors > 0.8 * len(lasts)
    assert resumed > 0


@pytest.mark.parametrize(("mode", "code"), [("fresh", errno.EIO), ("overwrite", errno.ENOSPC)])
def test_a_fault_at_file_operations(slide: Path, ram: Path, file_hashes: FileHashes, mode: str, code: int) -> None:
    check_faults(slide, ram, file_hashes, mode, code, every=False)


@pytest.mark.nightly
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["a moment's fault", "a disk that stays full"])
@pytest.mark.parametrize("mode", ["fresh", "overwrite"])
def test_every_fault_at_every_file_operation(
    slide: Path, ram: Path, file_hashes: FileHashes, mode: str, code: int
) -> None:
    check_faults(slide, ram, file_hashes, mode, code, every=True)
