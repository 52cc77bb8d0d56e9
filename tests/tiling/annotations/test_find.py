"""Which file of a folder is which slide's annotation: a table of names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiling.annotations.find import find_annotations
from tiling.core.errors import InputError

CASES: dict[str, tuple[list[str], dict[str, str | None], dict[str, str], list[str]]] = {
    # name: files, slides by id, annotations by id, unused files
    "by id": (["a.geojson", "b.xml"], {"a": None, "b": None}, {"a": "a.geojson", "b": "b.xml"}, []),
    "with the slide's ending": (
        ["s.svs.geojson", "t.ome.tif.xml", "u.TIF.GeoJSON"], {"s": None, "t": None, "u": None},
        {"s": "s.svs.geojson", "t": "t.ome.tif.xml", "u": "u.TIF.GeoJSON"}, []),
    "HALO": (["s.annotations"], {"s": None}, {"s": "s.annotations"}, []),
    "as the file of another id": (["S 12.svs.xml"], {"x1": "S 12.svs"}, {"x1": "S 12.svs.xml"}, []),
    "as the file without its ending": (["S 12.xml"], {"x1": "S 12.svs"}, {"x1": "S 12.xml"}, []),
    "of two files of one name": (["s.xml"], {"x1": "one/s.svs", "x2": "two/s.svs"}, {}, ["s.xml"]),
    "the id comes first": (["s.xml", "x1.png"], {"x1": "s.svs"}, {"x1": "x1.png"}, ["s.xml"]),
    "the first ending": (["a.png", "a.geojson", "a.xml"], {"a": None}, {"a": "a.geojson"}, ["a.png", "a.xml"]),
    "an id with dots": (["a.1.geojson", "a.geojson"], {"a.1": None}, {"a.1": "a.1.geojson"}, ["a.geojson"]),
    "names of classes": (["a.png", "a.classes.json", ".a.xml", "notes.txt"], {"a": None}, {"a": "a.png"}, []),
    "the slide itself": (["s.tif"], {"s": "s.tif"}, {}, []),
    "of no slide": (["x.geojson"], {"a": "a.svs"}, {}, ["x.geojson"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_names(tmp_path: Path, case: str) -> None:
    files, slides, expected, unused = CASES[case]
    for name in files:
        (tmp_path / name).touch()
    found = find_annotations(tmp_path, {key: tmp_path / path if path else None for key, path in slides.items()})
    assert {key: path.name for key, path in found.of.items()} == expected
    assert [path.name for path in found.unused] == unused


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        find_annotations(tmp_path / "missing", {})
