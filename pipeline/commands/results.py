"""What other programs predicted, as heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inference.config import OutputConfig
from pipeline.commands.options import Overwrite, SlideMpp, found_slides, require_there
from pipeline.commands.outcomes import heatmap_outcome, show_outcomes
from pipeline.commands.settings import Settings, options_of, settings_of
from tiling.core.errors import SpecslideError


@options_of(
    OutputConfig,
    common=("formats", "region_threshold", "min_region_um2", "region_smoothing_um"),
    without=("occlusion",),  # which asks the model
)
def import_results(
    files: Annotated[
        list[Path], typer.Argument(help="Tables, JSON or GeoJSON, or folders of WSInfer's results.", readable=False)
    ],
    slides: Annotated[
        list[Path], typer.Option("--slides", "-s", help="The slides, or folders of them; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the heatmaps, one folder per slide.")],
    settings: Settings,
    probability: Annotated[
        list[str] | None,
        typer.Option(help="Column or measurement that is a class's probability, if they are not called prob_<class>."),
    ] = None,
    positive_class: Annotated[
        str | None, typer.Option(help="The class that heatmaps show; by default the last that is not called normal.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="From this probability on a tile is called; no file says it.")
    ] = 0.5,
    tile_px0: Annotated[
        int | None, typer.Option(min=1, help="Side of a tile, level-0 pixels, if the files lack it (QuPath's tables).")
    ] = None,
    slide_mpp: SlideMpp = None,
    overwrite: Overwrite = False,
) -> None:
    """Heatmaps of what WSInfer, TIAToolbox or QuPath predicted, for `evaluate-slides`, `view` and the exports.

    WSInfer: its folder of results, or tables in it. TIAToolbox before 2.0: N.raw.json with probabilities, one slide at
    a time. QuPath: tiles or detections, as a table of measurements or GeoJSON. What a program does not say
    (calibration, unlike tiles) stays unknown, and the report says so.

    Examples:

    `specslide import results wsinfer-results --slides slides --out heatmaps`

    `specslide import results measurements.tsv --slides slides --tile-px0 512 --probability Tumour --out heatmaps`
    """
    from inference.foreign_results import result_files
    from inference.import_results import import_results as verb
    from inference.import_results import results_of_slides

    outputs = settings_of(OutputConfig, settings, "import options")
    require_there(*files)
    named = found_slides(slides).slides
    require_there(*named)
    columns, rows = tuple(probability or ()), []
    for path in result_files(files):
        try:
            for slide in results_of_slides(path, named, columns):
                report = verb(
                    path, slide, out, probabilities=columns, positive_class=positive_class, threshold=threshold,
                    tile_px0=tile_px0, slide_mpp=slide_mpp, outputs=outputs, overwrite=overwrite,
                )  # fmt: skip
                rows.append(heatmap_outcome(report))
        except SpecslideError as error:
            rows.append((path.name, "", str(error)))
    show_outcomes(f"heatmaps in {out}", rows)
