"""Radiographs in DICOM, written by pydicom and held against its own windows and tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian

from tiling.core.errors import ConfigError, InputError
from training import TrainConfig, samples_from_images
from training.data.dataset import TileDataset, read_image
from training.data.radiographs import dicom_size, read_dicom
from training.data.samples import Split

JPEG_LOSSLESS, JPEG_LS, JPEG_2000, DEFLATED = (
    f"1.2.840.10008.1.2{end}" for end in (".4.70", ".4.80", ".4.90", ".1.99")
)
PATIENT = "Doe^Jane"


def grey(bits: int, *, signed: bool = False, shape: tuple[int, int] = (24, 40)) -> NDArray[Any]:
    """Random stored values over the whole range."""
    low = -(1 << (bits - 1)) if signed else 0
    values = np.random.default_rng(bits).integers(low, low + (1 << bits), shape)
    values.flat[:2] = low, low + (1 << bits) - 1
    return values.astype("<i2" if signed else "<u2" if bits > 8 else "u1")


def write(
    path: Path, stored: NDArray[Any], bits: int, *, colours: str = "MONOCHROME2",
    encode: Callable[[NDArray[Any]], bytes] | None = None, syntax: str = ExplicitVRLittleEndian, **more: Any,
) -> Path:  # fmt: skip
    """A digital radiograph; `more` are elements by name."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.PatientName = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3", PATIENT
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, colours
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = stored.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes() if encode is None else encapsulate([encode(stored)])
    for name, value in more.items():
        setattr(ds, name, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    ds.save_as(path, enforce_file_format=True)
    return path


def table(first: int, values: NDArray[np.uint16], bits: int) -> list[Dataset]:
    """A sequence with a lookup table."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(values), first, bits])
    item.add_new("LUTData", "US", values.tolist())
    return [item]


CURVE = (np.linspace(0, 1, 4096) ** 2 * 4095).astype(np.uint16)


@pytest.mark.parametrize("colours", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("bits", "signed", "more"),
    [
        (12, False, {"WindowCenter": 2000, "WindowWidth": 1500}),
        (12, False, {"WindowCenter": [1000, 3000], "WindowWidth": [1500, 10]}),  # the first of several
        (16, False, {"WindowCenter": 30000, "WindowWidth": 20001, "VOILUTFunction": "LINEAR"}),
        (14, False, {"WindowCenter": 8000, "WindowWidth": 4000, "VOILUTFunction": "LINEAR_EXACT"}),
        (14, False, {"WindowCenter": 8000, "WindowWidth": 4000, "VOILUTFunction": "SIGMOID"}),
        (12, False, {"WindowCenter": 2000, "WindowWidth": 1}),
        (8, False, {"WindowCenter": 100, "WindowWidth": 50}),
        (12, True, {"WindowCenter": -100, "WindowWidth": 800}),
        (12, True, {"WindowCenter": 10, "WindowWidth": 80, "RescaleSlope": 0.5, "RescaleIntercept": -7}),
        (12, False, {"VOILUTSequence": table(0, CURVE, 12)}),
        (12, False, {"VOILUTSequence": table(0, CURVE, 12), "WindowCenter": 5, "WindowWidth": 9}),
        (12, False, {"VOILUTSequence": table(-24, CURVE, 12), "RescaleSlope": 1, "RescaleIntercept": -24}),
        (12, False, {"ModalityLUTSequence": table(0, CURVE * 16, 16), "WindowCenter": 32000, "WindowWidth": 9000}),
    ],
)  # fmt: skip
def test_windows_and_tables_are_those_of_pydicom(
    tmp_path: Path, bits: int, signed: bool, more: dict[str, Any], colours: str
) -> None:
    path = write(tmp_path / "x.dcm", grey(bits, signed=signed), bits, colours=colours, **more)
    ds = pydicom.dcmread(path)
    values = apply_modality_lut(ds.pixel_array, ds)
    whole = np.array([0, 65535.0]) if "ModalityLUTSequence" in more else np.array([0, 2.0**bits - 1])
    whole = whole - (2 ** (bits - 1) if signed else 0)
    if "VOILUTSequence" in more:
        values, low, high = apply_voi_lut(values.astype(np.int64), ds), 0, 4095
    else:
        values = apply_voi_lut(values, ds)
        low, high = whole * more.get("RescaleSlope", 1) + more.get("RescaleIntercept", 0)
    expected = (values - low) / (high - low) * 255
    expected = 255 - expected if colours == "MONOCHROME1" else expected
    shown = read_dicom(path)
    assert shown.dtype == np.uint8
    assert np.abs(shown - expected).max() <= 1
    assert np.ptp(shown) > 200


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_without_a_window_it_is_what_a_picture_of_as_many_bits_is(tmp_path: Path, bits: int) -> None:
    stored = grey(bits)
    cv2.imwrite(str(tmp_path / "x.png"), stored)
    expected = read_image(tmp_path / "x.png", 24, "crop")
    plain = read_image(write(tmp_path / "a.dcm", stored, bits), 24, "crop")
    np.testing.assert_array_equal(plain, expected)
    inverse = read_image(write(tmp_path / "b.dcm", stored, bits, colours="MONOCHROME1"), 24, "crop")
    np.testing.assert_array_equal(inverse, 255 - expected)
    sunken = write(tmp_path / "c.dcm", stored, max(bits, 16 if bits > 8 else 8))  # says 16 bits and uses fewer
    np.testing.assert_array_equal(read_image(sunken, 24, "crop"), expected)
    falling = write(tmp_path / "d.dcm", stored, bits, RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_array_equal(read_image(falling, 24, "crop"), 255 - expected)


def test_signed_values_without_a_window_are_shown_over_their_range(tmp_path: Path) -> None:
    stored = grey(12, signed=True)
    shown = read_dicom(write(tmp_path / "x.dcm", stored, 12))
    np.testing.assert_array_equal(shown, (stored.astype(int) + 2048) >> 4)


@pytest.mark.parametrize(
    ("syntax", "encode", "bits"),
    [
        (JPEG_LOSSLESS, lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12), 12),
        (JPEG_LOSSLESS, lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16), 16),
        (JPEG_LS, imagecodecs.jpegls_encode, 12),
        (JPEG_2000, lambda a: imagecodecs.jpeg2k_encode(a, level=0, reversible=True, codecformat="j2k"), 16),
    ],
)
def test_compressed_ones_hold_the_same_values(
    tmp_path: Path, syntax: str, encode: Callable[[NDArray[Any]], bytes], bits: int
) -> None:
    more: dict[str, Any] = {"WindowCenter": 2.0 ** (bits - 1), "WindowWidth": 2.0 ** (bits - 2)}
    plain = write(tmp_path / "a.dcm", grey(bits), bits, **more)
    packed = write(tmp_path / "b.dcm", grey(bits), bits, syntax=syntax, encode=encode, **more)
    np.testing.assert_array_equal(read_dicom(packed), read_dicom(plain))


def test_padding_is_black_and_overlays_of_old_are_not_seen(tmp_path: Path) -> None:
    stored = grey(12)
    stored[stored == 4095], stored[:4], stored[4:6] = 4000, 4095, 4090
    wanted = read_dicom(write(tmp_path / "a.dcm", stored, 12))
    wanted[:6] = 255 - wanted[:6]
    inverse = write(
        tmp_path / "b.dcm", stored | 0x8000, 12, colours="MONOCHROME1", PixelPaddingValue=4095,
        PixelPaddingRangeLimit=4090,
    )  # fmt: skip
    shown = read_dicom(inverse)
    assert (shown[:6] == 0).all()
    np.testing.assert_array_equal(shown[6:], 255 - wanted[6:])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"colours": "RGB"}, "grey"),
        ({"NumberOfFrames": 2}, "grey"),
        ({"PixelSpacing": [0.1, 0.2]}, "0.2 wide and 0.1 high"),
        ({"PixelAspectRatio": [3, 1]}, "1 wide and 3 high"),
        ({"syntax": DEFLATED}, "Deflated"),
        ({"HighBit": 15}, "ValueError"),
        ({"PixelData": b"\0" * 100}, "ValueError"),
        ({"Rows": 25}, "ValueError"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "ValueError"),
        ({"WindowCenter": 5, "WindowWidth": 8, "VOILUTFunction": "CUBIC"}, "ValueError"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "x.dcm", grey(12), 12, **more)
    with pytest.raises(InputError, match=said) as error:
        read_dicom(path)
    assert "x.dcm" in str(error.value)
    assert "Doe" not in str(error.value)


def test_a_value_of_an_odd_length_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "x.dcm", grey(12), 12)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\x28\0\x03\x01US\2\0\0\0", b"\x28\0\x03\x01US\3\0\0\0\0"))
    assert len(path.read_bytes()) == len(whole) + 1
    with pytest.raises(InputError, match=r"x\.dcm"):
        read_dicom(path)


def test_without_pydicom_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.dcm", grey(12), 12)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r"specslide\[dicom\]"):
        dicom_size(path)


def test_a_folder_of_radiographs_is_trained_on_in_its_own_proportions(tmp_path: Path, tiny: TrainConfig) -> None:
    for i in range(8):
        place = tmp_path / "xy"[i % 2]
        place.mkdir(exist_ok=True)
        stored = np.full((12, 24), 400 * (i + 1), "<u2")
        write(place / f"{i}.dcm", stored, 12, WindowCenter=2048, WindowWidth=4096)
    assert dicom_size(tmp_path / "x" / "0.dcm") == (24, 12)
    samples = samples_from_images(tmp_path, tiny.model_copy(update={"fit": "pad"}))
    assert samples.tile_px == 12
    tile = TileDataset(Split("all", samples, np.arange(8), 24)).__getitems__([0]).tiles[0].numpy()
    assert (tile[:6] == 0).all()
    assert (tile[6:18] == 400 // 16).all()
