"""Manifests drafted from tables as CLAM, TRIDENT and STAMP have them: what is matched by what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiling.core.errors import ConfigError, InputError
from tiling.draft_manifest import Draft, draft_manifest
from tiling.manifest import read_manifest


def drafted(folder: Path, slides: str, *tables: str, label: str | None = None) -> Draft:
    """Of slides called so in `folder/wsis`, and tables of those lines, `t0.csv` and so on."""
    paths = [folder / "wsis" / name for name in slides.split()]
    files = [folder / f"t{number}.csv" for number in range(len(tables))]
    for file, lines in zip(files, tables, strict=True):
        file.write_text(lines.replace(" ", "\n") + "\n")
    return draft_manifest(paths, files, label=label)


def said(draft: Draft, column: str) -> dict[str, str]:
    """What the manifest says of each slide, by slide_id."""
    return {row["slide_id"]: row.get(column, "") for row in draft.rows}


def test_a_folder_alone(tmp_path: Path) -> None:
    draft = drafted(tmp_path, "a.svs b.ome.tif")
    assert said(draft, "case_id") == {"a": "a", "b": "b"}
    assert (draft.own_case, draft.renamed, draft.taken) == (2, [], [])


def test_clams_tables(tmp_path: Path) -> None:
    """The dataset, whose slide_id has no ending; and the list of what was processed, where it has."""
    dataset = "case_id,slide_id,label patient_0,slide_1,tumor_tissue patient_0,slide_2,normal"
    processed = "slide_id,process,status,seg_level slide_1.svs,0,processed,3 slide_3.svs,1,tbp,-1"
    draft = drafted(tmp_path, "slide_1.svs slide_2.svs", dataset, processed)
    assert said(draft, "case_id") == {"slide_1": "patient_0", "slide_2": "patient_0"}
    assert said(draft, "label") == {"slide_1": "tumor_tissue", "slide_2": "normal"}
    assert draft.matched == [("t0.csv", "name without ending", 2), ("t1.csv", "file name", 1)]
    assert draft.without_slide == [("t1.csv", 3, "slide_3.svs")]
    assert draft.without_row == [("t1.csv", "slide_2")]
    assert [name for table, name, role in draft.taken if not role] == ["process", "status", "seg_level"]


def test_tridents_list(tmp_path: Path) -> None:
    """wsi, a path below the folder of slides, and mpp."""
    draft = drafted(tmp_path, "p1/s.svs p2/s.svs", "wsi,mpp p2/s.svs,0.25 p1/s.svs,0.5")
    assert said(draft, "mpp") == {"p1_s": "0.5", "p2_s": "0.25"}
    assert draft.matched == [("t0.csv", "path", 2)]
    assert [name for _, name in draft.renamed] == ["p1_s", "p2_s"], "two of one name"


def test_stamps_tables(tmp_path: Path) -> None:
    """Patients with a ground truth, and the patients' files of features; in whatever order they are given."""
    clini = "PATIENT,isMSIH,AGE P1,yes,50 P2,no,60 P3,no,70"
    slide = "FILENAME,PATIENT feats/a.h5,P1 feats/b.h5,P1 feats/c.h5,P2"
    draft = drafted(tmp_path, "a.svs b.svs c.svs d.svs", clini, slide, label="isMSIH")
    assert said(draft, "case_id") == {"a": "P1", "b": "P1", "c": "P2", "d": "d"}
    assert said(draft, "label") == {"a": "yes", "b": "yes", "c": "no", "d": ""}
    assert draft.labels() == {"yes": 2, "no": 1, "": 1}
    by = "name without ending, in another folder"
    assert draft.matched == [("t1.csv", by, 3), ("t0.csv", "case_id", 2)]
    assert (draft.without_slide, draft.own_case) == ([("t0.csv", 4, "P3")], 1)
    taken = {(column, role) for _, column, role in draft.taken}
    assert taken == {("FILENAME", "slide_path"), ("PATIENT", "case_id"), ("isMSIH", "label"), ("AGE", "")}


def test_cases_by_the_beginnings_of_slides_names(tmp_path: Path) -> None:
    """A clinical table alone: TCGA's barcodes; P1 is not the beginning of P11."""
    draft = drafted(tmp_path, "TCGA-A1-B2-01Z.0f9e.svs P1_x.svs P11.svs", "PATIENT,label TCGA-A1-B2,a P1,b P11,c")
    assert said(draft, "label") == {"TCGA-A1-B2-01Z.0f9e": "a", "P1_x": "b", "P11": "c"}
    assert draft.matched == [("t0.csv", "beginning of the slide's name", 3)]


