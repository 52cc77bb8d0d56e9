"""Labelled tiles: which there are, how they are split, drawn and loaded."""
