"""specslide evaluate-slides as a user runs it: one run and two refusals."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.provenance import trace
from tests.inference.evaluation.test_evaluate_slides import Cohort
from tests.pipeline.conftest import RunCli


def test_heatmaps_are_tested(run_cli: RunCli, tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    out = tmp_path / "out"
    arguments = ("--manifest", cohort.manifest, "--out", out, "--resamples", 20)
    done = run_cli("evaluate-slides", cohort.results, *arguments, "--sensitivity", 0.9, "--split", "test")
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "slides.json").read_text())
    assert f"{record['froc']['score']['value']:.3f}" in done.stdout
    assert f"{record['scores']['mean']['auroc']['value']:.3f}" in done.stdout
    assert record["at_threshold"]["chosen_for"] == 0.9
    tested = {link.name: (link.kind, link.missing) for link in trace(out / "slides.png", [tmp_path]).made_from}
    of_val = {line[1] for line in cohort.lines if line[4] == "val"}  # the threshold comes from them
    assert tested == dict.fromkeys(of_val | {slide["slide_id"] for slide in record["slides"]}, ("heatmap", ""))

    (cohort.results / "s05" / "slide.json").unlink()
    done = run_cli("evaluate-slides", cohort.results, *arguments)
    assert done.returncode == 1
    assert "slides.csv, slide s05: has no result in" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    done = run_cli("evaluate-slides", cohort.results, "--manifest", tmp_path / "none.csv", "--out", out)
    assert done.returncode == 1
    assert "none.csv: cannot be read" in done.stderr
