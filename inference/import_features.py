"""The verb `import_features`: what CLAM, TRIDENT, STAMP or slide2vec computed becomes a feature store.

Each layout is read as its project documents or writes it; what a file does not say (a scale) is asked for, not guessed.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from inference.h5 import require_h5py
from inference.reports import EmbedReport
from tiling.core.arrays import FeatureType, Float32Array, Float64Array
from tiling.core.artefact import Recipe, atomic_folder, locked_folder, require_own, state
from tiling.core.errors import InputError, OutputError
from tiling.core.files import read_json, sha256_file
from tiling.core.versions import software_versions
from tiling.grid import Grid, Tiles
from tiling.manifest import require_slide_id
from tiling.stores.features import MARK, Encoder, FeatureAttributes, FeatureStore, feature_path
from tiling.stores.store import SlideFacts
from tiling.stores.write_features import write_feature_columns, write_features
from training.models.tensor_file import UNREADABLE, load_tensors

_BLOCK_ROWS = 1024
_MAX_PX0 = 2**31 - 1


@dataclass(frozen=True)
class Foreign:
    """What another program's file says; None where it does not say."""

    features: Any
    """(N, D) floats: an array, or a dataset of HDF5 that is read block by block."""
    places: Float64Array
    """Upper left corners (x, y), (N, 2), level-0 pixels, or micrometres with `micrometres`."""
    program: str
    micrometres: bool = False
    encoder: str | None = None
    tile_px: int | None = None
    """Side of a tile as the encoder saw it, pixels."""
    tile_px0: float | None = None
    """Side of a tile, in the unit of the places."""
    stride0: float | None = None
    """Distance of neighbouring tiles, in the unit of the places."""
    slide_mpp: float | None = None
    size0: tuple[int, int] | None = None
    """Width and height of the slide, level-0 pixels."""
    columns: Mapping[str, Float32Array] = field(default_factory=dict)


def import_features(
    path: Path | str,
    out_dir: Path | str,
    *,
    slide_mpp: float | None = None,
    tile_px: int | None = None,
    tile_px0: int | None = None,
    encoder: str | None = None,
    slide_id: str | None = None,
    overwrite: bool = False,
) -> EmbedReport:
    """Write the feature store `<out_dir>/<slide_id>.features.zarr` of another program's file, rows in its order.

    Args:
        path: CLAM's or TRIDENT's HDF5 (`features`, `coords`), STAMP's (`feats`, `coords`), or slide2vec's .pt or .npz
            among its `.meta.json` and `tiles/`.
        out_dir: Folder of the feature stores.
        slide_mpp: Micrometres per level-0 pixel, where the file does not say.
        tile_px: Side of a tile as the encoder saw it, pixels, where the file does not say.
        tile_px0: Side of a tile, level-0 pixels, where the file does not say.
        encoder: The encoder's name, where the file does not say.
        slide_id: What the slide is called; None: the file's name.
        overwrite: Replace features made otherwise, or a damaged store.

    Returns:
        What became of the file.

    Raises:
        InputError: For a file that is none of these or damaged, or lacks what is not given either.
        OutputError: For features made otherwise, unless `overwrite`.
        ConfigError: For an id that cannot name a folder, or without h5py.
    """
    path = Path(path)
    slide_id = require_slide_id(slide_id or path.stem, path)
    final = feature_path(Path(out_dir), slide_id)
    given = {"slide_mpp": slide_mpp, "tile_px": tile_px, "tile_px0": tile_px0, "encoder": encoder}
    with ExitStack() as stack:
        foreign, sha256 = _read(path, stack)
        recipe = Recipe("features", {"file": sha256}, {name: value for name, value in given.items() if value})
        with locked_folder(final):
            if final.exists():
                found = state(final, recipe)
                if found.state == "done":
                    return _report(final, reused=True)
                require_own(final, MARK, "a feature store")
                if not overwrite:
                    what = f"holds other features, or damaged ones: {found.why or 'it is incomplete'}"
                    raise OutputError(final, what, "choose another --out, or pass --overwrite")
            grid, tiles = _laid_out(path, foreign, slide_mpp, tile_px, tile_px0)
            known = Encoder(
                name=foreign.encoder or encoder or _lacks(path, "encoder", "which encoder it is of"),
                kind="imported",
                sha256="",
                tile_px=grid.tile_px,
                mpp=grid.mpp,
                dim=foreign.features.shape[1],
            )
            with atomic_folder(final, recipe, made_with=software_versions("h5py", "zarr")) as folder:
                write_features(folder, known.dim, _dtype(foreign), _blocks(path, foreign))
                write_feature_columns(folder, tiles, _attributes(slide_id, sha256, foreign, tiles, known, recipe))
    return _report(final, reused=False)


