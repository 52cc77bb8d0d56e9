"""What labels of whole slides teach: heads and penalties on bags of real tiles whose truth is known. Research use only.

    python -m tests.benchmarks.mil_idc OUT [--share 0.05] [--heads mean max top-k attention gated] [--folds 5]

Tiles are those of `idc_breast` (../shared/data or $SPECSLIDE_DATA), a case a bag. A half of the cases, by the hash of
their names, are negative: their carcinoma tiles are left out. The others are positive and keep as many carcinoma tiles
as are `--share` of their benign ones, at least one (`--share 1` and more: all). Cases of fewer than five benign tiles,
and positive ones without carcinoma, are left out.

Every case is tested once, in the fold that holds it, by a model that neither trained on it nor was chosen by it. Slide
AUROC is of the calibrated probabilities of all folds together, beside it the smallest and largest of any fold; instance
AUROC is of attention, and of tiles' own probabilities, within a positive bag, averaged over those; with 95% bootstrap
intervals over cases. Penalties are compared on one head: the strength is chosen in each fold by validation log loss,
from equally many for each.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks.mil_bags import (
    PENALTIES,
    BagWriter,
    Tested,
    Tile,
    best_of,
    data_folder,
    settings,
    together,
    with_interval,
    with_spread,
)

MIN_BENIGN, SIDE_PX, MPP = 5, 50, 4.0


def embed(folder: Path, out: Path, share: float) -> Path:
    """Feature stores and `labels.csv` of the bags."""
    with (folder / "index.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    writer, lines = BagWriter(out / "features", SIDE_PX, MPP, "idc"), ["slide_path,slide_id,case_id,label"]
    for case in sorted({row["case_id"] for row in rows}):
        benign = [row for row in rows if row["case_id"] == case and row["label"] == "benign"]
        cancer = [row for row in rows if row["case_id"] == case and row["label"] == "idc"]
        positive = hashlib.sha256(case.encode()).digest()[0] % 2 == 0
        if len(benign) < MIN_BENIGN or (positive and not cancer):
            continue
        kept = cancer[: max(1, round(share * len(benign)))] if share < 1 else cancer
        bag = benign + (kept if positive else [])
        writer.write(case, [Tile(folder / row["path"], row["label"] == "idc") for row in bag])
        lines.append(f"{case}.png,{case},{case},{'idc' if positive else 'benign'}")
    (out / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out / "labels.csv"


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
    manifest = embed(data_folder("idc_breast", "index.csv"), given.out, given.share)

    def by_folds(head: str, penalties: Sequence[dict[str, float]]) -> list[Tested]:
        return [
            best_of(
                given.out,
                manifest,
                [settings(head, folds=given.folds, fold=k, seed=given.seed, **p) for p in penalties],
            )
            for k in range(given.folds)
        ]

    columns = "| | slide AUROC | of single folds | instance AUROC of attention | of tiles' probabilities |"
    print(f"{columns}\n|---|---|---|---|---|")
    for head in given.heads:
        folds = by_folds(head, [{}])
        print(row(head, folds), flush=True)
    for name in given.penalties:
        folds = by_folds(given.penalised, PENALTIES[name])
        print(row(f"{given.penalised}, {name}", folds), flush=True)
    labels = together(folds).label
    print(json.dumps({"cases": len(labels), "positive": int(labels.sum()), "share": given.share}))


def row(name: str, folds: Sequence[Tested]) -> str:
    """A line of the table."""
    whole = together(folds)
    slides, *inside = (with_interval(whole, kind) for kind in ("score", "attention", "tiles"))
    return f"| {' | '.join((name, slides, with_spread(folds), *inside))} |"


if __name__ == "__main__":
    main()
