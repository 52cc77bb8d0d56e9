"""What a study tells of itself when it is done: `study.json`, and `index.html` that shows all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from inference.exports import OVERLAY
from inference.heatmap import REPORT, HeatmapReport
from inference.report.pages import Link, Picture, Section, write_page
from pipeline.study.config import StudyConfig
from tiling.core.files import canonical_json, write_changed
from tiling.core.versions import RESEARCH_USE, software_versions
from training.evaluation.metrics import METRIC_NAMES
from training.models.folder import MetricSummary, ModelInfo, read_info

STUDY, PAGE = "study.json", "index.html"


@dataclass(frozen=True)
class StudyReport:
    """What became of a study."""

    out: Path
    models: tuple[Path, ...]
    """The model folders, in the order of the trainings."""
    heatmaps: tuple[HeatmapReport, ...]
    failed: Mapping[str, str]
    """slide_id, or the folder of what could not be made of all slides -> reason, as others may read it."""
    test_auroc: float | None
    """AUROC of all tiles of the heatmaps against their annotations; None without both."""
    trained: tuple[bool, ...]
    """Of each model whether it was made now."""
    tiled: tuple[str, ...] = ()
    """The slides that have a store, by id."""
    tests: tuple[Path, ...] = ()
    """Folders of the evaluations of models on tiles."""
    stress: tuple[Path, ...] = ()
    """Folders of the stress tests."""
    slides: Path | None = None
    """Folder of the evaluation of the heatmaps."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What was asked for and cannot be: artefact -> reason."""
    rank: int = 0
    """Which of several processes that train together this is; only the first, 0, knows of the study."""

    @property
    def model(self) -> Path:
        """The model folder, of several trainings the first one's."""
        return self.models[0]


def write_study(report: StudyReport, config: StudyConfig) -> None:
    """Write study.json and index.html, unless they say just that already. Raises OutputError."""
    infos = {_run_of(model): read_info(model) for model in report.models}
    record = {
        "config": told_settings(config),
        "slides": {r.slide_id: {"tiles": r.tiles, "scores": asdict(r.scores)} for r in report.heatmaps},
        "failed": dict(report.failed),
        "skipped": dict(report.skipped),
        "heatmap_tile_auroc": report.test_auroc,
        "models": {name: {"training": info.training, "hashes": info.hashes} for name, info in infos.items()},
        "software": software_versions(),
        "notice": RESEARCH_USE,
    }
    write_changed(report.out / STUDY, canonical_json(record))
    write_page(report.out / PAGE, f"specslide: {report.out.resolve().name}", page_sections(report))


def told_settings(config: StudyConfig) -> dict[str, Any]:
    """The settings that study.json names: those that decide results; the models say how they were trained."""
    machine = {"manifest": True, "out": True, "workers": True, "cluster": True, "train": True}
    return config.model_dump(mode="json", exclude=machine | {"heatmap": {"batch_size", "readers"}})


def page_sections(report: StudyReport) -> list[Section]:
    """What the study's page shows."""
    infos = {_run_of(model): read_info(model) for model in report.models}
    overlays = tuple(Picture(r.folder / OVERLAY, _caption(r), _page_of(r)) for r in report.heatmaps)
    known = "" if report.test_auroc is None else f"AUROC of all their tiles against the truth: {report.test_auroc:.4f}."
    failed = tuple(report.failed.items())
    previews = [report.out / "stores" / f"{slide_id}.png" for slide_id in sorted(report.tiled)]
    return [
        Section("Heatmaps", f"Annotated regions are outlined in white. {known}", pictures=overlays),
        *([Section("Not analysed", columns=("slide", "reason"), rows=failed)] if failed else []),
        *(
            [Section("Left out", columns=("part", "reason"), rows=tuple(report.skipped.items()))]
            if report.skipped
            else []
        ),
        *([_slides_section(report.slides)] if report.slides is not None else []),
        _models_section(report, infos),
        *([_tests_section(report)] if report.tests else []),
        *([_stress_section(report)] if report.stress else []),
        _data_section(infos),
        Section(
            "Tiling",
            "Mask outlined in blue, kept tiles in orange.",
            pictures=tuple(Picture(path, path.stem) for path in previews),
        ),
    ]


def over_trainings(infos: Sequence[ModelInfo], split: str = "test") -> dict[str, str]:
    """Mean and standard deviation (n - 1) of each metric over several models' values on a split, in words; only of
    those that all of them have.
    """
    found = {}
    for name in METRIC_NAMES:
        metrics = [info.metrics.get(split, {}).get(name) for info in infos]
        values = [metric.value for metric in metrics if metric is not None and metric.value is not None]
        if len(values) == len(infos) > 1:
            found[name] = f"{mean(values):.3f} ± {stdev(values):.3f}"
    return found


