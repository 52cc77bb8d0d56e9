"""The index of a folder of heatmaps: `index.html` beside the results, opening without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from inference.exports import OVERLAY
from tiling.core.errors import InputError
from tiling.core.files import canonical_json, locked, output_error, read_json, write_changed
from tiling.core.pages import Link, Picture, Section, write_page
from tiling.core.text import threshold_text

if TYPE_CHECKING:
    from inference.summary import HeatmapSummary

INDEX = "index.html"
NOT_ANALYSED = "not_analysed.json"
"""Beside the index: the reasons by slide, which several calls gather."""
_REPORT = "report.html"


def write_cohort_index(folder: Path, failed: Mapping[str, str]) -> None:
    """Write `index.html` of a folder of heatmaps.

    It shows every result in it, whenever and by whichever job it was made, and what failed now, or failed before and
    has no result yet.

    The most suspicious slide comes first, those without tiles last. `failed` are reasons by slide. Jobs that share the
    folder take turns. Nothing is written where there is no result. Raises OutputError.
    """
    with locked(folder / INDEX, wait=True):
        found = _results(folder)
        made = {result.name for result, _ in found}
        failed = {name: why for name, why in failed_before(folder).items() if name not in made} | dict(failed)
        if failed:
            write_changed(folder / NOT_ANALYSED, canonical_json(failed))
        else:
            _forget_failures(folder)
        if found:
            _write_index(folder, found, failed)


def failed_before(folder: Path) -> dict[str, str]:
    """Reasons of earlier failures, by slide; {} where that cannot be read."""
    try:
        noted = read_json(folder / NOT_ANALYSED)
    except (OSError, ValueError):
        return {}
    return {str(name): str(why) for name, why in noted.items()} if isinstance(noted, dict) else {}


def _forget_failures(folder: Path) -> None:
    """Leave no empty list of failures behind, so that a folder does not tell how often it was worked on."""
    try:
        (folder / NOT_ANALYSED).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(folder / NOT_ANALYSED, error) from error


def _write_index(folder: Path, found: Sequence[tuple[Path, HeatmapSummary]], failed: Mapping[str, str]) -> None:
    pictures = tuple(
        Picture(result / OVERLAY, f"{result.name}: heatmap of {summary.positive_class}", _report_of(result))
        for result, summary in found
    )
    text = (
        f"{len(found):,} slides, the most suspicious first. Each opens its report. A score is the model's and no "
        "diagnosis: top 5% is the mean probability of the most suspicious 5% of the tiles. Unlike is the share of "
        "tiles that lie outside what the model has seen."
    )
    columns: tuple[str, ...] = (
        "slide",
        "class",
        "tiles",
        "top 5%",
        "mean",
        "share called",
        "unlike",
        "threshold",
        "model",
    )
    rows = tuple(_row(*result) for result in found)
    if any(summary.bag for _, summary in found):
        text += " Slide is the probability that a model of bags gives the slide as a whole; its map shows attention."
        columns = (*columns[:3], "slide", *columns[3:])
        rows = tuple((*row[:3], _of_bag(summary), *row[3:]) for row, (_, summary) in zip(rows, found, strict=True))
    sections = [Section("Slides", text, columns, rows)]
    if limits := tuple(dict.fromkeys((limit,) for _, summary in found for limit in summary.limits)):
        sections.append(Section("Limits of the model", columns=("what its maker says",), rows=limits))
    if unlike := tuple((result.name, summary.warning) for result, summary in found if summary.warning):
        sections.append(Section("Unlike what the model has seen", columns=("slide", "warning"), rows=unlike))
    if failed:
        sections.append(Section("Not analysed", columns=("slide", "reason"), rows=tuple(failed.items())))
    write_page(folder / INDEX, "specslide: heatmaps", [*sections, Section("Pictures", pictures=pictures)])


def _results(folder: Path) -> list[tuple[Path, HeatmapSummary]]:
    """The heatmaps in a folder, the most suspicious first, those without tiles last; what is no heatmap, is under way,
    or cannot be read, is passed over.
    """
    from inference.summary import SUMMARY, read_summary  # whoever asks what failed need not wait for it

    found = []
    for path in folder.glob(f"[!.]*/{SUMMARY}"):
        with suppress(InputError):
            found.append((path.parent, read_summary(path.parent)))
    return sorted(found, key=lambda r: (r[1].suspicion is None, -(r[1].suspicion or 0), r[0].name))


def _row(folder: Path, summary: HeatmapSummary) -> tuple[object, ...]:
    scores, known = summary.scores, summary.out_of_distribution
    shown = (scores.top5_mean, scores.mean, scores.fraction_above_threshold)
    return (
        Link(_report_of(folder) or folder / OVERLAY, folder.name),
        summary.positive_class,
        f"{summary.tiles:,}",
        *("none" if value is None else f"{value:.3f}" for value in shown),
        "" if known is None or known.share is None else f"{known.share:.0%}",
        threshold_text(summary.threshold),
        summary.made_from["model_sha256"][:12],
    )


def _of_bag(summary: HeatmapSummary) -> str:
    whole = None if summary.bag is None else summary.bag.probability
    return "none" if whole is None else f"{whole:.3f}"


def _report_of(folder: Path) -> Path | None:
    return folder / _REPORT if (folder / _REPORT).exists() else None  # earlier versions wrote none
