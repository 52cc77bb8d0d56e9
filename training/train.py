"""The verb: samples -> a trained model and the record of how it came to be.

out/log/metrics.csv       losses and validation metrics by epoch     out/metrics.json     metrics with intervals
out/learning_curve.png                                                out/split.csv        the split of each case
out/predictions.csv       probabilities of validation and test tiles  out/model/           published last
out/pictures/             <split>_performance.png, <split>_gallery.png of validation and test
out/provenance.json       the hashes of all that was learned from, and the machine
out/checkpoints/          the state of a run that was stopped; gone when the model is there
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric import Fabric
from numpy.typing import NDArray

from tiling.core.artefact import PROVENANCE, locked_folder, require_own
from tiling.core.errors import ConfigError, StoppedError
from tiling.core.files import (
    canonical_json,
    output_error,
    sha256_file,
    sha256_json,
    sha256_text,
    write_file,
)
from training.checkpoints import Checkpoints
from training.config import TrainConfig
from training.data.dataset import Tiles
from training.data.loaders import eval_loader, read_px, tiles_loader, train_batches
from training.data.samples import Samples
from training.data.splits import SPLITS
from training.devices import is_own_child, machine_of, make_fabric, settled
from training.evaluation.evaluate import group_summaries, predictions_of, write_pictures
from training.evaluation.figures import Predictions, learning_curve
from training.evaluation.metrics import (
    Interval,
    balanced_threshold,
    bootstrap_interval,
    ece,
    evaluate,
    fit_temperature,
    softmax,
)
from training.fit import Training
from training.logs import LOGS, Logger, open_loggers, require_loggers
from training.models.card import model_card
from training.models.folder import (
    INFO,
    Features,
    NoveltySummary,
    TileClassifier,
    load_weights,
    make_classifier,
    save_model,
)
from training.models.ood import MOST_TILES, QUANTILE, Novelty, fit_novelty
from training.models.stain import StainTarget, stain_target
from training.optim import parameter_groups, rate_at
from training.record import (
    MACHINE_SETTINGS,
    Calibration,
    describe,
    metric_record,
    prediction_table,
    provenance_record,
    split_table,
)
from training.signals import listening

__all__ = ["TrainResult", "parameter_groups", "rate_at", "train", "training_key"]

log = logging.getLogger(__name__)

STAIN_TILES = 128
"""As many training tiles decide the staining that all tiles are given."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrainResult:
    """What a training run made."""

    model: Path
    """The model folder."""
    metrics: dict[str, dict[str, Interval]]
    """By split ("val", "test") and metric, as named in training.evaluation.metrics.METRIC_NAMES."""
    best_epoch: int
    """From 1."""
    temperature: float
    threshold: float
    rank: int = 0
    """Which of the processes that trained together this is; only the first, 0, has written anything."""


