"""Lets torchvision be imported where its compiled operators cannot be loaded.

The torchvision wheel of the package index is built against CUDA. Beside a CPU-only torch its library does not load,
and then `import torchvision` fails, and timm, torchmetrics and lightning with it, although none of them needs those
operators: torchvision only looks up the schemas of `nms` and `qnms` to attach its shape functions to them. Declaring
the two schemas is enough. Knows nothing of models.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; its place in `sys.meta_path` tells it that torchvision is about to be imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            mend_torchvision()


def mend_on_import() -> None:
    """Mend torchvision as soon as anything imports it, as timm and lightning do. Costs no import of torch by itself."""
    sys.meta_path.insert(0, _BeforeTorchvision())


@cache  # the cache also keeps the Library alive: its schemas vanish with it
def mend_torchvision() -> torch.library.Library | None:
    """Declare torchvision's two operator schemas if its own library cannot be loaded; to be called before importing it.

    Returns the library that holds them, or None where nothing was done: torchvision is already imported, is not
    installed, or is whole.
    """
    if "torchvision" in sys.modules:
        return None
    import torch

    spec = find_spec("torchvision")  # finds the package without importing it
    if spec is None or any(_loads(Path(place)) for place in spec.submodule_search_locations or ()):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # a fragment bears others beside it
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):  # another program's mend may have come first
            library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _loads(package: Path) -> bool:
    """Whether the compiled operators in torchvision's folder can be loaded; they then stay loaded."""
    import torch

    for library in (package / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES):
        if library.exists():
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
            except OSError:
                continue
            return True
    return False
