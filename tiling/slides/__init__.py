"""Whole-slide images: one module a way of reading them."""
