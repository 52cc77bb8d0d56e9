"""Nightly: thousands of mutated annotation files; each is read, or refused in one sentence that names it, in time."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.tiling.annotations.test_rasterize import SQUARE, asap, feature, polygon, written
from tests.tiling.annotations.test_readers import LAYERS, imagescope
from tests.tiling.squares import squares
from tiling.annotations.rasterize import annotation_fractions, annotation_hash
from tiling.core.errors import InputError
from tiling.grid import Frame

MUTANTS = 3000
MAX_S = 20.0
TILES = squares([0, 5], [0, 5], 10, (60, 40))
TOKENS = (
    b"<", b">", b'"', b"&a;", b"<!DOCTYPE x>", b"[", b"]", b"{", b"}", b",", b"null", b"NaN", b"-1e999",
    b"1" + b"0" * 400, b"\0", b"\xff", b"\xef\xbb\xbf", b"utf-16", b"gb18030", b'"type":', b"MultiPolygon", b"Region",
    b"/", b"..", b"%2F",
)  # fmt: skip


def originals(folder: Path) -> dict[str, bytes]:
    """A file of each kind, by its ending."""
    shapes = [feature(polygon(SQUARE)), feature({"type": "MultiPolygon", "coordinates": [[SQUARE]]}, "Ignore*")]
    found = {"geojson": written(folder, *shapes).read_bytes()}
    found["xml"] = asap(folder, ("Polygon", "metastases", SQUARE), ("Spline", "normal", SQUARE)).read_bytes()
    found["layers.xml"] = imagescope(LAYERS["described"][0]).encode()
    found["annotations"] = imagescope(LAYERS["HALO"][0]).encode()
    for ending in ("png", "tif"):
        picture = folder / f"p.{ending}"
        PIL.Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % 3).save(picture)
        found[ending] = picture.read_bytes()
    return found


def mutant(data: bytes, draw: random.Random) -> bytes:
    """The bytes with up to three changes: one flipped, inserted, cut out, repeated, or the end cut off."""
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(data) + 1), draw.randint(1, 40)
        match draw.randrange(5):
            case 0:
                data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at] + draw.choice(TOKENS) + data[at:]
            case 2:
                data = data[:at] + data[at + length :]
            case 3:
                data = data[:at] + data[at : at + length] * draw.randint(2, 50) + data[at:]
            case _:
                data = data[:at]
    return data


@pytest.mark.nightly
@pytest.mark.parametrize("ending", ["geojson", "xml", "layers.xml", "annotations", "png", "tif"])
def test_mutants_are_read_or_refused(tmp_path: Path, ending: str) -> None:
    data, draw, verdicts = originals(tmp_path)[ending], random.Random(ending), Counter[str]()
    path = tmp_path / f"mutant.{ending}"
    for _ in range(MUTANTS):
        path.write_bytes(mutant(data, draw))
        start = time.monotonic()
        verdicts[_verdict(path)] += 1
        assert time.monotonic() - start < MAX_S
    assert min(verdicts["read"], verdicts["refused"]) > MUTANTS // 100, verdicts


def _verdict(path: Path) -> str:
    try:
        fractions = annotation_fractions(path, TILES, Frame((60, 40)))
        annotation_hash(path)
    except InputError as error:
        sentence = str(error)
    else:
        assert all(((values >= 0) & (values <= 1)).all() for values in fractions.values())
        return "read"
    assert sentence.startswith(str(path.with_suffix("")))
    assert len(sentence) < len(str(path)) + 300
    return "refused"
