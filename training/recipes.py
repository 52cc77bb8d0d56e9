"""Recipes of models and their tests: what each is made from, to say if it is up to date. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tiling.core.artefact import COMMIT, TO_DO, Recipe, State, read_commit, state
from tiling.core.errors import SpecslideError
from tiling.core.files import sha256_file, sha256_json
from training.config import AnyConfig, ShiftsConfig, TrainConfig
from training.data.samples import Samples, Split
from training.models.info import ModelInfo, read_info

MACHINE_SETTINGS = frozenset(
    {"workers", "threads", "devices", "nodes", "checkpoint_minutes", "checkpoint_steps", "loggers"}
)
"""Settings of how fast a model comes to be and what is said of it, not of which it is."""
_LATER_SETTINGS = frozenset(
    {"fit", "l2", "consistency", "select", "select_shifts", "half_weights", "tissue", "licence", "limits", "top_k"}
)
"""Settings that recipes hold only where they are not the default: models made before there were any stay up to date."""


def model_recipe(samples: Samples, config: AnyConfig) -> Recipe:
    """All that decides the model: the tiles with labels and splits, a local weights file's content, each setting."""
    fields = type(config).model_fields
    defaults = {name for name in fields.keys() & _LATER_SETTINGS if getattr(config, name) == fields[name].default}
    settings = config.model_dump(mode="json", exclude={*MACHINE_SETTINGS, *defaults})
    inputs = {"tiles": samples.identity()}
    # a weights file's content decides, not where it lies
    if isinstance(config, TrainConfig) and (weights := Path(config.weights)).is_file():
        inputs["weights"] = sha256_file(weights)
        settings["weights"] = "file"
    return Recipe("model", inputs, settings)


def model_state(folder: Path, samples: Samples, config: AnyConfig) -> State:
    """How the model in a folder stands against the one that these samples and settings would make."""
    if not (folder / COMMIT).exists():
        return TO_DO
    now = model_recipe(samples, config)
    try:
        before = read_commit(folder).recipe or _recipe_of_0_1(read_info(folder), samples, now)
    except SpecslideError as error:
        return State("changed", error.what)
    return state(folder, now, before=before)


def _recipe_of_0_1(info: ModelInfo, samples: Samples, now: Recipe) -> Recipe:
    """The recipe of a model of version 0.1, whose folder has none, by its model.json; newer settings count as now."""
    settings = {n: info.training.get(n, value) if n != "weights" else value for n, value in now.settings.items()}
    known = samples.known_as(info.hashes.get("data"))
    return Recipe("model", now.inputs if known else {**now.inputs, "tiles": info.hashes.get("data")}, settings)


def evaluation_recipe(
    models: Mapping[str, str], split: Split, *, by: Sequence[str] = (), resamples: int = 1000, seed: int = 0
) -> Recipe:
    """The recipe of an evaluation: models, tiles with their groups, and settings.

    Args:
        models: Name -> sha256.
        split: The tiles.
        by: Columns to group by, beside site and scanner.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The recipe.
    """
    groups = {name: split.column(name).tolist() for name in dict.fromkeys((*by, "scanner", "site"))}
    inputs = {"models": dict(models), "tiles": split.samples.identity(), "groups": sha256_json(groups)}
    return Recipe("evaluation", inputs, {"split": split.name, "by": list(by), "resamples": resamples, "seed": seed})


def stress_recipe(
    models: Mapping[str, str], split: Split, config: ShiftsConfig, *, resamples: int = 1000, seed: int = 0
) -> Recipe:
    """The recipe of a stress test: models, tiles, and settings.

    Args:
        models: Name -> sha256.
        split: The tiles.
        config: The shifts and their strengths.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The recipe.
    """
    settings = config.model_dump(mode="json") | {"split": split.name, "resamples": resamples, "seed": seed}
    return Recipe("stress", {"models": dict(models), "tiles": split.samples.identity()}, settings)
