"""What benchmarks of multiple-instance learning share: bags of real tiles, and what models make of them.

Features are those of the packaged EfficientNet-Lite0, trained on ImageNet alone; small tiles are enlarged to 96 px.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tiling.core.artefact import Recipe, atomic_folder, locked_folder
from tiling.core.files import sha256_json
from tiling.grid import Grid, Tiles
from tiling.stores.features import Encoder, FeatureAttributes, FeatureStore, feature_path
from tiling.stores.store import SlideFacts
from tiling.stores.write_features import write_feature_columns, write_features
from training import BagConfig, load_bag_model, samples_from_features, train
from training.data.bags import numbered
from training.data.dataset import read_image
from training.models.backbones import PACKAGED_BACKBONE, load_weights
from training.models.classifier import Features, make_classifier
from training.models.info import read_bag_info
from training.models.ood import APPEARANCE

Floats = NDArray[np.float64]

NOTHING = {"sd_lambda": 0.0, "weight_decay": 0.0}
_COLUMNS = ("label", "score", "called", "attention", "tiles")
PENALTIES: dict[str, list[dict[str, float]]] = {
    "neither": [NOTHING],
    "spectral decoupling": [NOTHING | {"sd_lambda": value} for value in (0.001, 0.01, 0.1)],
    "weight decay": [NOTHING | {"weight_decay": value} for value in (0.01, 0.1, 1.0)],
}


class Tile(NamedTuple):
    """A tile's picture, and whether it is positive."""

    path: Path
    positive: bool


@dataclass(frozen=True)
class Tested:
    """What held-out bags got: a row a bag."""

    case: tuple[str, ...]
    label: NDArray[np.int64]
    score: Floats
    called: NDArray[np.int64]
    """What it is called at the model's own threshold."""
    attention: Floats
    """AUROC of attention within the bag; NaN of those whose tiles are all alike."""
    tiles: Floats
    """AUROC of the tiles' own probabilities within the bag; NaN of those whose tiles are all alike."""


def data_folder(name: str, index: str) -> Path:
    """Where the tiles of that name lie."""
    here = Path(__file__).resolve()
    places = [*(parent / "shared" / "data" for parent in here.parents), Path(os.environ.get("SPECSLIDE_DATA", "."))]
    for place in places:
        if (place / "tiles" / name / index).exists():
            return place / "tiles" / name
    raise SystemExit(f"tiles/{name}/{index} is missing: set SPECSLIDE_DATA to the folder of the data")


def truth_of(positive: str) -> str:
    """The column of feature stores that says which tiles are of the positive class."""
    return f"annotation/{positive}"


