"""Importance classes for Torch-Pruning that see which group of people a removal hurts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, Unpack, cast

import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import DamageTable, InputError, NotFittedError, collect_damage
from fairtrim.arguments import require_choice, require_number
from fairtrim.criteria import Criterion, GroupSaliency, MeanDamage, TailRisk, WorstGroup
from fairtrim.damage.channel_costs import ChannelCosts, Cost, weight_uses
from fairtrim.damage.input_moments import InputMoments, input_moments
from fairtrim.damage.loss_expansion import Curvature
from fairtrim.damage.moments import Interactions
from fairtrim.damage.weight_saliency import collect_weight_saliency
from fairtrim.processes import Processes
from fairtrim.selection import (
    Pool,
    Selection,
    compensated_selection,
    joint_selection,
    negative_columns,
    ranked,
    share_balanced_order,
    single_selection,
)
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan

from .channel_importance import ChannelImportance, ImportanceOptions
from .function_criterion import FunctionCriterion
from .pruning_report import asked_of_layers, predicted_change

__all__ = [
    "DamageImportance",
    "DamageOptions",
    "GroupSaliencyImportance",
    "MeanDamageImportance",
    "ShareBalancedImportance",
    "TailRiskImportance",
    "WorstGroupImportance",
]

FEWEST_PEOPLE_TO_WARN = 100
"""Of fewer people a prediction is a rough one anyway."""


class DamageOptions(ImportanceOptions, total=False):
    """Options of every importance that reads the damage table; see ``DamageImportance``.

    Attributes:
        selection: ``"joint"`` or ``"single"``.
        curvature: ``"exact"``, ``"empirical"`` or ``"auto"``.
        level: ``"channel"`` or ``"weight"``.
        shrinkage: ``"auto"``, a number of samples, or 0.
        first_order: Whether the ranking counts it, or ``"auto"``.
        interactions: ``"exact"``, ``"sketched"`` or ``"auto"``.
        compensated: Whether channels are judged by what is left once their readers are refitted.
        per: ``"channel"``, ``"parameters"`` or ``"macs"``.

    Example:
        >>> options: DamageOptions = {"selection": "single", "progress": False}
        >>> MeanDamageImportance(**options).selection
        'single'
    """

    selection: Literal["joint", "single"]
    curvature: Curvature
    level: Literal["channel", "weight"]
    shrinkage: Literal["auto"] | float
    first_order: Literal["auto"] | bool
    interactions: Literal["auto"] | Interactions
    compensated: bool
    per: Literal["channel"] | Cost


class DamageImportance(ChannelImportance):
    """Scores channels by a criterion of the damage table; the base of the named classes.

    Args:
        criterion: A criterion of ``fairtrim.criteria``, or a function (G, C) damages -> (C,).
        selection: ``"joint"`` (channels are removed together in the prediction; the score is the place in the
            order) or ``"single"`` (each channel by itself; the score is the criterion's value).
        curvature: ``"exact"``, ``"empirical"`` or ``"auto"`` (exact up to 20 classes).
        level: ``"channel"`` (gates) or ``"weight"`` (FairPrune's Σ½θ²h over each channel; single only).
        shrinkage: Pulls groups of few people toward everybody while channels are ranked: ``"auto"`` by the standard
            errors of their damages, a number κ of samples, or 0; see ``DamageTable.shrunk``.
        first_order: Whether the ranking counts the first order of the expansion: what the loss gains or loses by the
            smallest step. ``"auto"``: only where the loss has no curvature. Summed over many channels such gains are
            not kept, and greedy selection looks for them; the prediction of what is removed has both orders.
        interactions: How joint selection keeps pairs of channels: ``"exact"``, ``"sketched"`` (memory linear in the
            channels, with its error in the report), or ``"auto"``: exact up to 4,096 channels.
        compensated: Judge channels by what is left of their damage once the layers that read them are refitted, as
            ``fairtrim.reconstruction`` does; see ``fairtrim.selection.compensated_selection``. It takes the place of
            joint and single selection.
        per: What a channel's damage is held against: ``"channel"`` (each counts one), the ``"parameters"`` or the
            ``"macs"`` (multiply-accumulates of a sample) that go with it.
        options: See ``ImportanceOptions``: ``model``, ``loader``, ``normalizer``, and how the data are read.

    Attributes:
        damage_: The damage table of the last fit.
        selection_: Order and scores of the last fit.
        plan_: What Torch-Pruning was going to ask for.

    Raises:
        InputError: An argument is wrong.

    Example:
        >>> import torch
        >>> import torch_pruning as tp
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[2].weight)
        >>> x = torch.tensor([[3.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
        >>> people = [(x, x.sum(1, keepdim=True), ["a", "b", "b"])]  # no error: a channel costs its input squared
        >>> importance = DamageImportance(lambda damage: damage[1] - damage[0])
        >>> pruner = tp.pruner.BasePruner(
        ...     model, x, importance=importance, pruning_ratio=0.5, ignored_layers=[model[2]]
        ... )
        >>> fitted = importance.fit(pruner, people, loss_fn=nn.functional.mse_loss, progress=False)
        >>> importance.damage_["0"].round(decimals=3).tolist()  # of a and b
        [[9.0, 4.0], [0.0, 4.0]]
        >>> pruner.step()
        >>> model[0].weight.tolist()  # 0 − 9 for the first, 4 − 4 for the second
        [[0.0, 1.0]]
    """

    def __init__(
        self,
        criterion: Criterion | Callable[[Tensor], Tensor],
        *,
        selection: Literal["joint", "single"] = "joint",
        curvature: Curvature = "auto",
        level: Literal["channel", "weight"] = "channel",
        shrinkage: Literal["auto"] | float = 0.0,
        first_order: Literal["auto"] | bool = "auto",
        interactions: Literal["auto"] | Interactions = "auto",
        compensated: bool = False,
        per: Literal["channel"] | Cost = "channel",
        **options: Unpack[ImportanceOptions],
    ) -> None:
        require_choice("compensated", compensated, (True, False))
        require_choice("per", per, ("channel", "parameters", "macs"))
        require_choice("interactions", interactions, ("auto", "exact", "sketched"))
        require_choice("selection", selection, ("joint", "single"))
        require_choice("curvature", curvature, ("exact", "empirical", "auto"))
        require_choice("level", level, ("channel", "weight"))
        if level == "weight" and selection == "joint" and not compensated:
            raise InputError("level='weight' has no interactions between channels; use selection='single' with it")
        if interactions != "auto" and selection == "single":
            raise InputError(f"interactions={interactions!r} would have no effect: selection='single' has none")
        require_choice("first_order", first_order, ("auto", True, False))
        if compensated:
            _check_compensated(selection, level, first_order, interactions, options)
        if shrinkage != "auto":
            require_number("shrinkage", shrinkage, at_least=0, remedy=" (samples), or 'auto'")
        super().__init__(**options)
        self.criterion = criterion if isinstance(criterion, Criterion) else FunctionCriterion(criterion)
        self.selection, self.curvature, self.level, self.shrinkage = selection, curvature, level, shrinkage
        self.interactions, self.first_order = interactions, first_order
        self.compensated, self.per = compensated, per

    @property
    def damage_(self) -> DamageTable:
        """The damage table of the last fit."""
        if not hasattr(self, "_table"):
            raise NotFittedError("there is no damage table yet; call importance.fit(pruner, loader) first")
        return cast(DamageTable, self._table)

    def _rank(
        self, model: nn.Module, plan: PruningPlan, loader: Iterable[Any], options: Mapping[str, Any]
    ) -> tuple[Selection, DamageTable]:
        self._check_plan(plan)
        collect: dict[str, Any] = {"curvature": self.curvature, **options}
        if collect.get("folder") is not None:
            self._refuse_folder()
        processes = Processes(options.get("distributed"), model)
        uses = weight_uses(model) if self.per == "macs" else nullcontext()
        moments = self._input_moments(model, plan, options) if self.compensated else nullcontext()
        with uses as counted, moments as watched:
            if self.level == "channel":
                pairs: bool | Interactions = self.selection == "joint" and not self.compensated
                if pairs and self.interactions != "auto":
                    pairs = self.interactions
                collect["require_sensitive"] = self.criterion.needs_sensitive_groups
                table = collect_damage(model, loader, plan.groups, interactions=pairs, **collect)
            else:
                collect.pop("folder", None)
                table = collect_weight_saliency(model, loader, plan.groups, **collect)
        self._inputs = None if watched is None else watched.read()
        self._costs = None
        if self.per != "channel":
            n_samples = 0 if table.sample_losses is None else len(table.sample_losses)
            positions = None if counted is None else counted.per_sample(n_samples, processes)
            self._costs = ChannelCosts(model, plan.groups, self.per, positions)
        progress = bool(options.get("progress", True))
        selection = self._select(self._ranking_table(table), plan, plan.pools, progress=progress)
        if not self.compensated:
            asked, scores = asked_of_layers(selection, plan), selection.scores
            sections = {group.name: plan.columns.section(group.name) for group in plan.groups}
            _check_reach(table, {n: scores[s].argsort()[: asked.get(n, 0)].tolist() for n, s in sections.items()})
        return selection, table

    def _refuse_folder(self) -> None:
        reason = ""
        if self.level == "weight":
            reason = "level='weight' has none"
        elif self.compensated or self.per == "macs":
            what = "the moments of layers' inputs" if self.compensated else "how often weights are used"
            reason = f"it doesn't keep {what}, which this ranking needs too"
        if reason:
            raise InputError(f"folder= keeps the sums of gates; {reason}: leave folder= out")

    def _input_moments(
        self, model: nn.Module, plan: PruningPlan, options: Mapping[str, Any]
    ) -> AbstractContextManager[InputMoments]:
        # Hugging Face's linear layers, whose weights are (inputs, outputs)
        others = {n: 0 for n, m in model.named_modules() if type(m).__name__ == "Conv1D" and hasattr(m, "nf")}
        return input_moments(model, plan.groups, input_axes=others, distributed=options.get("distributed"))

    def _ranking_table(self, table: DamageTable, *, first_order: bool = False) -> DamageTable:
        """The table by which channels are ranked, where ``"auto"`` leaves it open with or without the first order."""
        counted = first_order if self.first_order == "auto" and not self.compensated else self.first_order is True
        if not counted and bool(table.curvature.any()):
            table = table.without_first_order()
        by_error = self.shrinkage == "auto"
        if by_error and table.standard_error is None:  # saliency of weights
            return table
        return table.shrunk(self.shrinkage) if self.shrinkage else table

    def _check_plan(self, plan: PruningPlan) -> None:
        """Refuse a kind of ranking that the scores don't support."""

    def _select(
        self, table: DamageTable, plan: PruningPlan, pools: tuple[Pool, ...], *, progress: bool = False
    ) -> Selection:
        given: dict[str, Any] = {"pools": pools, "floors": plan.floors, "costs": self._costs}
        if self._inputs is not None:
            return compensated_selection(table, self.criterion, self._inputs, **given, progress=progress)
        if self.selection == "joint":
            return joint_selection(table, self.criterion, **given, progress=progress)
        return single_selection(table, self.criterion, **given)

    def _negative(self) -> Tensor:
        # without the first order hardly anything is negative
        table = self._ranking_table(self.damage_, first_order=True)
        selection = self._select(table, self.plan_, (Pool(tuple(table.sizes)),))
        negative = negative_columns(table.columns, selection, self.plan_.floors, joint=self.selection == "joint")
        sections = {name: table.columns.section(name) for name in table.sizes}
        wanted = {n: negative[(negative >= s.start) & (negative < s.stop)] - s.start for n, s in sections.items()}
        if not self.compensated:
            _check_reach(self.damage_, {name: channels.tolist() for name, channels in wanted.items()})
        return negative


def _check_compensated(
    selection: str, level: str, first_order: Literal["auto"] | bool, interactions: str, options: Mapping[str, Any]
) -> None:
    """Options that mean nothing beside compensated=True."""
    if selection == "single":
        raise InputError(
            "compensated=True has an order of its own, of channels that go one by one: leave selection= out"
        )
    if level == "weight":
        raise InputError(
            "compensated=True is for the gates of channels; level='weight' has none: leave one of them out"
        )
    if first_order is True:
        raise InputError("compensated=True ranks by the second order alone; use first_order='auto' or False")
    if interactions != "auto":
        raise InputError(f"interactions={interactions!r} would have no effect: compensated=True needs none")
    if options.get("folder") is not None:
        raise InputError("folder= doesn't keep the moments that compensated=True needs: leave one of them out")


def _check_reach(table: DamageTable, removed: Mapping[str, Sequence[int]]) -> None:
    """Say so before anything is removed if what the expansion gives for the set can't come true."""
    never = table.impossible(predicted_change(table, removed)[0]) & (table.counts >= FEWEST_PEOPLE_TO_WARN)
    if bool(never.any()):
        groups = [name for name, flag in zip(table.sensitive_groups, never.tolist(), strict=True) if flag]
        warnings.warn(
            f"the {sum(map(len, removed.values()))} channels to be removed are beyond the reach of the prediction: for "
            f"the sensitive groups {groups} it gives a fall of more than their whole loss, which is impossible; prune "
            "in several steps, fitting before each, keep first_order='auto', and see in report() what was measured",
            stacklevel=5,
        )


class GroupSaliencyImportance(DamageImportance):
    """FairPrune: damage to the unprivileged minus β times damage to the privileged (arXiv 2203.02110).

    The form for channels. ``level="weight", selection="single"`` sums the published saliencies of weights over each
    channel; the default predicts the damage at the gates and removes channels jointly. What was published masks single
    weights: ``fairtrim.prune_by_group_saliency``.

    Args:
        privileged: The privileged sensitive groups; in the paper those with the higher accuracy.
        unprivileged: The unprivileged ones; by default all others.
        beta: β in (0, 1).
        options: See ``DamageImportance``.

    Example: see ``DamageImportance``; with ``privileged="a"`` its channels have 0 − 0.3 · 9 and 4 − 0.3 · 4.
    """

    name = "group-saliency"
    does = (
        "removes first what hurts the unprivileged little and the privileged much: harm to the privileged counts in "
        "favour, so a gap may close by levelling down"
    )
    when = "to compare with FairPrune, of two sides; look at each group's accuracy, not at the gap alone"
    source = "FairPrune: Wu, Zeng, Xu, Shi, Hu, MICCAI 2022"
    link = "https://arxiv.org/abs/2203.02110"
    standing = "published"
    remark = "for weights; the form for channels is ours"

    def __init__(
        self, privileged: Any, unprivileged: Any = None, beta: float = 0.3, **options: Unpack[DamageOptions]
    ) -> None:
        super().__init__(GroupSaliency(privileged, unprivileged, beta), **options)


class MeanDamageImportance(DamageImportance):
    """Mean damage over all people; needs no sensitive features, and doesn't see who is hurt.

    Args:
        options: See ``DamageImportance``.

    Example: see ``DamageImportance``; the mean over its three people is 3 and 4.
    """

    name = "mean-damage"
    does = "removes first what raises the loss of everybody least on average; blind to who is hurt"
    when = "where layers are refitted (compensated=True), or nobody's group is known"
    source = "fairtrim"
    standing = "ours"

    def __init__(self, **options: Unpack[DamageOptions]) -> None:
        super().__init__(MeanDamage(), **options)


class WorstGroupImportance(DamageImportance):
    """Damage of the sensitive group that is hurt most. Ours.

    A group of few people would often seem to be that group by chance: damages are pulled toward everybody's by their
    standard errors.

    Args:
        options: See ``DamageImportance``; ``shrinkage`` is ``"auto"`` here, 0 takes each group at its word.

    Example: see ``DamageImportance``; a, who is hurt most, loses 9 or 4.
    """

    name = "worst-group"
    does = "removes first what raises the loss of the most hurt sensitive group least"
    when = "without a refit, where 2 to about 10 groups have some hundred people each"
    source = "fairtrim"
    standing = "ours"

    def __init__(self, **options: Unpack[DamageOptions]) -> None:
        options.setdefault("shrinkage", "auto")
        super().__init__(WorstGroup(), **options)


class TailRiskImportance(DamageImportance):
    """Mean damage of the worst share α of the sensitive groups (conditional value at risk). Ours.

    Args:
        alpha: α in (0, 1].
        options: See ``DamageImportance``; ``shrinkage`` is ``"auto"`` here, 0 takes each group at its word.

    Example: see ``DamageImportance``; with ``alpha=1.0`` each group counts once, (9 + 0) / 2 and (4 + 4) / 2.
    """

    name = "tail-risk"
    does = "removes first what raises the loss of the worst-off share α of the sensitive groups least"
    when = "without a refit, where groups are many, crossed or small"
    source = "fairtrim"
    standing = "ours"

    def __init__(self, alpha: float = 0.5, **options: Unpack[DamageOptions]) -> None:
        options.setdefault("shrinkage", "auto")
        super().__init__(TailRisk(alpha), **options)


class ShareBalancedImportance(DamageImportance):
    """FairGRAPE's order: keep each group's share of a layer's importance (Lin, Kim and Joo, ECCV 2022).

    The order means something within one layer, so global and isomorphic pruning are refused.

    Args:
        options: See ``DamageImportance``; ``selection`` has no meaning here.

    Raises:
        InputError: ``selection`` is given.

    Example: see ``DamageImportance``; a has 13 of 17 parts of the layer's importance, so its first channel stays.
    """

    name = "share-balanced"
    does = "keeps the share that each sensitive group has in a layer's importance"
    when = "to compare with FairGRAPE"
    source = "FairGRAPE: Lin, Kim, Joo, ECCV 2022"
    standing = "published"
    remark = "for weights; the form for channels is ours"

    def __init__(self, **options: Unpack[DamageOptions]) -> None:
        if "selection" in options:
            raise InputError("ShareBalancedImportance selects by shares; leave selection= out")
        for option in ("compensated", "per"):
            if options.get(option, "channel") not in ("channel", False):
                raise InputError(
                    f"{option}={options.get(option)!r} would have no effect: channels are selected by shares; "
                    "use another importance, such as WorstGroupImportance, or leave it out"
                )
        options["selection"] = "single"
        super().__init__(MeanDamage(), **options)

    def _check_plan(self, plan: PruningPlan) -> None:
        if plan.shared_ranking:
            raise InputError(
                "ShareBalancedImportance ranks channels within a layer only, and this pruner ranks layers against "
                "each other; use global_pruning=False without isomorphic, or WorstGroupImportance"
            )

    def _select(
        self, table: DamageTable, plan: PruningPlan, pools: tuple[Pool, ...], *, progress: bool = False
    ) -> Selection:
        selection = share_balanced_order(table)
        if all(floor.channels is None for floor in plan.floors):
            return selection
        # behind a split every reader must keep a channel, or Torch-Pruning skips the layer
        order = ranked(selection.scores, table.columns, pools=pools, floors=plan.floors)
        return replace(order, change=selection.change)

    def negative_groups(self, pruner: tp.pruner.BasePruner) -> Iterator[tp.Group]:
        """An order of shares has no sign.

        Args:
            pruner: A pruner.

        Raises:
            InputError: Always.
        """
        raise InputError("ShareBalancedImportance has no negative scores; use GroupSaliencyImportance")