def train(samples: Samples, out: Path, config: TrainConfig | None = None) -> TrainResult:
    """Train a tile classifier on the training split, choose on validation, measure on validation and test.

    Writes the files listed above into `out`; `out/model` is there only when everything else is. The same samples,
    configuration, software and numbers of threads and processes give the same result to the last bit on a CPU.

    On SIGTERM or SIGUSR1 the state is saved and StoppedError raised; the next call with the same samples and
    configuration goes on from there, as it does after a kill from the last state saved (`checkpoint_minutes`), and ends
    with the very same weights. With torchrun, srun or `devices` each process calls this with the same arguments, and
    `out` is a folder they share.

    Raises ConfigError for a backbone, weights, input size or machine that cannot be used, ModelError if training
    diverges, OutputError if `out` cannot be written, is being written by another run, or holds a folder `model` or
    `checkpoints` of something else.
    """
    config = config or TrainConfig()
    with settled(config), listening() as stop:
        fabric = make_fabric(config)  # whatever is refused is refused before anything is written
        batches = train_batches(samples, config, fabric.world_size)
        network, origin = _start(samples, config, fabric)
        identity = training_identity(samples, config)
        checkpoints = Checkpoints(out / "checkpoints", identity)
        require_loggers(config)
        fabric.launch()
        logging_to = open_loggers if fabric.is_global_zero else _no_loggers
        with _claimed(out, checkpoints, fabric), _code_for_launchers(), logging_to(config, out) as logs:
            training = Training(network, samples, batches, config, fabric, checkpoints, stop)
            progress = training.fit(logs, out / "log" / "metrics.csv")
            logits = {split: _logits(training, samples, split, config) for split in SPLITS[1:]}
            training.stop_if_asked()
            calibration = _calibrate(logits["val"], samples, config)
            probabilities = {split: softmax(z, calibration.temperature) for split, z in logits.items() if len(z)}
            metrics = {split: _measure(p, samples, split, calibration, config) for split, p in probabilities.items()}
            key, best_epoch = sha256_json(identity), progress.best_epoch
            before = {split: _ece_before(z, samples, split, config) for split, z in logits.items() if len(z)}
            judged = {split: _judged(p, samples, split, calibration, config) for split, p in probabilities.items()}
            resamples, seed = config.bootstrap_resamples, config.seed
            groups = [
                group
                for split, (tiles, predicted) in judged.items()
                for group in group_summaries(split, tiles, predicted, resamples=resamples, seed=seed)
            ]
            novelty, known = _novelty(training, samples, config)
            training.stop_if_asked()
            info = describe(network, origin, samples, config, calibration, metrics, best_epoch, key, before, groups)
            info = info.model_copy(update={"novelty": known})
            if fabric.is_global_zero:
                provenance = canonical_json(provenance_record(samples, machine_of(fabric, config)))
                info = info.model_copy(update={"hashes": info.hashes | {PROVENANCE: sha256_text(provenance)}})
                write_file(out / PROVENANCE, provenance)
                write_file(out / "learning_curve.png", learning_curve(progress.history, best_epoch))
                for split, (tiles, predicted) in judged.items():
                    folder = out / "pictures"
                    write_pictures(folder, split, tiles, predicted, metrics[split], resamples=resamples, seed=seed)
                write_file(out / "split.csv", split_table(samples))
                write_file(out / "predictions.csv", prediction_table(samples, probabilities))
                write_file(out / "metrics.json", canonical_json(metric_record(info)))
                save_model(out / "model", network, info, model_card(info), novelty)
                checkpoints.remove()
            fabric.barrier()
    return TrainResult(
        out / "model", metrics, best_epoch, calibration.temperature, calibration.threshold, fabric.global_rank
    )


@contextmanager
def _no_loggers(config: TrainConfig, out: Path) -> Iterator[list[Logger]]:
    yield []


def training_key(samples: Samples, config: TrainConfig) -> str:
    """SHA-256 of all that decides the model: the configuration, a local weights file's content, and the data."""
    return sha256_json(training_identity(samples, config))


def training_identity(samples: Samples, config: TrainConfig) -> dict[str, Any]:
    """All that decides the model, by name: each setting, the content of a local weights file, and the data."""
    settings = config.model_dump(mode="json", exclude=set(MACHINE_SETTINGS))
    weights = Path(config.weights)
    content = {"content of weights": sha256_file(weights)} if weights.is_file() else {}
    return {**settings, **content, "data": samples.identity()}


def _start(samples: Samples, config: TrainConfig, fabric: Fabric) -> tuple[TileClassifier, str]:
    """The classifier before the first step, and the name of the weights it starts from."""
    classes = len(samples.classes)
    if config.sd_gamma is not None and len(config.sd_gamma) != classes:
        what = f"{len(config.sd_gamma)} numbers for {classes} classes"
        raise ConfigError("sd_gamma", what, f"pass one for each of {', '.join(samples.classes)}")
    network = make_classifier(config.backbone, classes, config.input_px, read_px(samples, config))
    origin = load_weights(network, config.backbone, config.weights)
    network.stain = _stain(samples, config)
    log.info(
        "%s from %s weights sees %d px, on %d x %s; %d tiles of %d cases",
        config.backbone, origin, network.input_px, fabric.world_size, fabric.device, len(samples),
        len(np.unique(samples.case_id)),
    )  # fmt: skip
    return network, origin


def _stain(samples: Samples, config: TrainConfig) -> StainTarget | None:
    """The staining that tiles are given, from a few training tiles that the seed draws."""
    if config.stain_norm == "none":
        return None
    training = samples.where("train")
    count = min(STAIN_TILES, len(training))
    drawn = np.sort(np.random.default_rng(config.seed).choice(training, count, replace=False))
    tiles = Tiles(samples, drawn, read_px(samples, config)).__getitems__(list(range(count))).tiles
    return stain_target(config.stain_norm, tiles)


def _logits(training: Training, samples: Samples, split: str, config: TrainConfig) -> NDArray[np.float32]:
    """Logits of a split, float32 (n, C), in the order of `samples.where(split)`."""
    count = len(samples.where(split))
    if not count:
        return np.empty((0, len(samples.classes)), dtype=np.float32)
    return training.logits(eval_loader(samples, split, config, training.fabric), training.network, count)


