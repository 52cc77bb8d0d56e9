"""The addresses at which readers' marks are read and written: `marks/N`, and `marks/N/READER` for PUT."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from starlette.responses import PlainTextResponse, Response

from inference.viewer.marks import MAX_BYTES, READER, MarkFolder, StaleError, parse_marks
from inference.viewer.site import Site
from tiling.core.errors import InputError
from tiling.grid import Frame

_ADDRESS = re.compile(rf"marks/(0|[1-9][0-9]{{0,8}})(?:/({READER.pattern}))?", re.ASCII)


@dataclass(frozen=True)
class Place:
    """A slide by its number, and perhaps a reader."""

    number: int
    reader: str | None


@dataclass(frozen=True)
class Drawing:
    """The marks on a site's slides."""

    site: Site
    folder: MarkFolder
    write_token: str

    def place(self, address: str) -> Place | None:
        """What an address is of; None for any other address, and for a slide that is not shown."""
        found = _ADDRESS.fullmatch(address)
        if found is None or int(found[1]) >= len(self.site.cohort.slides):
            return None
        return Place(int(found[1]), found[2])

    def answer(self, place: Place, body: bytes | None) -> Response:
        """The marks of a slide, or the answer to new ones of a reader. Raises SpecslideError."""
        with self.site.pictures.opened(place.number) as picture:
            frame = picture.frame
        if body is not None:
            return self._written(place, frame, body)
        if place.reader is not None:
            return PlainTextResponse("no such page", 404)
        readers = self.folder.readers(self.site.cohort.slides[place.number].slide_id, frame)
        found = {reader: marks.model_dump(mode="json") for reader, marks in readers.items()}
        return _json({"readers": found, "token": self.write_token})

    def _written(self, place: Place, frame: Frame, body: bytes) -> Response:
        shown = self.site.cohort.slides[place.number]
        model = shown.results[0].summary.made_from["model_sha256"] if shown.results else None
        if place.reader is None:
            return PlainTextResponse("who draws is not named", 404)
        if len(body) > MAX_BYTES:
            return PlainTextResponse("too much for one slide", 413)
        try:
            marks = self.folder.write(shown.slide_id, frame, place.reader, parse_marks(body), model)
        except StaleError:
            return PlainTextResponse("changed in another window; load the page again", 412)
        except InputError as error:
            return PlainTextResponse(error.what, 422)
        return _json(marks.model_dump(mode="json"))


def _json(value: object) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Response(text, media_type="application/json")
