"""Biopsies of one centre and another, learned from their labels alone. Research use only.

    python -m tests.benchmarks.mil_prostate OUT [--heads mean gated] [--seeds 5]

A biopsy of `prostate_panda` (../shared/data or $SPECSLIDE_DATA) is a bag of its tiles. Both trainings have benign
biopsies of one hospital, Karolinska:

    shortcut   cancer of the other hospital, Radboud, so that label and hospital are one    `train.csv`, `external.csv`
    fair       cancer of Karolinska, of which there is little    `fair_train.csv`, `fair_external.csv`

What is tested is biopsies of Karolinska that no training has seen: after `shortcut` a hospital of which the model knows
no cancer. All tiles of a biopsy are of its class, so that no instance figure can be had. A quarter of the training
cases, as a seed draws them in each class, validates. Slide AUROC and balanced accuracy, at the model's own threshold,
are those of the mean probability, and of the majority, over the seeds, with 95% bootstrap intervals over cases; beside
the AUROC is the smallest and largest of any seed. Under each seed a penalty's strength is chosen by validation log
loss.

With `--seeds 0` nothing is trained: OUT gets the features, and tables of the bags for `specslide study bags`.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.mil_bags import (
    PENALTIES,
    BagWriter,
    Tested,
    Tile,
    best_of,
    data_folder,
    settings,
    with_interval,
    with_spread,
)

SIDE_PX, MPP, VAL_SHARE = 128, 2.0, 0.25
TABLES = {"shortcut": ("train.csv", "external.csv"), "fair": ("fair_train.csv", "fair_external.csv")}
Biopsies = dict[str, list[dict[str, str]]]


def biopsies(folder: Path, table: str) -> Biopsies:
    """The tiles of a table by their biopsies. One whose tiles are not all of one class is left out."""
    found: Biopsies = {}
    with (folder / table).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["slide_id"], []).append(row)
    return {name: rows for name, rows in found.items() if len({row["label"] for row in rows}) == 1}


def write_manifest(path: Path, training: Biopsies, testing: Biopsies, seed: int) -> Path:
    """The table of the bags; of each class a share of the training cases, which the seed draws, is validation."""
    random, lines = np.random.default_rng(seed), ["slide_path,slide_id,case_id,label,split"]
    held = {rows[0]["case_id"] for rows in testing.values()}
    first = {name: rows[0] for name, rows in training.items() if rows[0]["case_id"] not in held}
    validating: set[str] = set()
    for label in ("benign", "cancer"):
        cases = sorted({row["case_id"] for row in first.values() if row["label"] == label} - validating)
        validating |= set(random.choice(cases, max(1, round(VAL_SHARE * len(cases))), replace=False).tolist())
    split = {name: "val" if row["case_id"] in validating else "train" for name, row in first.items()}
    for name, row in (first | {name: rows[0] for name, rows in testing.items()}).items():
        lines.append(f"{name}.png,{name},{row['case_id']},{row['label']},{split.get(name, 'test')}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_study_tables(out: Path, name: str, training: Biopsies, testing: Biopsies) -> None:
    """The tables NAME-train.csv and NAME-external.csv of the bags; no case that is tested is trained on."""
    held = {rows[0]["case_id"] for rows in testing.values()}
    kept = {biopsy: rows for biopsy, rows in training.items() if rows[0]["case_id"] not in held}
    for part, bags in (("train", kept), ("external", testing)):
        firsts = ((biopsy, rows[0]) for biopsy, rows in bags.items())
        lines = [f"{biopsy}.png,{biopsy},{row['case_id']},{row['label']},{row['site']}" for biopsy, row in firsts]
        text = "\n".join(["slide_path,slide_id,case_id,label,site", *lines, ""])
        (out / f"{name}-{part}.csv").write_text(text, encoding="utf-8")


def over_seeds(parts: Sequence[Tested]) -> Tested:
    """The mean probability, and what most call it, of the same bags under several seeds."""
    score, called = (np.mean([getattr(part, name) for part in parts], axis=0) for name in ("score", "called"))
    return replace(parts[0], score=score, called=(called >= 0.5).astype(np.int64))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", nargs="+", default=["mean", "gated"])
    parser.add_argument("--penalties", nargs="*", default=list(PENALTIES))
    parser.add_argument("--penalised", default="gated", help="the head that penalties are compared on")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    folder = data_folder("prostate_panda", "train.csv")
    writer = BagWriter(given.out / "features", SIDE_PX, MPP, "cancer")
    methods: list[tuple[str, str, list[dict[str, float]]]] = [(head, head, [{}]) for head in given.heads]
    methods += [(f"{given.penalised}, {name}", given.penalised, PENALTIES[name]) for name in given.penalties]
    print("| trained on | | slide AUROC | of single seeds | balanced accuracy |\n|---|---|---|---|---|")
    for name, tables in TABLES.items():
        training, testing = (biopsies(folder, table) for table in tables)
        for slide_id, rows in (training | testing).items():
            writer.write(slide_id, [Tile(folder / row["path"], row["label"] == "cancer") for row in rows])
        write_study_tables(given.out, name, training, testing)
        if not given.seeds:
            continue
        manifests = [
            write_manifest(given.out / f"{name}-{seed}.csv", training, testing, seed) for seed in range(given.seeds)
        ]
        for title, head, penalties in methods:
            parts = [
                best_of(given.out, manifest, [settings(head, seed=seed, **p) for p in penalties])
                for seed, manifest in enumerate(manifests)
            ]
            whole = over_seeds(parts)
            slides, accuracy = (with_interval(whole, kind) for kind in ("score", "accuracy"))
            print(f"| {' | '.join((name, title, slides, with_spread(parts), accuracy))} |", flush=True)
        labels = parts[0].label
        print(json.dumps({"tables": tables, "tested": len(labels), "cancer": int(labels.sum())}))


if __name__ == "__main__":
    main()
