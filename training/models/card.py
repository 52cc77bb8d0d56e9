"""The model card: what a person should know before using a model, as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tiling.core.text import threshold_text
from tiling.core.versions import RESEARCH_USE
from training.evaluation.bootstrap import FEW_CASES, Interval
from training.evaluation.metrics import METRIC_NAMES
from training.evaluation.tables import markdown_table
from training.models.info import BagInfo, ModelInfo, ModelRecord


def model_card(info: ModelInfo | BagInfo) -> str:
    """The card of a model, Markdown."""
    scale = "at an unknown scale" if info.mpp is None else f"at {info.mpp:.4g} µm/px"
    scale += ", in sRGB by the slides' ICC profiles" if info.icc == "srgb" else ""
    settings = "\n".join(f"- {name}: {value}" for name, value in info.training.items() if name not in _SAID)
    by_site, two = info.training.get("group") == "site", len(info.classes) == 2
    decision = f"{info.positive_class} from a probability of {threshold_text(info.threshold)} on"
    decision += "" if two else ", and else the likeliest other class"
    averages = f"those of {info.positive_class}" if two else "the mean over the classes of one against the rest"
    tested = "cases from where the training cases came from"
    if by_site:
        tested = "sites it was not trained on, which are few"
    software = ", ".join(f"{name} {version}" for name, version in info.software.items())
    return f"""# {info.noun.capitalize()} classifier: {", ".join(info.classes)}

**{RESEARCH_USE}**
{_said(info)}
{_what(info, scale)} a probability for each of
{len(info.classes)} classes. Trained with cross-entropy{_penalties(info)}.

## Data

{_data_table(info)}

Splits are made of whole cases: no case is in two of them.{" Nor is any site." if by_site else ""}

## Performance

{_metric_table(info)}

In brackets the 95% bootstrap interval over cases; that of ECE lies high, since noise only adds to it. There is
{FEW_CASES}.
AUROC and average precision are {averages}.
Balanced accuracy calls {decision}.
Epoch, temperature and threshold were chosen on the validation split, so its figures are optimistic; the test split was
used for nothing but these figures.

### By site and scanner

{_group_tables(info)}

### Calibration

Logits are divided by the temperature {info.temperature:.4g} before the softmax.{_ece_table(info)}

## How it was trained

Weights of epoch {info.best_epoch}, {_best_by(info)}.{_selection(info)}

{settings}

Software: {software}.

## Limits

- It knows the classes above and nothing else: on other organs, stains, species or artefacts its output means nothing.
{_limits(info)}{_own_limits(info)}
- It was tested on {tested}. Other scanners, laboratories and hospitals can lower
  its performance without any sign of it in the probabilities; test it on cases of your own first, with
  `specslide evaluate`.
