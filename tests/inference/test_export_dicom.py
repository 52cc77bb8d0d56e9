"""A heatmap of a DICOM slide as DICOM: read back by pydicom and highdicom, at the slide's own place on the glass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from inference import Heatmap, PredictConfig, load_model, make_heatmap
from inference.export_dicom import CALLED, PROBABILITIES, export_dicom, source_header
from pipeline.cli import app
from tests.inference.conftest import write_model
from tests.tiling.dicom_files import write_instance
from tiling.core.errors import InputError, OutputError


@pytest.fixture(scope="module")
def heatmap(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    """Of that slide, tiles that overlap by half at 4 µm/px."""
    folder = tmp_path_factory.mktemp("dicom")
    model = load_model(write_model(folder / "model", mpp=4.0, threshold=0.45))
    return Heatmap(make_heatmap(dicom, model, folder / "heatmaps", PredictConfig(overlap=0.5)).folder)


@pytest.fixture(scope="module")
def written(dicom: Path, heatmap: Heatmap, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = export_dicom(heatmap.folder, dicom, tmp_path_factory.mktemp("out"))
    return {path.name: path for path in paths}


def test_probabilities_come_back_as_they_are(written: dict[str, Path], heatmap: Heatmap) -> None:
    expected = heatmap.map().values
    found = hd.imread(written[PROBABILITIES]).get_total_pixel_matrix(apply_real_world_transform=True)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(expected).any()
    assert np.isfinite(expected).sum() > 100


def test_the_segment_is_what_reaches_the_threshold(written: dict[str, Path], heatmap: Heatmap) -> None:
    segmented = hd.seg.segread(written[CALLED])
    called = segmented.get_total_pixel_matrix(combine_segments=True)
    np.testing.assert_array_equal(called.astype(bool), np.nan_to_num(heatmap.map().values) >= heatmap.threshold)
    assert 0 < called.sum() < called.size
    (segment,) = segmented.SegmentSequence
    assert segment.SegmentLabel == "tumour"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"


@pytest.mark.parametrize("name", [PROBABILITIES, CALLED])
def test_it_lies_where_the_slide_lies(name: str, written: dict[str, Path], heatmap: Heatmap, dicom: Path) -> None:
    of_slide, of_map = (
        hd.spatial.ImageToReferenceTransformer.for_image(header, for_total_pixel_matrix=True)
        for header in (source_header(heatmap, dicom), pydicom.dcmread(written[name]))
    )
    scale = heatmap.map().downsample
    corners = np.array([[0, 0], [0.5, 0.5], [3.25, 1], [9.5, 12.5]])  # column and row from a picture's corner, pixels
    np.testing.assert_allclose(of_map(corners), of_slide(corners * scale), atol=1e-5)  # mm: a hundredth of a µm


@pytest.mark.parametrize("name", [PROBABILITIES, CALLED])
def test_it_is_tied_to_the_slide(name: str, written: dict[str, Path], heatmap: Heatmap, dicom: Path) -> None:
    source, made = source_header(heatmap, dicom), pydicom.dcmread(written[name])
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "ContainerIdentifier"):
        assert made[keyword].value == source[keyword].value
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    referenced = made.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert referenced.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert made.Manufacturer == "specslide"
    assert "research" in made.ContentDescription.lower()


@pytest.mark.nightly
def test_a_validator_finds_no_error(written: dict[str, Path], tmp_path: Path) -> None:
    """dciodvfy of David Clunie's dicom3tools, which knows both objects' modules."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "own"), "dicom3tools"]
    subprocess.run(install, check=True, timeout=600)
    for name, said in ((PROBABILITIES, "ParametricMap"), (CALLED, "Segmentation")):
        words = [str(tmp_path / "own/bin/dciodvfy"), "-new", str(written[name])]
        beside = {**os.environ, "PYTHONPATH": str(tmp_path / "own")}
        done = subprocess.run(words, env=beside, capture_output=True, text=True, check=False)
        assert said in done.stderr.splitlines()
        assert "Error" not in done.stderr


def test_nothing_is_replaced_unasked_and_ids_stay(
    dicom: Path, written: dict[str, Path], heatmap: Heatmap, tmp_path: Path
) -> None:
    out = written[CALLED].parent.parent
    with pytest.raises(OutputError, match="--overwrite"):
        export_dicom(heatmap.folder, dicom, out)
    words = ["export", "dicom", str(heatmap.folder), "--slides", str(dicom), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    again = pydicom.dcmread(tmp_path / heatmap.slide.slide_id / CALLED, stop_before_pixels=True)
    assert again.SOPInstanceUID == pydicom.dcmread(written[CALLED], stop_before_pixels=True).SOPInstanceUID


def test_another_slide_or_one_without_a_place_is_refused(heatmap: Heatmap, slide: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the slide"):
        export_dicom(heatmap.folder, slide, tmp_path / "out")
    model = load_model(write_model(tmp_path / "model"))
    plain = make_heatmap(slide, model, tmp_path / "plain").folder
    with pytest.raises(InputError, match="no DICOM"):
        export_dicom(plain, slide, tmp_path / "out")
    pixels = np.full((256, 256, 3), (180, 90, 150), np.uint8)
    nowhere = write_instance(tmp_path / "dicom" / "a.dcm", pixels)
    placeless = make_heatmap(nowhere.parent, model, tmp_path / "placeless").folder
    with pytest.raises(InputError, match="on the glass"):
        export_dicom(placeless, nowhere.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["orientation", "origin", "no patient"])
def test_a_damaged_header_is_one_sentence(damage: str, tmp_path: Path) -> None:
    origin = pydicom.Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 20
    place: dict[str, Any] = {"TotalPixelMatrixOriginSequence": [origin], "ImageOrientationSlide": [0, -1, 0, -1, 0, 0]}
    if damage == "origin":
        del origin.YOffsetInSlideCoordinateSystem
    if damage == "orientation":
        place["ImageOrientationSlide"] = [0, -1, 0]
    file = write_instance(tmp_path / "dicom" / "a.dcm", np.full((256, 256, 3), (180, 90, 150), np.uint8), **place)
    made = make_heatmap(file.parent, load_model(write_model(tmp_path / "model")), tmp_path / "heatmap").folder
    with pytest.raises(InputError, match="dicom"):
        export_dicom(made, file.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()
