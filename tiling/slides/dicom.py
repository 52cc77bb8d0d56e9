"""DICOM slides: which files of a folder are one, by their headers alone.

A slide is the whole-slide images (SOP class VL Whole Slide Microscopy) of one series, whatever their files are called;
other objects beside it are left alone. Of a header only what `Header` holds is read, nothing of the patient.
"""

from __future__ import annotations

import logging
import re
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from tiling.core.errors import SlideError
from tiling.slides.dicom_elements import FRAME_PLACES, elements

_log = logging.getLogger(__name__)

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
IMPLICIT_VR, EXPLICIT_VR, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{n}" for n in ("", ".1", ".1.99", ".2"))
_OTHERWISE_LAID_OUT = (DEFLATED, BIG_ENDIAN)  # of these only the first part of the header is read
COMPRESSION = {
    EXPLICIT_VR: ("NONE", ("RGB",)),
    "1.2.840.10008.1.2.4.50": ("JPEG", ("YBR_FULL_422", "RGB")),
    "1.2.840.10008.1.2.4.90": ("JPEG2000", ("YBR_RCT", "YBR_ICT", "RGB")),
    "1.2.840.10008.1.2.4.91": ("JPEG2000", ("YBR_RCT", "YBR_ICT", "RGB")),
    "1.2.840.10008.1.2.4.201": ("HTJ2K", ("YBR_RCT", "RGB")),
    "1.2.840.10008.1.2.4.202": ("HTJ2K", ("YBR_RCT", "RGB")),
    "1.2.840.10008.1.2.4.203": ("HTJ2K", ("YBR_RCT", "YBR_ICT", "RGB")),
}
"""By transfer syntax (DICOM PS3.6): the compression, and the colours that are read in it."""
_KINDS = {  # by the beginning of their SOP class
    "1.2.840.10008.1.3.10": "directory", "1.2.840.10008.5.1.4.1.1.88.": "report",
    "1.2.840.10008.5.1.4.1.1.66.": "segmentation", "1.2.840.10008.5.1.4.1.1.91.": "annotation",
    "1.2.840.10008.5.1.4.1.1.104.": "document", "1.2.840.10008.5.1.4.1.1.11.": "presentation state",
    _WHOLE_SLIDE: "label or overview",
}  # fmt: skip

_PREAMBLE = 128
_MAGIC = b"DICM"
_SOP_CLASS, _META_SOP_CLASS, _TRANSFER_SYNTAX = 0x00080016, 0x00020002, 0x00020010
_IMAGE_TYPE, _SERIES, _CONCATENATION, _ORGANISATION = 0x00080008, 0x0020000E, 0x00209161, 0x00209311
_FOCAL_PLANES = 0x00480303
_TILE_ROWS, _TILE_COLUMNS = 0x00280010, 0x00280011
_FRAMES, _FRAMES_BEFORE = 0x00280008, 0x00209228
_SAMPLES, _PHOTOMETRIC, _BITS, _COLUMNS, _ROWS = 0x00280002, 0x00280004, 0x00280100, 0x00480006, 0x00480007
_WANTED = {
    _META_SOP_CLASS, _TRANSFER_SYNTAX, _SOP_CLASS, _IMAGE_TYPE, _SERIES, _CONCATENATION, _SAMPLES, _PHOTOMETRIC, _BITS,
    _COLUMNS, _ROWS, _ORGANISATION, _FOCAL_PLANES, _TILE_ROWS, _TILE_COLUMNS, _FRAMES, _FRAMES_BEFORE,
}  # fmt: skip
_FIX = "pass a whole-slide image (VL Whole Slide Microscopy, VOLUME), or the folder of its series"


@dataclass(frozen=True)
class Header:
    """The header of a DICOM file, as far as it says what the file is; numbers are 0 and texts empty where missing."""

    sop_class: str
    transfer_syntax: str
    series: str
    concatenation: str
    """Which image it is a part of, where one is cut into several files."""
    image_type: tuple[str, ...]
    samples: int
    bits: int
    colours: str
    """Photometric interpretation."""
    size: tuple[int, int]
    """Width and height of the whole image (total pixel matrix), pixels."""
    focal_planes: int
    placed: bool
    """Whether it is known where its frames lie: in reading order, or as each of them says."""
    tile: tuple[int, int]
    """Width and height of a frame, pixels."""
    in_order: bool
    """Whether its frames are in reading order."""
    own_places: bool
    """Whether each of its frames says where it lies."""
    beyond: int
    """A place in the file, beyond what was read of it and before its frames."""
    frames: int
    """How many frames it says it holds."""
    frames_before: int
    """How many frames of the image lie in earlier files, where one is cut into several."""

    @property
    def is_pyramid(self) -> bool:
        """Whether it holds pixels of the slide, not its label, overview or thumbnail; true where that is not said."""
        unseen = self.transfer_syntax in _OTHERWISE_LAID_OUT
        return self.sop_class == _WHOLE_SLIDE and ("VOLUME" in self.image_type or unseen)

    @property
    def compression(self) -> str:
        """How its frames are compressed; empty if that is not read."""
        return COMPRESSION.get(self.transfer_syntax, ("", ()))[0]

    @property
    def kind(self) -> str:
        """The kind of object it is, in words."""
        return next((name for start, name in _KINDS.items() if self.sop_class.startswith(start)), "other object")