def _laid_out(
    path: Path, foreign: Foreign, slide_mpp: float | None, tile_px: int | None, tile_px0: int | None
) -> tuple[Grid, Tiles]:
    """The grid, and the tiles on it, in level-0 pixels. Raises InputError for what is said nowhere, or cannot be."""
    mpp0 = foreign.slide_mpp or slide_mpp or _lacks(path, "slide-mpp", "the slide's micrometres per level-0 pixel")
    unit = mpp0 if foreign.micrometres else 1.0
    places = np.rint(foreign.places / unit)
    if len(places) and not (np.isfinite(places).all() and (places >= 0).all() and (places < _MAX_PX0 / 2).all()):
        raise InputError(path, "has tiles that lie on no slide", "compute the features again")
    own = None if foreign.tile_px0 is None else round(foreign.tile_px0 / unit)
    side0 = own or tile_px0 or _lacks(path, "tile-px0", "a tile's side in level-0 pixels")
    stride0 = side0 if foreign.stride0 is None else max(1, round(foreign.stride0 / unit))
    width0, height0 = foreign.size0 or tuple((places.max(0) + side0).astype(int).tolist() if len(places) else (1, 1))
    grid = Grid(
        width0=width0,
        height0=height0,
        slide_mpp=mpp0,
        tile_px=foreign.tile_px or tile_px or _lacks(path, "tile-px", "a tile's side as the encoder saw it"),
        tile_px0=side0,
        stride_px0=stride0,
    )
    x0, y0 = places.astype(np.int32).T.copy()
    return grid, Tiles(grid, x0, y0, dict(foreign.columns))


def _lacks(path: Path, option: str, what: str) -> Any:
    raise InputError(path, f"does not say {what}", f"pass --{option}")


def _attributes(
    slide_id: str, sha256: str, foreign: Foreign, tiles: Tiles, encoder: Encoder, recipe: Recipe
) -> FeatureAttributes:
    slide = SlideFacts(
        slide_id=slide_id,
        sha256=sha256,  # of the file: the slide itself is not at hand
        width=tiles.grid.width0,
        height=tiles.grid.height0,
        mpp=tiles.grid.slide_mpp,
        vendor=foreign.program,
        objective_power=None,
        level_downsamples=(1.0,),
    )
    settings = {"imported": foreign.program, **recipe.settings}
    return FeatureAttributes(
        slide=slide, grid=tiles.grid, encoder=encoder, columns=tuple(tiles.columns), settings=settings,
        software=software_versions("h5py", "zarr"),
    )  # fmt: skip


def _dtype(foreign: Foreign) -> FeatureType:
    return "float16" if foreign.features.dtype == np.float16 else "float32"


def _blocks(path: Path, foreign: Foreign) -> Iterator[Float32Array]:
    for start in range(0, len(foreign.features), _BLOCK_ROWS):
        try:
            block = np.asarray(foreign.features[start : start + _BLOCK_ROWS], np.float32)
        except OSError as error:  # a damaged chunk of HDF5
            raise InputError(path, "is damaged: its features cannot be read", "compute them again") from error
        if not np.isfinite(block).all():
            row = start + int(np.flatnonzero(~np.isfinite(block).all(1))[0])
            raise InputError(path, f"holds features that are not finite, in row {row}", "compute them again")
        yield block


def _report(final: Path, *, reused: bool) -> EmbedReport:
    store = FeatureStore(final)
    return EmbedReport(store.slide_id, final, len(store), store.dim, reused)


# ----------------------------------------------------------------------------------------------------------- layouts


