"""What other programs write of a slide's tiles: `LAYOUTS`, one reader a program. Knows nothing of slides' pixels.

Each layout is read as its project documents or writes it; what a file does not say is None, and asked for by the verb.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from tiling.core.arrays import Float64Array
from tiling.core.artefact import COMMIT
from tiling.core.errors import InputError
from tiling.core.files import read_json, require_regular
from tiling.manifest import read_columns

Unit = Literal["px0", "um", "mpp", "power", "level"]
PROBABILITY = "prob_"
"""What names of columns with a class's probability begin with."""


@dataclass(frozen=True)
class ForeignResult:
    """What a file says of the tiles of one slide."""

    program: str
    centres: Float64Array
    """(N, 2), x and y, in `unit`."""
    sides: Float64Array | None
    """Width and height of each tile, (N, 2); None where the file does not say."""
    probabilities: Mapping[str, Float64Array]
    """Of each class by its name, (N,)."""
    slide: str | None
    """What the slide or its file is called; None where the file does not say."""
    qupath: bool = False
    """Whether places count from where QuPath does."""
    unit: Unit = "px0"
    """Of the places: level-0 pixels, micrometres, or the pixels of a picture at `resolution`."""
    resolution: float = 1.0
    """Micrometres per pixel (mpp), objective power or level of that picture."""
    model: str | None = None
    """What the model is called."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """What else is said of the model and the run."""
    tile_px: int | None = None
    """Side of a tile as the model saw it, pixels."""


def foreign_results(path: Path, columns: Sequence[str] = ()) -> list[ForeignResult]:
    """The results that a file holds, one a slide.

    Args:
        path: A table (CSV, TSV) of WSInfer or QuPath, JSON of TIAToolbox, or GeoJSON of QuPath.
        columns: Columns or measurements that are the classes' probabilities; none: those that begin with `prob_`.

    Returns:
        The results.

    Raises:
        InputError: Naming the row for what cannot be read, and for a file of no known layout.
    """
    try:
        require_regular(path)
        content: Any = read_json(path) if path.suffix.lower() in (".json", ".geojson") else _Table(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(path, f"cannot be read ({reason})", "pass tables, JSON or GeoJSON") from None
    for reader in LAYOUTS.values():
        if (found := reader(path, content, columns)) is not None:
            return found
    what = "is of no known layout"
    if isinstance(content, _Table):
        what += f"; its columns are {', '.join(content.names)}"
    raise InputError(path, what, f"known are {', '.join(LAYOUTS)}")


def result_files(named: Sequence[Path]) -> list[Path]:
    """The files that paths name; of a folder of WSInfer's results its tables. Raises InputError for another folder."""
    files: list[Path] = []
    for path in named:
        tables = [one for folder in _WSINFER_FOLDERS for one in sorted((path / folder).glob("*.csv"))]
        own = (path / COMMIT).exists()
        if path.suffix.lower() in (".zarr", ".db") and not own:  # TIAToolbox 2 keeps the scale of its places nowhere
            fix = "write it as a table of minx, miny, width, height in level-0 pixels and prob_<class>; see docs/faq.md"
            raise InputError(path, "does not say the scale of its tiles' places", fix)
        if path.is_dir() and not tables:
            what = "is made by specslide already" if own else "is a folder without tables"
            raise InputError(path, what, "pass a folder of WSInfer's results, or files")
        files += tables or [path]
    return files


_WSINFER_FOLDERS = ("model-outputs-csv", "model-outputs", ".")
"""Where tables lie in a folder of WSInfer's results: since 0.5, before, and as a folder of them itself."""


class _Table:
    """A table as text, with its numbers by column."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names, self.rows = read_columns(path)

    def texts(self, name: str) -> list[str]:
        place = self.names.index(name)
        return [row[place] for row in self.rows.values()]

    def numbers(self, name: str) -> Float64Array:
        """A column's numbers. Raises InputError naming the row of one that is none."""
        return _numbers(self.texts(name), name, self.path, list(self.rows))

    def classes(self, columns: Sequence[str]) -> dict[str, Float64Array]:
        """The classes' probabilities by the classes' names; {} where there are none. Raises InputError."""
        chosen = _chosen(self.names, columns, self.path)
        return {name.removeprefix(PROBABILITY): self.numbers(name) for name in chosen}


