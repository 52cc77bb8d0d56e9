"""Imports run one way, and the command line does not wait for torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.execution.devices import has_gpu_driver
from pipeline.study.run import StudyReport

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("tiling", "training", "inference", "pipeline")  # each may import those before it


def imported(module: Path) -> set[str]:
    """The top-level packages that a module imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    later = set(ORDER[ORDER.index(package) + 1 :]) | {"tests"}
    assert {module.name: found for module in modules if (found := imported(module) & later)} == {}


WINGS: dict[str, tuple[str, ...]] = {  # what the modules of a wing may import of their own package, beside the wing
    "tiling/core": (),
    "tiling/slides": ("core", "grid"),
    "tiling/annotations": ("core", "grid"),
    # Annotations and metrics are columns of a store; importing HistoPrep's folders is a verb beside tiling.tile.
    "tiling/stores": ("core", "grid", "annotations", "manifest", "quality", "reports", "tile"),
    "training/data": ("config", "models"),  # of models, how large a picture a backbone sees
    "training/models": ("evaluation",),  # of which those below
    "training/evaluation": ("config", "data", "devices", "models", "recipes"),
    "training/selection": ("augmentations", "config", "data", "evaluation", "models", "recipes"),
    "training/mil": ("models",),
    "training/trials": (
        "augmentations",
        "config",
        "data",
        "evaluation",
        "losses",
        "mil",
        "models",
        "optim",
        "selection",
    ),
    "training/external": ("data", "evaluation", "selection", "trials"),
    "training/shortcut": ("data", "evaluation", "selection", "trials"),
    "inference/maps": ("prediction", "text", "colours"),
    "inference/exports": ("maps", "prediction", "text", "colours", "config"),
    "inference/report": (  # neither models nor backends
        "maps",
        "exports",
        "prediction",
        "text",
        "colours",
        "occlusion",
        "ood",
        "recipes",
        "store_pixels",
        "summary",
    ),
    "inference/viewer": (
        "maps",
        "exports",
        "report",
        "colours",
        "occlusion",
        "prediction",
        "store_pixels",
        "summary",
        "text",
    ),  # neither models nor backends
    "inference/evaluation": ("maps", "exports", "config", "recipes", "summary"),  # neither models nor backends
    "pipeline/execution": ("console", "meter", "redaction", "study"),  # of which the ledger alone
    "pipeline/study": ("console", "meter", "execution", "redaction"),
    "pipeline/demo": ("execution", "study"),
    "pipeline/commands": ("console", "meter", "demo", "doctor", "execution", "provenance", "redaction", "study"),
}


@pytest.mark.parametrize("wing", WINGS)
def test_wings_import_only_what_they_are_built_on(wing: str) -> None:
    package, name = wing.split("/")
    allowed, modules = {name, *WINGS[wing]}, sorted((ROOT / wing).rglob("*.py"))
    assert modules
    assert {m.name: found for m in modules if (found := rooms_imported(m, package) - allowed)} == {}


def test_models_know_of_evaluation_nothing_but_figures_and_tables() -> None:
    """A model records intervals and its card tables of metrics; what predicts or draws is not its business."""
    modules = sorted((ROOT / "training" / "models").rglob("*.py"))
    used = set[str]().union(*(rooms_imported(module, "training", "evaluation") for module in modules))
    assert used == {"bootstrap", "metrics", "tables"}


def test_execution_knows_of_a_study_nothing_but_its_ledger() -> None:
    """A job says in it when it begins and ends; stages and settings are not its business."""
    modules = sorted((ROOT / "pipeline" / "execution").rglob("*.py"))
    assert set[str]().union(*(rooms_imported(module, "pipeline", "study") for module in modules)) == {"ledger"}


