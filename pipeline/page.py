"""The page that shows a study: an HTML index beside its results, opening without a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from tiling.files import write_file
from tiling.versions import RESEARCH_USE

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } img { max-width: 100%; border: 1px solid #ddd; background: #fff; }
figcaption { font-size: .85rem; } .notice { background: #fff4d6; padding: .5rem .8rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its file, what it shows, and the file a click opens."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A headed part of the page."""

    title: str
    text: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()
    pictures: tuple[Picture, ...] = ()


def write_page(path: Path, title: str, sections: Iterable[Section]) -> None:
    """Write the page; files are linked relative to it. Raises OutputError."""
    body = "\n".join(_section(section, path.parent) for section in sections)
    write_file(
        path,
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="notice">{escape(RESEARCH_USE)}</p>\n{body}\n</body>\n</html>\n',
    )


def _section(section: Section, base: Path) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.rows:
        parts.append(_table(section.columns, section.rows))
    if section.pictures:
        parts.append(f'<div class="pictures">{"".join(_figure(p, base) for p in section.pictures)}</div>')
    return "\n".join(parts)


def _table(columns: tuple[str, ...], rows: tuple[tuple[object, ...], ...]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    lines = ("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _figure(picture: Picture, base: Path) -> str:
    link = quote(picture.path.relative_to(base).as_posix())
    caption = escape(picture.caption)
    return f'<figure><a href="{link}"><img src="{link}" alt="{caption}"></a><figcaption>{caption}</figcaption></figure>'
