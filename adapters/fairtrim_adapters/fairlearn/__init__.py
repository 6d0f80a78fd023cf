"""Torch networks for Fairlearn: its MetricFrame for loaders, and repaired networks beside its post-processors."""

from __future__ import annotations

from .measurements import measurements
from .post_processing import RepairedClassifier
from .reporting import (
    Comparison,
    compare_models,
    compare_predictions,
    default_metrics,
    metric_frame,
    plot_comparison,
)

__all__ = [
    "Comparison",
    "RepairedClassifier",
    "compare_models",
    "compare_predictions",
    "default_metrics",
    "measurements",
    "metric_frame",
    "plot_comparison",
]
