"""Command line, configuration and cohort runs. Nobody imports it; it imports all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.study.config import StudyConfig
    from pipeline.study.run import StudyReport


def run(study: StudyConfig | Path | str) -> StudyReport:
    """Run a study; see `pipeline.study.run.run`. Imported when called: the command line must not wait for torch."""
    from pipeline.study import run as verb

    return verb.run(study)


__all__ = ["run"]
