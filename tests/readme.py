"""README and docs as data: their blocks of code, what each is, and why those that no test runs are not run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import typer.main
from markdown_it import MarkdownIt

from pipeline import cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TOUR = (
    README,
    *(ROOT / f"docs/{name}.md" for name in ("tour", "slide-labels", "cluster", "regularisers", "store", "notebook")),
)
"""Pages whose blocks are run, one after the other in one folder."""
MARK = re.compile(r"<!-- not run: (.+\S) -->")

Kind = Literal["commands", "python", "study", "other"]


@dataclass(frozen=True)
class Block:
    """One block of code."""

    text: str
    line: int
    not_run: str | None
    """Why not, where the comment in front of it says so."""

    @property
    def kind(self) -> Kind:
        """`commands` of specslide only, a `python` script, the `study` that a YAML file describes, or `other`."""
        if all(line.startswith("specslide ") for line in self.text.splitlines()):
            return "commands"
        if re.match(r"(import|from) ", self.text):
            return "python"
        return "study" if self.text.startswith("manifest:") else "other"


@cache
def blocks(path: Path = README) -> tuple[Block, ...]:
    """The fenced and indented blocks of a Markdown file."""
    found: list[Block] = []
    mark = None
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            found.append(Block(token.content, (token.map or [0])[0] + 1, mark))
        if token.type == "html_block":
            match = MARK.search(token.content)
            mark = match[1] if match else None
        elif token.level == 0:
            mark = None
    return tuple(found)


@cache
def code_spans(path: Path) -> tuple[str, ...]:
    """The code within the sentences of a Markdown file."""
    inline = [token for token in MarkdownIt().parse(path.read_text(encoding="utf-8")) if token.type == "inline"]
    return tuple(part.content for token in inline for part in token.children or () if part.type == "code_inline")


@cache
def root() -> Any:
    """The whole command line."""
    return typer.main.get_command(cli.app)


@cache
def commands() -> dict[str, Any]:
    """Every command of the command line by its name, `study shortcut` too."""
    found: dict[str, Any] = {}

    def add(group: Any, prefix: str) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                add(command, f"{prefix}{name} ")
            else:
                found[prefix + name] = command

    add(root(), "")
    return found


def examples() -> list[str]:
    """The calls of specslide in the help texts of the commands."""
    spans = [span for command in commands().values() for span in re.findall(r"`([^`]+)`", command.help or "")]
    return [span for span in spans if re.search(r"(^|\s)specslide ", span)]


def parse(line: str) -> None:
    """Let the real parser read a call of specslide, without running it. Raises what the parser raises.

    What a shell would do with the line is left out: variables and programs before it, redirections, comments.
    """
    words = shlex.split(line, comments=True)
    words = words[words.index("specslide") + 1 :]
    if ">" in words:
        words = words[: words.index(">")]
    _parse(words)


def _parse(words: list[str]) -> None:
    with root().make_context("specslide", list(words)) as context:
        group, rest = root(), [*context._protected_args, *context.args]
        while hasattr(group, "commands"):
            assert rest, "names no command"
            name, group, rest = group.resolve_command(context, rest)
            assert group is not None, f"there is no command {name}"
        inner = group.make_context(name, list(rest), parent=context)
        if name == "slurm":
            wrapped = inner.params["command"]
            _parse(wrapped[: wrapped.index("--")] if "--" in wrapped else wrapped)
