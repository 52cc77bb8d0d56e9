"""Packed data sets become pictures, byte for byte, and a table that the training takes."""

from __future__ import annotations

import csv
import io
import json
import logging
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from tiling.core.errors import InputError, OutputError
from training import TrainConfig, samples_from_images
from training.data.import_pictures import INDEX, import_pictures


def picture(value: int, form: str = "PNG") -> bytes:
    """A grey square of 8 px, as a file."""
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(out, form)
    return out.getvalue()


def rows_of(out: Path) -> list[dict[str, str]]:
    """The table's rows, each picture's bytes put in the place of its path."""
    with (out / INDEX).open(newline="") as file:
        return list(csv.DictReader(file))


def hub_parquet(path: Path, columns: Mapping[str, Any], names: list[str] | None = None) -> Path:
    """Parquet as `datasets` writes it: pictures as {bytes, path}, names of classes in the schema's metadata."""
    pictures = pyarrow.array(
        [{"bytes": data, "path": "../../etc/x.png"} for data in columns["image"]],
        pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
    )
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else {}
    table = pyarrow.table({**columns, "image": pictures})
    pyarrow.parquet.write_table(table.replace_schema_metadata(info), path, row_group_size=4)
    return path


def web_tar(path: Path, members: Mapping[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_parquet_of_the_hub(tmp_path: Path, tiny: TrainConfig) -> None:
    pictures = [picture(value, form) for value, form in zip(range(80), ("PNG", "JPEG") * 40, strict=True)]
    for name, part in (("train-00000-of-00001", range(60)), ("test-00000-of-00001", range(60, 80))):
        columns = {
            "image": [pictures[i] for i in part], "label": [i % 2 for i in part],
            "patient": [f"p{i // 2}" for i in part], "note": ["two\nlines" for _ in part],
        }  # fmt: skip
        hub_parquet(tmp_path / f"{name}.parquet", columns, ["benign", "tumour"])
    out = tmp_path / "out"
    files = [tmp_path / "train-00000-of-00001.parquet", tmp_path / "test-00000-of-00001.parquet"]
    report = import_pictures(files, out)
    assert (report.pictures, report.labels, report.reused) == (80, {"benign": 40, "tumour": 40}, False)
    rows = rows_of(out)
    assert [(out / row["path"]).read_bytes() for row in rows] == pictures
    assert [row["label"] for row in rows] == ["benign", "tumour"] * 40
    assert [row["split"] for row in rows] == ["train"] * 60 + ["test"] * 20
    assert {Path(row["path"]).suffix for row in rows} == {".png", ".jpg"}
    assert rows[0]["note"] == "two lines"
    samples = samples_from_images(report.index, tiny, to_train=False)
    assert (samples.classes, len(samples), samples.case_id[:3].tolist()) == (
        ("benign", "tumour"),
        80,
        ["p0", "p0", "p1"],
    )
    assert import_pictures(files, out).reused
    with pytest.raises(OutputError, match="--overwrite"):
        import_pictures(files[:1], out)
    assert import_pictures(files[:1], out, overwrite=True).pictures == 60
    assert import_pictures([tmp_path], tmp_path / "all").pictures == 80


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_of_webdataset(tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    members = {
        "a/0001.jpg": picture(1, "JPEG"), "a/0001.cls": b"1",
        "a/0002.png": picture(2), "a/0002.json": b'{"label": "tumour", "patient": "p2", "nested": {}, "path": "/etc"}',
        "../../0003.png": picture(3), "../../0003.txt": b"benign\n", "../../0003.pyd": pickle.dumps(Bomb()),
        "0004.cls": b"0",
    }  # fmt: skip
    path = web_tar(tmp_path / ("train-0.tar" if mode == "w" else "train-0.tar.gz"), members, mode)
    with caplog.at_level(logging.WARNING):
        report = import_pictures([path], tmp_path / "out")
    assert report.labels == {"1": 1, "benign": 1, "tumour": 1}
    rows = rows_of(tmp_path / "out")
    assert [(row["label"], row["patient"], row["split"]) for row in rows] == [
        ("1", "", "train"), ("tumour", "p2", "train"), ("benign", "", "train"),
    ]  # fmt: skip
    assert [(tmp_path / "out" / row["path"]).read_bytes() for row in rows] == [
        members["a/0001.jpg"], members["a/0002.png"], members["../../0003.png"],
    ]  # fmt: skip
    assert "1 of pyd" in caplog.text
    assert not (tmp_path / "ran").exists()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["out", path.name]


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    def refused(path: Path, where: str) -> None:
        with pytest.raises(InputError) as caught:
            import_pictures([path], tmp_path / "out")
        assert where in caught.value.where
        assert not (tmp_path / "out").exists()

    good = picture(1)
    refused(web_tar(tmp_path / "a.tar", {"1.png": good, "2.png": b"no picture"}), "2")
    refused(web_tar(tmp_path / "b.tar", {"1.png": good, "1.seg.png": good}), "1")
    refused(web_tar(tmp_path / "c.tar", {"1.png": good, "1.json": b"{"}), "1")
    refused(web_tar(tmp_path / "d.tar", {"1.png": good, "1.txt": b"x" * (2**20 + 1)}), "1")
    refused(web_tar(tmp_path / "e.tar", {"1.pth": good}), "e.tar")
    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    refused(tmp_path / "f.tar", "1")
    (tmp_path / "g.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    refused(tmp_path / "g.tar", "g.tar")
    refused(hub_parquet(tmp_path / "h.parquet", {"image": [good, None]}), "row 2")
    refused(hub_parquet(tmp_path / "i.parquet", {"image": [good], "label": [7]}, ["a", "b"]), "row 1")
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.png"], "label": ["x"]}), tmp_path / "j.parquet")
    refused(tmp_path / "j.parquet", "j.parquet")
    refused(tmp_path / "missing.tar", "missing.tar")
    (tmp_path / "k.zip").touch()
    refused(tmp_path / "k.zip", "k.zip")


def test_the_training_says_how_to_unpack(tmp_path: Path, tiny: TrainConfig) -> None:
    for path in (
        hub_parquet(tmp_path / "a.parquet", {"image": [picture(1)], "label": ["x"]}),
        web_tar(tmp_path / "a.tar", {"1.png": picture(1)}),
    ):
        with pytest.raises(InputError) as caught:
            samples_from_images(path, tiny)
        assert "specslide import pictures" in caught.value.fix


def test_the_command_counts_and_says_what_is_next(tmp_path: Path) -> None:
    path = web_tar(tmp_path / "a.tar", {"1.png": picture(1), "1.txt": b"tumour", "2.png": picture(2)})
    done = CliRunner().invoke(
        app, ["import", "pictures", str(path), "-o", str(tmp_path / "out")], catch_exceptions=False
    )
    said = " ".join(done.output.split())
    assert "2 pictures" in said
    assert "1 tumour" in said
    assert "train --images" in said
