"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from pydantic import BaseModel, ConfigDict, Field

from pipeline import console
from pipeline.commands.settings import Settings
from pipeline.execution.partition import Part, parse_part
from tiling.core.errors import ConfigError, InputError, ModelError
from tiling.core.settings import checked, read_settings

if TYPE_CHECKING:  # imported when needed: settings take a while to make
    from pipeline.execution.dask_config import ClusterConfig
    from tiling.manifest import ManifestRow, SlideList
    from tiling.slides.search import Found
    from training import Samples, TrainConfig
    from training.config import AnyConfig
    from training.data.samples import Split
    from training.models.info import BagInfo, ModelInfo

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was made otherwise or is damaged.")]
SlideMpp = Annotated[
    float | None, typer.Option(min=0.001, help="Micrometres per pixel of the slides, where their files do not say.")
]
ManifestOption = Annotated[Path | None, typer.Option(help="Table of slides (CSV or Parquet) instead of SLIDES.")]
WhereOption = Annotated[
    str | None, typer.Option(help="Which tiles of the stores, by their columns: `blur < 1.2 and black < 0.1`.")
]
EncoderOfBags = Annotated[
    str | None, typer.Option(help="Of a model of bags: its encoder's folder or file, if a name does not give it.")
]
WeightsOfBags = Annotated[
    str | None, typer.Option(help="Of a model of bags: the weights of its encoder, if none are packaged.")
]
CheckOption = Annotated[bool, typer.Option("--check", hidden=True, help="Check options and settings; do nothing.")]
PartOption = Annotated[
    Part | None, typer.Option(parser=parse_part, metavar="I/N", help="Do the I-th of N shares of the slides only.")
]

ClusterOption = Annotated[
    str | None,
    typer.Option(help="Work on a Dask cluster: local, local:N, slurm, pbs, lsf, or a scheduler's tcp://host:8786."),
]
ClusterConfigFile = Annotated[
    Path | None,
    typer.Option(help="YAML file of the cluster's settings: workers, memory, retries, queue, gpu_queue ..."),
]
WorkerMemory = Annotated[
    str | None,
    typer.Option(help="Memory of a worker of --cluster local, such as 8GB; a slide that needs more fails."),
]

_STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TileData(BaseModel):
    """Labelled tiles: stores with the table of their slides, or a table of images."""

    model_config = _STRICT

    stores: Path | None = None
    """Folder of tile stores; needs --manifest."""
    manifest: Path | None = None
    """Table of the stores' slides."""
    images: Path | None = None
    """Table of labelled images: path, label, case_id."""

    def require(self) -> None:
        """Raise ConfigError unless one kind of data is named, and InputError where a file or folder is missing."""
        if (self.images is None) == (self.stores is None) or (self.stores is None) != (self.manifest is None):
            raise ConfigError("the options", "name no data", "pass --stores with --manifest, or --images")
        require_there(*(path for path in (self.stores, self.manifest, self.images) if path is not None))

    def absolute(self) -> Self:
        """The same with absolute paths, for a process that starts in another folder."""
        paths = {name: path.absolute() for name, path in self if isinstance(path, Path)}
        return self.model_copy(update=paths)

    def samples(self, config: TrainConfig, mpp: float | None = None) -> Samples:
        """The tiles, for training under `config`; `mpp` is the scale of images."""
        from training import samples_from_images, samples_from_stores

        if self.stores is not None and self.manifest is not None:
            return samples_from_stores(self.stores, self.manifest, config)
        return samples_from_images(self.images or Path(), config, mpp=mpp)


class LabelledData(TileData):
    """Labelled tiles, or slides (bags of tiles' features) that have one label each."""

    bags: Path | None = None
    """Folder of feature stores, whose slides (or cases) have one label each in --manifest."""

    def require(self) -> None:
        """See `TileData`."""
        if self.bags is None:
            return super().require()
        if self.manifest is None or self.stores is not None or self.images is not None:
            raise ConfigError("the options", "name no data, or two", "pass --bags with --manifest alone")
        require_there(self.bags, self.manifest)

    def config(self, path: Path | None, settings: Settings) -> AnyConfig:
        """The settings of a training on these data, from a file and options. Raises ConfigError."""
        from training.config import BagConfig, load_config, load_train_config

        asked = {name: value for name, value in settings.items() if name not in LabelledData.model_fields}
        return load_config(BagConfig, path, asked) if self.bags is not None else load_train_config(path, asked)

    def bags_or_tiles(self, config: AnyConfig, mpp: float | None = None) -> Samples:
        """The tiles, or bags, for training under `config`; `mpp` is the scale of images."""
        from training import samples_from_features
        from training.config import BagConfig

        if isinstance(config, BagConfig):
            return samples_from_features(self.bags or Path(), self.manifest or Path(), config)
        return self.samples(config, mpp)


