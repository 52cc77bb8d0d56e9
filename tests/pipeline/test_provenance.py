"""The chain from a result back to its slide, its model and the data: by hashes, wherever the folders are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.provenance import Link, lines_of, page_of, read_record, trace
from pipeline.study.run import StudyReport
from tests.pipeline.conftest import RunCli
from tiling import TileStore
from tiling.core.artefact import content_hash
from tiling.core.errors import InputError
from tiling.core.files import sha256_file


@pytest.fixture
def moved(study: StudyReport, tmp_path: Path) -> Path:
    """The study's folder elsewhere, without the slides."""
    return Path(shutil.copytree(study.out, tmp_path / "elsewhere" / "moved"))


def links(chain: Link) -> Iterator[Link]:
    yield chain
    for source in chain.made_from:
        yield from links(source)


def check_chain(chain: Link, out: Path, study: StudyReport) -> None:
    """From a heatmap to its slide, both models, and the stores and slides that these learned from, each by its hash."""
    assert (chain.kind, chain.sha256) == ("heatmap", content_hash(out / "heatmaps" / chain.name))
    store, *models = chain.made_from
    slides = study.out.parent / "cohort" / "slides"
    assert (store.kind, store.sha256) == ("store", content_hash(out / "stores" / f"{chain.name}.zarr"))
    (slide,) = store.made_from
    assert (slide.kind, slide.sha256) == ("slide", sha256_file(slides / f"{chain.name}.tif"))
    assert [model.sha256 for model in models] == [content_hash(out / f"training/seed-{k}/model") for k in (0, 1)]
    for model in models:
        (data,) = model.made_from
        assert data.sha256 == json.loads((out / "training/seed-0/model/model.json").read_bytes())["hashes"]["data"]
        assert {source.name for source in data.made_from} == {
            path.stem for path in (out / "stores").glob("*.zarr") if len(TileStore(path))
        }
        for source in data.made_from:
            assert source.sha256 == content_hash(out / "stores" / f"{source.name}.zarr")
            assert [s.sha256 for s in source.made_from] == [sha256_file(slides / f"{source.name}.tif")]
            assert source.facts["split"] in ("train", "val", "test")
    assert not any(link.missing for link in links(chain))


@pytest.mark.parametrize("name", ["", "overlay.png", "heatmap.geojson", "slide.json", "commit.json"])
def test_from_any_file_of_a_heatmap_back_to_the_slides(study: StudyReport, name: str) -> None:
    result = study.heatmaps[0]
    check_chain(trace(result.folder / name), study.out, study)


def test_a_study_that_was_moved_keeps_its_chain(
    moved: Path, study: StudyReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = moved / "heatmaps" / study.heatmaps[0].slide_id
    check_chain(trace(folder / "report.html"), moved, study)
    monkeypatch.chdir(folder)
    check_chain(trace(Path("report.html")), moved, study)


def test_a_result_sent_away_says_what_is_missing(moved: Path, study: StudyReport, tmp_path: Path) -> None:
    """Alone it knows the hashes; shown where to look, it has its chain back."""
    name = study.heatmaps[0].slide_id
    alone = Path(shutil.copytree(moved / "heatmaps" / name, tmp_path / "sent" / "mail" / name))
    chain = trace(alone)
    store, *models = chain.made_from
    assert (store.missing, store.sha256) == (
        "the store is not here",
        content_hash(moved / f"stores/{name}.zarr"),
    )
    assert store.made_from[0].sha256 == sha256_file(study.out.parent / f"cohort/slides/{name}.tif")
    assert [model.missing for model in models] == ["the model is not here"] * 2
    assert [model.sha256 for model in models] == [content_hash(moved / f"training/seed-{k}/model") for k in (0, 1)]
    assert not any(link.missing for link in links(trace(alone, [moved])))


def test_a_model_without_its_run_knows_the_hash_of_its_data(moved: Path) -> None:
    (moved / "training/seed-0/provenance.json").unlink()
    (data,) = trace(moved / "training/seed-0/model").made_from
    assert "provenance.json" in data.missing
    assert data.made_from == ()
    text = (moved / "training/seed-1/provenance.json").read_text()
    (moved / "training/seed-1/provenance.json").write_text(text.replace('"split": "test"', '"split": "train"'))
    (data,) = trace(moved / "training/seed-1/metrics.json").made_from
    assert data.missing, "a list that was changed is not believed"
    assert data.sha256 == json.loads((moved / "training/seed-1/model/model.json").read_bytes())["hashes"]["data"]


def test_a_removed_store_is_named_by_its_hash(moved: Path) -> None:
    gone = TileStore(moved / "stores/synthetic-00.zarr").pixels_sha256
    shutil.rmtree(moved / "stores/synthetic-00.zarr")
    (data,) = trace(moved / "training/seed-0/model").made_from
    missing = {source.name: (source.sha256, source.missing) for source in data.made_from if source.missing}
    assert missing == {"synthetic-00": (gone, "the store is not here")}


@pytest.mark.parametrize(
    ("name", "artefact", "kinds"),
    [
        ("evaluation/tiles/seed-1/evaluation.json", "evaluation", {"model"}),
        ("stress/stress.png", "stress", {"model"}),
        ("evaluation/slides/slides.md", "slides", {"heatmap"}),
        ("stores/synthetic-01.zarr/zarr.json", "store", {"slide"}),
    ],
)
def test_all_that_a_study_makes_has_a_chain(study: StudyReport, name: str, artefact: str, kinds: set[str]) -> None:
    chain = trace(study.out / name)
    assert chain.kind == artefact
    assert {source.kind for source in chain.made_from} == kinds
    assert {"slide"} <= {link.kind for link in links(chain)}
    assert not any(link.missing for link in links(chain))


@pytest.mark.parametrize(
    "name",
    ["", "metrics.json", "provenance.json", "model/README.md", "learning_curve.png", "predictions.csv", "pictures"],
)
def test_what_lies_in_a_training_is_its_models(study: StudyReport, name: str) -> None:
    path = study.out / "training/seed-0" / name
    assert path.exists()
    assert trace(path).kind == "model"


@pytest.mark.parametrize(
    ("name", "traced"),
    [
        ("heatmaps/{slide}/slide.json", "heatmaps/{slide}"),
        ("heatmaps/{slide}/slide.json", "heatmaps/{slide}/overlay.png"),
        ("heatmaps/{slide}/slide.json", "heatmaps/{slide}/commit.json"),
        ("heatmaps/{slide}/slide.json", "evaluation/slides"),
        ("stores/{slide}.zarr/zarr.json", "stores/{slide}.zarr"),
        ("stores/{slide}.zarr/zarr.json", "heatmaps/{slide}"),
        ("training/seed-1/model/model.json", "training/seed-1"),
        ("training/seed-1/model/model.json", "heatmaps/{slide}"),
    ],
)
def test_what_an_artefact_says_of_itself_is_checked_along_the_chain(
    moved: Path, study: StudyReport, name: str, traced: str
) -> None:
    path, start = (moved / text.format(slide=study.heatmaps[0].slide_id) for text in (name, traced))
    trace(start)
    path.write_text(re.sub("[0-9a-f]{64}", "0" * 64, path.read_text()))
    with pytest.raises(InputError, match=path.name):
        trace(start)


def test_no_file_that_was_put_into_an_artefact_speaks_for_it(moved: Path, study: StudyReport) -> None:
    """Neither one that says what else it was made from, nor a record that knows other hashes."""
    folder = moved / "heatmaps" / study.heatmaps[0].slide_id
    shutil.copy(moved / "stores" / f"{folder.name}.zarr/zarr.json", folder)
    (folder / "overlay.png").write_bytes(b"mine")
    shutil.copy(moved / "training/seed-0/provenance.json", folder)
    assert trace(folder).kind == "heatmap"
    for name, reason in {"overlay.png": "was changed", "zarr.json": "no part", "provenance.json": "no part"}.items():
        with pytest.raises(InputError, match=reason):
            trace(folder / name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("training/seed-0/metrics.json", "changed"),
        ("training/seed-0/provenance.json", "changed"),
        ("training/seed-0/mine.txt", "no part"),
        ("heatmaps/{slide}/predictions.csv", "changed"),
        ("evaluation/tiles/seed-0/evaluation.json", "changed"),
        ("heatmaps/{slide}/mine.txt", "no part"),
        ("study.json", "no artefact"),
        ("absent", "exist"),
    ],
)
def test_what_nothing_vouches_for_is_refused(moved: Path, study: StudyReport, name: str, reason: str) -> None:
    path = moved / name.format(slide=study.heatmaps[0].slide_id)
    if name != "absent":
        path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    with pytest.raises(InputError, match=reason):
        trace(path)


