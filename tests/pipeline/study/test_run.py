"""A whole study over a tiny cohort: what is unchanged is kept, what changed is redone, a bad slide stops nothing."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from pipeline import cli, run
from pipeline.demo import demo
from pipeline.demo.demo import run_demo
from pipeline.demo.synthetic import make_cohort, make_slide
from pipeline.execution.dask_config import ClusterConfig
from pipeline.execution.jobs import load_models
from pipeline.study import stages
from pipeline.study.config import EvaluateConfig, HeatmapConfig, RepeatsConfig, StressConfig, StudyConfig
from pipeline.study.ledger import read_ledger
from pipeline.study.plan import plan
from pipeline.study.run import StudyReport
from pipeline.study.stages import Artefact, Stage, Study
from pipeline.study.status import read_status
from tests.conftest import pictures_left_out
from tests.pipeline.conftest import RunCli, listing, once
from tiling import TileStore, TilingConfig
from tiling.annotations.classes import ClassRules
from tiling.core.artefact import Recipe, atomic_folder, content_hash, folder_faults, locked_folder, state
from tiling.core.errors import ConfigError, InputError, OutputError, StoppedError
from tiling.core.pages import Section
from training import TrainConfig, evaluate_models
from training.models.info import read_info
from training.selection.candidates import TuneConfig

TINY = TrainConfig(
    backbone="test_resnet", weights="none", input_px=32, epochs=1, batch_size=16, bootstrap_resamples=20, threads=1
)
TILING = TilingConfig(mpp=1.0, tile_px=64)
FAST = EvaluateConfig(resamples=20)
Stamps = dict[str, tuple[int, int]]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six synthetic slides of 1024 x 1024 px; read only."""
    return once(tmp_path_factory, "cohort", partial(make_cohort, n_slides=6, seed=5, size_px=(1024, 1024)))


@pytest.fixture(scope="session")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, StudyReport]:
    """The study of that cohort and its first report; read only unless copied."""
    config = StudyConfig(
        manifest=cohort / "manifest.csv", out=cohort.with_name("results"), tile=TILING, train=TINY, evaluate=FAST,
        workers=2,
    )  # fmt: skip
    with pictures_left_out():
        made = once(tmp_path_factory, "results", lambda out: run(config))
        out = Path(shutil.copytree(made, tmp_path_factory.mktemp("study") / "results"))
        config = config.model_copy(update={"out": out})
        return config, run(config)  # which keeps all there is


@pytest.fixture
def copied(finished: tuple[StudyConfig, StudyReport], tmp_path: Path, one_process: None, undrawn: None) -> StudyConfig:
    """A copy of the finished study, with its stamps, to be run again in this process, which starts sooner."""
    config, _ = finished
    out = Path(shutil.copytree(config.out, tmp_path / "results"))
    return config.model_copy(update={"out": out, "workers": None})


def stamps(folder: Path) -> Stamps:
    """Inode and time of change of every file: equal only if nothing was written."""
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def artefact_of(name: str) -> str:
    """The artefact of a study that a file belongs to."""
    parts = name.split("/")
    two = parts[0] in ("heatmaps", "evaluation") or (len(parts) > 1 and parts[1].startswith(("seed-", "fold-")))
    if parts[0] == "stores":
        return f"stores/{parts[1].split('.')[0]}.zarr"
    several = len(parts) > 2 and parts[2].startswith(("seed-", "fold-"))
    return "/".join(parts[: 3 if several else 2 if two else 1])


def changed(before: Stamps, after: Stamps) -> set[str]:
    """The artefacts of a study in which a file was written, added or removed; not the ledger, nor the seal."""
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return {artefact_of(name) for name in names} - {"ledger.jsonl", "commit.json"}


def content_of(folder: Path) -> dict[str, str]:
    """All there is in a study but the times: relative path -> hash."""
    return {name: value for name, value in listing(folder).items() if name != "ledger.jsonl"}


