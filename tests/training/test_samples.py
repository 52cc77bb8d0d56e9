from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from tiling.errors import ConfigError, InputError
from training import Samples, TrainConfig, samples_from_images, samples_from_stores, training_key
from training.data import Tiles
from training.samples import annotation_labels
from training.splits import SPLITS

WriteTable = Callable[[Sequence[Sequence[object]]], Path]
MakeStore = Callable[..., Path]
Cohort = Callable[..., tuple[Path, Path]]
RandomTiles = Callable[[int, int], NDArray[np.uint8]]


def picture(path: Path, value: int) -> None:
    """A grey square of 8 px."""
    assert cv2.imwrite(str(path), np.full((8, 8, 3), value, dtype=np.uint8))


def test_image_table(image_table: Path, tiny: TrainConfig) -> None:
    samples = samples_from_images(image_table, tiny, mpp=2.0)
    assert samples.classes == ("bright", "dark")
    assert (samples.kind, samples.tile_px, samples.mpp, len(samples)) == ("images", 32, 2.0, 48)
    assert samples.label.tolist() == [0, 1] * 24
    assert [len(np.unique(samples.case_id[samples.where(s)])) for s in SPLITS] == [6, 3, 3]
    batch = Tiles(samples, np.array([5, 2, 9]), 32).__getitems__([2, 0])
    for tile, number in zip(batch.tiles.numpy(), (9, 5), strict=True):
        np.testing.assert_array_equal(tile, np.array(PIL.Image.open(image_table.parent / f"images/{number}.png")))
    assert batch.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("rows", "where", "what"),
    [
        ([("path",), ("a.png",)], "row 2", "has no label"),
        ([("path", "label"), ("a.png", "x"), ("a.png", "")], "row 3", "has no label"),
        ([("label",), ("x",)], "row 2", "has no path"),
        ([("path", "label"), ("a.png", "x"), ("lost.png", "y")], "row 3", "does not exist"),
        ([("path", "label"), ("text.png", "x")], "row 2", "is no picture"),
        ([("path", "label"), ("a.png", "x"), ("a.png", "x"), ("a.png", "x")], "table.csv", "all tiles are 'x'"),
        ([("path", "label", "case_id"), ("a.png", "x", "1"), ("a.png", "y", "")], "row 3", "has no case_id"),
        ([("path", "label", "case_id"), ("a.png", "x", "1"), ("b.png", "y", "1")], "table.csv", "val split is empty"),
        ([("path", "label", "split"), ("a.png", "x", "train"), ("a.png", "y", "")], "table.csv", "for 1 of 2"),
        ([("path", "label", "split"), ("a.png", "x", "train"), ("a.png", "y", "fold")], "table.csv", "'fold' is unkn"),
        ([("path", "label", "split"), ("a.png", "x", "train"), ("b.png", "y", "val")], "table.csv", "test split is em"),
        (
            [("path", "label", "case_id", "split"), ("a.png", "x", "1", "train"), ("a.png", "y", "1", "test")],
            "table.csv",
            "'1' is in two splits",
        ),
        (
            [("path", "label", "split"), ("a.png", "x", "train"), ("b.png", "y", "val"), ("c.png", "y", "test")],
            "table.csv",
            "training split has no tile of 'y'",
        ),
    ],
)
def test_bad_image_tables_are_refused(
    rows: Sequence[Sequence[str]], where: str, what: str, write_table: WriteTable, tiny: TrainConfig
) -> None:
    table = write_table(rows)
    for value, name in enumerate(("a.png", "b.png", "c.png")):
        picture(table.parent / name, value)
    (table.parent / "text.png").write_text("no picture")
    with pytest.raises(InputError) as caught:
        samples_from_images(table, tiny)
    assert where in caught.value.where
    assert what in caught.value.what
    assert "\n" not in str(caught.value)


