"""Heatmaps as pages that people read."""
