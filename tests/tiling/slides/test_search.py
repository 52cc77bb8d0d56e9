"""Finding slides: by name and first bytes, in folders and below; what is left out is counted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.tiling.dicom_files import write_instance
from tests.tiling.slides.test_ome_zarr import write_ome_zarr
from tiling.manifest import slides_of_paths
from tiling.slides.search import find_slides

PICTURE = np.zeros((8, 8, 3), np.uint8)


def filled(folder: Path, *names: str) -> Path:
    """A folder with files of those names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def below(folder: Path, named: Path | None = None, *, stores: bool = False) -> tuple[list[str], dict[str, int]]:
    """What is found, by names relative to the folder, and what is left out."""
    found = find_slides([named or folder], stores=stores)
    assert found.unreadable == {}
    return [path.relative_to(folder).as_posix() for path in found.slides], {
        k: n for k, n in found.left_out.items() if n
    }


@pytest.mark.parametrize(
    ("names", "slides", "left_out"),
    [
        (["b.svs", "a.NDPI", "c.ome.tiff"], ["a.NDPI", "b.svs", "c.ome.tiff"], {}),
        (["p2/s.svs", "p1/s.svs", "p1/deep/er/t.tif"], ["p1/deep/er/t.tif", "p1/s.svs", "p2/s.svs"], {}),
        (["a.svs", "._a.svs", ".hidden/b.svs", ".DS_Store"], ["a.svs"], {"hidden": 3}),
        (["a.svs", "a.png", "a.JPG", "t.csv", "o"], ["a.svs"], {".png": 1, ".jpg": 1, ".csv": 1, "without ending": 1}),
        (["m.mrxs", "m/Data0.dat", "m/Slidedat.ini", "n/o.svs"], ["m.mrxs", "n/o.svs"], {}),
        (["v.vms", "v(1,0).jpg"], ["v.vms"], {".jpg": 1}),
        (["a.svs", "s/x.zarr/commit.json", "s/x.zarr/y.tif", "s/x.png"], ["a.svs"], {"tile store": 1, ".png": 1}),
        (["a.svs", "h/x/commit.json", "h/x/map.ome.tif"], ["a.svs"], {"folder of results": 1}),
        (["a.svs", "x.zarr/0/0"], ["a.svs"], {"other .zarr": 1}),
        (["notes.txt"], ["."], {".txt": 1}),  # opening the folder says what is wrong
    ],
)  # fmt: skip
def test_a_folder(tmp_path: Path, names: list[str], slides: list[str], left_out: dict[str, int]) -> None:
    assert below(filled(tmp_path, *names)) == (slides, left_out)


def test_stores_are_found_where_they_are_asked_for(tmp_path: Path) -> None:
    filled(tmp_path, "s/b.zarr/commit.json", "s/a.zarr/commit.json", "s/a.png", "h/x/commit.json", "other.zarr/0")
    expected = ["s/a.zarr", "s/b.zarr"], {".png": 1, "folder of results": 1, "other .zarr": 1}
    assert below(tmp_path, stores=True) == expected
    assert below(tmp_path, tmp_path / "s" / "a.zarr") == (["s/a.zarr"], {})


def test_an_ome_zarr_is_one_slide(tmp_path: Path) -> None:
    """Whatever it is called, and named itself too; nothing within it is looked at."""
    for name in ("a.ome.zarr", "b.zarr", "sub/c"):
        write_ome_zarr(tmp_path / name, PICTURE)
        filled(tmp_path / name, "label.tif")
    assert below(tmp_path) == (["a.ome.zarr", "b.zarr", "sub/c"], {})
    assert below(tmp_path, tmp_path / "sub" / "c") == (["sub/c"], {})


def test_dicom_counts_by_slides(tmp_path: Path) -> None:
    """Of all files of a series one slide, also where they are named one by one, and nothing of it is left out."""
    files = [write_instance(tmp_path / f"d1/{name}", PICTURE, series="1") for name in ("1.dcm", "2", "3.dcm")]
    write_instance(tmp_path / "d2/1.dcm", PICTURE, series="1.2")
    write_instance(tmp_path / "d2/2.dcm", PICTURE, series="1.3")
    filled(tmp_path, "d1/report.pdf")
    assert below(tmp_path) == (["d1/1.dcm", "d2/1.dcm", "d2/2.dcm"], {".pdf": 1})
    assert find_slides(files).slides == files[:1]
    assert [row.slide_id for row in slides_of_paths(find_slides([tmp_path]).slides).rows] == ["d1", "1", "2"]


def test_a_damaged_part_of_a_dicom_slide_is_not_passed_over(tmp_path: Path) -> None:
    write_instance(tmp_path / "d/1.dcm", PICTURE)
    cut = write_instance(tmp_path / "d/2.dcm", PICTURE)
    cut.write_bytes(cut.read_bytes()[:160])
    assert below(tmp_path)[0] == ["d"]


def test_several_names_and_patterns(tmp_path: Path) -> None:
    filled(tmp_path, "a/1.svs", "a/2.tif", "b/1.svs", "b[1].svs", "m.mrxs", "m/Data0.dat")
    named = [tmp_path / "a", tmp_path / "*" / "1.svs", tmp_path / "b[1].svs", tmp_path / "**" / "2.*", tmp_path / "no*"]
    found = [path.relative_to(tmp_path).as_posix() for path in find_slides(named).slides]
    assert found == ["a/1.svs", "a/2.tif", "b/1.svs", "b[1].svs", "no*"]
    everything = [path.name for path in find_slides(sorted(tmp_path.iterdir())).slides]
    assert everything == ["1.svs", "2.tif", "1.svs", "b[1].svs", "m.mrxs"], "MIRAX's folder is of the slide beside it"


def test_links(tmp_path: Path) -> None:
    """They are followed, in circles too; one that leads nowhere, or to a pipe, is a slide that fails."""
    filled(tmp_path, "real/a.svs")
    (tmp_path / "wsis").mkdir()
    (tmp_path / "wsis" / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "wsis")
    (tmp_path / "wsis" / "gone.svs").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "wsis" / "pipe.svs")
    assert below(tmp_path, tmp_path / "wsis")[0] == ["wsis/folder/a.svs", "wsis/gone.svs", "wsis/pipe.svs"]


def test_what_found_says() -> None:
    found = find_slides([Path("a.svs")])
    found.left_out.update({".png": 2, "hidden": 0, "tile store": 1})
    assert str(found) == "1 slides; left out: 2 .png, 1 tile store"
