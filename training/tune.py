"""The verb: samples -> candidates trained and judged by their validation, and the model of the chosen one.

out/runs/<candidate>/seed-<k>/   the run of each candidate under each seed, as `train` leaves it, and quantities.json
out/tune.csv, tune.md, tune.png  a row a candidate, what each rule takes, validation against shifted validation
out/model/                       the chosen model, whose card says how it was chosen
out/provenance.json              what it learned from
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiling.core.artefact import COMMIT, DONE, PROVENANCE, Recipe, read_commit, seal, state
from tiling.core.errors import ConfigError, InputError, ModelError, OutputError
from tiling.core.files import canonical_json, locked, output_error, sha256_json, write_file
from training.config import TrainConfig
from training.data.loaders import make_splits
from training.data.samples import Samples, Split
from training.devices import device_of
from training.evaluation.perturbations import shifted_copies
from training.evaluation.predictions import predict_views
from training.models.card import model_card
from training.models.classifier import TileModel
from training.models.folder import load_model, save_model
from training.models.info import INFO, read_info
from training.processes import Processes, launching, processes_of
from training.recipes import model_recipe
from training.selection.attempts import QUANTITIES, Attempt, attempts, by_candidate, found, tune_recipe
from training.selection.candidates import TuneConfig, plain_one
from training.selection.choice import Runs, Seen, best_seed, choices, complete, judged
from training.selection.quantities import quantities_of
from training.selection.report import Tuning, tune_figure, tune_page, tune_table
from training.selection.rules import RULES
from training.train import train

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the numbers of finished runs and of all."""

_FILES = ("tune.csv", "tune.md", "tune.png", PROVENANCE)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class TuneResult:
    """The result of a tuning."""

    model: Path
    """The folder of the chosen model."""
    tuning: Tuning
    """All candidates, and what each rule takes."""