class BagWriter:
    """Writes the feature stores of bags into a folder; what is there is kept."""

    def __init__(self, folder: Path, side_px: int, mpp: float, positive: str) -> None:
        self.folder, self.side_px, self.mpp, self.truth = folder, side_px, mpp, truth_of(positive)
        network = make_classifier(PACKAGED_BACKBONE, 2, None, side_px)
        load_weights(network, PACKAGED_BACKBONE, "packaged")
        self.encoder, self.input_px = Features(network.eval()), network.input_px

    def write(self, slide_id: str, bag: Sequence[Tile]) -> None:
        """The feature store of a bag; the truth of its tiles is an annotation column."""
        if (path := feature_path(self.folder, slide_id)).exists():
            return
        pixels = np.stack([read_image(tile.path, self.side_px) for tile in bag])
        with torch.inference_mode():
            features = self.encoder(torch.from_numpy(pixels)).numpy()[:, :-APPEARANCE]
        px = self.side_px
        side = int(np.ceil(np.sqrt(len(bag)))) * px
        grid = Grid(width0=side, height0=side, slide_mpp=self.mpp, tile_px=px, tile_px0=px, stride_px0=px)
        places = Tiles.all_of(grid).only(np.arange(len(bag)))
        columns = {self.truth: np.array([tile.positive for tile in bag], np.float32)}
        slide = SlideFacts(
            slide_id=slide_id, sha256=sha256_json([tile.path.name for tile in bag]), width=side, height=side,
            mpp=self.mpp, vendor="tiles", objective_power=None, level_downsamples=(1.0,),
        )  # fmt: skip
        encoder = Encoder(
            name=PACKAGED_BACKBONE, kind="timm", sha256="", tile_px=px, mpp=self.mpp, input_px=self.input_px,
            dim=features.shape[1],
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(path), atomic_folder(path, Recipe("features", {})) as partial:
            write_features(partial, features.shape[1], "float32", [features])
            attributes = FeatureAttributes(slide=slide, grid=grid, encoder=encoder, columns=tuple(columns))
            write_feature_columns(partial, Tiles(grid, places.x0, places.y0, columns), attributes)


def tested(out: Path, manifest: Path, config: BagConfig) -> tuple[float, Tested]:
    """The validation log loss of a model, and what its test bags got; what is trained already is kept."""
    samples = samples_from_features(out / "features", manifest, config)
    run = out / "runs" / sha256_json([manifest.name, config.model_dump(mode="json")])[:16]
    folder = train(samples, run, config).model
    model, rows = load_bag_model(folder), []
    for index in samples.where("test").tolist():
        (part,) = samples.bags[index]
        store = FeatureStore(part.path)
        found = model.explain([numbered(store.read(), 0, part.path)])
        score, truth = (
            found.probabilities[model.info.positive],
            store.tiles.columns[truth_of(model.info.positive_class)] > 0.5,
        )
        inside = [
            float(roc_auc_score(truth, values)) if 0 < truth.sum() < len(truth) else np.nan
            for values in (found.attention, found.tiles[:, model.info.positive])
        ]
        called = int(score >= model.info.threshold)
        rows.append((str(samples.case_id[index]), samples.label[index], score, called, *inside))
    case, *columns = zip(*rows, strict=True)
    loss = read_bag_info(folder).metrics["val"]["log_loss"].value or np.inf
    return loss, Tested(case, *map(np.array, columns))


def best_of(out: Path, manifest: Path, candidates: Sequence[BagConfig]) -> Tested:
    """What the test bags got from the candidate with the smallest validation log loss."""
    return min((tested(out, manifest, config) for config in candidates), key=lambda pair: pair[0])[1]


def together(parts: Sequence[Tested]) -> Tested:
    """All test bags as one."""
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS)
    return Tested(tuple(case for part in parts for case in part.case), *columns)


def figure(found: Tested, kind: str) -> float:
    """A figure of bags: `score` or `accuracy` (balanced) of slides, or the mean over bags of an instance AUROC."""
    if kind == "score":
        return float(roc_auc_score(found.label, found.score))
    if kind == "accuracy":
        return float(np.mean([np.mean(found.called[found.label == label] == label) for label in (0, 1)]))
    return float(np.nanmean(getattr(found, kind)))


def with_interval(found: Tested, kind: str, resamples: int = 2000) -> str:
    """A figure with its 95% bootstrap interval over cases."""
    random, values = np.random.default_rng(0), []
    cases = [np.flatnonzero(np.array(found.case) == case) for case in dict.fromkeys(found.case)]
    for _ in range(resamples):
        rows = np.concatenate([cases[case] for case in random.integers(0, len(cases), len(cases))])
        drawn = Tested(tuple(found.case[row] for row in rows), *(getattr(found, n)[rows] for n in _COLUMNS))
        if 0 < drawn.label.sum() < len(rows):
            values.append(figure(drawn, kind))
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{figure(found, kind):.3f} ({low:.3f} to {high:.3f})"


def with_spread(parts: Sequence[Tested], kind: str = "score") -> str:
    """The smallest and the largest value that a figure has in any part, a fold or a seed."""
    values = [figure(part, kind) for part in parts]
    return f"{min(values):.3f} to {max(values):.3f}"


def settings(head: str, **others: object) -> BagConfig:
    """The settings of one training, those of a penalty among the others; of its own intervals none is read."""
    return BagConfig.model_validate({"head": head, "threads": 1, "bootstrap_resamples": 0, **others})
