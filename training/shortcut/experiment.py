"""The shortcut study: does a network learn more than a confounder that gives the label away?

A confounder (`training.shortcut.confound`) follows the label in training and validation. Each method is trained under
several seeds and tested on the same tiles in four ways: the confounder as in training ("in_distribution"), at random
("unconfounded"), nowhere ("clean"), and following the other class ("reversed"). Tests take both versions of each tile,
weighted by how probable they are, so that no draw of the confounder adds noise. A seed decides the split by case, which
training tiles carry the confounder, the first weights and the order of the batches, the same for every method: they are
paired. Classes are drawn equally often, so the likelier one is called, without a threshold. Lambda and weight decay are
chosen on the confounded validation, by two rules (`training.shortcut.config.choose`), and shown beside the whole grid.

The training loop is its own: hundreds of short runs on tiles in memory would pay many times over for the loaders, logs,
checkpoints and model folders of `train`. Network, loss, optimiser, sampler, augmentation and metrics are the trainer's.

out/runs/<key>.json   a finished run each, from which an interrupted study goes on     out/study.csv   every figure
out/study.md          the tables                         out/study.png   the figure    out/examples.png   tiles
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from tiling.core.artefact import COMMIT, Recipe, locked_folder, seal
from tiling.core.errors import ConfigError, InputError, ModelError
from tiling.core.files import canonical_json, output_error, sha256_json, write_file
from tiling.core.versions import software_versions
from training.augmentations import AUGMENTATIONS
from training.data.dataset import TileDataset
from training.data.samplers import epoch_order, global_batches
from training.data.samples import Samples, Split
from training.data.splits import SPLITS, joined, split_units
from training.evaluation.metrics import auroc, balanced_accuracy, fit_temperature, log_loss, softmax
from training.losses import SpectralDecouplingLoss
from training.models.classifier import TileClassifier, make_classifier
from training.models.stain import missing_package, normalise, stain_target
from training.models.stain_targets import StainTarget
from training.optim import parameter_groups, rate_at
from training.shortcut.config import TESTS, VALIDATION, Run, RunRecord, ShortcutConfig, as_grid, planned
from training.shortcut.confound import amount_of, carrier_weights, carriers, changed, confounded
from training.shortcut.report import Line, chosen_lines, examples_picture, study_figure, study_markdown, study_table

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called with the numbers of finished runs and of all."""

FORMAT = 2
"""Raised when the code changes what a run gives: 2 turns hues to the exact degree, not to the nearest 2."""
LARGEST = 2**32
"""Bytes of tiles that each process may hold."""
WARMUP = 0.1
AT_ONCE = 256
EXAMPLES = 8
SOFTWARE = ("torch", "timm", "numpy", "scipy", "opencv-python-headless")
FILES = ("study.csv", "study.md", "study.png", "examples.png")
STUDY_ONLY = {"methods", "seeds", "sd_lambdas", "weight_decays", "tolerance"}  # they decide nothing of a single run


@dataclass(frozen=True)
class TileSet:
    """All tiles of a study, in memory."""

    tiles: Pixels
    """uint8 (N, T, T, 3)"""
    label: Ints
    """(N,), 1 for the positive class, else 0"""
    unit: NDArray[np.str_]
    """(N,): what no split tears apart, cases."""
    classes: tuple[str, ...]
    identity: str
    """Hash of the content."""