class Links(HTMLParser):
    """What a page points to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [unquote(value) for name, value in attrs if name in ("href", "src") and value]


def check_page(page: Path, *names: str) -> None:
    """Every link is a file beside the page, nothing comes from a network, and the names are shown."""
    links = Links(page).found
    assert links
    for link in links:
        assert not Path(link).is_absolute()
        assert (page.parent / link).is_file(), link
    text = page.read_text(encoding="utf-8")
    assert "://" not in text
    assert "For research use only" in text
    for name in names:
        assert name in text


def test_a_study_leaves_everything_it_promises(finished: tuple[StudyConfig, StudyReport], cohort: Path) -> None:
    config, report = finished
    names = {f"synthetic-{i:02d}" for i in range(6)}
    assert (report.failed, report.out) == ({}, config.out)
    assert ("made", "training") in {(event.event, event.name) for event in read_ledger(config.out)}
    assert {p.name for p in config.out.iterdir()} == {
        "stores", "training", "evaluation", "heatmaps", "index.html", "study.json", "ledger.jsonl", "commit.json",
    }  # fmt: skip
    assert {p.name for p in (config.out / "evaluation").iterdir()} == {"tiles", "slides"}
    assert (config.out / "evaluation/slides/slides.json").exists()
    assert {p.name for p in (config.out / "evaluation/tiles").iterdir()} == {
        "evaluation.json", "evaluation.md", "evaluation.html", "predictions.csv", "commit.json",
        "model_performance.png", "model_gallery.png", "model_site.png", "model_scanner.png",
    }  # fmt: skip
    assert {p.name for p in (config.out / "stores").iterdir()} == {f"{n}{e}" for n in names for e in (".zarr", ".png")}
    assert {r.slide_id for r in report.heatmaps} == {"synthetic-04", "synthetic-05"}, "the test split of the manifest"
    for folder in (*(config.out / "stores").glob("*.zarr"), report.model, *(r.folder for r in report.heatmaps)):
        assert folder_faults(folder) == []
    check_page(config.out / "index.html", "synthetic-04", "synthetic-05", "learning curve")


def test_the_record_says_what_was_done(finished: tuple[StudyConfig, StudyReport], cohort: Path) -> None:
    config, report = finished
    text = (config.out / "study.json").read_text()
    record: dict[str, Any] = json.loads(text)
    assert record["slides"].keys() == {"synthetic-04", "synthetic-05"}
    assert record["failed"] == {}
    assert record["config"]["tile"]["tile_px"] == 64
    assert record["heatmap_tile_auroc"] == report.test_auroc
    assert report.test_auroc is not None
    assert 0 <= report.test_auroc <= 1
    assert str(config.out.parent) not in text
    assert str(cohort.parent) not in text


ALL_STORES = {f"stores/synthetic-{i:02d}.zarr" for i in range(6)}
TESTED = {"heatmaps/synthetic-04", "heatmaps/synthetic-05"}
REPORTS = {"study.json", "index.html"}
AFTER_TRAINING = {"evaluation/tiles", "evaluation/slides", *TESTED, *REPORTS}


def of(section: str, **changes: object) -> Callable[[StudyConfig, Path], StudyConfig]:
    """A change of settings of one section, or of the study itself ("")."""

    def change(config: StudyConfig, folder: Path) -> StudyConfig:
        if not section:
            return config.model_copy(update=changes)
        return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})

    return change


def of_manifest(column: str, slide_id: str, edit: Callable[[str], str]) -> Callable[[StudyConfig, Path], StudyConfig]:
    """A change of one cell of the manifest."""

    def change(config: StudyConfig, folder: Path) -> StudyConfig:
        rows = absolute_rows(config.manifest.parent)
        for row in rows:
            if row["slide_id"] == slide_id:
                row[column] = edit(row[column])
        return config.model_copy(update={"manifest": write_manifest(rows, folder)})

    return change


def other_slide(config: StudyConfig, folder: Path) -> StudyConfig:
    """Another slide under a name of before: younger than its store, as a new file is."""
    rows = absolute_rows(config.manifest.parent)
    slide = make_slide(folder / "other.tif", seed=77, tumour=False, size_px=(1024, 1024))
    assert slide is not None or (folder / "other.tif").exists()
    for row in rows:
        if row["slide_id"] == "synthetic-05":
            row["slide_path"] = str(folder / "other.tif")
    return config.model_copy(update={"manifest": write_manifest(rows, folder)})


CHANGES: dict[str, tuple[Callable[[StudyConfig, Path], StudyConfig], set[str]]] = {
    "nothing": (of(""), set()),
    "coarser slides, of which there is none": (of("tile", coarser_ok=True), REPORTS),
    "how many processes": (of("", workers=1), set()),
    "threads of torch": (of("train", threads=2), set()),
    "how many tiles at once": (of("heatmap", batch_size=7), set()),
    "resamples": (of("evaluate", resamples=10), {"evaluation/tiles", "evaluation/slides", *REPORTS}),
    "groups": (of("evaluate", by=("site",)), {"evaluation/tiles", *REPORTS}),
    "the score of a slide": (of("evaluate", score="mean"), {"evaluation/slides", *REPORTS}),
    "a stress test": (of("", stress=StressConfig(shifts=("hue",), strengths=1, resamples=5)), {"stress", *REPORTS}),
    "which tiles count": (of("heatmap", min_tissue=0.9), {*TESTED, "evaluation/slides", *REPORTS}),
    "which slides": (of("heatmap", slides="all"), {f"heatmaps/synthetic-{i:02d}" for i in range(4)} | REPORTS),
    "a setting of training": (of("train", sd_lambda=0.5), {"training", *AFTER_TRAINING}),
    "a setting of tiling": (of("tile", min_tissue=0.6), {*ALL_STORES, "training", *AFTER_TRAINING}),
    "the scanner of a test slide": (
        of_manifest("scanner", "synthetic-04", lambda name: f"{name}x"),
        {"evaluation/tiles", "evaluation/slides", *REPORTS},
    ),
    "a slide": (other_slide, {"stores/synthetic-05.zarr", "training", *AFTER_TRAINING}),
}


SLOW = {"which slides", "a setting of tiling", "a slide"}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.nightly if what in SLOW else ()) for what in CHANGES]
)
def test_what_changes_remakes_what_follows_from_it(copied: StudyConfig, tmp_path: Path, what: str) -> None:
    """By the inodes of all files; and the plan says so before, with a reason, and changes nothing."""
    change, expected = CHANGES[what]
    config = change(copied, tmp_path)
    before, content = stamps(copied.out), listing(copied.out)
    planned = plan(config)
    assert stamps(copied.out) == before, "a plan does nothing"
    report = run(config)
    assert report.failed == {}
    remade = changed(before, stamps(copied.out))
    assert remade - REPORTS == expected - REPORTS
    assert remade <= expected, "the reports are written only if they say something else"
    assert {step.name for step in planned if step.state != "done"} == expected
    assert all(step.why for step in planned if step.state == "changed")
    assert report.trained == ("training" in expected,)
    if not expected:
        assert {name: value for name, value in listing(copied.out).items() if name != "ledger.jsonl"} == {
            name: value for name, value in content.items() if name != "ledger.jsonl"
        }
    assert {step.state for step in plan(config)} == {"done"}
    check_page(
        copied.out / "index.html", "Test slides", "Test tiles", *(["Shifted tiles"] if "stress" in expected else [])
    )


def test_the_plan_of_a_study_that_has_not_begun(cohort: Path, tmp_path: Path) -> None:
    """Everything is to do, in the order of its making; nothing is written, not even the folder."""
    config = StudyConfig(manifest=cohort / "manifest.csv", out=tmp_path / "results", tile=TILING, train=TINY)
    steps = plan(config)
    assert {step.state for step in steps} == {"to do"}
    assert [step.name for step in steps] == [
        *sorted(ALL_STORES), "training", "evaluation/tiles", *sorted(TESTED), "evaluation/slides", "study.json",
        "index.html",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    unsplit = write_manifest([row | {"split": ""} for row in absolute_rows(cohort)], tmp_path)
    assert [s.name for s in plan(config.model_copy(update={"manifest": unsplit})) if s.stage == "heatmap"] == [
        "heatmaps/..."
    ]


def test_several_seeds_share_one_split_and_make_one_heatmap(copied: StudyConfig, cohort: Path, tmp_path: Path) -> None:
    """A further seed leaves the first one's model alone; the heatmaps are of the mean of both."""
    two = copied.model_copy(update={"repeats": RepeatsConfig(seeds=(0, 1))})
    one = copied.model_copy(update={"repeats": RepeatsConfig(seeds=(0,))})
    run(one)
    before = stamps(copied.out)
    report = run(two)
    assert changed(before, stamps(copied.out)) == {
        "training/seed-1", "evaluation/tiles/seed-1", "evaluation/slides", *TESTED, *REPORTS
    }  # fmt: skip
    infos = [read_info(model) for model in report.models]
    assert len({info.hashes["data"] for info in infos}) == 1, "the same tiles in the same splits"
    assert [info.training["seed"] for info in infos] == [0, 1]
    for result in report.heatmaps:
        made = json.loads((result.folder / "slide.json").read_bytes())["made_from"]
        assert {model["model_sha256"] for model in made["models"]} == {content_hash(model) for model in report.models}
    page = (copied.out / "index.html").read_text()
    values = [info.metrics["test"]["brier"].value or 0.0 for info in infos]
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in page
    best = run(two.model_copy(update={"heatmap": HeatmapConfig(model="best")}))
    losses = [info.metrics["val"]["log_loss"].value or 0.0 for info in infos]
    for result in best.heatmaps:
        made = json.loads((result.folder / "slide.json").read_bytes())["made_from"]
        assert made["model_sha256"] == content_hash(best.models[int(np.argmin(losses))])


