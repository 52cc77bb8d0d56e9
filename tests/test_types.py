"""Nightly: the product's types hold on the platforms that no test runs on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("specslide.py", "tiling", "training", "inference", "pipeline")


@pytest.mark.nightly
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_types_hold_elsewhere(platform: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mypy", "--platform", platform, "--cache-dir", str(tmp_path / "cache"), *PRODUCT]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