"""


_SAID = {"tissue": "For", "licence": "Licence", "limits": "Limits"}
"""What its maker said of a model in words, which is no setting of how it learned."""


def _said(info: ModelRecord) -> str:
    """What its maker said it is for and under which licence; a blank line, if nothing."""
    lines = [f"{_SAID[name]}: {info.said(name)}  \n" for name in ("tissue", "licence") if info.said(name)]
    return "\n" + "".join(lines) if lines else ""


def _own_limits(info: ModelRecord) -> str:
    """What its maker said of its limits, as a point of a list."""
    return f"\n- {info.limits}" if info.limits else ""


def _penalties(info: ModelRecord) -> str:
    """The penalties that were added to the cross-entropy."""
    known, parts = info.training, []
    if known["sd_lambda"] > 0:
        reduction = f'reduction "{known["sd_reduction"]}"; Pohjonen et al., iScience 2022'
        parts.append(f"spectral decoupling (lambda {known['sd_lambda']:g},\n{reduction})")
    if known.get("l2", 0) > 0:
        parts.append(f"L2 regularisation in the loss ({known['l2']:g})")
    if known.get("consistency", 0) > 0:
        parts.append(f"consistency regularisation under shifts ({known['consistency']:g})")
    if known.get("weight_decay", 0) > 0:
        parts.append(f"AdamW's weight decay ({known['weight_decay']:g})")
    return "".join(f", {part}" for part in parts[:-1]) + "".join(f" and {part}" for part in parts[-1:])


def _selection(info: ModelRecord) -> str:
    """How it was chosen among candidates."""
    known = info.selection
    if known is None:
        return ""
    others = "; ".join(f"{rule}: {name}" for rule, name in known.others.items() if rule != known.rule)
    return (
        f"\n\nChosen as {known.chosen}, one of {known.candidates:,} candidates, each trained under {known.seeds:,} "
        f"seed{'s' * (known.seeds > 1)},\nby the rule `{known.rule}`: {known.text}; shifts: {', '.join(known.shifts)}. "
        f"Neither the test split\nnor any other data took part. Other rules take {others}."
    )


def _best_by(info: ModelRecord) -> str:
    """What the epoch was chosen by."""
    if info.training.get("select") != "stress":
        return "the best on validation by log loss at that epoch's own best temperature"
    shifts = ", ".join(info.training["select_shifts"])
    return f"the best by mean balanced accuracy over validation and copies of it, shifted in {shifts}"


def _what(info: ModelInfo | BagInfo, scale: str) -> str:
    """The beginning of the sentence that says what the model is."""
    tiles = f"of {info.tile_px} x {info.tile_px} px {scale}"
    if isinstance(info, ModelInfo):
        return f"A {info.backbone} that gives each tile {tiles}"
    made = {"slide": "a slide", "case": "a case", "case-mean": "a case, as the mean over its slides,"}[info.bag]
    licence = f", under {info.encoder.licence}" if info.encoder.licence else ""
    return (
        f"Multiple-instance learning ({info.head}; see training.mil.heads) that gives {made} by the features of its "
        f"tiles\n{tiles} (encoder {info.encoder.name}, {info.encoder.dim} numbers a tile{licence})"
    )


def _limits(info: ModelInfo | BagInfo) -> str:
    """What holds for one kind of model, as points of a list."""
    if isinstance(info, ModelInfo):
        last = "It classifies single tiles. A slide's or a patient's diagnosis does not follow from them."
        return f"- {_novelty(info)}\n- {last}"
    return (
        "- It cannot tell slides that are unlike those it was trained on.\n"
        "- It learned from labels of whole slides. Its attention says what it weighed, which is no probability and no\n"
        "  outline of a lesion; what it weighed can be a trait of the laboratory."
    )


def _novelty(info: ModelInfo) -> str:
    known = info.novelty
    if known is None:
        return "It cannot tell tiles that are unlike those it was trained on."
    return (
        f"Tiles unlike those it was trained on are flagged, as far as its features and nine plain statistics of their\n"
        f"  pixels show them: those farther from the nearest class' mean than {known.quantile:.0%} of the validation "
        f"tiles\n  (Mahalanobis distances {known.features_threshold:.4g} and {known.appearance_threshold:.4g}; Lee et "
        f"al., NeurIPS 2018;\n  {known.train_tiles:,} training and {known.val_tiles:,} validation tiles). A flag says "
        "that the model has seen nothing like it,\n  not that it is wrong; no flag does not say that it is right."
    )


def _data_table(info: ModelRecord) -> str:
    rows = [
        [split, str(s.cases), str(s.slides), str(s.tiles), *(str(s.tiles_per_class[name]) for name in info.classes)]
        for split, s in info.data.items()
    ]
    return markdown_table(["split", "cases", "slides", f"{info.noun}s", *info.classes], rows)


def _metric_table(info: ModelRecord) -> str:
    return markdown_table(
        ["split", *METRIC_NAMES.values()], [[split, *_cells(metrics)] for split, metrics in info.metrics.items()]
    )


def _group_tables(info: ModelRecord) -> str:
    """A table for each split and column that is known, or the sentence that none is."""
    parts = []
    for split in info.data:
        for column in ("site", "scanner"):
            groups = [group for group in info.groups if (group.split, group.column) == (split, column)]
            if groups:
                rows = [[g.name, str(g.cases), str(g.tiles), *_cells(g.metrics)] for g in groups]
                parts.append(
                    markdown_table([f"{split}, {column}", "cases", f"{info.noun}s", *METRIC_NAMES.values()], rows)
                )
    if not parts:
        return "Neither sites nor scanners of the cases are known, so nothing can be said of how they differ."
    return "\n\n".join(parts)


def _ece_table(info: ModelRecord) -> str:
    if not info.ece_before:
        return ""
    rows = [
        [split, _cell(before), _cell(info.metrics[split]["ece"]) if "ece" in info.metrics.get(split, {}) else ""]
        for split, before in info.ece_before.items()
    ]
    return "\n\n" + markdown_table(["split", "ECE before", "ECE after"], rows)


def _cells(metrics: Mapping[str, Interval]) -> list[str]:
    return [_cell(metrics[name]) if name in metrics else "" for name in METRIC_NAMES]


def _cell(metric: Interval) -> str:
    if metric.value is None:
        return "undefined (a class is missing)"
    span = "no interval" if metric.low is None or metric.high is None else f"{metric.low:.3f}-{metric.high:.3f}"
    return f"{metric.value:.3f} ({span})"
