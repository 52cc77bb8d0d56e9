"""A whole study over a tiny cohort: what is unchanged is kept, what changed is redone, a bad slide stops nothing."""

from __future__ import annotations

import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from pipeline import demo, run
from pipeline.config import HeatmapConfig, StudyConfig
from pipeline.demo import run_demo
from pipeline.study import StudyReport
from pipeline.synthetic import make_cohort
from tests.pipeline.conftest import RunCli, listing
from tiling import TileStore, TilingConfig
from tiling.errors import InputError
from tiling.files import folder_faults
from training import TrainConfig

TINY = TrainConfig(
    backbone="test_resnet", weights="none", input_px=32, epochs=1, batch_size=16, bootstrap_resamples=20, threads=1
)
TILING = TilingConfig(mpp=0.5, tile_px=64)
Stamps = dict[str, tuple[int, int]]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six synthetic slides of 1024 x 1024 px; read only."""
    return make_cohort(tmp_path_factory.mktemp("cohort") / "cohort", n_slides=6, seed=5, size_px=(1024, 1024)).parent


@pytest.fixture(scope="session")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, StudyReport]:
    """The study of that cohort and its first report; read only unless copied."""
    out = tmp_path_factory.mktemp("study") / "results"
    config = StudyConfig(manifest=cohort / "manifest.csv", out=out, tile=TILING, train=TINY, workers=2)
    return config, run(config)


@pytest.fixture
def copied(finished: tuple[StudyConfig, StudyReport], tmp_path: Path) -> StudyConfig:
    """A copy of the finished study, with its stamps, to be run again."""
    config, _ = finished
    out = Path(shutil.copytree(config.out, tmp_path / "results"))
    return config.model_copy(update={"out": out})


def stamps(folder: Path) -> Stamps:
    """Inode and time of change of every file: equal only if nothing was written."""
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def changed(before: Stamps, after: Stamps) -> set[str]:
    """The parts of a study (its top-level folders) in which a file was written, added or removed."""
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return {name.split("/")[0] for name in names}


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
    assert (report.trained, report.failed, report.out) == (True, {}, config.out)
    assert {p.name for p in config.out.iterdir()} == {"stores", "training", "heatmaps", "index.html", "study.json"}
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


def test_a_second_run_writes_nothing(copied: StudyConfig) -> None:
    before, content = stamps(copied.out), listing(copied.out)
    report = run(copied)
    assert not report.trained
    assert [r.reused for r in report.heatmaps] == [True, True]
    assert changed(before, stamps(copied.out)) <= {"index.html", "study.json"}
    assert listing(copied.out) == content


def test_changed_heatmaps_redo_only_heatmaps(copied: StudyConfig) -> None:
    before = stamps(copied.out)
    report = run(copied.model_copy(update={"heatmap": HeatmapConfig(min_tissue=0.9)}))
    assert not report.trained
    assert [r.reused for r in report.heatmaps] == [False] * 2
    assert changed(before, stamps(copied.out)) <= {"heatmaps", "index.html", "study.json"}


def test_changed_training_keeps_the_stores(copied: StudyConfig) -> None:
    before = stamps(copied.out)
    report = run(copied.model_copy(update={"train": TINY.model_copy(update={"sd_lambda": 0.5})}))
    assert report.trained
    assert [r.reused for r in report.heatmaps] == [False] * 2
    assert changed(before, stamps(copied.out)) == {"training", "heatmaps", "index.html", "study.json"}


def test_damage_is_mended(copied: StudyConfig) -> None:
    """A store, the model and a heatmap with a changed byte each: all are as they were after the next run."""
    content = listing(copied.out)
    victims = ("stores/synthetic-04.zarr/thumbnail/c/0/0/0", "training/model/weights.safetensors")
    for name in (*victims, "heatmaps/synthetic-05/predictions.csv"):
        data = bytearray((copied.out / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copied.out / name).write_bytes(data)
    report = run(copied)
    assert report.trained
    assert report.failed == {}
    assert {name: listing(copied.out)[name] for name in content if "log/" not in name} == {
        name: value for name, value in content.items() if "log/" not in name
    }


def test_a_bad_slide_stops_nothing(cohort: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """On the command line: one slide is cut short, and the rest go through."""
    mine = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    cut = mine / "slides" / "synthetic-05.tif"
    cut.write_bytes(cut.read_bytes()[:5000])
    study = {
        "manifest": "cohort/manifest.csv", "out": "results", "tile": {"tile_px": 64}, "workers": 2,
        "train": TINY.model_dump(mode="json", exclude_defaults=True),
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = run_cli("run", tmp_path / "study.yaml")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "│ synthetic-05 " in line]
    assert "FAILED" in line
    assert str(cut) in line
    assert (tmp_path / "results" / "heatmaps" / "synthetic-04" / "overlay.png").exists()
    assert json.loads((tmp_path / "results" / "study.json").read_text())["failed"].keys() == {"synthetic-05"}
    check_page(tmp_path / "results" / "index.html", "Not analysed", "synthetic-05")
    for name in ("study.json", "index.html"):  # which are sent to others
        text = (tmp_path / "results" / name).read_text()
        assert str(tmp_path) not in text
        assert cut.name not in text, "a file may be named after a patient; the manifest's id is not"


def manifest_without(cohort: Path, folder: Path, *bare: str) -> Path:
    """The cohort's manifest, with absolute paths, and without the annotation of some slides."""
    with (cohort / "manifest.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        row["slide_path"] = str(cohort / row["slide_path"])
        row["annotation"] = "" if row["slide_id"] in bare else str(cohort / row["annotation"])
    path = folder / "manifest.csv"
    with path.open("w", newline="") as f:
        table = csv.DictWriter(f, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


def auroc_of(out: Path, slide_ids: set[str]) -> float:
    """The oracle: scikit-learn's AUROC of the slides' predictions against the stores' annotation fractions."""
    scores: list[float] = []
    labels: list[bool] = []
    for slide_id in slide_ids:
        store = TileStore(out / "stores" / f"{slide_id}.zarr")
        fractions = store.annotations.get("tumour", np.zeros(len(store), np.float32))
        of = dict(zip(zip(store.x.tolist(), store.y.tolist(), strict=True), fractions.tolist(), strict=True))
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
    monkeypatch.setattr(demo, "_TRAIN", TINY)
    lines: list[str] = []
    report = run_demo(tmp_path / "demo", slide=svs, seed=3, say=lines.append)
    assert report.page == tmp_path / "demo" / "index.html"
    assert report.study.failed == {}
    assert report.study.test_auroc is not None
    assert report.real.tiles > 50
    assert folder_faults(report.real.folder) == []
    check_page(report.page, "A real slide", "CMU-1-Small-Region", "synthetic-04")
    check_page(report.study.out / "index.html")
    assert any("CMU-1-Small-Region.svs" in line for line in lines)
