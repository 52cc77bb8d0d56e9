"""The runs of a tuning on disk: where each is, how it is trained, and what it has shown. Knows nothing of torch.

runs/<candidate>/seed-0/                   an ordinary training run
runs/<candidate>/seed-0/quantities.json    what it shows on validation, or why it failed
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from tiling.core.artefact import COMMIT, TO_DO, Recipe, State, content_hash, folder_faults, state
from tiling.core.errors import SpecslideError
from tiling.core.files import sha256_file, sha256_json
from training.config import TrainConfig
from training.data.samples import Samples
from training.evaluation.perturbations import shifted_copies
from training.recipes import model_recipe
from training.selection.candidates import Candidate, TuneConfig, candidates
from training.selection.choice import Seen

log = logging.getLogger(__name__)

QUANTITIES = "quantities.json"


@dataclass(frozen=True)
class Attempt:
    """A candidate under one seed."""

    candidate: Candidate
    seed: int
    """0, 1, ...: of the tuning; that of the training counts from the base's."""
    folder: Path
    config: TrainConfig

    @property
    def name(self) -> str:
        """`sd_lambda-5_lr-0.001_light/seed-0`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def absolute(self) -> Attempt:
        """The same with an absolute path, for a process that starts in another folder."""
        return replace(self, folder=self.folder.absolute())


def attempts(out: Path, config: TuneConfig, base: TrainConfig) -> list[Attempt]:
    """All runs of a tuning in the folder `out`; seed by seed, so that each further seed completes a paired grid."""
    return [
        Attempt(one, seed, out / "runs" / one.name / f"seed-{base.seed + seed}", one.training(base, seed))
        for seed in range(config.seeds)
        for one in candidates(config, base)
    ]


def found(one: Attempt, samples: Samples) -> Seen | None:
    """What a finished run has shown; None where it is to be trained, or looked at again."""
    path = one.folder / QUANTITIES
    try:
        seen = Seen.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        log.warning("%s: cannot be read, its run is looked at again", path)
        return None
    if seen.recipe != model_recipe(samples, one.config).sha256 or not _is_whole(seen, len(samples.where("val"))):
        return None
    try:
        return seen if seen.failure or content_hash(one.folder / "model") == seen.model else None
    except SpecslideError:  # its model is gone
        return None


def _is_whole(seen: Seen, tiles: int) -> bool:
    """Whether a record holds what rules of this version look at: a failure, or every copy of all validation tiles."""
    if seen.quantities is None:
        return bool(seen.failure)
    return len(seen.right) == tiles and seen.quantities.shifted.keys() == shifted_copies().keys()


def by_candidate(seen: Mapping[Attempt, Seen], config: TuneConfig, base: TrainConfig) -> dict[Candidate, list[Seen]]:
    """Finished runs by candidate, the weakest regularisation first, in the order of their seeds."""
    return {one: [run for at, run in seen.items() if at.candidate == one] for one in candidates(config, base)}


def tune_recipe(out: Path, runs: Mapping[Attempt, Seen], config: TuneConfig) -> Recipe:
    """What the files of a tuning are made from: the runs, the model that was chosen, and how."""
    inputs = {
        "runs": sha256_json([[one.name, seen.recipe, seen.model] for one, seen in runs.items()]),
        "model": sha256_file(out / "model" / COMMIT),
    }
    return Recipe("tuning", inputs, config.model_dump(mode="json"))


def tune_state(out: Path, samples: Samples, config: TuneConfig, base: TrainConfig) -> State:
    """How the tuning in a folder stands against the one that these samples and settings would make."""
    if not (out / "model" / COMMIT).exists():
        return TO_DO
    plan = attempts(out, config, base)
    runs = {one: seen for one in plan if (seen := found(one, samples)) is not None}
    if len(runs) < len(plan):
        return State("changed", f"{len(plan) - len(runs)} of {len(plan)} runs are not finished")
    if faults := folder_faults(out / "model"):
        return State("changed", f"is damaged: {faults[0]}")
    return state(out, tune_recipe(out, runs, config))


def missing(plan: Sequence[Attempt], samples: Samples) -> list[Attempt]:
    """The runs that are not finished."""
    return [one for one in plan if found(one, samples) is None]
