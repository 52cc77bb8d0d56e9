"""In processes of their own: what is imported cannot be imported anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]


def run_python(code: str, *, first_on_path: Path | None = None) -> str:
    paths = [str(p) for p in (first_on_path, REPO) if p]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fake_torchvision(folder: Path, *, library: bytes | None) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    if library is not None:
        (package / "_C.so").write_bytes(library)
    return folder


# `import training` would mend at once, so the module is loaded by itself.
LOAD = f"""
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("mend", {str(REPO / "training" / "models" / "torchvision_shim.py")!r})
mend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mend)
"""
DECLARED = "hasattr(torch.ops.torchvision, 'nms'), hasattr(torch.ops.torchvision, 'qnms')"


def test_all_that_needs_torchvision_can_be_imported() -> None:
    assert run_python("import training, torchvision, timm, lightning, torchmetrics; print('whole')") == "whole"


def test_schemas_are_declared_where_the_library_does_not_load(tmp_path: Path) -> None:
    broken = fake_torchvision(tmp_path, library=b"this is no library")
    code = LOAD + f"print(mend.mend_torchvision() is not None, {DECLARED}, 'torchvision' in sys.modules)"
    assert run_python(code, first_on_path=broken) == "True True True False"


def test_schemas_are_declared_where_there_is_no_library(tmp_path: Path) -> None:
    bare = fake_torchvision(tmp_path, library=None)
    assert run_python(LOAD + f"mend.mend_torchvision(); print({DECLARED})", first_on_path=bare) == "True True"


def test_nothing_is_done_where_the_library_loads(tmp_path: Path) -> None:
    whole = fake_torchvision(tmp_path, library=b"stands for one that loads")
    code = (
        LOAD
        + f"""
loaded = []
torch.ops.load_library = loaded.append
print(mend.mend_torchvision(), {DECLARED}, [path.name for path in loaded])"""
    )
    assert run_python(code, first_on_path=whole) == "None False False ['_C.so']"


def test_nothing_is_done_where_torchvision_is_imported_or_absent() -> None:
    imported = LOAD + f"sys.modules['torchvision'] = sys; print(mend.mend_torchvision(), {DECLARED})"
    assert run_python(imported) == "None False False"
    absent = LOAD + f"mend.find_spec = lambda name: None; print(mend.mend_torchvision(), {DECLARED})"
    assert run_python(absent) == "None False False"


def test_a_mend_that_came_first_is_borne(tmp_path: Path) -> None:
    broken = fake_torchvision(tmp_path, library=b"this is no library")
    code = (
        LOAD
        + f"""
other = torch.library.Library("torchvision", "DEF")
other.define(mend.SCHEMAS["nms"])
mend.mend_torchvision()
mend.mend_torchvision()
print({DECLARED})"""
    )
    assert run_python(code, first_on_path=broken) == "True True"
