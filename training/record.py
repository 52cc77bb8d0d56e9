"""What is written of a finished run: the model's record, and tables of splits, metrics and predictions. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from tiling.core.versions import RESEARCH_USE, software_versions
from training.config import AnyConfig, BagConfig
from training.data.bags import encoder_of
from training.data.samples import Samples, Split
from training.data.splits import SPLITS
from training.evaluation.bootstrap import Interval
from training.evaluation.tables import csv_text
from training.mil.model import BagClassifier
from training.models.backbones import find_architecture
from training.models.classifier import TileClassifier
from training.models.info import BagInfo, GroupSummary, ModelInfo, NoveltySummary, SplitSummary
from training.recipes import MACHINE_SETTINGS

_SOFTWARE = ("torch", "timm", "lightning", "numpy", "opencv-python-headless", "scipy")


@dataclass(frozen=True)
class Calibration:
    """Temperature, decision threshold and positive class, chosen on the validation split."""

    temperature: float
    threshold: float
    positive: int


def describe(
    network: TileClassifier | BagClassifier,
    origin: str,
    splits: Mapping[str, Split],
    config: AnyConfig,
    calibration: Calibration,
    metrics: Mapping[str, Mapping[str, Interval]],
    best_epoch: int,
    hashes: Mapping[str, str],
    *,
    ece_before: Mapping[str, Interval],
    groups: Sequence[GroupSummary],
    novelty: NoveltySummary | None,
) -> ModelInfo | BagInfo:
    """The record of a trained network, which model.json holds.

    Args:
        network: The trained network.
        origin: The name of its first weights.
        splits: The tiles, or bags, by split; "train" is among them.
        config: The settings it was trained with.
        calibration: Temperature, threshold and positive class.
        metrics: By split and metric.
        best_epoch: From 1.
        hashes: Of what it was made from, beside that of the data.
        ece_before: By split, the expected calibration error before the temperature.
        groups: The metrics by site and by scanner.
        novelty: How out-of-distribution detection was fitted; None: it was not.

    Returns:
        The record, without the hashes of the model folder's files.

    Raises:
        ConfigError: For a hub's backbone whose configuration cannot be fetched.
    """
    samples = splits["train"].samples
    common: dict[str, Any] = {
        "classes": samples.classes,
        "positive_class": samples.classes[calibration.positive],
        "mpp": samples.mpp,
        "tile_px": splits["train"].tile_px,
        "icc": samples.icc,
        "temperature": calibration.temperature,
        "threshold": calibration.threshold,
        "training": config.model_dump(mode="json", exclude=set(MACHINE_SETTINGS)),
        "best_epoch": best_epoch,
        "data": {name: _summary(split) for name, split in splits.items()},
        "metrics": {name: dict(of_split) for name, of_split in metrics.items()},
        "ece_before": dict(ece_before),
        "groups": tuple(groups),
        "hashes": {"data": samples.identity(), **hashes},
        "software": software_versions(*_SOFTWARE),
    }
    if isinstance(config, BagConfig):
        own = {name: getattr(config, name) for name in ("head", "head_dim", "dropout", "top_k", "bag")}
        return BagInfo(encoder=encoder_of(samples), **own, **common)
    mean, std = (tuple(b.flatten().tolist()) for b in (network.mean, cast(TileClassifier, network).std))
    architecture = find_architecture(config.backbone)
    common["training"] |= {"weights": origin}  # no path of a machine
    return ModelInfo(
        backbone=architecture.name,
        backbone_args=dict(architecture.args),
        input_px=cast(TileClassifier, network).input_px,
        mean=cast(tuple[float, float, float], mean),
        std=cast(tuple[float, float, float], std),
        stain_norm=cast(TileClassifier, network).stain,
        novelty=novelty,
        **common,
    )


def _summary(split: Split) -> SplitSummary:
    counts = np.bincount(split.label, minlength=len(split.classes)).tolist()
    return SplitSummary(
        cases=len(np.unique(split.case_id)),
        slides=len(np.unique(split.slide_id)),
        tiles=len(split),
        tiles_per_class=dict(zip(split.classes, counts, strict=True)),
    )


def metric_record(info: ModelInfo | BagInfo) -> dict[str, object]:
    """The content of metrics.json."""
    record = info.model_dump(mode="json", include={"metrics", "data", "temperature", "threshold", "positive_class"})
    return record | {"best_epoch": info.best_epoch, "interval": "95% bootstrap over cases", "notice": RESEARCH_USE}


def provenance_record(samples: Samples, machine: Mapping[str, object]) -> dict[str, object]:
    """The content of provenance.json beyond model.json, which holds its hash: each source's hash, and the machine.

    Slides and cases are named by their ids, as in the tables beside it; no path is in it.
    """
    sources = []
    tiles = np.bincount(samples.source, minlength=len(samples.hashes)).tolist()
    for row in np.unique(samples.source, return_index=True)[1].tolist():
        source = samples.source[row]
        facts = {"case_id": str(samples.case_id[row]), "split": str(samples.split[row])}
        if samples.bags:
            for part in samples.bags[source]:
                own = {"sha256": part.sha256, "slide_sha256": part.slide_sha256}
                sources.append({"slide_id": part.slide_id, "tiles": len(part.rows), **facts, **own})
            continue
        own = {"slide_sha256": samples.slides[source]} if samples.slides else {}
        facts |= {"slide_id": str(samples.slide_id[row]), "sha256": samples.hashes[source]}
        sources.append({"tiles": tiles[source], **facts, **own})
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
    """A row a class: its name, by split its tiles (or bags) and their cases, its sites ("" where none is known)."""
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
    """CSV: a row a case, with its split and how many tiles, or bags, of each class it has."""
    cases, first, case_of = np.unique(samples.case_id, return_index=True, return_inverse=True)
    counts = np.zeros((len(cases), len(samples.classes)), dtype=int)
    np.add.at(counts, (case_of, samples.label), 1)
    rows = [[case, samples.split[f], *count] for case, f, count in zip(cases, first, counts.tolist(), strict=True)]
    return csv_text(["case_id", "split", *(f"{samples.noun}s_{name}" for name in samples.classes)], rows)
