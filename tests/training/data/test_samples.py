from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from tiling import TileStore
from tiling.core.errors import ConfigError, InputError
from tiling.stores.label import label_store
from training import Samples, TrainConfig, load_train_config, model_recipe, samples_from_images, samples_from_stores
from training.data.dataset import TileDataset
from training.data.from_stores import annotation_labels
from training.data.preparation import positive_class
from training.data.samples import Split
from training.data.splits import SPLITS
from training.evaluation.evaluate import labelled_tiles
from training.models.info import ModelInfo
from training.record import class_rows

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
    batch = TileDataset(Split("all", samples, np.array([5, 2, 9]), 32)).__getitems__([2, 0])
    for tile, number in zip(batch.tiles.numpy(), (9, 5), strict=True):
        np.testing.assert_array_equal(tile, np.array(PIL.Image.open(image_table.parent / f"images/{number}.png")))
    assert batch.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("rows", "where", "what"),
    [
        ([("path",), ("a.png",)], "table.csv", "has no label: its columns are path"),
        ([("image", "class", "target"), ("a.png", "x", "y")], "table.csv", "has two columns for label: class, target"),
        ([("path", "label"), ("a.png", "x"), ("a.png", "")], "row 3", "has no label"),
        *(
            ([("path", "label"), ("a.png", name)], "row 2", "has no label")
            for name in ("NA", "nan", "None", " n/a ", "?")
        ),
        ([("path", "label"), ("a.png", "IDC"), ("b.png", "idc")], "table.csv", "'IDC' and 'idc' differ in case"),
        ([("path", "label"), ("a.png", "a  b"), ("b.png", "a b")], "table.csv", "'a  b' and 'a b' differ in case"),
        ([("label",), ("x",)], "table.csv", "has no path: its columns are label"),
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


@pytest.mark.parametrize(
    ("name", "separator", "head"),
    [("t.tsv", "\t", "image\tclass"), ("t.csv", ";", "filename;target"), ("t.csv", ",", '"file_name","Label"'),
     ("t.txt", "\t", "img\tcategory")],
)  # fmt: skip
def test_tables_as_people_have_them(name: str, separator: str, head: str, tmp_path: Path, tiny: TrainConfig) -> None:
    for i in range(8):
        picture(tmp_path / f"{i}.png", i)
    lines = [head, *(separator.join([f"{i}.png", "xy"[i % 2]]) for i in range(8))]
    (tmp_path / name).write_text("\n".join(lines))
    samples = samples_from_images(tmp_path / name, tiny)
    assert samples.classes == ("x", "y")
    assert [path.name for path in samples.sources] == [f"{i}.png" for i in range(8)]


@pytest.mark.parametrize("split_up", [False, True])
def test_a_folder_a_class(split_up: bool, tmp_path: Path, tiny: TrainConfig) -> None:
    for i in range(12):
        place = tmp_path / (("train", "valid", "test")[i // 2 % 3] if split_up else "") / "xy"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(place / f"{i}.png", i)
    (tmp_path / "notes.txt").write_text("no picture")
    samples = samples_from_images(tmp_path, tiny)
    assert samples.classes == ("x", "y")
    assert [int(path.stem) % 2 for path in samples.sources] == samples.label.tolist()
    if split_up:
        places = [("train", "val", "test")[int(path.stem) // 2 % 3] for path in samples.sources]
        assert samples.split.tolist() == places
    with pytest.raises(InputError, match="folder a class"):
        samples_from_images(tmp_path / ("train/x" if split_up else "x"), tiny)


def test_pictures_of_any_shape_are_fitted(tmp_path: Path, tiny: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    """A bright middle third of a wide picture: all of a crop, a third of a padded or a stretched picture's width."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    for i in range(8):
        place = tmp_path / "images" / "xy"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        wide[0, 0] = i
        assert cv2.imwrite(str(place / f"{i}.png"), wide)
    bright = {}
    for fit in ("stretch", "pad", "crop"):
        samples = samples_from_images(tmp_path / "images", tiny.model_copy(update={"fit": fit}))
        tile = TileDataset(Split("all", samples, np.arange(8), 24)).__getitems__([0]).tiles[0].numpy()
        bright[fit] = [int((tile[row, :, 0] > 100).sum()) for row in (1, 12)]
    assert bright == {"stretch": [8, 8], "pad": [0, 8], "crop": [24, 24]}
    assert caplog.text.count("8 of 8 pictures are no squares") == 1


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
    with pytest.raises(InputError, match=r"row 2: .*'bright'.*dark, grey"):
        samples_from_images(image_table, tiny.model_copy(update={"classes": ("dark", "grey")}))
    with pytest.raises(ConfigError, match="positive_class"):
        samples_from_images(image_table, tiny.model_copy(update={"positive_class": "grey"}))


def test_labels_from_annotations(cohort: Cohort, tiny: TrainConfig) -> None:
    stores, manifest = cohort()
    samples = samples_from_stores(stores, manifest, tiny)
    assert samples.classes == ("benign", "tumour")
    assert samples.label.tolist() == [1, 1, 1, 1, 0, 0, 0, 0] * 6
    assert samples.clear.tolist() == [True, True, True, True, True, True, False, True] * 6
    for split, tiles in (("train", 7), ("val", 8), ("test", 8)):
        cases = len(np.unique(samples.case_id[samples.split == split]))
        assert len(samples.where(split)) == tiles * cases > 0, "the tile between the classes is not trained on"
    assert samples.row[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert samples.x0[:8].tolist() == [0, 16, 32, 48, 0, 16, 32, 48]
    assert samples.y0[:8].tolist() == [0, 0, 0, 0, 16, 16, 16, 16]
    assert (samples.tile_px, samples.mpp, samples.tile_px0[0]) == (16, 0.5, 16)
    assert samples.scanner[[0, 8]].tolist() == ["scanner0", "scanner1"]


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
    clear = [c >= 0 for c in expected]
    assert found[0].tolist() == [max(c, 0) for c in expected]
    assert found[1].tolist() == clear


def test_tiles_of_a_slide_can_be_capped(cohort: Cohort, tiny: TrainConfig) -> None:
    stores, manifest = cohort()

    def rows(limit: int, seed: int) -> list[int]:
        config = tiny.model_copy(update={"max_tiles_per_slide": limit, "seed": seed})
        samples = samples_from_stores(stores, manifest, config)
        assert max(np.bincount(samples.source)) == min(limit, 8)
        return [int(row) for row in samples.row]

    assert rows(5, 0) == rows(5, 0)
    assert rows(5, 0) != rows(5, 1)
    assert rows(99, 0) == rows(99, 1)


def test_trainings_under_several_seeds_share_split_and_tiles(cohort: Cohort, tiny: TrainConfig) -> None:
    """With a split_seed the seed decides nothing of the data; without one it does."""
    stores, manifest = cohort(cases=12)

    def identity(seed: int, split_seed: int | None) -> str:
        config = tiny.model_copy(update={"max_tiles_per_slide": 5, "seed": seed, "split_seed": split_seed})
        return samples_from_stores(stores, manifest, config).identity()

    assert identity(1, None) != identity(2, None)
    assert identity(1, 7) == identity(2, 7) == identity(7, None)


def test_images_of_a_slide_can_be_capped(write_table: WriteTable, tiny: TrainConfig) -> None:
    rows = [(f"{i}.png", "xy"[i // 2 % 2], f"slide{i % 2}", f"case{i // 2}", SPLITS[i // 4 % 3]) for i in range(24)]
    table = write_table([("path", "label", "slide_id", "case_id", "split"), *rows])
    write_pictures(table, range(24))
    capped = samples_from_images(table, tiny.model_copy(update={"max_tiles_per_slide": 11}))
    assert np.unique(capped.slide_id, return_counts=True)[1].tolist() == [11, 11]
    places = [int(path.stem) for path in capped.sources]
    assert places == sorted(places)


def test_stores_that_do_not_fit_together_are_refused(
    cohort: Cohort, random_tiles: RandomTiles, make_store: MakeStore, tiny: TrainConfig
) -> None:
    stores, manifest = cohort()
    make_store("s3", random_tiles(8, 3), {"tumour": [0.0] * 8}, mpp=0.25)
    with pytest.raises(InputError, match=r"s\d\.zarr: .* at 0\.5 µm/px, s3\.zarr .* at 0\.25"):
        samples_from_stores(stores, manifest, tiny)
    without = samples_from_stores(stores, manifest, tiny, leave_out={"s3"})
    assert "s3" not in set(without.slide_id.tolist())
    for name, mpp in (("s4", 0.48), ("s5", 0.52)):  # each is near those of 0.5, but not the one to the other
        make_store(name, random_tiles(8, int(name[1])), {"tumour": [0.0] * 8}, mpp=mpp)
    with pytest.raises(InputError, match=r"s5\.zarr: .* at 0\.52 µm/px, s4\.zarr .* at 0\.48"):
        samples_from_stores(stores, manifest, tiny, leave_out={"s3"})


def test_stores_of_several_colours_are_refused_and_those_of_one_are_known(
    cohort: Cohort,
    random_tiles: RandomTiles,
    make_store: MakeStore,
    tiny: TrainConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And a model that was trained on others says so where it is tested."""
    stores, manifest = cohort(cases=2)
    assert samples_from_stores(stores, manifest, tiny, to_train=False).icc == "none"
    for number, refused in enumerate((True, False)):
        make_store(f"s{number}", random_tiles(8, number), {"tumour": [1.0, 0.0] * 4}, icc="srgb")
        if refused:
            with pytest.raises(InputError, match=r"s0\.zarr: .*ICC.* s1\.zarr .*--icc"):
                samples_from_stores(stores, manifest, tiny, to_train=False)
    samples = samples_from_stores(stores, manifest, tiny, to_train=False)
    assert samples.icc == "srgb"
    for icc, warnings in (("srgb", 0), ("none", 1)):
        found = labelled_tiles(model_info(samples, icc), stores=stores, manifest=manifest)
        assert found.icc == "srgb"
        assert sum("ICC" in record.message for record in caplog.records) == warnings


def model_info(samples: Samples, icc: str) -> ModelInfo:
    """Of a model of those tiles' side, scale and classes, trained in those colours."""
    return ModelInfo.model_validate(
        {
            "backbone": "test_resnet", "classes": samples.classes, "positive_class": "tumour", "input_px": 32,
            "mean": (0.5,) * 3, "std": (0.5,) * 3, "mpp": samples.mpp, "tile_px": samples.tile_px, "temperature": 1.0,
            "threshold": 0.5, "best_epoch": 1, "training": {}, "data": {}, "metrics": {}, "hashes": {}, "software": {},
            "icc": icc,
        }
    )  # fmt: skip


def test_other_store_faults_are_refused(cohort: Cohort, write_table: WriteTable, tiny: TrainConfig) -> None:
    stores, manifest = cohort()
    with pytest.raises(InputError, match="no tile"):
        samples_from_stores(stores / "elsewhere", manifest, tiny)
    with pytest.raises(ConfigError, match=r"^classes: "):
        samples_from_stores(stores, manifest, tiny.model_copy(update={"classes": ("tumour", "necrosis")}))
    unlabelled = write_table([("slide_path", "slide_id"), *((f"s{i}.svs", f"s{i}") for i in range(6))])
    with pytest.raises(InputError, match=r"slide s0: .*label"):
        samples_from_stores(stores, unlabelled, tiny.model_copy(update={"label_from": "slide"}))


def test_key_changes_with_all_that_matters_and_nothing_else(
    image_table: Path, tiny: TrainConfig, tmp_path: Path
) -> None:
    def key(**changes: object) -> str:
        config = tiny.model_copy(update=changes)
        return model_recipe(samples_from_images(image_table, config), config).sha256

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


def test_labels_that_a_training_does_not_use_change_nothing(cohort: Cohort, tiny: TrainConfig, tmp_path: Path) -> None:
    stores, manifest = cohort()
    config = tiny.model_copy(update={"classes": ("benign", "tumour")})

    def annotate(**rows: int) -> tuple[str, str]:
        """Annotate one row of four tiles for each class in slide s0: what the training then is."""
        boxes = {name: [[0, y], [64, y], [64, y + 16], [0, y + 16], [0, y]] for name, y in rows.items()}
        features = [
            {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
             "properties": {"classification": {"name": name}}}
            for name, ring in boxes.items()
        ]  # fmt: skip
        path = tmp_path / "annotation.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        label_store(stores / "s0.zarr", path)
        samples = samples_from_stores(stores, manifest, config)
        return samples.identity(), model_recipe(samples, config).sha256

    first = annotate(tumour=0)
    whole = TileStore(stores / "s0.zarr").sha256
    assert annotate(tumour=0, necrosis=16) == first
    assert TileStore(stores / "s0.zarr").sha256 != whole
    moved = annotate(tumour=16)
    assert moved[0] != first[0]
    assert moved[1] != first[1]


def test_identity_tells_what_sampling_goes_by(image_table: Path, tiny: TrainConfig) -> None:
    samples = samples_from_images(image_table, tiny)
    other = np.repeat("other", len(samples))
    changed = [
        replace(samples, slide_id=other), replace(samples, site=other), replace(samples, case_id=other),
        replace(samples, split=other), replace(samples, label=1 - samples.label),
    ]  # fmt: skip
    assert len({s.identity() for s in (samples, *changed)}) == 6


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
    with pytest.raises(ConfigError, match=r"position 1: .*'focus'.*x, y, tissue"):
        samples_from_stores(stores, manifest, tiny.model_copy(update={"where": "focus > 1"}))


def test_where_is_refused_for_images_and_parsed_at_once(image_table: Path, tiny: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="images"):
        samples_from_images(image_table, tiny.model_copy(update={"where": "x > 1"}))
    with pytest.raises(ConfigError, match="'x >', position"):
        TrainConfig(where="x >")


# --- sites, folds, leaks ---


def write_pictures(table: Path, values: Sequence[int]) -> None:
    for number, value in enumerate(values):
        picture(table.parent / f"{number}.png", value)


def sited(write_table: WriteTable, count: int = 12) -> Path:
    """Pictures of `count` cases at three sites in turn; case 0 was at two of them."""
    rows = [(f"{i}.png", f"case{i}", f"site{i % 3}", "xy"[i // 3 % 2]) for i in range(count)]
    table = write_table([("path", "case_id", "site", "label"), *rows, (f"{count}.png", "case0", "site3", "x")])
    write_pictures(table, range(count + 1))
    return table


@pytest.mark.parametrize("seed", range(6))
def test_sites_are_split_as_a_whole(seed: int, write_table: WriteTable, tiny: TrainConfig) -> None:
    by_site = tiny.model_copy(update={"group": "site", "seed": seed})
    samples = samples_from_images(sited(write_table), by_site)
    splits = {str(s): set(samples.split[samples.site == s].tolist()) for s in np.unique(samples.site)}
    assert all(len(found) == 1 for found in splits.values())
    assert splits["site0"] == splits["site3"], "a case was at both"
    assert {found.pop() for found in splits.values()} == set(SPLITS)


def test_sites_that_are_missing_or_too_few_are_refused(
    image_table: Path, write_table: WriteTable, tiny: TrainConfig
) -> None:
    with pytest.raises(InputError, match=r"'images/0\.png'.*split by site"):
        samples_from_images(image_table, tiny.model_copy(update={"group": "site"}))
    with pytest.raises(InputError, match=r"site.*balanced"):
        samples_from_images(image_table, tiny.model_copy(update={"balance": ("class", "site")}))
    rows = [(f"{i}.png", f"s{i % 2}", "xy"[i // 2 % 2]) for i in range(8)]
    table = write_table([("path", "site", "label"), *rows])
    write_pictures(table, range(8))
    with pytest.raises(InputError, match=r"test split.*2 sites"):
        samples_from_images(table, tiny.model_copy(update={"group": "site"}))


def test_folds_test_each_case_once(image_table: Path, tiny: TrainConfig) -> None:
    tested: list[str] = []
    for fold in range(4):
        samples = samples_from_images(image_table, tiny.model_copy(update={"folds": 4, "fold": fold}))
        cases = {split: set(samples.case_id[samples.where(split)].tolist()) for split in SPLITS}
        assert [len(cases[split]) for split in SPLITS] == [6, 3, 3]
        assert not cases["train"] & cases["val"] | cases["train"] & cases["test"] | cases["val"] & cases["test"]
        tested += sorted(cases["test"])
    assert sorted(tested) == sorted(f"case{i}" for i in range(12))


def test_folds_that_cannot_be_are_refused(image_table: Path, write_table: WriteTable, tiny: TrainConfig) -> None:
    with pytest.raises(InputError, match=r"13 folds.*at most 12"):
        samples_from_images(image_table, tiny.model_copy(update={"folds": 13}))
    table = write_table([("path", "label", "split"), *((f"{i}.png", "xy"[i % 2], SPLITS[i // 2]) for i in range(6))])
    write_pictures(table, range(6))
    samples_from_images(table, tiny)
    with pytest.raises(InputError, match=r"splits.*cross-validation"):
        samples_from_images(table, tiny.model_copy(update={"folds": 3}))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"fold": 1}, "fold"),
        ({"folds": 3, "fold": 3}, "fold"),
        ({"folds": 1}, "folds"),
        ({"folds": 2, "val_fraction": 0.5}, "val_fraction"),
        ({"group": "slide"}, "group"),
        ({"balance": ["class", "class"]}, "balance"),
        ({"balance": "class"}, "balance"),
        ({"balance": ["scanner"]}, "balance"),
        ({"tiles_per_epoch": 0}, "tiles_per_epoch"),
        ({"workers": -1}, "workers"),
    ],
)
def test_bad_data_settings_name_the_key(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_train_config(None, changes)
    assert caught.value.where.startswith(f"training configuration: {key}")


def test_given_splits_are_checked_for_sites_where_those_are_split(write_table: WriteTable, tiny: TrainConfig) -> None:
    rows = [(f"{i}.png", f"site{i % 3}", "xy"[i % 2], SPLITS[i // 4]) for i in range(12)]
    table = write_table([("path", "site", "label", "split"), *rows])
    write_pictures(table, range(12))
    assert len(samples_from_images(table, tiny)) == 12
    with pytest.raises(InputError, match=r"'site0'.*split"):
        samples_from_images(table, tiny.model_copy(update={"group": "site"}))


def test_one_picture_in_two_splits_is_refused_and_both_are_named(write_table: WriteTable, tiny: TrainConfig) -> None:
    rows = [(f"{i}.png", f"case{i}", "xy"[i % 2], SPLITS[i // 2]) for i in range(6)]
    table = write_table([("path", "case_id", "label", "split"), *rows])
    write_pictures(table, [0, 1, 2, 3, 2, 5])  # 2 and 4 are alike
    with pytest.raises(InputError, match=r"2\.png and .*4\.png .*val.*test"):
        samples_from_images(table, tiny)
    write_pictures(table, [0, 0, 2, 3, 4, 5])  # 0 and 1 are alike, in one split, but of two classes
    with pytest.raises(InputError, match=r"0\.png and .*1\.png .*'x'.*'y'"):
        samples_from_images(table, tiny)


@pytest.mark.parametrize("seed", range(6))
def test_made_splits_keep_one_picture_on_one_side(seed: int, write_table: WriteTable, tiny: TrainConfig) -> None:
    rows = [(f"{i}.png", f"case{i // 2}", "xy"[i // 2 % 2]) for i in range(16)]
    table = write_table([("path", "case_id", "label"), *rows])
    write_pictures(table, [*range(8), 0, *range(9, 16)])  # 0 and 8 are alike
    samples = samples_from_images(table, tiny.model_copy(update={"seed": seed}))
    assert samples.split[0] == samples.split[8], "case0 and case4 hold the same picture"


def test_one_slide_under_two_names_is_refused(cohort: Cohort, tiny: TrainConfig, make_store: MakeStore) -> None:
    stores, manifest = cohort()
    slide = TileStore(stores / "s1.zarr").slide
    make_store("s4", TileStore(stores / "s4.zarr").read(slice(None)), {"tumour": [0.0] * 8}, sha256=slide.sha256)
    with pytest.raises(InputError, match="'s1' and 's4'"):
        samples_from_stores(stores, manifest, tiny)
    assert len(np.unique(samples_from_stores(stores, manifest, tiny, leave_out={"s1"}).slide_id)) == 5


def test_levels_are_what_sampling_is_balanced_over(write_table: WriteTable, tiny: TrainConfig) -> None:
    samples = samples_from_images(sited(write_table), tiny)
    chosen = np.array([3, 0, 12])
    levels = samples.levels(["site", "class", "case", "slide"], chosen)
    assert {name: values.tolist() for name, values in levels.items()} == {
        "site": ["site0", "site0", "site3"],
        "class": [1, 0, 0],
        "case": ["case3", "case0", "case0"],
        "slide": ["3.png", "0.png", "12.png"],
    }


def test_labels_that_are_named_as_classes_are_classes(image_table: Path, tiny: TrainConfig) -> None:
    table = image_table.read_text().replace("dark", "none").replace("bright", "None")
    image_table.write_text(table)
    samples = samples_from_images(image_table, tiny.model_copy(update={"classes": ("None", "none")}))
    assert samples.classes == ("None", "none")
    assert np.bincount(samples.label).tolist() == [24, 24]


@pytest.mark.parametrize(
    ("classes", "named", "shown"),
    [
        (("cancer", "normal"), None, "cancer"),
        (("benign", "tumour"), None, "tumour"),
        (("0", "1"), None, "1"),
        (("Tumor", "negative"), None, "Tumor"),
        (("TUM", "non-tumour tissue"), None, "TUM"),
        (("MUC", "NORM", "STR", "TUM"), None, "TUM"),
        (("adenoma", "normal mucosa"), "normal mucosa", "normal mucosa"),
        (("nodule", "normal"), None, "nodule"),
        (("benign", "normal"), None, "normal"),
    ],
)
def test_the_class_that_heatmaps_show_is_not_the_one_without_disease(
    classes: tuple[str, ...], named: str | None, shown: str
) -> None:
    assert positive_class(classes, TrainConfig(positive_class=named)) == shown


def test_what_is_learned_from_is_counted_by_class(image_table: Path, tiny: TrainConfig) -> None:
    samples = samples_from_images(image_table, tiny)
    expected = ("12 of 6 cases", "6 of 3 cases", "6 of 3 cases")
    assert class_rows(samples) == [("bright", *expected, ""), ("dark", *expected, "")]
    two = replace(samples, site=np.where(samples.label == 0, np.where(samples.row + np.arange(48) < 24, "A", "B"), ""))
    assert [row[-1] for row in class_rows(two)] == ["2", ""]


def test_a_name_that_no_file_can_have_is_refused_by_its_row(
    write_table: Callable[[Sequence[Sequence[object]]], Path],
) -> None:
    table = write_table([("path", "label", "case_id"), ("a" * 300 + ".png", "a", "c")])
    with pytest.raises(InputError, match=r"row 2: the picture .* does not exist"):
        samples_from_images(table, TrainConfig())
