"""The verb: samples -> a trained model and the record of how it came to be.

Samples are tiles or bags of tiles' features; what differs between the two is where a network starts (`_start`), whether
out-of-distribution tiles can be told, and the gallery.

out/log/metrics.csv       losses and validation metrics by epoch     out/metrics.json     metrics with intervals
out/learning_curve.png                                                out/split.csv        the split of each case
out/predictions.csv       probabilities of validation and test tiles  out/model/           published last
out/pictures/             <split>_performance.png, <split>_gallery.png of validation and test
out/provenance.json       the hashes of all that was learned from, and the machine
out/checkpoints/          the state of a run that was stopped, and its result until all of it is there; then gone
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from numpy.typing import NDArray

from tiling.core.artefact import PROVENANCE
from tiling.core.errors import ConfigError, StoppedError
from tiling.core.files import canonical_json, sha256_text, write_file
from tiling.core.signals import listening
from training.config import AnyConfig, BagConfig, TrainConfig
from training.data.bags import BagDraw, drawn_features, encoder_of
from training.data.dataset import TileDataset
from training.data.loaders import eval_loader, make_splits, train_batches
from training.data.preparation import positive_class
from training.data.samples import Samples, Split
from training.devices import machine_of, settled
from training.evaluation.bootstrap import Interval, bootstrap_interval
from training.evaluation.evaluate import group_summaries, write_pictures
from training.evaluation.figures import learning_curve
from training.evaluation.metrics import ece, fit_decision, softmax
from training.evaluation.predictions import Predictions, prediction_table, predictions_of
from training.evaluation.results import measure
from training.fit import Network, Training
from training.logs import open_loggers, require_loggers
from training.mil.heads import HeadShape
from training.mil.model import BagClassifier
from training.models.backbones import load_weights
from training.models.card import model_card
from training.models.classifier import Features, TileClassifier, make_classifier
from training.models.folder import round_matrices, save_model
from training.models.info import GroupSummary, NoveltySummary
from training.models.ood import MAX_TILES, QUANTILE, Novelty, fit_novelty
from training.models.stain import stain_target
from training.models.stain_targets import StainTarget
from training.processes import is_own_child, make_fabric
from training.recipes import model_recipe
from training.record import Calibration, describe, metric_record, provenance_record, split_table
from training.run_folder import MODEL, checkpoints_of, held_run, kept_model, log_folder, publish, result_folder

log = logging.getLogger(__name__)

STAIN_TILES = 128
"""As many training tiles decide the staining that all tiles are given."""

STANDARD_TILES = 64
"""As many tiles of each training bag decide how features are standardised."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run."""

    model: Path
    """The model folder."""
    metrics: dict[str, dict[str, Interval]]
    """By split ("val", "test") and metric, as named in training.evaluation.metrics.METRIC_NAMES."""
    best_epoch: int
    """From 1."""
    temperature: float
    threshold: float
    reused: bool = False
    """Whether the model was there already, made from the same samples with the same settings."""
    rank: int = 0
    """Which of the processes that trained together this is; only the first, 0, has written anything."""


