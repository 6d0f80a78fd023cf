"""Torch networks for Fairlearn: its MetricFrame for loaders, and repaired networks beside its post-processors."""

from __future__ import annotations

from .class_sums import eodd, eopp0, eopp1
from .comparison import Comparison, compare_models, compare_predictions, metric_frame
from .frames import FrameOptions, NetworkFrameOptions, default_metrics
from .measurements import measurements
from .plotting import plot_comparison
from .post_processing import RepairedClassifier

__all__ = [
    "Comparison",
    "FrameOptions",
    "NetworkFrameOptions",
    "RepairedClassifier",
    "compare_models",
    "compare_predictions",
    "default_metrics",
    "eodd",
    "eopp0",
    "eopp1",
    "measurements",
    "metric_frame",
    "plot_comparison",
]
