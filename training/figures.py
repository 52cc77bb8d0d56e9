"""Pictures of a training run. Knows nothing of models; leaves matplotlib's global state alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE = "#3465a4", "#ce5c00"


def learning_curve(history: Sequence[Mapping[str, float]], best_epoch: int) -> bytes:
    """PNG of a run's history: losses of training and validation to the left, validation AUROC to the right.

    `history` has a record an epoch with "epoch" (from 1), "train_ce", "train_sd", "val_log_loss" and "val_auroc" (NaN
    where undefined); the best epoch is marked.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, ranking = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    for axes, name, label, color, style in (
        (losses, "train_ce", "training cross-entropy", BLUE, "o-"),
        (losses, "train_sd", "training spectral decoupling", BLUE, "o:"),
        (losses, "val_log_loss", "validation log loss, calibrated", ORANGE, "s-"),
        (ranking, "val_auroc", "validation AUROC", ORANGE, "s-"),
    ):
        axes.plot(epochs, [record[name] for record in history], style, color=color, label=label, markersize=4)
    for axes, title in ((losses, "Loss (nats)"), (ranking, "AUROC")):
        axes.axvline(best_epoch, color="0.7", zorder=0, label="best epoch")
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    losses.set_ylim(bottom=0)
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]  # no version: equal runs, equal bytes
    return buffer.getvalue()
