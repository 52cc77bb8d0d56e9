"""A manifest drafted from slides and from the tables of other tools: CLAM, TRIDENT, STAMP and their like.

What a column is taken for, and what a row is matched to a slide by, is a guess: every guess is reported, what fits two
slides is refused, and what fits none is listed. Pure, but for reading the tables.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from pydantic import ValidationError

from tiling.core.errors import ConfigError, InputError
from tiling.manifest import ALIASES, ManifestRow, checked_slide_id, id_key, read_columns
from tiling.slides.files import SUFFIXES, slide_name

COLUMNS = ("slide_path", "slide_id", "case_id", "label", "split", "mpp", "annotation", "site", "scanner")
"""Of a manifest, in the order in which they are written; those that are empty are left out."""
_FEATURES = frozenset({".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".zarr", ".dcm"})  # what tables name for a slide
_SHOWN = 5


@dataclass
class Draft:
    """A drafted manifest: the slides' rows, and all that was guessed on the way to them."""

    rows: list[dict[str, str]]
    """By column, in the order of the slides; paths are absolute."""
    taken: list[tuple[str, str, str]] = field(default_factory=list)
    """(table, its column, the manifest's column); "" for what is not used."""
    matched: list[tuple[str, str, int]] = field(default_factory=list)
    """(table, by what its rows were matched, how many)."""
    without_slide: list[tuple[str, int, str]] = field(default_factory=list)
    """(table, row, what it names), of rows that fit none of the slides."""
    without_row: list[tuple[str, str]] = field(default_factory=list)
    """(table, slide_id), of slides that no row fits."""
    renamed: list[tuple[str, str]] = field(default_factory=list)
    """(path, slide_id), of slides whose name alone is no id of their own."""
    own_case: int = 0
    """Slides of which no table says the case: each is its own."""

    def labels(self) -> Counter[str]:
        """The number of slides of each label, "" for those without."""
        return Counter(row.get("label", "") for row in self.rows)

    def csv(self, folder: Path) -> str:
        """The manifest as it is written into that folder: paths below it are relative to it."""
        columns = [name for name in COLUMNS if any(row.get(name) for row in self.rows)]
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(columns)
        for row in self.rows:
            paths = {name: _below(row[name], folder) for name in ("slide_path", "annotation") if row.get(name)}
            lines.writerow([(row | paths).get(name, "") for name in columns])
        return text.getvalue()


def draft_manifest(slides: Sequence[Path], tables: Sequence[Path], *, label: str | None = None) -> Draft:
    """The manifest of those slides with what the tables say of them.

    Tables that name slides are joined by slide, then those that name only cases by case. `label` is the column that
    holds the label where it is not called so. Raises InputError naming the row for what fits two slides, for values
    that contradict each other, and for a table of which nothing fits; ConfigError for a `label` that no table has.
    """
    ids = _ids(slides)
    rows = [{"slide_path": str(path.absolute()), "slide_id": name} for path, name in zip(slides, ids, strict=True)]
    draft = Draft(rows)
    draft.renamed = [(str(p), name) for p, name in zip(slides, ids, strict=True) if name != slide_name(p)]
    read = [_Table.read(path, label) for path in tables]
    if label is not None and not any("label" in table.roles.values() for table in read):
        raise ConfigError("--label", f"no table has a column {label!r}", "name one of a table's columns")
    for table in sorted(read, key=lambda table: not table.names_slides):  # stable
        draft.taken += [(table.name, column, table.roles.get(column, "")) for column in table.columns]
        found = _by_slide(table, slides, draft) if table.names_slides else _by_case(table, draft)
        _join(table, found, draft)
    draft.own_case = sum("case_id" not in row for row in rows)
    first: dict[str, str] = {}
    for row in rows:
        row.setdefault("case_id", row["slide_id"])
        _require_writable(row)
        if (other := first.setdefault(id_key(row["slide_id"]), row["slide_path"])) != row["slide_path"]:
            raise InputError(row["slide_path"], f"has the slide_id {row['slide_id']!r} of {other}", "correct the table")
    return draft


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: list[str]
    roles: dict[str, str]
    """The manifest's column for a column."""
    rows: dict[int, dict[str, str]]
    """By number; the values of columns with a role, by the manifest's column."""

    @classmethod
    def read(cls, path: Path, label: str | None) -> _Table:
        """Raises InputError, also for two columns that could be the same of a manifest's."""
        columns, raw = read_columns(path)
        roles: dict[str, str] = {}
        for column in columns:
            role = ALIASES.get(column.lower(), column.lower())
            role = "label" if label == column else "" if role == "label" and label is not None else role
            if role in COLUMNS:
                if role in roles.values():
                    raise InputError(path, f"has two columns for {role}", "keep one of them")
                roles[column] = role
        places = {role: columns.index(column) for column, role in roles.items()}
        rows = {number: {role: values[i] for role, i in places.items()} for number, values in raw.items()}
        table = cls(path, columns, roles, rows)
        if not table.names_slides and "case_id" not in places:
            known = f"its columns are {', '.join(columns)}"
            raise InputError(path, f"names neither slides nor cases: {known}", "call one slide_id or case_id")
        return table

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def names_slides(self) -> bool:
        return not {"slide_path", "slide_id"}.isdisjoint(self.roles.values())

    def row(self, number: int) -> str:
        """Where a row is, for messages."""
        return f"{self.path}, row {number}"


