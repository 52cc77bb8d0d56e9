"""What labels of whole slides teach: heads and penalties on bags of real tiles whose truth is known. Research use only.

    python -m tests.benchmarks.mil_idc OUT [--share 0.05] [--heads mean max top-k attention gated] [--folds 5]

Tiles are those of `idc_breast` (../shared/data or $SPECSLIDE_DATA), a case a bag. A half of the cases, by the hash of
their names, are negative: their carcinoma tiles are left out. The others are positive and keep as many carcinoma tiles
as are `--share` of their benign ones, at least one (`--share 1` and more: all). Cases of fewer than five benign tiles,
and positive ones without carcinoma, are left out. Features are those of the packaged EfficientNet-Lite0, trained on
ImageNet alone, of tiles enlarged to 96 px.

Every case is tested once, in the fold that holds it, by a model that neither trained on it nor was chosen by it. Slide
AUROC is of the calibrated probabilities of all folds together; instance AUROC is of attention, and of tiles' own
probabilities, within a positive bag, averaged over those; both with a 95% bootstrap interval over cases. Penalties are
compared on one head: the strength is chosen in each fold by validation log loss, from equally many for each.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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

MIN_BENIGN, SIDE, MPP = 5, 50, 4.0
TRUTH = "annotation/idc"
NOTHING = {"sd_lambda": 0.0, "weight_decay": 0.0}
PENALTIES: dict[str, list[dict[str, float]]] = {
    "neither": [NOTHING],
    "spectral decoupling": [NOTHING | {"sd_lambda": value} for value in (0.001, 0.01, 0.1)],
    "weight decay": [NOTHING | {"weight_decay": value} for value in (0.01, 0.1, 1.0)],
}


@dataclass(frozen=True)
class Tested:
    """What held-out cases got: a row a case."""

    case: tuple[str, ...]
    label: NDArray[np.int64]
    score: Floats
    attention: Floats
    """AUROC of attention within the bag; NaN of negative ones."""
    tiles: Floats
    """AUROC of the tiles' own probabilities within the bag; NaN of negative ones."""


def data_folder() -> Path:
    """Where the tiles lie."""
    here = Path(__file__).resolve()
    places = [*(parent / "shared" / "data" for parent in here.parents), Path(os.environ.get("SPECSLIDE_DATA", "."))]
    for place in places:
        if (place / "tiles" / "idc_breast" / "index.csv").exists():
            return place / "tiles" / "idc_breast"
    raise SystemExit("tiles/idc_breast/index.csv is missing: set SPECSLIDE_DATA to the folder of the data")


