"""What is written of a finished run: the model's record, and tables of splits, metrics and predictions. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from tiling.core.versions import RESEARCH_USE, software_versions
from training.config import TrainConfig
from training.data.samples import Samples, Split
from training.data.splits import SPLITS
from training.evaluation.bootstrap import Interval
from training.evaluation.tables import csv_text
from training.models.backbones import find_architecture
from training.models.classifier import TileClassifier
from training.models.info import GroupSummary, ModelInfo, NoveltySummary, SplitSummary
from training.recipes import MACHINE_SETTINGS

_SOFTWARE = ("torch", "timm", "lightning", "numpy", "opencv-python-headless", "scipy")


@dataclass(frozen=True)
class Calibration:
    """Temperature, decision threshold and positive class, chosen on the validation split."""

    temperature: float
    threshold: float
    positive: int


def describe(
    network: TileClassifier,
    origin: str,
    splits: Mapping[str, Split],
    config: TrainConfig,
    calibration: Calibration,
    metrics: Mapping[str, Mapping[str, Interval]],
    best_epoch: int,
    key: str,
    *,
    ece_before: Mapping[str, Interval],
    groups: Sequence[GroupSummary],
    novelty: NoveltySummary | None,
) -> ModelInfo:
    """The record of a trained network, which model.json holds.

    Args:
        network: The trained network.
        origin: The name of its first weights.
        splits: The tiles by split; "train" is among them.
        config: The settings it was trained with.
        calibration: Temperature, threshold and positive class.
        metrics: By split and metric.
        best_epoch: From 1.
        key: The hash of the recipe.
        ece_before: By split, the expected calibration error before the temperature.
        groups: The metrics by site and by scanner.
        novelty: How out-of-distribution detection was fitted; None: it was not.

    Returns:
        The record, without the hashes of files.

    Raises:
        ConfigError: For a hub's backbone whose configuration cannot be fetched.
    """
    samples = splits["train"].samples
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
        tile_px=splits["train"].tile_px,
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        training=config.model_dump(mode="json", exclude=set(MACHINE_SETTINGS))
        | {"weights": origin},  # no path of a machine
        best_epoch=best_epoch,
        data={name: _summary(split) for name, split in splits.items()},
        metrics={name: dict(of_split) for name, of_split in metrics.items()},
        ece_before=dict(ece_before),
        groups=tuple(groups),
        novelty=novelty,
        hashes={"data": samples.identity(), "training": key},
        software=software_versions(*_SOFTWARE),
    )


def _summary(split: Split) -> SplitSummary:
    counts = np.bincount(split.label, minlength=len(split.classes)).tolist()
    return SplitSummary(
        cases=len(np.unique(split.case_id)),
        slides=len(np.unique(split.slide_id)),
        tiles=len(split),
        tiles_per_class=dict(zip(split.classes, counts, strict=True)),
    )


def metric_record(info: ModelInfo) -> dict[str, object]:
    """The content of metrics.json."""
    record = info.model_dump(mode="json", include={"metrics", "data", "temperature", "threshold", "positive_class"})
    return record | {"best_epoch": info.best_epoch, "interval": "95% bootstrap over cases", "notice": RESEARCH_USE}


def provenance_record(samples: Samples, machine: Mapping[str, object]) -> dict[str, object]:
    """The content of provenance.json beyond model.json, which holds its hash: each source's hash, and the machine.

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


def class_rows(samples: Samples) -> list[tuple[str, ...]]:
    """A row a class: its name, in each split its tiles and their cases, and its sites ("" where none is known)."""
    rows = []
    for number, name in enumerate(samples.classes):
        own = samples.label == number
        cells = [name]
        for split in SPLITS:
            there = samples.where(split)
            there = there[own[there]]
            cells.append(f"{len(there):,} of {len(np.unique(samples.case_id[there])):,} cases")
        sites = np.unique(samples.site[own & (samples.site != "")])
        rows.append((*cells, f"{len(sites):,}" if len(sites) else ""))
    return rows


def split_table(samples: Samples) -> str:
    """CSV: a row a case, with its split and how many tiles of each class it has."""
    cases, first, case_of = np.unique(samples.case_id, return_index=True, return_inverse=True)
    counts = np.zeros((len(cases), len(samples.classes)), dtype=int)
    np.add.at(counts, (case_of, samples.label), 1)
    rows = [[case, samples.split[f], *count] for case, f, count in zip(cases, first, counts.tolist(), strict=True)]
    return csv_text(["case_id", "split", *(f"tiles_{name}" for name in samples.classes)], rows)
