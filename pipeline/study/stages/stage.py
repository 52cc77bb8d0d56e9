"""What a stage of a study is: `Artefact`, `Stage`, and the `Study` that stages work on.

A stage says which artefacts the study has of it, how each stands, and how it is made. One loop
(pipeline.study.plan.walk) serves the plan, which only looks, and the run, which makes what is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.redaction import files_of, redact
from pipeline.study.ledger import Step, append, timed
from tiling.core.artefact import COMMIT, DONE, TO_DO, State
from tiling.core.errors import SpecslideError

if TYPE_CHECKING:  # torch takes seconds, and a plan whose stores are still to be made needs none of it
    import torch

    from pipeline.study.config import StudyConfig
    from tiling.core.pages import Section
    from tiling.manifest import ManifestRow
    from training import ModelInfo, Samples, TrainConfig
    from training.data.samples import Split

STORES, TRAINING, TILES, STRESS, HEATMAPS, SLIDES, FEATURES, BAGS, BAG_HEATMAPS, BAG_SLIDES = (
    "stores", "training", "evaluation/tiles", "stress", "heatmaps", "evaluation/slides", "features", "bags",
    "bag-heatmaps", "evaluation/bag-slides",
)  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """One artefact of a study."""

    name: str
    """Its folder, relative to the study's."""
    state: Callable[[], State] | None = None
    """How it stands against its recipe; None while what it is made from is still to be made."""
    make: Callable[[], object] = lambda: None
    skip: str = ""
    """Why this study has no use for it; "" if it has."""


@dataclass(frozen=True)
class Stage:
    """One stage of a study; a newcomer writes one, and adds it to STAGES."""

    name: str
    artefacts: Callable[[Study], Sequence[Artefact]]
    make: Callable[[Study, Sequence[Artefact]], None] = lambda study, artefacts: study.make(artefacts)
    """Makes those that are not done: one after the other, unless the stage knows better."""
    sections: Callable[[Study], Sequence[Section]] = lambda study: ()
    """What the study's page shows of it."""


@dataclass(frozen=True, eq=False)
class Training:
    """One training of a study: its name ("" for the only one), its settings, and what it learns from."""

    name: str
    config: TrainConfig
    samples: Samples
    split_of: Mapping[str, str]
    """case_id -> split."""

    def tested(self) -> Split:
        """Its test tiles."""
        return self.samples.split_of("test")


@dataclass(frozen=True, eq=False)
class Trained:
    """A training with its finished model, which is not loaded."""

    training: Training
    folder: Path
    info: ModelInfo
    sha256: str

    @property
    def title(self) -> str:
        """The model's name in figures."""
        return self.training.name or "model"


