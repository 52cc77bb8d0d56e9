"""Regions as ASAP XML, one group of polygons for the positive class.

ASAP draws no holes: a region with holes is written as pieces without any that touch along straight cuts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import quoteattr

from inference.colours import class_colour
from inference.maps.regions import Region, without_holes
from inference.prediction import Prediction
from tiling.core.text import printable


def write_asap(prediction: Prediction, regions: Iterable[Region], path: Path) -> None:
    """Write the regions, level-0 pixels of the whole picture, which ASAP shows, polygon by polygon. Raises OSError."""
    group = quoteattr(printable(prediction.positive_class))
    colour = '"#{:02X}{:02X}{:02X}"'.format(*class_colour(prediction.positive))
    with path.open("w", encoding="utf-8") as f:
        f.write('<?xml version="1.0" encoding="UTF-8"?>\n<ASAP_Annotations>\n<Annotations>\n')
        for number, region in enumerate(regions):
            for part, piece in enumerate(without_holes(region.outline)):
                name = f'"region {number}.{part}"'
                f.write(f'<Annotation Name={name} Type="Polygon" PartOfGroup={group} Color={colour}>\n<Coordinates>\n')
                for order, (x, y) in enumerate(piece.exterior.coords[:-1]):
                    f.write(f'<Coordinate Order="{order}" X="{x!r}" Y="{y!r}"/>\n')
                f.write("</Coordinates>\n</Annotation>\n")
        f.write(f'</Annotations>\n<AnnotationGroups>\n<Group Name={group} PartOfGroup="None" Color={colour}>\n')
        f.write("<Attributes/>\n</Group>\n</AnnotationGroups>\n</ASAP_Annotations>\n")
