"""Stress tests of models whose answer is known: a threshold on brightness."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn

from tests.training.models.test_folder import info_of
from tiling.core.artefact import locked_folder
from tiling.core.errors import ConfigError, InputError, ModelError, OutputError
from tiling.core.settings import checked
from training.config import ShiftsConfig
from training.evaluation.bootstrap import Interval
from training.evaluation.evaluate import Progress, choose_tiles, labelled_tiles
from training.evaluation.perturbations import SHIFTS
from training.evaluation.robustness import StressTest, area, picture, stress
from training.models.classifier import TileClassifier, TileModel
from training.models.info import ModelInfo

SIDE = 16

RESULTS = ("stress.csv", "stress.json", "stress.png")


class Brightness(nn.Module):
    """Logits 0 and 20 times how much darker than mid-grey a picture is."""

    def forward(self, pixels: Tensor) -> Tensor:
        darker = 20 * (0.5 - pixels.mean(dim=(1, 2, 3)))
        return torch.stack([torch.zeros_like(darker), darker], dim=1)


def brightness_model(**changes: object) -> TileModel:
    network = TileClassifier(Brightness(), SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    changes = {"tile_px": SIDE, "temperature": 1.0, "threshold": 0.5, "mpp": None, "training": {}} | changes
    info: ModelInfo = info_of(network, ("bright", "dark")).model_copy(update=changes)
    return TileModel(network, info, "0" * 64, torch.device("cpu"))


def greys(count: int = 60) -> NDArray[np.uint8]:
    """Pictures (count, 16, 16, 3), the odd ones darker; their levels overlap a little."""
    random = np.random.default_rng(0)
    level = np.where(np.arange(count) % 2, 105, 150)[:, None, None, None] + random.normal(0, 15, (count, 1, 1, 1))
    return np.clip(level + random.normal(0, 10, (count, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Those pictures, of 20 cases."""
    lines = ["path,case_id,label"]
    for number, grey in enumerate(greys()):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), grey[..., ::-1])
        lines.append(f"{number}.png,case{number // 3},{'dark' if number % 2 else 'bright'}")
    path = tmp_path / "index.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


Tested = Callable[..., StressTest]


@pytest.fixture
def tested(table: Path, tmp_path: Path) -> Tested:
    """Stresses models by name on all pictures of the table, into `out`."""

    def run(
        models: dict[str, TileModel], batch_size: int = 7, progress: Progress | None = None, **options: object
    ) -> StressTest:
        samples = labelled_tiles(next(iter(models.values())).info, images=table)
        chosen = choose_tiles(samples, "all", table)
        config = checked(ShiftsConfig, {"strengths": 2, **options}, "stress options")
        return stress(models, chosen, tmp_path / "out", config, resamples=50, batch_size=batch_size, progress=progress)

    return run


