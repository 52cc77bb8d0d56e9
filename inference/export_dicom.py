"""The verb `export_dicom`: a heatmap of a DICOM slide as DICOM, tied to the slide: probabilities, and the called area.

As DICOM demands, the files repeat the patient and the study of the slide: they are as private as the slide itself, and
so never part of a heatmap's folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from inference.saved_heatmap import Heatmap
from tiling import Slide
from tiling.core.arrays import Float32Array
from tiling.core.artefact import content_hash
from tiling.core.dicom_files import reading_dicom
from tiling.core.errors import ConfigError, InputError, OutputError
from tiling.core.files import atomic_file
from tiling.core.text import printable
from tiling.core.versions import RESEARCH_USE, software_versions
from tiling.grid import Raster
from tiling.slides.dicom import dicom_folder

PROBABILITIES, CALLED = "probabilities.dcm", "segmentation.dcm"
_FRAME_PX = 256
_SERIES = 900  # of the study; scanners count from 1


def export_dicom(heatmap: Path | str, slide: Path | str, out_dir: Path | str, *, overwrite: bool = False) -> list[Path]:
    """Write a heatmap as a parametric map (float32, NaN where nothing was predicted) and a binary segmentation.

    Both are tiled, at the heatmap's scale, in the slide's own coordinates. What is segmented is where the map reaches
    the threshold, without smoothing.

    Args:
        heatmap: The heatmap's folder.
        slide: The DICOM slide it was made of: its folder, or a file of it.
        out_dir: `<out_dir>/<slide_id>/` gets the two files.
        overwrite: Replace files that are there.

    Returns:
        The files.

    Raises:
        InputError: For another slide, one that is no DICOM or does not say where it lies on the glass.
        ConfigError: Without highdicom.
        OutputError: If a file is there, unless `overwrite`, or cannot be written.
    """
    hd = _highdicom()
    found, slide = Heatmap(heatmap), Path(slide)
    source = source_header(found, slide)
    folder = Path(out_dir) / found.slide.slide_id
    paths = [folder / PROBABILITIES, folder / CALLED]
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(path, "is there already", "choose another --out, or pass --overwrite")
    shown, identity = found.map(), content_hash(found.folder)
    for number, (path, make) in enumerate(zip(paths, (_parametric_map, _segmentation), strict=True)):
        with reading_dicom(slide):  # values of the header are parsed only here
            common = _common(hd, found, source, shown, f"{identity}/{path.name}", number)
            made = make(hd, found, shown.values, common)
        with atomic_file(path) as partial:
            made.save_as(partial)
    return paths


def source_header(heatmap: Heatmap, slide: Path) -> Any:
    """The header of the slide's finest image, as pydicom reads it. Raises InputError."""
    import pydicom

    with Slide(slide, mpp=heatmap.slide.mpp) as opened:
        if opened.sha256() != heatmap.slide.sha256:
            raise InputError(slide, f"is not the slide that {heatmap.folder} was made of", "pass that slide")
    folder = slide if slide.is_dir() else slide.parent
    files = [file for one in dicom_folder(folder).slides if slide.is_dir() or slide in one.files for file in one.files]
    size0 = (heatmap.slide.height, heatmap.slide.width)
    with reading_dicom(slide):
        headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
        finest = [h for h in headers if (h.get("TotalPixelMatrixRows"), h.get("TotalPixelMatrixColumns")) == size0]
        if not finest:
            fix = "DICOM ties results to one; for others use the heatmap's --formats"
            raise InputError(slide, "is no DICOM slide", fix)
        if not finest[0].get("TotalPixelMatrixOriginSequence") or not finest[0].get("ImageOrientationSlide"):
            raise InputError(slide, "does not say where it lies on the glass", "use the heatmap's --formats")
    return finest[0]


def _highdicom() -> Any:
    try:
        import highdicom
    except ModuleNotFoundError:
        raise ConfigError("dicom", "highdicom is not installed", "pip install 'specslide[dicom]'") from None
    return highdicom


