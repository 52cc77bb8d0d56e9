"""Labels on a finished store: the same store as tiled with them, no pixel file touched, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.artefact import locked_folder
from tiling.core.errors import InputError, OutputError, StoreError
from tiling.stores.label import label_store
from tiling.stores.store import verify_store

FileHashes = Callable[[Path], dict[str, str]]


def box(folder: Path, name: str, side: int) -> Path:
    ring = [[100, 100], [100 + side, 100], [100 + side, 100 + side], [100, 100 + side], [100, 100]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }
    path = folder / f"{name}.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def inodes(store: Path) -> dict[str, int]:
    return {p.relative_to(store).as_posix(): p.stat().st_ino for p in store.rglob("*") if p.is_file()}


def test_a_labelled_store_is_the_store_tiled_with_the_labels(
    copied: Path, small_slide: Path, codec: str, tmp_path: Path, file_hashes: FileHashes
) -> None:
    """Both times, also where other labels are replaced; every file but the labels' own is the same inode."""
    before = inodes(copied)
    for name, side in (("tumour", 120), ("stroma", 200)):
        annotation = box(tmp_path, name, side)
        report = label_store(copied, annotation)
        assert (report.slide_id, report.classes, report.reused) == ("small", (name,), False)
        config = TilingConfig(mpp=0.5, tile_px=16, codec=codec, min_tissue=0.1)
        tiled = tile_slide(small_slide, tmp_path / name, config, annotation=annotation).store
        assert file_hashes(copied) == file_hashes(tiled)
        assert verify_store(copied) == []
        fraction = TileStore(copied).annotations[name]
        assert 0 < fraction.mean() < 1
    after = inodes(copied)
    own = {"zarr.json", "commit.json"}
    assert {n: i for n, i in after.items() if n not in own and "annotation/" not in n} == {
        n: i for n, i in before.items() if n not in own and "annotation/" not in n
    }
    assert any(name.startswith("tiles/c/") for name in after)


def test_the_same_labels_again_change_nothing(copied: Path, tmp_path: Path, file_hashes: FileHashes) -> None:
    annotation = box(tmp_path, "tumour", 120)
    label_store(copied, annotation)
    before = inodes(copied)
    assert label_store(copied, annotation).reused
    assert inodes(copied) == before


def test_labels_of_an_image_depend_on_its_names(copied: Path, tmp_path: Path) -> None:
    picture = np.zeros((52, 70), np.uint8)
    picture[10:22, 10:22] = 1
    assert cv2.imwrite(str(tmp_path / "a.png"), picture)
    assert label_store(copied, tmp_path / "a.png").classes == ("1",)
    (tmp_path / "a.classes.json").write_text('{"1": "tumour"}')
    assert label_store(copied, tmp_path / "a.png").classes == ("tumour",)
    by_image = TileStore(copied).annotations["tumour"]
    label_store(copied, box(tmp_path, "tumour", 120))
    np.testing.assert_allclose(by_image, TileStore(copied).annotations["tumour"], atol=1e-6)


def test_without_hard_links_files_are_copied(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        if copied in Path(source).parents:  # zarr-python links inside the new folder
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    label_store(copied, box(tmp_path, "tumour", 120))
    assert verify_store(copied) == []


@pytest.mark.parametrize("at", [1, 5, 20])
def test_a_disk_that_fails_leaves_the_old_store(
    at: int, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_hashes: FileHashes
) -> None:
    before, real, calls = file_hashes(copied), os.link, iter(range(1, 1000))

    def link(source: Path, target: Path) -> None:
        if next(calls) == at:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OutputError, match="free some space"):
        label_store(copied, box(tmp_path, "tumour", 120))
    assert file_hashes(copied) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.zarr", "tumour.geojson"]


def test_damage_is_refused_not_made_the_truth(copied: Path, tmp_path: Path) -> None:
    shard = next(p for p in (copied / "tiles").rglob("*") if p.is_file() and p.name != "zarr.json")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        label_store(copied, box(tmp_path, "tumour", 120))
    assert verify_store(copied) != []


def test_what_cannot_be_labelled_is_refused(copied: Path, tmp_path: Path, file_hashes: FileHashes) -> None:
    before = file_hashes(copied)
    with pytest.raises(InputError, match="cannot be read"):
        label_store(copied, tmp_path / "missing.geojson")
    (tmp_path / "bad.xml").write_text("<svg/>")
    with pytest.raises(InputError, match="is no annotation"):
        label_store(copied, tmp_path / "bad.xml")
    with pytest.raises(StoreError, match="is not a finished tile store"):
        label_store(tmp_path / "missing.zarr", tmp_path / "bad.xml")
    with locked_folder(copied), pytest.raises(OutputError, match="by another job"):
        label_store(copied, box(tmp_path, "tumour", 120))
    assert file_hashes(copied) == before


MOMENTS = {
    "at the first link": ("os.link", 1),
    "at the tenth link": ("os.link", 10),
    "before the old store is moved away": ("os.rename", 1),
    "between the two renames": ("os.rename", 2),
    "while the old store is removed": ("os.rmdir", 1),
}
_CHILD = """
import os, sys
from pathlib import Path
event, number, store, annotation = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
from tiling.stores.label import label_store
left = [number]
def watch(name, arguments):
    ours = ("small.zarr", ".partial", ".replaced") if name == "os.rename" else ""
    if name == event and str(arguments[0]).rstrip("/").endswith(ours):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), 9)
sys.addaudithook(watch)
label_store(Path(store), Path(annotation))
"""


def test_a_killed_job_leaves_the_old_or_the_new_store(
    small_slide: Path, tmp_path: Path, file_hashes: FileHashes
) -> None:
    """Killed at five moments; the next job always ends with the same new store and nothing beside it."""
    config = TilingConfig(mpp=0.5, tile_px=16, codec="lossless", min_tissue=0.1)
    original = tile_slide(small_slide, tmp_path / "original", config).store
    annotation = box(tmp_path, "tumour", 120)
    new = Path(shutil.copytree(original, tmp_path / "new" / original.name))
    label_store(new, annotation)
    for number, (event, count) in enumerate(MOMENTS.values()):
        store = Path(shutil.copytree(original, tmp_path / f"at{number}" / original.name))
        command = [sys.executable, "-c", _CHILD, event, str(count), str(store), str(annotation)]
        killed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert killed.returncode == -9, killed.stderr
        left = store if store.exists() else store.with_name(f".{store.name}.replaced")
        assert file_hashes(left) in (file_hashes(original), file_hashes(new))
        assert label_store(store, annotation).reused == (event == "os.rmdir")
        assert file_hashes(store) == file_hashes(new)
        assert [p.name for p in store.parent.iterdir()] == [store.name]
