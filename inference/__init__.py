"""Slide or store + model -> heatmap. Takes from training only what a trained model needs to be loaded and run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiling.core.lazy import make_lazy

if TYPE_CHECKING:
    from inference.bag_heatmap import make_bag_heatmap
    from inference.config import EmbedConfig, EncoderConfig, PredictConfig
    from inference.embed import embed_slide
    from inference.encoders import TileEncoder, load_encoder
    from inference.ensemble import Ensemble, make_ensemble
    from inference.heatmap import make_heatmap
    from inference.models.load import load_model
    from inference.predict import predict_slide
    from inference.prediction import Prediction
    from inference.reports import EmbedReport, HeatmapReport
    from inference.saved_heatmap import Heatmap

__all__ = [
    "EmbedConfig",
    "EmbedReport",
    "EncoderConfig",
    "Ensemble",
    "Heatmap",
    "HeatmapReport",
    "PredictConfig",
    "Prediction",
    "TileEncoder",
    "embed_slide",
    "load_encoder",
    "load_model",
    "make_bag_heatmap",
    "make_ensemble",
    "make_heatmap",
    "predict_slide",
]

make_lazy(
    __name__,
    {
        "EmbedConfig": "inference.config",
        "EmbedReport": "inference.reports",
        "EncoderConfig": "inference.config",
        "Ensemble": "inference.ensemble",
        "Heatmap": "inference.saved_heatmap",
        "HeatmapReport": "inference.reports",
        "PredictConfig": "inference.config",
        "Prediction": "inference.prediction",
        "TileEncoder": "inference.encoders",
        "embed_slide": "inference.embed",
        "load_encoder": "inference.encoders",
        "load_model": "inference.models.load",
        "make_bag_heatmap": "inference.bag_heatmap",
        "make_ensemble": "inference.ensemble",
        "make_heatmap": "inference.heatmap",
        "predict_slide": "inference.predict",
    },
)
