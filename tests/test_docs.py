"""The site of docs/: its notebook is followed, here without and nightly with Jupyter, and it is built whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from pipeline.demo.real_slide import NAME

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs/notebook-tour.ipynb"


def cells(notebook: dict[str, Any], kind: str = "code") -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_runs(svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells one after the other, where the slide lies; what they show is what is saved in it."""
    mpl.use("agg")
    (tmp_path / NAME).symlink_to(svs)
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    with plt.rc_context():
        for cell in cells(json.loads(NOTEBOOK.read_text(encoding="utf-8"))):
            drawn = sum("image/png" in output.get("data", {}) for output in cell["outputs"])
            exec("".join(cell["source"]), variables)
            assert len(plt.get_fignums()) == drawn
            plt.close("all")
    saved = NOTEBOOK.read_text(encoding="utf-8")
    share = f"{(variables['predicted'].ood_ratio > 1).mean():.0%} of the tiles"
    assert share in saved
    assert f"{len(variables['store'])} tiles of 50 px" in saved


def test_what_is_saved_in_the_notebook_is_small_and_names_no_place() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    for cell in cells(json.loads(text)):
        assert cell["execution_count"] is None
        assert not cell["metadata"]
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result")
            assert len(json.dumps(output)) < 130_000  # 100 kB of picture
    assert not re.search(r"/(home|root|tmp|work|Users)\b", text)


@pytest.mark.nightly
def test_jupyter_runs_the_notebook(svs: Path, tmp_path: Path) -> None:
    """In an environment of its own, beside specslide's."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", tmp_path / "own", "nbclient", "ipykernel"],
        check=True, timeout=600,
    )  # fmt: skip
    (tmp_path / NAME).symlink_to(svs)
    code = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(notebook, timeout=300).execute()\n"
        "outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]\n"
        "print(sum(output.get('name') != 'stderr' for output in outputs))"  # libraries may warn of their place
    )
    path = f"{ROOT}:{tmp_path / 'own'}"
    done = subprocess.run(
        [sys.executable, "-c", code, NOTEBOOK], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path, "JUPYTER_PATH": str(tmp_path / "own/share/jupyter")},
    )  # fmt: skip
    saved = cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert int(done.stdout) == sum(len(cell["outputs"]) for cell in saved)


@pytest.mark.nightly
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    tour = (tmp_path / "site/notebook-tour/index.html").read_text(encoding="utf-8")
    assert tour.count("data:image/png;base64,") >= 5
    assert "to_spatialdata" in (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "site").rglob("*.py"))
