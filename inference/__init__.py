"""Slide or store + model -> heatmap. Takes from training only what a trained model needs to be loaded and run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.ensemble import Ensemble, make_ensemble
    from inference.heatmap import HeatmapReport, make_heatmap
    from inference.predict import PredictConfig, Prediction, predict_slide
    from training import load_model

__all__ = [
    "Ensemble",
    "HeatmapReport",
    "PredictConfig",
    "Prediction",
    "load_model",
    "make_ensemble",
    "make_heatmap",
    "predict_slide",
]

_HOMES = {
    "Ensemble": "inference.ensemble",
    "HeatmapReport": "inference.heatmap",
    "PredictConfig": "inference.predict",
    "Prediction": "inference.predict",
    "load_model": "training",
    "make_ensemble": "inference.ensemble",
    "make_heatmap": "inference.heatmap",
    "predict_slide": "inference.predict",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when first asked for: pages and settings need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
