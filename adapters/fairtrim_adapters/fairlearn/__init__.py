"""Torch networks for Fairlearn: its MetricFrame for loaders, and repaired networks beside its post-processors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .class_sums import eodd, eopp0, eopp1
from .comparison import Comparison, compare_models, compare_predictions, metric_frame
from .frames import FrameOptions, NetworkFrameOptions, default_metrics
from .measurements import measurements
from .plotting import plot_comparison

if TYPE_CHECKING:
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


if not TYPE_CHECKING:  # where any name would pass as one of this module

    def __getattr__(name: str) -> Any:
        if name != "RepairedClassifier":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .post_processing import RepairedClassifier  # an estimator of scikit-learn, which takes a second to import

        return RepairedClassifier

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
