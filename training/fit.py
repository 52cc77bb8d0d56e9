"""The training loop, over Lightning Fabric: from the first weights, or a saved state, to the best ones.

The batch is the global one, whatever the number of processes and of parts (gradient accumulation) each computes its
share in: every term of the loss is a mean over samples, parts count by their size, and gradients are summed up before
the one step. What a process draws (order, augmentation, dropout) is a function of seed, step and part, so that a run
that goes on from a saved state ends with the very weights it would have had. Two things differ with the number of
processes: batch norms see their process's share (frozen ones do not), and each part augments, and each process shifts
the copies of `consistency`, by draws of its own.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tiling.core.errors import ModelError, StoppedError
from tiling.core.pace import Pace, left_text, say_progress
from tiling.core.signals import Stop
from training.augmentations import AUGMENTATIONS
from training.checkpoints import Checkpoints, State
from training.config import AnyConfig, known_shifts
from training.data.dataset import Batch
from training.data.loaders import TrainBatches, eval_loader, train_loader
from training.data.preparation import positive_class
from training.data.samples import Split
from training.devices import exact, from_first, gathered, total
from training.evaluation.metrics import auroc, fit_temperature, log_loss, softmax
from training.evaluation.perturbations import DrawnShift
from training.logs import write_history
from training.losses import SpectralDecouplingLoss, balanced_weights, consistency_penalty, l2_penalty
from training.mil.model import BagClassifier
from training.models.classifier import TileClassifier
from training.optim import clip_gradients, decayed_weights, parameter_groups, rate_at, update_ema
from training.selection.rules import RULES
from training.selection.views import Views

log = logging.getLogger(__name__)

Network = TileClassifier | BagClassifier

TERMS = ("train_loss", "train_ce", "train_sd", "train_logit_norm")
_SHOWN_SLIDES = 100


@dataclass
class Progress:
    """The progress of a run: epoch, step, best epoch and history."""

    epoch: int = 0
    """The epoch under way, from 0."""
    batch: int = 0
    """How many of its batches are done."""
    step: int = 0
    """Steps of the optimiser in all."""
    best_epoch: int = 0
    """From 1; 0 before the first validation."""
    best_score: float = float("inf")
    """The best epoch's validation log loss, or its value under `select: stress` with a minus sign."""
    history: list[dict[str, float]] = field(default_factory=list)
    """A record an epoch: the terms of the loss, the root mean square norm of the logits, validation metrics."""


