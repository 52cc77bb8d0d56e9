"""Slides put together from real tiles that training never saw: the heatmap tells them apart as well as the bare tiles.

Whatever lies between a tile and the file a pathologist opens (finding tissue, reading, averaging, writing) may cost at
most 0.02 of the AUROC that the model has on the very same tiles.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ome_types
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from inference.config import OutputConfig, PredictConfig
from inference.heatmap import make_heatmap
from pipeline.demo.synthetic import write_pyramid
from training import TileModel, TrainConfig, load_model, samples_from_images, train

MPP, SIDE = 4.0, 50
GLASS = 244
COLUMNS = 16


@dataclass(frozen=True)
class Composite:
    """Tiles on glass, one tile's width of it around them."""

    tiles: NDArray[np.uint8]
    """(N, 50, 50, 3)"""
    positive: NDArray[np.bool_]
    cells: NDArray[np.int64]
    """(N, 2): row and column of each tile in the grid of the slide."""

    def picture(self) -> NDArray[np.uint8]:
        rows, columns = self.cells.max(0) + 2
        cells = np.full((rows, columns, SIDE, SIDE, 3), GLASS, np.uint8)
        cells[tuple(self.cells.T)] = self.tiles
        return np.ascontiguousarray(cells.swapaxes(1, 2).reshape(rows * SIDE, columns * SIDE, 3))

    def labels(self) -> NDArray[np.int8]:
        """-1 where there is glass, 0 and 1, (rows, columns)."""
        found = np.full(self.cells.max(0) + 2, -1, np.int8)
        found[tuple(self.cells.T)] = self.positive
        return found


def composite(index: Path, lines: Sequence[dict[str, str]], positive: str, *, as_found: bool = False) -> Composite:
    """The whole tiles of an index's lines, row after row, or where they were on the slide of their one case."""
    pictures = [np.asarray(Image.open(index.parent / line["path"]), np.uint8) for line in lines]
    whole = [number for number, tile in enumerate(pictures) if tile.shape == (SIDE, SIDE, 3)]
    if as_found:
        cells = np.array([(int(lines[i]["y"]), int(lines[i]["x"])) for i in whole]) // SIDE
        cells -= cells.min(0) - 1
    else:
        cells = np.stack(np.divmod(np.arange(len(whole)), COLUMNS), 1) + 1
    is_positive = np.array([lines[i]["label"] == positive for i in whole])
    return Composite(np.array([pictures[i] for i in whole], np.uint8), is_positive, cells)


@dataclass(frozen=True)
class Judged:
    """Pixels of the maps of composites, and the bare tiles."""

    heat: NDArray[np.float32]
    """Of the pixels over tiles that were analysed."""
    heat_positive: NDArray[np.bool_]
    bare: NDArray[np.float32]
    """Of all tiles, as the model sees them by themselves."""
    bare_positive: NDArray[np.bool_]
    dropped: NDArray[np.bool_]
    """Which tiles have no value at their centre in the map: too little tissue."""

    @property
    def heat_auroc(self) -> float:
        return float(roc_auc_score(self.heat_positive, self.heat))

    @property
    def bare_auroc(self) -> float:
        return float(roc_auc_score(self.bare_positive, self.bare))


