"""`study.json`, from which with the records of its runs a study's tables and figures are made: no tile is needed."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from tiling.core.artefact import COMMIT, folder_faults, read_commit, seal
from tiling.core.errors import InputError
from tiling.core.files import canonical_json, write_changed, write_file
from tiling.core.settings import checked
from tiling.core.versions import software_versions
from training.trials.choice import Grid, as_grid
from training.trials.config import GridConfig, Run, planned
from training.trials.records import SOFTWARE, packed, read_record, record_path, unpacked
from training.trials.tiles import TileSet

Config = TypeVar("Config", bound=GridConfig)

STUDY_FILE = "study.json"
PAGES = ("study.csv", "study.md", "study.png")
_STRICT = ConfigDict(frozen=True, extra="forbid")


class SetFacts(BaseModel):
    """Tiles that every run was tested on, without a name of a case: what intervals and tables by site need."""

    model_config = _STRICT

    label: str
    """As `packed`: which tiles are positive."""
    case: list[int]
    """A number a case, for each tile."""
    site: list[int]
    """For each tile, its place in `sites`."""
    sites: list[str]

    @property
    def labels(self) -> NDArray[np.int64]:
        """0 or 1, (N,)."""
        return unpacked(self.label).astype(np.int64)

    @classmethod
    def of(cls, data: TileSet) -> SetFacts:
        """The facts of some tiles."""
        sites, site = np.unique(data.site, return_inverse=True)
        case = np.unique(data.unit, return_inverse=True)[1]
        return cls(label=packed(data.label == 1), case=case.tolist(), site=site.tolist(), sites=sites.tolist())


class Study(BaseModel):
    """What a study is: settings, the keys of its runs, and what they were tested on."""

    model_config = _STRICT

    kind: str
    config: dict[str, Any]
    classes: tuple[str, str]
    """The negative class and the positive one."""
    tiles: tuple[int, int]
    """How many the study divides among training and validation (and tests, on a shortcut), of how many."""
    keys: list[str]
    """Of all of `planned`, in that order."""
    sets: dict[str, SetFacts] = {}
    made_with: dict[str, str]
    """Versions of the software, and the machine."""


def write_study(out: Path, kind: str, config: GridConfig, keys: Mapping[Run, str], **facts: Any) -> Study:
    """Write `study.json` and return what is in it; `facts` are the other fields of `Study`."""
    machine = {"machine": platform.machine(), "cores": str(os.cpu_count())}
    made_with = software_versions(*SOFTWARE) | machine
    settings = config.model_dump(mode="json")
    study = Study(kind=kind, config=settings, keys=list(keys.values()), made_with=made_with, **facts)
    out.mkdir(parents=True, exist_ok=True)
    write_changed(out / STUDY_FILE, canonical_json(study.model_dump(mode="json")))
    return study


def read_study(out: Path, *kinds: str) -> Study:
    """What `write_study` wrote. Raises InputError if there is none of those kinds."""
    path = out / STUDY_FILE
    try:
        study = Study.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise InputError(path, "cannot be read as a study", "name the data, and the study is made") from None
    if study.kind not in kinds:
        raise InputError(path, f"is of {study.kind}, not {' or '.join(kinds)}", "use the command for that")
    return study


def write_pages(out: Path, table: str, page: str, figure: bytes) -> None:
    """Write `PAGES`. Where commit.json vouches for the folder, and all else is as it says, it vouches for them too.

    Raises OutputError if a file cannot be written.
    """
    commit = read_commit(out) if (out / COMMIT).exists() else None
    intact = commit is not None and not folder_faults(out, only=commit.files.keys() - set(PAGES))
    contents: tuple[str | bytes, ...] = (table, page, figure)
    for name, content in zip(PAGES, contents, strict=True):
        write_file(out / name, content)
    if commit is not None and commit.recipe is not None and intact:
        seal(out, commit.recipe, commit.files.keys(), made_with=commit.made_with)


def gathered(out: Path, study: Study, model: type[Config]) -> tuple[Grid, Config]:
    """The records of the seeds of which every run is there, and the settings with as many seeds.

    Raises InputError if no seed is complete.
    """
    config = checked(model, study.config, out / STUDY_FILE)
    runs = dict(zip(planned(config), study.keys, strict=True))
    records = {run: record for run, key in runs.items() if (record := read_record(record_path(out, key)))}
    lacking = {run.seed for run in runs if run not in records}
    seeds = min(lacking, default=config.seeds)
    if seeds == 0:
        raise InputError(out, "holds no seed with all its runs", "go on with the study")
    some = config.model_copy(update={"seeds": seeds})
    return as_grid({run: records[run] for run in planned(some)}, some), some
