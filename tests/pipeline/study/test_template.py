"""What `specslide init` writes: every setting with its default, in words that cannot go stale."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from pipeline.study.config import EvaluateConfig, HeatmapConfig, StressConfig, StudyConfig, load_study
from pipeline.study.template import SCHEMA, STUDY_YAML, study_schema, study_template, write_template
from tests.pipeline.conftest import RunCli
from tiling import TilingConfig
from tiling.core.errors import OutputError
from training import TrainConfig, TuneConfig


def test_the_template_gives_the_defaults(tmp_path: Path) -> None:
    study, schema = write_template(tmp_path / "new")
    assert (study.name, schema.name) == (STUDY_YAML, SCHEMA)
    folder = tmp_path / "new"
    assert load_study(study) == StudyConfig(manifest=folder / "slides.csv", out=folder / "results")


def test_the_template_holds_every_setting_with_its_meaning() -> None:
    text = study_template()
    values = yaml.safe_load(text)
    assert values.keys() == StudyConfig.model_fields.keys()
    for section in ("tile", "train", "repeats", "evaluate", "stress", "heatmap"):
        kind = StudyConfig.model_fields[section].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        assert values[section].keys() == kind.model_fields.keys()
    words = " ".join(line.strip().removeprefix("# ") for line in text.splitlines())
    for meaning in (
        "Micrometres per pixel of the tiles.",
        "Weight of spectral decoupling; 0 leaves plain cross-entropy.",
        "One training for each of so many folds",
        "Which shifts, or `[all]`",
    ):
        assert meaning in words
    assert max(map(len, text.splitlines())) <= 120


def undocumented(model: type[BaseModel]) -> list[str]:
    return [f"{model.__name__}.{name}" for name, info in model.model_fields.items() if not info.description]


@pytest.mark.parametrize(
    "model", [StudyConfig, TilingConfig, TrainConfig, TuneConfig, HeatmapConfig, EvaluateConfig, StressConfig]
)
def test_every_setting_says_what_it_means(model: type[BaseModel]) -> None:
    assert undocumented(model) == ([] if model is not TilingConfig else ["TilingConfig.tissue"])


def test_what_is_commented_out_is_a_section_too(tmp_path: Path) -> None:
    """With its comment signs taken off, the section of a cluster is accepted."""
    lines = study_template().splitlines()
    start = lines.index("# cluster:")
    text = "\n".join([*lines[: start - 1], *(line.removeprefix("# ").removeprefix("#") for line in lines[start:])])
    (tmp_path / "study.yaml").write_text(text)
    study = load_study(tmp_path / "study.yaml")
    assert study.cluster is not None
    assert study.cluster.at == "local"


def test_a_tuning_that_is_commented_out_is_a_section_too(tmp_path: Path) -> None:
    before, _, rest = study_template().partition("tune: null\n")
    section, blank, after = rest.partition("\n\n")
    text = "\n".join(line.removeprefix("# ").removeprefix("#") for line in section.splitlines())
    (tmp_path / "study.yaml").write_text(before + text + blank + after)
    assert load_study(tmp_path / "study.yaml").tune == TuneConfig()


GOOD = {"manifest": "a.csv", "out": "b"}


@pytest.mark.parametrize(
    ("study", "fault"),
    [
        (GOOD, ""),
        (GOOD | {"tile": {"mpp": 1}, "repeats": {"seeds": [0, 1]}, "cluster": {"at": "slurm", "workers": 3}}, ""),
        (GOOD | {"tyle": {}}, "tyle"),
        (GOOD | {"train": {"lr": 1}}, "lr"),
        (GOOD | {"tile": {"mpp": "half"}}, "half"),
        (GOOD | {"tile": {"overlap": 1.0}}, "1.0"),
        (GOOD | {"heatmap": {"slides": "some"}}, "some"),
        ({"out": "b"}, "manifest"),
    ],
)
def test_editors_are_told_what_is_wrong(study: dict[str, object], fault: str) -> None:
    """By an independent reader of the schema."""
    schema = json.loads(study_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    faults = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(study)]
    assert bool(faults) == bool(fault)
    assert all(fault in message for message in faults)


def test_the_template_fits_its_schema_and_names_it() -> None:
    text = study_template()
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA}"
    jsonschema.Draft202012Validator(json.loads(study_schema())).validate(yaml.safe_load(text))
    assert "Micrometres per pixel of the tiles." in study_schema()


@pytest.mark.parametrize("name", [STUDY_YAML, SCHEMA])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name}: "):
        write_template(tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]


def test_init_on_the_command_line(tmp_path: Path, run_cli: RunCli) -> None:
    assert run_cli("init", cwd=tmp_path).returncode == 0
    assert {p.name for p in tmp_path.iterdir()} == {STUDY_YAML, SCHEMA}
    again = run_cli("init", cwd=tmp_path)
    assert again.returncode == 1
    assert "exists already" in again.stderr
