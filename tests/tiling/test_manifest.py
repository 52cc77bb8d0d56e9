"""Manifests: the field's names are understood, and what cannot be meant is refused by row."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tiling.core.errors import ConfigError, InputError
from tiling.manifest import (
    checked_slide_id,
    read_manifest,
    read_table,
    slide_row,
    slides_of_manifest,
    slides_of_paths,
)


def csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "m.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_all_columns(tmp_path: Path) -> None:
    header = "slide_path,slide_id,case_id,label,split,mpp,annotation,site,scanner,comment"
    row = read_manifest(csv(tmp_path, f"{header}\ns/a.svs,id-1,c1,tumour,train,0.25,a.geojson,x,y,ignored\n"))[0]
    assert row.model_dump() == {
        "slide_path": tmp_path / "s/a.svs", "slide_id": "id-1", "case_id": "c1", "label": "tumour", "split": "train",
        "mpp": 0.25, "annotation": tmp_path / "a.geojson", "site": "x", "scanner": "y",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("slide_path,slide_id,case_id", "a.svs,one,p1"),
        ("wsi,sample_id,patient", "a.svs,one,p1"),
        ("image_path,slide,patient_id", "a.svs,one,p1"),
        ("FILENAME,Slide,PATIENT", "a.svs,one,p1"),
        (" filename , SAMPLE_ID,Patient_Id", " a.svs , one,p1 "),
        ("PATIENT,FILENAME,slide", "p1,a.svs,one"),
    ],
)
def test_aliases(tmp_path: Path, header: str, line: str) -> None:
    (row,) = read_manifest(csv(tmp_path, f"{header}\n{line}\n"))
    assert (row.slide_path, row.slide_id, row.case_id) == (tmp_path / "a.svs", "one", "p1")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("slide_path\na.svs\nb/c.ome.tif\n", [("a", "a"), ("c", "c")]),
        ("slide_path,slide_id\na.svs,x\na.svs,y\n", [("x", "x"), ("y", "y")]),
        ("slide_path,slide_id,case_id\na.svs,,p\n", [("a", "p")]),
        ("slide_path\r\na.svs\r\n\r\nb.svs\r\n", [("a", "a"), ("b", "b")]),
        ('slide_path\n"a, b.svs"\n', [("a, b", "a, b")]),
    ],
)
def test_defaults(tmp_path: Path, text: str, ids: list[tuple[str, str]]) -> None:
    assert [(r.slide_id, r.case_id) for r in read_manifest(csv(tmp_path, text))] == ids


def test_paths_are_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    csv(tmp_path / "study", "slide_path,slide_id\n../s/a.svs,a\n/abs/b.svs,b\n")
    monkeypatch.chdir(tmp_path)
    paths = [row.slide_path for row in read_manifest(Path("study/m.csv"))]
    assert paths == [Path("study/../s/a.svs"), Path("/abs/b.svs")]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert read_manifest(csv(tmp_path, "slide_path\na.svs\n", "utf-8-sig"))[0].slide_id == "a"


def test_parquet_equals_csv(tmp_path: Path) -> None:
    table = {"slide_path": ["a.svs", "b.svs"], "mpp": [0.25, None], "PATIENT": [7, 8], "label": ["t", None]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "m.parquet")
    text = "slide_path,mpp,PATIENT,label\na.svs,0.25,7,t\nb.svs,,8,\n"
    assert read_manifest(tmp_path / "m.parquet") == read_manifest(csv(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no rows"),
        ("\n", "has no rows"),
        ("slide_path\n", "has no rows"),
        ("slide_path,slide_id\na.svs,x\nb.svs\n", r"row 3: has 1 fields instead of 2"),
        ("slide_path\na.svs,x\n", r"row 2: has 2 fields instead of 1"),
        ("slide_id\nx\n", r"row 2: has no slide_path"),
        ("slide_path,slide_id\n,x\n", r"row 2: has no slide_path"),
        ("slide_path,mpp\na.svs,0\n", r"row 2: mpp: "),
        ("slide_path,mpp\na.svs,nan\n", r"row 2: mpp: "),
        ("slide_path,mpp\na.svs,half\n", r"row 2: mpp: "),
        ("slide_path,wsi\na.svs,b.svs\n", "two columns for slide_path"),
        ("slide_id,slide_path,SLIDE\nx,a.svs,y\n", "two columns for slide_id"),
        ("slide_path,slide_id\na.svs,x\nb.svs,x\n", r"m\.csv, row 3: has the slide_id 'x' of row 2"),
        ("slide_path\n1/a.svs\n2/a.svs\n", "row 3: has the slide_id 'a' of row 2"),
        ("x" * 200_000 + "\n", "cannot be read"),
        ('slide_path,scanner\na.svs,A\nb.svs,"B\nc.svs,C\nd.svs,D\n', r"row 3: has a quote that is not closed"),
        ('slide_path,scanner\na.svs,A\nb.svs,"B\nc.svs,"C\nd.svs,D\n', r"row 3: has a quote that is not closed"),
        ('slide_path,scanner\na.svs,"B\nC"\n', r"row 2: has a quote that is not closed"),
        ('slide_path,"scanner\na.svs,A\n', r"row 1: has a quote that is not closed"),
        ('slide_path,scanner\na.svs,"A" B\n', r"row 2: cannot be read"),
        ("slide_path,scanner\n\na.svs,A\n\nb.svs\n", r"row 5: has 1 fields instead of 2"),
        ("slide_path\na\0.svs\n", r"row 2: holds a NUL"),
        ("slide_path,slide_id\na.svs,x\nb.svs,X\n", r"row 3: has the slide_id 'X' of row 2"),
        ("slide_path,slide_id\na.svs,\u00e9\nb.svs,e\u0301\n", r"row 3: has the slide_id .* of row 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(InputError, match=reason) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


BAD_IDS = [
    "../evil", "/etc/x", "a/b", "a\\b", ".", "..", ".hidden", "~root", "-rf", " a", "a:b", "a*", "a?", 'a"', "a<b",
    "a>b", "a|b", "a\0b", "a\nb", "a\tb", "\x1b[2J", "x" * 201, "µ" * 101, "", "\ud800", "a.", "a ",
    "=1+1", "+1", "@SUM(1)",
]  # fmt: skip


@pytest.mark.parametrize("slide_id", BAD_IDS)
def test_bad_ids(slide_id: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        checked_slide_id(slide_id)


@pytest.mark.parametrize("slide_id", ["index.html", "Index.HTML", "not_analysed.json", "CON", "nul.1", "com7"])
def test_ids_that_are_the_names_of_files_of_their_own(slide_id: str) -> None:
    with pytest.raises(ValueError, match="the name of a file"):
        checked_slide_id(slide_id)


@pytest.mark.parametrize(
    "slide_id", ["console", "com10", "index", "a", "TCGA-1.2_3", "Fall 7", "Größe", "a..b", "x" * 200]
)
def test_good_ids(slide_id: str) -> None:
    assert checked_slide_id(slide_id) == slide_id


def test_a_bad_id_in_a_manifest_names_its_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m\.csv, row 3: slide_id: .*'\.\./evil'"):
        read_manifest(csv(tmp_path, "slide_path,slide_id\na.svs,good\nb.svs,../evil\n"))


def test_a_bad_id_costs_its_slide_and_no_other(tmp_path: Path) -> None:
    """Where slides are worked on; any other fault of a table is the table's."""
    found = slides_of_manifest(csv(tmp_path, "slide_path,mpp\na.svs,1\n-b.svs,1\nc.svs,\n"))
    assert [row.slide_id for row in found.rows] == ["a", "c"]
    assert list(found.refused) == ["row 3"]
    assert "'-b' cannot name a folder" in found.refused["row 3"]
    with pytest.raises(InputError, match="row 2: "):
        slides_of_manifest(csv(tmp_path, "slide_path,mpp\n-b.svs,0\n"))
    paths = slides_of_paths([Path("x/a.svs"), Path("x/-\x1b.svs")])
    assert [row.slide_id for row in paths.rows] == ["a"]
    assert list(paths.refused) == ["x/-\\x1b.svs"]
    with pytest.raises(InputError, match="two have the id"):
        slides_of_paths([Path("x/a.svs"), Path("y/A.tif")])


def missing(folder: Path) -> Path:
    return folder / "missing.csv"


def directory(folder: Path) -> Path:
    return folder


def latin1(folder: Path) -> Path:
    return csv(folder, "slide_path\nGröße.svs\n", "latin-1")


def named_with_nul(folder: Path) -> Path:
    return folder / "m\0.csv"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "m.csv")
    return folder / "m.csv"


def not_parquet(folder: Path) -> Path:
    (folder / "m.parquet").write_bytes(b"PAR1 no")
    return folder / "m.parquet"


@pytest.mark.parametrize("make", [missing, directory, latin1, not_parquet, named_with_nul, pipe])
def test_unreadable_tables(tmp_path: Path, make: object) -> None:
    path: Path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=r"\(.+\); .*CSV or Parquet") as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_slide_by_its_path_alone() -> None:
    row = slide_row(Path("x/a.ome.tiff"))
    assert (row.slide_path, row.slide_id, row.case_id) == (Path("x/a.ome.tiff"), "a", "a")
    with pytest.raises(ConfigError, match="rename the file"):
        slide_row(Path("x/-rf.svs"))