def _models_section(report: StudyReport, infos: Mapping[str, ModelInfo]) -> Section:
    first = next(iter(infos.values()))
    rows = [
        (name, split, *(_metric(metrics.get(metric)) for metric in METRIC_NAMES))
        for split in sorted({split for info in infos.values() for split in info.metrics})
        for name, info in infos.items()
        if (metrics := info.metrics.get(split)) is not None
    ]
    if whole := over_trainings(list(infos.values())):
        rows.insert(0, (f"mean of {len(infos)}", "test", *(whole.get(metric, "undefined") for metric in METRIC_NAMES)))
    curves = (
        Picture(path, f"learning curve of {_run_of(model)}")
        for model in report.models
        if (path := model.parent / "learning_curve.png").exists()  # it is beside the model, and no part of it
    )
    spread = ", of the mean the standard deviation over trainings" if whole else ""
    return Section(
        "Model" if len(infos) == 1 else "Models",
        f"{first.backbone}, {first.training['epochs']} epochs, sd_lambda {first.training['sd_lambda']}. "
        f"In brackets the 95% interval over cases{spread}.",
        ("training", "split", *METRIC_NAMES.values()),
        tuple(rows),
        tuple(curves),
        tuple(Link(m / "README.md", f"model card of {_run_of(m)}") for m in report.models),
    )


def _metric(metric: MetricSummary | None) -> str:
    return "undefined" if metric is None else _interval(metric.value, metric.low, metric.high)


def _tests_section(report: StudyReport) -> Section:
    several = len(report.tests) > 1
    pictures = [
        Picture(path, f"{folder.name + ': ' if several else ''}{_words(path)}")
        for folder in report.tests
        for path in sorted(folder.glob("*.png"))
    ]
    links = tuple(Link(f / "evaluation.md", f"all figures{' of ' + f.name if several else ''}") for f in report.tests)
    return Section("Test tiles", "What the models say of tiles they have not seen.", (), (), tuple(pictures), links)


def _stress_section(report: StudyReport) -> Section:
    text = "How far the models stand what another scanner or laboratory changes: test tiles, shifted."
    several = len(report.stress) > 1
    pictures = tuple(
        Picture(f / "stress.png", f"shifted tiles{': ' + f.name if several else ''}") for f in report.stress
    )
    links = tuple(Link(f / "stress.csv", f"all figures{' of ' + f.name if several else ''}") for f in report.stress)
    return Section("Shifted tiles", text, pictures=pictures, links=links)


def _slides_section(folder: Path) -> Section:
    found = json.loads((folder / "slides.json").read_bytes())
    auroc = {name: score["auroc"] for name, score in found["scores"].items()}
    rows = tuple((name, _interval(m["value"], m["low"], m["high"])) for name, m in auroc.items())
    count = len(found["slides"])
    return Section(
        "Test slides",
        f"How well {count} slides of the split {found['split']} are told apart by a score of their heatmaps.",
        ("score", "AUROC (95% interval over cases)"),
        rows,
        (Picture(folder / "slides.png", "slides, and lesions where they are known"),),
        (Link(folder / "slides.md", "all figures"),),
    )


def _data_section(infos: Mapping[str, ModelInfo]) -> Section:
    """What was learned from: once, where all trainings share it."""
    shared = len({info.hashes.get("data") for info in infos.values()}) == 1
    rows = [
        ("all" if shared else name, split, s.cases, s.slides, f"{s.tiles:,}")
        for name, info in list(infos.items())[: 1 if shared else None]
        for split, s in info.data.items()
    ]
    return Section("Data", columns=("training", "split", "cases", "slides", "tiles"), rows=tuple(rows))


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _words(picture: Path) -> str:
    """What a picture of an evaluation shows, by its name `model_performance.png`."""
    part = picture.stem.removeprefix("model_")
    return {"performance": "performance", "gallery": "tiles most surely right and wrong"}.get(part, f"by {part}")


def _run_of(model: Path) -> str:
    """The name of a model's training: `seed-0`, or of the only one `training`."""
    return model.parent.name


def _page_of(report: HeatmapReport) -> Path | None:
    """The slide's own page, which a click on its picture opens; results of earlier versions have none."""
    page = report.folder / REPORT
    return page if page.exists() else None


def _caption(report: HeatmapReport) -> str:
    scores = report.scores
    if scores.mean is None:
        return f"{report.slide_id}: no tissue"
    said = f"{report.slide_id}: mean {scores.mean:.2f}, top 5% {scores.top5_mean:.2f}, {report.tiles} tiles"
    return f"{said}. {report.warning}" if report.warning else said
