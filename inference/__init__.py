"""Slide or store + model -> heatmap. Takes from training only what a trained model needs to be loaded and run."""

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
