"""The error family: one sentence, and whole after a trip between processes."""

from __future__ import annotations

import os
import pickle

import pytest

from tiling.core import errors

FAMILY = [
    "SpecslideError", "ConfigError", "InputError", "SlideError", "StoreError", "ModelError", "OutputError",
    "StoppedError",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILY)
def test_a_sentence_that_pickles(name: str) -> None:
    kind = getattr(errors, name)
    error = kind("a.svs", "is empty", "copy it again")
    assert isinstance(error, errors.SpecslideError) == (name != "StoppedError"), "it is nobody's fault"
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is kind
    assert str(copy) == str(error) == "a.svs: is empty; copy it again"
    assert (copy.where, copy.what, copy.fix) == ("a.svs", "is empty", "copy it again")


def test_without_a_fix() -> None:
    assert str(errors.SlideError("a.svs", "is empty")) == "a.svs: is empty"


def test_what_a_file_says_is_quoted_shortly() -> None:
    error = errors.InputError("a.csv", f"holds {'x' * 10**6!r} in its last row", "correct it")
    said = str(error)
    assert len(said) < 1200
    assert said.startswith("a.csv: holds 'xxx")
    assert said.endswith("in its last row; correct it")


def test_only_what_may_be_tried_again_says_so() -> None:
    codes = {name: getattr(errors, name)("a", "b").exit_code for name in FAMILY}
    assert codes == dict.fromkeys(FAMILY, 1) | {"StoppedError": os.EX_TEMPFAIL}