def test_a_tuned_study_goes_on_with_the_model_that_the_rule_takes(copied: StudyConfig) -> None:
    """Another rule chooses anew among the same runs; a model that stays makes no heatmap anew."""
    tuning = TuneConfig(penalties=("none", "sd"), sd_lambdas=(20.0,), augments=(), seeds=1, rule="log_loss")
    config = copied.model_copy(update={"tune": tuning})
    assert "training/tuned" in {step.name for step in plan(config) if step.state == "to do"}
    report = run(config)
    assert report.failed == {}
    (model,) = report.models
    assert model == copied.out / "training" / "tuned" / "model"
    assert {step.state for step in plan(config)} == {"done"}
    for result in report.heatmaps:
        made = json.loads((result.folder / "slide.json").read_bytes())["made_from"]
        assert made["model_sha256"] == content_hash(model)
    check_page(copied.out / "index.html", "candidates of tuned")
    before = stamps(copied.out)
    assert run(config).trained == (False,)
    assert changed(before, stamps(copied.out)) <= REPORTS
    other = config.model_copy(update={"tune": tuning.model_copy(update={"rule": "stress"})})
    assert "training/tuned" in {step.name for step in plan(other) if step.state == "changed"}
    assert run(other).failed == {}
    rewritten = {name for name, stamp in stamps(copied.out).items() if before.get(name) != stamp}
    assert not {name for name in rewritten if name.startswith("training/tuned/runs")}, "nothing is trained"
    selection = read_info(model).selection
    assert selection is not None
    assert selection.rule == "stress"
    more = config.model_copy(update={"train": TINY.model_copy(update={"epochs": 2})})
    (step,) = (step for step in plan(more) if step.name == "training/tuned")
    assert (step.state, "2 of 2 runs" in step.why) == ("changed", True)


