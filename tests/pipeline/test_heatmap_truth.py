"""The demo's own study, and what its heatmaps say of the tumours of slides it was not trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ome_types
import pytest
import shapely
import tifffile
from sklearn.metrics import roc_auc_score

from inference import PredictConfig, load_model, make_heatmap
from inference.config import OutputConfig
from pipeline.demo.demo import MPP, TILE_PX, TRAIN
from pipeline.demo.synthetic import make_cohort
from pipeline.study.config import HeatmapConfig, StudyConfig
from pipeline.study.run import run
from tiling import TilingConfig
from tiling.annotations.rasterize import rasterised, read_polygons
from tiling.grid import Raster
from tiling.manifest import ManifestRow, read_manifest
from training import TileModel


@dataclass(frozen=True)
class Agreement:
    """Of all slides together."""

    auroc: float
    """Of the pixels of the maps that were analysed, by whether their centre is in a tumour."""
    iou: float
    """Area that regions where the probability is at least a half share with the tumours, of what either covers."""
    iou_at_models: float
    """The same by the pixels of the maps, at the model's own threshold."""


def agreement(rows: Sequence[ManifestRow], model: TileModel, folder: Path) -> Agreement:
    """What the files of half-overlapping heatmaps say, against the outlines that the slides were painted from."""
    outputs = OutputConfig(formats=("geojson", "ometiff"), region_threshold=0.5)
    heat, is_tumour, shared, covered = [], [], 0.0, 0.0
    for row in rows:
        assert row.annotation is not None
        truth = read_polygons(row.annotation, None).get("tumour", shapely.Polygon())
        config = PredictConfig(overlap=0.5)
        made = make_heatmap(row.slide_path, model, folder, config, slide_id=row.slide_id, outputs=outputs)
        features = json.loads((made.folder / "regions.geojson").read_text())["features"]
        regions = shapely.union_all([shapely.geometry.shape(feature["geometry"]) for feature in features])
        shared += regions.intersection(truth).area
        covered += regions.union(truth).area
        values = tifffile.imread(made.folder / "heatmap.ome.tif")
        size_um = ome_types.from_tiff(made.folder / "heatmap.ome.tif").images[0].pixels.physical_size_x
        assert size_um is not None
        heat.append(values.ravel())
        is_tumour.append(rasterised(truth, Raster(values, size_um / MPP)).values.ravel())
    p, t = np.concatenate(heat), np.concatenate(is_tumour)
    seen, called = np.isfinite(p), p >= model.info.threshold
    return Agreement(
        auroc=float(roc_auc_score(t[seen], p[seen])),
        iou=shared / covered,
        iou_at_models=float((called & t).sum() / (called | t).sum()),
    )


@pytest.mark.nightly
def test_heatmaps_of_held_out_slides_against_the_truth(tmp_path: Path) -> None:
    """A tile is called tumour in training if half of it is, so a region ends where the probability is a half."""
    manifest, tiling = make_cohort(tmp_path / "cohort"), TilingConfig(mpp=MPP, tile_px=TILE_PX)
    report = run(
        StudyConfig(manifest=manifest, out=tmp_path / "study", tile=tiling, train=TRAIN, heatmap=HeatmapConfig())
    )
    held_out = [row for row in read_manifest(manifest) if row.split == "test"]
    assert len(held_out) == 4
    found = agreement(held_out, load_model(report.model), tmp_path / "heatmaps")
    assert found.auroc >= 0.98
    assert found.iou >= 0.8
    assert found.iou_at_models >= 0.8
