"""What pydicom raises for damaged files becomes an error that quotes nothing of the file. Needs pydicom when called."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiling.core.errors import InputError

# What pydicom and the codecs raise for damaged files, beside pydicom's own exceptions.
_DAMAGE = (
    OSError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError, NotImplementedError,
    EOFError, MemoryError, struct.error,
)  # fmt: skip


@contextmanager
def reading_dicom(path: Path) -> Iterator[None]:
    """Raise InputError for what pydicom raises inside, of a damaged file; it parses values when they are asked for.

    Its warnings, of values that are written otherwise than the standard wants, are not shown.
    """
    from pydicom.errors import BytesLengthException, InvalidDicomError  # neither is a ValueError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (*_DAMAGE, BytesLengthException, InvalidDicomError) as error:
        raise InputError(path, f"is no DICOM that can be read ({type(error).__name__})", "replace it") from None
