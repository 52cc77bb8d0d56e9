"""Lesions of less than a hundredth of a slide's tiles, from slides of pixels and a label each, to heatmaps; nightly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shapely import Polygon
from shapely.geometry import mapping
from typer.testing import CliRunner

from pipeline import cli
from pipeline.demo.anatomy import blob, largest, plan_anatomy
from pipeline.demo.painting import Background, paint
from pipeline.demo.pyramid import write_pyramid
from tiling.annotations.rasterize import area_fractions
from tiling.stores.features import FeatureStore

SIDE, MPP, TILE_PX = 2048, 1.0, 64
RADIUS_UM = 70
SLIDES = 100
"""Two thirds of them train. Of 38 training slides the same settings learned nothing (slide AUROC 0.55); nor do they, of
as many as here, if the radius is 55 µm (0.48), and if it is 62 µm they reach 0.89.
"""
SPLITS = ("train", "train", "train", "train", "val", "test")
GLASS: tuple[Background, ...] = ("white", "grey", "pink")


def write_slide(path: Path, seed: int, *, diseased: bool) -> Polygon | None:
    """A slide, in whose tissue lies one lesion of 140 micrometres if it is diseased; returns the lesion."""
    random = np.random.default_rng(seed)
    anatomy, lesion = plan_anatomy(random, size_px=(SIDE, SIDE), mpp=MPP, tumour=False), None
    if diseased:
        core = largest(anatomy.tissue[0].buffer(-2 * RADIUS_UM / MPP))
        place = core.representative_point()
        lesion = blob(random, place.x, place.y, RADIUS_UM / MPP, wobble=0.15)
        fat = tuple(largest(patch.difference(lesion.buffer(60))) for patch in anatomy.fat if patch.area > 0)
        anatomy = replace(anatomy, tumours=(lesion,), fat=fat)
    write_pyramid(path, paint(anatomy, seed=seed, pen=None, background=GLASS[seed % 3]), mpp=MPP, tile_px=256, levels=3)
    return lesion


def write_cohort(folder: Path) -> dict[str, Polygon]:
    """Slides, half of them diseased, and their labels; returns the lesions by slide.

    `labels.csv` names no annotation, and `truth.csv` those of the slides held out.
    """
    head, lines, truth = "slide_path,slide_id,label,split", [], {}
    for number in range(SLIDES):
        seed = 4 * (number // 2) + number % 2
        name = f"s{seed:03d}"
        lesion = write_slide(folder / f"{name}.tif", seed, diseased=number % 2 == 1)
        split = SPLITS[number // 2 % len(SPLITS)]
        lines.append(f"{name}.tif,{name},{'benign' if lesion is None else 'tumour'},{split}")
        if lesion is not None:
            truth[name] = lesion
            feature = {
                "type": "Feature",
                "geometry": mapping(lesion),
                "properties": {"classification": {"name": "tumour"}},
            }
            (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    (folder / "labels.csv").write_text("\n".join([head, *lines]) + "\n")
    held_out = [f"{line},{line[:4]}.geojson" if "tumour" in line else f"{line}," for line in lines if "test" in line]
    (folder / "truth.csv").write_text("\n".join([f"{head},annotation", *held_out]) + "\n")
    return truth


def specslide(*arguments: object) -> None:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output


def require_found(folder: Path, truth: dict[str, Polygon]) -> None:
    """Embed, train by the defaults, explain the slides held out, and test what is said of them."""
    labels, features, run = folder / "labels.csv", folder / "features", folder / "run"
    specslide("embed", "--manifest", labels, "--mpp", MPP, "--tile-px", TILE_PX, "--out", features)
    specslide("train", "--bags", features, "--manifest", labels, "--threads", 1, "--out", run)
    held_out = [line.split(",")[1] for line in (folder / "truth.csv").read_text().splitlines()[1:]]
    stores = [features / f"{name}.features.zarr" for name in held_out]
    shares = [
        np.mean(area_fractions(lesion, FeatureStore(features / f"{name}.features.zarr").tiles) >= 0.5)
        for name, lesion in truth.items()
    ]
    assert np.mean(shares) < 0.01
    assert max(shares) < 0.015
    specslide("heatmap", *stores, "--model", run / "model", "--out", folder / "heatmaps")
    specslide("evaluate-slides", folder / "heatmaps", "--manifest", folder / "truth.csv", "--out", folder / "test")
    found = json.loads((folder / "test" / "slides.json").read_bytes())
    assert found["score"] == "bag_probability"
    assert found["scores"]["bag_probability"]["auroc"]["value"] >= 0.95
    assert found["attention"]["slides"] == len(held_out) // 2
    assert found["attention"]["auroc"]["value"] >= 0.95


@pytest.mark.nightly
def test_lesions_of_a_hundredth_of_the_tiles_are_found_from_labels_of_slides(tmp_path: Path) -> None:
    """Of 16 slides held out AUROC was 1.000, and within the positive 8 that of attention 0.997."""
    require_found(tmp_path, write_cohort(tmp_path))