def _novelty(training: Training, samples: Samples, config: TrainConfig) -> tuple[Novelty | None, NoveltySummary | None]:
    """What the model remembers of its training tiles, and what to say of it; fitted by the first process alone."""
    drawn = [_drawn(samples, split, config.seed) for split in SPLITS[:2]]
    network = Features(training.network).eval()
    if not network.offered():
        log.warning("%s does not give its features: unlike tiles will not be told", config.backbone)
        return None, None
    train, val = (
        training.logits(tiles_loader(samples, chosen, config, training.fabric), network, len(chosen))
        for chosen in drawn
    )
    if not training.fabric.is_global_zero:
        return None, None
    novelty = fit_novelty(train, samples.label[drawn[0]], val)
    if novelty is None:
        log.warning("the training tiles do not vary: unlike tiles will not be told")
        return None, None
    tiles = {"train_tiles": len(train), "val_tiles": len(val)}
    thresholds = {
        "features_threshold": novelty.features.threshold,
        "appearance_threshold": novelty.appearance.threshold,
    }
    return novelty, NoveltySummary.model_validate({**thresholds, "quantile": QUANTILE, **tiles})


def _drawn(samples: Samples, split: str, seed: int) -> NDArray[np.intp]:
    """The tiles of a split that novelty is fitted on: all, or as many as are enough, by the seed."""
    chosen = samples.where(split)
    if len(chosen) <= MOST_TILES:
        return chosen
    random = np.random.default_rng([seed, SPLITS.index(split)])
    return np.sort(random.choice(chosen, MOST_TILES, replace=False))


def _calibrate(logits: NDArray[np.float32], samples: Samples, config: TrainConfig) -> Calibration:
    """Temperature and threshold, from the validation split alone."""
    labels = samples.label[samples.where("val")]
    positive = samples.classes.index(config.positive_class or samples.classes[-1])
    temperature = fit_temperature(logits, labels)
    threshold = balanced_threshold(softmax(logits, temperature)[:, positive], labels == positive)
    return Calibration(temperature, threshold, positive)


def _measure(
    probabilities: Floats, samples: Samples, split: str, calibration: Calibration, config: TrainConfig
) -> dict[str, Interval]:
    chosen = samples.where(split)
    return evaluate(
        probabilities,
        samples.label[chosen],
        samples.case_id[chosen],
        threshold=calibration.threshold,
        positive=calibration.positive,
        resamples=config.bootstrap_resamples,
        seed=config.seed,
    )


def _ece_before(logits: NDArray[np.float32], samples: Samples, split: str, config: TrainConfig) -> Interval:
    """The split's ECE without the temperature."""
    chosen = samples.where(split)
    return bootstrap_interval(
        partial(ece, softmax(logits), samples.label[chosen]),
        samples.case_id[chosen],
        resamples=config.bootstrap_resamples,
        seed=config.seed,
    )


def _judged(
    probabilities: Floats, samples: Samples, split: str, calibration: Calibration, config: TrainConfig
) -> tuple[Tiles, Predictions]:
    """The tiles of a split and what the model says of them."""
    tiles = Tiles(samples, samples.where(split), read_px(samples, config))
    return tiles, predictions_of(tiles, probabilities, calibration.threshold, calibration.positive)


@contextmanager
def _claimed(out: Path, checkpoints: Checkpoints, fabric: Fabric) -> Iterator[None]:
    """Hold the right to write `out`, for the first process; the others wait until it has, and write nothing."""
    if not fabric.is_global_zero:
        fabric.barrier()
        yield
        return
    with locked_folder(out / "run"):
        checkpoints.claim()
        _sweep(out)
        fabric.barrier()
        yield


@contextmanager
def _code_for_launchers() -> Iterator[None]:
    """Let a process that Fabric started end with code 0 when stopped: on any other it would kill the first."""
    try:
        yield
    except StoppedError as error:
        if is_own_child():
            error.exit_code = 0
        raise


def _sweep(out: Path) -> None:
    """Remove what an earlier run left, its model first, so that an old model never stands beside new figures.

    What else lies in the folders is somebody's, and stays.
    """
    require_own(out / "model", INFO, "a model")
    left = [out / "model", *(out / "pictures").glob("*_performance.png"), *(out / "pictures").glob("*_gallery.png")]
    if not (out / "checkpoints" / "last.ckpt").exists():
        left += [out / "log" / name for name in LOGS]
    try:
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
