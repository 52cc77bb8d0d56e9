"""Publishing files and folders: the only place that gives anything its final name.

A result is written beside its final name, synced, listed with hashes in `commit.json`, and renamed: it is there
whole or not at all. Killed at any moment, the next run of the same job sweeps what was left. Knows nothing of
slides, zarr or models.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiling.errors import OutputError, SpecslideError

log = logging.getLogger(__name__)

COMMIT = "commit.json"
COMMIT_VERSION = 1
PROVENANCE = "provenance.json"
"""What an artefact was made from, in its folder; where another file there says all of it, there is none."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # some Lustre, NFS and FUSE mounts


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """JSON with one spelling per value (sorted keys, no NaN), so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def sha256_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    return sha256_text(canonical_json(value))


def sha256_text(text: str) -> str:
    """SHA-256 of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_file(path: Path, data: bytes | str) -> None:
    """Write `path` whole or not at all: temporary file beside it, sync, rename. Raises OutputError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise output_error(path, error) from error


def write_changed(path: Path, text: str) -> None:
    """Write `path` as `write_file` does, unless it holds that text already. Raises OutputError."""
    try:
        same = path.read_bytes() == text.encode()
    except OSError:
        same = False
    if not same:
        write_file(path, text)


@contextmanager
def claimed(final: Path) -> Iterator[None]:
    """Hold the right to write the folder `final`, and sweep what a killed job left of it.

    Two jobs on one output never write the same folder at once: the second is refused. The claim is a lock that
    the operating system drops with the process, so a killed job blocks nobody. Raises OutputError.
    """
    with _locked(final, wait=False):
        _sweep(final)
        yield


@contextmanager
def in_turn(final: Path) -> Iterator[None]:
    """Hold the right to write the file `final`, once whoever else holds it is done. Raises OutputError."""
    with _locked(final, wait=True):
        yield


def is_claimed(final: Path) -> bool:
    """Whether a living process holds the claim on `final`; false where that cannot be told."""
    try:
        fd = os.open(_lock_of(final), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not see each other
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(fd)
    return False


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it is hashed, synced and renamed to `final`.

    To be used inside `claimed(final)`. A folder already called `final` is replaced. After an exception nothing
    is left, and a folder that was to be replaced is back. Raises OutputError for whatever the file system refuses
    (disk full, read-only, no permission).
    """
    partial, replaced = _partial(final), _replaced(final)
    try:
        if final.exists() and not final.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final))
        partial.mkdir()
        yield partial
        commit = {"version": COMMIT_VERSION, "files": _hash_files(partial)}
        (partial / COMMIT).write_text(canonical_json(commit | {"sha256": sha256_json(commit)}))
        _sync_tree(partial)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        _sync(final.parent)
        if replaced.exists():
            shutil.rmtree(replaced)
    except OSError as error:
        raise output_error(final, error) from error
    finally:
        with suppress(OutputError):  # what the file system refuses now, the next job sweeps
            _sweep(final)


def require_own(final: Path, mark: str, what: str) -> None:
    """Raise OutputError if the folder `final` holds something, and neither has nor lists the file `mark` of a `what`.

    To be asked before `new_folder` replaces it: whoever has data there never meant to have them deleted. What a kill
    left of a `write_file` is nobody's.
    """
    try:
        held = final.is_dir() and not (final / mark).is_file()
        held = held and any(not _is_partial(path) for path in final.iterdir())
    except OSError as error:
        raise output_error(final, error) from error
    if held and not _lists(final, mark):
        raise OutputError(final, f"holds something else than {what}", "choose another --out")


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def _lists(folder: Path, name: str) -> bool:
    """Whether the folder was published with that file."""
    try:
        return name in read_commit(folder)
    except SpecslideError:
        return False


def read_commit(folder: Path) -> dict[str, dict[str, object]]:
    """The files a published folder must hold: relative path -> {"sha256", "bytes"}.

    Raises SpecslideError if there is no valid `commit.json`, that is, if the folder was never completed or its list was
    edited.
    """
    path = folder / COMMIT
    try:
        commit = json.loads(path.read_bytes())
        own = commit.pop("sha256")
        files: dict[str, dict[str, object]] = {
            name: {"sha256": listed["sha256"], "bytes": listed["bytes"]} for name, listed in commit["files"].items()
        }
    except FileNotFoundError:
        raise SpecslideError(path, "is missing, so the folder is incomplete", "make it again") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise SpecslideError(path, f"cannot be read ({type(error).__name__})", "make the folder again") from None
    if own != sha256_json(commit) or commit.get("version") != COMMIT_VERSION:
        raise SpecslideError(path, "was changed after it was written", "make the folder again")
    return files


def folder_hash(folder: Path) -> str:
    """One hash for the whole content of a published folder. Raises SpecslideError as `read_commit` does."""
    return sha256_json(read_commit(folder))


def folder_faults(folder: Path, only: frozenset[str] | None = None) -> list[str]:
    """What is wrong with a published folder, one sentence a fault naming the file; empty if it is intact.

    Every byte is read and hashed. `only` restricts the hashing to those relative paths.
    """
    try:
        files = read_commit(folder)
    except SpecslideError as error:
        return [str(error)]
    faults = []
    for name, expected in sorted(files.items()):
        if only is not None and name not in only:
            continue
        path = folder / name
        try:
            if path.stat().st_size != expected["bytes"]:
                faults.append(f"{path}: is {path.stat().st_size} bytes long instead of {expected['bytes']}")
            elif sha256_file(path) != expected["sha256"]:
                faults.append(f"{path}: its content was changed after it was written")
        except OSError as error:
            faults.append(f"{path}: cannot be read ({error.strerror})")
    if only is None:
        extra = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
        faults += [f"{folder / name}: does not belong here" for name in sorted(extra - files.keys() - {COMMIT})]
    return faults


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


def _lock_of(final: Path) -> Path:
    return final.with_name(f".{final.name}.lock")


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _sweep(final: Path) -> None:
    """Remove what a killed job left of `final`."""
    partial, replaced = _partial(final), _replaced(final)
    try:
        if replaced.exists() and not final.exists():  # killed between the two renames of an overwrite
            replaced.rename(final)
        for leftover in (partial, replaced):
            if leftover.exists():
                shutil.rmtree(leftover)
    except OSError as error:
        raise output_error(final, error) from error


@contextmanager
def _locked(final: Path, *, wait: bool) -> Iterator[None]:
    lock = _lock_of(final)
    fd = _lock(lock, final, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # while still held: whoever waits for it sees another file and tries again
        os.close(fd)


def _lock(lock: Path, final: Path, how: int) -> int:
    """Open and lock the lock file; returns its descriptor."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise output_error(final, error) from error
        try:
            fcntl.flock(fd, how)
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


def _hash_files(folder: Path) -> dict[str, dict[str, object]]:
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)