def embed(folder: Path, out: Path, share: float) -> Path:
    """Feature stores and `labels.csv` of the bags; what is there is kept."""
    with (folder / "index.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    network = make_classifier(PACKAGED_BACKBONE, 2, None, SIDE)
    load_weights(network, PACKAGED_BACKBONE, "packaged")
    encoder = Features(network.eval())
    lines = ["slide_path,slide_id,case_id,label"]
    for case in sorted({row["case_id"] for row in rows}):
        benign = [row for row in rows if row["case_id"] == case and row["label"] == "benign"]
        cancer = [row for row in rows if row["case_id"] == case and row["label"] == "idc"]
        positive = hashlib.sha256(case.encode()).digest()[0] % 2 == 0
        if len(benign) < MIN_BENIGN or (positive and not cancer):
            continue
        kept = cancer[: max(1, round(share * len(benign)))] if share < 1 else cancer
        bag = benign + (kept if positive else [])
        lines.append(f"{case}.png,{case},{case},{'idc' if positive else 'benign'}")
        if not (path := feature_path(out / "features", case)).exists():
            pixels = np.stack([read_image(folder / row["path"], SIDE) for row in bag])
            with torch.inference_mode():
                found = encoder(torch.from_numpy(pixels)).numpy()[:, :-APPEARANCE]
            write(path, case, bag, found)
    (out / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out / "labels.csv"


def write(path: Path, case: str, bag: list[dict[str, str]], features: NDArray[np.float32]) -> None:
    """The feature store of a bag; the truth of its tiles is an annotation column."""
    side = int(np.ceil(np.sqrt(len(bag)))) * SIDE
    grid = Grid(width0=side, height0=side, slide_mpp=MPP, tile_px=SIDE, tile_px0=SIDE, stride_px0=SIDE)
    places = Tiles.all_of(grid).only(np.arange(len(bag)))
    columns = {TRUTH: np.array([row["label"] == "idc" for row in bag], np.float32)}
    slide = SlideFacts(
        slide_id=case, sha256=sha256_json([row["path"] for row in bag]), width=side, height=side, mpp=MPP,
        vendor="tiles", objective_power=None, level_downsamples=(1.0,),
    )  # fmt: skip
    encoder = Encoder(
        name=PACKAGED_BACKBONE, kind="timm", sha256="", tile_px=SIDE, mpp=MPP, input_px=96, dim=features.shape[1]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(path), atomic_folder(path, Recipe("features", {})) as partial:
        write_features(partial, features.shape[1], "float32", [features])
        attributes = FeatureAttributes(slide=slide, grid=grid, encoder=encoder, columns=tuple(columns))
        write_feature_columns(partial, Tiles(grid, places.x0, places.y0, columns), attributes)


def tested(out: Path, manifest: Path, config: BagConfig) -> tuple[float, Tested]:
    """The validation log loss of one fold's model, and what its test cases got."""
    samples = samples_from_features(out / "features", manifest, config)
    run = out / "runs" / sha256_json(config.model_dump(mode="json"))[:16]
    folder = train(samples, run, config).model
    model, rows = load_bag_model(folder), []
    for index in samples.where("test").tolist():
        (part,) = samples.bags[index]
        store = FeatureStore(part.path)
        found = model.explain([numbered(store.read(), 0, part.path)])
        truth = store.tiles.columns[TRUTH] > 0.5
        inside = [
            float(roc_auc_score(truth, values)) if truth.any() else np.nan
            for values in (found.attention, found.tiles[:, model.info.positive])
        ]
        rows.append(
            (str(samples.case_id[index]), samples.label[index], found.probabilities[model.info.positive], *inside)
        )
    case, label, score, attention, tiles = zip(*rows, strict=True)
    loss = read_bag_info(folder).metrics["val"]["log_loss"].value or np.inf
    return loss, Tested(case, np.array(label), np.array(score), np.array(attention), np.array(tiles))


def together(folds: list[Tested]) -> Tested:
    """All folds as one."""
    cases = tuple(case for fold in folds for case in fold.case)
    columns = (
        np.concatenate([getattr(fold, name) for fold in folds]) for name in ("label", "score", "attention", "tiles")
    )
    return Tested(cases, *columns)


def with_interval(found: Tested, kind: str, resamples: int = 2000) -> str:
    """A figure with its 95% bootstrap interval over cases."""
    random, values = np.random.default_rng(0), []
    positive = found.label == 1

    def value(rows: NDArray[np.int64]) -> float:
        if kind == "score":
            return float(roc_auc_score(found.label[rows], found.score[rows]))
        return float(np.mean(getattr(found, kind)[rows][positive[rows]]))

    for _ in range(resamples):
        rows = random.integers(0, len(found.label), len(found.label))
        if 0 < positive[rows].sum() < len(rows):
            values.append(value(rows))
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{value(np.arange(len(found.label))):.3f} ({low:.3f}-{high:.3f})"


def configurations(head: str, settings: Mapping[str, float], folds: int, seed: int) -> Iterator[BagConfig]:
    """One a fold."""
    for fold in range(folds):
        yield BagConfig.model_validate(
            {"head": head, "folds": folds, "fold": fold, "seed": seed, "threads": 1, **settings}
        )


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--heads", nargs="+", default=["mean", "max", "top-k", "attention", "gated"])
    parser.add_argument("--penalties", nargs="*", default=list(PENALTIES))
    parser.add_argument("--penalised", default="gated", help="the head that penalties are compared on")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    manifest = embed(data_folder(), given.out, given.share)
    lines = []
    for head in given.heads:
        folds = [tested(given.out, manifest, config)[1] for config in configurations(head, {}, given.folds, given.seed)]
        lines.append((head, together(folds)))
        print(row(*lines[-1]), flush=True)
    for name in given.penalties:
        grid = [[tested(given.out, manifest, c) for c in configurations(given.penalised, s, given.folds, given.seed)]
                for s in PENALTIES[name]]  # fmt: skip
        best = [min(of_fold, key=lambda pair: pair[0])[1] for of_fold in zip(*grid, strict=True)]
        lines.append((f"{given.penalised}, {name}", together(best)))
        print(row(*lines[-1]), flush=True)
    print("\n| | slide AUROC | instance AUROC of attention | of tiles' probabilities |\n|---|---|---|---|")
    print("\n".join(row(*line) for line in lines))
    first = lines[0][1]
    print(json.dumps({"cases": len(first.label), "positive": int(first.label.sum()), "share": given.share}))


def row(name: str, found: Tested) -> str:
    """A line of the table."""
    return f"| {name} | {' | '.join(with_interval(found, kind) for kind in ('score', 'attention', 'tiles'))} |"


if __name__ == "__main__":
    main()
