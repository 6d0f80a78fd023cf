"""Torch-Pruning's own criteria that a sweep takes by name: the rivals."""

from __future__ import annotations

from abc import abstractmethod

import torch_pruning as tp

from fairtrim.arguments import RandomState
from fairtrim.registry import Described

from .random_importance import RandomImportance

__all__ = ["TORCH_PRUNING_CRITERIA", "TorchPruningCriterion"]


class TorchPruningCriterion(Described):
    """A criterion of Torch-Pruning: what it is, and how to make its importance."""

    source = "Torch-Pruning"
    link = "https://github.com/VainF/Torch-Pruning"

    @staticmethod
    @abstractmethod
    def importance(random_state: RandomState) -> tp.importance.Importance:
        """Make a new importance.

        Args:
            random_state: Of what it draws, if it does.

        Returns:
            The importance.
        """


class _Random(TorchPruningCriterion):
    name = "random"
    does = "removes channels at random; looks at nobody"
    standing = "baseline"

    @staticmethod
    def importance(random_state: RandomState) -> tp.importance.Importance:
        return RandomImportance(random_state)


class _Magnitude(TorchPruningCriterion):
    name = "magnitude"
    does = "removes channels of small weights first; looks at no data"
    standing = "published"

    @staticmethod
    def importance(random_state: RandomState) -> tp.importance.Importance:
        return tp.importance.GroupMagnitudeImportance()


class _Taylor(TorchPruningCriterion):
    name = "taylor"
    does = "removes first what changes everybody's loss least, to first order and weight by weight"
    standing = "published"

    @staticmethod
    def importance(random_state: RandomState) -> tp.importance.Importance:
        return tp.importance.GroupTaylorImportance()


TORCH_PRUNING_CRITERIA: dict[str, type[TorchPruningCriterion]] = {
    criterion.name: criterion for criterion in (_Random, _Magnitude, _Taylor)
}
"""By name, e.g. ``TORCH_PRUNING_CRITERIA["magnitude"].importance(random_state=0)``."""