def train(samples: Samples, out: Path, config: AnyConfig | None = None, *, overwrite: bool = False) -> TrainResult:
    """Train a classifier of tiles or bags on the training split, choose on validation, measure on validation and test.

    Writes the files listed above into `out`; `out/model` is there only when everything else is. The same samples,
    configuration, software and numbers of threads and processes give the same result to the last bit on a CPU.

    On SIGTERM or SIGUSR1 the state is saved and StoppedError raised; the next call with the same samples and
    configuration goes on from there, as it does after a kill from the last state saved (`checkpoint_minutes`), and ends
    with the very same weights. With torchrun, srun or `devices` each process calls this with the same arguments, and
    `out` is a folder they share.

    Args:
        samples: The labelled tiles, or bags, in their splits.
        out: The folder of the run. A model of the same samples and settings in it is kept as it is.
        config: The settings, a `BagConfig` for bags; None: the defaults of tiles.
        overwrite: Whether another model in `out` is replaced, when the new one is complete.

    Returns:
        The model folder, and what was measured.

    Raises:
        ConfigError: For a backbone, weights, input size or machine that cannot be used.
        ModelError: If training diverges.
        OutputError: If `out` cannot be written, is being written by another run, holds another model, or a folder
            `model` or `checkpoints` of something else.
        StoppedError: When a signal asked to stop; the state is saved.

    Example:
        >>> from training import TrainConfig, samples_from_stores, train
        >>> config = TrainConfig(backbone="test_resnet", weights="none", epochs=1, bootstrap_resamples=10)
        >>> samples = samples_from_stores(Path("results/stores"), Path("cohort/manifest.csv"), config)
        >>> train(samples, Path("run"), config).model.as_posix()
        'run/model'
    """
    config = config or TrainConfig()
    with settled(config), listening() as stop:
        if (kept := kept_model(out, samples, config, overwrite)) is not None:
            chosen = kept.best_epoch, kept.temperature, kept.threshold
            return TrainResult(out / MODEL, kept.metrics, *chosen, reused=True)
        fabric = make_fabric(config)  # whatever is refused is refused before anything is written
        splits = make_splits(samples, config)
        _require_classes(splits["val"], config)
        batches = train_batches(splits["train"], config, fabric.world_size)
        network, origin = _start(splits["train"], config, fabric)
        recipe = model_recipe(samples, config)
        checkpoints = checkpoints_of(out, recipe)
        require_loggers(config)
        fabric.launch()
        logs_of: AbstractContextManager[list[Logger]] = nullcontext([])
        if fabric.is_global_zero:
            logs_of = open_loggers(config, log_folder(out))
        with held_run(out, checkpoints, fabric, overwrite), _code_for_launchers(), logs_of as logs:
            training = Training(network, splits["train"], splits["val"], batches, config, fabric, checkpoints, stop)
            progress = training.fit(logs, log_folder(out) / "metrics.csv")
            if config.half_weights:
                round_matrices(network)
            tested = _test(training, splits, config)
            training.stop_if_asked()
            novelty, known = _fit_ood(training, splits, config)
            training.stop_if_asked()
            if fabric.is_global_zero:
                provenance = canonical_json(provenance_record(samples, machine_of(fabric, config)))
                info = describe(
                    network, origin, splits, config, tested.calibration, tested.metrics, progress.best_epoch,
                    {"training": recipe.sha256, PROVENANCE: sha256_text(provenance)},
                    ece_before=tested.ece_before, groups=_groups(tested, config), novelty=known,
                )  # fmt: skip
                result = result_folder(out)
                write_file(result / PROVENANCE, provenance)
                write_file(result / "learning_curve.png", learning_curve(progress.history, progress.best_epoch))
                _write_figures(result, tested, config)
                write_file(result / "split.csv", split_table(samples))
                write_file(result / "metrics.json", canonical_json(metric_record(info)))
                save_model(result / MODEL, network, info, model_card(info), novelty, recipe)
                publish(out)
                checkpoints.remove()
            fabric.barrier()
    chosen = progress.best_epoch, tested.calibration.temperature, tested.calibration.threshold
    return TrainResult(out / MODEL, tested.metrics, *chosen, rank=fabric.global_rank)


@dataclass(frozen=True)
class _Tested:
    """What validation and test tell of a trained network, by split."""

    splits: dict[str, Split]
    calibration: Calibration
    predicted: dict[str, Predictions]
    metrics: dict[str, dict[str, Interval]]
    ece_before: dict[str, Interval]
    """ECE without the temperature."""


def _test(training: Training, splits: Mapping[str, Split], config: AnyConfig) -> _Tested:
    """Calibrate on validation, and measure on it and on test."""
    tested = {name: split for name, split in splits.items() if name != "train" and len(split)}
    logits = {
        name: training.logits(eval_loader(split, config, training.fabric), training.network, len(split))
        for name, split in tested.items()
    }
    calibration = _calibrate(logits["val"], splits["val"], config)
    temperature, threshold, positive = calibration.temperature, calibration.threshold, calibration.positive
    predicted = {
        name: predictions_of(tested[name], softmax(z, temperature), threshold, positive) for name, z in logits.items()
    }
    resamples, seed = config.bootstrap_resamples, config.seed
    metrics = {name: measure(of, resamples=resamples, seed=seed).metrics for name, of in predicted.items()}
    ece_before = {name: _ece_before(z, tested[name], config) for name, z in logits.items()}
    return _Tested(tested, calibration, predicted, metrics, ece_before)


def _groups(tested: _Tested, config: AnyConfig) -> list[GroupSummary]:
    """What is measured in every site, scanner and the like."""
    resamples, seed = config.bootstrap_resamples, config.seed
    return [
        group
        for name, predictions in tested.predicted.items()
        for group in group_summaries(tested.splits[name], predictions, resamples=resamples, seed=seed)
    ]


def _write_figures(folder: Path, tested: _Tested, config: AnyConfig) -> None:
    """The pictures of validation and test, and the table of their predictions."""
    for name, of in tested.predicted.items():
        write_pictures(
            folder / "pictures", name, tested.splits[name], of, tested.metrics[name],
            resamples=config.bootstrap_resamples, seed=config.seed,
        )  # fmt: skip
    models = [{"model": of} for of in tested.predicted.values()]
    write_file(folder / "predictions.csv", prediction_table([*tested.splits.values()], models))


def _require_classes(split: Split, config: AnyConfig) -> None:
    """Raise ConfigError where the epoch is to be chosen by what validation cannot show."""
    missing = [name for number, name in enumerate(split.classes) if number not in split.label]
    if config.select == "stress" and missing:
        fix = "use log_loss, add cases of it, or choose another split_seed"
        raise ConfigError(
            "select", f"stress needs tiles of every class to validate on, and {missing[0]!r} has none", fix
        )


