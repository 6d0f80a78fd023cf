"""Pair damage: the channels whose removal lets a language model tell pairs of sentences apart less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim import DamageTable, InputError, SentencePairs, collect_damage, pair_differences
from fairtrim.criteria import PairDamage
from fairtrim.damage import side_by_side
from fairtrim.selection import Pool, Selection, joint_selection, negative_columns
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan

from .channel_importance import ChannelImportance, ImportanceOptions

__all__ = ["PairDamageImportance"]


class PairDamageImportance(ChannelImportance):
    """Remove first what lowers |ΔLL| of pairs of sentences, the perplexity of the loader's texts bounded. Ours.

    Two passes: gates of ΔLL over the pairs, which give the mean of (ΔLL − Σ_c δs_c)² exactly to the order in which ΔLL
    is linear, and gates of the loader's loss. The pairs are read in folds; see ``fairtrim.criteria.PairDamage``. What
    few pairs say of many channels holds on others only in part: measure, as ``prune_for_pairs`` does.

    Args:
        pairs: By which channels are chosen.
        perplexity_rise: By which the perplexity is predicted to rise at most, before other channels are looked for.
        agreeing: Which share of the folds has to gain.
        folds: Of the pairs; 1 takes their mean at its word.
        options: See ``ImportanceOptions``: ``model``, ``loader`` (of texts), ``normalizer``, and how these are read.

    Attributes:
        pair_damage_: Both tables side by side, at the last fit.
        selection_: Order and scores of the last fit.
        plan_: What Torch-Pruning was going to ask for.

    Raises:
        InputError: An argument is wrong.

    Example:
        >>> pairs = SentencePairs.of_tokens([[1, 5]] * 8, [[2, 5]] * 8)
        >>> PairDamageImportance(pairs, perplexity_rise=0.02).criterion.perplexity_rise
        0.02
    """

    name = "pair-damage"
    does = "removes first what lowers the difference of log-likelihoods of pairs of sentences, perplexity bounded"
    when = "for a causal language model and pairs of sentences; prune_for_pairs uses it"
    source = "fairtrim"
    standing = "ours"

    def __init__(
        self,
        pairs: SentencePairs,
        *,
        perplexity_rise: float = 0.05,
        agreeing: float = 0.75,
        folds: int = 8,
        **options: Unpack[ImportanceOptions],
    ) -> None:
        if not isinstance(pairs, SentencePairs):
            raise InputError(f"pairs is a {type(pairs).__name__}; expected fairtrim.SentencePairs")
        self.pairs, self.criterion = pairs.in_folds(folds), PairDamage(perplexity_rise, agreeing)
        super().__init__(**options)

    def _rank(
        self, model: nn.Module, plan: PruningPlan, loader: Iterable[Any], options: Mapping[str, Any]
    ) -> tuple[Selection, DamageTable | None]:
        if options.get("folder") is not None:
            raise InputError("folder= keeps the sums of one pass, and there are two: leave folder= out")
        shown = {name: options[name] for name in ("progress", "distributed") if name in options}
        of_pairs = collect_damage(
            model,
            self.pairs.loader(),
            plan.groups,
            forward_fn=pair_differences,
            loss_fn=F.mse_loss,
            interactions=True,
            **shown,
        )
        of_texts = collect_damage(model, loader, plan.groups, interactions=True, **options)
        # of the texts' first order nothing is kept: its gains add up far beyond where they hold
        self.pair_damage_ = side_by_side({"pairs": of_pairs, "texts": of_texts.without_first_order()})
        progress = bool(options.get("progress", True))
        selection = joint_selection(
            self.pair_damage_, self.criterion, pools=plan.pools, floors=plan.floors, progress=progress
        )
        return selection, of_texts

    def _negative(self) -> Tensor:
        table = self.pair_damage_
        selection = joint_selection(table, self.criterion, pools=(Pool(tuple(table.sizes)),), floors=self.plan_.floors)
        return negative_columns(table.columns, selection, self.plan_.floors, joint=True)