def test_no_record_tells_of_the_machine(study: StudyReport) -> None:
    """Nor does the ledger, or the page; only hashes and ids are in them."""
    secrets = [str(study.out.parent).encode(), str(Path.cwd()).encode(), str(Path.home()).encode() + b"/"]
    for path in study.out.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".html", ".md", ".csv"):
            data = path.read_bytes()
            for secret in secrets:
                assert secret not in data, f"{path} tells of {secret!r}"


def test_times_are_in_the_ledger_alone(study: StudyReport) -> None:
    for path in study.out.rglob("provenance.json"):
        text = path.read_text()
        assert "seconds" not in text
        assert '"time"' not in text
    assert '"seconds"' in (study.out / "ledger.jsonl").read_text()


def test_the_text_names_each_link_once(study: StudyReport) -> None:
    lines = list(lines_of(trace(study.heatmaps[0].folder)))
    assert lines[0].startswith(f"heatmap {study.heatmaps[0].slide_id}, sha256 ")
    again = [line.split()[0] for line in lines if line.endswith("(as above)")]
    assert again == ["store", "data"], "the slide's store is in the data, and both models have learned from the same"
    assert len([line for line in lines if line.strip().startswith("data ")]) == 2


def test_the_page_names_what_is_left_out(study: StudyReport) -> None:
    chain = trace(study.heatmaps[0].folder)
    models = [link for link in chain.made_from if link.kind == "model"]
    data = models[0].made_from[0]
    pages = [list(page_of(chain)), list(page_of(replace(data, made_from=data.made_from[:1] * 5000)))]
    assert all(len(page) <= 60 and max(map(len, page)) < 600 for page in pages)
    left = [int(line.split()[1]) for line in pages[0] if line.strip().startswith("and ")]
    assert left == [len(data.made_from) - 4], "and of the second model, which learned from the same, as above"
    assert pages[1][-1].strip() == "and 4,996 more of kind store"


def test_provenance_on_the_command_line(study: StudyReport, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("provenance", study.heatmaps[0].folder / "overlay.png", "--json", cwd=tmp_path)
    assert done.returncode == 0
    page = run_cli("provenance", study.heatmaps[0].folder, cwd=tmp_path)
    whole = run_cli("provenance", study.heatmaps[0].folder, "--full", cwd=tmp_path)
    assert len(page.stdout.splitlines()) < len(whole.stdout.splitlines()) / 2
    assert json.loads(done.stdout) == json.loads(json.dumps(trace(study.heatmaps[0].folder).record()))
    (tmp_path / "mine.txt").write_text("")
    refused = run_cli("provenance", "mine.txt", cwd=tmp_path)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other"}', "\x00"])
def test_what_is_no_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "provenance.json").write_text(text)
    assert read_record(tmp_path) is None
