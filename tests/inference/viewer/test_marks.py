"""What readers draw: kept whole, read by label and QuPath, in their frames, and written by nobody else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import shapely
from starlette.testclient import TestClient

from inference.viewer.marks import Mark, MarkFolder, Marks, StaleError
from inference.viewer.server import make_app
from inference.viewer.site import Site
from tests.inference.viewer.conftest import TOKEN
from tiling.annotations.find import find_annotations
from tiling.annotations.rasterize import read_polygons
from tiling.core.errors import InputError
from tiling.grid import Bounds, Frame

WHOLE = Frame((1000, 800))
PART = Frame((1000, 800), Bounds(x0=100, y0=50, width0=600, height0=500))
SQUARE = ((200.0, 150.0), (300.0, 150.0), (300.0, 250.5), (200.0, 250.5))
TIME = "2026-01-02T03:04:05+00:00"


def mark(number: int = 1, **changes: Any) -> dict[str, Any]:
    known = {
        "id": str(UUID(int=number)),
        "kind": "Polygon",
        "points": SQUARE,
        "name": "tumour",
        "note": "",
        "time": TIME,
    }
    return known | changes


def marks(*of: dict[str, Any], tag: str = "") -> Marks:
    return Marks(marks=tuple(Mark.model_validate_json(json.dumps(one)) for one in of), tag=tag)


@pytest.mark.parametrize("frame", [WHOLE, PART], ids=["whole", "part"])
def test_what_is_written_is_read_again_and_lies_where_it_was_drawn(tmp_path: Path, frame: Frame) -> None:
    folder = MarkFolder(tmp_path)
    point = mark(2, kind="Point", points=((5.0, 6.0),), name="mitosis", note="two lines\nof it")
    kept = folder.write("s1", frame, "ann", marks(mark(), point), "ab" * 32)
    assert folder.readers("s1", frame) == {"ann": kept}
    assert kept.marks == marks(mark(), point).marks
    file = find_annotations(tmp_path / "ann", {"s1": None}).of["s1"]
    (area,) = read_polygons(file, frame).values()
    assert area.equals(shapely.Polygon(SQUARE))
    first = json.loads(file.read_text())["features"][0]
    assert first["geometry"]["coordinates"][0][0] == [200 - frame.qupath0[0], 150 - frame.qupath0[1]]
    assert first["properties"]["metadata"] == {"time": TIME, "reader": "ann", "model_sha256": "ab" * 32}


def test_two_readers_have_two_files_and_two_windows_are_told(tmp_path: Path) -> None:
    folder = MarkFolder(tmp_path)
    first = folder.write("s1", WHOLE, "ann", marks(mark()), None)
    folder.write("s1", WHOLE, "bob", marks(mark(2)), None)
    second = folder.write("s1", WHOLE, "ann", marks(mark(), mark(3), tag=first.tag), None)
    with pytest.raises(StaleError):
        folder.write("s1", WHOLE, "ann", marks(tag=first.tag), None)
    assert folder.readers("s1", WHOLE)["ann"] == second
    assert len(folder.readers("s1", WHOLE)["bob"].marks) == 1
    assert folder.readers("s2", WHOLE) == {}


def test_of_many_writers_at_once_each_change_is_kept_or_refused(tmp_path: Path) -> None:
    folder, done = MarkFolder(tmp_path), []

    def add(number: int) -> None:
        for _ in range(200):
            now = folder.readers("s1", WHOLE).get("ann", Marks())
            try:
                folder.write(
                    "s1", WHOLE, "ann", Marks(marks=(*now.marks, *marks(mark(number)).marks), tag=now.tag), None
                )
            except StaleError:
                continue
            done.append(number)
            return

    threads = [threading.Thread(target=add, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(1, 9))
    assert {one.id.int for one in folder.readers("s1", WHOLE)["ann"].marks} == set(done)


def test_what_qupath_drew_in_the_file_stays(tmp_path: Path) -> None:
    folder = MarkFolder(tmp_path)
    first = folder.write("s1", WHOLE, "ann", marks(mark()), None)
    file = tmp_path / "ann" / "s1.geojson"
    document = json.loads(file.read_text())
    hole = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]], [[1, 1], [2, 1], [2, 2], [1, 1]]]}
    document["features"].append({"type": "Feature", "id": "x", "geometry": hole, "properties": {}})
    file.write_text(json.dumps(document))
    with pytest.raises(StaleError):
        folder.write("s1", WHOLE, "ann", marks(tag=first.tag), None)
    folder.write("s1", WHOLE, "ann", marks(tag=folder.readers("s1", WHOLE)["ann"].tag), None)
    assert json.loads(file.read_text())["features"] == [document["features"][1]]


@pytest.mark.parametrize("reader", ["", "..", ".", "a/b", "a\\b", "A", "é", "a" * 41, "-a", "a\n", "con.", "a b"])
def test_a_name_that_could_be_a_path_is_refused(tmp_path: Path, reader: str) -> None:
    with pytest.raises(InputError, match="name"):
        MarkFolder(tmp_path / "marks").write("s1", WHOLE, reader, marks(mark()), None)
    assert not (tmp_path / "marks").exists()


BAD: dict[str, Callable[[], Any]] = {
    "beyond": lambda: mark(points=[[0, 0], [1281, 0], [5, 5]]),
    "negative": lambda: mark(points=[[-1, 0], [1, 0], [5, 5]]),
    "infinite": lambda: mark(points=[[1e999, 0], [1, 0], [5, 5]]),
    "two corners": lambda: mark(points=[[0, 0], [5, 5]]),
    "point of three": lambda: mark(kind="Point"),
    "kind": lambda: mark(kind="LineString"),
    "id": lambda: mark(id="../x"),
    "unnamed": lambda: mark(name=" "),
    "control": lambda: mark(name="a\x1b[0m"),
    "long": lambda: mark(note="x" * 2001),
    "extra": lambda: mark(path="/etc"),
    "time": lambda: mark(time="yesterday"),
    "text": lambda: "marks",
}


@pytest.fixture
def client(site: Site, tmp_path: Path) -> TestClient:
    app = make_app(site, TOKEN, marks=MarkFolder(tmp_path / "marks"))
    return TestClient(app, base_url="http://127.0.0.1:8000", cookies={"specslide": TOKEN})


def writes(client: TestClient, **changes: str) -> dict[str, str]:
    """The headers of a page of the server."""
    token = client.get("/marks/0").json()["token"]
    return {"origin": "http://127.0.0.1:8000", "x-specslide-token": token} | changes


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_mark_is_refused_and_nothing_written(client: TestClient, bad: str, tmp_path: Path) -> None:
    body = json.dumps({"marks": [BAD[bad]()], "tag": ""})
    assert client.put("/marks/0/ann", content=body, headers=writes(client)).status_code == 422
    assert list((tmp_path / "marks").rglob("*.geojson")) == []


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200), ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403), ({"origin": ""}, 403),
        ({"origin": "https://127.0.0.1:8000"}, 403), ({"origin": "http://127.0.0.1:8001"}, 403),
        ({"x-specslide-token": ""}, 403), ({"x-specslide-token": TOKEN}, 403), ({"cookie": "specslide=x"}, 403),
        ({"host": "evil.example"}, 421),
    ],
)  # fmt: skip
def test_only_a_page_of_this_server_writes(
    client: TestClient, changes: dict[str, str], status: int, tmp_path: Path
) -> None:
    headers = writes(client, **changes)
    if "cookie" in changes:
        client.cookies.clear()
    answer = client.put("/marks/0/ann", content=json.dumps({"marks": [mark()], "tag": ""}), headers=headers)
    assert answer.status_code == status
    assert len(list((tmp_path / "marks").rglob("*.geojson"))) == (status == 200)


@pytest.mark.parametrize(
    "address", ["/marks/0", "/marks/9/ann", "/marks/0/..%2fx", "/data/slides.json", "/marks/0/Ann"]
)
def test_other_addresses_take_nothing(client: TestClient, address: str) -> None:
    assert client.put(address, content="{}", headers=writes(client)).status_code in (404, 422)


def test_too_much_is_refused(client: TestClient) -> None:
    answer = client.put("/marks/0/ann", content=b" " * (5 * 2**20), headers=writes(client))
    assert answer.status_code == 413


def test_where_none_may_draw_nothing_is_written(site: Site) -> None:
    client = TestClient(make_app(site, TOKEN), base_url="http://127.0.0.1:8000", cookies={"specslide": TOKEN})
    assert client.get("/marks/0").status_code == 404
    assert client.put("/marks/0/ann", content="{}").status_code == 405
