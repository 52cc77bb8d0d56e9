"""The example of each verb's docstring runs, in a folder with a cohort, its study.yaml and the finished study."""

from __future__ import annotations

import doctest
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.embed import embed_slide
from inference.evaluation.evaluate_slides import evaluate_slides
from inference.heatmap import make_heatmap
from inference.predict import predict_slide
from pipeline.study.run import StudyReport, run
from tiling.tile import tile_slide
from training.evaluation.evaluate import evaluate_models
from training.evaluation.robustness import stress
from training.train import train
from training.tune import tune


@pytest.fixture(scope="module")
def folder(study: StudyReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run, one after the other."""
    return Path(shutil.copytree(study.out.parent, tmp_path_factory.mktemp("examples") / "here"))


VERBS = (
    tile_slide,
    train,
    tune,
    evaluate_models,
    stress,
    predict_slide,
    embed_slide,
    make_heatmap,
    evaluate_slides,
    run,
)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_the_example_of_a_verb_runs(
    verb: Callable[..., object], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    names = vars(sys.modules[verb.__module__])
    example = doctest.DocTestParser().get_doctest(verb.__doc__ or "", dict(names), verb.__name__, None, None)
    assert example.examples
    result = doctest.DocTestRunner().run(example)
    assert result.failed == 0, capsys.readouterr().out
