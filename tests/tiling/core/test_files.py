"""Publishing: whole or not at all, one writer at a time, nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.forged import write_commit
from tiling.core.artefact import atomic_folder, content_hash, folder_faults, locked_folder, read_commit, require_own
from tiling.core.errors import OutputError, SpecslideError
from tiling.core.files import canonical_json, is_locked, sha256_file, sha256_json, write_file


def publish(final: Path, content: str = "hello") -> Path:
    with locked_folder(final), atomic_folder(final) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(content)
        (folder / "b.bin").write_bytes(b"\0\1")
    return final


def publish_mistake(final: Path) -> None:
    with locked_folder(final), atomic_folder(final) as folder:
        (folder / "a").write_text("1")
        raise KeyError("mistake")


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


PUBLISHED = ["x", "x/b.bin", "x/commit.json", "x/sub", "x/sub/a.txt"]


# --------------------------------------------------------------------------------------------------------- folders


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "x"
    with locked_folder(final), atomic_folder(final) as folder:
        (folder / "a").write_text("1")
        assert not final.exists()
    assert names(tmp_path) == ["x", "x/a", "x/commit.json"]


def test_commit_lists_every_file(tmp_path: Path) -> None:
    final = publish(tmp_path / "x")
    assert names(tmp_path) == PUBLISHED
    assert read_commit(final).files == {
        "sub/a.txt": {"sha256": sha256_file(final / "sub" / "a.txt"), "bytes": 5},
        "b.bin": {"sha256": sha256_file(final / "b.bin"), "bytes": 2},
    }
    assert json.loads((final / "commit.json").read_text())["version"] == 2
    assert folder_faults(final) == []


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    before = content_hash(publish(tmp_path / "x", "old"))
    assert content_hash(publish(tmp_path / "x", "new")) != before
    assert content_hash(publish(tmp_path / "x", "old")) == before
    assert names(tmp_path) == PUBLISHED


def test_after_an_exception_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        publish_mistake(tmp_path / "deep" / "x")
    assert names(tmp_path) == ["deep"]


def test_after_an_exception_the_old_folder_is_there(tmp_path: Path) -> None:
    final = publish(tmp_path / "x")
    with pytest.raises(KeyError):
        publish_mistake(final)
    assert names(tmp_path) == PUBLISHED
    assert folder_faults(final) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "another output folder"),
        (errno.EACCES, "may write to"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.rename", "pathlib.Path.write_text", "pathlib.Path.mkdir"])
def test_what_the_system_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    """Whichever step of publishing fails: one sentence, and the folder that was there before is there still."""

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    final = publish(tmp_path / "x", "old")
    before = content_hash(final)
    with locked_folder(final), monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(OutputError, match=words) as caught, atomic_folder(final):
            pass
    assert str(caught.value).startswith(f"{final}: cannot be written (")
    assert names(tmp_path) == PUBLISHED
    assert content_hash(final) == before


def test_after_a_failed_last_rename_the_old_folder_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old folder was already moved away when the disk gave up."""
    final = publish(tmp_path / "x", "old")
    before, rename = content_hash(final), Path.rename

    def second_fails(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_fails)
        with pytest.raises(OutputError):
            publish(final, "new")
    assert content_hash(final) == before
    assert names(tmp_path) == PUBLISHED


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", broken)
        with pytest.raises(OutputError, match="Input/output error"):
            publish(tmp_path / "x")
    publish(tmp_path / "x")
    assert names(tmp_path) == PUBLISHED


# ---------------------------------------------------------------------------------------------------------- locks


def test_the_second_of_two_jobs_is_refused(tmp_path: Path) -> None:
    final = tmp_path / "x"
    with locked_folder(final):
        with pytest.raises(OutputError, match="another job"):
            publish(final)
        with locked_folder(tmp_path / "y"):
            pass
    publish(final)
    assert names(tmp_path) == PUBLISHED


