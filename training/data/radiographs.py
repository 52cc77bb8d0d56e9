"""Radiographs in DICOM -> grey pictures of 8 bits, as a viewer shows them first. Knows nothing of tables or models.

Stored values go through the modality's table or rescaling, then through the file's first table or window of interest
(PS3.3, C.11.1 and C.11.2); MONOCHROME1 is inverted, padding is black. pydicom is an extra, loaded where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.core.dicom_files import reading_dicom
from tiling.core.errors import ConfigError, InputError
from tiling.core.text import printable
from tiling.slides.jpeg_stream import require_whole

UInt8s = NDArray[np.uint8]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ENDINGS = (".dcm", ".dicom")
"""What names of DICOM files usually end in, if in anything."""
_MAX_PX = 1 << 27
_MAX_BYTES = 1 << 29
_SQUARE_TO = 0.01  # pixels wider than high by more are not shown as they are
_PYDICOMS = {f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".5")}  # uncompressed, and run lengths
_DECODERS = {
    **dict.fromkeys(
        (f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)), "jpeg8_decode"  # baseline, 12 bits, lossless
    ),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (80, 81)), "jpegls_decode"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (90, 91)), "jpeg2k_decode"),
}  # fmt: skip
"""imagecodecs' functions by transfer syntax (PS3.5, A.4)."""
_HEADER = (
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation", "PixelSpacing",
    "ImagerPixelSpacing", "PixelAspectRatio",
)  # fmt: skip


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its preamble (PS3.10); false for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def used_bits(highest: int) -> int:
    """Of 10, 12, 14 and 16 the least bits that hold a value."""
    return next(bits for bits in (10, 12, 14, 16) if highest < 2**bits or bits == 16)


def dicom_size(path: Path) -> tuple[int, int]:
    """Width and height of a radiograph, pixels, from its header alone.

    Raises InputError for what is no single grey picture with square pixels, ConfigError without pydicom.
    """
    with _opened(path) as read:
        header = read(stop_before_pixels=True, specific_tags=list(_HEADER))
        _require_radiograph(header, path)
        return header.Columns, header.Rows


def read_dicom(path: Path) -> UInt8s:
    """The radiograph in a file, uint8 (h, w), 0 for black.

    Without a window, or table, of interest the upper eight of the bits in use count, as of other 16-bit pictures.
    Raises as `dicom_size`, and InputError for a damaged file.
    """
    with _opened(path) as read:
        header = read()
        _require_radiograph(header, path)
        stored = _stored(header)
        shown = np.minimum(_levels(header, stored) * 256, 255).astype(np.uint8)
        if header.PhotometricInterpretation == "MONOCHROME1":
            shown = 255 - shown
        low, high = _padding(header)
        return np.where((stored >= low) & (stored <= high), 0, shown).astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Callable[..., Any]]:
    """pydicom's reader of the file; what it raises inside is an InputError that quotes nothing of the file."""
    try:
        import pydicom
    except ModuleNotFoundError:
        fix = "pip install 'specslide[dicom]'"
        raise ConfigError(str(path), "is DICOM, and pydicom is not installed", fix) from None
    with reading_dicom(path):
        syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
        if syntax not in _PYDICOMS | _DECODERS.keys():
            raise InputError(path, f"is DICOM of the transfer syntax {printable(syntax.name)}", "save it uncompressed")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(path, f"has more than {_MAX_BYTES >> 20} MB", "pass single radiographs")
        yield lambda **options: pydicom.dcmread(path, **options)


def _require_radiograph(header: Any, path: Path) -> None:
    """Raise InputError for what is no single grey picture with square pixels."""
    grey = header.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2") and header.SamplesPerPixel == 1
    if not grey or int(header.get("NumberOfFrames") or 1) != 1:
        what = "is DICOM, but no single grey picture"
        raise InputError(path, what, "save each picture as PNG, or leave the file out")
    if not 0 < header.Rows * header.Columns <= _MAX_PX:
        what = f"has {header.Columns} x {header.Rows} pixels"
        raise InputError(path, what, f"keep to {_MAX_PX // 10**6} megapixels")
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing") or header.get("PixelAspectRatio")
    down, across = map(float, spacing or (1, 1))
    if abs(down / across - 1) > _SQUARE_TO:
        raise InputError(path, f"has pixels {across:g} wide and {down:g} high", "resample it to square ones")


