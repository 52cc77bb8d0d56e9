"""What readers draw on slides: one GeoJSON file a reader and slide, as QuPath and `specslide label` read it.

`<folder>/<reader>/<slide_id>.geojson`, beside the results and never in them. A file is replaced whole, and only by
who has seen what it holds: of two windows of one reader the second is told.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from inference.colours import class_colour
from tiling.core.errors import InputError
from tiling.core.files import locked, write_file
from tiling.core.settings import first_fault
from tiling.grid import MAX_SIDE0, Frame
from tiling.manifest import require_slide_id

READER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
"""A reader's name, which names a folder."""
MAX_BYTES = 4 * 2**20
"""Of what a reader draws on one slide."""
_NOTE, _BY, _AT, _MODEL = "ANNOTATION_DESCRIPTION", "reader", "time", "model_sha256"
"""Keys of an object's metadata; the first is QuPath's own for an annotation's description."""


def _one_line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("it is empty or cannot be printed")
    return text.strip()


def _text(text: str) -> str:
    if not all(part.isprintable() for part in text.split("\n")):
        raise ValueError("it cannot be printed")
    return text


Coordinate = Annotated[float, Field(ge=0, le=MAX_SIDE0, allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate]


class Mark(BaseModel):
    """What is drawn on a slide at one place, with a class and a note."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: UUID
    kind: Literal["Point", "Polygon"]
    points: Annotated[tuple[Point, ...], Field(min_length=1, max_length=10_000)]
    """(x0, y0) each, level-0 pixels of the whole picture; of a polygon its corners, the first not said again."""
    name: Annotated[str, Field(max_length=100), AfterValidator(_one_line)]
    """Its class."""
    note: Annotated[str, Field(max_length=2000), AfterValidator(_text)] = ""
    time: AwareDatetime

    @model_validator(mode="after")
    def _has_its_corners(self) -> Mark:
        if (self.kind == "Point") != (len(self.points) == 1) or len(self.points) == 2:
            raise ValueError("points: one of a point, three or more of a polygon")
        return self


class Marks(BaseModel):
    """All that a reader has drawn on a slide, and the file it follows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    marks: Annotated[tuple[Mark, ...], Field(max_length=5000)] = ()
    tag: Annotated[str, Field(max_length=64)] = ""
    """SHA-256 of the file that these replace; "" for none."""


class StaleError(Exception):
    """The file is no longer the one that was seen."""


@dataclass(frozen=True)
class MarkFolder:
    """The folder of all readers."""

    folder: Path

    def readers(self, slide_id: str, frame: Frame) -> dict[str, Marks]:
        """What each reader has drawn on a slide. Raises InputError for a file that cannot be read."""
        require_slide_id(slide_id, self.folder)
        files = sorted(self.folder.glob(f"*/{_escaped(slide_id)}.geojson"))
        return {file.parent.name: _read(file, frame)[0] for file in files if READER.fullmatch(file.parent.name)}

    def write(self, slide_id: str, frame: Frame, reader: str, given: Marks, model_sha256: str | None) -> Marks:
        """Replace what a reader has drawn on a slide; other objects in the file, which QuPath wrote, stay.

        Args:
            slide_id: The slide.
            frame: Where its coordinates begin and end.
            reader: Who draws; matches `READER`.
            given: All marks, and the file they follow.
            model_sha256: The model whose heatmap was looked at.

        Returns:
            What the file holds now.

        Raises:
            StaleError: If the file is another one by now.
            InputError: If a mark lies beyond the slide, or the file cannot be read.
            OutputError: If it cannot be written.
        """
        if READER.fullmatch(reader) is None:
            raise InputError("the reader's name", "cannot name a folder", "use letters, digits, - and _")
        width, height = frame.size0
        if any(x > width or y > height for mark in given.marks for x, y in mark.points):
            raise InputError(slide_id, "a mark lies beyond the slide", "draw it again")
        path = self.folder / reader / f"{require_slide_id(slide_id, self.folder)}.geojson"
        with locked(path, wait=True):
            known, others = _read(path, frame) if path.exists() else (Marks(), [])
            if known.tag != given.tag:
                raise StaleError
            about = {_BY: reader} | ({} if model_sha256 is None else {_MODEL: model_sha256})
            colours = {name: list(class_colour(n)) for n, name in enumerate(sorted({m.name for m in given.marks}))}
            features = [_feature(mark, frame, colours[mark.name], about) for mark in given.marks]
            text = json.dumps({"type": "FeatureCollection", "features": [*features, *others]}, ensure_ascii=False)
            write_file(path, text)
        return Marks(marks=given.marks, tag=_tag(text.encode()))


def _feature(mark: Mark, frame: Frame, colour: list[int], about: dict[str, str]) -> dict[str, Any]:
    """A mark as QuPath's annotation, in QuPath's coordinates."""
    left, top = frame.qupath0
    points = [[x - left, y - top] for x, y in mark.points]
    note = {_NOTE: mark.note} if mark.note else {}
    return {
        "type": "Feature",
        "id": str(mark.id),
        "geometry": {"type": mark.kind, "coordinates": points[0] if mark.kind == "Point" else [[*points, points[0]]]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": mark.name, "color": colour},
            "isLocked": False,
            "metadata": note | {_AT: mark.time.isoformat(timespec="seconds")} | about,
        },
    }


def _read(path: Path, frame: Frame) -> tuple[Marks, list[Any]]:
    """The marks in a file, and the objects in it that are none. Raises InputError."""
    try:
        data = path.read_bytes()
        document = json.loads(data)
        features = document["features"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        raise InputError(path, "is no GeoJSON of marks", "move it away") from error
    marks: list[Mark] = []
    others: list[Any] = []
    for feature in features if isinstance(features, list) else []:
        mark = _mark_of(feature, frame)
        if mark is None:
            others.append(feature)
        else:
            marks.append(mark)
    return Marks(marks=tuple(marks), tag=_tag(data)), others


def _mark_of(feature: Any, frame: Frame) -> Mark | None:
    """The mark that a feature is; None for any other, as one with holes."""
    match feature:
        case {
            "id": str(number),
            "geometry": {"type": "Point", "coordinates": [*place]} as geometry,
            "properties": {"classification": {"name": str(name)}, "metadata": {"time": str(time)} as metadata},
        }:
            points: list[Any] = [place]
        case {
            "id": str(number),
            "geometry": {"type": "Polygon", "coordinates": [[*corners]]} as geometry,
            "properties": {"classification": {"name": str(name)}, "metadata": {"time": str(time)} as metadata},
        }:
            points = corners[:-1]
        case _:
            return None
    try:
        (left, top), note = frame.qupath0, metadata.get(_NOTE, "")
        moved = [(x + left, y + top) for x, y in points]
        known = {"id": number, "kind": geometry["type"], "points": moved, "name": name, "note": note, "time": time}
        return Mark.model_validate(known)
    except (ValidationError, TypeError, ValueError):
        return None


def parse_marks(body: bytes) -> Marks:
    """What a browser sends. Raises InputError."""
    try:
        return Marks.model_validate_json(body)
    except ValidationError as error:
        raise InputError("the marks", f"cannot be read ({first_fault(error)})", "draw them again") from None


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _escaped(name: str) -> str:
    """A name as a pattern that it alone fits."""
    return re.sub(r"([*?[])", r"[\1]", name)
