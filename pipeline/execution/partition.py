"""A share of a list of slides, for one of several jobs. Knows nothing of what the jobs do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tiling.core.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """One of `count` parts, counted from 1; together they are the whole, and no two share anything."""

    number: int = 1
    count: int = 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th item; nothing where there are more parts than items.

        Neighbours, which often come from one scanner and are of one size, go to different parts.
        """
        return items[self.number - 1 :: self.count]


def parse_part(text: str) -> Part:
    """The part that `I/N` names. Raises ConfigError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is not None:
        part = Part(*map(int, found.groups()))
        if 1 <= part.number <= part.count:
            return part
    raise ConfigError(f"--part {text}", "is no part", "write I/N, such as 1/8 to 8/8")
