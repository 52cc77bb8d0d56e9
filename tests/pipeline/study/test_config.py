"""study.yaml: what is wrong with it is named, key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.study.config import StudyConfig, load_study
from tiling import TilingConfig
from tiling.core.errors import ConfigError
from tiling.core.settings import checked
from training.evaluation.perturbations import SHIFTS

GOOD = "manifest: slides.csv\nout: results\n"


def joined(line: str) -> str:
    """GOOD with one more line, or with those of a mapping in braces."""
    return GOOD + (yaml.safe_dump(yaml.safe_load(line)) if line.startswith("{") else line)


def loaded(folder: Path, text: str) -> StudyConfig:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    study = loaded(tmp_path / "studies", GOOD)
    assert (study.manifest, study.out) == (tmp_path / "studies/slides.csv", tmp_path / "studies/results")
    monkeypatch.chdir(tmp_path / "studies")
    assert load_study(Path("study.yaml")).manifest == Path("slides.csv")
    monkeypatch.chdir(tmp_path)
    assert load_study(Path("studies/study.yaml")).out == Path("studies/results")


def test_absolute_paths_stay(tmp_path: Path) -> None:
    study = loaded(tmp_path, "manifest: /data/slides.csv\nout: ../results\n")
    assert study.manifest == Path("/data/slides.csv")
    assert study.out == tmp_path / "../results"


def test_settings_arrive_and_the_rest_are_defaults(tmp_path: Path) -> None:
    lines = [
        "tile: {mpp: 1, tile_px: 128}",
        "train: {epochs: 3}",
        "heatmap: {slides: all, min_tissue: 0.25}",
        "workers: 3",
    ]
    study = loaded(tmp_path, GOOD + "\n".join(lines))
    assert (study.tile.mpp, study.tile.tile_px, study.tile.overlap) == (1.0, 128, 0.0)
    assert (study.train.epochs, study.train.sd_lambda) == (3, 0.01)
    assert (study.heatmap.slides, study.heatmap.min_tissue, study.workers) == ("all", 0.25, 3)
    assert loaded(tmp_path, GOOD).heatmap.slides == "test"


@pytest.mark.parametrize(
    ("line", "key", "known"),
    [
        ("tyle: {}", "tyle", "manifest, out, tile"),
        ("Tile: {}", "Tile", "tile"),
        ("tile: {mmp: 0.5}", "tile.mmp", "mpp, coarser_ok"),
        ("tile: {tissue: {colour: 1}}", "tile.tissue.colour", "mask_mpp"),
        ("train: {lr: 1}", "train.lr", "learning_rate"),
        ("heatmap: {slide: test}", "heatmap.slide", "slides"),
        ("heatmap: {overlap: 0.5}", "heatmap.overlap", "min_tissue"),  # is of the stores: tile.overlap
        ("repeats: {seed: 1}", "repeats.seed", "seeds, folds"),
        ("evaluate: {group: site}", "evaluate.group", "slides, by"),
        ("stress: {shift: all}", "stress.shift", "shifts, strengths"),
        ("cluster: {kind: slurm}", "cluster.kind", "at, workers"),
        ("heatmap: {outputs: {format: png}}", "heatmap.outputs.format", "formats"),
    ],
)
def test_unknown_keys_are_refused_with_the_known_ones(tmp_path: Path, line: str, key: str, known: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, GOOD + line)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'study.yaml'}: {key}: is not a setting; the settings are ")
    assert known in message


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("tile: {mpp: -1}", "tile.mpp"),
        ("tile: {mpp: 0}", "tile.mpp"),
        ("tile: {mpp: .nan}", "tile.mpp"),
        ("tile: {mpp: half}", "tile.mpp"),
        ("tile: {overlap: 1.0}", "tile.overlap"),
        ("tile: {overlap: -0.1}", "tile.overlap"),
        ("tile: {tile_px: 0}", "tile.tile_px"),
        ("tile: {tile_px: 12.5}", "tile.tile_px"),
        ("tile: {codec: 'jpeg:0'}", "tile.codec"),
        ("tile: {codec: png}", "tile.codec"),
        ("tile: [1, 2]", "tile"),
        ("tile:", "tile"),
        ("train: {epochs: 0}", "train.epochs"),
        ("train: {epochs: many}", "train.epochs"),
        ("heatmap: {slides: some}", "heatmap.slides"),
        ("heatmap: {min_tissue: 2}", "heatmap.min_tissue"),
        ("tile: {tissue: {method: mask}}", "tile"),
        ("repeats: {folds: 2}\nevaluate: {sensitivity: 0.9}\nheatmap: {slides: all}", "evaluate"),
        ("heatmap: {batch_size: 0}", "heatmap.batch_size"),
        ("workers: 0", "workers"),
        ("repeats: {seeds: [0, 0]}", "repeats.seeds"),
        ("repeats: {seeds: [-1]}", "repeats.seeds.0"),
        ("repeats: {folds: 1}", "repeats.folds"),
        ("repeats: {seeds: [0], folds: 3}", "repeats.folds"),
        ("{train: {folds: 3}, repeats: {folds: 3}}", "repeats"),
        ("{train: {val_fraction: 0.5, test_fraction: 0}, repeats: {folds: 2}}", "repeats"),
        ("evaluate: {sensitivity: 0.9}", "evaluate"),
        ("evaluate: {by: [colour]}", "evaluate.by.0"),
        ("stress: {shifts: [warp]}", "stress.shifts"),
        ("stress: {shifts: [hue, hue]}", "stress.shifts"),
        ("cluster: {at: slurm}", "cluster.at"),
        ("cluster: {at: cloud}", "cluster.at"),
        ("tune: {rule: luck}", "tune.rule"),
        ("{tune: {seeds: 2}, repeats: {seeds: [0]}}", "tune"),
        ("workers: [1]", "workers"),
    ],
)
def test_wrong_values_are_refused_naming_the_key(tmp_path: Path, line: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, joined(line))
    assert str(caught.value).startswith(f"{tmp_path / 'study.yaml'}: {key}: ")
    assert "is refused" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", {"": (0, None, None, 0)}),
        ("train: {seed: 3, folds: 4, fold: 2}", {"": (3, None, 4, 2)}),
        ("repeats: {seeds: [5, 1]}", {"seed-5": (5, 0, None, 0), "seed-1": (1, 0, None, 0)}),
        ("{train: {seed: 7}, repeats: {seeds: [1]}}", {"seed-1": (1, 7, None, 0)}),
        ("{train: {seed: 7, split_seed: 2}, repeats: {seeds: [1]}}", {"seed-1": (1, 2, None, 0)}),
        ("{train: {seed: 7}, repeats: {folds: 2}}", {"fold-0": (7, None, 2, 0), "fold-1": (7, None, 2, 1)}),
    ],
)
def test_the_trainings_of_a_study(
    tmp_path: Path, lines: str, expected: dict[str, tuple[int, int | None, int | None, int]]
) -> None:
    """By name: seed, split_seed, folds, fold. Trainings under several seeds share their split."""
    trainings = loaded(tmp_path, joined(lines)).trainings()
    assert {name: (t.seed, t.split_seed, t.folds, t.fold) for name, t in trainings.items()} == expected
    assert list(trainings) == list(expected)


def test_all_shifts_can_be_asked_for(tmp_path: Path) -> None:
    assert loaded(tmp_path, GOOD + "stress: {shifts: [all]}").stress.shifts == tuple(SHIFTS)
    assert loaded(tmp_path, GOOD).stress.shifts == ()


@pytest.mark.parametrize("missing", ["manifest", "out"])
def test_missing_keys_are_named(tmp_path: Path, missing: str) -> None:
    text = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(missing))
    with pytest.raises(ConfigError, match=f"{missing}: "):
        loaded(tmp_path, text)


@pytest.mark.parametrize("text", ["", "[]", "- a\n- b", "just words", "3", "null"])
def test_a_file_without_settings_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"study\.yaml"):
        loaded(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "a: b: c",
        "out: [unclosed",
        "\tout: x",
        "out: !!python/object/apply:os.system ['true']",
        "out: 2024-13-45",  # looks like a date, is none
        "out: " + "[" * 5000,
        "out: \x00",
    ],
    ids=["colons", "bracket", "tab", "code", "date", "depth", "nul"],
)
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"study\.yaml.*YAML"):
        loaded(tmp_path, text)


@pytest.mark.parametrize("name", ["absent.yaml", "folder"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=f"{name}: "):
        load_study(tmp_path / name)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(b"out: \xff\xfe")
    with pytest.raises(ConfigError, match="YAML"):
        load_study(tmp_path / "study.yaml")


names = st.text(max_size=8).filter(lambda name: name not in TilingConfig.model_fields)


@given(st.dictionaries(names, st.none() | st.integers() | st.text(max_size=4), max_size=4))
def test_whatever_is_no_setting_is_refused_as_such(values: dict[str, object]) -> None:
    if values:
        with pytest.raises(ConfigError, match="options: "):
            checked(TilingConfig, values, "options")
    else:
        assert checked(TilingConfig, values, "options") == TilingConfig()
