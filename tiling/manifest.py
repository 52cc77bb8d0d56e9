"""Tables of slides: CSV or Parquet manifests with the column names of the field, read into frozen rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError, field_validator

from tiling.core.errors import ConfigError, InputError
from tiling.slides.slide import slide_name

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

    @field_validator("slide_id")
    @classmethod
    def _names_a_file(cls, slide_id: str) -> str:
        return checked_slide_id(slide_id)


def checked_slide_id(slide_id: str) -> str:
    """The id itself, if it can name a folder; raises ValueError otherwise."""
    refused = not slide_id or slide_id[0] in ".~- " or _FORBIDDEN & set(slide_id) or not slide_id.isprintable()
    if refused or len(slide_id.encode()) > 200:
        raise ValueError(f"slide_id {slide_id!r} cannot name a folder: use letters, digits, '_', '-' and '.'")
    return slide_id


def require_slide_id(slide_id: str, where: object) -> str:
    """The id itself, if it can name a folder. Raises ConfigError naming `where` it comes from."""
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


def read_manifest(path: Path) -> list[ManifestRow]:
    """The slides of a manifest, in its order. Raises InputError naming the row, also for two slides with one id."""
    rows, number_of = [], dict[str, int]()
    for number, raw in enumerate(read_table(path), start=2):  # line 1 of a CSV holds the names
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
            rows.append(ManifestRow.model_validate(values))
        except ValidationError as error:
            raise InputError(f"{path}, row {number}", _reason(error), "correct the manifest") from None
        first = number_of.setdefault(rows[-1].slide_id, number)
        if first != number:  # their results would share one name
            what = f"has the slide_id {rows[-1].slide_id!r} of row {first}"
            raise InputError(f"{path}, row {number}", what, "give each slide an id of its own")
    return rows


def slide_rows(paths: Sequence[Path]) -> list[ManifestRow]:
    """The rows of slides given by their paths alone. Raises as `slide_row`, and InputError if two share one id."""
    path_of: dict[str, Path] = {}
    for path in paths:
        name = slide_name(path)
        if name in path_of:
            both = f"{path_of[name]} and {path}"
            raise InputError("the slides given", f"two have the id {name!r}: {both}", "give each once")
        path_of[name] = path
    return [slide_row(path) for path in paths]


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV (comma, with a header) or Parquet table as text; column names in lower case, aliases resolved.

    Raises InputError if it cannot be read, is empty, or names one column twice.
    """
    try:
        rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(path, f"cannot be read ({reason})", "pass a CSV or Parquet table") from error
    if not rows:
        raise InputError(path, "has no rows", "list one slide or image a row under a header line")
    return rows


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as f:
        lines = csv.reader(f)
        names = _column_names(next(lines, []), path)
        rows = [line for line in lines if line]
    for number, line in enumerate(rows, start=2):
        if len(line) != len(names):
            raise InputError(f"{path}, row {number}", f"has {len(line)} fields instead of {len(names)}", "correct it")
    return [dict(zip(names, (field.strip() for field in line), strict=True)) for line in rows]


def _read_parquet(path: Path) -> list[dict[str, str]]:
    table = pyarrow.parquet.read_table(path)
    names = _column_names(table.column_names, path)
    columns = [["" if v is None else str(v) for v in column.to_pylist()] for column in table.columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _column_names(raw: list[str], path: Path) -> list[str]:
    names = [ALIASES.get(name.strip().lower(), name.strip().lower()) for name in raw]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(path, f"has two columns for {', '.join(sorted(twice))}", "keep one of them")
    return names


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
