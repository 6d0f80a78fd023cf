"""Parity-gradient pruning: the channels that feed the bias between sensitive groups go first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from fairtrim import DamageTable
from fairtrim.damage.parity_gradient import ParityGradient, parity_gradient
from fairtrim.measures.group_counts import canonical_measure
from fairtrim.selection import Selection, ranked
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan

from .channel_importance import ChannelImportance, ImportanceOptions, negative_values

__all__ = ["ParityGradientImportance"]


class ParityGradientImportance(ChannelImportance):
    """Marcinkevics, Ozkan, Vogt (MLHC 2022): remove first what the bias grows with, whatever that costs.

    The score is −sign(μ) b_c, b_c = Σ_n Σ_hw a_nc ∂μ/∂a_nc for the bias μ of probabilities: to first order what
    removing the channel adds to |μ|. It says nothing about performance, so prune in several steps, with a fit before
    each, and keep the network of the least bias among those whose balanced accuracy stays above a floor.
    ``negative_groups`` removes only what lowers |μ|.

    Args:
        measure: One of ``fairtrim.measures.group_counts.BIAS_MEASURES``; the paper has statistical parity and equal
            opportunity.
        privileged: The privileged sensitive groups; everybody else is the other side. None: of two groups their
            difference, of more the largest.
        options: See ``ImportanceOptions``: ``model``, ``loader``, ``normalizer``, and how the data are read.

    Attributes:
        gradient_: μ and its slope in every gate, at the last fit.
        selection_: Order and scores of the last fit.
        plan_: What Torch-Pruning was going to ask for.

    Raises:
        InputError: An argument is wrong.

    Example:
        >>> import torch_pruning as tp
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[2].weight)
        >>> x = torch.tensor([[3.0, 2.0], [0.0, 2.0], [0.0, 2.0]])  # the first input tells a from b
        >>> people = [(x, torch.tensor([1, 0, 1]), ["a", "b", "b"])]
        >>> importance = ParityGradientImportance()
        >>> pruner = tp.pruner.BasePruner(
        ...     model, x, importance=importance, pruning_ratio=0.5, ignored_layers=[model[2]]
        ... )
        >>> fitted = importance.fit(pruner, people, progress=False)
        >>> importance.gradient_.bias > 0
        True
        >>> pruner.step()
        >>> model[0].weight.tolist()
        [[0.0, 1.0]]
    """

    name = "parity-gradient"
    does = "removes first what the bias between sensitive groups grows with; says nothing about performance"
    when = "to compare with what was published; look at the accuracy, too"
    source = "Marcinkevics, Ozkan, Vogt, MLHC 2022"
    standing = "published"
    remark = "for more than two groups and classes ours"

    idle_options: ClassVar[Mapping[str, str]] = {
        "loss_fn": "it differentiates the bias, not a loss",
        "folder": "that keeps the sums of a damage pass, and there is none",
    }

    def __init__(
        self,
        measure: str = "demographic_parity_difference",
        privileged: Any = None,
        **options: Unpack[ImportanceOptions],
    ) -> None:
        self.measure, self.privileged = canonical_measure(measure), privileged
        super().__init__(**options)

    def _rank(
        self, model: nn.Module, plan: PruningPlan, loader: Iterable[Any], options: Mapping[str, Any]
    ) -> tuple[Selection, DamageTable | None]:
        found = parity_gradient(model, loader, plan.groups, self.measure, privileged=self.privileged, **options)
        self.gradient_: ParityGradient = found
        slopes = torch.cat([found.slopes[group.name] for group in plan.groups])
        values = -slopes if found.bias >= 0 else slopes
        return ranked(values, plan.columns, pools=plan.pools, floors=plan.floors), None

    def _negative(self) -> Tensor:
        return negative_values(self.selection_, self.plan_)
