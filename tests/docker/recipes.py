"""Dockerfiles and Apptainer recipes as data: what the tests ask of them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words, as a shell splits them."""
        return shlex.split(self.text)


def stages(dockerfile: Path) -> dict[str, list[Instruction]]:
    """The instructions of each stage by its name, those before the first under ""; the last stage is `final`."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: dict[str, list[Instruction]] = {"": []}
    for line in filter(str.strip, text.splitlines()):
        instruction = Instruction(*line.split(maxsplit=1))
        if instruction.name == "FROM":
            words = instruction.words
            found[words[2] if len(words) == 3 else "final"] = []
        found[list(found)[-1]].append(instruction)
    return found


def sections(recipe: Path) -> list[dict[str, str]]:
    """The stages of an Apptainer recipe: the header under "", and each section under its first line."""
    found: list[dict[str, str]] = []
    name = ""
    for line in recipe.read_text().splitlines():
        if line.startswith("Bootstrap:"):
            found.append({})
            name = ""
        elif line.startswith("%"):
            name = line[1:].strip()
        if found and not line.startswith(("%", "#")):
            found[-1][name] = found[-1].get(name, "") + line.strip() + "\n"
    return found