@pytest.mark.nightly
def test_a_cross_validation_judges_each_slide_by_a_model_that_has_not_seen_it(
    copied: StudyConfig, cohort: Path, tmp_path: Path
) -> None:
    manifest = write_manifest([row | {"split": ""} for row in absolute_rows(cohort)], tmp_path)
    train = TINY.model_copy(update={"val_fraction": 0.3})
    config = copied.model_copy(update={"manifest": manifest, "train": train, "repeats": RepeatsConfig(folds=2)})
    report = run(config)
    assert report.failed == {}
    assert [model.parent.name for model in report.models] == ["fold-0", "fold-1"]
    tested: dict[str, str] = {}
    for model in report.models:
        sources = json.loads((model.parent / "provenance.json").read_bytes())["inputs"]["sources"]
        tested |= {source["slide_id"]: content_hash(model) for source in sources if source["split"] == "test"}
    made = {r.slide_id: json.loads((r.folder / "slide.json").read_bytes())["made_from"] for r in report.heatmaps}
    assert tested
    assert set(made) == {f"synthetic-{i:02d}" for i in range(6)}, "each slide is tested once"
    assert {slide: made[slide]["model_sha256"] for slide in tested} == tested
    assert report.slides is not None
    assert len(json.loads((report.slides / "slides.json").read_bytes())["slides"]) == 6
    assert {step.state for step in plan(config)} == {"done"}


def test_another_order_of_classes_relabels_stores(copied: StudyConfig) -> None:
    """The setting is one of labels: no pixel is made again, nor what was computed of them."""
    rules = ClassRules(order=("tumour", "fat"))
    config = copied.model_copy(update={"tile": copied.tile.model_copy(update={"annotation": rules})})
    before = stamps(copied.out)
    report = run(config)
    assert (report.trained, report.failed) == ((False,), {})
    after = stamps(copied.out)
    tiles = [name for name in before if "/tiles/c/" in name]
    assert tiles
    assert [after[name] for name in tiles] == [before[name] for name in tiles]
    assert {step.state for step in plan(config)} == {"done"}


def test_other_labels_make_neither_pixels_nor_a_heatmap_nor_a_model(
    copied: StudyConfig, cohort: Path, tmp_path: Path
) -> None:
    """An annotation whose outlines are the same: the store gets its labels, and keeps its pixels' files."""
    rows = absolute_rows(cohort)
    (row,) = (row for row in rows if row["slide_id"] == "synthetic-05")
    truth = json.loads(Path(row["annotation"]).read_text())
    row["annotation"] = str(tmp_path / "synthetic-05.geojson")
    Path(row["annotation"]).write_text(json.dumps(truth | {"note": "looked at again"}))
    config = copied.model_copy(update={"manifest": write_manifest(rows, tmp_path)})
    before = stamps(copied.out)
    planned = {step.name: step for step in plan(config) if step.state != "done"}
    assert planned["stores/synthetic-05.zarr"].why == "not made from the same annotation"
    report = run(config)
    after = stamps(copied.out)
    assert (report.trained, report.failed) == ((False,), {})
    assert changed(before, after) <= {"stores/synthetic-05.zarr", "evaluation/slides", *REPORTS}
    tiles = [name for name in before if name.startswith("stores/synthetic-05.zarr/tiles/c/")]
    assert tiles
    assert [after[name] for name in tiles] == [before[name] for name in tiles]
    assert {step.state for step in plan(config)} == {"done"}


