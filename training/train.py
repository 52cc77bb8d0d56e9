"""The verb: samples -> a trained model and the record of how it came to be, over Lightning.

out/log/metrics.csv       losses and validation metrics by epoch     out/metrics.json     metrics with intervals
out/learning_curve.png                                                out/split.csv        the split of each case
out/predictions.csv       probabilities of validation and test tiles  out/model/           published last
"""

from __future__ import annotations

import csv
import io
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tiling.errors import ConfigError, ModelError
from tiling.files import canonical_json, claimed, output_error, sha256_file, sha256_json, write_file
from tiling.versions import RESEARCH_USE, software_versions
from training.augment import AUGMENTATIONS
from training.card import model_card
from training.config import TrainConfig
from training.data import SPLITS, Batch, Samples, Shuffled, Tiles, as_it_is
from training.figures import learning_curve
from training.losses import SpectralDecouplingLoss
from training.metrics import Interval, auroc, choose_threshold, evaluate, fit_temperature, log_loss, softmax
from training.model import (
    MetricSummary,
    ModelInfo,
    SplitSummary,
    TileClassifier,
    input_side,
    load_weights,
    make_classifier,
    save_model,
)

log = logging.getLogger(__name__)

_MACHINE_SETTINGS = {"workers", "threads"}  # they change how fast a model comes to be, not which
_SOFTWARE = ("torch", "timm", "lightning", "numpy", "opencv-python-headless", "scipy")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrainResult:
    """What a training run made."""

    model: Path
    """The model folder."""
    metrics: dict[str, dict[str, Interval]]
    """By split ("val", "test") and metric ("auroc", "balanced_accuracy", "log_loss", "ece")."""
    best_epoch: int
    """From 1."""
    temperature: float
    threshold: float


@dataclass(frozen=True)
class Calibration:
    """What is chosen on the validation split once the weights are."""

    temperature: float
    threshold: float
    positive: int


def train(samples: Samples, out: Path, config: TrainConfig | None = None) -> TrainResult:
    """Train a tile classifier on the training split, choose on validation, measure on validation and test.

    Writes the files listed above into `out`; `out/model` is there only when everything else is. The same samples,
    configuration, software and number of threads give the same result to the last bit on a CPU. Raises ConfigError for
    a backbone, weights or input size that cannot be used, ModelError if training diverges, OutputError if `out` cannot
    be written or is being written by another run.
    """
    config = config or TrainConfig()
    with _settled(config):
        network, origin = _start(samples, config)  # whatever is refused is refused before anything is written
        with claimed(out / "run"):
            _sweep(out)
            history, best_epoch = _fit(network, samples, out, config)
            logits = {split: _predict(network, samples, split, config) for split in SPLITS[1:]}
            calibration = _calibrate(logits["val"], samples, config)
            probabilities = {split: softmax(z, calibration.temperature) for split, z in logits.items() if len(z)}
            metrics = {split: _measure(p, samples, split, calibration, config) for split, p in probabilities.items()}
            info = _describe(network, origin, samples, config, calibration, metrics, best_epoch)

            write_file(out / "learning_curve.png", learning_curve(history, best_epoch))
            write_file(out / "split.csv", _split_table(samples))
            write_file(out / "predictions.csv", _prediction_table(samples, probabilities))
            write_file(out / "metrics.json", canonical_json(_metric_record(info)))
            save_model(out / "model", network, info, model_card(info))
            shutil.rmtree(out / "checkpoints")
    return TrainResult(out / "model", metrics, best_epoch, calibration.temperature, calibration.threshold)


def training_key(samples: Samples, config: TrainConfig) -> str:
    """SHA-256 of all that decides the model: the configuration, a local weights file's content, and the data."""
    settings = config.model_dump(mode="json", exclude=_MACHINE_SETTINGS)
    weights = Path(config.weights)
    start = sha256_file(weights) if weights.is_file() else config.weights
    return sha256_json([settings, start, samples.identity()])


