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
SLIDES = 100
"""Two thirds of them train. Of 38 training slides the gated head learned nothing (slide AUROC 0.55)."""
SPLITS = ("train", "train", "train", "train", "val", "test")
GLASS: tuple[Background, ...] = ("white", "grey", "pink")


def write_slide(path: Path, seed: int, *, radius_um: float | None) -> Polygon | None:
    """A slide, in whose tissue lies one lesion of that radius, of none if it is None; returns the lesion."""
    random = np.random.default_rng(seed)
    anatomy, lesion = plan_anatomy(random, size_px=(SIDE, SIDE), mpp=MPP, tumour=False), None
    if radius_um is not None:
        core = largest(anatomy.tissue[0].buffer(-2 * radius_um / MPP))
        place = core.representative_point()
        lesion = blob(random, place.x, place.y, radius_um / MPP, wobble=0.15)
        fat = tuple(largest(patch.difference(lesion.buffer(60))) for patch in anatomy.fat if patch.area > 0)
        anatomy = replace(anatomy, tumours=(lesion,), fat=fat)
    write_pyramid(path, paint(anatomy, seed=seed, pen=None, background=GLASS[seed % 3]), mpp=MPP, tile_px=256, levels=3)
    return lesion


def write_cohort(folder: Path, radius_um: float) -> dict[str, Polygon]:
    """Slides, half of them diseased, and their labels; returns the lesions by slide.

    `labels.csv` names no annotation, and `truth.csv` those of the slides held out.
    """
    head, lines, truth = "slide_path,slide_id,label,split", [], {}
    for number in range(SLIDES):
        seed = 4 * (number // 2) + number % 2
        name = f"s{seed:03d}"
        lesion = write_slide(folder / f"{name}.tif", seed, radius_um=radius_um if number % 2 else None)
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


def require_found(folder: Path, truth: dict[str, Polygon], head: str, max_share: float, min_auroc: float) -> None:
    """Embed, train by the defaults of a head, explain the slides held out, and test what is said of them.

    At most `max_share` of a slide's tiles are lesion, and on average less than a hundredth. Attention ranks them within
    slides with at least `min_auroc`.
    """
    labels, features, run = folder / "labels.csv", folder / "features", folder / f"run-{head}"
    specslide("embed", "--manifest", labels, "--mpp", MPP, "--tile-px", TILE_PX, "--out", features)
    specslide("train", "--bags", features, "--manifest", labels, "--head", head, "--threads", 1, "--out", run)
    held_out = [line.split(",")[1] for line in (folder / "truth.csv").read_text().splitlines()[1:]]
    stores = [features / f"{name}.features.zarr" for name in held_out]
    shares = [
        np.mean(area_fractions(lesion, FeatureStore(features / f"{name}.features.zarr").tiles) >= 0.5)
        for name, lesion in truth.items()
    ]
    assert np.mean(shares) < 0.01
    assert max(shares) < max_share
    specslide("heatmap", *stores, "--model", run / "model", "--out", folder / "heatmaps")
    specslide("evaluate-slides", folder / "heatmaps", "--manifest", folder / "truth.csv", "--out", folder / "test")
    found = json.loads((folder / "test" / "slides.json").read_bytes())
    assert found["score"] == "bag_probability"
    assert found["scores"]["bag_probability"]["auroc"]["value"] >= 0.95
    assert found["attention"]["slides"] == len(held_out) // 2
    assert found["attention"]["auroc"]["value"] >= min_auroc


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("radius_um", "max_share", "head", "min_auroc"), [(70, 0.015, "gated", 0.95), (55, 0.01, "top-k", 0.9)]
)
def test_lesions_of_a_hundredth_of_the_tiles_are_found_from_labels_of_slides(
    radius_um: float, max_share: float, head: str, min_auroc: float, tmp_path: Path
) -> None:
    """Of 16 slides held out AUROC was 1.000 both times, and within the positive 8 that of attention 0.997 and 0.958.

    With features by ONNX Runtime in place of torch, equal to 1e-5 of the largest, the last is 0.927. Of lesions of
    55 µm the gated head learns nothing (0.48), as its validation says too.
    """
    require_found(tmp_path, write_cohort(tmp_path, radius_um), head, max_share, min_auroc)
