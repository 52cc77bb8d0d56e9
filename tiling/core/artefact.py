"""Artefacts: folders made from inputs by settings. The only place that gives a folder its final name.

A folder is filled beside its final name, synced, listed in `commit.json` with the sha256 of each file and the recipe it
was made by, and renamed: publication is atomic. Killed at any moment, the next run of the same job removes what was
left. One function, `state`, says whether the folder that is there is the one that a recipe would make. Knows nothing
of slides, zarr or models.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from tiling.core.errors import OutputError, SpecslideError
from tiling.core.files import (
    canonical_json,
    locked,
    output_error,
    read_json,
    sha256_file,
    sha256_json,
    sync,
    sync_all,
    write_file,
)

COMMIT = "commit.json"
PROVENANCE = "provenance.json"
"""What a training learned from, in its run's folder."""
VERSION = 2
"""Of commit.json. Version 1 lists the files alone, without a recipe; it is still read."""
_SHOWN_DIFFERENCES = 4
_MAX_COMMIT_BYTES = 2**26
"""Of a list of half a million files."""


@dataclass(frozen=True)
class Recipe:
    """A recipe: what an artefact is made from, and by which settings; equal recipes make equal artefacts."""

    artefact: str
    """What is made: store, model, heatmap, evaluation ..."""
    inputs: Mapping[str, Any]
    """Hashes, by what they are of; no paths."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    alike: Mapping[str, Collection[Any]] = field(default_factory=dict)
    """Values of a setting, by its name, with any of which an artefact that is there will do; None: without it. No part
    of what is written."""

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON holds it."""
        record = {"artefact": self.artefact, "inputs": dict(self.inputs), "settings": dict(self.settings)}
        return cast(dict[str, Any], json.loads(json.dumps(record)))

    @property
    def sha256(self) -> str:
        """SHA-256 of the recipe."""
        return sha256_json(self.plain())


@dataclass(frozen=True)
class Commit:
    """The content of `commit.json`."""

    files: Mapping[str, Mapping[str, Any]]
    """Relative path -> {"sha256", "bytes"}."""
    recipe: Recipe | None = None
    """None for a folder of version 1."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """Software versions and, where numbers depend on it, the device."""
    shared: bool = False
    """Whether other files may lie in the folder too."""


class State(NamedTuple):
    """Whether an artefact is as its recipe would make it, and if not, why."""

    state: Literal["done", "to do", "changed", "failed"]
    why: str = ""


DONE, TO_DO = State("done"), State("to do")


# ------------------------------------------------------------------------------------------------------ publication


@contextmanager
def locked_folder(final: Path) -> Iterator[None]:
    """Hold the lock of the folder `final`, and remove what a killed job left of it. Raises OutputError.

    Of a link, here and in `atomic_folder`, it is the folder that it leads to, which may lie on another disk.
    """
    final = _real(final)
    with locked(final):
        _remove_leftovers(final)
        yield


@contextmanager
def atomic_folder(
    final: Path, recipe: Recipe | Callable[[], Recipe] | None = None, *, made_with: Mapping[str, Any] | None = None
) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it is hashed, synced and renamed to `final`.

    A recipe that is known only when the folder has been filled is asked for then.

    To be used inside `locked_folder(final)`. A folder already called `final` is replaced. After an exception nothing
    is left, and a folder that was to be replaced is back. Raises OutputError for whatever the file system refuses
    (disk full, read-only, no permission).
    """
    final = _real(final)
    partial, replaced = _partial(final), _replaced(final)
    try:
        if final.exists() and not final.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final))
        partial.mkdir()
        yield partial
        names = [path.relative_to(partial).as_posix() for path in sorted(partial.rglob("*")) if path.is_file()]
        known = recipe() if callable(recipe) else recipe
        commit = Commit(_hash_files(partial, names), known, made_with or {})
        (partial / COMMIT).write_text(_commit_text(commit))
        sync_all([partial, *partial.rglob("*")])
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        sync(final.parent)
        if replaced.exists():
            shutil.rmtree(replaced)
    except OSError as error:
        raise output_error(final, error) from error
    finally:
        with suppress(OutputError):  # what the file system refuses now, the next job removes
            _remove_leftovers(final)