class TileTask(lightning.LightningModule):
    """The training of a classifier as Lightning wants it: loss, optimiser and what is logged."""

    def __init__(self, network: TileClassifier, config: TrainConfig) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.loss = SpectralDecouplingLoss(config.sd_lambda, config.sd_reduction)
        self.history: list[dict[str, float]] = []
        self._outputs: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step: augment on the device, classify, and log each term of the loss and the logits' norm."""
        random = torch.Generator(self.device).manual_seed(_mixed(self.config.seed, self.global_step))
        pixels = AUGMENTATIONS[self.config.augment](self.network.pixels(batch.tiles), random)
        logits = self.network.logits(pixels)
        terms = self.loss.terms(logits, batch.labels)
        norm = logits.detach().float().square().sum(dim=1).mean().sqrt()
        logged = {"train_loss": terms.total, "train_ce": terms.ce, "train_sd": terms.sd, "train_logit_norm": norm}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return terms.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits: the metrics need all of them."""
        self._outputs.append((self.network(batch.tiles).float().cpu(), batch.labels.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics.

        The log loss is taken at its own best temperature. It is what the finished model will have, it does not depend
        on the logits' scale, which spectral decoupling sets, and unlike AUROC it tells good from better near 1 too.
        """
        logits, labels = (torch.cat(parts).numpy() for parts in zip(*self._outputs, strict=True))
        self._outputs.clear()
        if not np.isfinite(logits).all():
            epoch = self.current_epoch + 1
            raise ModelError(f"epoch {epoch}", "the logits are no longer finite", "train with a lower learning_rate")
        temperature = fit_temperature(logits, labels)
        probabilities = softmax(logits, temperature)
        self.log("val_log_loss", float(log_loss(probabilities, labels)), prog_bar=True)
        self.log("val_auroc", float(auroc(probabilities, labels)), prog_bar=True)
        self.log("val_temperature", temperature)

    def on_train_epoch_end(self) -> None:
        """Remember the epoch's record."""
        record = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        self.history.append({"epoch": self.current_epoch + 1, **record})
        shown = ", ".join(f"{name} {record[name]:.4f}" for name in ("train_loss", "val_log_loss", "val_auroc"))
        log.info("epoch %d of %d: %s", self.current_epoch + 1, self.config.epochs, shown)

    def configure_optimizers(self) -> Any:
        """AdamW, with a linear warm-up and a cosine to zero over all steps."""
        optimiser = torch.optim.AdamW(
            parameter_groups(self.network, self.config.weight_decay), lr=self.config.learning_rate
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(self.config.warmup * steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, steps, warmup))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate_at(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: (step + 1) / warmup at first, then a half cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters in two groups for an optimiser: biases and norms, which have one axis, are never decayed."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _start(samples: Samples, config: TrainConfig) -> tuple[TileClassifier, str]:
    """The classifier before the first step, and the name of the weights it starts from."""
    network = make_classifier(config.backbone, len(samples.classes), config.input_px, _read_px(samples, config))
    origin = load_weights(network, config.backbone, config.weights)
    log.info(
        "%s from %s weights sees %d px, on %s at %s; %d tiles of %d cases",
        config.backbone, origin, network.input_px, _device(config), _precision(config), len(samples),
        len(np.unique(samples.case_id)),
    )  # fmt: skip
    return network, origin


def _read_px(samples: Samples, config: TrainConfig) -> int:
    """The side at which tiles are delivered, pixels: their own.

    Only images of no known scale, which may be large, are shrunk as they are read: nothing ties them to a tile's size.
    """
    if samples.kind == "stores" or samples.mpp is not None:
        return samples.tile_px
    return min(samples.tile_px, input_side(config.backbone, config.input_px, samples.tile_px))


def _fit(
    network: TileClassifier, samples: Samples, out: Path, config: TrainConfig
) -> tuple[Sequence[Mapping[str, float]], int]:
    """Train the network in place and leave it with its best weights; returns the history and the best epoch, from 1."""
    task = TileTask(network, config)
    best = ModelCheckpoint(
        dirpath=out / "checkpoints", filename="best", monitor="val_log_loss", mode="min", save_weights_only=True
    )
    on_terminal = sys.stderr.isatty()
    trainer = lightning.Trainer(
        accelerator=_device(config).type,
        devices=1,
        precision=_precision(config),
        max_epochs=config.epochs,
        callbacks=[best],
        logger=CSVLogger(out, name="log", version=""),
        deterministic=True,
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    train_loader = _loader(samples, "train", config)
    val_loader = _loader(samples, "val", config)
    try:
        trainer.fit(task, train_loader, val_loader)
    except OSError as error:
        raise output_error(out, error) from error
    kept = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    task.load_state_dict(kept["state_dict"])
    return task.history, int(kept["epoch"]) + 1


def _loader(samples: Samples, split: str, config: TrainConfig) -> DataLoader[Batch]:
    """Batches of a split; the training split's in a random order that the seed alone decides."""
    tiles = Tiles(samples, samples.where(split), _read_px(samples, config))
    training = split == "train"
    return DataLoader(
        tiles,
        batch_size=config.batch_size if training else 4 * config.batch_size,
        sampler=Shuffled(len(tiles), config.seed) if training else None,
        drop_last=training and len(tiles) > config.batch_size,  # a last batch of one would upset batch norms
        generator=torch.Generator(),  # the loader's own draws, which depend on its workers, touch no other's
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=_device(config).type == "cuda",
        collate_fn=as_it_is,
    )


def _predict(network: TileClassifier, samples: Samples, split: str, config: TrainConfig) -> NDArray[np.float32]:
    """Logits of a split, float32 (n, C), in the order of `samples.where(split)`."""
    device = _device(config)
    network.eval().to(device)
    empty = np.empty((0, len(samples.classes)), dtype=np.float32)
    with torch.inference_mode():
        loader = _loader(samples, split, config) if len(samples.where(split)) else ()
        return np.concatenate([empty, *(network(batch.tiles.to(device)).float().cpu().numpy() for batch in loader)])


def _calibrate(logits: NDArray[np.float32], samples: Samples, config: TrainConfig) -> Calibration:
    """Temperature and threshold, from the validation split alone."""
    labels = samples.label[samples.where("val")]
    positive = samples.classes.index(config.positive_class or samples.classes[-1])
    temperature = fit_temperature(logits, labels)
    threshold = choose_threshold(softmax(logits, temperature)[:, positive], labels == positive)
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


def _describe(
    network: TileClassifier,
    origin: str,
    samples: Samples,
    config: TrainConfig,
    calibration: Calibration,
    metrics: Mapping[str, Mapping[str, Interval]],
    best_epoch: int,
) -> ModelInfo:
    mean, std = (cast(tuple[float, float, float], tuple(b.flatten().tolist())) for b in (network.mean, network.std))
    return ModelInfo(
        backbone=config.backbone,
        classes=samples.classes,
        positive_class=samples.classes[calibration.positive],
        input_px=network.input_px,
        mean=mean,
        std=std,
        mpp=samples.mpp,
        tile_px=_read_px(samples, config),
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        training=config.model_dump(mode="json", exclude=_MACHINE_SETTINGS)
        | {"weights": origin},  # no path of a machine
        best_epoch=best_epoch,
        data={split: _summary(samples, split) for split in SPLITS},
        metrics={
            split: {name: MetricSummary(**asdict(value)) for name, value in of_split.items()}
            for split, of_split in metrics.items()
        },
        hashes={"data": samples.identity(), "training": training_key(samples, config)},
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


def _metric_record(info: ModelInfo) -> dict[str, object]:
    record = info.model_dump(mode="json", include={"metrics", "data", "temperature", "threshold", "positive_class"})
    return record | {"best_epoch": info.best_epoch, "interval": "95% bootstrap over cases", "notice": RESEARCH_USE}


def _split_table(samples: Samples) -> str:
    """CSV: a row a case, with its split and how many tiles of each class it has."""
    cases, first, case_of = np.unique(samples.case_id, return_index=True, return_inverse=True)
    counts = np.zeros((len(cases), len(samples.classes)), dtype=int)
    np.add.at(counts, (case_of, samples.label), 1)
    rows = [[case, samples.split[f], *count] for case, f, count in zip(cases, first, counts.tolist(), strict=True)]
    return _csv(["case_id", "split", *(f"tiles_{name}" for name in samples.classes)], rows)


def _prediction_table(samples: Samples, probabilities: Mapping[str, Floats]) -> str:
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


def _sweep(out: Path) -> None:
    """Remove what an earlier run left, its model first, so that an old model never stands beside new figures."""
    try:
        for name in ("model", "checkpoints", "log"):
            if (out / name).exists():
                shutil.rmtree(out / name)
    except OSError as error:
        raise output_error(out, error) from error


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", "there is no GPU that torch can use", "use --device cpu or auto")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _precision(config: TrainConfig) -> Any:
    """Lightning's name for the precision; bf16 is far slower than 32 bits where the hardware only imitates it."""
    able = _device(config).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and not able:
        raise ConfigError("precision", "bf16 needs a GPU that computes in it", "use 32 or auto")
    return "bf16-mixed" if able and config.precision != "32" else "32-true"


def _mixed(seed: int, step: int) -> int:
    """A seed of its own for each step, so that a step's augmentation depends on nothing that came before."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _settled(config: TrainConfig) -> Iterator[None]:
    """Seed torch, make it deterministic and keep Lightning quiet; all is put back afterwards."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    chatter = logging.getLogger("lightning.pytorch")
    level = chatter.level
    with torch.random.fork_rng(), warnings.catch_warnings():
        # On few cores, loading in the main process is the choice that was made, and Lightning advises against it.
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        # Lightning 2.6 makes a LeafSpec, which torch 2.13 will rename; nothing here can be done about it.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        torch.manual_seed(config.seed)
        chatter.setLevel(logging.WARNING)
        if config.threads:
            torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            chatter.setLevel(level)
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
