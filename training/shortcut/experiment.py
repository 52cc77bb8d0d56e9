"""The shortcut study: does a network learn more than a confounder that gives the label away?

A confounder (`training.shortcut.confound`) follows the label in training and validation. Each method is trained under
several seeds and tested on the same tiles in four ways: the confounder as in training ("in_distribution"), at random
("unconfounded"), nowhere ("clean"), and following the other class ("reversed"). Tests take both versions of each tile,
weighted by how probable they are, so that no draw of the confounder adds noise. A seed decides the split by case, which
training tiles carry the confounder, the first weights and the order of the batches, the same for every method: they are
paired. Classes are drawn equally often, so the likelier one is called, without a threshold. What a method leaves open
is chosen on the confounded validation, by the rules of `training.selection.rules`, and shown beside the whole grid.

out/runs/<key>.json   a finished run each, from which an interrupted study goes on     out/study.csv   every figure
out/study.json        settings and facts: with the runs, all that the rest is made of  out/study.md, out/study.png
out/examples.png      tiles with the confounder and without
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.core.artefact import COMMIT, Recipe, locked_folder, seal
from tiling.core.errors import InputError
from tiling.core.files import output_error, write_file
from tiling.core.versions import software_versions
from training.data.samples import Samples
from training.data.splits import SPLITS, fold_of
from training.evaluation.metrics import auroc, balanced_accuracy, softmax
from training.selection.quantities import decided_right, quantities_of
from training.shortcut.config import TESTS, ShortcutConfig
from training.shortcut.confound import amount_of, carrier_weights, carriers, changed, confounded
from training.shortcut.report import examples_picture, study_figure, study_markdown, study_table
from training.trials.choice import Grid
from training.trials.config import Run, Setting, planned
from training.trials.records import SOFTWARE, VALIDATION, Progress, RunRecord, packed, record_path, records_of, run_key
from training.trials.study import PAGES, STUDY_FILE, gathered, read_study, write_pages, write_study
from training.trials.tiles import TileSet, read_tiles, split_of
from training.trials.trainer import copies_of, require_trainable, settled, trained

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EXAMPLES = 8
FOLDS = 5
"""Of the networks that tell which tiles are clear."""
KIND = "shortcut study"
FILES = (STUDY_FILE, *PAGES, "examples.png")
STUDY_ONLY = {
    "methods", "seeds", "rules", "sd_lambdas", "weight_decays", "l2s", "consistencies", "rate_shares", "epoch_shares",
    "sd_start", "sd_gamma", "stain_norm", "augment", "keep_clear", "positive_class",
}  # fmt: skip
"""Settings that decide nothing of a single run, or are in its `Setting` or its tiles already."""


def study_shortcut(
    samples: Samples,
    out: Path,
    config: ShortcutConfig | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Grid:
    """Train and test every method under every seed, and write the files listed above into `out`.

    Each seed splits the cases anew; splits that the data brings are not used. Runs that `out` holds are not repeated.

    Args:
        samples: Tiles of two classes.
        out: The folder.
        config: The settings; None: the defaults.
        workers: Processes of one thread each that share the runs; their number changes no figure but the seconds.
        progress: Called with (runs done, runs in all).

    Returns:
        By method and setting, a record a seed.

    Raises:
        ConfigError, InputError: For what cannot be studied, before anything is written.
        ModelError: If a network diverges.
        OutputError: If `out` cannot be written.
    """
    config = config or ShortcutConfig()
    data = read_tiles(samples, config.positive_class)
    require_trainable(config, data.tiles)
    every = len(data.label)
    data = data if config.keep_clear is None else clear_tiles(data, config)
    for seed in range(config.seeds):
        _split(data, config, seed)
    keys = {run: key_of(run, data, config) for run in planned(config)}
    with locked_folder(out / "study"):
        try:
            (out / COMMIT).unlink(missing_ok=True)  # until every file is there again, nothing vouches for them
        except OSError as error:
            raise output_error(out, error) from error
        write_file(out / "examples.png", examples_picture(*_examples(data, config), data.classes, config))
        write_study(out, KIND, config, keys, classes=data.classes, tiles=(len(data.label), every))
        records_of(keys, out, ShortcutTrials(data, config), workers=workers, progress=progress)
        grid, _ = report_shortcut(out)
        runs = [record_path(out, key).relative_to(out).as_posix() for key in keys.values()]
        seal(out, study_recipe(data, config), [*FILES, *runs], made_with=software_versions(*SOFTWARE))
    return grid


def report_shortcut(out: Path) -> tuple[Grid, ShortcutConfig]:
    """Make table, page and figure from `study.json` and the runs alone, of the seeds that are complete.

    Raises InputError if there are none.
    """
    study = read_study(out, KIND)
    grid, config = gathered(out, study, ShortcutConfig)
    write_pages(out, study_table(grid, config), study_markdown(grid, config, study), study_figure(grid, config))
    return grid, config


def study_recipe(data: TileSet, config: ShortcutConfig) -> Recipe:
    """All that decides the study: its tiles and each setting."""
    return Recipe(KIND, {"tiles": data.identity}, config.model_dump(mode="json"))


def key_of(run: Run, data: TileSet, config: ShortcutConfig) -> str:
    """SHA-256 of all that decides a run's figures: data, settings and software, but not what else the study holds."""
    settings = config.model_dump(mode="json", exclude=STUDY_ONLY)
    settings["amount"] = amount_of(config.confounder, config.amount)
    return run_key(run, settings, data.identity)


