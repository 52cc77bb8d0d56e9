"""specslide: whole-slide images to tile stores, models and slide-level cancer heatmaps. For research use only.

    import specslide

    store = specslide.tile_slide("slide.svs", "stores").store

The names are imported when first asked for. The packages tiling, training, inference and pipeline lie beside this file,
and are found there even where the working directory holds something of the same name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference import Heatmap, embed_slide, load_encoder, load_model, make_heatmap, predict_slide
    from pipeline import run
    from tiling import FeatureStore, Grid, Slide, TileStore, tile_slide
    from training import SpectralDecouplingLoss, train

__all__ = [
    "FeatureStore",
    "Grid",
    "Heatmap",
    "Slide",
    "SpectralDecouplingLoss",
    "TileStore",
    "__version__",
    "embed_slide",
    "load_encoder",
    "load_model",
    "make_heatmap",
    "predict_slide",
    "run",
    "tile_slide",
    "train",
]

__version__ = version("specslide")
_PACKAGES = ("tiling", "training", "inference", "pipeline")
_HERE = Path(__file__).resolve().parent


class _BesideThisFile(MetaPathFinder):
    """Finds specslide's packages beside this file, before the working directory is looked through."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [str(_HERE)]) if fullname in _PACKAGES else None


def _find_packages_here() -> None:
    """Let Python find specslide's packages beside this file. Raises ImportError where another one is loaded."""
    for name in _PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", str(_HERE))
        if file is None or not Path(file).resolve().is_relative_to(_HERE):
            raise ImportError(f"another module {name!r} ({file}) is imported already; import specslide before it")
    if not any(type(finder).__name__ == _BesideThisFile.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _BesideThisFile())


def main() -> None:
    """Run the command line. Python's own folders come before the working directory, here and in child processes."""
    with suppress(FileNotFoundError):  # of a working directory that is gone
        if Path.cwd() != _HERE:
            os.environ["PYTHONSAFEPATH"] = "1"
            sys.path[:] = [place for place in sys.path if place and Path(place).absolute() != Path.cwd()]
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads that spin while they wait slow each other
    from pipeline.cli import main as run_command_line

    run_command_line()


_find_packages_here()
from tiling.core.lazy import make_lazy  # noqa: E402 - found by what is set up above

make_lazy(
    __name__,
    dict.fromkeys(("FeatureStore", "Grid", "Slide", "TileStore", "tile_slide"), "tiling")
    | dict.fromkeys(("SpectralDecouplingLoss", "train"), "training")
    | dict.fromkeys(
        ("Heatmap", "embed_slide", "load_encoder", "load_model", "make_heatmap", "predict_slide"), "inference"
    )
    | {"run": "pipeline"},
)

if __name__ == "__main__":
    main()
