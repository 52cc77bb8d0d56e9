"""What a slide is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import SlideMpp
from tiling.core.errors import SpecslideError


def info(
    slide: Annotated[
        Path, typer.Argument(help="A slide file, or the folder of a DICOM or OME-Zarr slide.", readable=False)
    ],
    slide_mpp: SlideMpp = None,
) -> None:
    """Size, levels, scale, vendor and compression of a slide, what reads it, and whether it can be tiled.

    Of each level a part is decoded before that is said.

    Example: `specslide info slide.svs`
    """
    from tiling import Slide

    with Slide(slide, mpp=slide_mpp) as opened:
        try:
            mpp, tileable = f"{opened.mpp:.6g}", "yes"
        except SpecslideError as error:
            mpp, tileable = "unknown", f"no: {error.what}; {error.fix}"
        try:
            opened.try_levels()
        except SpecslideError as error:
            tileable = f"no: {error.what}; {error.fix}"
        levels = "\n".join(
            f"{number}: {level.width} x {level.height}, 1/{level.downsample:.6g}"
            for number, level in enumerate(opened.levels)
        )
        bounds = opened.frame.bounds
        facts = {
            "size": f"{opened.width} x {opened.height} px",
            "scanned part": "all"
            if bounds is None
            else f"{bounds.width0} x {bounds.height0} px, from x {bounds.x0}, y {bounds.y0} on: QuPath's 0, 0",
            "micrometres per pixel": mpp,
            "objective power": f"{opened.objective_power:g}" if opened.objective_power else "unknown",
            "vendor": opened.vendor,
            "compression": opened.compression(),
            "levels": levels,
            **({"plane": opened.plane} if opened.plane else {}),
            "read with": opened.reader,
            "can be tiled": tileable,
        }
    console.show_table(str(slide), ("", ""), facts.items())
