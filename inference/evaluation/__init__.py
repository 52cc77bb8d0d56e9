"""Heatmaps tested against what is known of slides."""
