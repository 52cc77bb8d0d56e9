"""What every source of samples ends with: its classes, a draw of its tiles, splits, and the checks before training."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tiling.core.errors import ConfigError, InputError
from training.config import LearningConfig
from training.data.samples import Ints, Samples
from training.data.splits import SPLITS, joined, parse_splits, split_by_fold, split_units, torn

log = logging.getLogger(__name__)

_MISSING = frozenset({"", "-", "?", ".", "na", "n/a", "#n/a", "nan", "nil", "none", "null"})
_NO_DISEASE = re.compile(
    r"(benign|control|healthy|neg|negative|norm|normal|non|not|no|false|0)\d*([\W_].*)?", re.IGNORECASE
)


NO_LABEL = "write its class in the column label, or take the row out; a class of that name is to be in --classes"


def is_missing(label: str | None, config: LearningConfig) -> bool:
    """Whether a label is one of the usual words for "missing" (R, pandas) and not the name of a class."""
    return label is None or (_plain(label) in _MISSING and label not in (config.classes or ()))


def is_no_disease(name: str) -> bool:
    """Whether a class has one of the usual names of the negative class: normal, benign, negative, non-tumour, 0 ..."""
    return _NO_DISEASE.fullmatch(name.strip()) is not None


def positive_class(classes: Sequence[str], config: LearningConfig) -> str:
    """The class that heatmaps show: the configured one, or the last that is not called normal, benign or the like."""
    return config.positive_class or next((name for name in reversed(classes) if not is_no_disease(name)), classes[-1])


def class_names(config: LearningConfig, found: set[str], where: object) -> tuple[str, ...]:
    """The configured classes, or those found: the negative one first, then by name.

    Raises InputError for names found that differ in case or blanks only.
    """
    alike: dict[str, str] = {}
    for name in sorted(found) if config.classes is None else ():
        if (other := alike.setdefault(_plain(name), name)) != name:
            what = f"the classes {other!r} and {name!r} differ in case or blanks only"
            raise InputError(where, what, "write them alike, or name all classes with --classes if they are two")
    classes = config.classes or tuple(sorted(found, key=lambda name: (name != config.negative_class, name)))
    if config.positive_class is not None and config.positive_class not in classes:
        raise ConfigError("positive_class", f"{config.positive_class!r} is none of {', '.join(classes)}", "correct it")
    return classes


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def class_index(name: str, classes: tuple[str, ...], where: str) -> int:
    """The index of a class. Raises InputError for a label that is none of them."""
    if name not in classes:
        raise InputError(
            where, f"the label {name!r} is none of {', '.join(classes)}", "correct it or add it to classes"
        )
    return classes.index(name)


def capped(rows: Ints, slide_id: str, config: LearningConfig) -> Ints:
    """At most `max_tiles_per_slide` of the rows, in order; the draw depends on the seed and the slide alone."""
    limit = config.max_tiles_per_slide
    if limit is None or len(rows) <= limit:
        return rows
    name = int.from_bytes(hashlib.sha256(slide_id.encode()).digest()[:8])
    return np.sort(np.random.default_rng([config.data_seed, name]).choice(rows, limit, replace=False))


def prepared(samples: Samples, config: LearningConfig, where: Path, *, to_train: bool) -> Samples:
    """The samples in their splits, checked for training.

    Args:
        samples: The labelled tiles.
        config: The settings of the training.
        where: The table they come from, to be named in errors.
        to_train: Whether splits are made where the data gives none; otherwise they stay "".

    Returns:
        The samples with their splits.

    Raises:
        InputError: For what cannot be split or trained on.
    """
    if to_train:
        return _checked(split_samples(samples, config, where), config, where)
    given = (samples.split != "").any()
    return replace(samples, split=parse_splits(samples.split.tolist(), where)) if given else samples


def split_samples(samples: Samples, config: LearningConfig, where: Path) -> Samples:
    """The samples in the splits that the data gives, or in made ones where it gives none.

    Made splits keep together what shares a case, a picture or, if sites are split, a site.
    """
    if (samples.split != "").any():
        if config.folds is not None:
            what = "gives splits of its own, which cross-validation would replace"
            raise InputError(where, what, "drop the column split, or train without folds")
        return replace(samples, split=parse_splits(samples.split.tolist(), where))
    ties = (samples.case_id, samples.content())
    if config.group == "site":
        _require_sites(samples, "they are split by site", where)
        unit = joined(samples.site, *ties)
    else:
        unit = joined(*ties)
    if config.folds is None:
        fractions = {"val_fraction": config.val_fraction, "test_fraction": config.test_fraction}
        return replace(samples, split=split_units(unit, samples.label, **fractions, seed=config.data_seed))
    units = len(np.unique(unit))
    if units < config.folds:
        what = f"{units} {config.group}s cannot make {config.folds} folds"
        raise InputError(where, what, f"use at most {units} folds, or add {config.group}s")
    split = split_by_fold(
        unit, samples.label, folds=config.folds, fold=config.fold, val_fraction=config.val_fraction,
        seed=config.data_seed,
    )  # fmt: skip
    return replace(samples, split=split)


def _checked(samples: Samples, config: LearningConfig, where: Path) -> Samples:
    """The samples, if a model can be trained, chosen and tested on them."""
    _refuse_leaks(samples, config, where)
    if "site" in config.balance:
        _require_sites(samples, "sampling is balanced over sites", where)
    if len(samples.classes) < 2:
        raise InputError(where, f"all tiles are {samples.classes[0]!r}", "add tiles of another class")
    needed = SPLITS if config.test_fraction > 0 or config.folds is not None else SPLITS[:2]
    units = len(np.unique(samples.case_id if config.group == "case" else samples.site))
    for split in needed:
        if not len(samples.where(split)):
            reason = f"the {split} split is empty: there are {units} {config.group}s in all"
            raise InputError(where, reason, f"add {config.group}s, or give some of them the split {split}")
    present = np.unique(samples.label[samples.where("train")])
    missing = [name for c, name in enumerate(samples.classes) if c not in present]
    if missing:
        raise InputError(
            where, f"the training split has no tile of {missing[0]!r}", "add cases of it, or other classes"
        )
    for split in needed[1:]:
        absent = sorted(set(samples.classes) - {samples.classes[c] for c in samples.label[samples.split == split]})
        if absent:
            log.warning("%s: the %s split has no tile of %s: some metrics are undefined", where, split, absent[0])
    return samples


def _refuse_leaks(samples: Samples, config: LearningConfig, where: Path) -> None:
    """Raise InputError if a case, a site (where those are split) or a picture is in two splits."""
    units = {"case": samples.case_id} | ({"site": samples.site} if config.group == "site" else {})
    for name, unit in units.items():
        if rows := torn(unit, samples.split):
            what = f"the {name} {str(unit[rows[0]])!r} is in two splits"
            raise InputError(where, what, f"put all tiles of a {name} into one split")
    content = samples.content()
    class_of = samples.label if samples.kind == "images" else np.zeros_like(samples.label)
    for side, names in ((samples.split, None), (class_of, samples.classes)):
        if rows := torn(content, side):
            a, b = (samples.sources[samples.source[row]] for row in rows)
            sides = [str(side[row]) if names is None else repr(names[side[row]]) for row in rows]
            what = f"{a} and {b} are the same picture, one is {sides[0]} and the other {sides[1]}"
            raise InputError(where, what, "leave one of them out, or correct it")


def _require_sites(samples: Samples, why: str, where: Path) -> None:
    without = np.flatnonzero(samples.site == "")
    if len(without):
        what = f"the slide {str(samples.slide_id[without[0]])!r} has no site, but {why}"
        raise InputError(where, what, "fill the column site")
