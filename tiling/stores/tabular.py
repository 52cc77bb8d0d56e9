"""Stores and heatmaps in a notebook: a line that says what one is, its tiles as a table, and a picture of them.

pandas, anndata, spatialdata and matplotlib are loaded when they are asked for; none is needed to read a store.
"""

from __future__ import annotations

import importlib
import math
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from tiling.core.arrays import Float32Array
from tiling.core.errors import ConfigError
from tiling.core.text import counted
from tiling.core.versions import RESEARCH_USE
from tiling.grid import Grid, Raster, Tiles

if TYPE_CHECKING:
    from tiling.stores.store import SlideFacts

_MAX_CELLS = 4_000_000  # of a picture


class Tabular(ABC):
    """What holds numbers of the tiles of one slide."""

    @property
    @abstractmethod
    def slide(self) -> SlideFacts:
        """The slide."""

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """Where the tiles lie."""

    @property
    @abstractmethod
    def tiles(self) -> Tiles:
        """The tiles, with their columns."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __repr__(self) -> str:
        grid, more = self.grid, "".join(f"; {text}" for text in self._about())
        return (
            f"<{type(self).__name__} {self.slide.slide_id}: {counted(len(self), 'tile')} of {grid.tile_px} px at "
            f"{grid.mpp:.4g} µm/px{more}>"
        )

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row a tile: `x`, `y` (upper left corner, level-0 pixels) and its columns.

        Raises ConfigError without pandas.
        """
        places = {"x": self.tiles.x0, "y": self.tiles.y0}
        index = [f"{self.slide.slide_id}-{row}" for row in range(len(self))]
        return _package("pandas").DataFrame(places | dict(self.tiles.columns), index=index)

    def to_anndata(self) -> Any:
        """An `anndata.AnnData`: features, probabilities or columns as X, the table as `obs`, centres as `spatial`.

        Centres are in level-0 pixels; `uns` holds grid, slide and what else is known. All is in memory. Raises
        ConfigError without anndata.
        """
        anndata, (values, names) = _package("anndata"), self._matrix()
        obs = self.to_pandas().rename(columns=lambda name: name.replace("/", "_"))
        half = self.grid.tile_px0 / 2
        facts = {"grid": self.grid.model_dump(), "slide_id": self.slide.slide_id, "notice": RESEARCH_USE}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what other versions of anndata will do otherwise
            data = anndata.AnnData(
                values, obs=obs, uns=facts | self._facts(),
                obsm={"spatial": np.stack([self.tiles.x0 + half, self.tiles.y0 + half], 1)},
            )  # fmt: skip
            if names:
                data.var_names = names
        return data

    def to_spatialdata(self) -> Any:
        """A `spatialdata.SpatialData`: the tiles as squares with their table, and the slide in small if it is there.

        The coordinate system `global` is the slide's level-0 pixels. Raises ConfigError without spatialdata.
        """
        sd, shapely, geopandas = _package("spatialdata"), _package("shapely"), _package("geopandas")
        data, x0, y0, side = self.to_anndata(), self.tiles.x0, self.tiles.y0, self.grid.tile_px0
        data.obs["region"], data.obs["tile"] = "tiles", np.arange(len(self))
        data.obs["region"] = data.obs["region"].astype("category")
        shapes = geopandas.GeoDataFrame(geometry=shapely.box(x0, y0, x0 + side, y0 + side))
        images, picture = {}, self._picture()
        if picture is not None:
            scale = sd.transformations.Scale([picture.downsample] * 2, axes=("y", "x"))
            pixels = np.moveaxis(picture.values, 2, 0)
            images["thumbnail"] = sd.models.Image2DModel.parse(
                pixels, dims=("c", "y", "x"), transformations={"global": scale}
            )
        table = sd.models.TableModel.parse(data, region="tiles", region_key="region", instance_key="tile")
        return sd.SpatialData(
            images=images, shapes={"tiles": sd.models.ShapesModel.parse(shapes)}, tables={"table": table}
        )

    def plot(
        self, column: str | None = None, *, ax: Any = None, alpha: float = 0.6, over: Tabular | None = None
    ) -> Any:
        """Draw a column of the tiles over the slide in small.

        Args:
            column: Its name; None: probability of the shown class, or tissue.
            ax: matplotlib's axes; None: new ones.
            alpha: Opacity of the tiles, from 0 to 1.
            over: Whose slide in small it is drawn over, as a store's under a heatmap; None: its own, if it has one.

        Returns:
            The axes, in level-0 pixels.

        Raises:
            ConfigError: For a column that there is not, and for the picture of another slide.
        """
        name = column or self._shown()
        if name not in self.tiles.columns:
            raise ConfigError("column", f"there is no {name!r}", f"use one of {', '.join(self.tiles.columns)}")
        under = self if over is None else over
        if under.slide.sha256 != self.slide.sha256:
            raise ConfigError("over", f"is of another slide, {under.slide.slide_id}", "pass a store of this one")
        if ax is None:
            _, ax = importlib.import_module("matplotlib.pyplot").subplots()
        if (picture := under._picture()) is not None:
            ax.imshow(picture.values, extent=_extent(picture))
        drawn = _cells(self.tiles, self.tiles.columns[name])
        top = {"vmin": 0, "vmax": 1} if name == "tissue" or name.startswith(("prob_", "annotation/")) else {}
        heat = ax.imshow(drawn.values, extent=_extent(drawn), alpha=alpha, interpolation="nearest", **top)
        ax.figure.colorbar(heat, ax=ax, label=name)
        ax.set_xlim(0, self.grid.width0)
        ax.set_ylim(self.grid.height0, 0)
        ax.set_title(self.slide.slide_id, parse_math=False)
        return ax

    def _about(self) -> list[str]:
        """What else the line says."""
        return []

    def _facts(self) -> dict[str, Any]:
        """What else `uns` holds."""
        return {}

    def _shown(self) -> str:
        """The column that is drawn unasked."""
        return "tissue"

    def _picture(self) -> Raster | None:
        """The slide in small."""
        return None

    def _matrix(self) -> tuple[Float32Array, list[str]]:
        """X, float32 (N, K), and the names of its columns, [] if they have none."""
        columns = self.tiles.columns
        values = [columns[name] for name in columns]
        return np.stack(values, 1) if values else np.empty((len(self), 0), np.float32), list(columns)


def _package(name: str) -> Any:
    """A package that is only needed here. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ConfigError(name, "is not installed", f"pip install {name}") from None


def _cells(tiles: Tiles, values: Float32Array) -> Raster:
    """The tiles' values as a picture, a pixel a stride of the grid; NaN where no tile begins."""
    grid = tiles.grid
    cell = max(grid.stride_px0, math.sqrt(grid.width0 * grid.height0 / _MAX_CELLS))
    shape = (math.ceil(grid.height0 / cell), math.ceil(grid.width0 / cell))
    picture = np.full(shape, np.nan, np.float32)
    picture[(tiles.y0 / cell).astype(int), (tiles.x0 / cell).astype(int)] = values
    return Raster(picture, cell)


def _extent(picture: Raster) -> tuple[float, float, float, float]:
    """Where a picture lies, as matplotlib wants it, level-0 pixels."""
    height, width = picture.values.shape[:2]
    return 0, width * picture.downsample, height * picture.downsample, 0
