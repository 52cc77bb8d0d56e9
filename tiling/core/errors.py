"""The error family. Every message says where, what went wrong, and what to do about it.

Knows nothing of slides, stores or models: it is imported by all and imports none.
"""

from __future__ import annotations

_MAX_LENGTH = 1000


def shortened(text: str) -> str:
    """A text that may quote what a file says, cut short in its middle where it is longer than a person reads."""
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH * 3 // 4]} [...] {text[-_MAX_LENGTH // 4 :]}"


class _Sentence(Exception):  # noqa: N818 - not to be raised itself
    """What is shown as one sentence, without a traceback.

    `where` names the file, key or slide, `what` says what is the matter with it, `fix` what to do.
    """

    exit_code = 1
    """What the command line ends with."""

    def __init__(self, where: object, what: str, fix: str = "") -> None:
        super().__init__(str(where), what, fix)  # kept as args, so that it survives the trip between processes
        self.where, self.what, self.fix = str(where), what, fix

    def __str__(self) -> str:
        return f"{self.where}: {shortened(self.what)}" + (f"; {shortened(self.fix)}" if self.fix else "")


class SpecslideError(_Sentence):
    """Something the user can understand and mend."""


class ConfigError(SpecslideError):
    """A setting is unknown, of the wrong type or out of range."""


class InputError(SpecslideError):
    """A manifest, table, annotation or image of the user's cannot be used."""


class SlideError(SpecslideError):
    """A slide cannot be opened, scaled or read."""


class UnsupportedSlideError(SlideError):
    """A slide of a kind that cannot be read, undamaged as far as one can tell: convert it."""


class StoreError(SpecslideError):
    """A tile store is missing, damaged, or made otherwise than asked for."""


class ModelError(SpecslideError):
    """A model folder is missing, damaged, or does not fit what it is asked to do."""


class OutputError(SpecslideError):
    """A result cannot be written."""


class ClusterError(SpecslideError):
    """The cluster cannot be reached, or was lost."""


class StoppedError(_Sentence):
    """A signal asked to stop; the state is saved, and the same command goes on from it.

    It is no fault of a slide or a setting: who catches those must let it pass.
    """

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again. What a Slurm script looks for to requeue its job."""
