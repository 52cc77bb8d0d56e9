"""Lesions of less than a hundredth of a slide's tiles, from slides of pixels and a label each, to heatmaps; nightly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from shapely import Polygon, box
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from inference.exports import TABLE
from inference.summary import SUMMARY
from pipeline import cli
from pipeline.demo.anatomy import blob, largest, plan_anatomy
from pipeline.demo.painting import Background, paint
from pipeline.demo.pyramid import write_pyramid

SIDE, MPP, TILE_PX = 2048, 0.5, 64
RADIUS_UM = 35
SLIDES = 64
GLASS: tuple[Background, ...] = ("white", "grey", "pink")


def write_slide(path: Path, seed: int, *, diseased: bool) -> list[Polygon]:
    """A slide, in whose tissue lies one lesion of 70 micrometres if it is diseased; returns the lesion."""
    random = np.random.default_rng(seed)
    anatomy = plan_anatomy(random, size_px=(SIDE, SIDE), mpp=MPP, tumour=False)
    if diseased:
        core = largest(anatomy.tissue[0].buffer(-2 * RADIUS_UM / MPP))
        place = core.representative_point()
        lesion = blob(random, place.x, place.y, RADIUS_UM / MPP, wobble=0.15)
        fat = tuple(largest(patch.difference(lesion.buffer(60))) for patch in anatomy.fat if patch.area > 0)
        anatomy = replace(anatomy, tumours=(lesion,), fat=fat)
    write_pyramid(path, paint(anatomy, seed=seed, pen=None, background=GLASS[seed % 3]), mpp=MPP, tile_px=256, levels=3)
    return list(anatomy.tumours)


def write_cohort(folder: Path, *, slides: int) -> dict[str, list[Polygon]]:
    """Slides, half of them diseased, and `labels.csv`, which names no annotation; returns the lesions by slide."""
    lines, truth = ["slide_path,slide_id,case_id,label,split"], {}
    for number in range(slides):
        name, diseased = f"s{number:03d}", number % 2 == 1
        truth[name] = write_slide(folder / f"{name}.tif", number, diseased=diseased)
        split = ("train", "train", "val", "test")[number // 2 % 4]
        lines.append(f"{name}.tif,{name},{name},{'tumour' if diseased else 'benign'},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return truth


def specslide(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result


def covered(table: pyarrow.Table, lesions: list[Polygon]) -> NDArray[np.float64]:
    """The share of each tile that is lesion."""
    corners = zip(*(table[name].to_numpy().tolist() for name in ("minx", "miny", "width", "height")), strict=True)
    squares = [box(x, y, x + w, y + h) for x, y, w, h in corners]
    return np.array([sum(square.intersection(one).area for one in lesions) / square.area for square in squares])


@pytest.mark.nightly
def test_lesions_of_less_than_a_hundredth_are_found_from_labels_of_slides(tmp_path: Path) -> None:
    truth = write_cohort(tmp_path, slides=SLIDES)
    labels, features, run = tmp_path / "labels.csv", tmp_path / "features", tmp_path / "run"
    specslide("embed", "--manifest", labels, "--mpp", MPP, "--tile-px", TILE_PX, "--out", features)
    specslide("train", "--bags", features, "--manifest", labels, "--head", "gated", "--epochs", 40, "--batch-size", 8,
              "--threads", 1, "--out", run)  # fmt: skip
    held_out = [f"s{number:03d}" for number in range(SLIDES) if number // 2 % 4 == 3]
    pictures = [tmp_path / f"{name}.tif" for name in held_out]
    specslide("heatmap", *pictures, "--model", run / "model", "--out", tmp_path / "heatmaps")
    scores, found, shares = [], [], []
    for name in held_out:
        folder = tmp_path / "heatmaps" / name
        scores.append(json.loads((folder / SUMMARY).read_bytes())["bag"]["probability"])
        if truth[name]:
            table = pyarrow.parquet.read_table(folder / TABLE)
            lesion = covered(table, truth[name])
            shares.append(np.mean(lesion >= 0.5))
            clear = (lesion >= 0.5) | (lesion == 0)  # a tile at the lesion's edge is neither
            found.append(roc_auc_score(lesion[clear] >= 0.5, table["attention"].to_numpy()[clear]))
    slide_auroc = roc_auc_score([bool(truth[name]) for name in held_out], scores)
    assert max(shares) < 0.01
    assert slide_auroc >= 0.95
    assert np.mean(found) >= 0.95
