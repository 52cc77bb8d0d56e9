"""`specslide evaluate` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.provenance import trace
from tests.inference.conftest import write_model
from tiling.core.artefact import content_hash
from tiling.core.errors import SpecslideError


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 pictures of 8 cases, `index.csv`, and the models `a` and `b` with random weights."""
    folder = tmp_path_factory.mktemp("cohort")
    random = np.random.default_rng(0)
    lines = ["path,case_id,label,scanner"]
    for number in range(24):
        picture = random.integers(0, 120, (32, 32, 3)) + 120 * (number % 2)
        assert cv2.imwrite(str(folder / f"{number}.png"), picture.astype(np.uint8))
        lines.append(f"{number}.png,case{number // 3},{'tumour' if number % 2 else 'benign'},{'XY'[number // 12]}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate("ab"):
        write_model(folder / name, seed=seed)
    return folder


def test_two_models_are_compared(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cohort)
    arguments = ["evaluate", "a", "b", "--images", "index.csv", "--split", "all", "--by", "scanner", "--by", "case"]
    done = CliRunner().invoke(cli.app, [*arguments, "--resamples", "20", "--out", "out"])
    assert done.exit_code == 0, done.output
    record = json.loads((cohort / "out" / "evaluation.json").read_text())
    assert [model["name"] for model in record["models"]] == ["A", "B"]
    assert set(record["models"][0]["groups"]) == {"scanner", "case"}
    assert set(record["models"][0]["groups"]["scanner"]) == {"X", "Y"}
    assert set(record["differences"]) == set(record["models"][0]["overall"]["metrics"])
    assert (cohort / "out" / "comparison.png").exists()
    chain = trace(cohort / "out" / "comparison.png", [cohort])
    assert (chain.kind, chain.facts["settings"]["by"]) == ("evaluation", ["scanner", "case"])
    assert {link.sha256 for link in chain.made_from} == {content_hash(cohort / name) for name in "ab"}
    assert not any(link.missing for link in chain.made_from)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a", "--images", "index.csv"],
            "index.csv: names no splits, and is not what the model was trained on; pass --spl",
        ),
        (["a", "--images", "index.csv", "--split", "all", "--by", "site"], "--by site: no tile's site is known; fill"),
        (
            ["a", "--images", "index.csv", "--split", "all", "--mpp", "2"],
            "the model's are 32 px at 0.5; pass the images' true --mpp",
        ),
        (["a", "--stores", "stores"], "name no data; pass --stores with --manifest, or --images"),
        (
            ["a", "b", "a", "--images", "index.csv", "--split", "all"],
            "models: 3 are given; pass one, or two to compare",
        ),
        (["lost", "--images", "index.csv"], "lost: is not a model folder; pass the folder `model` of a training run"),
        (["a", "--images", "index.csv", "--where", "focus > 2"], "where: chooses by the columns of tile stores"),
    ],
)
def test_refusals_say_what_to_pass_and_nothing_is_written(
    arguments: list[str], message: str, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cohort)
    error = CliRunner().invoke(cli.app, ["evaluate", *arguments, "--out", "refused"]).exception
    assert isinstance(error, SpecslideError)
    assert message in str(error)
    assert not (cohort / "refused").exists()
