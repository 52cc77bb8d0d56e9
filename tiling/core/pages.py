"""HTML pages from Jinja2 templates: all text escaped, style and script inlined, nothing fetched.

Every page extends `templates/base.html`, whose content security policy runs the page's own script and style alone, by
their hashes. Knows nothing of slides, predictions or studies.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from tiling.core.files import write_changed
from tiling.core.text import printable
from tiling.core.versions import RESEARCH_USE

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """A picture of a page: its file, what it shows, and the file a click opens."""

    path: Path
    caption: str
    opens: Path | None = None
    """None: the picture itself."""


@dataclass(frozen=True)
class Link:
    """Words that open a file."""

    path: Path
    text: str


@dataclass(frozen=True)
class Section:
    """A headed part of a page."""

    title: str
    text: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()
    pictures: tuple[Picture, ...] = ()
    links: tuple[Link, ...] = ()


def write_page(path: Path, title: str, sections: Iterable[Section]) -> None:
    """Write a page of sections; files are linked relative to it. Raises OutputError."""

    def href(target: Path) -> str:
        """Relative; the template encodes it."""
        return target.relative_to(path.parent).as_posix()

    write_changed(path, render("sections.html", title=title, sections=tuple(sections), href=href))


def markdown_page(markdown: str, pictures: Sequence[str] = ()) -> str:
    """A page of a text in Markdown, whose first line is its title, and of pictures beside it, by their files' names.

    HTML, links and pictures within the text stay text: names of classes and cases come from users. The notice of
    research use, which every page has, is not said twice.
    """
    first, _, rest = markdown.partition("\n")
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    html = reader.render(rest.replace(f"**{RESEARCH_USE}**", "", 1))
    body = Markup(html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>"))
    return render("markdown.html", title=first.removeprefix("# "), body=body, pictures=pictures)


def render(template: str, *, title: str, folder: Path = TEMPLATES, style: str = "", **context: object) -> str:
    """A page, UTF-8; equal input gives equal text.

    Args:
        template: Its name in `folder`; it extends `base.html`. A file of the same name ending in `.css` or `.js` is
            inlined as the page's own style or script.
        title: Of the page, and its first heading.
        folder: Where the template lies, if it is not beside `base.html`.
        style: CSS that depends on the page's content: policies allow no style attributes.
        context: What the template shows. Values are escaped, and characters that cannot be printed are replaced.
    """
    style = "\n".join([_text("base.css"), _text(Path(template).with_suffix(".css").name, folder), style])
    script = _text(Path(template).with_suffix(".js").name, folder)
    policy = {"default-src": "'none'", "img-src": "'self' file: data:"}
    policy |= {f"{kind}-src": f"'sha256-{_digest(text)}'" for kind, text in (("style", style), ("script", script))}
    return _environment(folder).get_template(template).render(
        context,
        title=title,
        notice=RESEARCH_USE,
        policy="; ".join(" ".join(part) for part in policy.items()),
        style=Markup(style),
        script=Markup(script),
    )  # fmt: skip


@cache
def _environment(folder: Path) -> jinja2.Environment:
    def finalize(value: object) -> object:
        return value if isinstance(value, Markup) else printable(str(value))

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]), autoescape=True, finalize=finalize,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


@cache
def _text(name: str, folder: Path = TEMPLATES) -> str:
    path = folder / name
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
