"""Tile probabilities as maps of the slide, regions and scores. Pure."""
