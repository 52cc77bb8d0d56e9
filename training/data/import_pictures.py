"""The verb `import_pictures`: packed data sets (Hugging Face Parquet, WebDataset tar) become a folder to train on.

out/index.csv     a row a picture: path, label, split and whatever else the data set says
out/pictures/     the pictures, byte for byte

Nothing is unpickled or run, and no name in an archive becomes the name of a file.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import PIL.Image
import pyarrow
import pyarrow.parquet

from tiling.core.artefact import Recipe, atomic_folder, locked_folder, require_own, state
from tiling.core.errors import InputError, OutputError
from tiling.core.files import require_regular, sha256_file
from tiling.core.versions import software_versions
from tiling.manifest import holds_bytes
from training.data.from_images import ARCHIVES, NAMES
from training.data.splits import SPLIT_NAMES

log = logging.getLogger(__name__)

INDEX, FOLDER = "index.csv", "pictures"
ENDINGS: Final = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}
"""Formats of pictures that are taken, by Pillow's name, and what their files end in."""
_MAX_PICTURE_BYTES, _MAX_TEXT_BYTES = 2**28, 2**20
_ROWS_AT_ONCE = 64
_TAR_PICTURES = ("jpg", "jpeg", "png", "tif", "tiff", "bmp", "webp")
_TAR_TEXTS = ("cls", "json", "txt")


@dataclass(frozen=True)
class Packed:
    """One picture of a packed data set."""

    where: str
    """Its file and row, or key."""
    data: bytes
    columns: Mapping[str, str]
    """What else is said of it, by name; its class under one of the names of `NAMES["label"]`."""


@dataclass(frozen=True)
class PicturesReport:
    """The result of unpacking a data set."""

    index: Path
    pictures: int
    labels: Mapping[str, int]
    """How many pictures there are of each class; "" of none."""
    reused: bool


def import_pictures(paths: Sequence[Path], out: Path, *, overwrite: bool = False) -> PicturesReport:
    """Write the pictures of packed data sets, and a table of them that `train --images` takes, into the folder `out`.

    Args:
        paths: Parquet files whose pictures are within (`bytes`), tar files of WebDataset, perhaps compressed, or
            folders of such. The split is the column's, or the first word of a file's name (`train-00000.parquet`).
        out: The folder.
        overwrite: Replace a folder made of other files, or a damaged one.

    Returns:
        What is there now.

    Raises:
        InputError: Naming file and row for what is no picture, too large, or of no known layout.
        OutputError: For a folder made otherwise, unless `overwrite`, and one that holds something else.
    """
    files = _files(paths)
    recipe = Recipe("pictures", {"files": [_hash(path) for path in files]})
    with locked_folder(out):
        if out.exists():
            found = state(out, recipe)
            if found.state == "done":
                return _report(out, reused=True)
            require_own(out, INDEX, "unpacked pictures")
            if not overwrite:
                what = f"holds other pictures, or damaged ones: {found.why or 'it is incomplete'}"
                raise OutputError(out, what, "choose another --out, or pass --overwrite")
        with atomic_folder(out, recipe, made_with=software_versions("pyarrow")) as folder:
            (folder / FOLDER).mkdir()
            rows = [
                {"path": _written(folder, number, one), **one.columns}
                for number, one in enumerate(one for path in files for one in packed_pictures(path))
            ]
            if not rows:
                raise InputError(files[0], "holds no picture", "pass files with pictures in them")
            (folder / INDEX).write_text(_csv(rows), encoding="utf-8")
    return _report(out, reused=False)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files that paths name, or that lie in their folders. Raises InputError."""
    found: list[Path] = []
    for path in paths:
        within = sorted(one for one in path.rglob("*") if _reader(one)) if path.is_dir() else [path]
        if not within or not all(map(_reader, within)):
            what = "is neither Parquet nor tar" if within else "holds neither Parquet nor tar files"
            raise InputError(path, what, f"known are {', '.join(PACKED)}")
        found += within
    return found


def _reader(path: Path) -> Callable[[Path], Iterator[Packed]] | None:
    return next((read for ending, read in PACKED.items() if path.name.lower().endswith(ending)), None)


def _hash(path: Path) -> str:
    try:
        require_regular(path)
        return sha256_file(path)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "correct the path") from None


def packed_pictures(path: Path) -> Iterator[Packed]:
    """The pictures of a file, with the columns `label` and `split` where they are known."""
    reader = _reader(path)
    assert reader is not None
    prefix = path.name.split("-")[0].split(".")[0].lower()
    of_file = {"split": SPLIT_NAMES[prefix]} if prefix in SPLIT_NAMES else {}
    try:
        for one in reader(path):
            label = next((one.columns[name] for name in (*NAMES["label"], "cls", "txt") if name in one.columns), None)
            known = of_file | dict(one.columns) | ({} if label is None else {"label": label})
            yield Packed(one.where, one.data, known)
    except (OSError, EOFError, ValueError, tarfile.TarError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(path, f"cannot be read ({reason})", "fetch it again") from error


def _written(folder: Path, number: int, one: Packed) -> str:
    """Write one picture; returns its path in the folder. Raises InputError as `picture_ending`, OSError."""
    name = f"{FOLDER}/{number:08d}{picture_ending(one)}"
    (folder / name).write_bytes(one.data)
    return name


def picture_ending(one: Packed) -> str:
    """What the picture's file ends in, by its content. Raises InputError for what is no picture of `ENDINGS`."""
    try:
        with PIL.Image.open(io.BytesIO(one.data), formats=tuple(ENDINGS)) as picture:
            return ENDINGS[picture.format or ""]
    except (OSError, KeyError, PIL.Image.DecompressionBombError) as error:
        what = f"is no picture that can be read ({type(error).__name__})"
        raise InputError(one.where, what, f"use {', '.join(ENDINGS)}") from None


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    """The table, a line a picture: breaks of lines within a text become blanks."""
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    table.writerows([" ".join(row.get(name, "").split()) for name in names] for row in rows)
    return text.getvalue()


