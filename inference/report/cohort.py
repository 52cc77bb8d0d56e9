"""The index of a folder of heatmaps: `index.html` beside the results, opening without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inference.report.pages import Link, Picture, Section, write_page
from tiling.core.files import canonical_json, locked, write_changed

INDEX = "index.html"
NOT_ANALYSED = "not_analysed.json"
"""Beside the index: the reasons by slide, which several calls gather."""
_SUMMARY, _REPORT, _OVERLAY = "slide.json", "report.html", "overlay.png"
_FORMAT = "specslide-heatmap"


def write_cohort_index(folder: Path, failed: Mapping[str, str]) -> None:
    """Write `index.html` of a folder of heatmaps: every result in it, whenever and by whichever job it was made, and
    what failed now, or failed before and has no result yet.

    The most suspicious slide comes first, those without tiles last. `failed` are reasons by slide. Jobs that share the
    folder take turns. Nothing is written where there is no result. Raises OutputError.
    """
    with locked(folder / INDEX, wait=True):
        found = sorted(_results(folder), key=lambda r: (-_top(r[1]), r[0].name))
        made = {result.name for result, _ in found}
        failed = {name: why for name, why in failed_before(folder).items() if name not in made} | dict(failed)
        if failed or (folder / NOT_ANALYSED).exists():
            write_changed(folder / NOT_ANALYSED, canonical_json(failed))
        if found:
            _write_cohort(folder, found, failed)


def failed_before(folder: Path) -> dict[str, str]:
    """What earlier calls noted, reasons by slide; nothing, where that cannot be read."""
    try:
        noted = json.loads((folder / NOT_ANALYSED).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(why) for name, why in noted.items()} if isinstance(noted, dict) else {}


def _write_cohort(folder: Path, found: Sequence[tuple[Path, dict[str, Any]]], failed: Mapping[str, str]) -> None:
    rows = tuple(_cohort_row(result, summary) for result, summary in found)
    pictures = tuple(
        Picture(result / _OVERLAY, f"{result.name}: heatmap of {summary['positive_class']}", _report_of(result))
        for result, summary in found
    )
    text = (
        f"{len(rows):,} slides, the most suspicious first. Each opens its report. A score is the model's and no "
        "diagnosis: top 5% is the mean probability of the most suspicious 5% of the tiles. Unlike is the share of "
        "tiles that lie outside what the model has seen."
    )
    columns = ("slide", "class", "tiles", "top 5%", "mean", "share called", "unlike", "threshold", "model")
    sections = [Section("Slides", text, columns, rows)]
    if unlike := tuple((result.name, warning) for result, summary in found if (warning := _warning(summary))):
        sections.append(Section("Unlike what the model has seen", columns=("slide", "warning"), rows=unlike))
    if failed:
        sections.append(Section("Not analysed", columns=("slide", "reason"), rows=tuple(failed.items())))
    write_page(folder / INDEX, "specslide: heatmaps", [*sections, Section("Pictures", pictures=pictures)])


def _results(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The results in a folder; what is no heatmap's result, is under way, or cannot be read, is passed over."""
    found = []
    for summary in sorted(folder.glob(f"[!.]*/{_SUMMARY}")):
        try:
            record = json.loads(summary.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("format") == _FORMAT:
            found.append((summary.parent, record))
    return found


def _top(summary: Mapping[str, Any]) -> float:
    value = summary["scores"]["top5_mean"]
    return -1.0 if value is None else float(value)


def _cohort_row(folder: Path, summary: Mapping[str, Any]) -> tuple[object, ...]:
    scores = [summary["scores"][name] for name in ("top5_mean", "mean", "fraction_above_threshold")]
    return (
        Link(_report_of(folder) or folder / _OVERLAY, folder.name),
        summary["positive_class"],
        f"{summary['tiles']:,}",
        *("none" if value is None else f"{value:.3f}" for value in scores),
        "" if (share := _outside(summary).get("share")) is None else f"{share:.0%}",
        f"{summary['threshold']:.3g}",
        summary["made_from"]["model_sha256"][:12],
    )


def _outside(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the result says of tiles out of distribution; nothing, where the model cannot tell."""
    return summary.get("out_of_distribution") or {}


def _warning(summary: Mapping[str, Any]) -> str:
    return _outside(summary).get("warning") or ""


def _report_of(folder: Path) -> Path | None:
    return folder / _REPORT if (folder / _REPORT).exists() else None  # earlier versions wrote none
