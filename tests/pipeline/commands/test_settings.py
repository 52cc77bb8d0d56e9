"""Options from settings: every setting has one, and all commands and options of version 0.1 are still there."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from inference.config import EvaluateSlidesConfig, OutputConfig, PredictConfig
from pipeline import cli
from pipeline.commands.settings import Settings, options_of, settings_of
from tiling import TilingConfig, TissueConfig
from tiling.annotations.classes import ClassRules
from tiling.core.errors import ConfigError
from training import TrainConfig
from training.config import ShiftsConfig
from training.shortcut.config import ShortcutConfig

BEFORE = {
    "info": "--slide-mpp",
    "tile": "--annotations --cluster --cluster-config --codec --manifest --max-bad-tiles --min-tissue --mpp"
    " --mpp-tolerance --out --overlap --overwrite --part --quality --slide-mpp --tile-px --tissue --worker-memory"
    " --workers",
    "label": "--annotations",
    "train": "--augment --backbone --balance --batch-size --config --devices --epochs --fold --folds --freeze --group"
    " --images --input-px --learning-rate --logger --manifest --mpp --out --sd-lambda --seed --stain-norm --stores"
    " --tiles-per-epoch --weight-decay --weights --where --workers",
    "evaluate": "--batch-size --by --images --manifest --mpp --out --resamples --seed --split --stores --where",
    "stress": "--batch-size --images --manifest --metric --mpp --out --resamples --seed --shifts --split --stores"
    " --strengths --where",
    "heatmap": "--backend --batch-size --cluster --cluster-config --device --formats --manifest --min-region-um2"
    " --min-tissue --model --out --overlap --overwrite --part --precision --readers --region-smoothing-um"
    " --region-threshold --roi --slide-mpp --tta --where --worker-memory",
    "export-model": "--out --overwrite --to",
    "evaluate-slides": "--lesions --manifest --out --resamples --score --seed --sensitivity --separation-um --split",
    "tiles": "--preview --where",
    "init": "",
    "run": "--cluster --cluster-config --dry-run --worker-memory --workers",
    "status": "",
    "provenance": "--json --search",
    "verify": "",
    "demo": "--out --seed --slide",
    "slurm": "--account --array --cpus --executable --gpus --mem --notice-s --partition --requeues --submit --time",
    "import histoprep": "--mpp --out --overwrite",
    "study shortcut": "--amount --backbone --config --confounder --epochs --images --lambdas --manifest --methods --out"
    " --seeds --stores --strength --weight-decays --workers",
}


def command(name: str) -> Any:
    found: Any = typer.main.get_command(cli.app)
    for word in name.split():
        found = found.commands[word]
    return found


def options(name: str) -> set[str]:
    return {option for parameter in command(name).params for option in parameter.opts}


@pytest.mark.parametrize("name", BEFORE)
def test_commands_and_options_keep_their_names(name: str) -> None:
    assert set(BEFORE[name].split()) <= options(name)
    assert ("-o" in options(name)) == ("--out" in BEFORE[name].split())


@pytest.mark.parametrize(
    ("name", "model", "called"),
    [
        ("train", TrainConfig, {"loggers": "logger"}),
        ("tile", TilingConfig, {"annotation": "annotation_order"}),  # the first of its section
        ("tile", ClassRules, {name: f"annotation_{name}" for name in ClassRules.model_fields}),
        ("tile", TissueConfig, {"method": "tissue", "mask_mpp": "tissue_mask_mpp"}),
        ("heatmap", PredictConfig, {}),
        ("heatmap", OutputConfig, {}),
        ("stress", ShiftsConfig, {}),
        ("evaluate-slides", EvaluateSlidesConfig, {"lesion_classes": "lesions", "annotation": "annotation_order"}),
        ("study shortcut", ShortcutConfig, {"sd_lambdas": "lambdas"}),
    ],
)
def test_every_setting_has_an_option(name: str, model: type[BaseModel], called: dict[str, str]) -> None:
    wanted = {f"--{called.get(field, field).replace('_', '-')}" for field in model.model_fields}
    assert wanted <= options(name)
    helped = {option: parameter.help for parameter in command(name).params for option in parameter.opts}
    assert all(helped[option] for option in wanted)


class Inner(BaseModel):
    """A section."""

    depth: int = 1
    """How deep."""


class Example(BaseModel):
    """Settings of every sort."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    size: int | None = Field(None, ge=1)
    """How large. None: as it comes."""
    share: float = 0.25
    """How much."""
    fast: bool = False
    """Whether in a hurry."""
    kinds: tuple[str, ...] = ("a",)
    """Which."""
    weights: tuple[float, ...] = ()
    """How heavy."""
    inner: Inner = Inner()