def _report(out: Path, *, reused: bool) -> PicturesReport:
    with (out / INDEX).open(newline="", encoding="utf-8") as file:
        labels = Counter(row.get("label", "") for row in csv.DictReader(file))
    return PicturesReport(out / INDEX, labels.total(), dict(sorted(labels.items())), reused)


# ----------------------------------------------------------------------------------------------------------- layouts


def _parquet(path: Path) -> Iterator[Packed]:
    """Parquet as Hugging Face's `datasets` writes it: a column of {bytes, path} or of bytes, and columns of values.

    Names of classes are in the schema's metadata under `huggingface`, as {info: {features: {NAME: {names: [...]}}}}.
    """
    with pyarrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        pictures = [field.name for field in schema if holds_bytes(field.type)]
        if len(pictures) != 1:
            what = f"has {len(pictures)} columns of pictures; its columns are {', '.join(schema.names)}"
            raise InputError(path, what, "keep one column of bytes, or of {bytes, path}")
        values = [f.name for f in schema if _is_value(f.type) and f.name.lower() not in ("path", *pictures)]
        names_of = _class_names(schema)
        number = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[*pictures, *values]):
            for row in batch.to_pylist():
                number += 1
                where, found = f"{path}, row {number}", row[pictures[0]]
                data = found["bytes"] if isinstance(found, dict) else found
                columns = {name: _value_text(row[name], names_of.get(name), where) for name in values}
                yield Packed(where, _bounded(data, where), columns)


def _is_value(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    known = (
        types.is_string, types.is_large_string, types.is_dictionary, types.is_integer, types.is_floating,
        types.is_boolean,
    )  # fmt: skip
    return any(is_known(kind) for is_known in known)


def _class_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """The names of the classes of each column that has numbers for them; none where the metadata say nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {column: list(map(str, of["names"])) for column, of in features.items() if "names" in of}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _value_text(value: Any, names: list[str] | None, where: str) -> str:
    """A value as the table has it: a class by its name, "" for one that is missing (-1 of a class)."""
    if value is None or (names and value == -1):
        return ""
    if not names or not isinstance(value, int):
        return str(value)
    if not 0 <= value < len(names):
        raise InputError(where, f"has the class {value}, and there are {len(names)} names", "correct the data set")
    return names[value]


def _bounded(data: bytes | None, where: str) -> bytes:
    if not data:
        raise InputError(where, "holds no picture but at most its path", "embed the pictures, or pass a table of paths")
    if len(data) > _MAX_PICTURE_BYTES:
        raise InputError(where, f"is a picture of {len(data):,} bytes", f"keep to {_MAX_PICTURE_BYTES:,}")
    return data


def _tar(path: Path) -> Iterator[Packed]:
    """WebDataset: files that follow each other and share their name up to the first dot are one sample.

    Of its members the picture and `.cls`, `.json` and `.txt` are read; others (`.pyd` and `.pth` are pickles) are not.
    """
    passed = Counter[str]()
    with tarfile.open(path, "r|*") as archive:
        members = (member for member in archive if not member.isdir())
        for key, group in groupby(members, lambda member: _key(member.name)):
            where, data, columns = f"{path}, {key}", None, {"key": key}
            for member in group:
                ending = Path(member.name).name.partition(".")[2].lower()
                kind = ending.rpartition(".")[2]  # `seg.png` beside `jpg` is a second picture
                if kind not in (*_TAR_PICTURES, *_TAR_TEXTS):
                    passed[kind] += 1
                    continue
                content = _member(archive, member, _MAX_TEXT_BYTES if kind in _TAR_TEXTS else _MAX_PICTURE_BYTES, where)
                if kind in _TAR_TEXTS:
                    columns |= _texts(kind, content, where)
                elif data is None:
                    data = content
                else:
                    raise InputError(where, "holds two pictures", "keep one a sample")
            if data is not None:
                yield Packed(where, data, columns)
            else:
                passed["(no picture)"] += 1
    if passed:
        log.warning("%s: passed over %s", path, ", ".join(f"{n} of {kind}" for kind, n in sorted(passed.items())))


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}".lstrip("/")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int, where: str) -> bytes:
    """The bytes of a member. Raises InputError for one that is a link or device, or too large."""
    content = archive.extractfile(member) if member.isreg() else None
    if content is None:
        raise InputError(where, "is a link or device and no file", "pack the files themselves")
    if member.size > limit:
        raise InputError(where, f"holds {member.size:,} bytes", f"keep to {limit:,}")
    return content.read()


def _texts(kind: str, content: bytes, where: str) -> dict[str, str]:
    """The columns that a text of a sample gives: itself by its ending, or the values of a JSON object."""
    try:
        text = content.decode("utf-8-sig").strip()
        found = json.loads(text) if kind == "json" else {kind: text}
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"its .{kind} cannot be read ({type(error).__name__})", "correct it") from None
    if not isinstance(found, dict):
        return {}
    kept = {name: value for name, value in found.items() if isinstance(value, str | int | float)}
    return {name: _value_text(value, None, where) for name, value in kept.items() if name.lower() != "path"}


PACKED: Final[dict[str, Callable[[Path], Iterator[Packed]]]] = {
    ".parquet": _parquet,  # https://huggingface.co/docs/datasets, Image and ClassLabel
    **dict.fromkeys(ARCHIVES, _tar),  # https://github.com/webdataset/webdataset, "The WebDataset Format"
}
"""Layouts of packed data sets by what the files' names end in."""
