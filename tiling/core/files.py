"""Files that appear whole or not at all, their hashes, and locks. Knows nothing of slides, zarr or models.

A file is written beside its final name, synced and renamed, so that a write is atomic; a lock is dropped by the
operating system with the process that holds it. Folders: tiling.core.artefact.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiling.core.errors import OutputError
from tiling.core.platforms import NO_LINKS, lock_file

log = logging.getLogger(__name__)

FEATURES = ".features.zarr"
"""What names of feature stores end in."""
_BLOCK_BYTES = 1 << 20
_SYNCED_AT_ONCE = 8
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # some Lustre, NFS and FUSE mounts


def sha256_file(path: Path, unwanted: threading.Event | None = None) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises OSError, InterruptedError once it is `unwanted`."""
    digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    with path.open("rb", buffering=0) as f:
        while count := f.readinto(block):
            if unwanted is not None and unwanted.is_set():
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR), str(path))
            digest.update(memoryview(block)[:count])
    return digest.hexdigest()


def require_regular(path: Path) -> None:
    """Raise OSError unless it is a file with an end: a pipe is waited for and a device read for ever."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe or device and no file", str(path))


def canonical_json(value: object) -> str:
    """JSON with one spelling per value (sorted keys, no NaN), so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises OSError, and ValueError for what is no JSON or has no canonical spelling: infinity, NaN, half a character,
    lists without end.
    """
    try:
        value = json.loads(path.read_bytes())
        sha256_json(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def sha256_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    return sha256_text(canonical_json(value))


def sha256_text(text: str) -> str:
    """SHA-256 of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_file(path: Path, data: bytes | str) -> None:
    """Write `path` atomically: temporary file beside it, sync, rename. Raises OutputError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # what a kill left, or a link that somebody put there
        with os.fdopen(os.open(partial, _NEW, 0o666), "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise output_error(path, error) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to be written; on a clean exit it is synced and gets that name. Raises OutputError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # what a kill left, or a link that somebody put there
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_changed(path: Path, text: str) -> None:
    """Write `path` as `write_file` does, unless it holds that text already. Raises OutputError."""
    try:
        same = path.read_bytes() == text.encode()
    except OSError:
        same = False
    if not same:
        write_file(path, text)


@contextmanager
def locked(final: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the output `final`, a file or folder: two jobs never write it at once.

    A second job is refused with OutputError, or with `wait` has its turn when the first is done.
    """
    lock = _lock_of(final)
    fd = _lock(lock, final, wait=wait)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # while still held: whoever waits for it sees another file and tries again
        os.close(fd)


def is_locked(final: Path) -> bool:
    """Whether a living process holds the lock of `final`; false where that cannot be known."""
    try:
        fd = os.open(_lock_of(final), os.O_RDONLY | NO_LINKS)
    except OSError:
        return False
    try:
        lock_file(fd, shared=True)  # so that two that ask do not see each other
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(fd)
    return False


def output_error(path: Path, error: OSError) -> OutputError:
    """The OutputError that tells a person what an OSError at `path` means."""
    fixes = {
        errno.ENOSPC: "free some space and run the same command again",
        errno.EDQUOT: "free some of your quota and run the same command again",
        errno.EROFS: "choose another output folder",
        errno.EACCES: "choose an output folder you may write to",
        errno.ENOTDIR: "a file stands where a folder is needed; choose another output folder",
        errno.EEXIST: "a file stands where a folder is needed; choose another output folder",
    }
    return OutputError(path, f"cannot be written ({error.strerror or error})", fixes.get(error.errno or 0, ""))


def sync(path: Path) -> None:
    """Let what was written to a file or folder reach the disk. Raises OSError."""
    if sys.platform == "win32":
        if path.is_dir():  # which Windows sees to itself
            return
        fd = os.open(path, os.O_RDWR)
    else:
        fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_all(paths: Iterable[Path]) -> None:
    """`sync` several at a time: many small files then take a tenth of the time. Raises OSError."""
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        for _ in pool.map(sync, paths):
            pass


def _lock_of(final: Path) -> Path:
    return final.with_name(f".{final.name}.lock")


def _lock(lock: Path, final: Path, *, wait: bool) -> int:
    """Open and lock the lock file; returns its descriptor."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o644)
        except OSError as error:
            raise output_error(final, error) from error
        try:
            lock_file(fd, wait=wait)
            if os.fstat(fd).st_ino == lock.stat().st_ino:
                return fd
        except FileNotFoundError:  # its last holder unlinked it after we opened it: try again
            pass
        except BlockingIOError:
            os.close(fd)
            raise OutputError(final, "is being written by another job", "wait for that job to end") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise output_error(final, error) from error
            log.warning("%s: this file system has no locks (%s); run one job at a time", final, error.strerror)
            return fd
        os.close(fd)
