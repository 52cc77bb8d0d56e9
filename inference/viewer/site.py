"""What each address of the viewer holds: pages, pictures and numbers. Knows nothing of networks and writes nothing.

The server answers with it, and the export writes it out. Slides, models and layers are called by their numbers in the
cohort, so that no name or path ever comes from outside. Whatever is not in `Site.addresses` does not exist, but
for what a model is asked.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.maps.scores import MEANINGS
from inference.report.pictures import AGAINST, FOR, SMALLEST_SCALE
from inference.viewer.cohort import Cohort, Result, Shown
from inference.viewer.explainer import Explainer
from inference.viewer.numbers import Numbers, words_for
from inference.viewer.pictures import Picture, Pictures
from inference.viewer.thumbnail import thumbnail_jpeg
from inference.viewer.zooms import Square, Zooms
from tiling.core.errors import ConfigError
from tiling.core.text import printable, threshold_text
from tiling.core.versions import RESEARCH_USE
from tiling.slides.files import slide_sha256

_STATIC = Path(__file__).parent / "static"
_LEAFLET, _LEAFLET_FILES = "js_lib_leaflet", ("leaflet.js", "leaflet.css")
_MEDIA = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".json": "application/json", ".jpg": "image/jpeg", ".bin": "application/octet-stream",
}  # fmt: skip
_NUMBERS_KEPT = 8  # of heatmaps, in memory
_MASK_PX = 1024  # of the longer side of a tissue mask, at most
COLOUR_MAPS = ("viridis", "cividis", "inferno")
"""matplotlib's, perceptually uniform, and the first two made for colour-blind readers too."""


@dataclass(frozen=True)
class Answer:
    """What an address holds."""

    data: bytes
    media: str
    """Its media type."""


