"""Tables of slides: CSV or Parquet manifests with the column names of the field, read into frozen rows."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError, field_validator

from tiling.core.errors import ConfigError, InputError
from tiling.core.files import require_regular
from tiling.slides.files import slide_name

if TYPE_CHECKING:  # imported where a table is Parquet
    import pyarrow

ALIASES = {
    "sample_id": "slide_id",
    "slide": "slide_id",
    "patient": "case_id",
    "patient_id": "case_id",
    "image_path": "slide_path",
    "wsi": "slide_path",
    "filename": "slide_path",
}
_FORBIDDEN = set('/\\:*?"<>|')
_FORBIDDEN_FIRST = ".~- =+@"  # hidden files, options, and what a spreadsheet takes for a formula
_OWN = {"index.html", "not_analysed.json"}  # of a folder of heatmaps
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}  # of Windows


class ManifestRow(BaseModel):
    """One slide of a study. Paths are absolute or relative to the working directory."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    slide_path: Path
    slide_id: str
    case_id: str
    label: str | None = None
    split: str | None = None
    mpp: PositiveFloat | None = None
    annotation: Path | None = None
    site: str | None = None
    scanner: str | None = None

    @field_validator("slide_path", "annotation")
    @classmethod
    def _names_any_file(cls, path: Path | None) -> Path | None:
        if path is not None and "\0" in str(path):
            raise ValueError("a path holds the character NUL")
        return path

    @field_validator("slide_id")
    @classmethod
    def _names_a_file(cls, slide_id: str) -> str:
        return checked_slide_id(slide_id)


class SlideList(NamedTuple):
    """The slides that were asked for, and those refused."""

    rows: list[ManifestRow]
    refused: dict[str, str]
    """Why a slide has no id that could name its results, by what it is called where it is asked for: its path, or the
    row of a manifest."""


def checked_slide_id(slide_id: str) -> str:
    """A slide id, checked: it must be able to name a folder on any file system; raises ValueError otherwise."""
    name = slide_id.casefold()
    if name in _OWN or name.split(".")[0] in _DEVICES:
        raise ValueError(f"slide_id {slide_id!r} is the name of a file of its own: use another")
    refused = not slide_id or slide_id[0] in _FORBIDDEN_FIRST or slide_id[-1] in ". "
    refused = refused or bool(_FORBIDDEN & set(slide_id)) or not slide_id.isprintable()
    if refused or len(slide_id.encode()) > 200:
        raise ValueError(f"slide_id {slide_id!r} cannot name a folder: use letters, digits, '_', '-' and '.'")
    return slide_id


def require_slide_id(slide_id: str, where: object) -> str:
    """A slide id, checked: it must be able to name a folder. Raises ConfigError naming `where` it comes from."""
    try:
        return checked_slide_id(slide_id)
    except ValueError as error:
        raise ConfigError(where, str(error), "pass another slide_id") from None


def slide_row(path: Path) -> ManifestRow:
    """The row of a slide given by its path alone: id from its name, each slide its own case. Raises ConfigError."""
    name = slide_name(path)
    try:
        return ManifestRow(slide_path=path, slide_id=name, case_id=name)
    except ValidationError as error:
        raise ConfigError(path, _reason(error), "rename the file, or give a manifest with slide_id") from None


def slides_of_paths(paths: Iterable[Path]) -> SlideList:
    """The slides given by their paths alone; one whose name cannot be an id is refused, and the others go on.

    Raises InputError if two share one id.
    """
    slides, path_of = SlideList([], {}), dict[str, Path]()
    for path in paths:
        try:
            row = slide_row(path)
        except ConfigError as error:
            slides.refused[_printable(path)] = f"{error.what}; {error.fix}"
            continue
        first = path_of.setdefault(id_key(row.slide_id), path)
        if first is not path:
            fix = "give each once, or a manifest with a slide_id for each"
            raise InputError("the slides given", f"two have the id {row.slide_id!r}: {first} and {path}", fix)
        slides.rows.append(row)
    return slides


def read_manifest(path: Path) -> list[ManifestRow]:
    """The slides of a manifest, in its order.

    Raises InputError naming the row, also for an id that cannot name a folder, and for two slides with one id.
    """
    slides = slides_of_manifest(path)
    for row, reason in slides.refused.items():
        raise InputError(f"{path}, {row}", reason, "correct the manifest")
    return slides.rows