@dataclass
class Study:
    """A study under way, or looked at: its settings, its slides, and how its artefacts stand so far."""

    config: StudyConfig
    rows: Sequence[ManifestRow]
    steps: dict[str, Step] = field(default_factory=dict)
    """By name, of the stages that were visited."""
    made: list[str] = field(default_factory=list)
    """Names of the artefacts that this run has made."""
    failed: dict[str, str] = field(default_factory=dict)
    """slide_id, or the folder of what could not be made of all slides -> reason, redacted."""
    skipped: dict[str, str] = field(default_factory=dict)
    """What was asked for and cannot be: artefact -> reason."""
    results: dict[str, Any] = field(default_factory=dict)
    """What stages keep for those after them, by their names."""
    stage: str = ""
    """The one that is visited."""

    @property
    def out(self) -> Path:
        """The study's folder."""
        return self.config.out

    @property
    def usable(self) -> list[ManifestRow]:
        """The slides that have not failed."""
        return [row for row in self.rows if row.slide_id not in self.failed]

    @property
    def has_stores(self) -> bool:
        """Whether every slide has its store, or has failed."""
        return all(step.state in ("done", "failed") for step in self.steps.values() if step.stage == "tile")

    @property
    def has_models(self) -> bool:
        """Whether every training has its model."""
        return self.has_stores and all(s.state == "done" for s in self.steps.values() if s.stage == "train")

    def follows(self, name: str) -> State:
        """The state of an artefact whose inputs are yet to be made."""
        there = (self.out / name).exists()
        return State("changed", "follows from what is made first") if there else TO_DO

    @property
    def device(self) -> str:
        """The device that computes heatmaps: auto, cpu, cuda or mps."""
        return self.config.heatmap.device_of(self.config.train.device)

    def place(self) -> torch.device:
        """The device that tests and predicts. Raises ConfigError for one that is not there."""
        from training.devices import device_of

        return device_of(self.config.train.model_copy(update={"device": self.device}))

    @cached_property
    def trainings(self) -> list[Training]:
        """The trainings over the stores there are. Raises SpecslideError if there is nothing to learn from."""
        from training import samples_from_stores

        config, found = self.config, list[Training]()
        for name, settings in config.trainings().items():
            before = found[0].samples if found and config.repeats.seeds else None  # they share split and tiles
            samples = before or samples_from_stores(
                self.out / STORES, config.manifest, settings, leave_out=tuple(sorted(self.failed))
            )
            found.append(Training(name, settings, samples, split_by_case(samples)))
        return found

    @cached_property
    def bags(self) -> Samples:
        """The bags of the slides that have features. Raises SpecslideError if there is nothing to learn from."""
        from training import samples_from_features

        assert self.config.bags is not None
        settings, leave_out = self.config.bags.train, tuple(sorted(self.failed))
        return samples_from_features(self.out / FEATURES, self.config.manifest, settings, leave_out=leave_out)

    @cached_property
    def trained(self) -> list[Trained]:
        """The trainings with their models. Raises SpecslideError for a model that is not there."""
        from tiling.core.artefact import content_hash
        from training.models.info import read_info

        folders = [(training, self.out / within(TRAINING, training.name) / "model") for training in self.trainings]
        return [Trained(training, folder, read_info(folder), content_hash(folder)) for training, folder in folders]

    def make(self, artefacts: Sequence[Artefact]) -> None:
        """Make those that are not done, one after the other, and say so in the ledger."""
        for artefact in artefacts:
            timed(self.out, self.stage, artefact.name, partial(self._made, artefact))

    def _made(self, artefact: Artefact) -> Made:
        if artefact.state is not None and artefact.state() == DONE:
            return Made(reused=True)
        artefact.make()
        self.made.append(artefact.name)
        return Made(reused=False)

    def skip(self, artefact: Artefact) -> None:
        """Note a part of the study that is left out, and why."""
        append(self.out, "skipped", self.stage, artefact.name, reason=artefact.skip)
        self.skipped[artefact.name] = artefact.skip

    def fail_slide(self, name: str, row: ManifestRow, reason: str) -> None:
        """Note a slide that failed, with its reason: nothing more is made of it."""
        self.failed[row.slide_id] = self._failed(name, reason, row)

    def fail(self, name: str, reason: str, row: ManifestRow | None = None) -> None:
        """Note an artefact, of a slide or of all, that could not be made, with the reason; all else goes on."""
        self.failed[name] = self._failed(name, reason, row)

    def _failed(self, name: str, reason: str, row: ManifestRow | None) -> str:
        """The redacted reason, which is noted."""
        files = {} if row is None else files_of(row)
        reason = redact(reason, self.config.manifest.parent, self.out, names=files)
        append(self.out, "failed", self.stage, name, reason=reason)
        self.steps[name] = Step(self.stage, name, "failed", reason)
        return reason


@dataclass(frozen=True)
class Made:
    """The result of making an artefact."""

    reused: bool


def split_by_case(samples: Samples) -> dict[str, str]:
    """The split of each case."""
    return dict(zip(samples.case_id.tolist(), samples.split.tolist(), strict=True))


def within(part: str, name: str) -> str:
    """The folder of a training's part of the study: `training`, or `training/seed-0`."""
    return f"{part}/{name}" if name else part


def state_of(look: Callable[[], State]) -> State:
    """The state of an artefact; "changed" where what is there cannot be read."""
    try:
        return look()
    except SpecslideError as error:
        return State("changed", error.what)
    except OSError as error:
        return State("changed", f"cannot be read ({error.strerror})")


def is_published(folder: Path) -> bool:
    """Whether an artefact is there, whatever it was made from."""
    return (folder / COMMIT).exists()


def page_in(folder: Path, name: str) -> Path:
    """The page of an evaluation; an earlier version wrote it in Markdown alone."""
    page = folder / f"{name}.html"
    return page if page.exists() else page.with_suffix(".md")
