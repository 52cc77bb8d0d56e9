"""DICOM files for tests, written by pydicom."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit

ROOT = "1.2.826.0.1.3680043.8.498.1"
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
TILE_PX = 256
_numbers = itertools.count(1)

Encode = Callable[[NDArray[np.uint8]], bytes]


def jpeg(tile: NDArray[np.uint8]) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=95, subsampling="444"))


def frames(picture: NDArray[np.uint8], tile: tuple[int, int] = (TILE_PX, TILE_PX)) -> list[NDArray[np.uint8]]:
    """The picture's tiles of that width and height in reading order, white where they reach beyond it."""
    (height, width), (tile_w, tile_h) = picture.shape[:2], tile
    beyond = ((0, -height % tile_h), (0, -width % tile_w), *((0, 0),) * (picture.ndim - 2))
    full = np.pad(picture, beyond, constant_values=255)
    corners = [(y, x) for y in range(0, height, tile_h) for x in range(0, width, tile_w)]
    return [np.ascontiguousarray(full[y : y + tile_h, x : x + tile_w]) for y, x in corners]


def frame_place(column: int, row: int) -> Dataset:
    """The functional groups of a frame that say where it lies, pixels from 1."""
    where, frame = Dataset(), Dataset()
    where.ColumnPositionInTotalImagePixelMatrix, where.RowPositionInTotalImagePixelMatrix = column, row
    frame.PlanePositionSlideSequence = [where]
    return frame


def write_object(path: Path, sop_class: str, series: str = "9", syntax: str = "1.2.840.10008.1.2.1") -> Path:
    """A DICOM object of that class without pixels."""
    return _save(_object(sop_class, series), path, syntax)


def write_instance(
    path: Path,
    picture: NDArray[np.uint8],
    *,
    mpp: float = 0.5,
    series: str = "1",
    syntax: str = JPEGBaseline8Bit,
    colours: str = "YBR_FULL_422",
    encode: Encode = jpeg,
    flavour: str = "VOLUME",
    part: int | None = None,
    frames_of: list[int] | None = None,
    tile: tuple[int, int] = (TILE_PX, TILE_PX),
    table: Literal["basic", "extended", "none"] = "basic",
    fragments: int = 1,
    **more: Any,
) -> Path:
    """A tiled whole-slide image; `part` 0 or 1 is that half of it as a concatenation; `frames_of` tiles are
    written, in that order; `more` are elements by name. Without compression in explicit VR little endian."""
    tiles = frames(picture, tile)
    tiles = tiles if frames_of is None else [tiles[index] for index in frames_of]
    ds = _object(WHOLE_SLIDE, series)
    ds.ImageType = ["ORIGINAL", "PRIMARY", flavour, "NONE"]
    ds.Columns, ds.Rows = tile
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = picture.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (1 if picture.ndim == 2 else 3), colours
    ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.DimensionOrganizationType = "TILED_FULL"
    measures, optical, shared, specimen = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    optical.ObjectiveLensPower = 20.0
    shared.PixelMeasuresSequence = [measures]
    specimen.SpecimenIdentifier = "S1"
    ds.SpecimenDescriptionSequence = [specimen]
    ds["SpecimenDescriptionSequence"].is_undefined_length = specimen.is_undefined_length_sequence_item = True
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.OpticalPathSequence = [optical]
    if part is not None:
        ds.ConcatenationUID, ds.InConcatenationNumber, ds.InConcatenationTotalNumber = f"{ROOT}.6", part + 1, 2
        ds.ConcatenationFrameOffsetNumber = part * (len(tiles) // 2)
        ds.SOPInstanceUIDOfConcatenationSource = f"{ROOT}.5"
        tiles = tiles[len(tiles) // 2 :] if part else tiles[: len(tiles) // 2]
    ds.NumberOfFrames = len(tiles)
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    encoded = [encode(tile) for tile in tiles]
    if syntax == ExplicitVRLittleEndian:
        ds.PixelData = b"".join(encoded)
        ds["PixelData"].VR = "OB"
    elif table == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(encoded)
    else:
        ds.PixelData = encapsulate(encoded, fragments_per_frame=fragments, has_bot=table == "basic")
    ds["PixelData"].is_undefined_length = syntax != ExplicitVRLittleEndian
    return _save(ds, path, syntax)


def _object(sop_class: str, series: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, f"{ROOT}.2.{next(_numbers)}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.9", f"{ROOT}.8.{series}"
    ds.FrameOfReferenceUID, ds.Modality = f"{ROOT}.7.{series}", "SM"
    return ds


def _save(ds: Dataset, path: Path, syntax: str) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path