def _stored(header: Any) -> Ints:
    """The stored values (h, w), signed where they are; what lies in the bits above them (overlays of old) is gone."""
    syntax, bits = header.file_meta.TransferSyntaxUID, header.BitsStored
    if not 1 <= bits <= 16 or header.HighBit != bits - 1:
        raise ValueError("an unusual layout of bits")
    if syntax in _PYDICOMS:
        values = header.pixel_array
    else:
        import imagecodecs
        from pydicom.encaps import get_frame

        frame = get_frame(header.PixelData, 0, number_of_frames=1)
        if _DECODERS[syntax] == "jpeg8_decode":
            require_whole(frame)
        values = getattr(imagecodecs, _DECODERS[syntax])(frame)
    if values.shape != (header.Rows, header.Columns) or values.dtype.kind not in "ui":
        raise ValueError("other pixels than the header says")
    return np.asarray(_signed(values.astype(np.int64), header))


def _signed(values: Any, header: Any) -> Any:
    """Integers of `BitsStored` bits, in two's complement where `PixelRepresentation` is 1."""
    values, sign = values & ((1 << header.BitsStored) - 1), 1 << (header.BitsStored - 1)
    return (values ^ sign) - sign if header.PixelRepresentation == 1 else values


def _padding(header: Any) -> tuple[int, int]:
    """From and to which stored value pixels are outside of the picture; (1, 0) if none are."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return 1, 0
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted(int(_signed(int(end), header)) for end in (value, value if limit is None else limit))
    return low, high


def _levels(header: Any, stored: Ints) -> Floats:
    """What is shown of stored values (h, w), from 0 for the least to 1; before any inversion."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(stored, header)
    if header.get("VOILUTSequence"):
        shown = apply_voi(np.rint(values).astype(np.int64), header)
        return np.asarray(shown / 2.0 ** _bits_of(header.VOILUTSequence[0]))
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        centre, width = (float(np.ravel(header[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        return windowed(np.asarray(values, np.float64), centre, width, str(header.get("VOILUTFunction") or "LINEAR"))
    if header.get("ModalityLUTSequence"):
        return np.asarray(values / 2.0 ** _bits_of(header.ModalityLUTSequence[0]))
    if header.PixelRepresentation == 1:
        low, bits = -(1 << (header.BitsStored - 1)), header.BitsStored
    else:
        low, bits = 0, min(used_bits(int(stored.max())), header.BitsStored)
    share = (stored - low) / 2.0**bits
    return np.asarray(share if float(header.get("RescaleSlope") or 1) > 0 else 1 - share - 2.0**-bits)


def windowed(values: Floats, centre: float, width: float, function: str) -> Floats:
    """The values (h, w) through a window, from 0 below it to 1 above (PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Raises ValueError for a function that is neither LINEAR, LINEAR_EXACT nor SIGMOID, or a width it cannot have.
    """
    if function == "LINEAR" and width >= 1:
        centre, width = centre - 0.5, width - 1
        if width == 0:
            return (values > centre).astype(np.float64)
    elif function not in ("LINEAR_EXACT", "SIGMOID") or not width > 0:
        raise ValueError("no window")
    if function == "SIGMOID":
        from scipy.special import expit

        return np.asarray(expit(4 * (values - centre) / width))
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _bits_of(table: Any) -> int:
    """The bits that a table's values use; many say 16 and use fewer."""
    declared = int(table.LUTDescriptor[2])
    data = table.LUTData
    highest = max(np.frombuffer(data, "<u2") if isinstance(data, bytes) else data)
    return declared if declared <= 8 else min(used_bits(int(highest)), declared)