class DataOptions(LabelledData):
    """The tiles, or bags, that models are tested on, and how intervals are made."""

    mpp: float | None = None
    """Micrometres per pixel of the images. None: the model's."""
    split: str = "test"
    """train, val, test, or all for data that no model saw."""
    where: str | None = None
    """Which tiles of the stores, by their columns: `blur < 1.2 and black < 0.1`."""
    resamples: int = Field(1000, ge=0, le=100_000)
    """Resamples of cases behind each interval."""
    seed: int = Field(0, ge=0)
    """Random seed of the resamples."""
    batch_size: int = Field(256, ge=1)
    """Tiles that the model sees at once."""

    def labelled(self, model: ModelInfo | BagInfo) -> Split:
        """The tiles of the split as a model needs them."""
        from training import choose_tiles, labelled_tiles

        samples = labelled_tiles(
            model, images=self.images, stores=self.stores, bags=self.bags, manifest=self.manifest, mpp=self.mpp,
            where=self.where,
        )  # fmt: skip
        return choose_tiles(samples, self.split, self.manifest or self.images or Path())


def require_there(*paths: Path) -> None:
    """Raise InputError for the first of the files and folders that does not exist."""
    for path in paths:
        try:
            path.stat()
        except FileNotFoundError:
            raise InputError(path, "cannot be read (No such file or directory)", "correct the path") from None
        except OSError:
            continue  # who reads it says more


def found_slides(named: Sequence[Path], *, stores: bool = False, features: bool = False) -> Found:
    """The slides that the command line names; where it names folders or patterns, what was found is printed."""
    from tiling.slides.search import find_slides

    found = find_slides(named, stores=stores, features=features)
    if [*named] != found.slides:
        console.note(f"{', '.join(map(str, named[:3]))}{', ...' if len(named) > 3 else ''}: {found}")
    return found


def require_any(rows: Sequence[ManifestRow], manifest: Path | None) -> None:
    """Raise InputError if none of the slides on the command line exists; a single bad one is for the table."""
    paths = [row.slide_path for row in rows] if manifest is None else []
    if not any(map(os.path.lexists, paths)):
        require_there(*paths)


def model_folders(named: Sequence[Path]) -> list[Path]:
    """The folders of models given by name or path: before torch is loaded, which takes seconds.

    Raises ModelError for the first that is no model's.
    """
    from inference.models.find import find_model

    return [find_model(model) for model in named]


def are_bag_models(named: Sequence[Path]) -> bool:
    """Whether the first, by folder or name, is a model of bags; whoever loads them says what else is the matter."""
    from inference.models.find import find_model
    from training.models.info import BagInfo, read_record

    try:
        return isinstance(read_record(find_model(named[0])), BagInfo)
    except ModelError:
        return False


def slides_of(
    slides: list[Path] | None,
    manifest: Path | None,
    slide_mpp: float | None,
    *,
    stores: bool = False,
    features: bool = False,
) -> SlideList:
    """The slides, or stores of tiles or features too, of the command line or a manifest; their number is printed.

    `slide_mpp` comes before a manifest's.

    Raises ConfigError for both or none, and InputError for a wrong manifest or two slides of one name.
    """
    from tiling.manifest import slides_of_manifest, slides_of_paths

    if manifest is not None and not slides:
        found = slides_of_manifest(manifest)
        count = len(found.rows) + len(found.refused)
        console.note(f"{manifest}: {count} rows, {len(found.rows)} slides")
    elif slides and manifest is None:
        paths = found_slides(slides, stores=stores, features=features)
        found = slides_of_paths(paths.slides)
        found.refused.update(paths.unreadable)
    else:
        raise ConfigError(
            "the arguments", "name no slides, or name them twice", "pass slides or --manifest, one of them"
        )
    return found._replace(rows=[row.model_copy(update={"mpp": slide_mpp or row.mpp}) for row in found.rows])


def cluster_of(
    at: str | None,
    settings: Path | None,
    *,
    memory: str | None = None,
    workers: int | None = None,
    study: ClusterConfig | None = None,
) -> ClusterConfig | None:
    """The cluster that the options, else the file, else the study, ask for; None: processes of this machine.

    Raises ConfigError naming the key.
    """
    if at is None and settings is None and study is None and memory is None:
        return None
    from pipeline.execution.dask_config import ClusterConfig

    values = {} if study is None or at is not None else study.model_dump(exclude_unset=True)
    values = values if settings is None else read_settings(settings)
    options = {"at": at, "memory": memory, "workers": workers}
    values |= {name: value for name, value in options.items() if value is not None}
    return checked(ClusterConfig, values, "cluster" if settings is None else settings)
