"""The model card: what a person should know before using a model, as Markdown. Pure."""

from __future__ import annotations

from training.model import MetricSummary, ModelInfo

METRIC_NAMES = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss (nats)", "ece": "ECE"}


def model_card(info: ModelInfo) -> str:
    """The card of a model, Markdown."""
    scale = "at an unknown scale" if info.mpp is None else f"at {info.mpp:.4g} µm/px"
    settings = "\n".join(f"- {name}: {value}" for name, value in info.training.items())
    software = ", ".join(f"{name} {version}" for name, version in info.software.items())
    return f"""# Tile classifier: {", ".join(info.classes)}

**For research use only. Not for diagnostic use.**

A {info.backbone} that gives each tile of {info.tile_px} x {info.tile_px} px {scale} a probability for each of
{len(info.classes)} classes. Trained with cross-entropy and spectral decoupling (lambda {info.training["sd_lambda"]:g},
reduction "{info.training["sd_reduction"]}"; Pohjonen et al., iScience 2022).

## Data

{_data_table(info)}

Splits are made of whole cases: no case is in two of them.

## Performance

{_metric_table(info)}

In brackets the 95% bootstrap interval over cases; that of ECE lies high, since noise only adds to it.
Probabilities are calibrated: logits are divided by the temperature {info.temperature:.4g}.
Balanced accuracy {_decision(info)}.
Epoch, temperature and threshold were chosen on the validation split, so its figures are optimistic; the test split was
used for nothing but these figures.

## How it was trained

Weights of epoch {info.best_epoch}, the best on validation by log loss at that epoch's own best temperature.

{settings}

Software: {software}.

## Limits

- It knows the classes above and nothing else: on other organs, stains, species or artefacts its output means nothing.
- It was tested on cases from where the training cases came from. Other scanners, laboratories and hospitals can lower
  its performance without any sign of it in the probabilities; test it on cases of your own first.
- It judges single tiles. A slide's or a patient's diagnosis does not follow from them.
"""


def _decision(info: ModelInfo) -> str:
    if len(info.classes) > 2:
        return "calls the likeliest class"
    return f"calls {info.positive_class} from a probability of {info.threshold:.4g} on"


def _data_table(info: ModelInfo) -> str:
    rows = [
        [split, str(s.cases), str(s.slides), str(s.tiles), *(str(s.tiles_per_class[name]) for name in info.classes)]
        for split, s in info.data.items()
    ]
    return _table(["split", "cases", "slides", "tiles", *info.classes], rows)


def _metric_table(info: ModelInfo) -> str:
    rows = [
        [split, *(_cell(metrics[name]) if name in metrics else "" for name in METRIC_NAMES)]
        for split, metrics in info.metrics.items()
    ]
    return _table(["split", *METRIC_NAMES.values()], rows)


def _cell(metric: MetricSummary) -> str:
    if metric.value is None:
        return "undefined (a class is missing)"
    span = "no interval" if metric.low is None or metric.high is None else f"{metric.low:.3f}-{metric.high:.3f}"
    return f"{metric.value:.3f} ({span})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
