"""A whole study: its settings, stages, plan and page."""