def judge(slides: Sequence[Composite], model: TileModel, folder: Path, config: PredictConfig) -> Judged:
    """Write each composite as a lossless slide, make its heatmap, and read the map from its OME-TIFF."""
    heat, truth, bare, dropped = [], [], [], []
    for number, slide in enumerate(slides):
        path = folder / f"composite-{number}.tif"
        write_pyramid(path, slide.picture(), mpp=MPP, levels=2, compression="none")
        made = make_heatmap(path, model, folder / "out", config, outputs=OutputConfig(formats=("ometiff",)))
        values = tifffile.imread(made.folder / "heatmap.ome.tif")
        size = ome_types.from_tiff(made.folder / "heatmap.ome.tif").images[0].pixels.physical_size_x
        assert size is not None
        pixels = [((np.arange(n) + 0.5) * size / MPP / SIDE).astype(int) for n in values.shape]
        labels = np.pad(slide.labels(), [(0, 1 + int(p[-1])) for p in pixels], constant_values=-1)[np.ix_(*pixels)]
        seen = np.isfinite(values) & (labels >= 0)
        heat.append(values[seen])
        truth.append(labels[seen] == 1)
        bare.append(
            np.concatenate(
                [
                    model.predict(part)[:, model.info.positive]
                    for part in np.split(slide.tiles, range(256, len(slide.tiles), 256))
                ]
            )
        )
        centres = ((slide.cells + 0.5) * SIDE * MPP / size).astype(int)
        dropped.append(~np.isfinite(values[tuple(centres.T)]))
    positive = np.concatenate([slide.positive for slide in slides])
    return Judged(np.concatenate(heat), np.concatenate(truth), np.concatenate(bare), positive, np.concatenate(dropped))


@pytest.fixture(scope="module")
def trained(data_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The index of a quarter of the cases, and a run that was trained on some of these: a small network, one epoch."""
    whole, folder = data_dir("tiles/idc_breast/index.csv"), tmp_path_factory.mktemp("idc")
    lines = read(whole)
    cases = sorted({line["case_id"] for line in lines})[::4]
    index = folder / "index.csv"
    with index.open("w", newline="") as f:
        table = csv.DictWriter(f, list(lines[0]))
        table.writeheader()
        table.writerows(line | {"path": str(whole.parent / line["path"])} for line in lines if line["case_id"] in cases)
    config = TrainConfig(
        backbone="resnet10t", weights="none", input_px=32, epochs=1, batch_size=32, learning_rate=2e-3,
        bootstrap_resamples=0, test_fraction=0.4, threads=1,
    )  # fmt: skip
    train(samples_from_images(index, config, mpp=MPP), folder / "run", config)
    return index, folder / "run"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def held_back(index: Path, run: Path) -> list[dict[str, str]]:
    """The lines of the cases that a run kept for its test."""
    test = {line["case_id"] for line in read(run / "split.csv") if line["split"] == "test"}
    return [line for line in read(index) if line["case_id"] in test]


def test_a_heatmap_tells_tiles_apart_as_the_bare_model_does(trained: tuple[Path, Path], tmp_path: Path) -> None:
    index, run = trained
    model = load_model(run / "model")
    lines = held_back(index, run)
    assert not {line["case_id"] for line in lines} & {
        line["case_id"] for line in read(run / "split.csv") if line["split"] != "test"
    }
    slide = composite(index, lines, model.info.positive_class)
    found = judge([slide], model, tmp_path, PredictConfig())
    assert found.bare_auroc > 0.75, "or there is nothing to lose"
    assert found.heat_auroc == pytest.approx(found.bare_auroc, abs=0.02)
    kept = found.bare[~found.dropped]
    np.testing.assert_allclose(np.sort(found.heat), np.sort(kept), atol=1e-5)  # the very tiles, and no others
    assert found.dropped.mean() < 0.1
    assert not found.bare[found.dropped].size or found.bare[found.dropped].max() < 0.9


@pytest.mark.nightly
@pytest.mark.parametrize("config", [PredictConfig(), PredictConfig(min_tissue=0), PredictConfig(overlap=0.5)])
def test_and_where_the_tiles_lay_on_their_patients_slides(
    trained: tuple[Path, Path], tmp_path: Path, config: PredictConfig
) -> None:
    """One slide a case, each tile beside its true neighbours, so that half-overlapping ones see real tissue too."""
    index, run = trained
    model, lines = load_model(run / "model"), held_back(index, run)
    slides = [
        composite(index, [line for line in lines if line["case_id"] == case], model.info.positive_class, as_found=True)
        for case in sorted({line["case_id"] for line in lines})
    ]
    found = judge(slides, model, tmp_path, config)
    assert found.heat_auroc == pytest.approx(found.bare_auroc, abs=0.02)
    assert found.dropped.mean() < 0.15
