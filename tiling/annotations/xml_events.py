"""XML of annotations, read event by event: any usual encoding, no document type and so no entity."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat

from tiling.core.errors import InputError

Attributes = dict[str, str]

_DECLARED = re.compile(rb"""\s*<\?xml\b[^>]{0,200}?\bencoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")
_MULTIBYTE = {  # those that expat cannot read: what XML calls them, and Python
    "gb18030": "gb18030", "gbk": "gb18030", "gb2312": "gb18030", "big5": "big5hkscs", "big5-hkscs": "big5hkscs",
    "shift_jis": "cp932", "windows-31j": "cp932", "euc-jp": "euc_jp", "iso-2022-jp": "iso2022_jp", "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
}  # fmt: skip


def read_events(path: Path, data: bytes, start: Callable[[str, Attributes], None], end: Callable[[str], None]) -> None:
    """Call `start` and `end` for each element of an XML document, in its order.

    Args:
        path: The file the document is from, to be named in errors.
        data: The document, in any usual encoding.
        start: Called with the tag and the attributes where an element begins.
        end: Called with the tag where it ends.

    Raises:
        InputError: If it is not XML, has a document type, or is not in the encoding it declares.
    """

    def refuse(*_: object) -> None:
        raise InputError(path, "has a document type, which no annotation needs", "save the annotations again")

    encoding = _encoding(data)
    try:
        _parse(data, encoding, start, end, refuse)
    except expat.ExpatError as error:
        raise InputError(path, f"is not XML ({error})", "save the annotations again") from error
    except (LookupError, ValueError) as error:  # expat's own for encodings, and a byte that is none of theirs
        raise InputError(path, f"cannot be read as {encoding}, its encoding", "save it as UTF-8") from error


def root_tag(data: bytes) -> str:
    """The tag of a document's outermost element, or its type; "" for what is no XML."""

    def found(tag: str, *_: object) -> None:
        raise _FoundError(tag)

    try:
        _parse(data, _encoding(data), found, lambda tag: None, found)
    except _FoundError as error:
        return error.tag
    except (expat.ExpatError, LookupError, ValueError):
        pass
    return ""


def number(text: str) -> float:
    """A coordinate, with a point or the comma of some countries. Raises ValueError."""
    return float(text.replace(",", "."))


class _FoundError(Exception):
    def __init__(self, tag: str) -> None:
        self.tag = tag


def _encoding(data: bytes) -> str:
    declared = _DECLARED.match(data)
    return declared[1].decode().lower() if declared else "utf-8"


def _parse(
    data: bytes,
    encoding: str,
    start: Callable[[str, Attributes], None],
    end: Callable[[str], None],
    doctype: Callable[..., None],
) -> None:
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler, parser.EndElementHandler = doctype, start, end
    # A str is taken as it is, whatever it declares.
    parser.Parse(data.decode(_MULTIBYTE[encoding]) if encoding in _MULTIBYTE else data, True)