@pytest.mark.parametrize(
    ("named", "how"),
    [
        ("wsis/A.1.svs", "path"),
        ("./wsis/A.1.svs", "path"),
        ("/elsewhere/wsis/A.1.svs", "path"),
        ("C:\\data\\wsis\\A.1.svs", "path"),
        ("A.1.svs", "file name"),
        ("x/A.1.svs", "file name, in another folder"),
        ("A.1", "name without ending"),
        ("A.1.pt", "name without ending"),
        ("A.1.svs.h5", "name without ending"),
        ("a.1.SVS", "name, whatever its case"),
        ("A", "name up to its first dot"),
    ],
)
def test_what_rows_are_matched_by(tmp_path: Path, named: str, how: str) -> None:
    draft = drafted(tmp_path, "A.1.svs b.svs", f"slide_id,label {named},x")
    assert said(draft, "label") == {"A.1": "x", "b": ""}
    assert draft.matched == [("t0.csv", how, 1)]


@pytest.mark.parametrize(
    ("slides", "tables", "said"),
    [
        ("p1/s.svs p2/s.svs", ["slide_id,label s,x"], r"t0\.csv, row 2: 's' may be any of 2 slides: .*p1/s\.svs"),
        ("a.1.svs a.2.svs", ["slide_id,label a,x"], r"row 2: 'a' may be any of 2"),
        ("a.svs", ["slide_id,label a,x a.svs,y"], r"row 3: says label 'y' of a, and row 2 'x'"),
        ("a.svs", ["slide_id,label a,x", "slide_id,label a,y"], r"row 2: says label 'y' of a, and another table"),
        ("a-b_c.svs", ["PATIENT,label a,x a-b,y"], r"t0\.csv: the slide a-b_c may be of any of the cases a, a-b"),
        ("a.svs", ["slide_id,label b,x"], r"none of the slides: its first row names 'b', and the first slide is 'a'"),
        ("a.svs", ["AGE,SEX 3,f"], r"names neither slides nor cases: its columns are AGE, SEX"),
        ("a.svs", ["case_id,PATIENT,slide 1,2,a"], r"two columns for case_id"),
        ("a.svs", ["slide,mpp a,fast"], r"a\.svs: mpp: "),
        ("a.svs b.svs", ["wsi,slide_id a.svs,x b.svs,x"], r"b\.svs: has the slide_id 'x' of .*a\.svs"),
        ("a.svs", ["slide;label a;x;y"], r"row 2: has 3 fields instead of 2, with semicolons"),
    ],
)  # fmt: skip
def test_what_cannot_be_sure_is_refused(tmp_path: Path, slides: str, tables: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        drafted(tmp_path, slides, *tables)


def test_the_label_must_be_a_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--label: .*'MSI'"):
        drafted(tmp_path, "a.svs", "slide,label a,x", label="MSI")


def test_every_slide_has_an_id_of_its_own(tmp_path: Path) -> None:
    draft = drafted(tmp_path, "-x.svs a.svs a.tif q/a.svs index.html.svs b.svs")
    assert list(said(draft, "label")) == ["slide_x", "a.svs", "a.tif", "q_a", "slide_index.html", "b"]
    assert [name for _, name in draft.renamed] == ["slide_x", "a.svs", "a.tif", "q_a", "slide_index.html"]
    with pytest.raises(InputError, match=r"q/a\.svs: .*'q_a\.svs'"):
        drafted(tmp_path, "b.svs q/a.svs q/A.svs")


def test_what_is_written_is_what_a_manifest_says(tmp_path: Path) -> None:
    """Read back by the reader of manifests, from wherever it lies; an id of the table's own counts."""
    slides = "a.svs b,c.svs"
    table = 'wsi,slide_id,annotation,site a.svs,one,ann/a.geojson,x "b,c.svs",two,,x'
    draft = drafted(tmp_path, slides, table)
    for folder in (tmp_path, tmp_path / "wsis", tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        (folder / "m.csv").write_text(draft.csv(folder))
        rows = read_manifest(folder / "m.csv")
        assert [(row.slide_id, row.slide_path, row.site) for row in rows] == [
            ("one", tmp_path / "wsis/a.svs", "x"), ("two", tmp_path / "wsis/b,c.svs", "x"),
        ]  # fmt: skip
        assert [row.annotation for row in rows] == [tmp_path / "ann/a.geojson", None]
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == "slide_path,slide_id,case_id,annotation,site"
    assert "\nwsis/a.svs,one,one," in (tmp_path / "m.csv").read_text()


def test_names_that_a_table_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="that a table cannot hold"):
        draft_manifest([tmp_path / "a\nb.svs"], [])
    with pytest.raises(InputError, match="that a table cannot hold"):
        draft_manifest([tmp_path / "a\udcff.svs"], [])