def _chosen(names: Sequence[str], columns: Sequence[str], path: Path) -> list[str]:
    if absent := [name for name in columns if name not in names]:
        raise InputError(path, f"has no column {absent[0]!r}: there are {', '.join(names)}", "correct --probability")
    return list(columns) or [name for name in names if name.startswith(PROBABILITY)]


def _numbers(values: Sequence[Any], name: str, path: Path, rows: Sequence[int]) -> Float64Array:
    found = np.full(len(values), np.nan)
    for place, value in enumerate(values):
        try:
            found[place] = float(value)
        except (TypeError, ValueError, OverflowError):
            found[place] = np.nan
        if not np.isfinite(found[place]):
            raise InputError(f"{path}, row {rows[place]}", f"{name} is no number ({value!r:.40})", "correct it")
    return found


# ----------------------------------------------------------------------------------------------------------- layouts


def _wsinfer(path: Path, content: Any, columns: Sequence[str]) -> list[ForeignResult] | None:
    """WSInfer: RESULTS/model-outputs-csv/SLIDE.csv: `minx, miny, width, height, prob_<class>`, level-0 pixels.

    The newest RESULTS/run_metadata_*.json tells the model. Tables of specslide's heatmaps have the same columns.
    """
    if not isinstance(content, _Table) or not {"minx", "miny", "width", "height"} <= set(content.names):
        return None
    corners, sides = (np.stack([content.numbers(a), content.numbers(b)], 1) for a, b in (("minx", "miny"), _SIZE))
    model, said, tile_px = _wsinfer_run(path.parent.parent)
    known = set(content.texts("slide_id")) if "slide_id" in content.names else {path.stem}
    if len(known) > 1:
        raise InputError(path, f"holds tiles of {len(known)} slides", "write a table a slide")
    return [
        ForeignResult(
            program="WSInfer" if "slide_id" not in content.names else "specslide",
            centres=corners + sides / 2, sides=sides, probabilities=content.classes(columns), slide=known.pop(),
            model=model, said=said, tile_px=tile_px,
        )
    ]  # fmt: skip


_SIZE = ("width", "height")