def _read(path: Path, stack: ExitStack) -> tuple[Foreign, str]:
    """What the file says, and its hash; HDF5 stays open in `stack`. Raises InputError, ConfigError without h5py."""
    try:
        if path.suffix.lower() in (".pt", ".npz"):
            return _slide2vec(path), sha256_file(path)
        sha256 = sha256_file(path)
        file = stack.enter_context(require_h5py().File(path, "r"))
        for reader in LAYOUTS.values():
            if (foreign := reader(path, file)) is not None:
                return _checked(path, foreign), sha256
    except (*UNREADABLE, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(path, f"cannot be read as features ({reason})", "pass a file of a known layout") from error
    raise InputError(path, "is of no known layout", f"known are {', '.join(LAYOUTS)} and slide2vec")


def _checked(path: Path, foreign: Foreign) -> Foreign:
    shape = foreign.features.shape
    if len(shape) != 2 or not shape[1] or foreign.places.shape != (shape[0], 2):
        what = f"holds features {tuple(shape)} and places {foreign.places.shape}, which do not belong together"
        raise InputError(path, what, "compute the features again")
    return foreign


def _trident(path: Path, file: Any) -> Foreign | None:
    """TRIDENT: `features`, and `coords` in level-0 pixels with `patch_size_level0` among its attributes."""
    if "features" not in file or "patch_size_level0" not in file["coords"].attrs:
        return None
    of = file["coords"].attrs
    side0, tile_px = float(of["patch_size_level0"]), int(of["patch_size"])
    size0 = (int(of["level0_width"]), int(of["level0_height"])) if "level0_width" in of else None
    return Foreign(
        features=file["features"],
        places=np.asarray(file["coords"][...], np.float64),
        program="trident",
        encoder=_text(file["features"].attrs.get("encoder")),
        tile_px=tile_px,
        tile_px0=side0,
        stride0=side0 * (1 - float(of.get("overlap", 0)) / tile_px),
        size0=size0,
    )


def _clam(path: Path, file: Any) -> Foreign | None:
    """CLAM: `features`, and `coords` in level-0 pixels; the file of the patches, if it lies beside, says their size."""
    if "features" not in file or "coords" not in file:
        return None
    beside = [folder / "patches" / path.name for folder in path.parents[:3]]
    of: dict[str, Any] = dict(file["coords"].attrs)
    patches = next((p for p in beside if p.is_file()), None)
    if "patch_size" not in of and patches is not None:
        with require_h5py().File(patches, "r") as other:
            of = dict(other["coords"].attrs)
    size, down = of.get("patch_size"), float(np.max(of.get("downsample", 1)))
    level = of.get("level_dim")
    return Foreign(
        features=file["features"],
        places=np.asarray(file["coords"][...], np.float64),
        program="clam",
        tile_px=None if size is None else int(size),
        tile_px0=None if size is None else float(size) * down,
        size0=None if level is None else (round(float(level[0]) * down), round(float(level[1]) * down)),
    )


def _stamp(path: Path, file: Any) -> Foreign | None:
    """STAMP from version 2 on: `feats`, and `coords` in micrometres, with `tile_size_um` (2.0: `tile_size`)."""
    if "feats" not in file or "coords" not in file or _text(file.attrs.get("unit")) != "um":
        return None
    of = file.attrs
    side = float(of["tile_size_um"] if "tile_size_um" in of else of["tile_size"])
    return Foreign(
        features=file["feats"],
        places=np.asarray(file["coords"][...], np.float64),
        program="stamp",
        micrometres=True,
        encoder=_text(of.get("extractor")),
        tile_px=int(of["tile_size_px"]) if "tile_size_px" in of else None,
        tile_px0=side,
    )


LAYOUTS: Final[dict[str, Callable[[Path, Any], Foreign | None]]] = {
    "trident": _trident,  # https://github.com/mahmoodlab/TRIDENT, trident/IO.py and wsi_objects/WSI.py
    "stamp": _stamp,  # https://github.com/KatherLab/STAMP, src/stamp/preprocessing/__init__.py
    "clam": _clam,  # https://github.com/mahmoodlab/CLAM, extract_features_fp.py and wsi_core/WholeSlideImage.py
}
"""Layouts of HDF5 files by the program that writes them; the first that knows a file reads it."""


def _slide2vec(path: Path) -> Foreign:
    """slide2vec (its docs, "Output Layout"): features in .pt or .npz, `.meta.json` beside, places in `tiles/`."""
    if path.suffix.lower() == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            features = data["features"]
    else:
        features = load_tensors(path)
        if not isinstance(features, Tensor):
            raise ValueError("it holds no tensor")
        features = features.numpy()
    meta = read_json(path.with_name(f"{path.stem}.meta.json"))
    tiles = path.parent.parent / "tiles"
    with (tiles / f"{path.stem}.coordinates.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        places = np.stack([data["x"], data["y"]], 1).astype(np.float64)
        columns = {"tissue": data["tissue_fractions"].astype(np.float32)} if "tissue_fractions" in data else {}
    slide = _section(tiles / f"{path.stem}.coordinates.meta.json", "slide")
    width, height = slide["dimensions"]
    return _checked(
        path,
        Foreign(
            features=features,
            places=places,
            program="slide2vec",
            encoder=str(meta["encoder_name"]),
            tile_px=int(meta["requested_tile_size_px"]),
            tile_px0=float(meta["tile_size_lv0"]),
            slide_mpp=float(slide["base_spacing_um"]),
            size0=(int(width), int(height)),
            columns=columns,
        ),
    )


def _section(path: Path, name: str) -> dict[str, Any]:
    section = json.loads(path.read_bytes())[name]
    if not isinstance(section, dict):
        raise TypeError(f"{path.name} has no section {name}")
    return section


def _text(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value in ("", "None")):
        return None
    return value.decode() if isinstance(value, bytes) else str(value)