def study_shortcut(
    samples: Samples,
    out: Path,
    config: ShortcutConfig | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Line]:
    """Train and test every method under every seed, and write the files listed above into `out`.

    Each seed splits the cases anew; splits that the data brings are not used. Runs that `out` holds are not repeated.

    Args:
        samples: Tiles of two classes.
        out: The folder.
        config: The settings; None: the defaults.
        workers: Processes of one thread each that share the runs; their number changes no figure but the seconds.
        progress: Called with (runs done, runs in all).

    Returns:
        A line a method.

    Raises:
        ConfigError, InputError: For what cannot be studied, before anything is written.
        ModelError: If a network diverges.
        OutputError: If `out` cannot be written.
    """
    config = config or ShortcutConfig()
    data = read_tiles(samples, config)
    if "stain_norm" in config.methods and (fix := missing_package()) is not None:
        raise ConfigError("methods", "stain_norm needs the package torchstain", fix)
    for seed in range(config.seeds):
        split_of(data, config, seed)
    with _settled(0):
        _untrained(data, config)
    keys = {run: run_key(run, data, config) for run in planned(config)}
    with locked_folder(out / "study"):
        found = {run: _finished(_path(out, key), key) for run, key in keys.items()}
        try:
            (out / COMMIT).unlink(missing_ok=True)  # until every file is there again, nothing vouches for them
        except OSError as error:
            raise output_error(out, error) from error
        records = {run: record for run, record in found.items() if record}
        missing = {run: key for run, key in keys.items() if run not in records}
        log.info("%d runs, of which %d are there already", len(keys), len(records))
        if progress:
            progress(len(records), len(keys))
        write_file(out / "examples.png", examples_picture(*_examples(data, config), data.classes, config))
        for run, record in _trained(missing, data, config, workers):
            write_file(_path(out, record.key), canonical_json(record.model_dump(mode="json")))
            records[run] = record
            log.info("%d of %d: seed %d, %s", len(records), len(keys), run.seed, run.setting)
            if progress:
                progress(len(records), len(keys))
        grid = as_grid(records, config)
        write_file(out / "study.csv", study_table(grid, config.tolerance))
        write_file(out / "study.md", study_markdown(grid, config, data.classes))
        write_file(out / "study.png", study_figure(grid, config))
        runs = [_path(out, key).relative_to(out).as_posix() for key in keys.values()]
        seal(out, study_recipe(data, config), [*FILES, *runs], made_with=software_versions(*SOFTWARE))
    return chosen_lines(grid)


def read_tiles(samples: Samples, config: ShortcutConfig) -> TileSet:
    """All pixels of the samples. Raises InputError for other than two classes, and for more than fits in memory."""
    where = "the study's data"
    if len(samples.classes) != 2:
        raise InputError(where, f"has {len(samples.classes)} classes, not two", "leave the others out")
    side = samples.tile_px
    if len(samples) * side * side * 3 > LARGEST:
        what = f"is {len(samples)} tiles of {side} px, more than {LARGEST // 2**30} GiB of memory hold"
        raise InputError(where, what, "use fewer or smaller tiles")
    read = TileDataset(Split("all", samples, np.flatnonzero(samples.clear), side))
    return TileSet(
        tiles=read.__getitems__(list(range(len(read)))).tiles.numpy(),
        label=samples.label[samples.clear],
        unit=joined(samples.case_id, samples.content())[samples.clear],
        classes=samples.classes,
        identity=sha256_json([samples.identity(), side]),
    )


def split_of(data: TileSet, config: ShortcutConfig, seed: int) -> dict[str, Ints]:
    """Indices of the tiles of each split under a seed. Raises InputError if a split lacks a class."""
    fractions = {"val_fraction": config.val_fraction, "test_fraction": config.test_fraction}
    split = split_units(data.unit, data.label, **fractions, seed=seed)
    chosen = {name: np.flatnonzero(split == name) for name in SPLITS}
    for name, indices in chosen.items():
        missing = [data.classes[c] for c in (0, 1) if c not in data.label[indices]]
        if missing:
            what = f"of seed {seed} leaves no tile of {missing[0]!r} for {name}"
            raise InputError("the study's split", what, "add cases of it")
    return chosen


def study_recipe(data: TileSet, config: ShortcutConfig) -> Recipe:
    """All that decides the study: its tiles and each setting."""
    return Recipe("shortcut study", {"tiles": data.identity}, config.model_dump(mode="json"))