def seal(folder: Path, recipe: Recipe, names: Collection[str], *, made_with: Mapping[str, Any] | None = None) -> None:
    """Write commit.json for finished files of a folder that holds others too, or will: a training run, a study.

    Args:
        folder: The folder.
        recipe: What the files were made from.
        names: The files, relative to the folder, with "/".
        made_with: Software versions and, where numbers depend on it, the device.

    Raises:
        OutputError: If a file cannot be read, or commit.json cannot be written.
    """
    try:
        commit = Commit(_hash_files(folder, sorted(names)), recipe, made_with or {}, shared=True)
    except OSError as error:
        raise output_error(folder, error) from error
    write_file(folder / COMMIT, _commit_text(commit))


def require_own(final: Path, mark: str, what: str) -> None:
    """Raise OutputError unless the folder `final` may be replaced by `atomic_folder`: it is empty, or a `what`.

    A `what` has, or lists, the file `mark`, and holds no file that is not listed: whoever has data there never meant to
    have them deleted. What a kill left of a `write_file` is nobody's.
    """
    try:
        held = final.is_dir() and not (final / mark).is_file()
        held = held and any(not _is_partial(path) for path in final.iterdir())
    except OSError as error:
        raise output_error(final, error) from error
    if held and not _lists(final, mark):
        raise OutputError(final, f"holds something else than {what}", "choose another --out")
    for stranger in _strangers(final):
        raise OutputError(
            stranger, f"is no part of {what}, which would be replaced", "move it, or choose another --out"
        )


def _strangers(folder: Path) -> Iterator[Path]:
    """Files that nobody listed when the folder was published; none where its list cannot be read."""
    known = {COMMIT, PROVENANCE}
    try:
        known |= read_commit(folder).files.keys()
    except SpecslideError:
        try:  # a test of version 0.1
            known |= json.loads((folder / PROVENANCE).read_bytes())["files"].keys()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return
    yield from (path for name, path in _unlisted(folder, known) if not path.name.startswith("."))


