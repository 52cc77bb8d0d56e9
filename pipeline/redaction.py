"""Redact what others may read: slides are called by their ids, folders of this machine are left out.

A file, or its folder, may be named after a patient.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tiling.manifest import ManifestRow


def files_of(row: ManifestRow) -> dict[Path, str]:
    """The names, for readers, of a manifest's files of one slide."""
    named = {row.slide_path: row.slide_id}
    return named if row.annotation is None else named | {row.annotation: f"annotation of {row.slide_id}"}


def redact(reason: str, *known: Path, names: Mapping[Path, str] = MappingProxyType({})) -> str:
    """A reason without folders of this machine, `known` ones and others; files in `names` are called by those names.

    Other files keep their names.
    """
    reason = redact_names(reason, names)
    for path in (*known, *(file.parent for file in names)):
        for folder in (path.resolve(), path.absolute(), path):
            if folder.name:
                reason = re.sub(rf"(?<![\w.-]){re.escape(str(folder))}{os.sep}", "", reason)
    return re.sub(r"(?<![\w.])/(?:[^/\s;,]+/)+", "", reason)


def redact_names(reason: str, names: Mapping[Path, str]) -> str:
    """A reason with the files of slides replaced by the names given."""
    for file, name in names.items():
        for spelt in (str(file.absolute()), str(file), file.name):
            whole = rf"(?<![\w.-]){re.escape(spelt)}(?![\w-])"  # a file `1` is no part of a number
            reason = name.join(re.split(whole, reason))
    return reason


@contextmanager
def redacted_log(file: Path, slide_id: str) -> Iterator[None]:
    """While it lasts, what this process logs calls the slide by its id, in any thread."""
    before = logging.getLogRecordFactory()

    def redacted(*args: Any, **options: Any) -> logging.LogRecord:
        record = before(*args, **options)
        with suppress(TypeError, ValueError):  # of a message that cannot be formatted, which logging tells by itself
            record.msg, record.args = redact_names(record.getMessage(), {file: slide_id}), None
        return record

    logging.setLogRecordFactory(redacted)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
