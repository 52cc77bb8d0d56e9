"""What pictures share: the lengths of scale bars. Pure."""

from __future__ import annotations

import numpy as np


def nice_length(about: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not longer than `about`."""
    power = 10.0 ** np.floor(np.log10(about))
    return float(max(m * power for m in (1, 2, 5) if m * power <= about * (1 + 1e-9)))


def length_text(um: float) -> str:
    """A length of so many micrometres, for a scale bar: "200 µm", from 1000 on "2 mm"."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
