"""Packages whose public names are imported when first asked for. Knows no package."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class LazyModule(ModuleType):
    """A module whose names in `_homes` come from other modules, which are imported when the name is first asked for."""

    _homes: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = self.__dict__[name] = getattr(import_module(self._homes[name]), name)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        # Python makes each imported submodule an attribute of its package; `training.train` stays the function.
        if name not in self._homes or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self._homes})


def make_lazy(module: str, homes: Mapping[str, str]) -> None:
    """Make names of an imported package lazy: each comes from the module it is mapped to, imported on first use."""
    made = sys.modules[module]
    made.__dict__["_homes"] = homes
    made.__class__ = LazyModule
