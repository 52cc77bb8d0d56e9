"""What a slide is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.commands.options import SlideMpp, found_slides
from pipeline.commands.outcomes import show_outcomes
from tiling.core.errors import SpecslideError

Job = tuple[Path, float | None]
"""A slide, and its given micrometres per pixel."""
_IN_ONE_LINE = ("size", "micrometres per pixel", "vendor", "compression", "can be tiled")


def info(
    slides: Annotated[
        list[Path], typer.Argument(help="A slide; or several, and folders of them: a line each.", readable=False)
    ],
    slide_mpp: SlideMpp = None,
) -> None:
    """Size, levels, scale, vendor and compression of a slide, what reads it, and whether it can be tiled.

    A part of every level is decoded as a check. A slide that cannot be opened is reported, and the others go on.

    Examples:

    `specslide info slide.svs`

    `specslide info wsis`
    """
    found = found_slides(slides)
    jobs: list[Job] = [(path, slide_mpp) for path in found.slides]
    from pipeline.execution.pool import default_workers, run_slides

    outcomes = run_slides(facts, jobs, workers=default_workers(), title="slides")  # a crash in a decoder costs one
    if len(outcomes) == 1 and not found.unreadable:
        (only,) = outcomes
        if not only.result:
            console.show_error(only.error or "")
            raise typer.Exit(1)
        console.show_table(str(only.job[0]), ("", ""), only.result.items())
        return
    shown = [(str(o.job[0]), _line(o.result) if o.result else "", o.error or "") for o in outcomes]
    show_outcomes("slides", [*shown, *((path, "", why) for path, why in found.unreadable.items())])


def facts(job: Job, progress: object = None) -> dict[str, str]:
    """The facts of a slide, by name. Raises SlideError if it cannot be opened."""
    from tiling import Slide

    path, slide_mpp = job
    with Slide(path, mpp=slide_mpp) as opened:
        try:
            mpp, tileable = f"{opened.mpp:.6g}", "yes"
        except SpecslideError as error:
            mpp, tileable = "unknown", f"no: {error.what}; {error.fix}"
        try:
            opened.try_levels()
        except SpecslideError as error:
            tileable = f"no: {error.what}; {error.fix}"
        try:
            profile = "yes, for --icc srgb" if opened.has_profile else "none"
        except SpecslideError as error:
            profile = f"{error.what}; {error.fix}"
        levels = "\n".join(
            f"{number}: {level.width} x {level.height}, 1/{level.downsample:.6g}"
            for number, level in enumerate(opened.levels)
        )
        bounds = opened.frame.bounds
        return {
            "size": f"{opened.width} x {opened.height} px",
            "scanned part": "all"
            if bounds is None
            else f"{bounds.width0} x {bounds.height0} px, from x {bounds.x0}, y {bounds.y0} on",
            "micrometres per pixel": mpp,
            "objective power": f"{opened.objective_power:g}" if opened.objective_power else "unknown",
            "vendor": opened.vendor,
            "compression": opened.compression(),
            "ICC profile": profile,
            "levels": levels,
            **({"plane": opened.plane} if opened.plane else {}),
            "read with": opened.reader,
            "can be tiled": tileable,
        }


def _line(known: dict[str, str]) -> str:
    size, mpp, vendor, compression, tileable = (known[name] for name in _IN_ONE_LINE)
    return f"{size}, {mpp} µm/px, {vendor}, {compression}; can be tiled: {tileable}"