def rooms_imported(module: Path, package: str, wing: str = "") -> set[str]:
    """The wings and modules of a package, or of one wing of it, that a module imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    within = f"{package}.{wing}." if wing else f"{package}."
    return {name.removeprefix(within).split(".")[0] for name in names if name.startswith(within)}


@pytest.mark.parametrize(
    ("library", "home"),
    [
        (
            "zarr",
            {
                "tiling/stores/group.py",
                "tiling/stores/store.py",
                "tiling/stores/features.py",
                "tiling/stores/write.py",
                "tiling/stores/codec.py",
                "tiling/slides/ome_zarr_reader.py",
                "inference/exports/ome_zarr.py",
            },
        ),
        ("openslide", {"tiling"}),
        ("urllib", {"pipeline"}),
    ],
)
def test_thin_edges_are_touched_by_one_module(library: str, home: set[str]) -> None:
    modules = [module for package in ORDER for module in (ROOT / package).rglob("*.py")]
    users = {module.relative_to(ROOT) for module in modules if library in imported(module)}
    assert users
    assert all(str(user) in home or user.parts[0] in home for user in users)


def loads(code: str, library: str) -> bool:
    """Whether a fresh Python that runs the code has the library loaded."""
    return said(code, library)[-1] == "True"


def said(code: str, library: str) -> list[str]:
    """What a fresh Python that runs the code prints, and then whether it has the library loaded."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print({library!r} in sys.modules)"],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "module",
    [
        "specslide", "tiling, training, inference, pipeline", "pipeline.cli", "pipeline.execution.jobs",
        "pipeline.execution.pool", "pipeline.study.config", "pipeline.study.template", "training.shortcut.config",
        "training.trials.config", "training.external.config", "inference.viewer.run",
    ],
)  # fmt: skip
def test_torch_is_not_waited_for(module: str) -> None:
    assert not loads(f"import {module}", "torch")


def test_the_probe_sees_what_is_loaded() -> None:
    """Or the test above could not fail."""
    assert loads("import training.losses", "torch")


@pytest.mark.parametrize("library", ["torch", "cv2", "zarr", "lightning"])
@pytest.mark.parametrize("config", ["tiling", "training", "inference", "pipeline.study"])
def test_settings_wait_for_no_large_library(config: str, library: str) -> None:
    assert not loads(f"import {config}.config", library)


def test_tiling_from_the_command_line_never_loads_torch(small_slide: Path, tmp_path: Path) -> None:
    arguments = ["specslide", "tile", str(small_slide), "--out", str(tmp_path / "stores"), "--workers", "1"]
    run = f"import sys; sys.argv = {arguments!r}; import pipeline.cli as c; c.app(standalone_mode=False)"
    assert not loads(run, "torch")
    assert (tmp_path / "stores" / "small.zarr" / "commit.json").exists()


SOON_ANSWERED = [
    "--help", "--version", "init .", "status .", "run absent.yaml", "train --images absent.csv -o x",
    "tune --images absent.csv -o x",
    "heatmap absent.svs --model absent -o x", "evaluate absent --images absent.csv -o x", "info absent.svs",
    "stress absent --stores absent --manifest absent.csv -o x", "study shortcut --images absent.csv -o x",
    "study external --train absent.csv --external absent.csv -o x",
    "study bags --features absent --train absent.csv --external absent.csv -o x",
    "evaluate-slides absent --manifest absent.csv -o x", "export-model absent --to onnx -o x", "tiles absent.zarr",
    "view absent", "view --manifest absent.csv",
    "verify absent", "provenance absent", "tile --patch-size 3", "tile absent.svs -o x", "slurm run absent.yaml",
]  # fmt: skip


def test_what_needs_no_torch_is_answered_without_it(tmp_path: Path) -> None:
    """Torch takes seconds to load: arguments are checked before."""
    code = f"""
import os, sys
from pipeline.cli import main
os.chdir({str(tmp_path)!r})
for words in {SOON_ANSWERED!r}:
    sys.argv = ["specslide", *words.split()]
    try:
        main()
    except SystemExit:
        pass
    assert "torch" not in sys.modules, words"""
    assert not loads(code, "torch")


def test_a_finished_study_is_planned_without_torch(study: StudyReport) -> None:
    """Whether models, their tests and heatmaps are up to date is told by recipes; no model is loaded for it."""
    code = f"""
import sys
sys.argv = ["specslide", "run", {str(study.out.parent / "study.yaml")!r}, "--dry-run"]
from pipeline.cli import main
from pipeline.study.stages import heatmap
heatmap.has_gpu_driver = lambda: False  # where there is a GPU, torch is asked what it computes in
try:
    main()
except SystemExit:
    pass"""
    assert said(code, "torch")[-2:] == ["plan: 16 done", "False"]


def test_where_there_is_no_gpu_driver_torch_finds_no_gpu() -> None:
    assert has_gpu_driver() or not torch.cuda.is_available()