def run(*words: str) -> Any:
    """What a command of these options is given, or its usage error."""
    app, given = typer.Typer(), []

    @app.command()
    @options_of(Example, common=("size",), names={"kinds": "kind"})
    def example(settings: Settings, other: str = "x") -> None:
        given.append((settings, other))

    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    return given[0] if given else done


def test_only_what_is_given_reaches_the_settings() -> None:
    assert run() == ({}, "x")
    settings, other = run("--size", "3", "--fast", "--kind", "a,b", "--kind", "c", "--weights", "1,2.5", "--other", "y",
                          "--inner-depth", "2")  # fmt: skip
    assert settings == {"size": 3, "fast": True, "kinds": ["a", "b", "c"], "weights": ["1", "2.5"],
                        "inner": {"depth": 2}}  # fmt: skip
    assert other == "y"
    checked = settings_of(Example, settings, "options")
    assert (checked.weights, checked.inner.depth, checked.share) == ((1.0, 2.5), 2, 0.25)
    assert run("--no-fast")[0] == {"fast": False}


def test_help_is_the_fields() -> None:
    text = " ".join(run("--help").output.replace("│", " ").split())
    for words in ("How large. Default: as it comes.", "[default: (0.25)]", "[default: (a)]", "Further settings"):
        assert words in text


def test_types_are_the_parsers_and_ranges_the_settings() -> None:
    assert run("--size", "many").exit_code == 2
    with pytest.raises(ConfigError, match="options: size: 0"):
        settings_of(Example, run("--size", "0")[0], "options")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("tile --patch-size 512", "--tile-px"), ("tile --patch_size 512", "--tile-px"),
        ("tile --tile-size=5", "--tile-px"),
        ("tile --mag 20", "--mpp"), ("tile --magnification 20", "--mpp"), ("tile --stride 1", "--overlap"),
        ("tile --output x", "--out"), ("tile --min_tissue 1", "--min-tissue"), ("tile --ovrlap 0", "--overlap"),
        ("train --batch_size 8", "--batch-size"), ("train --epoch 5", "--epochs"), ("train --lr 1", "--learning-rate"),
        ("train --early-stopping 3", "--patience"), ("train --num-workers 3", "--workers"),
        ("train --gradient-clipping 1", "--clip-norm"), ("train --gradient_accumulation 2", "--accumulate"),
        ("heatmap --model-path m", "--model"), ("heatmap --amp", "--precision"),
        ("predict a.svs", "heatmap"), ("tiel a.svs", "tile"), ("eval", "evaluate"), ("import histoprp", "histoprep"),
    ],
)  # fmt: skip
def test_the_fields_other_words_are_understood(words: str, meant: str) -> None:
    done = CliRunner().invoke(cli.app, words.split(), env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert f"Did you mean {meant}?" in done.stderr


def test_what_is_like_nothing_gets_no_suggestion() -> None:
    done = CliRunner().invoke(cli.app, ["tile", "--zzzzzz"])
    assert done.exit_code == 2
    assert "Did you mean" not in done.stderr


def test_help_has_a_short_option() -> None:
    for name in ([], ["tile"], ["study", "shortcut"]):
        done = CliRunner().invoke(cli.app, [*name, "-h"])
        assert (done.exit_code, "Usage:" in done.output) == (0, True)