class Training:
    """A run under way: `fit` takes it to its end, `stop_if_asked` saves it and raises StoppedError."""

    def __init__(
        self,
        network: Network,
        train: Split,
        val: Split,
        batches: TrainBatches,
        config: AnyConfig,
        fabric: Fabric,
        checkpoints: Checkpoints,
        stop: Stop,
    ) -> None:
        if config.freeze and isinstance(network, TileClassifier):
            network.freeze()
        self.network, self.train, self.val, self.batches, self.config = network, train, val, batches, config
        self.fabric, self.checkpoints, self.stop = fabric, checkpoints, stop
        batches.rank = fabric.global_rank
        self.average = copy.deepcopy(network).to(fabric.device) if config.ema_decay is not None else None
        groups = parameter_groups(network, config.weight_decay, config.layer_decay)
        optimiser = torch.optim.AdamW(groups, lr=config.learning_rate)
        module: Any = torch.compile(_Logits(network)) if config.compile else _Logits(network)
        self.model, self.optimiser = fabric.setup(module, optimiser)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.decayed = decayed_weights(network)
        self.loss = SpectralDecouplingLoss(
            config.sd_lambda, config.sd_reduction, gamma=config.sd_gamma,
            class_weights=class_weights_of(train, config), label_smoothing=config.label_smoothing,
        )  # fmt: skip
        self.steps = len(batches) * config.epochs
        self.warmup = round(config.warmup * self.steps)
        self.progress = Progress()
        self.sums = torch.zeros(len(TERMS), dtype=exact(fabric.device), device=fabric.device)
        self.saved_at = time.monotonic()
        if (state := checkpoints.load()) is not None:
            self._restore(state)
        self.pace = Pace(self.progress.step)

    def fit(self, logs: Sequence[Logger], table: Path) -> Progress:
        """Train to the end and leave the network with its best weights; the first process writes the log."""
        shift = DrawnShift(self.config.seed) if self.config.consistency else None
        loader = train_loader(self.train, self.batches, self.config, self.fabric, shift)
        validation = eval_loader(self.val, self.config, self.fabric)
        while not self._done():
            self._train_epoch(loader)
            record = {"epoch": self.progress.epoch + 1, **self._train_record(), **self._validate(validation)}
            self._end_epoch(record, logs, table)
        self.network.load_state_dict(self.checkpoints.load_best(self.progress.best_epoch))
        return self.progress

    def stop_if_asked(self) -> None:
        """Raise StoppedError, with the state saved, if a signal has asked any process to stop."""
        if self._agreed(bool(self.stop))[0]:
            self._save_and_stop()

    def logits(self, loader: DataLoader[Batch], network: nn.Module, count: int) -> NDArray[np.float32]:
        """Logits float32 (count, C) of an `eval_loader`'s tiles, in the order of the split, on every process.

        Or whatever else the network makes of tiles, a row each.
        """
        found: list[Tensor] = []
        network.eval()
        with torch.inference_mode():
            for batch in self._guarded(loader):
                found.append(network(batch.tiles.to(self.fabric.device, non_blocking=True)).float())
                self.stop_if_asked()
            shares = gathered(self.fabric, torch.cat(found))  # (processes, m, C)
        return np.asarray(shares.transpose(0, 1).flatten(0, 1)[:count].cpu().numpy())

    def _done(self) -> bool:
        """Whether all epochs are done, or early stopping ends them: `patience` epochs without a better one."""
        config, progress = self.config, self.progress
        stale = progress.epoch - progress.best_epoch
        return progress.epoch >= config.epochs or (config.patience is not None and stale >= config.patience)

    def _train_epoch(self, loader: DataLoader[Batch]) -> None:
        """The batches of the epoch that are left."""
        progress = self.progress
        self.batches.at(progress.epoch, progress.batch)
        self.network.train()
        if progress.batch == len(self.batches):
            return  # the signal came while this epoch was validated
        for batch in self._guarded(self._shown(loader)):
            terms = self._step(batch)
            self.sums += terms
            progress.batch += 1
            progress.step += 1
            self._say_if_due()
            self._save_if_due()

    def _step(self, batch: Batch) -> Tensor:
        """One step on this process's share of a batch; returns its sums of the logged terms, `exact`.

        Raises ModelError before the update if a logit or a gradient is not finite.
        """
        whole = len(batch.labels) * self.fabric.world_size
        shares = [part.tensor_split(self.config.accumulate) for part in batch]
        parts = [Batch(*share) for share in zip(*shares, strict=True)]
        sums = torch.zeros_like(self.sums)
        overlarge: list[Tensor] = []
        self.optimiser.zero_grad()
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                pixels = self._pixels(part, self.fabric.global_rank * len(parts) + number)
                logits, of_copies = self._forward(pixels, part)
                terms = self.loss.terms(logits, part.labels.to(self.fabric.device, non_blocking=True))
                if of_copies is not None:
                    change = consistency_penalty(logits, of_copies, self.config.consistency)
                    terms = terms._replace(total=terms.total + change)
                if self.config.l2:
                    terms = terms._replace(total=terms.total + l2_penalty(self.decayed, self.config.l2))
                share = len(part.labels) * self.fabric.world_size / whole  # processes are averaged over, parts summed
                self.fabric.backward(terms.total * share if share != 1 else terms.total)
            squares = logits.detach().float().square().sum(dim=1)
            overlarge.append(~squares.isfinite())
            sums += torch.stack([*(term.detach() for term in terms), squares.mean()]).to(sums.dtype) * len(part.labels)
        norm = clip_gradients(self.parameters, self.config.clip_norm)
        self._refuse_non_finite(sums[0], norm, batch, torch.cat(overlarge))
        rate = self.config.learning_rate * rate_at(self.progress.step, self.steps, self.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.optimiser.step()
        if self.average is not None:
            update_ema(self.average, self.network, cast(float, self.config.ema_decay), self.progress.step)
        return sums

    def _pixels(self, part: Batch, number: int) -> Tensor:
        """The part's tiles, or bags, on the device, augmented by draws that seed, step and part alone decide."""
        seed = _mixed(self.config.seed, self.progress.step, number)
        torch.manual_seed(seed)  # for dropout
        random = torch.Generator(self.fabric.device).manual_seed(seed)
        tiles = part.tiles.to(self.fabric.device, non_blocking=True)
        with self.fabric.autocast():
            return AUGMENTATIONS[self.config.augment](self.network.pixels(tiles), random)

    def _forward(self, pixels: Tensor, part: Batch) -> tuple[Tensor, Tensor | None]:
        """The logits of a part, and those of its shifted copies, if there are any.

        One forward of both, so that norms see in training the mixture that they keep.
        """
        if not self.config.consistency:
            return self.model(pixels), None
        shifted = part.shifted.to(self.fabric.device, non_blocking=True)
        with self.fabric.autocast():
            copies = AUGMENTATIONS["none"](self.network.pixels(shifted), torch.Generator(self.fabric.device))
        logits, of_copies = torch.split(self.model(torch.cat([pixels, copies])), len(pixels))
        return logits, of_copies

    def _refuse_non_finite(self, loss: Tensor, norm: Tensor, batch: Batch, overlarge: Tensor) -> None:
        """Raise ModelError, on all processes, if the loss or the gradient of any is not finite; nothing was updated."""
        broken = total(self.fabric, torch.stack([~loss.isfinite(), ~norm.isfinite()]).float())
        if not broken.any():
            return
        wrong_loss = bool(broken[0])
        everywhere = gathered(self.fabric, torch.stack([batch.indices.to(self.fabric.device), overlarge.long()]))
        indices, flagged = everywhere.transpose(0, 1).flatten(1).cpu().numpy()
        slides = sorted(set(self.train.samples.slide_id[indices[flagged > 0] if flagged.any() else indices].tolist()))
        shown = ", ".join(slides[:_SHOWN_SLIDES]) + (", ..." if len(slides) > _SHOWN_SLIDES else "")
        what = "the logits are" if wrong_loss else "the gradient is"
        raise ModelError(
            f"epoch {self.progress.epoch + 1}",
            f"{what} no longer finite at step {self.progress.step + 1}, on {self.train.samples.noun}s of {shown}",
            "train with a lower learning_rate, or look at these; the last good state is kept",
        )

    def _train_record(self) -> dict[str, float]:
        """The logged terms, means over the epoch's samples."""
        seen = self.progress.batch * self.batches.batch_size
        sums = total(self.fabric, self.sums.clone()).tolist()
        means = dict(zip(TERMS, (value / seen for value in sums), strict=True))
        return means | {"train_logit_norm": means["train_logit_norm"] ** 0.5}

    def _validate(self, loader: DataLoader[Batch]) -> dict[str, float]:
        """The validation metrics of the weights that would be saved.

        The log loss is taken at its own best temperature. It is what the finished model will have, it does not depend
        on the logits' scale, which spectral decoupling sets, and unlike AUROC it tells good from better near 1 too.
        """
        network, labels = self.eval_network, self.val.label
        from_first(self.fabric, network)
        views = Views(network, known_shifts(self.config.select_shifts)) if self.config.select == "stress" else None
        with self.fabric.autocast():
            found = self.logits(loader, views or network, len(self.val))
        logits = found[:, 0] if views else found
        if not np.isfinite(found).all():
            epoch = self.progress.epoch + 1
            raise ModelError(f"epoch {epoch}", "the logits are no longer finite", "train with a lower learning_rate")
        temperature = fit_temperature(logits, labels)
        probabilities = softmax(logits, temperature)
        record = {
            "val_log_loss": float(log_loss(probabilities, labels)),
            "val_auroc": float(auroc(probabilities, labels)),
            "val_temperature": temperature,
        }
        if views:
            positive = self.val.classes.index(positive_class(self.val.classes, self.config))
            record["val_stress"] = RULES["stress"].value(views.quantities(found, labels, positive))
        return record

    @property
    def eval_network(self) -> Network:
        """The network that is validated and saved: the exponential moving average where there is one."""
        return self.network if self.average is None else self.average

    def _end_epoch(self, record: dict[str, float], logs: Sequence[Logger], table: Path) -> None:
        progress, first = self.progress, self.fabric.is_global_zero
        progress.history.append(record)
        score = -record["val_stress"] if "val_stress" in record else record["val_log_loss"]
        if score < progress.best_score:
            progress.best_epoch, progress.best_score = progress.epoch + 1, score
            if first:
                self.checkpoints.save_best(progress.best_epoch, self.eval_network.state_dict())
        if first:
            write_history(table, progress.history)
            for logger in logs:
                logger.log_metrics({name: value for name, value in record.items() if name != "epoch"}, progress.step)
        shown = ", ".join(f"{name} {record[name]:.4f}" for name in ("train_loss", "val_log_loss", "val_auroc"))
        if first:
            self._say(shown, **record)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        self.sums.zero_()
        self.fabric.barrier()

    def _save_if_due(self) -> None:
        """Save the state, and stop, where the time or a signal says so; all processes agree on it."""
        every, minutes = self.config.checkpoint_steps, self.config.checkpoint_minutes
        late = time.monotonic() - self.saved_at >= 60 * minutes and self.fabric.is_global_zero
        due, asked = self._agreed(late, bool(self.stop))
        if asked:
            self._save_and_stop()
        if due or (every is not None and self.progress.step % every == 0):
            self._save()

    def _agreed(self, *wishes: bool) -> list[bool]:
        """Which of the wishes any process has, the same on all."""
        if self.fabric.world_size == 1:  # no need to wait for the device
            return list(wishes)
        asked = torch.tensor(wishes, dtype=torch.float32, device=self.fabric.device)
        return [count > 0 for count in total(self.fabric, asked).tolist()]

    def _save_and_stop(self) -> None:
        self._save()
        raise self._interrupted()

    def _interrupted(self) -> StoppedError:
        name = self.stop.signal.name if self.stop.signal else "a signal to another process"
        what = f"stopped by {name} after step {self.progress.step} of {self.steps}"
        return StoppedError(self.checkpoints.folder, what, "run the same command again to go on")

    def _save(self) -> None:
        state = self._state()
        if self.fabric.is_global_zero:
            self.checkpoints.save(state)
            self.checkpoints.keep_best(self.progress.best_epoch)
        self.saved_at = time.monotonic()
        self.fabric.barrier()

    def _state(self) -> State:
        average = None if self.average is None else self.average.state_dict()
        sums = total(self.fabric, self.sums.clone())
        return {
            "weights": self.network.state_dict(), "average": average, "optimiser": self.optimiser.state_dict(),
            "sums": sums, "progress": asdict(self.progress),
        }  # fmt: skip

    def _restore(self, state: State) -> None:
        self.progress = Progress(**state["progress"])
        self.network.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.fabric.is_global_zero:
            self.sums.copy_(state["sums"])
        log.info("%s: goes on after step %d of %d", self.checkpoints.folder, self.progress.step, self.steps)

    def _guarded(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; where a signal has also ended the processes that load them, the run is stopped in order."""
        try:
            yield from batches
        except RuntimeError:
            if not self.stop:
                raise
            if self.fabric.world_size == 1:  # with others there is no telling where they are
                self._save()
            raise self._interrupted() from None

    def _say_if_due(self) -> None:
        """Say now and then how far the epoch is, and the mean loss in it so far."""
        self.pace.at(self.progress.step)
        if self.fabric.is_global_zero and self.pace.due():
            loss = float(self.sums[0]) * self.fabric.world_size / (self.progress.batch * self.batches.batch_size)
            text = f"step {self.progress.batch} of {len(self.batches)}, train_loss {loss:.4f}"
            self._say(text, epoch=self.progress.epoch + 1, train_loss=loss)

    def _say(self, text: str, **fields: float) -> None:
        """Say how far the run is, and how long the rest takes."""
        left_s, run = self.pace.left_s(self.steps), self.checkpoints.folder.parent.name
        words = ", ".join(filter(None, (text, left_text(left_s))))
        begin = f"{run}: epoch {self.progress.epoch + 1} of {self.config.epochs}: "
        say_progress(
            begin + words, event="train", run=run, step=self.progress.step, steps=self.steps, left_s=left_s, **fields
        )
        self.pace.said()

    def _shown(self, loader: DataLoader[Batch]) -> Iterable[Batch]:
        """The loader, with a bar on a terminal."""
        off = not (sys.stderr.isatty() and self.fabric.is_global_zero)
        left = len(self.batches) - self.progress.batch
        text = f"epoch {self.progress.epoch + 1} of {self.config.epochs}"
        return track(loader, text, left, console=Console(stderr=True), transient=True, disable=off)


class _Logits(nn.Module):
    """What is trained, as one call: pixels, or bags, -> logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.logits(pixels)


def class_weights_of(train: Split, config: AnyConfig) -> tuple[float, ...] | None:
    """A weight for each class, as `config.class_weights` says; None: all weigh 1."""
    if config.class_weights == "none":
        return None
    return balanced_weights(np.bincount(train.label, minlength=len(train.classes)).tolist())


def _mixed(seed: int, step: int, part: int) -> int:
    """A seed of its own for each part of each step, so that its draws depend on nothing that came before."""
    return int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> 1)
