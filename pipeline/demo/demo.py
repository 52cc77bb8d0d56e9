"""The demo: a synthetic cohort with known tumours through a whole study, then a real slide to its heatmap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.config import PredictConfig
from inference.exports import OVERLAY
from inference.heatmap import make_heatmap
from inference.models.load import load_model
from inference.reports import HeatmapReport
from pipeline.demo.real_slide import find_real_slide
from pipeline.demo.synthetic import make_cohort
from pipeline.study.config import HeatmapConfig, StudyConfig
from pipeline.study.run import StudyReport, run
from tiling import TilingConfig, tile_slide
from tiling.core.artefact import Recipe, content_hash, seal
from tiling.core.pages import Picture, Section, write_page
from training import TrainConfig

# A small network from scratch at half scale: minutes on two cores, and the synthetic tumours are easy to tell.
TRAIN = TrainConfig(
    backbone="resnet10t", weights="none", input_px=64, epochs=5, batch_size=32, learning_rate=2e-3, threads=2
)
MPP = 0.5
TILE_PX = 128
MODEL: Final = "breast-idc"
"""A real model; see docs/models."""


@dataclass(frozen=True)
class DemoReport:
    """The result of the demo."""

    page: Path
    study: StudyReport
    real: HeatmapReport
    """The real slide's heatmap by the study's model."""
    by_real_model: HeatmapReport
    """The same slide's by the model that comes with the package."""


def run_demo(out: Path, *, slide: Path | None, seed: int, say: Callable[[str], None]) -> DemoReport:
    """Run the demo into `out`: a study over a synthetic cohort, then heatmaps of a real slide, one by a real model.

    Args:
        out: The folder of the demo.
        slide: The real slide; None: it is looked for, and fetched.
        seed: Of the cohort and the training.
        say: Called with what is about to be done, in words.

    Returns:
        What was made.

    Raises:
        SpecslideError: If a part cannot be made.
    """
    real_slide = find_real_slide(slide)  # first: without it there is no use in waiting
    say(f"making a cohort of synthetic slides in {out / 'cohort'}")
    manifest = make_cohort(out / "cohort", seed=seed)
    say("running the study: tile, train, heatmap")
    tiling = TilingConfig(mpp=MPP, tile_px=TILE_PX)
    train = TRAIN.model_copy(update={"seed": seed})
    study = run(StudyConfig(manifest=manifest, out=out / "study", tile=tiling, train=train, heatmap=HeatmapConfig()))
    say(f"tiling the real slide {real_slide.name} and making its heatmaps, by the study's model and by {MODEL}")
    tiled = tile_slide(real_slide, out / "real" / "stores", tiling, overwrite=True)
    real = make_heatmap(tiled.store, load_model(study.model), out / "real", PredictConfig(), overwrite=True)
    by_real_model = make_heatmap(
        real_slide, load_model(MODEL), out / f"real-{MODEL}", PredictConfig(overlap=0.5), overwrite=True
    )
    page = out / "index.html"
    shown = _real_section(tiled.store.with_suffix(".png"), real, by_real_model)
    write_page(page, "specslide demo", [shown, VIEWER, *study.sections])
    heatmaps = {"heatmap": content_hash(real.folder), MODEL: content_hash(by_real_model.folder)}
    seal(out, Recipe("demo", {"study": content_hash(study.out), **heatmaps}, {"seed": seed}), (page.name,))
    return DemoReport(page, study, real, by_real_model)


VIEWER: Final = Section(
    "The slides in the browser",
    "Down to the cells, under their heatmaps, with a threshold that is moved. In a terminal, in this folder: "
    "specslide view . --manifest cohort/manifest.csv",
)


def _real_section(preview: Path, real: HeatmapReport, by_real_model: HeatmapReport) -> Section:
    text = (
        "CMU-1-Small-Region, skin (CC0, OpenSlide test data). The study's model has seen synthetic slides only: its "
        "heatmap shows that a real slide goes through, not that its probabilities mean anything. "
        f"{MODEL}, which comes with specslide, was trained on carcinoma of the breast (H&E): none is here, and what it "
        "marks shows what a real model says of tissue that it was not made for."
    )
    pictures = (
        Picture(real.folder / OVERLAY, f"heatmap by the study's model. {real.warning or ''}"),
        Picture(by_real_model.folder / OVERLAY, f"heatmap by {MODEL}. {by_real_model.warning or ''}"),
        Picture(preview, "its tissue mask and tiles"),
    )
    return Section("A real slide", text, pictures=pictures)