def _wsinfer_run(folder: Path) -> tuple[str | None, dict[str, Any], int | None]:
    """Model, what else is said, and tile_px by the newest run's metadata; no paths and no command line of it."""
    newest = max(folder.glob("run_metadata_*.json"), default=None)
    if newest is None:
        return None, {}, None
    try:
        run = read_json(newest)
        config, hub = run["model"]["config"], run["model"].get("huggingface_location") or {}
        said = {
            "architecture": str(config["architecture"]), "model_mpp": float(config["spacing_um_px"]),
            "wsinfer": str(run["runtime"]["version"]), **{k: str(hub[k]) for k in ("repo_id", "revision") if k in hub},
        }  # fmt: skip
        return str(hub.get("repo_id") or config["architecture"]), said, int(config["patch_size_pixels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            newest, f"is no metadata of a run ({type(error).__name__})", "take it out, or run again"
        ) from None


def _tiatoolbox(path: Path, content: Any, columns: Sequence[str]) -> list[ForeignResult] | None:
    """TIAToolbox's PatchPredictor before 2.0: N.raw.json with `coordinates` [x0, y0, x1, y1] at `resolution`, `units`.

    It needs `return_probabilities=True`. Which slide it is of is in a pickle beside it only, which is not read.
    """
    if not isinstance(content, dict) or not {"coordinates", "predictions", "resolution", "units"} <= content.keys():
        return None
    if "probabilities" not in content:
        raise InputError(path, "holds no probabilities", "predict with return_probabilities=True")
    try:
        corners = np.asarray(content["coordinates"], np.float64).reshape(-1, 4)
        values = np.asarray(content["probabilities"], np.float64).reshape(len(corners), -1)
        unit, resolution = _TIA_UNITS[content["units"]], float(content["resolution"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        what = f"holds coordinates or probabilities of another form ({type(error).__name__})"
        raise InputError(path, what, "predict again") from None
    if not (np.isfinite(corners).all() and np.isfinite(values).all() and 0 <= resolution < 1000):
        raise InputError(path, "holds numbers that are not finite", "predict again")
    if unit == "px0":
        corners, resolution = corners / (resolution or 1.0), 1.0
    names = list(columns) or [str(number) for number in range(values.shape[1])]
    if len(names) != values.shape[1]:
        raise InputError(path, f"is of {values.shape[1]} classes", "name each of them, in order, with --probability")
    model = content.get("pretrained_model")
    return [
        ForeignResult(
            program="TIAToolbox", centres=(corners[:, :2] + corners[:, 2:]) / 2, sides=corners[:, 2:] - corners[:, :2],
            probabilities=dict(zip(names, values.T, strict=True)), slide=None, unit=unit, resolution=resolution,
            model=str(model) if model else None,
        )
    ]  # fmt: skip


_TIA_UNITS: Final[dict[str, Unit]] = {"baseline": "px0", "mpp": "mpp", "power": "power", "level": "level"}


def _qupath_table(path: Path, content: Any, columns: Sequence[str]) -> list[ForeignResult] | None:
    """QuPath's measurements of tiles or detections: `Image`, `Centroid X µm` (or px), and the measurements.

    Of several images, one result each. A tile's side is not among the columns.
    """
    if not isinstance(content, _Table):
        return None
    label = next((name for name in _QUPATH_UNITS if f"Centroid X {name}" in content.names), None)
    if label is None or f"Centroid Y {label}" not in content.names:
        return None
    centres = np.stack([content.numbers(f"Centroid {axis} {label}") for axis in "XY"], 1)
    images = np.array(content.texts("Image") if "Image" in content.names else [""] * len(centres))
    classes = content.classes(columns)
    return [
        ForeignResult(
            program="QuPath", centres=centres[images == image], sides=None, qupath=True, unit=_QUPATH_UNITS[label],
            probabilities={name: values[images == image] for name, values in classes.items()},
            slide=image or None,
        )
        for image in dict.fromkeys(images.tolist())
    ]  # fmt: skip


_QUPATH_UNITS: Final[dict[str, Unit]] = {"µm": "um", "um": "um", "px": "px0"}


def _qupath_geojson(path: Path, content: Any, columns: Sequence[str]) -> list[ForeignResult] | None:
    """GeoJSON of QuPath, as its extension for WSInfer or `wsinfer togeojson` writes it: tile objects with measurements.

    Measurements are an object, or a list of {name, value}. The slide is called as the file.
    """
    features = content.get("features") if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        return None
    boxes, measured = [], []
    for number, feature in enumerate(features, start=1):
        try:
            properties = feature["properties"]
            if properties.get("objectType", "tile") not in ("tile", "detection"):
                continue
            ring = np.asarray(feature["geometry"]["coordinates"][0], np.float64)[:, :2]
            found = properties.get("measurements") or {}
            measured.append(found if isinstance(found, dict) else {one["name"]: one["value"] for one in found})
            boxes.append((*ring.min(0), *ring.max(0)))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            where, what = f"{path}, feature {number}", f"is no tile ({type(error).__name__})"
            raise InputError(where, what, "export tiles or detections") from None
    if not boxes:
        return None
    corners, rows = np.array(boxes, np.float64), list(range(1, len(boxes) + 1))
    if not np.isfinite(corners).all():
        raise InputError(path, "has places that are not finite", "export it again")
    names = Counter(name for found in measured for name in found)
    chosen = _chosen(list(names), columns, path)
    return [
        ForeignResult(
            program="QuPath", centres=(corners[:, :2] + corners[:, 2:]) / 2, sides=corners[:, 2:] - corners[:, :2],
            probabilities={
                name.removeprefix(PROBABILITY): _numbers([m.get(name) for m in measured], name, path, rows)
                for name in chosen
            },
            slide=path.stem, qupath=True,
        )
    ]  # fmt: skip


Layout = Callable[[Path, Any, Sequence[str]], list[ForeignResult] | None]
LAYOUTS: Final[dict[str, Layout]] = {
    "WSInfer": _wsinfer,  # https://github.com/SBU-BMI/wsinfer, wsinfer/modellib/run_inference.py and cli/infer.py
    "TIAToolbox": _tiatoolbox,  # https://github.com/TissueImageAnalytics/tiatoolbox, models/engine/patch_predictor.py
    "QuPath's table": _qupath_table,  # https://qupath.readthedocs.io, "Exporting measurements"
    "QuPath's GeoJSON": _qupath_geojson,  # https://qupath.readthedocs.io, "Exporting annotations"
}
"""Layouts by the program that writes them; the first that knows a file reads it."""
