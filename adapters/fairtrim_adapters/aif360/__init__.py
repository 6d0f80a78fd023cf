"""AIF360's datasets for torch networks, and fairtrim's post-processors as an AIF360 ``Transformer``.

All metrics are AIF360's: what comes out of here goes into its ``ClassificationMetric`` and stands beside its own
post-processors.
"""

from __future__ import annotations

from .datasets import (
    DatasetTensors,
    Groups,
    from_tensors,
    predict_dataset,
    to_dataset,
    to_tensors,
    to_validation_set,
)
from .post_processing import NetworkPostProcessing

__all__ = [
    "DatasetTensors",
    "Groups",
    "NetworkPostProcessing",
    "from_tensors",
    "predict_dataset",
    "to_dataset",
    "to_tensors",
    "to_validation_set",
]
