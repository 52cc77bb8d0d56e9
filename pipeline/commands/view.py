"""Slides in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import console
from pipeline.commands.options import EncoderOfBags, ManifestOption, WeightsOfBags, model_folders
from pipeline.meter import progress_of
from tiling.core.arrays import Icc
from tiling.core.errors import ConfigError

if TYPE_CHECKING:  # imported when needed
    from inference.viewer.cohort import Cohort
    from inference.viewer.explainer import Explainer

_LOCAL = "127.0.0.1"


def view(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Heatmaps, stores of tiles or features, slides, or folders that hold such: a study.", readable=False
        ),
    ] = None,
    manifest: ManifestOption = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Let readers draw, and save it as DIR/READER/SLIDE.geojson in this folder.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write static files into this folder, for any web server, and serve nothing.")
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="Model of the heatmaps, folder or name, to show on which parts of a pinned tile it depends. Repeated: "
            "several, or those of an ensemble."
        ),
    ] = None,
    encoder: EncoderOfBags = None,
    weights: WeightsOfBags = None,
    icc: Annotated[
        Icc,
        typer.Option(help="Colours of slides: as they are in their files, or in sRGB by the ICC profiles in these."),
    ] = "none",
    both_colours: Annotated[
        bool,
        typer.Option("--both-colours", help="With --export: slides that have an ICC profile in both colours."),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of this machine; 0: any that is free.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; on any but this machine's own, others can connect.")
    ] = _LOCAL,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the browser.")] = True,
) -> None:
    """Slides under their heatmaps in the browser: zoom to the cells, move the threshold, see each tile's numbers.

    Slides are drawn from their files where these are among PATHS or in the manifest, else from stores. Where nothing
    was predicted, a store's columns are shown: tissue, quality, annotations. Only who has the printed address can look,
    and nothing is fetched from elsewhere. Ctrl-C ends it.

    Examples:

    `specslide view heatmaps slides`

    `specslide view heatmaps --manifest slides.csv`, where slides are called by `slide_id`

    `specslide view features slides`, the tiles of feature stores, and what is known of them

    `specslide view heatmaps slides --annotations marks`, where readers draw what label reads

    `specslide view heatmaps slides --export shared/view`, as files that a web server shows without specslide

    `specslide view heatmaps slides --model run/model`, where a pinned tile shows on which parts of it the model depends
    (`pip install 'specslide[occlusion]'`)

    `specslide view study --no-browser --port 8765`, then on your own machine `ssh -L 8765:localhost:8765 workstation`
    """
    from inference.viewer.cohort import find_cohort
    from tiling.manifest import slides_of_manifest

    if not paths and manifest is None:
        raise ConfigError("the arguments", "name nothing to look at", "pass heatmaps, stores, slides or --manifest")
    if model and export is not None:
        raise ConfigError("--model", "is asked while the viewer serves, and an export serves nothing", "leave it out")
    rows = [] if manifest is None else slides_of_manifest(manifest).rows
    cohort = find_cohort(paths or [], rows)
    for path, why in cohort.refused.items():
        console.note(f"{path}: {why}")
    try:
        from inference.viewer.marks import MarkFolder
        from inference.viewer.pictures import RECOLOURED_CACHE_BYTES, Pictures
        from inference.viewer.run import serve
        from inference.viewer.site import Site
        from inference.viewer.workers import Workers
    except ModuleNotFoundError as error:
        raise ConfigError("view", f"needs {error.name}, which is missing", "pip install 'specslide[view]'") from None
    workers = Workers()
    pictures = Pictures(cohort.slides, opener=workers.open, icc=icc)
    other: Icc = "none" if icc == "srgb" else "srgb"
    recoloured = Pictures(cohort.slides, RECOLOURED_CACHE_BYTES, workers.open, other)
    if export is not None:
        from inference.viewer.export import export_site

        with progress_of("export", "files") as progress:
            site = Site(cohort, pictures, recoloured=recoloured if both_colours else None)
            count = export_site(site, export, progress)
        console.say(f"{count:,} files in {export}: look at them by `python -m http.server -d {export}`")
        return
    marks = None if annotations is None else MarkFolder(annotations)
    explainer = _explainer(cohort, model, encoder, weights) if model else None
    site = Site(cohort, pictures, drawable=marks is not None, recoloured=recoloured, explainer=explainer)
    serve(site, host, port, say=console.say, open_browser=browser, marks=marks)


def _explainer(cohort: Cohort, models: list[Path], encoder: str | None, weights: str | None) -> Explainer:
    """What asks the models of a cohort's heatmaps. Raises ConfigError and ModelError as `load_positives`."""
    from inference.explain import load_positives
    from inference.viewer.explainer import Explainer

    made = [result.summary.made_from["model_sha256"] for shown in cohort.slides for result in shown.results]
    return Explainer(load_positives(model_folders(models), made, encoder, weights))
