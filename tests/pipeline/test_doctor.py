"""What the doctor finds, and that it tells nothing private."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.doctor import examine
from tests.pipeline.conftest import RunCli


def test_a_slides_readers_agree_and_nothing_private_is_told(svs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    private = tmp_path / "Miller 1950-01-01.svs"
    private.symlink_to(svs)
    (tmp_path / "broken.svs").write_bytes(b"Miller")
    done = run_cli("doctor", private, tmp_path / "broken.svs", "--out", tmp_path / "results")
    for word in ("Miller", str(tmp_path), "broken", platform.node(), "/home", "/tmp"):
        assert word not in done.stdout + done.stderr, word
    for word in ("aperio, 2220 x 2967 px", "the same pixels", "slide 2", "SlideError", "all met"):
        assert word in done.stdout
    assert done.returncode == 1, "the second slide"


def test_what_is_wrong_has_an_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=999", "no-such-package", "zarr", 'onnx>=1; extra == "onnx"', 'no-such-package; extra == "none"']
    monkeypatch.setattr(doctor, "requires", lambda name: needs)
    found = {finding.name: finding for finding in examine(tmp_path / "a" / "b")}
    assert "numpy" in found["requirements"].value
    assert "no-such-package missing" in found["requirements"].value
    assert "zarr" not in found["requirements"].value
    assert found["requirements"].advice
    assert found["extras"].value == "onnx"
    assert "MB/s" in found["disk"].value
