"""DICOM slides as OpenSlide reads them, and those in HTJ2K, which it does not, frame by frame.

What is not read is refused by the name of what that is.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.slides.dicom import BIG_ENDIAN, COMPRESSION, DEFLATED, IMPLICIT_VR, Header, dicom_slide
from tiling.slides.dicom_frames_reader import DicomFramesReader
from tiling.slides.dicom_jpeg2000 import DicomStreams, FramesFile
from tiling.slides.openslide_reader import OpenSlideReader

_log = logging.getLogger(__name__)

_UNSUPPORTED = {
    IMPLICIT_VR: "implicit VR", DEFLATED: "deflate", BIG_ENDIAN: "big endian",
    "1.2.840.10008.1.2.5": "RLE", "1.2.840.10008.1.2.4.51": "JPEG Extended", "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.70": "lossless JPEG", "1.2.840.10008.1.2.4.80": "JPEG-LS", "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.110": "JPEG XL", "1.2.840.10008.1.2.4.111": "JPEG XL", "1.2.840.10008.1.2.4.112": "JPEG XL",
}  # fmt: skip
_COLOURS = (
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT",
    "YBR_RCT",
)  # fmt: skip


def open_with_dicom(path: Path, entry: Path) -> OpenSlideReader | DicomFramesReader | None:
    """The reader of a DICOM slide; None for what is no DICOM. Raises SlideError, naming what is not supported."""
    slide = dicom_slide(path)
    if slide is None:
        return None
    if any(file.is_fifo() or file.is_char_device() for file in slide.entry.parent.iterdir()):
        fix = "take it away, or the slide elsewhere"
        raise SlideError(path, "lies beside a pipe or device, at which OpenSlide would wait for ever", fix)
    if slide.beside:
        _log.info("%s: left alone beside the DICOM slide: %s", path, slide.beside)
    for _, header in slide.pyramid:
        _require_supported(path, header)
    sizes = Counter(header.size for _, header in slide.pyramid if not header.concatenation)
    for size, count in sizes.items():
        if count > 1:
            what = "holds {} images of {} x {} px in one series, focal planes or copies".format(count, *size)
            raise UnsupportedSlideError(path, f"{what}, which is not supported", "keep one image of each size")
    if any(header.compression == "HTJ2K" for _, header in slide.pyramid):
        return DicomFramesReader(path, slide)
    jpeg2000 = [
        FramesFile(file, header.size, header.tile, header.in_order, header.beyond)
        for file, header in slide.pyramid
        if header.compression == "JPEG2000"
    ]
    streams = DicomStreams(path, jpeg2000) if jpeg2000 else None
    return OpenSlideReader(path, slide.entry, slide.pyramid[0][1].compression, streams=streams)


def _require_supported(path: Path, header: Header) -> None:
    """Raise UnsupportedSlideError for what is not read, by the name of what that is."""
    syntax, fix = header.transfer_syntax, "convert it to JPEG or JPEG 2000 in 8-bit RGB"
    if syntax not in COMPRESSION:
        named = _UNSUPPORTED.get(syntax, "unknown")
        shown = f" ({syntax})" if re.fullmatch(r"[\d.]{1,64}", syntax) else ""
        raise UnsupportedSlideError(
            path, f"is DICOM of the transfer syntax {named}{shown}, which is not supported", fix
        )
    if header.samples != 3 or header.bits != 8:
        what = f"is DICOM with {header.samples} samples of {header.bits} bits a pixel, not three of 8"
        raise UnsupportedSlideError(path, f"{what}, which is not supported", fix)
    if header.focal_planes > 1:
        what = f"is DICOM of {header.focal_planes} focal planes in one file, which is not supported"
        raise UnsupportedSlideError(path, what, "export one of them")
    if not header.placed:  # OpenSlide crashes on it
        raise SlideError(path, "is TILED_SPARSE DICOM that does not say where its frames lie", "export the slide again")
    compression, colours = COMPRESSION[syntax]
    if header.colours not in colours:
        named = header.colours if header.colours in _COLOURS else "unknown"
        raise UnsupportedSlideError(
            path, f"is DICOM with {compression} in the colours {named}, which is not supported", fix
        )