def tune(
    samples: Samples,
    out: Path,
    config: TuneConfig | None = None,
    base: TrainConfig | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TuneResult:
    """Train candidates for penalty, strength, learning rate and augmentation, and choose one by its validation alone.

    The test split is measured, as by `train`, and takes no part in the choice. A run that `out` holds is kept, a killed
    one goes on. Another rule, or other shifts, on the same runs trains nothing; the model it chooses takes the place of
    the earlier one.

    Args:
        samples: The labelled tiles, in their splits.
        out: The folder.
        config: What is tried, and the rule; None: the defaults.
        base: The settings of training that candidates share; None: the defaults.
        overwrite: Whether runs of other settings in `out` are replaced.
        progress: Called with (runs done, runs in all).

    Returns:
        The chosen model, and all candidates with what they showed.

    Raises:
        ConfigError, InputError: For what cannot be trained or chosen by, before anything is written.
        ModelError: If every candidate diverges.
        OutputError: If `out` cannot be written, or holds something else.
        StoppedError: When a signal asked to stop; the same call goes on.

    Example:
        >>> from training import TrainConfig, TuneConfig, samples_from_stores, tune
        >>> base = TrainConfig(backbone="test_resnet", weights="none", epochs=1, bootstrap_resamples=10)
        >>> config = TuneConfig(penalties=("none", "sd"), sd_lambdas=(1.0,), augments=(), seeds=1)
        >>> samples = samples_from_stores(Path("results/stores"), Path("cohort/manifest.csv"), base)
        >>> sorted(tune(samples, Path("tuned"), config, base).tuning.takes)
        ['agreement', 'errors', 'log_loss', 'regret', 'stress', 'tolerance']
    """
    config, base = config or TuneConfig(), base or TrainConfig()
    require_tunable(samples, base)
    attempt_all(attempts(out, config, base), samples, overwrite=overwrite, progress=progress)
    return conclude(samples, out, config, base)


def attempt_all(
    plan: Sequence[Attempt], samples: Samples, *, overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Make each of some runs in turn; arguments and errors as of `tune`."""
    for number, one in enumerate(plan):
        if progress is not None:
            progress(number, len(plan))
        attempt(one, samples, overwrite=overwrite)
    if progress is not None:
        progress(len(plan), len(plan))


def require_tunable(samples: Samples, base: TrainConfig) -> None:
    """Raise InputError for a validation that cannot show what rules look at, ConfigError for more than one process."""
    if processes_of(base) != Processes(1, 1):
        fix = "share the candidates out instead, with --part or --at-once"
        raise ConfigError("devices", "each candidate is trained by one process", fix)
    label = samples.label[samples.where("val")]
    if without := [name for number, name in enumerate(samples.classes) if number not in label]:
        what = f"the split val holds no tile of {without[0]!r}, so that rules cannot judge by it"
        raise InputError("the data", what, "add cases of it, or choose another split_seed")


def attempt(one: Attempt, samples: Samples, *, overwrite: bool = False) -> Seen:
    """Train one run and look at it, unless that is done. A training that diverges is a finding, and recorded as one.

    With `overwrite` a model that was made otherwise is replaced. Raises what `train` raises but ModelError.
    """
    if (before := found(one, samples)) is not None:
        return before
    key = model_recipe(samples, one.config).sha256
    log.info("%s", one.name)
    try:
        with launching():
            model = train(samples, one.folder, one.config, overwrite=overwrite).model
    except ModelError as error:
        seen = Seen(recipe=key, model="", quantities=None, right="", failure=f"{error.where}: {error.what}")
    else:
        seen = look(load_model(model, device_of(one.config)), make_splits(samples, one.config)["val"], key)
    write_file(one.folder / QUANTITIES, canonical_json(seen.model_dump(mode="json")))
    return seen


def look(model: TileModel, split: Split, recipe: str) -> Seen:
    """What a trained model shows on validation, and on copies of it shifted in every way.

    Args:
        model: The model, which decides by its own temperature and threshold.
        split: The validation.
        recipe: Of the model, SHA-256.

    Returns:
        What rules look at.

    Raises:
        ModelError: If a probability is not finite.
    """
    copies = shifted_copies()
    unshifted, *shifted = predict_views(model, split, [lambda tiles: tiles, *copies.values()])
    logits = [np.log(np.maximum(of.probabilities, _TINY)) for of in (unshifted, *shifted)]
    seen = quantities_of(
        logits[0], unshifted.labels, dict(zip(copies, logits[1:], strict=True)), threshold=unshifted.threshold,
        positive=unshifted.positive,
    )  # fmt: skip
    right = "".join("01"[hit] for hit in (unshifted.called == unshifted.labels).astype(int))
    return Seen(recipe=recipe, model=model.sha256, quantities=seen, right=right)


def conclude(samples: Samples, out: Path, config: TuneConfig, base: TrainConfig) -> TuneResult:
    """Choose among finished runs, and write everything but the runs; nothing is trained or predicted.

    Raises OutputError if a run is not finished, and the others as `tune`.
    """
    plan = attempts(out, config, base)
    runs = {one: seen for one in plan if (seen := found(one, samples)) is not None}
    if len(runs) < len(plan):
        what = f"{len(plan) - len(runs)} of {len(plan)} runs are not finished"
        raise OutputError(out, what, "run the command again, without --part")
    tuning = _judged(by_candidate(runs, config, base), out, config, base)
    source = next(one for one in plan if one.candidate == tuning.chosen and one.config.seed == tuning.seed)
    with locked(out / "tune", wait=True):
        _require_own_model(out)
        try:
            (out / COMMIT).unlink(missing_ok=True)  # until every file is there again, nothing vouches for them
            provenance = (source.folder / PROVENANCE).read_bytes()
        except OSError as error:
            raise output_error(out, error) from error
        write_file(out / PROVENANCE, provenance)
        _publish(source, out, tuning)
        write_file(out / "tune.csv", tune_table(tuning))
        write_file(out / "tune.png", tune_figure(tuning))
        write_file(out / "tune.md", tune_page(tuning))
        kept = [(one.folder / QUANTITIES).relative_to(out).as_posix() for one in plan]
        seal(out, tune_recipe(out, runs, config), [*_FILES, *kept])
    return TuneResult(out / "model", tuning)


def _judged(runs: Runs, out: Path, config: TuneConfig, base: TrainConfig) -> Tuning:
    """What the rules take. Raises ModelError where too little could be trained to choose among."""
    whole = complete(runs)
    failed = {one: next(run.failure for run in of if run.failure) for one, of in runs.items() if one not in whole}
    if not whole:
        first = next(iter(failed.values()))
        raise ModelError(out, f"every candidate's training failed, the first at {first}", "try lower learning rates")
    judgeable = judged(whole, config.shifts, plain_one(config, base))
    takes = choices(judgeable)
    if config.rule not in takes:
        raise ModelError(out, "plain training failed, and the rule errors looks at it", "choose another rule")
    chosen = takes[config.rule]
    seed = base.seed + best_seed(judgeable[chosen], RULES[config.rule])
    return Tuning(config, chosen, seed, judgeable, takes, failed)


def _publish(source: Attempt, out: Path, tuning: Tuning) -> None:
    """Make the chosen run's model, with how it was chosen, the one in `out`, unless it is there."""
    folder = source.folder / "model"
    trained = read_commit(folder).recipe
    assert trained is not None, "train writes it"
    selection = tuning.summary(source.candidate)
    inputs = {**trained.inputs, "selection": sha256_json(selection.model_dump(mode="json"))}
    recipe = Recipe("model", inputs, trained.settings)
    if state(out / "model", recipe) == DONE:
        return
    model = load_model(folder)
    info = model.info.model_copy(update={"selection": selection})
    save_model(out / "model", model.network, info, model_card(info), model.novelty, recipe)


def _require_own_model(out: Path) -> None:
    """Raise OutputError for a model in `out` that was trained there, and not chosen."""
    if (out / "model" / INFO).exists() and read_info(out / "model").selection is None:
        raise OutputError(out / "model", "was trained here, and not chosen by tune", "choose another --out")
