"""features/<slide_id>.features.zarr: made from the stores by the encoder of the section `bags`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.study.ledger import append
from pipeline.study.stages.stage import FEATURES, Artefact, Stage, Study, is_published, state_of
from pipeline.study.stages.tile import name_of as store_of
from tiling.core.artefact import TO_DO, State
from tiling.stores.features import feature_path

if TYPE_CHECKING:
    from inference.config import EncoderConfig
    from tiling.manifest import ManifestRow


def name_of(row: ManifestRow) -> str:
    """The name of a slide's features in the study."""
    return feature_path(Path(FEATURES), row.slide_id).as_posix()


def encoder_settings(study: Study) -> EncoderConfig:
    """The encoder's settings; its tiles are the study's, where it has none of its own."""
    bags = study.config.bags
    assert bags is not None
    encoder, tile = bags.encoder, study.config.tile
    from inference.known_encoders import ENCODERS

    own = encoder.encoder in ENCODERS or not isinstance(tile.mpp, float)
    if own or encoder.mpp is not None or encoder.tile_px is not None:
        return encoder
    return encoder.model_copy(update={"mpp": tile.mpp, "tile_px": tile.tile_px})


def _artefacts(study: Study) -> list[Artefact]:
    if study.config.bags is None:
        return []
    return [Artefact(name_of(row), partial(state_of, partial(_look, row, study))) for row in study.usable]


def _look(row: ManifestRow, study: Study) -> State:
    from inference.backends import uses_bf16
    from inference.recipes import feature_recipe
    from pipeline.execution.embed_jobs import load_tile_encoder
    from tiling.core.artefact import state

    path, bags = study.out / name_of(row), study.config.bags
    if bags is None or not is_published(path):
        return TO_DO
    if not study.has_stores:
        return study.follows(name_of(row))
    encoder = load_tile_encoder(encoder_settings(study), bags.features.device_of(study.config.train.device))
    bf16 = uses_bf16(encoder.device, bags.features.precision)
    recipe = feature_recipe(study.out / store_of(row), encoder.record, bags.features, bf16=bf16)
    return state(path, recipe)


def _make(study: Study, artefacts: Sequence[Artefact]) -> None:
    """The features of all slides; those that fail are noted, and cost the slide nothing else."""
    from pipeline.execution.embed_jobs import embed_all

    bags = study.config.bags
    assert bags is not None
    of = {row.slide_id: row for row in study.usable}
    stores = [row.model_copy(update={"slide_path": study.out / store_of(row), "mpp": None}) for row in of.values()]
    reports, failed = embed_all(
        stores, encoder_settings(study), study.out / FEATURES, bags.features, overwrite=True,
        device=bags.features.device_of(study.config.train.device), cluster=study.config.cluster,
    )  # fmt: skip
    for report in reports:
        name = name_of(of[report.slide_id])
        append(study.out, "kept" if report.reused else "made", study.stage, name)
        if not report.reused:
            study.made.append(name)
    for slide_id, reason in failed.items():
        study.fail(name_of(of[slide_id]), reason, of[slide_id])


EMBED = Stage("embed", _artefacts, _make)
