"""Heatmaps as files: one module a format."""
