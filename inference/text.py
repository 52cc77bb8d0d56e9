"""Names of slides and classes as text to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text made fit for one line of a picture, and for XML: what cannot be printed is replaced."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
