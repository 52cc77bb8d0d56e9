"""What others may read calls slides by their ids, and tells no folder of this machine."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from pipeline.redaction import files_of, redact, redact_names, redacted_log
from tiling.manifest import ManifestRow

SLIDE = Path("/data/ward 7/MILLER.svs")


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("/data/ward 7/MILLER.svs: is cut short; copy it", "MILLER.svs: is cut short; copy it"),
        ("/data/ward 7/MILLER.svs, too coarse for 0.5 µm/px", "MILLER.svs, too coarse for 0.5 µm/px"),
        ("/home/ann/roi/b.geojson: marks no area", "b.geojson: marks no area"),
        ("stores/a.zarr: was made with mpp 1/2 instead of 0.5", "stores/a.zarr: was made with mpp 1/2 instead of 0.5"),
        ("the scale 1/2 of /a/b is and/or was", "the scale 1/2 of b is and/or was"),
        ("nothing of a path", "nothing of a path"),
    ],
)
def test_reasons_keep_names_and_lose_folders(reason: str, shown: str) -> None:
    assert redact(reason, SLIDE.parent) == shown


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("/data/ward 7/MILLER.svs: is cut short; copy it", "s1: is cut short; copy it"),
        ("/data/ward 7/MILLER.svs, tile at x 1, y 2: no", "s1, tile at x 1, y 2: no"),
        ("/data/ward 7/MILLER.svs/1.dcm: cannot be read", "s1/1.dcm: cannot be read"),
        ("MILLER.svs and /home/ann/out/s1.zarr: differ", "s1 and s1.zarr: differ"),
        ("s1: cannot be written (No space left on device)", "s1: cannot be written (No space left on device)"),
        ("MILLER.svs2 is no slide, nor is SMILLER.svs", "MILLER.svs2 is no slide, nor is SMILLER.svs"),
    ],
)
def test_reasons_call_slides_by_their_ids(reason: str, shown: str) -> None:
    assert redact(reason, names={SLIDE: "s1"}) == shown


def test_annotations_are_called_by_the_slide_s_id() -> None:
    row = ManifestRow(slide_path=SLIDE, slide_id="s1", case_id="c", annotation=Path("/data/ward 7/Anna MILLER.geojson"))
    said = "/data/ward 7/Anna MILLER.geojson: is not JSON, unlike /data/ward 7/MILLER.svs"
    for told in (redact_names(said, files_of(row)), redact(said, names=files_of(row))):
        assert told == "annotation of s1: is not JSON, unlike s1"


def test_a_relative_folder_of_one_part_is_lost_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert redact("ward/a.geojson: is no JSON, forward/b.tif is none", Path("ward")) == (
        "a.geojson: is no JSON, forward/b.tif is none"
    )
    assert redact("stores/a.zarr: is damaged", Path()) == "stores/a.zarr: is damaged"


def test_folders_stay_where_the_user_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    reason = f"{tmp_path}/ward/7: is no slide, unlike ward/7; see /out/s7.zarr, tile at x 7, y 17"
    shown = "s1: is no slide, unlike s1; see /out/s7.zarr, tile at x s1, y 17"  # a file that is called 7 is everywhere
    assert redact_names(reason, {Path("ward/7"): "s1"}) == shown


def test_an_id_is_taken_as_it_is() -> None:
    assert redact_names("MILLER.svs is cut", {SLIDE: r"\1 of \g<0>"}) == r"\1 of \g<0> is cut"


def test_the_log_calls_a_slide_by_its_id_in_every_thread(caplog: pytest.LogCaptureFixture) -> None:
    def warn() -> None:
        logging.getLogger("tiling").warning("%s: the tile at x %d is left out", SLIDE, 5)

    before = logging.getLogRecordFactory()
    with redacted_log(SLIDE, "s1"):
        reader = threading.Thread(target=warn)
        reader.start()
        reader.join()
    warn()
    with redacted_log(SLIDE, "s1"):
        logging.getLogger("a library").info("%d tiles", "many")  # a library's mistake is not the task's
    assert caplog.messages == [f"{name}: the tile at x 5 is left out" for name in ("s1", SLIDE)]
    assert logging.getLogRecordFactory() is before
