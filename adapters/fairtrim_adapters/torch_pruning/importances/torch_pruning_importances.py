"""Torch-Pruning's own criteria that a sweep takes by name: the rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch_pruning as tp

from fairtrim.registry import Standing

from .random_importance import RandomImportance

__all__ = ["TORCH_PRUNING_CRITERIA", "TorchPruningCriterion"]


@dataclass(frozen=True)
class TorchPruningCriterion:
    """What ``fairtrim.registry.Described`` says of a method; ``importance(random_state=0)`` makes a new one."""

    name: str
    does: str
    when: str
    standing: Standing
    importance: Callable[..., tp.importance.Importance]

    source: ClassVar[str] = "Torch-Pruning"
    link: ClassVar[str] = "https://github.com/VainF/Torch-Pruning"
    remark: ClassVar[str] = ""


TORCH_PRUNING_CRITERIA = {
    criterion.name: criterion
    for criterion in (
        TorchPruningCriterion(
            "random",
            "removes channels at random; looks at nobody",
            "as what every criterion has to beat",
            "baseline",
            importance=RandomImportance,
        ),
        TorchPruningCriterion(
            "magnitude",
            "removes channels of small weights first; looks at no data",
            "as the usual rival, or where there are no data",
            "published",
            importance=lambda random_state: tp.importance.GroupMagnitudeImportance(),
        ),
        TorchPruningCriterion(
            "taylor",
            "removes first what changes everybody's loss least, to first order and weight by weight",
            "as the rival that looks at the loss, and at nobody's group",
            "published",
            importance=lambda random_state: tp.importance.GroupTaylorImportance(),
        ),
    )
}
"""By name, e.g. ``TORCH_PRUNING_CRITERIA["magnitude"].importance(random_state=0)``."""