def _common(hd: Any, heatmap: Heatmap, source: Any, shown: Raster, identity: str, number: int) -> dict[str, Any]:
    """What both files are made with: source, place on the glass, and who made them."""
    origin, spacing_mm = source.TotalPixelMatrixOriginSequence[0], heatmap.slide.mpp / 1000
    across, down = np.array(source.ImageOrientationSlide, np.float64).reshape(2, 3)
    to_centre = (shown.downsample - 1) / 2 * spacing_mm  # DICOM places an image by the centre of its first pixel
    corner = np.array([origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem, 0], np.float64)
    slide = hd.CoordinateSystemNames.SLIDE
    measures = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return {
        "source_images": [source],
        "series_instance_uid": _uid(f"{identity}/series"),
        "series_number": _SERIES + number,
        "sop_instance_uid": _uid(identity),
        "instance_number": 1,
        "manufacturer": "specslide",
        "manufacturer_model_name": printable(heatmap.summary.model_name)[:64],
        "software_versions": software_versions()["specslide"],
        "device_serial_number": heatmap.summary.made_from["model_sha256"][:16] or "unknown",
        "content_description": RESEARCH_USE[:64],
        "pixel_measures": hd.PixelMeasuresSequence(
            [shown.downsample * spacing_mm] * 2, float(measures.get("SliceThickness", 0.001))
        ),
        "plane_orientation": hd.PlaneOrientationSequence(slide, [float(v) for v in source.ImageOrientationSlide]),
        "plane_positions": [
            hd.PlanePositionSequence(slide, (corner + to_centre * (across + down)).round(9).tolist(), (1, 1))
        ],
        "tile_pixel_array": True,
        "tile_size": (_FRAME_PX, _FRAME_PX),
    }


def _parametric_map(hd: Any, heatmap: Heatmap, values: Float32Array, common: dict[str, Any]) -> Any:
    from pydicom.sr.codedict import codes

    mapping = hd.pm.RealWorldValueMapping(
        lut_label=_label(heatmap), lut_explanation=_shown(heatmap), unit=codes.UCUM.NoUnits, value_range=(0.0, 1.0),
        slope=1.0, intercept=0.0,
    )  # fmt: skip
    made = hd.pm.ParametricMap(
        pixel_array=values[None], contains_recognizable_visual_features=False, real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="PROBABILITY", **common,
    )  # fmt: skip
    made.FloatPixelPaddingValue = made.FloatPixelPaddingRangeLimit = float("nan")
    return made


def _segmentation(hd: Any, heatmap: Heatmap, values: Float32Array, common: dict[str, Any]) -> Any:
    from pydicom.sr.codedict import codes

    named = hd.sr.CodedConcept("1", "99SPECSLIDE", _label(heatmap))
    how = hd.AlgorithmIdentificationSequence(
        name=common["manufacturer_model_name"], family=codes.DCM.ArtificialIntelligence,
        version=common["device_serial_number"],
    )  # fmt: skip
    segment = hd.seg.SegmentDescription(
        1, _label(heatmap), codes.SCT.MorphologicallyAbnormalStructure, named,
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, how,
    )  # fmt: skip
    called = np.nan_to_num(values, nan=-1.0) >= np.float32(heatmap.threshold)
    return hd.seg.Segmentation(
        pixel_array=called[None].astype(np.uint8), segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment], content_label="CALLED", omit_empty_frames=False, **common,
    )  # fmt: skip


def _label(heatmap: Heatmap) -> str:
    return printable(heatmap.summary.positive_class)[:16]


def _shown(heatmap: Heatmap) -> str:
    what = "attention relative to the largest" if heatmap.summary.bag is not None else "probability of"
    return f"{what} {printable(heatmap.summary.positive_class)}"[:64]


def _uid(name: str) -> str:
    """A UID of DICOM that is made of a name: the 128 bits of a UUID under 2.25 (PS3.5, B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])}"