def slides_of_manifest(path: Path) -> SlideList:
    """As `read_manifest`, but a slide whose id cannot name a folder is refused, and the others go on."""
    slides, number_of = SlideList([], {}), dict[str, int]()
    for number, raw in read_table(path).items():
        values = {name: text for name, text in raw.items() if text != ""}
        if "slide_path" not in values:
            raise InputError(f"{path}, row {number}", "has no slide_path", f"known columns: {', '.join(raw)}")
        slide_path = path.parent / values["slide_path"]
        values.setdefault("slide_id", slide_name(slide_path))
        values.setdefault("case_id", values["slide_id"])
        values["slide_path"] = str(slide_path)
        if "annotation" in values:
            values["annotation"] = str(path.parent / values["annotation"])
        try:
            row = ManifestRow.model_validate(values)
        except ValidationError as error:
            if {place["loc"] for place in error.errors()} != {("slide_id",)}:
                raise InputError(f"{path}, row {number}", _reason(error), "correct the manifest") from None
            slides.refused[f"row {number}"] = _reason(error)
            continue
        first = number_of.setdefault(id_key(row.slide_id), number)
        if first != number:  # their results would share one name
            what = f"has the slide_id {row.slide_id!r} of row {first}"
            raise InputError(f"{path}, row {number}", what, "give each slide an id of its own")
        slides.rows.append(row)
    return slides


def id_key(slide_id: str) -> str:
    """A key that is equal for ids that would be the same file on some file system."""
    return unicodedata.normalize("NFC", slide_id).casefold()


def _printable(path: Path) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


def read_table(path: Path) -> dict[int, dict[str, str]]:
    """Rows of a CSV (commas, tabs or semicolons; with a header) or Parquet table as text, by the number of line or row.

    Column names are in lower case, aliases resolved.

    Raises InputError as `read_columns` does, and if the table names one column twice.
    """
    raw, rows = read_columns(path)
    names = [ALIASES.get(name.lower(), name.lower()) for name in raw]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(path, f"has two columns for {', '.join(sorted(twice))}", "keep one of them")
    return {number: dict(zip(names, values, strict=True)) for number, values in rows.items()}


def read_columns(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """The column names of a CSV or Parquet table as they are, and its rows as text, numbered as in `read_table`.

    A field stands on one line: a quote that is not closed there would swallow the rows that follow. Raises InputError
    naming the row for one that cannot be read, and if the table cannot be read or is empty.
    """
    try:
        require_regular(path)
        names, rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name with a NUL in it
        raise _unreadable(path, error) from error
    if not rows:
        raise InputError(path, "has no rows", "list one slide or image a row under a header line")
    return names, rows


def _read_csv(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as f:
        head = f.readline()
        bare = re.sub(r'"[^"]*"', "", head)
        found = max(SEPARATORS, key=bare.count)  # of equals the first, which is the comma
        lines = ((number, _fields(line, found, f"{path}, row {number}")) for number, line in enumerate(f, start=2))
        names = _fields(head, found, f"{path}, row 1")
        rows = {number: fields for number, fields in lines if fields}
    for number, fields in rows.items():
        if len(fields) != len(names):
            what = f"has {len(fields)} fields instead of {len(names)}, with {SEPARATORS[found]} between them"
            raise InputError(f"{path}, row {number}", what, "correct it")
    return names, rows


SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
"""What stands between the columns of a table of text; the one that its first line has most of."""


def _fields(line: str, separator: str, where: str) -> list[str]:
    """The fields of one line of a table of text, [] of an empty one. Raises InputError."""
    try:
        fields = [field.strip() for field in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise InputError(where, "has a quote that is not closed on its line", "close or remove it") from None
        raise InputError(where, f"cannot be read ({error})", "correct it") from None
    if "\0" in line:
        raise InputError(where, "holds a NUL character", "write the table as UTF-8 text")
    return fields


def _read_parquet(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        if packed := [field.name for field in schema if holds_bytes(field.type)]:
            what = f"holds pictures in its column {packed[0]!r}; its columns are {', '.join(schema.names)}"
            raise InputError(path, what, "unpack them with specslide import pictures")
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from error
    columns = [["" if v is None else str(v) for v in column.to_pylist()] for column in table.columns]
    rows = enumerate(zip(*columns, strict=True), start=1)
    return [name.strip() for name in table.column_names], {number: list(values) for number, values in rows}


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return InputError(path, f"cannot be read ({reason})", "pass a CSV or Parquet table")


def holds_bytes(kind: pyarrow.DataType) -> bool:
    """Whether a column of that type holds files: bytes, or a struct with a field of that name."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