def probabilities(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the model says is the chance of "dark", in closed form."""
    return np.asarray(1 / (1 + np.exp(-20 * (0.5 - pictures.mean(axis=(1, 2, 3)) / 255))))


@pytest.mark.parametrize("metric", ["balanced_accuracy", "auroc"])
def test_each_point_is_scikit_learn_s_figure_on_shifted_tiles(metric: str, tested: Tested) -> None:
    shifts = ["brightness", "gamma", "noise"]
    result = tested({"m": brightness_model(threshold=0.6)}, metric=metric, shifts=shifts)
    labels = np.arange(60) % 2
    assert list(result.curves) == shifts
    values = set()
    for name in shifts:
        curve = result.curves[name]["m"]
        assert [p.strength for p in curve.points] == ([0, 0.5, 1] if name == "noise" else [-1, -0.5, 0, 0.5, 1])
        for point in curve.points:
            score = probabilities(SHIFTS[name](greys(), point.strength))
            expected = (
                roc_auc_score(labels, score)
                if metric == "auroc"
                else balanced_accuracy_score(labels, (score >= 0.6).astype(int))
            )
            assert point.metric.value == pytest.approx(expected, abs=1e-9)
            assert point.amount == SHIFTS[name].amount(point.strength)
            values.add(round(expected, 6))
            low, high = point.metric.low, point.metric.high
            assert low is not None
            assert high is not None
            assert low <= expected + 1e-9
            assert expected - 1e-9 <= high
        trapezoid = np.trapezoid([p.metric.value or 0 for p in curve.points], [p.strength for p in curve.points])
        assert curve.area.value == pytest.approx(trapezoid / (1 if name == "noise" else 2), abs=1e-12)
    assert result.unshifted["m"] == result.curves["noise"]["m"].points[0].metric
    assert len(values) > 3 or metric == "auroc", "the shifts matter to this model"


def test_area_is_exact_for_a_straight_line_and_has_the_interval_of_its_resamples() -> None:
    strengths = [-1.0, -0.25, 0.5, 1.0]
    slope, height = np.array([0.0, 0.1, -0.2]), np.array([0.5, 0.6, 0.7])
    values = [height + slope * s for s in strengths]
    np.testing.assert_allclose(area(strengths, values), height, atol=1e-15)  # a line's mean is its middle
    broken = [values[0], np.array([0.5, np.nan, 0.7]), *values[2:]]
    np.testing.assert_array_equal(np.isnan(area(strengths, broken)), [False, True, False])


def test_models_are_paired_and_their_classes_put_in_order(tested: Tested) -> None:
    swapped = brightness_model(classes=("dark", "bright"))
    network = swapped.network

    class Other(Brightness):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels).flip(1)

    network.backbone = Other()
    result = tested({"a": brightness_model(), "b": swapped}, shifts=["contrast"])
    curves = result.curves["contrast"]
    assert curves["a"] == curves["b"]
    assert result.unshifted["a"] == result.unshifted["b"]


def test_files_say_what_was_found_and_equal_tests_are_equal_bytes(tested: Tested, tmp_path: Path) -> None:
    models = {"one $": brightness_model(), "two": brightness_model(threshold=0.9)}
    seen: list[tuple[int, int]] = []
    result = tested(models, shifts=["stain", "jpeg"], progress=lambda done, total: seen.append((done, total)))
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted([*RESULTS, "commit.json"])
    before = {name: (out / name).read_bytes() for name in RESULTS}
    assert before["stress.png"].startswith(b"\x89PNG")
    picture_ = cv2.imdecode(np.frombuffer(before["stress.png"], np.uint8), cv2.IMREAD_COLOR)
    assert picture_ is not None
    assert min(picture_.shape[:2]) > 250
    record = json.loads(before["stress.json"])
    assert "research use" in record["notice"]
    assert record["models"] == {"one $": "0" * 64, "two": "0" * 64}
    assert record["curves"]["jpeg"]["two"]["points"][2]["metric"]["value"] == (
        result.curves["jpeg"]["two"].points[2].metric.value
    )
    rows = list(csv.DictReader(before["stress.csv"].decode().splitlines()))
    assert len(rows) == 2 * (5 + 3)
    assert {row["model"] for row in rows} == set(models)
    point = result.curves["stain"]["two"].points[-1]
    row = next(r for r in rows if (r["model"], r["shift"], r["strength"]) == ("two", "stain", "1"))
    assert (row["amount"], row["balanced_accuracy"]) == (point.amount, f"{point.metric.value:.6f}")
    places = 1 + 4 + 2
    assert seen[-1] == (2 * places * 60, 2 * places * 60)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    tested(models, shifts=["stain", "jpeg"], batch_size=60)
    assert {name: (out / name).read_bytes() for name in RESULTS} == before, "the size of batches does not matter"


def test_where_a_class_is_missing_the_figures_are_none_and_the_picture_is_drawn(table: Path, tmp_path: Path) -> None:
    model = brightness_model()
    samples = labelled_tiles(model.info, images=table)
    bright = samples.split_of("all").only(np.flatnonzero(samples.label == 0))
    result = stress({"m": model}, bright, tmp_path / "out", ShiftsConfig(shifts=("hue",), strengths=1), resamples=10)
    assert result.curves["hue"]["m"].area == Interval(None, None, None, 10)
    assert "m,hue,-1,-45°,,,,\n" in (tmp_path / "out" / "stress.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "metric.*balanced_accuracy"),
        ({"shifts": ["blur"]}, "shifts.*sharpness"),
        ({"shifts": []}, "shift"),
        ({"shifts": ["hue", "hue"]}, "shifts.*once"),
        ({"strengths": 0}, "strengths"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    options: dict[str, object], message: str, tested: Tested, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        tested({"m": brightness_model()}, **options)
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_are_refused_by_name(tested: Tested, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^other: "):
        tested({"m": brightness_model(), "other": brightness_model(positive_class="bright")})
    nan = brightness_model()
    nan.network.backbone = nn.Identity()  # set below
    nan.network.mean.fill_(torch.nan)
    nan.network.backbone = Brightness()
    with pytest.raises(ModelError, match="finite"):
        tested({"m": nan})
    samples = labelled_tiles(brightness_model().info, images=table)
    unsplit = replace(samples, split=np.full(len(samples), ""))
    with pytest.raises(InputError, match="split"):
        choose_tiles(unsplit, "test", table)
    assert not (tmp_path / "out" / "stress.json").exists()


def test_a_folder_in_use_and_one_that_cannot_be_are_refused(tested: Tested, tmp_path: Path) -> None:
    models = {"m": brightness_model()}
    with locked_folder(tmp_path / "out"), pytest.raises(OutputError, match="another job"):
        tested(models, shifts=["hue"], strengths=1)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="out"):
        tested(models, shifts=["hue"], strengths=1)


def test_the_picture_has_a_place_for_each_shift_and_the_legend(tested: Tested) -> None:
    one, many = (tested({"m": brightness_model()}, shifts=s, strengths=1) for s in (["hue"], list(SHIFTS)))
    small, large = (cv2.imdecode(np.frombuffer(picture(r, 2), np.uint8), cv2.IMREAD_COLOR) for r in (one, many))
    assert small is not None
    assert large is not None
    assert small.shape[0] < large.shape[0]
    assert small.shape[1] < large.shape[1]
