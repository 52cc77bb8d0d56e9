"""What commands print of what they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline import console
from pipeline.execution.partition import Part
from pipeline.redaction import files_of, redact_names
from pipeline.study.ledger import Step
from tiling.core.text import counted
from tiling.manifest import ManifestRow

if TYPE_CHECKING:  # commands that need no torch must not wait for it
    from inference import HeatmapReport
    from inference.maps.scores import SlideScores
    from pipeline.study.run import StudyReport


def show_outcomes(title: str, rows: Sequence[tuple[str, str, str]], *, of: str = "slides") -> None:
    """Print the summary table of (name, result, note); exit with code 1 if any has no result, that is, failed."""
    shown = [(name, what or "FAILED", note) for name, what, note in rows]
    console.show_table(title, ("slide", "result", "note"), shown)
    if failed := sum(not what for _, what, _ in rows):
        console.show_error(f"{failed} of {len(rows)} {of} failed; the reasons are in the table")
        raise typer.Exit(1)


def refused_outcomes(refused: Mapping[str, str], part: Part) -> list[tuple[str, str, str]]:
    """The rows of the summary table for slides without a usable id, this job's share of them."""
    return [(name, "", reason) for name, reason in part.of(list(refused.items()))]


def failed_outcomes(
    failed: Mapping[str, str], rows: Sequence[ManifestRow], manifest: Path | None
) -> list[tuple[str, str, str]]:
    """The rows of the summary table for slides that failed, whose reasons are given by their ids."""
    row_of = {row.slide_id: row for row in rows}
    return [(name, "", reason_for_user(reason, row_of[name], manifest)) for name, reason in failed.items()]


def reason_for_user(reason: str, row: ManifestRow, manifest: Path | None) -> str:
    """Why a slide failed: with its file, which the user passed, or of a manifest by the slide's id alone."""
    return reason if manifest is None else redact_names(reason, files_of(row))


def heatmap_outcome(report: HeatmapReport) -> tuple[str, str, str]:
    """The row of a heatmap in the summary table."""
    done = "kept" if report.reused else "made"
    note = f"{done}. {report.warning}" if report.warning else done
    whole = "" if report.bag is None else f"slide {report.bag:.3f}; each tile alone: "
    return report.slide_id, f"{counted(report.tiles, 'tile')}, {whole}{_scores_text(report.scores)}", note


def show_plan(out: Path, steps: Sequence[Step], *, whole: bool = False) -> None:
    """Print the state of a study's artefacts: all of them, or those that are changed or failed."""
    shown = [step for step in steps if whole or step.state in ("changed", "failed")]
    counts = Counter(step.state for step in steps)
    text = ", ".join(f"{counts[state]} {state}" for state in ("done", "to do", "changed", "failed") if counts[state])
    if shown:
        console.show_table(f"plan of {out}", ("artefact", "state", "why"), [step[1:] for step in shown])
    console.say(f"plan: {text}")


def show_study(report: StudyReport) -> None:
    """Print what a study made; exit with code 1 if any slide failed."""
    rows = [heatmap_outcome(heatmap) for heatmap in report.heatmaps]
    if report.test_auroc is not None:
        console.say(f"tile AUROC on the heatmaps' annotated slides: {report.test_auroc:.4f}")
    for model, trained in zip(report.models, report.trained, strict=True):
        console.say(f"model ({'trained' if trained else 'kept'}): {model}")
    for name, reason in report.skipped.items():
        console.say(f"left out: {name}, {reason}")
    console.say(f"page: {report.out / 'index.html'}")
    if report.bag_heatmaps:
        rows_of_bags = [heatmap_outcome(heatmap) for heatmap in report.bag_heatmaps]
        show_outcomes(f"heatmaps of attention in {report.out / 'bag-heatmaps'}", rows_of_bags)
    everything = [*rows, *((name, "", reason) for name, reason in report.failed.items())]
    show_outcomes(f"heatmaps in {report.out / 'heatmaps'}", everything, of="artefacts")


def _scores_text(scores: SlideScores) -> str:
    """A slide's scores in a few words."""
    if scores.mean is None:
        return "nothing analysed"
    return (
        f"mean {scores.mean:.3f}, top 5% {scores.top5_mean:.3f}, above threshold {scores.fraction_above_threshold:.3f}"
    )