Found = dict[int, tuple[str, list[int]]]
"""By the number of a row: what it was matched by, and the places of its slides."""


def _by_slide(table: _Table, slides: Sequence[Path], draft: Draft) -> Found:
    """The slide that each row names, by the first rule that finds any. Raises InputError where it finds several."""
    rules = [(how, key, _places(slides, keys)) for how, key, keys in _RULES]
    column = "slide_path" if "slide_path" in table.roles.values() else "slide_id"
    found: Found = {}
    for number, values in table.rows.items():
        named = values[column].replace("\\", "/")
        hits = ((how, next((at[k] for k in key(named, table.path.parent) if k in at), [])) for how, key, at in rules)
        how, places = next(((how, places) for how, places in hits if named and places), ("", []))
        if len(places) > 1:
            both = ", ".join(str(slides[place]) for place in places[:_SHOWN])
            what = f"{values[column]!r} may be any of {len(places)} slides: {both}"
            raise InputError(table.row(number), what, "write the slide's path in the table")
        if places and "/" in named and how != "path":
            how = f"{how}, in another folder"
        found[number] = how, places
    draft.without_slide += [(table.name, n, table.rows[n][column]) for n, (_, places) in found.items() if not places]
    return found


def _by_case(table: _Table, draft: Draft) -> Found:
    """The slides of the case that each row names: by their case, or else by their names.

    Raises InputError where a slide's name begins with several cases.
    """
    of_case: dict[str, list[int]] = {}
    for number, values in table.rows.items():
        of_case.setdefault(values["case_id"], []).append(number)
    found: Found = {number: ("", []) for number in table.rows}
    for place, row in enumerate(draft.rows):
        if case := row.get("case_id"):
            how, cases = "case_id", [case] if case in of_case else []
        else:
            how, cases = "beginning of the slide's name", [c for c in _beginnings(row["slide_id"]) if c in of_case]
        if len(cases) > 1:
            what = f"the slide {row['slide_id']} may be of any of the cases {', '.join(cases)}"
            raise InputError(table.path, what, "add a table of slides and their cases")
        for number in of_case[cases[0]] if cases else []:
            found[number] = how, [*found[number][1], place]
    draft.without_slide += [(table.name, n, table.rows[n]["case_id"]) for n, (_, at) in found.items() if not at]
    return found


def _join(table: _Table, found: Found, draft: Draft) -> None:
    """What the rows say becomes their slides'. Raises InputError for values that contradict each other."""
    said_by: dict[tuple[int, str], int] = {}
    both = {"slide_path", "slide_id"} <= set(table.roles.values())
    passed = {"slide_path"} if both else {"slide_path", "slide_id"}
    for number, (_, places) in found.items():
        for role, value in table.rows[number].items():
            if role in passed or not value:
                continue
            text = str((table.path.parent / value).absolute()) if role == "annotation" else value
            for place in places:
                row = draft.rows[place]
                first = said_by.setdefault((place, role), number)
                if role in row and row[role] != text and not (role == "slide_id" and first == number):
                    earlier = f"row {first}" if first != number else "another table"
                    what = f"says {role} {value!r} of {row['slide_id']}, and {earlier} {row[role]!r}"
                    raise InputError(table.row(number), what, "correct one of them")
                row[role] = text
    if not any(places for _, places in found.values()):
        named, slide = draft.without_slide[-len(found)][2], draft.rows[0]["slide_id"]
        what = f"names none of the slides: its first row names {named!r}, and the first slide is {slide!r}"
        raise InputError(table.path, what, "pass the table of these slides")
    counts = Counter(how for how, places in found.values() if places)
    draft.matched += [(table.name, how, count) for how, count in counts.items()]
    covered = {place for _, places in found.values() for place in places}
    draft.without_row += [(table.name, r["slide_id"]) for place, r in enumerate(draft.rows) if place not in covered]


