"""Classes of annotations: what they are called in a store, and which cut which where they overlap."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, field_validator

UNCLASSIFIED = "unclassified"
_MAX_NAME_BYTES = 200  # a column is a folder


class ClassRules(BaseModel):
    """What counts where areas of several classes overlap."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    order: tuple[str, ...] | None = None
    """Classes from the lowest to the uppermost: each is cut out of those before it and keeps a column. None: none,
    but `normal` out of `metastases` in CAMELYON17's files."""
    cut_out: tuple[str, ...] | None = None
    """Classes that are cut out of all others and get no column; "": none. None: QuPath's `Ignore*` and other classes
    that end with `*`, ASAP's groups exclude, exclusion, hole and holes, and `_2` in CAMELYON16's files."""

    @field_validator("order", "cut_out")
    @classmethod
    def _named_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is None:
            return None
        columns = tuple(column_name(name) for name in names if name.strip())
        if len(set(columns)) < len(columns):
            raise ValueError("a class is named twice")
        return columns


def column_name(name: str) -> str:
    """The store column of a class, a name that zarr can give to a folder.

    The name itself, if it can be; else what cannot is percent-encoded, so that no two classes share a column and
    `urllib.parse.unquote` gives the name back. Beyond 200 bytes it is cut and ends with a hash of the whole.
    """
    hidden = not name.strip(".") or name.startswith("__")  # zarr-python's own, or no name of a folder
    encoded = "".join(
        _percent(c) if (hidden and i == 0) or not c.isprintable() or c == "/" or _like_encoded(name[i : i + 3]) else c
        for i, c in enumerate(name)
    )
    encoded = encoded.replace(".", "%2E") if name == "zarr.json" else encoded
    whole = encoded.encode()
    if len(whole) <= _MAX_NAME_BYTES:
        return encoded
    return f"{whole[: _MAX_NAME_BYTES - 20].decode(errors='ignore')}%~{hashlib.sha256(whole).hexdigest()[:16]}"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _like_encoded(text: str) -> bool:
    return len(text) == 3 and text[0] == "%" and all(c in "0123456789abcdefABCDEF" for c in text[1:])
