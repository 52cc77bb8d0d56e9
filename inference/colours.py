"""The colours of heatmaps and classes: perceptually uniform, and distinct to colour-blind readers."""

from __future__ import annotations

HEATMAP = "viridis"
_OKABE_ITO = (
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
)


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB (0 to 255) of a class, from the palette of Okabe and Ito."""
    return _OKABE_ITO[index % len(_OKABE_ITO)]
