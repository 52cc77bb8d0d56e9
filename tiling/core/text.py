"""Numbers and names as text for people."""

from __future__ import annotations

import math

import numpy as np


def threshold_text(value: float) -> str:
    """A threshold in [0, 1], however near to an end, without powers of ten: three digits of what parts it from that.

    So 0.00012 is not 0, and 0.9996 not 1.
    """
    from_end = min(value, 1 - value)
    digits = 3 if from_end <= 0 else max(3, 2 - math.floor(math.log10(from_end)))
    return np.format_float_positional(value, precision=digits, unique=False, fractional=True, trim="-")


def printable(text: str) -> str:
    """Text made fit for one line of a picture, and for XML: what cannot be printed is replaced."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def counted(count: int, noun: str) -> str:
    """`1 seed`, `2,000 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