def test_a_stage_from_outside_is_one_object(
    copied: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is planned, made, kept, shown on the page, and seen by the status, through the commands' own code."""

    def artefacts(study: Study) -> list[Artefact]:
        folder, recipe = study.out / "counts", Recipe("counts", {"slides": [row.slide_id for row in study.usable]})

        def make() -> None:
            with locked_folder(folder), atomic_folder(folder, recipe) as new:
                (new / "slides.txt").write_text(str(len(study.usable)))

        return [Artefact("counts", lambda: state(folder, recipe), make)]

    counting = Stage("count", artefacts, sections=lambda study: [Section("Counts", "Of slides.")])
    monkeypatch.setattr(stages, "STAGES", [*stages.STAGES[:-1], counting, stages.STAGES[-1]])
    settings = copied.model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))

    def specslide(*words: object) -> str:
        done = CliRunner().invoke(cli.app, [*map(str, words)], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        return done.output

    assert "counts" in specslide("run", tmp_path / "study.yaml", "--dry-run")
    specslide("run", tmp_path / "study.yaml")
    assert (copied.out / "counts/slides.txt").read_text() == "6"
    assert "Counts" in (copied.out / "index.html").read_text()
    assert {item.progress for item in read_status(copied.out).items if item.name == "counts"} == {"done"}
    assert {step.state for step in plan(copied)} == {"done"}
    assert folder_faults(copied.out) == []
    (copied.out / "index.html").write_text("x")
    assert "index.html" in folder_faults(copied.out)[0], "the study's own files are sealed"


def test_damage_is_mended(copied: StudyConfig) -> None:
    """A store, the model and a heatmap with a changed byte each: all are as they were after the next run."""
    content = content_of(copied.out)
    victims = ("stores/synthetic-04.zarr/thumbnail/c/0/0/0", "training/model/weights.safetensors")
    more = ("heatmaps/synthetic-05/predictions.csv", "evaluation/tiles/predictions.csv", "evaluation/slides/slides.md")
    for name in (*victims, *more):
        data = bytearray((copied.out / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copied.out / name).write_bytes(data)
    report = run(copied)
    assert report.trained == (True,)
    assert report.failed == {}
    assert content_of(copied.out) == content


# ------------------------------------------------------------------------------------- what stops a run, and reruns


def at_evaluation(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let that happen when the model is about to be tested on its tiles."""

    def acting(*arguments: Any, **settings: Any) -> Any:
        act()
        return evaluate_models(*arguments, **settings)

    monkeypatch.setattr("training.evaluate_models", acting)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_the_study_and_the_next_run_goes_on(
    copied: StudyConfig, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    content = content_of(copied.out)
    shutil.rmtree(copied.out / "evaluation/tiles")
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with monkeypatch.context() as patch:
        at_evaluation(patch, lambda: signal.raise_signal(number))
        with pytest.raises(StoppedError, match=number.name) as caught:
            run(copied)
    assert caught.value.exit_code == 75
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == handlers
    events = [(event.event, event.name) for event in read_ledger(copied.out)]
    assert events[-2:] == [("begun", "evaluation/tiles"), ("stopped", "")]
    assert not read_status(copied.out).complete
    run(copied)
    assert content_of(copied.out) == content
    assert read_status(copied.out).complete


def signalled(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, with SIGTERM coming the first time."""
    sent: list[int] = []

    def calling(*arguments: Any, **settings: Any) -> Any:
        if not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return call(*arguments, **settings)

    return calling


@pytest.mark.parametrize(
    "where",
    [
        "tiling.tile.tiling_inputs",  # while it plans
        "pipeline.study.stages.heatmap.truth_of",  # while it reads an annotation
        "inference.heatmap.report_html",  # in a heatmap, when no progress is told any more
        "training.train.save_model",  # in a training, when it does not look out for signals any more
    ],
)
def test_a_signal_is_heard_wherever_it_comes(copied: StudyConfig, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """It is taken for no fault of the slide or setting at hand, and not forgotten at the end of a task."""
    content = content_of(copied.out)
    for name in ("heatmaps/synthetic-05", "training/model"):
        shutil.rmtree(copied.out / name)
    module, name = where.rsplit(".", 1)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[module], name, signalled(getattr(sys.modules[module], name)))
        with pytest.raises(StoppedError, match="SIGTERM"):
            run(copied)
    assert run(copied).failed == {}
    assert content_of(copied.out) == content


def test_on_a_cluster_with_relative_paths(
    copied: StudyConfig, scheduler: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers start elsewhere; what they make is found where the study says."""
    content = content_of(copied.out)
    for name in ("stores/synthetic-04.zarr", "heatmaps/synthetic-04"):
        shutil.rmtree(copied.out / name)
    monkeypatch.chdir(copied.out.parent)
    report = run(copied.model_copy(update={"out": Path("results"), "cluster": scheduler}))
    assert [heatmap.folder for heatmap in report.heatmaps] == [
        Path("results/heatmaps/synthetic-04"), Path("results/heatmaps/synthetic-05"),
    ]  # fmt: skip
    assert content_of(copied.out) == content


def test_a_store_whose_metadata_are_broken_is_made_again(copied: StudyConfig) -> None:
    content = content_of(copied.out)
    (copied.out / "stores/synthetic-01.zarr/zarr.json").write_text("{ broken")
    steps = {step.name: step for step in plan(copied)}
    assert steps["stores/synthetic-01.zarr"].state == "changed"
    assert "is damaged" in steps["stores/synthetic-01.zarr"].why
    assert run(copied).failed == {}
    assert content_of(copied.out) == content


def test_the_page_shows_what_is_there(copied: StudyConfig, cohort: Path, tmp_path: Path) -> None:
    """Not a slide that was withdrawn, nor a picture that somebody removed."""
    (copied.out / "training/learning_curve.png").unlink()
    kept = [row for row in absolute_rows(cohort) if row["slide_id"] != "synthetic-05"]
    run(copied.model_copy(update={"manifest": write_manifest(kept, tmp_path)}))
    assert "synthetic-05" not in (copied.out / "index.html").read_text()
    check_page(copied.out / "index.html", "synthetic-04")


def test_reports_that_will_be_written_anew_are_planned(copied: StudyConfig) -> None:
    other = copied.model_copy(update={"evaluate": FAST.model_copy(update={"slides": False})})
    reports = {step.name: step.state for step in plan(other) if step.stage == "report"}
    assert reports == {"study.json": "changed", "index.html": "changed"}
    assert run(other).skipped == {}, "nobody asked for it"
    assert {step.state for step in plan(other)} == {"done"}


def test_a_study_without_test_slides_is_complete(cohort: Path, tmp_path: Path) -> None:
    rows = [{name: row[name] for name in row if name != "split"} for row in absolute_rows(cohort)]
    config = StudyConfig(
        manifest=write_manifest(rows, tmp_path), out=tmp_path / "results", tile=TILING, evaluate=FAST, workers=2,
        train=TINY.model_copy(update={"test_fraction": 0.0}),
    )  # fmt: skip
    report = run(config)
    assert (report.heatmaps, report.failed) == ((), {})
    assert "no slide is in the test split" in report.skipped.values()
    assert read_status(config.out).complete


def test_a_bug_is_told_in_the_ledger(copied: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of Miller's slide")

    monkeypatch.setattr("tiling.core.pages.write_page", broken)
    with pytest.raises(ZeroDivisionError):
        run(copied)
    last = read_ledger(copied.out)[-1]
    assert (last.event, last.reason) == ("failed", "ZeroDivisionError")


def test_a_full_disk_is_told_and_the_next_run_goes_on(copied: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of(copied.out)
    shutil.rmtree(copied.out / "evaluation/tiles")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        at_evaluation(patch, lambda: patch.setattr(os, "fsync", full))
        with pytest.raises(OutputError, match="No space left on device"):
            run(copied)
    failed = read_ledger(copied.out)[-1]
    assert failed.event == "failed"
    assert "No space left" in failed.reason
    run(copied)
    assert content_of(copied.out) == content


_HOLD = """
import sys, time
from pathlib import Path
from tiling.core.artefact import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_of_two_runs_is_refused_and_a_dead_one_blocks_nobody(copied: StudyConfig) -> None:
    before = listing(copied.out)
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, copied.out / "study"], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=r"results: .*specslide status"):
            run(copied)
        assert {name: value for name, value in listing(copied.out).items() if name != ".study.lock"} == before
        other.kill()
        other.wait()
    assert (copied.out / ".study.lock").exists()
    run(copied)
    assert not (copied.out / ".study.lock").exists()


def test_a_study_that_is_changed_half_way_says_what_is_remade(
    copied: StudyConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in the middle, run on with another setting: what stays is not touched, the rest is named with why."""
    shutil.rmtree(copied.out / "evaluation/tiles")
    with monkeypatch.context() as patch:
        at_evaluation(patch, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError):
            run(copied)
    other = copied.model_copy(update={"heatmap": HeatmapConfig(min_tissue=0.9)})
    steps = {step.name: step for step in plan(other)}
    assert steps["evaluation/tiles"].state == "to do"
    assert (steps["training"].state, steps["heatmaps/synthetic-04"].state) == ("done", "changed")
    before = stamps(copied.out)
    run(other)
    assert "heatmaps/synthetic-04 is made again: min_tissue was 0.5, is 0.9" in caplog.text
    assert changed(before, stamps(copied.out)) == {"evaluation/tiles", *TESTED, "evaluation/slides", *REPORTS}


def test_a_model_that_is_replaced_is_loaded_anew(copied: StudyConfig) -> None:
    """A process that lives longer than a model's folder, as a cluster's worker may, does not answer with the old."""
    model = copied.out / "training/model"
    first = load_models([model], "cpu")
    assert load_models([model], "cpu") is first
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.name != "commit.json"}
    with locked_folder(model), atomic_folder(model) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data + (b" " if name == "README.md" else b""))
    assert load_models([model], "cpu").sha256 == content_hash(model) != first.sha256


def test_a_study_is_led_by_one_process(copied: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun each process would lead its own."""
    for name, value in {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    before = stamps(copied.out)
    with pytest.raises(ConfigError, match=r"specslide run: .*2 times"):
        run(copied)
    assert stamps(copied.out) == before


def test_on_the_command_line(cohort: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """A dry run says all and does nothing; Ctrl-C ends with 75 and says what to do."""
    train = TINY.model_dump(mode="json", exclude_defaults=True) | {"epochs": 200}
    settings = {
        "manifest": str(cohort / "manifest.csv"),
        "out": "results",
        "tile": {"mpp": 1.0, "tile_px": 64},
        "train": train,
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    dry = run_cli("run", "study.yaml", "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0
    assert "plan: 13 to do" in dry.stdout
    for name in (*ALL_STORES, "training", *TESTED):
        assert f"{name} " in dry.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml"}
    root = Path(__file__).resolve().parents[3]
    variables = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", "study.yaml"], cwd=tmp_path, env=variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        while job.poll() is None and not (tmp_path / "results/training/log/metrics.csv").exists():
            time.sleep(0.1)  # until the first epoch is over
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=120)
    assert job.returncode == 75
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "results/training/checkpoints/last.ckpt").exists(), "the training's state is saved"
    assert run_cli("status", "results", cwd=tmp_path).returncode == 1


@pytest.mark.nightly
def test_a_study_whose_training_is_shared_by_processes(cohort: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """The processes that Lightning starts for each training take part in that one alone, and end with it."""
    train = TINY.model_dump(mode="json", exclude_defaults=True) | {"devices": 2, "device": "cpu"}
    settings = {
        "manifest": str(cohort / "manifest.csv"), "out": "results", "tile": {"mpp": 1.0, "tile_px": 64}, "train": train,
        "repeats": {"seeds": [0, 1]}, "evaluate": {"resamples": 20},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    done = run_cli("run", "study.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        record = json.loads((tmp_path / f"results/training/seed-{seed}/provenance.json").read_bytes())
        assert record["machine"]["processes"] == 2
    events = [event.event for event in read_ledger(tmp_path / "results")]
    assert (events.count("start"), events.count("end")) == (1, 1)
    assert read_status(tmp_path / "results").complete


def test_a_bad_slide_stops_nothing(cohort: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """On the command line: one slide is cut short, and the rest go through."""
    mine = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    cut = mine / "slides" / "synthetic-05.tif"
    cut.write_bytes(cut.read_bytes()[:5000])
    settings = {
        "manifest": "cohort/manifest.csv", "out": "results", "tile": {"mpp": 1.0, "tile_px": 64}, "workers": 2,
        "train": TINY.model_dump(mode="json", exclude_defaults=True),
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    done = run_cli("run", tmp_path / "study.yaml")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "│ synthetic-05 " in line]
    assert "FAILED" in line
    assert "synthetic-05: " in line
    assert cut.name not in done.stdout + done.stderr, "a file may be named after a patient; the manifest's id is not"
    assert (tmp_path / "results" / "heatmaps" / "synthetic-04" / "overlay.png").exists()
    assert json.loads((tmp_path / "results" / "study.json").read_text())["failed"].keys() == {"synthetic-05"}
    check_page(tmp_path / "results" / "index.html", "Not analysed", "synthetic-05")
    for name in ("study.json", "index.html"):  # which are sent to others
        text = (tmp_path / "results" / name).read_text()
        assert str(tmp_path) not in text
        assert cut.name not in text


def test_slides_that_cannot_be_evaluated_spoil_nothing_else(
    copied: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise InputError(copied.manifest.parent / "annotations" / "x.geojson", "holds no outline", "draw one")

    shutil.rmtree(copied.out / "evaluation/slides")
    monkeypatch.setattr("inference.evaluation.evaluate_slides.evaluate_slides", refused)
    report = run(copied)
    assert dict(report.failed) == {"evaluation/slides": "annotations/x.geojson: holds no outline; draw one"}
    assert report.slides is None
    check_page(copied.out / "index.html", "Not analysed", "holds no outline")
    last = {event.name: event for event in read_ledger(copied.out)}["evaluation/slides"]
    assert (last.event, last.reason) == ("failed", report.failed["evaluation/slides"])


def absolute_rows(cohort: Path) -> list[dict[str, str]]:
    """The rows of the cohort's manifest, with absolute paths."""
    with (cohort / "manifest.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    return [row | {name: str(cohort / row[name]) for name in ("slide_path", "annotation")} for row in rows]


def write_manifest(rows: Sequence[Mapping[str, str]], folder: Path) -> Path:
    """The rows as `manifest.csv` in a folder."""
    path = folder / "manifest.csv"
    with path.open("w", newline="") as f:
        table = csv.DictWriter(f, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


def manifest_without(cohort: Path, folder: Path, *bare: str) -> Path:
    """The cohort's manifest, with absolute paths, and without the annotation of some slides."""
    rows = absolute_rows(cohort)
    return write_manifest([row | ({"annotation": ""} if row["slide_id"] in bare else {}) for row in rows], folder)


def auroc_of(out: Path, slide_ids: set[str]) -> float:
    """The oracle: scikit-learn's AUROC of the slides' predictions against the stores' annotation fractions."""
    scores: list[float] = []
    labels: list[bool] = []
    for slide_id in slide_ids:
        store = TileStore(out / "stores" / f"{slide_id}.zarr")
        fractions = store.annotations.get("tumour", np.zeros(len(store), np.float32))
        of = dict(zip(store.tiles.places(), fractions.tolist(), strict=True))
        with (out / "heatmaps" / slide_id / "predictions.csv").open(newline="") as f:
            for row in csv.DictReader(f):
                labels.append(of[int(row["minx"]), int(row["miny"])] >= 0.5)
                scores.append(float(row["prob_tumour"]))
    return float(roc_auc_score(labels, scores))


def test_slides_of_unknown_truth_do_not_count_as_benign(copied: StudyConfig, cohort: Path, tmp_path: Path) -> None:
    """04 has a tumour and 05 has none; neither is annotated, and only of 05 does the label tell every tile."""
    manifest = manifest_without(cohort, tmp_path, "synthetic-04", "synthetic-05")
    report = run(copied.model_copy(update={"manifest": manifest, "heatmap": HeatmapConfig(slides="all")}))
    everything = {f"synthetic-{i:02d}" for i in range(6)}
    assert {r.slide_id for r in report.heatmaps} == everything
    known = auroc_of(copied.out, everything - {"synthetic-04"})
    assert report.test_auroc == pytest.approx(known, abs=1e-6)
    assert known != pytest.approx(auroc_of(copied.out, everything), abs=1e-4), "or the test could not fail"


def test_a_manifest_that_is_missing_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("manifest: absent.csv\nout: results\n")
    with pytest.raises(InputError, match=r"absent\.csv"):
        run(tmp_path / "study.yaml")
    assert {p.name for p in tmp_path.iterdir()} == {"study.yaml"}


def test_the_demo_in_small(svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From synthetic slides to the real one, and a page that shows all of it."""

    def small(folder: Path, *, seed: int) -> Path:
        return make_cohort(folder, n_slides=6, seed=seed, size_px=(1024, 1024))

    monkeypatch.setattr(demo, "make_cohort", small)
    monkeypatch.setattr(demo, "TRAIN", TINY)
    lines: list[str] = []
    report = run_demo(tmp_path / "demo", slide=svs, seed=3, say=lines.append)
    assert report.page == tmp_path / "demo" / "index.html"
    assert report.study.failed == {}
    assert report.study.test_auroc is not None
    assert report.real.tiles > 50
    assert report.by_real_model.tiles > 50
    heatmaps = (report.real.folder, report.by_real_model.folder)
    assert [folder_faults(folder) for folder in (*heatmaps, report.page.parent)] == [[], [], []]
    check_page(
        report.page, "A real slide", "breast-idc", "specslide view . --manifest", "CMU-1-Small-Region", "synthetic-04"
    )
    check_page(report.study.out / "index.html")
    assert any("CMU-1-Small-Region.svs" in line for line in lines)
