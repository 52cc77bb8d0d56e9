"""README and docs, followed: commands and scripts run on small slides, and every option that is named is there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from shapely.geometry import mapping
from typer.testing import CliRunner

from pipeline import cli
from pipeline.demo.synthetic import make_cohort, make_slide
from pipeline.study.config import StudyConfig
from pipeline.study.run import run
from tests.inference.conftest import write_model
from tests.readme import MARK, ROOT, TOUR, Block, blocks, code_spans, commands, examples, parse
from tiling import TilingConfig
from training import TrainConfig

QUICK = {"info", "tile", "tiles", "label", "embed", "verify", "slurm"}
"""What takes seconds; the whole tour is followed nightly."""
OTHERS = {
    "--help", "--version", "--log-format", "--exclude", "--rm", "--read-only",
    "--ntasks-per-node", "--ntasks", "--build-arg", "--profile", "--nv",
    "--cores", "--patch-size", "--mag", "--batch",
}  # fmt: skip
"""Options of other programs and of benchmarks, or of every command; the last are what other tools call ours."""


TOUR_BLOCKS = [block for page in TOUR for block in blocks(page) if not block.not_run]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("docs/models/*.md")))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES)


def lines_of(path: Path) -> list[str]:
    """The calls of specslide in the blocks and sentences of a file; those that are only named are left out."""
    whole = [line for block in blocks(path) for line in block.text.splitlines() if line.startswith("specslide ")]
    spans = [span for span in code_spans(path) if re.match(r"specslide \S+.* --", span)]
    return whole + spans


def calls() -> list[str]:
    return [*(line for name in DOCUMENTS for line in lines_of(ROOT / name)), *examples()]


def test_the_tour_has_blocks_of_every_kind() -> None:
    assert {block.kind for block in TOUR_BLOCKS} == {"commands", "python", "study"}


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_every_block_is_run_or_says_why_not(name: str) -> None:
    page = ROOT / name
    silent = [b.line for b in blocks(page) if b.not_run is None and (page not in TOUR or b.kind == "other")]
    assert silent == [], "mark what is not run: <!-- not run: why --> in front of it"
    marked = [block for block in blocks(page) if block.not_run]
    assert len(marked) == len(MARK.findall(page.read_text())), "a mark is right in front of its block"


@pytest.mark.parametrize("line", calls())
def test_the_parser_takes_every_call(line: str) -> None:
    parse(line)


@pytest.mark.parametrize(
    "line", ["specslide tile a --out x --frob", "specslide tile a", "specslide frob", "specslide study"]
)
def test_a_stale_call_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|names no command"):
        parse(line)


def test_every_option_that_is_named_is_there() -> None:
    known = {option for command in commands().values() for parameter in command.params for option in parameter.opts}
    named = {
        option
        for name in DOCUMENTS
        for span in code_spans(ROOT / name)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", span)
    }
    assert named - known - OTHERS == set()


def test_every_command_that_is_named_is_there() -> None:
    spans = [span for name in ("README.md", "CHANGELOG.md", *PAGES) for span in code_spans(ROOT / name)]
    named = {span.removeprefix("specslide ") for span in spans if re.fullmatch(r"specslide [a-z]+([ -][a-z]+)*", span)}
    assert len(named) > 3
    assert {name for name in named if name not in commands() and not name.startswith("import histoprep")} == set()


# ------------------------------------------------------------------------------------------------------ the tour


def follow(folder: Path, tour: list[Block]) -> list[str]:
    """Do in a folder what the blocks say, one after the other; the calls that were made."""
    made = []
    for block in tour:
        if block.kind == "python":
            (folder / "script.py").write_text(block.text)
            runpy.run_path(str(folder / "script.py"))
        elif block.kind == "study":
            (folder / "study.yaml").write_text(block.text)
        else:
            for line in block.text.splitlines():
                result = CliRunner().invoke(cli.app, shlex.split(line, comments=True)[1:], catch_exceptions=False)
                assert result.exit_code == 0, (line, result.output)
                made.append(line)
    return made


def is_quick(block: Block) -> bool:
    called = {line.split()[1] for line in block.text.splitlines() if block.kind == "commands"}
    return block.kind == "python" or (block.kind == "commands" and called <= QUICK)


@pytest.mark.usefixtures("one_process")
def test_the_quick_part_of_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two slides of the demo's cohort only, and a model of random weights."""
    cohort = tmp_path / "demo-out/cohort"
    for name in ("slides", "annotations"):
        (cohort / name).mkdir(parents=True)
    tumours = make_slide(cohort / "slides/synthetic-00.tif", seed=0, tumour=True)
    make_slide(cohort / "slides/synthetic-08.tif", seed=1, tumour=False, size_px=(1024, 1024))
    features = [{"type": "Feature", "geometry": mapping(tumour), "properties": {}} for tumour in tumours]
    (cohort / "annotations/synthetic-00.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": features})
    )
    (cohort / "manifest.csv").write_text("slide_path\nslides/synthetic-00.tif\nslides/synthetic-08.tif\n")
    write_model(tmp_path / "demo-out/study/training/model", tile_px=128)
    monkeypatch.chdir(tmp_path)
    quick = [block for block in TOUR_BLOCKS if is_quick(block)]
    assert len(follow(tmp_path, quick)) >= 7
    assert (tmp_path / "tour/kept.png").exists()
    assert (tmp_path / "tour/api/heatmaps/synthetic-08/report.html").exists()


@pytest.mark.nightly
def test_the_whole_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the demo's cohort, its slides a sixteenth of their size but for one, and a study of three epochs over it."""
    make_cohort(tmp_path / "demo-out/cohort", size_px=(1024, 1024))
    make_slide(tmp_path / "demo-out/cohort/slides/synthetic-00.tif", seed=0, tumour=True)
    monkeypatch.chdir(tmp_path)
    study = StudyConfig(
        manifest=Path("demo-out/cohort/manifest.csv"), out=Path("demo-out/study"),
        tile=TilingConfig(mpp=0.5, tile_px=128),
        train=TrainConfig(backbone="resnet10t", weights="none", input_px=64, epochs=3, batch_size=32, threads=2),
    )  # fmt: skip
    run(study)
    calls_made = follow(tmp_path, TOUR_BLOCKS)
    assert calls_made == [line for block in TOUR_BLOCKS if block.kind == "commands" for line in block.text.splitlines()]
    assert (tmp_path / "tour/study/index.html").exists()
