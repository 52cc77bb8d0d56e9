"""The study of other hospitals: which regularisation, chosen on the training hospital alone, transfers?

Networks, of tiles or of bags of their features, are trained on one table, validated on a part of its cases, and tested
on a table of other hospitals, which no choice sees. Temperature and threshold are fitted on validation as `train` does.
A seed decides the split by case, the first weights and the order of the batches, the same for every method: they are
paired.

out/runs/<key>.json   a finished run each, from which an interrupted study goes on     out/study.csv   every figure
out/study.json        settings and facts: with the runs, all that the rest is made of   out/study.md, out/study.png
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.core.artefact import COMMIT, Recipe, locked_folder, seal
from tiling.core.errors import InputError
from tiling.core.files import output_error
from tiling.core.versions import software_versions
from training.data.samples import Samples
from training.evaluation.metrics import auroc, balanced_threshold, decide, ece, fit_temperature, softmax
from training.external.config import AnyExternalConfig, ExternalBagConfig, ExternalConfig
from training.external.report import study_figure, study_markdown, study_table
from training.selection.quantities import decided_right, quantities_of
from training.trials.choice import Grid
from training.trials.config import Run, planned
from training.trials.records import (
    SOFTWARE,
    VALIDATION,
    Progress,
    RunRecord,
    packed,
    record_path,
    records_of,
    run_key,
)
from training.trials.study import PAGES, STUDY_FILE, SetFacts, gathered, read_study, write_pages, write_study
from training.trials.tiles import Content, TileSet, read_bags, read_tiles, split_of
from training.trials.trainer import copies_of, require_trainable, settled, trained

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KINDS: dict[str, type[AnyExternalConfig]] = {
    "external study": ExternalConfig,
    "external study of bags": ExternalBagConfig,
}
EXTERNAL, INSIDE = "external", "inside"
FILES = (STUDY_FILE, *PAGES)
STUDY_ONLY = {
    "methods", "seeds", "rules", "sd_lambdas", "weight_decays", "l2s", "consistencies", "rate_shares", "epoch_shares",
    "sd_start", "sd_gamma", "stain_norm", "augment", "positive_class", "resamples",
}  # fmt: skip
"""Settings that decide nothing of a single run, or are in its `Setting` or its tiles already."""


def study_external(
    train: Samples,
    external: Samples,
    out: Path,
    config: AnyExternalConfig | None = None,
    *,
    inside: Samples | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Grid:
    """Train every method under every seed on one hospital, test it on others, and write the files above into `out`.

    Each seed splits the training cases anew; splits that the data brings are not used. Runs that `out` holds are not
    repeated.

    Args:
        train: Tiles, or bags, of two classes, to train and validate on.
        external: The same of other hospitals.
        out: The folder.
        config: The settings, for bags an `ExternalBagConfig`; None: the defaults for tiles.
        inside: Further ones of the training hospital, tested on too.
        workers: Processes of one thread each that share the runs; their number changes no figure but the seconds.
        progress: Called with (runs done, runs in all).

    Returns:
        By method and setting, a record a seed.

    Raises:
        ConfigError, InputError: For what cannot be studied, before anything is written.
        ModelError: If a network diverges.
        OutputError: If `out` cannot be written.
    """
    config = config or ExternalConfig()
    kind = next(name for name, of in KINDS.items() if isinstance(config, of))
    tested = {EXTERNAL: external} | ({} if inside is None else {INSIDE: inside})
    for name, samples in tested.items():
        _refuse_overlap(train, samples, name)
    data, sets = _read(train, tested, config)
    require_trainable(config, data.tiles)
    for seed in range(config.seeds):
        split_of(data, seed, val_fraction=config.val_fraction)
    identity = [data.identity, *(of.identity for of in sets.values())]
    settings = config.model_dump(mode="json", exclude=STUDY_ONLY)
    keys = {run: run_key(run, settings, ",".join(identity)) for run in planned(config)}
    with locked_folder(out / "study"):
        try:
            (out / COMMIT).unlink(missing_ok=True)  # until every file is there again, nothing vouches for them
        except OSError as error:
            raise output_error(out, error) from error
        facts = {name: SetFacts.of(of) for name, of in sets.items()}
        size = len(data.label)
        write_study(out, kind, config, keys, classes=data.classes, tiles=(size, size), sets=facts)
        records_of(keys, out, ExternalTrials(data, sets, config), workers=workers, progress=progress)
        grid, _ = report_external(out)
        runs = [record_path(out, key).relative_to(out).as_posix() for key in keys.values()]
        inputs = {"train": data.identity} | {name: of.identity for name, of in sets.items()}
        recipe = Recipe(kind, inputs, config.model_dump(mode="json"))
        seal(out, recipe, [*FILES, *runs], made_with=software_versions(*SOFTWARE))
    return grid


def report_external(out: Path) -> tuple[Grid, AnyExternalConfig]:
    """Make table, page and figure from `study.json` and the runs alone, of the seeds that are complete.

    Raises InputError if there are none.
    """
    study = read_study(out, *KINDS)
    grid, config = gathered(out, study, KINDS[study.kind])
    write_pages(out, study_table(grid, study, config), study_markdown(grid, study, config), study_figure(grid, config))
    return grid, config


class ExternalTrials:
    """Trains and tests the network of a run; all but the seconds is deterministic."""

    def __init__(self, data: TileSet, sets: dict[str, TileSet], config: AnyExternalConfig) -> None:
        self.data, self.sets, self.config = data, sets, config
        self._copies: tuple[int, dict[str, Content]] = (-1, {})  # of the last seed, which its runs share

    def __call__(self, run: Run, key: str) -> RunRecord:
        """The record of a run. Raises ModelError if the network diverges, InputError if a split lacks a class."""
        data, config = self.data, self.config
        split = split_of(data, run.seed, val_fraction=config.val_fraction)
        validation, label = data.tiles[split["val"]], data.label[split["val"]]
        if self._copies[0] != run.seed:
            self._copies = run.seed, copies_of(validation, config)
        with settled(run.seed):
            begin = time.process_time()
            network = trained(run, data.tiles[split["train"]], data.label[split["train"]], config)
            seconds = time.process_time() - begin
            seen = network.logits(validation)
            shifted = {name: network.logits(tiles) for name, tiles in self._copies[1].items()}
            tested = {name: network.logits(of.tiles) for name, of in self.sets.items()}
        temperature = fit_temperature(seen, label)
        threshold = balanced_threshold(softmax(seen, temperature)[:, 1], label == 1)
        right = {
            name: packed(decided_right(logits, labels, temperature=temperature, threshold=threshold))
            for name, logits, labels in (
                (VALIDATION, seen, label), *((name, logits, self.sets[name].label) for name, logits in tested.items()),
            )
        }  # fmt: skip
        return RunRecord(
            key=key,
            run=run,
            validation=quantities_of(seen, label, shifted, temperature=temperature, threshold=threshold),
            tests={
                name: metrics_of(softmax(logits, temperature), self.sets[name].label, threshold)
                for name, logits in tested.items()
            },
            right=right,
            seconds=seconds,
        )


def _read(
    train: Samples, tested: Mapping[str, Samples], config: AnyExternalConfig
) -> tuple[TileSet, dict[str, TileSet]]:
    """What is trained on and what is tested on, in memory."""
    positive = config.positive_class
    if isinstance(config, ExternalBagConfig):
        sets = {name: read_bags(samples, positive, config.bag_tiles) for name, samples in tested.items()}
        return read_bags(train, positive, config.bag_tiles), sets
    data = read_tiles(train, positive, config.input_px)
    return data, {name: read_tiles(samples, positive, data.tiles.shape[1]) for name, samples in tested.items()}


def metrics_of(probabilities: Floats, label: Ints, threshold: float) -> dict[str, float]:
    """Balanced accuracy, sensitivity and specificity at a threshold on the positive class, AUROC, and ECE."""
    called = decide(probabilities, threshold, 1)
    sensitivity, specificity = (float((called[label == c] == c).mean()) for c in (1, 0))
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auroc": float(auroc(probabilities, label)),
        "ece": float(ece(probabilities, label)),
    }


def _refuse_overlap(train: Samples, tested: Samples, name: str) -> None:
    """Raise InputError for pictures that are trained and tested on, and other classes; warn of cases of one name."""
    if sorted(train.classes) != sorted(tested.classes):
        what = f"has the classes {', '.join(tested.classes)}, the training {', '.join(train.classes)}"
        raise InputError(f"the {name} data", what, "give both the same labels")
    shared = set(train.hashes) & set(tested.hashes)
    if shared:
        place = next(number for number, of in enumerate(tested.hashes) if of in shared)
        what = f"shares {len(shared)} files with the training, {tested.sources[place]} first"
        raise InputError(f"the {name} data", what, "take them out of one")
    if cases := set(train.case_id) & set(tested.case_id):
        log.warning("%d cases of the training are called as some of the %s data: %s", len(cases), name, min(cases))
