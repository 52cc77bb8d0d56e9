"""What somebody else hands over: published folders whose files were changed and listed anew, so that all hashes fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiling.core.artefact import COMMIT
from tiling.core.files import sha256_file, sha256_json


def write_commit(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a commit.json that says this, with the hash that makes it valid."""
    body = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(body | {"sha256": sha256_json(body)}, sort_keys=True, ensure_ascii=False, indent=1) + "\n"
    (folder / COMMIT).write_text(text, encoding="utf-8")


def sign(folder: Path) -> None:
    """List a published folder's files as they are now."""
    record = json.loads((folder / COMMIT).read_bytes())
    files = {name: folder / name for name in record["files"] if (folder / name).exists()}
    files |= {path.name: path for path in folder.iterdir() if path.is_file() and path.name != COMMIT}
    listed = {name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in files.items()}
    write_commit(folder, record | {"files": listed})


def change_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Set these keys of a JSON file, and sign the folder it lies in; infinity and NaN are written as Python does."""
    record = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(record), encoding="utf-8")
    sign(path.parent)
