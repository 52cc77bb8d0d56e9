"""The demo of slide labels: synthetic slides with a label each, and no annotation, to heatmaps of attention.

Slides -> features by the packaged encoder -> a model of bags -> its test on held-out slides -> their heatmaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inference.bag_heatmap import make_bag_heatmap
from inference.config import EmbedConfig, EncoderConfig
from inference.report.cohort import write_cohort_index
from inference.reports import HeatmapReport
from pipeline.demo.synthetic import make_cohort
from pipeline.execution.embed_jobs import embed_all
from tiling.core.errors import SlideError
from tiling.manifest import read_manifest
from tiling.stores.features import feature_path
from training import BagConfig, evaluate_models, labelled_tiles, load_bag_model, samples_from_features, train
from training.evaluation.results import Evaluation

SLIDES, SIZE_PX = 30, (1024, 1024)
ENCODER = EncoderConfig(mpp=0.5, tile_px=128)
TRAIN = BagConfig(epochs=30, batch_size=6, threads=2)


@dataclass(frozen=True)
class SlideLabelReport:
    """The result of the demo."""

    model: Path
    tested: Evaluation
    heatmaps: tuple[HeatmapReport, ...]
    """Of the held-out slides."""


def run_slide_labels(out: Path, *, seed: int, say: Callable[[str], None]) -> SlideLabelReport:
    """Run the demo into `out`; what is there already is kept.

    Args:
        out: The folder of the demo.
        seed: Of the cohort and the training.
        say: Called with what is about to be done, in words.

    Returns:
        What was made.

    Raises:
        SpecslideError: If a part cannot be made.
    """
    say(f"making a cohort of {SLIDES} synthetic slides in {out / 'cohort'}; of their annotations nothing is read")
    manifest = make_cohort(out / "cohort", n_slides=SLIDES, seed=seed, size_px=SIZE_PX)
    rows = {row.slide_id: row for row in read_manifest(manifest)}
    say("embedding the slides by ImageNet's EfficientNet-Lite0")
    _, failed = embed_all([*rows.values()], ENCODER, out / "features", EmbedConfig(), overwrite=True)
    if failed:
        raise SlideError(*next(iter(failed.items())), "run the same command again")
    say("training on the slides' labels")
    config = TRAIN.model_copy(update={"seed": seed})
    run = train(samples_from_features(out / "features", manifest, config), out / "training", config, overwrite=True)
    model = load_bag_model(run.model)
    test = labelled_tiles(model.info, bags=out / "features", manifest=manifest).split_of("test")
    say("testing on held-out slides, and making their heatmaps")
    tested = evaluate_models([model], test, out / "evaluation")
    heatmaps = [
        make_bag_heatmap(
            feature_path(out / "features", slide_id), model, out / "heatmaps", source=rows[slide_id].slide_path,
            slide_id=slide_id, overwrite=True,
        )
        for slide_id in test.slide_id.tolist()
    ]  # fmt: skip
    write_cohort_index(out / "heatmaps", {})
    return SlideLabelReport(run.model, tested, tuple(heatmaps))
