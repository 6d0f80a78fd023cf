"""AIF360's datasets for torch networks, and fairtrim's post-processors as an AIF360 ``Transformer``.

All metrics are AIF360's: what comes out of here goes into its ``ClassificationMetric`` and stands beside its own
post-processors.
"""

from __future__ import annotations

from .datasets import DatasetTensors, LabelledDataset, from_tensors, to_tensors
from .post_processing import NetworkPostProcessing
from .predictions import predict_dataset, to_dataset
from .sides import Groups, to_validation_set
from .string_columns import strings_as_objects

__all__ = [
    "DatasetTensors",
    "Groups",
    "LabelledDataset",
    "NetworkPostProcessing",
    "from_tensors",
    "predict_dataset",
    "strings_as_objects",
    "to_dataset",
    "to_tensors",
    "to_validation_set",
]