@dataclass
class DicomSlide:
    """The files of one series of whole-slide images, by name: its pixels, label and overviews."""

    files: list[Path] = field(default_factory=list)
    pyramid: list[tuple[Path, Header]] = field(default_factory=list)
    """Those of its files that hold its pixels."""
    beside: str = ""
    """What else of DICOM its folder holds, where the folder stands for the slide."""

    @property
    def entry(self) -> Path:
        """The file to open the slide by."""
        return self.pyramid[0][0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its finest level."""
        return max(header.size for _, header in self.pyramid)


@dataclass(frozen=True)
class DicomFolder:
    """The DICOM files directly in a folder."""

    slides: tuple[DicomSlide, ...]
    """In the order of their first files."""
    others: Counter[str]
    """How many files are no slide's, by kind."""
    damaged: int
    """How many files have a header that cannot be read: nobody knows whose they are."""


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, whatever it is called; false for what is no file. Raises OSError."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        return f.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC


def after_preamble(f: BinaryIO) -> dict[int, bytes]:
    """The wanted elements of a DICOM file's meta information, behind which the file is left. Raises as `elements`."""
    f.seek(_PREAMBLE + len(_MAGIC))
    return dict(elements(f, _WANTED, explicit=True, last=0x0002FFFF))


def read_header(path: Path) -> Header | None:
    """The header of a DICOM file; None if it is damaged. Raises OSError."""
    try:
        with path.open("rb") as f:
            found = after_preamble(f)
            syntax = _text(found, _TRANSFER_SYNTAX)
            if syntax not in _OTHERWISE_LAID_OUT:
                found |= dict(elements(f, _WANTED, explicit=syntax != IMPLICIT_VR, last=FRAME_PLACES))
            beyond = f.tell()
    except (ValueError, struct.error):
        return None
    sop_class = _text(found, _SOP_CLASS) or _text(found, _META_SOP_CLASS)
    if not sop_class:
        return None
    return Header(
        sop_class=sop_class,
        transfer_syntax=syntax,
        series=_text(found, _SERIES),
        concatenation=_text(found, _CONCATENATION),
        image_type=tuple(part.strip() for part in _text(found, _IMAGE_TYPE).split("\\")),
        samples=_number(found, _SAMPLES),
        bits=_number(found, _BITS),
        colours=_text(found, _PHOTOMETRIC),
        size=(_number(found, _COLUMNS), _number(found, _ROWS)),
        focal_planes=max(1, _number(found, _FOCAL_PLANES)),
        placed=_text(found, _ORGANISATION) != "TILED_SPARSE" or FRAME_PLACES in found,
        tile=(_number(found, _TILE_COLUMNS), _number(found, _TILE_ROWS)),
        in_order=_text(found, _ORGANISATION) == "TILED_FULL" and FRAME_PLACES not in found,
        own_places=FRAME_PLACES in found,
        beyond=beyond,
        frames=int(count) if (count := _text(found, _FRAMES)).isdecimal() else 0,
        frames_before=_number(found, _FRAMES_BEFORE),
    )


def dicom_folder(folder: Path) -> DicomFolder:
    """The DICOM files directly in a folder, hidden ones left out; of other files only the first bytes are read.

    Raises OSError.
    """
    series: dict[str, DicomSlide] = {}
    others, damaged = Counter[str](), 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_dicom(path):
            continue
        header = read_header(path)
        if header is None:
            damaged += 1
        elif header.sop_class != _WHOLE_SLIDE:
            others[header.kind] += 1
        else:
            slide = series.setdefault(header.series, DicomSlide())
            slide.files.append(path)
            if header.is_pyramid:
                slide.pyramid.append((path, header))
    for slide in series.values():
        if not slide.pyramid:
            others[_KINDS[_WHOLE_SLIDE]] += len(slide.files)
    return DicomFolder(tuple(slide for slide in series.values() if slide.pyramid), others, damaged)


def dicom_slide(path: Path) -> DicomSlide | None:
    """The slide that a DICOM file is of, or the one slide of a folder; None for what is no DICOM.

    Raises SlideError if the file is no slide's, if the folder holds no slide, several, or a file that may be any
    slide's; OSError.
    """
    if path.is_dir():
        return _only_slide(path, dicom_folder(path))
    if not is_dicom(path):
        return None
    header = read_header(path)
    if header is None:
        raise SlideError(path, "has a damaged DICOM header", "copy the file again")
    if header.sop_class != _WHOLE_SLIDE:
        raise SlideError(path, f"is no slide but a DICOM {header.kind}", _FIX)
    found = dicom_folder(path.parent)
    if found.damaged:
        _log.warning("%s: DICOM files beside it have damaged headers (%d), left alone", path, found.damaged)
    for slide in found.slides:
        if path in slide.files:
            return slide
    raise SlideError(path, "is a DICOM label or overview without its slide", _FIX)


def _only_slide(path: Path, found: DicomFolder) -> DicomSlide | None:
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(found.others.items()))
    if found.damaged:
        what = f"holds {found.damaged} DICOM file(s) with a damaged header, beside {len(found.slides)} slide(s)"
        raise SlideError(path, what, "copy the folder again, or pass one file of the slide")
    if len(found.slides) > 1:
        sizes = ", ".join("{} x {} px".format(*slide.size) for slide in found.slides)
        raise SlideError(path, f"holds {len(found.slides)} DICOM slides ({sizes})", "pass one file of each instead")
    if not found.slides and others:
        raise SlideError(path, f"holds no DICOM slide but {others}", _FIX)
    return replace(found.slides[0], beside=others) if found.slides else None


def _text(found: dict[int, bytes], tag: int) -> str:
    """A UID or a word of the standard, "" for anything else: free text, which may be of the patient, is neither."""
    text = found.get(tag, b"").decode("ascii", "replace").strip("\0 ")
    return text if re.fullmatch(r"[A-Z0-9_.\\ ]*", text) else ""


def _number(found: dict[int, bytes], tag: int) -> int:
    return int.from_bytes(found.get(tag, b"")[:4], "little")
