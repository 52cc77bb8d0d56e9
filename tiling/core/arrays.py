"""Names for numpy arrays by what they hold. Shapes are said where they are used; pictures are [y, x]."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]
BoolArray = NDArray[np.bool_]
UInt8Array = NDArray[np.uint8]
Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
FeatureType = Literal["float16", "float32"]
"""As what features are stored."""
Icc = Literal["none", "srgb"]
"""The colours of a slide's pixels: as they are in its file, or in sRGB by the file's ICC profile."""