def test_images_without_cases_are_their_own_and_it_is_said(
    write_table: WriteTable, tiny: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    table = write_table([("path", "label"), *((f"{i}.png", "xy"[i % 2]) for i in range(8))])
    for i in range(8):
        picture(table.parent / f"{i}.png", i)
    with caplog.at_level(logging.WARNING):
        samples = samples_from_images(table, tiny)
    assert len(set(samples.case_id)) == 8
    assert "no case_id" in caplog.text


def test_given_splits_and_aliases_are_honoured(write_table: WriteTable, tiny: TrainConfig) -> None:
    splits = ["Training", "train", "valid", "dev", "TEST", "holdout"]
    rows = [(f"{i}.png", f"p{i}", "xy"[i % 2], split) for i, split in enumerate(splits)]
    table = write_table([("path", "patient_id", "label", "split"), *rows])
    for i in range(6):
        picture(table.parent / f"{i}.png", i)
    samples = samples_from_images(table, tiny)
    assert samples.split.tolist() == ["train", "train", "val", "val", "test", "test"]
    assert samples.case_id.tolist() == [f"p{i}" for i in range(6)]


def test_no_test_split_is_needed_where_none_is_asked_for(write_table: WriteTable, tiny: TrainConfig) -> None:
    rows = [("a.png", "x", "train"), ("b.png", "y", "train"), ("c.png", "x", "val"), ("d.png", "y", "val")]
    table = write_table([("path", "label", "split"), *rows])
    for value, name in enumerate("abcd"):
        picture(table.parent / f"{name}.png", value)
    samples = samples_from_images(table, tiny.model_copy(update={"test_fraction": 0.0}))
    assert len(samples.where("test")) == 0


def test_classes_can_be_given(image_table: Path, tiny: TrainConfig) -> None:
    turned = tiny.model_copy(update={"classes": ("dark", "bright")})
    assert samples_from_images(image_table, turned).label.tolist() == [1, 0] * 24
    with pytest.raises(InputError, match="row 2: the label 'bright' is none of dark, grey"):
        samples_from_images(image_table, tiny.model_copy(update={"classes": ("dark", "grey")}))
    with pytest.raises(ConfigError, match="positive_class"):
        samples_from_images(image_table, tiny.model_copy(update={"positive_class": "grey"}))


def test_labels_from_annotations(cohort: Cohort, tiny: TrainConfig) -> None:
    stores, manifest = cohort()
    samples = samples_from_stores(stores, manifest, tiny)
    assert samples.classes == ("benign", "tumour")
    assert samples.label.tolist() == [1, 1, 1, 1, 0, 0, 0] * 6, "the tile between the classes is left out"
    assert samples.row[:7].tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert samples.x0[:7].tolist() == [0, 16, 32, 48, 0, 16, 48]
    assert samples.y0[:7].tolist() == [0, 0, 0, 0, 16, 16, 16]
    assert (samples.tile_px, samples.mpp, samples.tile_px0[0]) == (16, 0.5, 16)
    assert samples.scanner[[0, 7]].tolist() == ["scanner0", "scanner1"]


def test_labels_from_slides(cohort: Cohort, tiny: TrainConfig) -> None:
    stores, manifest = cohort(annotated=False)
    samples = samples_from_stores(stores, manifest, tiny)
    assert samples.label.tolist() == ([0] * 8 + [1] * 8) * 3
    annotated_too, manifest = cohort()
    by_slide = samples_from_stores(annotated_too, manifest, tiny.model_copy(update={"label_from": "slide"}))
    assert by_slide.label.tolist() == samples.label.tolist()


def test_slides_without_annotations_are_negative_or_left_out(
    cohort: Cohort,
    random_tiles: RandomTiles,
    make_store: MakeStore,
    write_table: WriteTable,
    tiny: TrainConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stores, _ = cohort(cases=6)
    for name in ("clean", "unknown", "empty"):
        make_store(name, random_tiles(0 if name == "empty" else 3, 9))
    labels = {"clean": "benign", "unknown": "tumour", "empty": "benign", "lost": "benign"}
    rows = [(f"{n}.svs", n, "benign" if n in ("clean", "empty", "lost") else "tumour") for n in labels]
    slides = [(f"s{s}.svs", f"s{s}", "tumour") for s in range(6)]
    manifest = write_table([("slide_path", "slide_id", "label"), *slides, *rows])
    with caplog.at_level(logging.WARNING):
        samples = samples_from_stores(stores, manifest, tiny)
    assert set(samples.slide_id) == {*(f"s{s}" for s in range(6)), "clean"}
    assert samples.label[samples.slide_id == "clean"].tolist() == [0, 0, 0]
    for reason in ("unknown: left out, it has neither", "empty: left out, its store holds no tile", "lost: left out"):
        assert reason in caplog.text


@pytest.mark.parametrize(
    ("fractions", "changes", "expected"),
    [
        ({"tumour": [0, 0.1, 0.49, 0.5, 1]}, {}, [0, -1, -1, 1, 1]),
        ({"tumour": [0, 0.1, 0.49, 0.5, 1]}, {"negative_max_fraction": 0.1}, [0, 0, -1, 1, 1]),
        ({"tumour": [0, 0.1, 0.49, 0.5, 1]}, {"annotation_threshold": 0.9}, [0, -1, -1, -1, 1]),
        ({"tumour": [0.6, 0.3], "necrosis": [0.3, 0.7]}, {}, [1, 2]),
        ({"tumour": [0.6, 0], "benign": [0.4, 1], "ink": [1, 1]}, {}, [1, 0]),
        ({}, {}, [0, 0]),
    ],
)
def test_annotation_labels(fractions: dict[str, list[float]], changes: dict[str, float], expected: list[int]) -> None:
    columns = {name: np.array(values, dtype=np.float32) for name, values in fractions.items()}
    config = TrainConfig.model_validate(changes)
    found = annotation_labels(columns, len(expected), ("benign", "tumour", "necrosis"), config)
    assert found.tolist() == expected


def test_tiles_of_a_slide_can_be_capped(cohort: Cohort, tiny: TrainConfig) -> None:
    stores, manifest = cohort()

    def rows(limit: int, seed: int) -> list[int]:
        config = tiny.model_copy(update={"max_tiles_per_slide": limit, "seed": seed})
        samples = samples_from_stores(stores, manifest, config)
        assert max(np.bincount(samples.source)) == min(limit, 7)
        return [int(row) for row in samples.row]

    assert rows(5, 0) == rows(5, 0)
    assert rows(5, 0) != rows(5, 1)
    assert rows(99, 0) == rows(99, 1)


def test_stores_that_do_not_fit_together_are_refused(
    cohort: Cohort, random_tiles: RandomTiles, make_store: MakeStore, tiny: TrainConfig
) -> None:
    stores, manifest = cohort()
    make_store("s3", random_tiles(8, 3), {"tumour": [0.0] * 8}, mpp=0.25)
    with pytest.raises(InputError, match="tile all slides alike"):
        samples_from_stores(stores, manifest, tiny)
    without = samples_from_stores(stores, manifest, tiny, leave_out={"s3"})
    assert "s3" not in set(without.slide_id.tolist())


def test_other_store_faults_are_refused(cohort: Cohort, write_table: WriteTable, tiny: TrainConfig) -> None:
    stores, manifest = cohort()
    with pytest.raises(InputError, match="holds no tile of any slide"):
        samples_from_stores(stores / "elsewhere", manifest, tiny)
    with pytest.raises(ConfigError, match="lacks the negative class"):
        samples_from_stores(stores, manifest, tiny.model_copy(update={"classes": ("tumour", "necrosis")}))
    unlabelled = write_table([("slide_path", "slide_id"), *((f"s{i}.svs", f"s{i}") for i in range(6))])
    with pytest.raises(InputError, match="slide s0: has no label"):
        samples_from_stores(stores, unlabelled, tiny.model_copy(update={"label_from": "slide"}))


def test_key_changes_with_all_that_matters_and_nothing_else(
    image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> None:
    def key(**changes: object) -> str:
        config = tiny.model_copy(update=changes)
        return training_key(samples_from_images(image_table, config), config)

    first = key()
    assert key() == first == key(workers=3, threads=2)
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"1")
    changed = [key(seed=1), key(sd_lambda=0.2), key(classes=("dark", "bright")), key(weights=str(weights))]
    weights.write_bytes(b"2")
    changed.append(key(weights=str(weights)))
    picture(tmp_path / "images" / "5.png", 7)
    changed.append(key())
    assert len({first, *changed}) == 1 + len(changed)


def test_samples_are_frozen(image_table: Path, tiny: TrainConfig) -> None:
    samples: Samples = samples_from_images(image_table, tiny)
    with pytest.raises(AttributeError):
        samples.mpp = 1.0  # type: ignore[misc]


def test_where_chooses_tiles_by_the_columns_of_the_stores(
    cohort: Cohort, tiny: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    stores, manifest = cohort()
    everything = samples_from_stores(stores, manifest, tiny)
    caplog.set_level("INFO")
    chosen = samples_from_stores(stores, manifest, tiny.model_copy(update={"where": "x > 0 and y < 1e9"}))
    assert (chosen.x0 > 0).all()
    assert len(chosen) == (everything.x0 > 0).sum() > 0
    assert chosen.identity() != everything.identity()
    assert "tiles left out by where" in caplog.text
    with pytest.raises(ConfigError, match=r"position 1: there is no column 'focus'; .*the columns are x, y, tissue"):
        samples_from_stores(stores, manifest, tiny.model_copy(update={"where": "focus > 1"}))


def test_where_is_refused_for_images_and_parsed_at_once(image_table: Path, tiny: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="images have none"):
        samples_from_images(image_table, tiny.model_copy(update={"where": "x > 1"}))
    with pytest.raises(ConfigError, match="position 4"):
        TrainConfig(where="x >")
