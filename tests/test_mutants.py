"""Nightly: thousands of damaged and forged files of each kind; see tests.mutants."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import KINDS, tally

COUNTS = {"heatmap": 1000, "model": 2000}
"""Of others 3,000."""


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    count = COUNTS.get(kind, 3000)
    found = tally(kind, tmp_path, range(count))
    assert found.faults == {}
    assert min(found.read, found.refused) > count // 100