def _start(split: Split, config: AnyConfig, fabric: Fabric) -> tuple[Network, str]:
    """The classifier before the first step, and the name of the weights it starts from."""
    classes = len(split.classes)
    if config.sd_gamma is not None and len(config.sd_gamma) != classes:
        what = f"{len(config.sd_gamma)} numbers for {classes} classes"
        raise ConfigError("sd_gamma", what, f"pass one for each of {', '.join(split.classes)}")
    if isinstance(config, BagConfig):
        return _start_bags(split, config), "none"
    network = make_classifier(config.backbone, classes, config.input_px, split.tile_px)
    origin = load_weights(network, config.backbone, config.weights)
    network.stain = _stain(split, config)
    log.info(
        "%s from %s weights sees %d px, on %d x %s; %d training tiles of %d cases",
        config.backbone, origin, network.input_px, fabric.world_size, fabric.device, len(split),
        len(np.unique(split.case_id)),
    )  # fmt: skip
    return network, origin


def _start_bags(split: Split, config: BagConfig) -> BagClassifier:
    """The classifier of bags before the first step, which standardises by some tiles of every training bag."""
    samples = split.samples
    dim, classes = encoder_of(samples).dim, len(split.classes)
    shape = HeadShape(dim, classes, config.head_dim, config.dropout, config.top_k)
    network = BagClassifier(config.head, shape, slide_mean=config.bag == "case-mean")
    network.standardise(drawn_features(samples, split.indices, BagDraw(STANDARD_TILES, config.seed)))
    tiles = sum(len(part.rows) for source in samples.source[split.indices] for part in samples.bags[source])
    log.info(
        "%s learns from %d bags with %d tiles of %d cases",
        config.head, len(split), tiles, len(np.unique(split.case_id)),
    )  # fmt: skip
    return network


def _stain(split: Split, config: TrainConfig) -> StainTarget | None:
    """The staining that tiles are given, from a few training tiles that the seed draws."""
    if config.stain_norm == "none":
        return None
    drawn = split.only(_drawn(len(split), STAIN_TILES, np.random.default_rng(config.seed)))
    return stain_target(config.stain_norm, TileDataset(drawn).__getitems__(list(range(len(drawn)))).tiles)


def _fit_ood(
    training: Training, splits: Mapping[str, Split], config: AnyConfig
) -> tuple[Novelty | None, NoveltySummary | None]:
    """What the model remembers of its training tiles, to flag out-of-distribution ones, and what to say of it.

    Fitted by the first process alone.
    """
    if not isinstance(training.network, TileClassifier) or not isinstance(config, TrainConfig):
        return None, None
    network = Features(training.network).eval()
    if not network.offered():
        log.warning("%s does not give its features: out-of-distribution tiles will not be flagged", config.backbone)
        return None, None
    drawn = {
        name: splits[name].only(_drawn(len(splits[name]), MAX_TILES, np.random.default_rng([config.seed, number])))
        for number, name in enumerate(("train", "val"))
    }
    train, val = (
        training.logits(eval_loader(split, config, training.fabric), network, len(split)) for split in drawn.values()
    )
    if not training.fabric.is_global_zero:
        return None, None
    novelty = fit_novelty(train, drawn["train"].label, val)
    if novelty is None:
        log.warning("the training tiles do not vary: out-of-distribution tiles will not be flagged")
        return None, None
    return novelty, NoveltySummary(
        features_threshold=novelty.features.threshold,
        appearance_threshold=novelty.appearance.threshold,
        quantile=QUANTILE,
        train_tiles=len(train),
        val_tiles=len(val),
    )


def _drawn(count: int, limit: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Positions of at most `limit` of so many tiles, in order."""
    return np.arange(count) if count <= limit else np.sort(random.choice(count, limit, replace=False))


def _calibrate(logits: NDArray[np.float32], split: Split, config: AnyConfig) -> Calibration:
    """Temperature and threshold, from the validation split alone."""
    positive = split.classes.index(positive_class(split.classes, config))
    temperature, threshold = fit_decision(logits, split.label, positive)
    if temperature == 1.0:
        log.warning("the validation split cannot say how sure the model may be: its probabilities are not calibrated")
    if len(np.unique(split.label == positive)) < 2:
        log.warning("the validation split has one side only of %s: its threshold is 0.5", split.classes[positive])
    return Calibration(temperature, threshold, positive)


def _ece_before(logits: NDArray[np.float32], split: Split, config: AnyConfig) -> Interval:
    """The split's ECE without the temperature."""
    metric = partial(ece, softmax(logits), split.label)
    return bootstrap_interval(metric, split.case_id, resamples=config.bootstrap_resamples, seed=config.seed)


@contextmanager
def _code_for_launchers() -> Iterator[None]:
    """Let a process that Fabric started end with code 0 when stopped: on any other it would kill the first."""
    try:
        yield
    except StoppedError as error:
        if is_own_child():
            error.exit_code = 0
        raise