def run_key(run: Run, data: TileSet, config: ShortcutConfig) -> str:
    """SHA-256 of all that decides a run's figures: data, settings and software, but not what else the study holds."""
    settings = config.model_dump(mode="json", exclude=STUDY_ONLY)
    settings["amount"] = amount_of(config.confounder, config.amount)
    return sha256_json([FORMAT, asdict(run), settings, data.identity, software_versions(*SOFTWARE)])


def train_run(run: Run, key: str, data: TileSet, config: ShortcutConfig) -> RunRecord:
    """Train one network on confounded tiles and test it, in one thread; all but the seconds is deterministic.

    Args:
        run: The network to train: method, setting and seed.
        key: What `run_key` gives for it.
        data: All tiles of the study.
        config: The study's settings.

    Returns:
        The metrics on validation and on each test, and CPU seconds.

    Raises:
        ModelError: If the network diverges.
        InputError: If a split lacks a class.
    """
    with _settled(run.seed):
        split = split_of(data, config, run.seed)
        begin = time.process_time()
        network = _untrained(data, config)
        labels = torch.from_numpy(data.label[split["train"]])
        training = _confounded(data, split, "train", run, config)
        target = stain_target(config.stain_norm, training) if run.stain else None
        _fit(network, _normalised(training, target), labels, run, config)
        seconds = time.process_time() - begin
        validation = logits_of(network, _normalised(_confounded(data, split, "val", run, config), target))
        unchanged = data.tiles[split["test"]]
        versions = np.concatenate([unchanged, changed(unchanged, config.confounder, config.amount)])
        test = logits_of(network, _normalised(torch.from_numpy(versions), target))
    if not (np.isfinite(validation).all() and np.isfinite(test).all()):
        raise ModelError(f"the study's {run}", "its logits are no longer finite", "use a lower learning_rate")
    val_label, test_label = data.label[split["val"]], data.label[split["test"]]
    metrics = {VALIDATION: _metrics(validation, val_label) | {"log_loss": _calibrated_loss(validation, val_label)}}
    for name in TESTS:
        weights = _test_weights(name, test_label, config.strength)
        metrics[name] = _metrics(test, np.tile(test_label, 2), weights)
    return RunRecord(key=key, run=run, metrics=metrics, seconds=seconds)