_HOLD = """
import sys, time
from pathlib import Path
from tiling.core.artefact import locked_folder, atomic_folder
final = Path(sys.argv[1])
with locked_folder(final), atomic_folder(final) as folder:
    (folder / "half").write_text("x")
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_job(final: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", _HOLD, final], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "held\n"
        try:
            yield job
        finally:
            job.kill()


def test_whether_a_folder_is_locked_can_be_asked(tmp_path: Path) -> None:
    """Asking changes nothing, and the lock that a killed job leaves counts for nothing."""
    final = tmp_path / "x"
    assert not is_locked(final)
    with another_job(final) as job:
        assert is_locked(final)
        assert not is_locked(tmp_path / "y")
        job.kill()
        job.wait()
        assert (tmp_path / ".x.lock").exists()
        assert not is_locked(final)
        assert names(tmp_path) == [".x.lock", ".x.partial", ".x.partial/half"]


def test_a_killed_job_blocks_nobody_and_is_swept(tmp_path: Path) -> None:
    final = tmp_path / "x"
    with another_job(final) as job:
        with pytest.raises(OutputError, match="another job"):
            publish(final)
        assert names(tmp_path) == [".x.lock", ".x.partial", ".x.partial/half"]
        job.kill()
        job.wait()
        assert names(tmp_path) == [".x.lock", ".x.partial", ".x.partial/half"]
        publish(final)
    assert names(tmp_path) == PUBLISHED


def killed_before_the_second_rename(final: Path) -> None:
    final.rename(final.with_name(f".{final.name}.replaced"))
    final.with_name(f".{final.name}.partial").mkdir()


def killed_after_the_second_rename(final: Path) -> None:
    old = final.with_name(f".{final.name}.replaced")
    old.mkdir()
    (old / "half-deleted").write_text("x")


@pytest.mark.parametrize("killed", [killed_before_the_second_rename, killed_after_the_second_rename])
def test_leftovers_of_an_overwrite_are_swept(tmp_path: Path, killed: Callable[[Path], None]) -> None:
    final = publish(tmp_path / "x")
    killed(final)
    with locked_folder(final):
        assert folder_faults(final) == []
    assert names(tmp_path) == PUBLISHED


def test_without_locks_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    publish(tmp_path / "x")
    assert "has no locks" in caplog.text
    assert names(tmp_path) == PUBLISHED


_PUBLISH = """
import sys
from pathlib import Path
from tiling.core.errors import OutputError
from tiling.core.artefact import locked_folder, atomic_folder
from tiling.core.files import write_file
final = Path(sys.argv[2])
try:
    if sys.argv[1] == "file":
        write_file(final, b"x" * 200_000)
    else:
        with locked_folder(final), atomic_folder(final) as folder:
            (folder / "a").write_bytes(b"x" * 200_000)
except OutputError as error:
    print(error)
    sys.exit(7)
