"""A model tested on shifted tiles, or on bags of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field

from pipeline import console
from pipeline.commands.options import CheckOption, DataOptions, model_folders, require_there
from pipeline.commands.settings import Settings, options_of, settings_of
from pipeline.meter import progress_of
from tiling.core.errors import ConfigError
from training.config import ShiftsConfig

if TYPE_CHECKING:
    import torch

    from training.data.samples import Split
    from training.evaluation.robustness import PredictViews
    from training.mil.model import BagModel


class BagPixels(BaseModel):
    """Where to read the pixels of tiles that have features, and the encoder of the tiles once they are shifted."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pixels: Path | None = None
    """For models of bags: folder of tile stores to read pixels from. None: they are read from the slides."""
    bag_tiles: int | None = Field(None, ge=1)
    """For models of bags: maximum number of tiles per slide, drawn at random by the seed. None: all."""
    encoder: str | None = None
    """For models of bags: their encoder's model folder or file. None: the encoder is loaded by its name."""
    weights: str | None = None
    """For models of bags: file of their encoder's weights. None: the packaged weights."""

    def require_bags(self) -> None:
        """Raise ConfigError if something was given, which is for bags alone."""
        for name, value in self:
            if value is not None:
                raise ConfigError(name, "is an option for models of bags", "pass it with --bags, or leave it out")

    def fewer(self, split: Split, seed: int) -> Split:
        """The bags, of as many tiles as are asked for."""
        from training.data.from_features import with_fewer_tiles

        return split if self.bag_tiles is None else with_fewer_tiles(split, self.bag_tiles, seed)

    def prediction(self, model: BagModel, manifest: Path, device: torch.device) -> PredictViews:
        """What predicts shifted bags of the manifest's slides.

        Raises ConfigError and ModelError for an encoder that cannot be had, or is not the model's, and InputError.
        """
        from inference import load_encoder
        from inference.bag_heatmap import require_encoder
        from inference.known_encoders import encoder_like
        from inference.stress_bags import ShiftedBags
        from tiling.manifest import read_manifest

        if self.pixels is not None:
            require_there(self.pixels)
        loaded = load_encoder(encoder_like(model.info.encoder, self.encoder, self.weights), device)
        require_encoder(model, loaded.record, f"the encoder {loaded.record.name}")
        return ShiftedBags(loaded, {row.slide_id: row for row in read_manifest(manifest)}, self.pixels)


@options_of(DataOptions, ShiftsConfig, BagPixels)
def stress(
    models: Annotated[list[Path], typer.Argument(help="Models' folders or names; all are drawn into one picture.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the figures and the picture.")],
    settings: Settings,
    check: CheckOption = False,
) -> None:
    """How well models withstand what another scanner or laboratory changes: a metric against each shift's strength.

    DIR gets stress.json, stress.csv and stress.png: curves with intervals over cases, and the area under each. For
    models of bags (multiple instance learning) the pixels are read again, shifted, and embedded by the model's encoder.

    Examples:

    `specslide stress run/model --images index.csv --out stress`

    `specslide stress erm/model sd/model --stores stores --manifest slides.csv --shifts sharpness,stain --out stress`

    `specslide stress mil/model --bags features --manifest labels.csv --bag-tiles 200 --shifts stain --out stress`
    """
    data = settings_of(DataOptions, settings, "stress options")
    config = settings_of(ShiftsConfig, settings, "stress options")
    pixels = settings_of(BagPixels, settings, "stress options")
    if data.bags is None:
        pixels.require_bags()
    if check:
        return
    data.require()
    named = names_of(model_folders(models))
    from inference.backends import quickest
    from inference.models.load import load_any_model
    from pipeline.execution.job import require_folder
    from training import BagModel, load_train_config
    from training.devices import device_of
    from training.evaluation.metrics import METRIC_NAMES
    from training.evaluation.robustness import stress as verb

    device = device_of(load_train_config())
    loaded = {name: load_any_model(folder, device) for name, folder in named.items()}
    first = next(iter(loaded.values()))
    chosen, predict = data.labelled(first.info), None
    if isinstance(first, BagModel) and data.manifest is not None:
        chosen, predict = pixels.fewer(chosen, data.seed), pixels.prediction(first, data.manifest, device)
    require_folder(out)
    quick = {name: quickest(model, len(chosen) * config.predictions) for name, model in loaded.items()}
    with progress_of("stress", "predictions") as progress:
        found = verb(
            quick, chosen, out, config, resamples=data.resamples, seed=data.seed, batch_size=data.batch_size,
            predict=predict, progress=progress,
        )  # fmt: skip
    rows: list[tuple[object, ...]] = [("none", *found.unshifted.values())]
    rows += [(shift, *(curve.area for curve in curves.values())) for shift, curves in found.curves.items()]
    count = f"{len(chosen):,} {found.noun}s"
    title = f"mean {METRIC_NAMES[config.metric]} over the strengths of each shift; {count}, in {out}"
    console.show_table(title, ("shift", *found.models), rows)


def names_of(models: list[Path]) -> dict[str, Path]:
    """What to call model folders: the run's folder where the model's is called `model`, or else whole paths."""
    resolved = [folder.resolve() for folder in models]
    names = [folder.parent.name if folder.name == "model" else folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in models]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("models", "one is named twice", "name each once")
    return dict(zip(names, models, strict=True))