class Site:
    """The addresses of a cohort. Thread-safe. Raises ConfigError where the package with Leaflet is missing."""

    def __init__(
        self,
        cohort: Cohort,
        pictures: Pictures | None = None,
        *,
        drawable: bool = False,
        recoloured: Pictures | None = None,
        explainer: Explainer | None = None,
    ) -> None:
        self.drawable = drawable
        """Whether pages let readers draw."""
        self.recoloured = recoloured
        """The slides in the other colours, with or without their ICC profiles; None: pages do not offer them."""
        self.explainer = explainer
        """What says on which parts of a tile models depend; None: nobody can. An export holds none of it."""
        self.cohort, self.pictures = cohort, pictures or Pictures(cohort.slides)
        self._files = _static_files()
        self._numbers: OrderedDict[tuple[int, int], Numbers] = OrderedDict()
        self._lock, self._checking = threading.Lock(), threading.Lock()
        self._same: dict[int, bool] = {}

    def get(self, address: str) -> Answer | None:
        """What an address holds; None for one that does not exist. Raises SpecslideError if it cannot be read."""
        for pattern, find in _ADDRESSES:
            if found := pattern.fullmatch(address):
                data = find(self, *map(int, found.groups()))
                return None if data is None else _answer(address, data)
        data = self._files.get(address)
        return None if data is None else _answer(address, data)

    def addresses(self) -> Iterator[str]:
        """Every address. Raises SpecslideError for a slide that cannot be opened."""
        yield from self._files
        yield from ("data/slides.json", "data/colours.json")
        for number, shown in enumerate(self.cohort.slides):
            yield from (f"data/{number}/{name}" for name in ("slide.json", "check.json", "thumbnail.jpg"))
            if shown.store is not None:
                yield f"data/{number}/mask.bin"
            for model in range(shown.maps):
                yield f"data/{number}/{model}/tiles.bin"
                layers = self._numbers_of(number, model).layers
                yield from (f"data/{number}/{model}/map-{layer}.bin" for layer in range(len(layers)))
            with self.pictures.opened(number) as picture:
                zooms, coarsest = _zooms(picture), _last_zoom(picture)
                recoloured = self.recoloured is not None and picture.has_profile
            for zoom in range(coarsest + 1):
                places = [f"{zoom}/{column}-{row}.jpg" for column, row in zooms.tiles(zoom)]
                yield from (f"data/{number}/{place}" for place in places)
                if recoloured:
                    yield from (f"data/{number}/recoloured/{place}" for place in places)

    def _slides(self) -> bytes:
        listed = [_listed(number, shown) for number, shown in enumerate(self.cohort.slides)]
        return _json({"slides": listed, "refused": len(self.cohort.refused), "notice": RESEARCH_USE})

    def _colours(self) -> bytes:
        import matplotlib

        ramp = np.linspace(0, 1, 256)
        maps = {name: matplotlib.colormaps[name](ramp, bytes=True)[:, :3].tolist() for name in COLOUR_MAPS}
        return _json(maps)

    def _slide(self, number: int) -> bytes | None:
        if number >= len(self.cohort.slides):
            return None
        shown = self.cohort.slides[number]
        with self.pictures.opened(number) as picture:
            facts: dict[str, Any] = _listed(number, shown) | _pictured(picture)
            both = self.recoloured is not None and picture.has_profile
            facts["colours"] = {"wanted": self.pictures.icc, "drawn": picture.icc, "both": both}
        facts["models"] = [self._model(number, model, result) for model, result in enumerate(shown.results)]
        if not shown.results and shown.maps:
            facts["models"] = [_NO_MODEL | self._layers(number, 0)]
        return _json(facts | {"notice": RESEARCH_USE, "drawable": self.drawable, "mask": shown.store is not None})

    def _check(self, number: int) -> bytes | None:
        """Whether the slide at hand is the one that was predicted, byte for byte; null where nothing can tell."""
        if number >= len(self.cohort.slides):
            return None
        shown = self.cohort.slides[number]
        same = None
        if shown.slide is not None and shown.results:
            with self._checking:  # one at a time: it reads the whole file
                if number not in self._same:
                    self._same[number] = slide_sha256(shown.slide) == shown.results[0].summary.slide.sha256
            same = self._same[number]
        return _json({"same": same})

    def _model(self, number: int, model: int, result: Result) -> dict[str, Any]:
        """What the browser needs to draw a heatmap, and what is known of it."""
        summary = result.summary
        scores = [(name, getattr(summary.scores, name), words) for name, words in MEANINGS.items()]
        return {
            "name": printable(summary.model_name),
            "sha256": summary.made_from["model_sha256"],
            "classes": [printable(name) for name in summary.classes],
            "positive": printable(summary.positive_class),
            "limits": [printable(text) for text in summary.limits],
            "threshold": summary.threshold,
            "threshold_text": threshold_text(summary.threshold),
            "bag": None if summary.bag is None else summary.bag.probability,
            "attention": summary.bag is not None,
            "warning": summary.warning,
            "scores": [row for row in scores if row[1] is not None],
            "occlusion": _INFLUENCE if self._explained(number, model) else None,
        } | self._layers(number, model)

    def _layers(self, number: int, model: int) -> dict[str, Any]:
        """What the browser needs to draw the tiles' numbers."""
        numbers = self._numbers_of(number, model)
        known, grid = numbers.map_of(numbers.layers[0]) if numbers.layers else None, numbers.tiles.grid
        return {
            "number": model,
            "tiles": len(numbers.tiles),
            "tile_px0": grid.tile_px0,
            "stride_px0": grid.stride_px0,
            "map": None if known is None else {"shape": known.values.shape, "downsample": known.downsample},
            "layers": [
                {"name": printable(layer.name), "words": words_for(layer.name), "span": layer.span,
                 "threshold": layer.threshold}
                for layer in numbers.layers
            ],
        }  # fmt: skip

    def _thumbnail(self, number: int) -> bytes | None:
        if number >= len(self.cohort.slides):
            return None
        results = self.cohort.slides[number].results
        numbers = self._numbers_of(number, 0) if results else None
        with self.pictures.opened(number) as picture:
            return thumbnail_jpeg(picture, numbers)

    def _mask(self, number: int) -> bytes | None:
        """A store's tissue mask: height and width, int32, level-0 pixels per pixel, float32; 0 or 1, uint8 (h, w)."""
        store = self.cohort.slides[number].store if number < len(self.cohort.slides) else None
        if store is None:
            return None
        mask = store.mask
        step = math.ceil(max(mask.values.shape) / _MASK_PX)
        values = np.ascontiguousarray(mask.values[step // 2 :: step, step // 2 :: step], np.uint8)
        return b"".join(
            (np.array(values.shape, "<i4").tobytes(), np.float32(mask.downsample * step).tobytes(), values.tobytes())
        )

    def _tiles(self, number: int, model: int) -> bytes | None:
        return self._numbers_of(number, model).tiles_bytes if self._has(number, model) else None

    def _map(self, number: int, model: int, layer: int) -> bytes | None:
        if not self._has(number, model):
            return None
        numbers = self._numbers_of(number, model)
        return _floats(numbers.map_of(numbers.layers[layer]).values) if layer < len(numbers.layers) else None

    def _explained(self, number: int, model: int) -> bool:
        """Whether it can be said on which parts of a tile a heatmap's model depends: it and pixels are at hand."""
        shown = self.cohort.slides[number]
        pixels = _at_hand(shown) in ("slide", "store")
        made_from = shown.results[model].summary.made_from if model < len(shown.results) else {}
        return pixels and self.explainer is not None and self.explainer.knows(str(made_from.get("model_sha256")))

    def _occlusion(self, number: int, model: int, row: int) -> bytes | None:
        """Of a tile by its row: its probability, computed again, and its `occlusion_map` (T, T), float32."""
        if not (self._has(number, model) and self._explained(number, model)):
            return None
        numbers = self._numbers_of(number, model)
        if row >= len(numbers.tiles) or self.explainer is None:
            return None
        made_from, tiles = self.cohort.slides[number].results[model].summary.made_from, numbers.tiles
        square = Square(int(tiles.x0[row]), int(tiles.y0[row]), tiles.grid.tile_px0)
        others = [] if self.recoloured is None else [self.recoloured]
        seen = next((one for one in others if one.icc == made_from.get("icc", "none")), self.pictures)
        with seen.opened(number) as picture:
            tile = picture.region(square, tiles.grid.tile_px)
        probability, change = self.explainer.explain(str(made_from["model_sha256"]), tile)
        return _floats(np.array([probability, *change.ravel()]))

    def _tile(self, number: int, zoom: int, column: int, row: int) -> bytes | None:
        return self._tile_of(self.pictures, number, zoom, column, row)

    def _recoloured_tile(self, number: int, zoom: int, column: int, row: int) -> bytes | None:
        return None if self.recoloured is None else self._tile_of(self.recoloured, number, zoom, column, row)

    def _tile_of(self, pictures: Pictures, number: int, zoom: int, column: int, row: int) -> bytes | None:
        if number >= len(self.cohort.slides):
            return None
        with pictures.opened(number) as picture:
            shown = zoom <= _last_zoom(picture) and (pictures is self.pictures or picture.has_profile)
            square = _zooms(picture).square(zoom, column, row) if shown else None
        return None if square is None else pictures.jpeg(number, square)

    def _has(self, number: int, model: int) -> bool:
        return number < len(self.cohort.slides) and model < self.cohort.slides[number].maps

    def _numbers_of(self, number: int, model: int) -> Numbers:
        with self._lock:
            known = self._numbers.get((number, model))
            if known is None:
                shown = self.cohort.slides[number]
                known = self._numbers[number, model] = _numbers(shown, model)
            self._numbers.move_to_end((number, model))
            while len(self._numbers) > _NUMBERS_KEPT:
                self._numbers.popitem(last=False)
        return known


def _numbers(shown: Shown, model: int) -> Numbers:
    """The numbers of one of a slide's maps."""
    if shown.results:
        return Numbers.of_heatmap(shown.results[model], shown.columns)
    assert shown.columns is not None
    return Numbers.of_store(shown.columns)


_NO_MODEL: dict[str, Any] = {
    "name": "", "sha256": None, "classes": [], "positive": None, "limits": [], "threshold": None, "threshold_text": "",
    "bag": None, "attention": False, "warning": None, "scores": [], "occlusion": None,
}  # fmt: skip
"""What is said of the model where nothing was predicted."""
_INFLUENCE = {"for": FOR, "against": AGAINST, "smallest": SMALLEST_SCALE}
"""How a page shows on which parts of a tile a model depends: as the report does."""


def _address(pattern: str) -> re.Pattern[str]:
    """An address whose N are whole numbers of at most nine digits, spelt in one way."""
    return re.compile(re.escape(pattern).replace("N", "(0|[1-9][0-9]{0,8})"), re.ASCII)


_ADDRESSES: tuple[tuple[re.Pattern[str], Callable[..., bytes | None]], ...] = (
    (_address("data/slides.json"), Site._slides),
    (_address("data/colours.json"), Site._colours),
    (_address("data/N/slide.json"), Site._slide),
    (_address("data/N/check.json"), Site._check),
    (_address("data/N/thumbnail.jpg"), Site._thumbnail),
    (_address("data/N/mask.bin"), Site._mask),
    (_address("data/N/N/tiles.bin"), Site._tiles),
    (_address("data/N/N/map-N.bin"), Site._map),
    (_address("data/N/N/occlusion-N.bin"), Site._occlusion),
    (_address("data/N/N/N-N.jpg"), Site._tile),
    (_address("data/N/recoloured/N/N-N.jpg"), Site._recoloured_tile),
)


def _answer(address: str, data: bytes) -> Answer:
    return Answer(data, _MEDIA[Path(address).suffix])


def _static_files() -> dict[str, bytes]:
    """The viewer's own pages, scripts and styles, and Leaflet's, by their addresses."""
    spec = importlib.util.find_spec(_LEAFLET)
    if spec is None or spec.origin is None:
        raise ConfigError("view", f"needs {_LEAFLET}, which is missing", "pip install 'specslide[view]'")
    leaflet = Path(spec.origin).parent / "static" / _LEAFLET
    own = {path.name: path.read_bytes() for path in sorted(_STATIC.iterdir()) if path.suffix in _MEDIA}
    return own | {f"leaflet/{name}": (leaflet / name).read_bytes() for name in _LEAFLET_FILES}


def _listed(number: int, shown: Shown) -> dict[str, Any]:
    """What the list of slides says of one."""
    known: dict[str, Any] = {
        "number": number,
        "slide_id": printable(shown.slide_id),
        "label": None if shown.row is None or shown.row.label is None else printable(shown.row.label),
        "case": None if shown.row is None else printable(shown.row.case_id),
        "pixels": _at_hand(shown),
    }
    if not shown.results:
        return known | {"positive": None, "score": None, "scores": {}, "tiles": None, "warning": None, "unlike": None}
    summary = shown.results[0].summary
    unlike = summary.out_of_distribution
    return known | {
        "positive": printable(summary.positive_class),
        "threshold": summary.threshold,
        "score": summary.suspicion,
        "scores": {name: value for name, value in summary.numbers().items() if value is not None},
        "tiles": summary.tiles,
        "warning": summary.warning,
        "unlike": None if unlike is None else unlike.share,
    }


def _at_hand(shown: Shown) -> str:
    """What can be drawn of a slide, as `Picture.kind`; a file that cannot be opened is noticed when it is drawn."""
    small = shown.features is not None and shown.features.attributes.thumbnail_px0 is not None
    kinds = {"slide": shown.slide is not None, "store": shown.store is not None, "thumbnail": small, "none": True}
    return next(kind for kind, there in kinds.items() if there)


def _pictured(picture: Picture) -> dict[str, Any]:
    """What the browser needs to draw a slide."""
    zooms = _zooms(picture)
    drawn = {"tile_px": zooms.tile_px, "zooms": zooms.last, "last_drawn": _last_zoom(picture)}
    return {"pixels": picture.kind, "size0": zooms.size0, "qupath0": picture.frame.qupath0, "mpp": picture.mpp} | drawn


def _zooms(picture: Picture) -> Zooms:
    return Zooms(picture.frame.size0, picture.tile_px)


def _last_zoom(picture: Picture) -> int:
    """The finest level that is drawn: finer ones would only enlarge it."""
    return max(0, _zooms(picture).last - int(math.log2(max(1.0, picture.finest_px0))))


def _floats(values: NDArray[np.floating[Any]]) -> bytes:
    return np.asarray(values, "<f4").tobytes()


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
