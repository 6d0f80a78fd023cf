"""AIF360, imported without its notes on extras that aren't installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BinaryLabelDataset",
    "ClassificationMetric",
    "MulticlassLabelDataset",
    "Transformer",
    "compute_boolean_conditioning_vector",
]


@contextmanager
def _without_notes_on_extras() -> Iterator[None]:
    """Keep AIF360's notes on extras that aren't installed off the root logger, and a new handler off it, too.

    ``logging.warning`` sets up a logger that nobody has: a program that configures its own later would then not be
    heard. Other messages come through.
    """
    root = logging.getLogger()
    stand_in = None if root.handlers else logging.lastResort or logging.NullHandler()

    def is_worth_telling(record: logging.LogRecord) -> bool:
        return "will be unavailable" not in record.getMessage()

    root.addFilter(is_worth_telling)
    if stand_in is not None:
        root.addHandler(stand_in)
    try:
        yield
    finally:
        root.removeFilter(is_worth_telling)
        if stand_in is not None:
            root.removeHandler(stand_in)


with _without_notes_on_extras():
    try:
        from aif360.algorithms import Transformer
        from aif360.datasets import BinaryLabelDataset
        from aif360.datasets.multiclass_label_dataset import MulticlassLabelDataset
        from aif360.metrics import ClassificationMetric
        from aif360.metrics.utils import compute_boolean_conditioning_vector
    except ModuleNotFoundError as error:
        if error.name != "aif360":
            raise
        raise ModuleNotFoundError(
            "fairtrim_adapters.aif360 needs AIF360: pip install 'fairtrim[aif360]'", name="aif360"
        ) from None
