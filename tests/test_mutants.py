"""Nightly: thousands of damaged and forged files of each kind; see tests.mutants."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import KINDS, tally

COUNTS = {"heatmap": 1000, "model": 2000}
"""Of others 3,000."""
NEVER_REFUSED = {"ledger.jsonl"}
"""Lines of a ledger that cannot be read are passed over."""


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    count = COUNTS.get(kind, 3000)
    found = tally(kind, tmp_path, range(count))
    assert found.faults == {}
    assert found.read > count // 100
    assert found.refused > count // 100 or kind in NEVER_REFUSED
