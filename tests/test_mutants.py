"""Nightly: thousands of damaged and forged files of each kind; see tests.mutants."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import KINDS, tally

COUNT = 3000
NEVER_REFUSED = {"ledger.jsonl"}
"""Lines of a ledger that cannot be read are passed over."""


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    found = tally(kind, tmp_path, range(COUNT))
    assert found.faults == {}
    assert found.read > COUNT // 100
    assert found.refused > COUNT // 100 or kind in NEVER_REFUSED