def _unlisted(folder: Path, known: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Files below a folder that are not known, by their relative names; those of artefacts within it are theirs."""
    for place, folders, files in os.walk(folder):
        within = Path(place)
        if within != folder and COMMIT in files:
            folders.clear()
            continue
        for name in sorted(files):
            relative = (within / name).relative_to(folder).as_posix()
            if relative not in known:
                yield relative, within / name


# --------------------------------------------------------------------------------------------------------- reading


def read_commit(folder: Path) -> Commit:
    """The commit.json of a published folder.

    Raises SpecslideError if there is no valid `commit.json`, that is, if the folder was never completed or its list was
    edited.
    """
    path = folder / COMMIT
    try:
        if path.stat().st_size > _MAX_COMMIT_BYTES:
            raise ValueError("no folder has so many files")
        record = read_json(path)
        own = record.pop("sha256")
        files = {name: {"sha256": of["sha256"], "bytes": of["bytes"]} for name, of in record["files"].items()}
        version, recipe = record["version"], record.get("recipe")
        known = None if recipe is None else Recipe(recipe["artefact"], recipe["inputs"], recipe["settings"])
        commit = Commit(files, known, record.get("made_with", {}), record.get("shared", False))
    except FileNotFoundError:
        raise SpecslideError(path, "is missing, so the folder is incomplete", "make it again") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise SpecslideError(path, f"cannot be read ({type(error).__name__})", "make the folder again") from None
    if strangers := [name for name in files if not _stays_within(name)]:
        raise SpecslideError(path, f"lists {strangers[0]!a}, which is no file of the folder", "make the folder again")
    if own != sha256_json(record) or version not in (1, VERSION):
        raise SpecslideError(path, "was changed after it was written", "make the folder again")
    return commit


def content_hash(folder: Path) -> str:
    """One hash of all files of a published folder. Raises SpecslideError as `read_commit` does."""
    return sha256_json(read_commit(folder).files)


def folder_faults(folder: Path, only: Collection[str] | None = None) -> list[str]:
    """The faults of a published folder, a sentence each naming the file; empty if it is intact.

    Every byte is read and hashed. `only` restricts the hashing to those relative paths.
    """
    try:
        commit = read_commit(folder)
    except SpecslideError as error:
        return [str(error)]
    faults = []
    for name, expected in sorted(commit.files.items()):
        if only is not None and name not in only:
            continue
        path = folder / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                faults.append(f"{path}: is no file")
            elif path.stat().st_size != expected["bytes"]:
                faults.append(f"{path}: is {path.stat().st_size} bytes long instead of {expected['bytes']}")
            elif sha256_file(path) != expected["sha256"]:
                faults.append(f"{path}: its content was changed after it was written")
        except OSError as error:
            faults.append(f"{path}: cannot be read ({error.strerror})")
    if only is None and (folder / COMMIT).read_bytes() != _commit_text_of(folder):
        faults.append(f"{folder / COMMIT}: its content was changed after it was written")
    if only is None and not commit.shared:
        strangers = sorted(path for _, path in _unlisted(folder, {COMMIT, *commit.files}))
        faults += [f"{path}: does not belong here" for path in strangers]
    return faults


def state(folder: Path, recipe: Recipe, *, before: Recipe | None = None, only: Collection[str] | None = None) -> State:
    """Whether the artefact in `folder` is the one that `recipe` would make, and if not, why.

    Args:
        folder: The artefact's folder, which need not be there.
        recipe: What the artefact would be made from now.
        before: The recipe of a folder whose commit.json has none (version 1), where its own files tell.
        only: The files whose bytes are hashed; None: all.

    Returns:
        "done", "to do" where nothing is there, or "changed" with the reason: another recipe, or damage.

    Raises:
        OSError: If a file of the folder cannot be looked at.
    """
    if not (folder / COMMIT).exists():
        return TO_DO
    try:
        known = read_commit(folder).recipe or before
    except SpecslideError as error:
        return State("changed", error.what)
    if known is None:
        return State("changed", "was made by an earlier version of specslide")
    if why := difference(known, recipe):
        return State("changed", why)
    faults = folder_faults(folder, only)
    return State("changed", f"is damaged: {faults[0]}") if faults else DONE


def difference(before: Recipe, now: Recipe) -> str:
    """How two recipes differ, in words; "" if they do not."""
    old, new = before.plain(), now.plain()
    if old["artefact"] != new["artefact"]:
        return f"holds another kind of artefact: {old['artefact']}"
    inputs = old["inputs"] | new["inputs"]
    if changed := sorted(name for name in inputs if old["inputs"].get(name) != new["inputs"].get(name)):
        return f"not made from the same {', '.join(changed)}"
    for name, values in now.alike.items():
        if old["settings"].get(name) in values:
            old["settings"].pop(name, None)
            new["settings"].pop(name, None)
    if old["settings"] != new["settings"]:
        elsewhere = ", ".join(sorted(old["settings"].keys() ^ new["settings"].keys()))
        return setting_differences(old["settings"], new["settings"]) or f"made with other settings: {elsewhere}"
    return ""


def setting_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, in words; "" if none does. A setting that was not known before is not named."""
    names = sorted(name for name in now if name in before and before[name] != now[name])
    shown = ", ".join(f"{n} was {_short(before[n])}, is {_short(now[n])}" for n in names[:_SHOWN_DIFFERENCES])
    return shown + (f" and {len(names) - _SHOWN_DIFFERENCES} more" if len(names) > _SHOWN_DIFFERENCES else "")


# --------------------------------------------------------------------------------------------------------- private


def _commit_text(commit: Commit) -> str:
    record: dict[str, Any] = {"version": VERSION, "files": commit.files}
    if commit.recipe is not None:
        record["recipe"] = commit.recipe.plain()
    if commit.made_with:
        record["made_with"] = dict(commit.made_with)
    if commit.shared:
        record["shared"] = True
    return canonical_json(record | {"sha256": sha256_json(record)})


def _commit_text_of(folder: Path) -> bytes:
    """The one spelling of the commit.json that is there: a changed white space is a change too."""
    return canonical_json(json.loads((folder / COMMIT).read_bytes())).encode()


def _hash_files(folder: Path, names: Collection[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size} for name in sorted(names)
    }


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else sha256_json(value)[:12] if isinstance(value, dict | list) else text[:37] + "..."


def _stays_within(name: str) -> bool:
    """Whether a listed name is that of a file below the folder."""
    parts = name.split("/")
    return "\0" not in name and not any(part in ("", ".", "..") for part in parts)


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def _lists(folder: Path, name: str) -> bool:
    """Whether the folder was published with that file."""
    try:
        return name in read_commit(folder).files
    except SpecslideError:
        return False


def _real(final: Path) -> Path:
    return final.resolve() if final.is_symlink() else final


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _remove_leftovers(final: Path) -> None:
    """Remove what a killed job left of `final`."""
    partial, replaced = _partial(final), _replaced(final)
    try:
        for planted in (partial, replaced):
            if planted.is_symlink():  # somebody else's: a job leaves none
                planted.unlink()
        if replaced.exists() and not final.exists():  # killed between the two renames of an overwrite
            replaced.rename(final)
        for leftover in (partial, replaced):
            if leftover.exists():
                shutil.rmtree(leftover)
    except OSError as error:
        raise output_error(final, error) from error
