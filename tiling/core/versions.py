"""Which software made an artefact: the versions and the code commit written into its provenance."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESEARCH_USE = "For research use only. Not for diagnostic use."


@cache
def software_versions(*distributions: str) -> dict[str, str]:
    """Versions of Python, specslide and the named distributions; those not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in ("specslide", *distributions):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = code_commit()
    return versions | ({"specslide_commit": commit} if commit else {})


@cache
def code_commit() -> str | None:
    """The git commit of a source checkout, with `-dirty` behind it if the code was changed; None if installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout without commits
        return None
    return done.stdout.strip()
