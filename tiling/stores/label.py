"""Labels on a finished store: annotation columns come and go, pixels stay the same bytes on the disk."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tiling.annotations.classes import ClassRules
from tiling.annotations.rasterize import annotation_fractions, annotation_hash
from tiling.core.artefact import COMMIT, atomic_folder, locked_folder, read_commit
from tiling.core.errors import StoreError
from tiling.core.files import sha256_json
from tiling.stores.group import ANNOTATION, ROOT
from tiling.stores.store import TileStore, annotated_inputs, store_recipe, verify_store
from tiling.stores.write import write_annotations

_WITHOUT_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)


@dataclass(frozen=True)
class LabelReport:
    """The result of labelling one store."""

    slide_id: str
    store: Path
    classes: tuple[str, ...]
    """The annotation columns that it has now."""
    reused: bool
    """Whether it had them already."""


def label_store(path: Path | str, annotation: Path, rules: ClassRules = ClassRules()) -> LabelReport:  # noqa: B008 - frozen
    """Replace the annotation columns of a finished store by those of a file; classes that overlap follow `rules`.

    The store is then the one that `tile_slide` makes with this annotation. It is replaced as a whole: its other files
    are linked into the new one, so no pixel is written; killed at any time, the old or the new one is there or comes
    back with the next job. A damaged store is refused. Raises StoreError, InputError, OutputError.
    """
    path = Path(path)
    with locked_folder(path):
        store = TileStore(path)
        slide, before = store.slide, store.attributes
        frame = slide.frame()
        inputs = annotated_inputs(before.config, annotation_hash(annotation), rules)
        if before.config_sha256 == sha256_json(inputs):
            return LabelReport(slide.slide_id, path, before.annotation, reused=True)
        if faults := verify_store(path):  # or the new hashes would make the damage the truth
            raise StoreError(path, f"is damaged: {faults[0]}", "tile the slide again with --overwrite")
        fractions = annotation_fractions(annotation, store.tiles, frame, rules)
        changed = {"annotation": tuple(fractions), "config": inputs, "config_sha256": sha256_json(inputs)}
        with atomic_folder(path, store_recipe(slide.sha256, inputs)) as folder:
            for name in read_commit(path).files:
                if not name.startswith(f"{ANNOTATION}/"):
                    _link(path / name, folder / name)
            write_annotations(folder, fractions, before.model_copy(update=changed))
    return LabelReport(slide.slide_id, path, tuple(fractions), reused=False)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where it will be written to or the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == ROOT and source.parent.joinpath(COMMIT).exists():
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        shutil.copyfile(source, target)
