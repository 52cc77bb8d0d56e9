"""What candidates show, as kept in JSON beside each run, and which one a rule takes. Pure; trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from training.selection.candidates import Candidate
from training.selection.quantities import with_errors
from training.selection.rules import RULES, Quantities, Rule, Shifted

Runs = Mapping[Candidate, Sequence["Seen"]]
"""By candidate, the weakest regularisation first: a run a seed, in the order of the seeds."""


class Seen(BaseModel):
    """What one run shows on validation, whatever it is then judged by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    """Of what the model was trained from, SHA-256."""
    model: str
    """SHA-256 of the model's folder; "" if the training failed."""
    quantities: Quantities | None
    """With a copy for each shift of training.evaluation.perturbations; None if the training failed."""
    right: str = Field(pattern="^[01]*$")
    """For each validation tile in order, whether it is decided rightly: 1 or 0."""
    failure: str = ""
    """Why there is no model: training diverged."""


def complete(runs: Runs) -> dict[Candidate, Sequence[Seen]]:
    """The candidates that trained under every seed."""
    return {one: seen for one, seen in runs.items() if all(run.quantities is not None for run in seen)}


def judged(runs: Runs, shifts: Sequence[str], plain: Candidate | None) -> dict[Candidate, list[Quantities]]:
    """What rules look at, a record a seed: copies in those shifts alone, and where plain training is right and wrong.

    Args:
        runs: Complete ones.
        shifts: Names of SHIFTS.
        plain: The plain training that `errors` looks at; None, or one that is not complete: it cannot be asked.

    Returns:
        By candidate, in order.
    """

    beside = None if plain is None else runs.get(plain)

    def of(run: Seen, seed: int) -> Quantities:
        assert run.quantities is not None
        kept = {name: copy for name, copy in run.quantities.shifted.items() if name.split()[0] in shifts}
        seen = run.quantities.model_copy(update={"shifted": kept})
        return seen if beside is None else with_errors(seen, _flags(run), _flags(beside[seed]))

    return {one: [of(run, seed) for seed, run in enumerate(seen)] for one, seen in runs.items()}


def mean_quantities(every: Sequence[Quantities]) -> Quantities:
    """Each quantity's mean over seeds; of those that some seeds do not have, over the others."""

    def mean(name: str) -> float | None:
        values = [value for one in every if (value := getattr(one, name)) is not None]
        return float(np.mean(values)) if values else None

    def of_copy(name: str) -> Shifted:
        copies = [one.shifted[name] for one in every]
        return Shifted(
            balanced_accuracy=float(np.mean([copy.balanced_accuracy for copy in copies])),
            agreement=float(np.mean([copy.agreement for copy in copies])),
        )

    means = {name: mean(name) for name in Quantities.model_fields if name not in ("classes", "shifted")}
    return Quantities(classes=every[0].classes, shifted={name: of_copy(name) for name in every[0].shifted}, **means)


def choices(seen: Mapping[Candidate, Sequence[Quantities]]) -> dict[str, Candidate]:
    """By rule, the candidate it takes by the means over seeds; no `errors` where nobody looked at plain training."""
    means = {one: mean_quantities(every) for one, every in seen.items()}
    blind = any(one.where_right is None and one.where_wrong is None for one in means.values())
    return {name: rule(means) for name, rule in RULES.items() if name != "errors" or not blind}


def best_seed(seen: Sequence[Quantities], rule: Rule) -> int:
    """The seed whose run has most of what the rule looks for; the first of equals."""
    return int(np.argmax([rule.value(one) for one in seen]))


def _flags(run: Seen) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([bit == "1" for bit in run.right])