def _fit(network: TileClassifier, tiles: Tensor, labels: Tensor, run: Run, config: ShortcutConfig) -> None:
    """Train the network in place; `tiles` uint8 (n, T, T, 3), `labels` (n,)."""
    draws = 2 * int(torch.bincount(labels, minlength=2).min())
    orders = [
        epoch_order(len(labels), seed=run.seed, epoch=epoch, draws=draws, levels=[labels.numpy()])
        for epoch in range(config.epochs)
    ]
    batches = [batch for order in orders for batch in global_batches(order, config.batch_size)]
    warmup, late = round(WARMUP * len(batches)), round(config.sd_start * len(batches))
    plain, decoupled = SpectralDecouplingLoss(0.0), SpectralDecouplingLoss(run.setting.sd_lambda)
    optimiser = torch.optim.AdamW(
        parameter_groups(network, run.setting.weight_decay), lr=config.learning_rate, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, len(batches), warmup))
    randomness = torch.Generator().manual_seed(run.seed)
    augment = AUGMENTATIONS[run.augment]
    network.train()
    for step, batch in enumerate(batches):
        chosen = torch.from_numpy(batch)
        logits = network.logits(augment(network.pixels(tiles[chosen]), randomness))
        loss = (decoupled if step >= late else plain)(logits, labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def logits_of(network: TileClassifier, tiles: Tensor) -> Floats:
    """float64 (n, 2) of tiles uint8 (n, T, T, 3)."""
    network.eval()
    with torch.inference_mode():
        return np.asarray(torch.cat([network(part) for part in torch.split(tiles, AT_ONCE)]).double().numpy())


def _metrics(logits: Floats, label: Ints, weights: Floats | None = None) -> dict[str, float]:
    return {
        "balanced_accuracy": float(balanced_accuracy(logits.argmax(axis=1), label, 2, weights)),
        "auroc": float(auroc(softmax(logits), label, weights)),
    }


def _calibrated_loss(logits: Floats, label: Ints) -> float:
    """Log loss at its own best temperature: of the logits' size, which spectral decoupling sets, it knows nothing."""
    return float(log_loss(softmax(logits, fit_temperature(logits, label)), label))


def _test_weights(test: str, label: Ints, strength: float) -> Floats:
    """The weight of each unchanged test tile and then of each with the confounder, (2n,), for one of TESTS."""
    if test == "clean":
        return np.repeat([1.0, 0.0], len(label))
    strengths = {"in_distribution": strength, "unconfounded": 0.5, "reversed": 1 - strength}
    return np.concatenate(carrier_weights(label == 1, strengths[test]))


def _confounded(data: TileSet, split: dict[str, Ints], name: str, run: Run, config: ShortcutConfig) -> Tensor:
    """The tiles of a split with the confounder on those that this seed draws, uint8 (n, T, T, 3)."""
    chosen = split[name]
    drawn = carriers(data.label[chosen] == 1, config.strength, seed=[run.seed, SPLITS.index(name)])
    return torch.from_numpy(confounded(data.tiles[chosen], drawn, config.confounder, config.amount))


def _normalised(tiles: Tensor, target: StainTarget | None) -> Tensor:
    """The tiles with the target's staining, each once rather than in every epoch; None changes nothing."""
    return tiles if target is None else torch.cat([normalise(part, target) for part in torch.split(tiles, AT_ONCE)])


def _examples(data: TileSet, config: ShortcutConfig) -> tuple[Pixels, Pixels]:
    """Tiles of both classes, the same number of each, unchanged and with the confounder: uint8 (2, k, T, T, 3) each."""
    of_class = [np.flatnonzero(data.label == c) for c in (0, 1)]
    count = min(EXAMPLES, *map(len, of_class))
    tiles = [data.tiles[indices[:: len(indices) // count][:count]] for indices in of_class]
    return np.stack(tiles), np.stack([changed(part, config.confounder, config.amount) for part in tiles])


def _untrained(data: TileSet, config: ShortcutConfig) -> TileClassifier:
    side = data.tiles.shape[1]
    return make_classifier(config.backbone, 2, config.input_px or side, side)


def _path(out: Path, key: str) -> Path:
    return out / "runs" / f"{key}.json"


def _finished(path: Path, key: str) -> RunRecord | None:
    """The record of a run that was finished before; None if it is not there or not whole."""
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        log.warning("%s: cannot be read, its run is repeated", path)
        return None
    return record if record.key == key else None


def _trained(
    missing: Mapping[Run, str], data: TileSet, config: ShortcutConfig, workers: int
) -> Iterator[tuple[Run, RunRecord]]:
    """The missing runs, in the order in which they finish; the first error ends them all."""
    if workers == 1 or len(missing) < 2:
        for run, key in missing.items():
            yield run, train_run(run, key, data, config)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads may hang
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(data, config)) as pool:
        running = {pool.submit(_work, run, key): run for run, key in missing.items()}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_shared: list[tuple[TileSet, ShortcutConfig]] = []
"""What a worker was given when it started: the tiles cross to it once, not with every run."""


def _start_worker(data: TileSet, config: ShortcutConfig) -> None:
    _shared[:] = [(data, config)]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a killed study would wait for its next run for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(run: Run, key: str) -> RunRecord:
    return train_run(run, key, *_shared[0])


@contextmanager
def _settled(seed: int) -> Iterator[None]:
    """Seed torch, make it deterministic and single-threaded; all is put back afterwards."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
