"""What is written of a finished run: the model's record, and tables of splits, metrics and predictions. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tiling.core.versions import RESEARCH_USE, software_versions
from training.config import TrainConfig
from training.data.loaders import read_px
from training.data.samples import Samples
from training.data.splits import SPLITS
from training.evaluation.metrics import Interval
from training.models.folder import (
    GroupSummary,
    MetricSummary,
    ModelInfo,
    SplitSummary,
    TileClassifier,
    find_architecture,
)

MACHINE_SETTINGS = frozenset(
    {"workers", "threads", "devices", "nodes", "checkpoint_minutes", "checkpoint_steps", "loggers"}
)
"""Settings of how fast a model comes to be and what is said of it, not of which it is."""
_SOFTWARE = ("torch", "timm", "lightning", "numpy", "opencv-python-headless", "scipy")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What is chosen on the validation split once the weights are."""

    temperature: float
    threshold: float
    positive: int


def describe(
    network: TileClassifier,
    origin: str,
    samples: Samples,
    config: TrainConfig,
    calibration: Calibration,
    metrics: Mapping[str, Mapping[str, Interval]],
    best_epoch: int,
    key: str,
    ece_before: Mapping[str, Interval],
    groups: Sequence[GroupSummary],
) -> ModelInfo:
    """The record of a trained network; `origin` names its first weights, `key` is the run's training key."""
    mean, std = (cast(tuple[float, float, float], tuple(b.flatten().tolist())) for b in (network.mean, network.std))
    architecture = find_architecture(config.backbone)
    return ModelInfo(
        backbone=architecture.name,
        backbone_args=dict(architecture.args),
        classes=samples.classes,
        positive_class=samples.classes[calibration.positive],
        input_px=network.input_px,
        mean=mean,
        std=std,
        stain_norm=network.stain,
        mpp=samples.mpp,
        tile_px=read_px(samples, config),
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        training=config.model_dump(mode="json", exclude=set(MACHINE_SETTINGS))
        | {"weights": origin},  # no path of a machine
        best_epoch=best_epoch,
        data={split: _summary(samples, split) for split in SPLITS},
        metrics={
            split: {name: MetricSummary(**asdict(value)) for name, value in of_split.items()}
            for split, of_split in metrics.items()
        },
        ece_before={split: MetricSummary(**asdict(value)) for split, value in ece_before.items()},
        groups=tuple(groups),
        hashes={"data": samples.identity(), "training": key},
        software=software_versions(*_SOFTWARE),
    )


def _summary(samples: Samples, split: str) -> SplitSummary:
    chosen = samples.where(split)
    counts = np.bincount(samples.label[chosen], minlength=len(samples.classes))
    return SplitSummary(
        cases=len(np.unique(samples.case_id[chosen])),
        slides=len(np.unique(samples.slide_id[chosen])),
        tiles=len(chosen),
        tiles_per_class=dict(zip(samples.classes, counts.tolist(), strict=True)),
    )


def metric_record(info: ModelInfo) -> dict[str, object]:
    """What metrics.json says."""
    record = info.model_dump(mode="json", include={"metrics", "data", "temperature", "threshold", "positive_class"})
    return record | {"best_epoch": info.best_epoch, "interval": "95% bootstrap over cases", "notice": RESEARCH_USE}


def provenance_record(samples: Samples, machine: Mapping[str, object]) -> dict[str, object]:
    """What provenance.json says beyond model.json, which holds its hash: the hashes of each source, and the machine.

    Slides and cases are named by their ids, as in the tables beside it; no path is in it.
    """
    first = np.unique(samples.source, return_index=True)[1]
    tiles = np.bincount(samples.source, minlength=len(samples.hashes)).tolist()
    sources = [
        {
            "slide_id": str(samples.slide_id[row]),
            "case_id": str(samples.case_id[row]),
            "split": str(samples.split[row]),
            "tiles": tiles[samples.source[row]],
            "sha256": samples.hashes[samples.source[row]],
        }
        | ({"slide_sha256": samples.slides[samples.source[row]]} if samples.slides else {})
        for row in first.tolist()
    ]
    return {
        "format": "specslide-provenance",
        "version": 1,
        "artefact": "model",
        "inputs": {"data": samples.identity(), "kind": samples.kind, "sources": sources},
        "machine": dict(machine),
        "software": software_versions(*_SOFTWARE),
        "notice": RESEARCH_USE,
    }


def split_table(samples: Samples) -> str:
    """CSV: a row a case, with its split and how many tiles of each class it has."""
    cases, first, case_of = np.unique(samples.case_id, return_index=True, return_inverse=True)
    counts = np.zeros((len(cases), len(samples.classes)), dtype=int)
    np.add.at(counts, (case_of, samples.label), 1)
    rows = [[case, samples.split[f], *count] for case, f, count in zip(cases, first, counts.tolist(), strict=True)]
    return _csv(["case_id", "split", *(f"tiles_{name}" for name in samples.classes)], rows)


def prediction_table(samples: Samples, probabilities: Mapping[str, Floats]) -> str:
    """CSV: a row a tile of validation and test, with its place in level-0 pixels and calibrated probabilities."""
    head = ["split", "case_id", "slide_id", "minx", "miny", "width", "height", "label"]
    rows: list[list[object]] = []
    for split, of_split in probabilities.items():
        for i, p in zip(samples.where(split), of_split, strict=True):
            side = samples.tile_px0[i]
            place = [samples.x0[i], samples.y0[i], side, side] if samples.kind == "stores" else [""] * 4
            names = [split, samples.case_id[i], samples.slide_id[i], *place, samples.classes[samples.label[i]]]
            rows.append([*names, *(f"{value:.6f}" for value in p)])
    return _csv([*head, *(f"prob_{name}" for name in samples.classes)], rows)


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