# ----------------------------------------------------------------------------------------------- by what rows match


def _places(slides: Sequence[Path], keys: Callable[[Path], Iterable[str]]) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, path in enumerate(slides):
        for key in dict.fromkeys(keys(path)):
            found.setdefault(key, []).append(place)
    return found


def _tails(path: PurePath) -> Iterator[str]:
    """The ends of a path, the longest first, of two parts at least."""
    yield from ("/".join(path.parts[start:]) for start in range(len(path.parts) - 1))


def _stem(name: str) -> str:
    """A name without the ending of a slide or of what other tools make of one."""
    path = PurePath(PurePath(name).name)
    while path.suffix.lower() in SUFFIXES | _FEATURES | {".ome"}:
        path = path.with_suffix("")
    return path.name


def _first_part(name: str) -> list[str]:
    """A name up to its first dot, if it has one: TCGA's slides are called by barcode and UUID."""
    return [name.split(".")[0]] if "." in name else []


_Rule = tuple[str, Callable[[str, Path], Iterable[str]], Callable[[Path], Iterable[str]]]
_RULES: tuple[_Rule, ...] = (
    (
        "path",
        lambda named, folder: [str((folder / named).resolve()), *_tails(PurePath(named))],
        lambda path: [str(path.resolve()), *_tails(path.absolute())],
    ),
    ("file name", lambda named, _: [PurePath(named).name], lambda path: [path.name]),
    ("name without ending", lambda named, _: [_stem(named)], lambda path: [slide_name(path)]),
    ("name, whatever its case", lambda named, _: [_stem(named).casefold()], lambda path: [slide_name(path).casefold()]),
    ("name up to its first dot", lambda named, _: [_stem(named)], lambda path: _first_part(slide_name(path))),
)
"""How a row's text may name a slide: what it is called, the keys of the text and those of a slide; the surest first."""


def _beginnings(name: str) -> list[str]:
    """A name, and its beginnings up to a character that is neither letter nor digit."""
    return [name, *(name[: match.start()] for match in re.finditer(r"[\W_]", name) if match.start())]


# ------------------------------------------------------------------------------------------------------ ids and text


def _ids(slides: Sequence[Path]) -> list[str]:
    """An id for each slide: its name; where others have the same, with its folders, and its ending, before it."""
    root = Path(os.path.commonpath([path.absolute().parent for path in slides])) if slides else Path()
    folders = ["_".join(path.absolute().parent.relative_to(root).parts) for path in slides]
    plain = [_usable(slide_name(path)) for path in slides]
    placed = [_usable(f"{folder}_{name}".lstrip("_")) for folder, name in zip(folders, plain, strict=True)]
    whole = [_usable(f"{folder}_{path.name}".lstrip("_")) for folder, path in zip(folders, slides, strict=True)]
    ids, taken = list(plain), Counter(map(id_key, plain))
    for others in (placed, whole):
        ids = [other if taken[id_key(name)] > 1 else name for name, other in zip(ids, others, strict=True)]
        taken = Counter(map(id_key, ids))
    for name, path in zip(ids, slides, strict=True):
        if taken[id_key(name)] > 1:
            raise InputError(path, f"has the id {name!r}, as another slide has", "rename one of them")
    return ids


def _usable(name: str) -> str:
    """The name, or the nearest that can be an id."""
    try:
        return checked_slide_id(name)
    except ValueError:
        kept = re.sub(r"[^\w.()+-]+", "_", name).strip("._-+ ").encode()[:150].decode(errors="ignore").rstrip(".")
        return checked_slide_id(f"slide_{kept}")


def _require_writable(row: Mapping[str, str]) -> None:
    """Raise InputError for what a CSV cannot hold as it is, and for what is no manifest's row."""
    where = row["slide_path"]
    for name, text in row.items():
        if text != text.strip() or re.search(r"[\r\n\0]", text) or not _is_unicode(text):
            raise InputError(where, f"has a {name} that a table cannot hold: {text!r}", "rename it")
    try:
        ManifestRow.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(where, f"{first['loc'][0]}: {first['msg']}", "correct the table") from None


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode()) or True
    except UnicodeEncodeError:
        return False


def _below(path: str, folder: Path) -> str:
    """A path relative to a folder if it lies below it; else as it is."""
    here = folder.absolute()
    relative = str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
    return relative if relative == relative.strip() else path