class ShortcutTrials:
    """Trains and tests the network of a run on confounded tiles; all but the seconds is deterministic."""

    def __init__(self, data: TileSet, config: ShortcutConfig) -> None:
        self.data, self.config = data, config
        self._copies: tuple[int, dict[str, Pixels]] = (-1, {})  # of the last seed, which its runs share

    def __call__(self, run: Run, key: str) -> RunRecord:
        """The record of a run. Raises ModelError if the network diverges, InputError if a split lacks a class."""
        data, config = self.data, self.config
        split = _split(data, config, run.seed)
        label = {name: data.label[indices] for name, indices in split.items()}
        validation = self._confounded(split["val"], "val", run.seed)
        if self._copies[0] != run.seed:
            self._copies = run.seed, copies_of(validation, config)
        unchanged = data.tiles[split["test"]]
        versions = np.concatenate([unchanged, changed(unchanged, config.confounder, config.amount)])
        with settled(run.seed):
            begin = time.process_time()
            training = self._confounded(split["train"], "train", run.seed)
            network = trained(run, training, label["train"], config)
            seconds = time.process_time() - begin
            seen = network.logits(validation)
            shifted = {name: network.logits(tiles) for name, tiles in self._copies[1].items()}
            test = network.logits(versions)
        twice = np.tile(label["test"], 2)
        return RunRecord(
            key=key,
            run=run,
            validation=quantities_of(seen, label["val"], shifted),
            tests={name: _metrics(test, twice, _test_weights(name, label["test"], config.strength)) for name in TESTS},
            right={VALIDATION: packed(decided_right(seen, label["val"]))},
            seconds=seconds,
        )

    def _confounded(self, chosen: Ints, name: str, seed: int) -> Pixels:
        """The tiles of a split with the confounder on those that the seed draws, uint8 (n, T, T, 3)."""
        data, config = self.data, self.config
        drawn = carriers(data.label[chosen] == 1, config.strength, seed=[seed, SPLITS.index(name)])
        return confounded(data.tiles[chosen], drawn, config.confounder, config.amount)


def clear_tiles(data: TileSet, config: ShortcutConfig) -> TileSet:
    """The tiles that networks trained plainly on other cases, without confounder, decide rightly by a margin.

    A selection by label: what is left is easier than tissue is, so that what a network makes of it is no
    accuracy on tissue, but whether it learnt tissue or confounder.

    Args:
        data: All tiles.
        config: The study's settings; `keep_clear` is the margin, of the logits.

    Returns:
        The tiles.

    Raises:
        InputError: If there are fewer cases than folds, or no such tile of a class.
    """
    try:
        fold = fold_of(data.unit, data.label, folds=FOLDS, seed=0)
    except ValueError:
        what = f"has fewer than the {FOLDS} cases that keep_clear needs"
        raise InputError("the study's data", what, "leave keep_clear out") from None
    margin = np.empty(len(data.label))
    for number in range(FOLDS):
        inside, out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        with settled(number):
            network = trained(Run(number, Setting()), data.tiles[inside], data.label[inside], config)
            logits = network.logits(data.tiles[out])
        margin[out] = (logits[:, 1] - logits[:, 0]) * (2 * data.label[out] - 1)
    kept = np.flatnonzero(margin > (config.keep_clear or 0.0))
    if len(np.unique(data.label[kept])) < 2:
        raise InputError("the study's data", "has no clear tile of a class", "lower keep_clear")
    return data.only(kept)


def _split(data: TileSet, config: ShortcutConfig, seed: int) -> dict[str, Ints]:
    return split_of(data, seed, val_fraction=config.val_fraction, test_fraction=config.test_fraction)


def _metrics(logits: Floats, label: Ints, weights: Floats) -> dict[str, float]:
    return {
        "balanced_accuracy": float(balanced_accuracy(logits.argmax(axis=1), label, 2, weights)),
        "auroc": float(auroc(softmax(logits), label, weights)),
    }


def _test_weights(test: str, label: Ints, strength: float) -> Floats:
    """The weight of each unchanged test tile and then of each with the confounder, (2n,), for one of TESTS."""
    if test == "clean":
        return np.repeat([1.0, 0.0], len(label))
    strengths = {"in_distribution": strength, "unconfounded": 0.5, "reversed": 1 - strength}
    return np.concatenate(carrier_weights(label == 1, strengths[test]))


def _examples(data: TileSet, config: ShortcutConfig) -> tuple[Pixels, Pixels]:
    """Tiles of both classes, the same number of each, unchanged and with the confounder: uint8 (2, k, T, T, 3) each."""
    of_class = [np.flatnonzero(data.label == c) for c in (0, 1)]
    count = min(EXAMPLES, *map(len, of_class))
    tiles = [data.tiles[indices[:: len(indices) // count][:count]] for indices in of_class]
    return np.stack(tiles), np.stack([changed(part, config.confounder, config.amount) for part in tiles])