"""


def drop_root() -> None:
    """In the child: root's right to write everywhere is taken away (no effect for other users)."""
    import ctypes

    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_read_only_folder_is_one_sentence(tmp_path: Path, kind: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    command: list[str | Path] = [sys.executable, "-c", _PUBLISH, kind, closed / "x"]
    done = subprocess.run(command, preexec_fn=drop_root, capture_output=True, text=True, check=False)
    reason = "cannot be written (Permission denied); choose an output folder you may write to"
    assert (done.returncode, done.stderr, done.stdout) == (7, "", f"{closed / 'x'}: {reason}\n")
    assert names(tmp_path) == ["closed"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    """A file system of 64 kB, in a mount namespace of its own where the system lets us."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=64k none "$1" || exit 99; shift; "$@"; code=$?; ls -A "$DISK"; exit $code'
    command: list[str | Path] = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", disk]
    command += [sys.executable, "-c", _PUBLISH, kind, disk / "x"]
    try:
        done = subprocess.run(
            command, env=os.environ | {"DISK": str(disk)}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("lacks the command unshare")
    if done.returncode not in (0, 7):
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    sentence = "cannot be written (No space left on device); free some space and run the same command again"
    assert done.stdout == f"{disk / 'x'}: {sentence}\n", "and nothing listed after it"
    assert done.returncode == 7


@pytest.mark.parametrize("name", ["f", "f/x", "f/deeper/x"])
def test_a_file_in_the_way_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "f").write_text("x")
    if name == "f":
        with pytest.raises(OutputError, match="cannot be written"):
            write_file(tmp_path / "f" / "y", b"")
    else:
        with pytest.raises(OutputError, match="folder is needed"):
            publish(tmp_path / name)
    assert names(tmp_path) == ["f"]


# ----------------------------------------------------------------------------------------------------------- files


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_file(path, "µ")
    assert path.read_bytes() == "µ".encode()
    write_file(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert names(tmp_path) == ["new", "new/a.txt"]


def test_a_file_that_cannot_be_written_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.txt"
    write_file(path, "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="free some space"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


# --------------------------------------------------------------------------------------------------- verification


def flip(folder: Path) -> str:
    data = bytearray((folder / "b.bin").read_bytes())
    data[0] ^= 1
    (folder / "b.bin").write_bytes(data)
    return f"{folder / 'b.bin'}: its content was changed after it was written"


def lengthen(folder: Path) -> str:
    (folder / "b.bin").write_bytes(b"\0\1\2")
    return f"{folder / 'b.bin'}: is 3 bytes long instead of 2"


def remove(folder: Path) -> str:
    (folder / "sub" / "a.txt").unlink()
    return f"{folder / 'sub' / 'a.txt'}: cannot be read (No such file or directory)"


def add(folder: Path) -> str:
    (folder / "sub" / ".hidden").write_text("x")
    return f"{folder / 'sub' / '.hidden'}: does not belong here"


def uncommit(folder: Path) -> str:
    (folder / "commit.json").unlink()
    return f"{folder / 'commit.json'}: is missing, so the folder is incomplete; make it again"


def edit_commit(folder: Path) -> str:
    text = (folder / "commit.json").read_text()
    (folder / "commit.json").write_text(text.replace('"bytes": 2', '"bytes": 3'))
    return f"{folder / 'commit.json'}: was changed after it was written; make the folder again"


@pytest.mark.parametrize("damage", [flip, lengthen, remove, add, uncommit, edit_commit])
def test_faults_are_named(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    final = publish(tmp_path / "x")
    expected = damage(final)
    assert folder_faults(final) == [expected]


def test_only_some_files_can_be_checked(tmp_path: Path) -> None:
    final = publish(tmp_path / "x")
    flip(final)
    assert folder_faults(final, only=frozenset({"sub/a.txt"})) == []
    assert len(folder_faults(final, only=frozenset({"b.bin"}))) == 1


def test_the_content_hash_needs_a_commit(tmp_path: Path) -> None:
    with pytest.raises(SpecslideError, match="is missing"):
        content_hash(tmp_path)


# ----------------------------------------------------------------------------------------------------------- hashes

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(value=values)
def test_canonical_json_is_json(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(items=st.dictionaries(st.text(max_size=4), st.integers(), min_size=2))
def test_the_order_of_keys_is_of_no_account(items: dict[str, int]) -> None:
    assert sha256_json(dict(reversed(items.items()))) == sha256_json(items)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_sha256_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    unwanted = threading.Event()
    (tmp_path / "b").write_bytes(bytes(3 << 20))
    assert sha256_file(tmp_path / "b", unwanted) == hashlib.sha256(bytes(3 << 20)).hexdigest()
    unwanted.set()
    with pytest.raises(InterruptedError):
        sha256_file(tmp_path / "b", unwanted)
    assert sha256_file(tmp_path / "a") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_file_where_the_folder_belongs_is_refused_and_stays(tmp_path: Path) -> None:
    final = tmp_path / "s.zarr"
    final.write_text("mine")
    with (
        pytest.raises(OutputError, match="folder is needed"),
        locked_folder(final),
        atomic_folder(final),
    ):
        raise AssertionError("not reached")
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]
    assert final.read_text() == "mine"


# ------------------------------------------------------------------------------------------------ whose a folder is


@pytest.mark.parametrize(
    ("files", "own"),
    [
        (None, True),
        ([], True),
        (["mark.json"], True),
        (["a/mark.json", "mark.json", "mine"], True),
        (["mine"], False),
        ([".hidden"], False),
        ([".run.json.partial"], True),
        (["a/mark.json"], False),
        (["mark.json/mine"], False),
    ],
)
def test_a_folder_is_told_by_its_mark(tmp_path: Path, files: list[str] | None, own: bool) -> None:
    """One that is not there, or empty, is anybody's to fill."""
    folder = tmp_path / "out"
    if files is not None:
        folder.mkdir()
    for name in files or ():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    if own:
        require_own(folder, "mark.json", "a result")
    else:
        with pytest.raises(OutputError, match=r"out: .*--out$"):
            require_own(folder, "mark.json", "a result")


def test_a_folder_that_was_published_with_the_mark_is_its_own_without_it(tmp_path: Path) -> None:
    """Damaged, it may be made again."""
    folder = publish(tmp_path / "x")
    (name, *_) = read_commit(folder).files
    (folder / name).unlink()
    require_own(folder, name, "a result")


# -------------------------------------------------------------------------------------------- links and hostile lists


def test_a_folder_that_is_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "stores").mkdir()
    real, link = publish(tmp_path / "disk" / "x", "before"), tmp_path / "stores" / "x"
    link.symlink_to(real)
    for content in ("once", "twice"):
        publish(link, content)
        assert (real / "sub" / "a.txt").read_text() == content
    assert link.readlink() == real
    assert (names(tmp_path / "stores")[:1], names(tmp_path / "disk")) == (["x"], PUBLISHED)


def test_nothing_is_written_through_a_planted_link(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "theirs"
    victim.write_text("precious")
    folder.mkdir()
    (folder / "a").write_text("precious")
    (tmp_path / ".x.partial").symlink_to(victim)
    write_file(tmp_path / "x", "new")
    assert ((tmp_path / "x").read_text(), (tmp_path / "x").is_symlink(), victim.read_text()) == (
        "new",
        False,
        "precious",
    )
    for name in (".y.partial", ".y.replaced"):
        (tmp_path / name).symlink_to(folder)
    publish(tmp_path / "y")
    assert names(folder) == ["a"]
    (tmp_path / ".z.lock").symlink_to(tmp_path / "made")
    with pytest.raises(OutputError, match="z"):
        publish(tmp_path / "z")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../victim", "/dev/zero", "a\0b", "sub/../../victim", "", "./b.bin", "sub//a.txt"])
def test_a_list_names_files_of_its_folder_alone(tmp_path: Path, name: str) -> None:
    final = publish(tmp_path / "x")
    record = json.loads((final / "commit.json").read_text())
    record["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    write_commit(final, record)
    (fault,) = folder_faults(final)
    assert "commit.json" in fault
    assert repr(name)[1:-1] in fault


def test_a_listed_device_is_a_fault_and_not_read(tmp_path: Path) -> None:
    final = publish(tmp_path / "x")
    (final / "b.bin").unlink()
    (final / "b.bin").symlink_to("/dev/zero")
    assert folder_faults(final) == [f"{final / 'b.bin'}: is no file"]


@pytest.mark.parametrize(
    "text", ['{"sha256": "x", "version": Infinity, "files": {}}', "[" * 100_000, '{"a": "\\ud800"}']
)
def test_a_list_that_cannot_be_hashed_is_a_fault(tmp_path: Path, text: str) -> None:
    final = publish(tmp_path / "x")
    (final / "commit.json").write_text(text)
    (fault,) = folder_faults(final)
    assert "commit.json: cannot be read" in fault


def test_a_list_without_end_is_not_read(tmp_path: Path) -> None:
    final = publish(tmp_path / "x")
    with (final / "commit.json").open("ab") as f:
        f.truncate(2**27)
    assert "commit.json: cannot be read" in folder_faults(final)[0]
