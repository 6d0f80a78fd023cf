"""A language model without the channels that tell pairs of sentences apart, measured chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fairtrim import InputError, SentencePairs, pair_differences
from fairtrim.arguments import require_number
from fairtrim.damage.gates import explicit_gates
from fairtrim.data.batches import iterate_batches
from fairtrim.data.padding import NOT_LABELLED
from fairtrim.measures.log_likelihood import sums_of_token_losses
from fairtrim.network.copied_network import copied_network
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.printing import Block, Printed, TextTable, figure, flag_lines, movement
from fairtrim.selection import Selection
from fairtrim_adapters.torch_pruning.graph.head_counts import tell_heads
from fairtrim_adapters.torch_pruning.graph.level_pruner import freeze, frozen_parameters, pruner_of_levels
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan
from fairtrim_adapters.torch_pruning.graph.pruner_options import PrunerOptions
from fairtrim_adapters.torch_pruning.graph.removing import remove_units
from fairtrim_adapters.torch_pruning.importances.pair_importance import PairDamageImportance

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PrunedForPairs", "prune_for_pairs"]


@dataclass(frozen=True)
class _Figures:
    """Of one network."""

    perplexity: float
    differences: Tensor

    @property
    def rms(self) -> float:
        return float(self.differences.square().mean().sqrt())

    @property
    def preferred(self) -> float:
        return 100 * float((self.differences > 0).double().mean())


@dataclass(frozen=True)
class PrunedForPairs(Printed):
    """A pruned language model, and what was measured on the way; print it.

    Attributes:
        model: The network, in eval mode.
        removed: Channels by dependency group, as they were numbered before.
        history: A row for the dense network, one for each chunk that was tried, and one for the network that is given
            back: ``removed`` channels, the ``predicted`` and the measured ``perplexity``, ``predicted rms`` of ΔLL on
            the pairs that channels were chosen by, ``rms`` on the held-out ones, the share of these whose first
            sentence is ``preferred`` in percent, and whether the chunk was ``kept``.
        flags: Sentences on what to look at.

    Example: see ``prune_for_pairs``, which makes one.
    """

    model: nn.Module
    removed: dict[str, list[int]]
    history: pd.DataFrame
    flags: tuple[str, ...] = ()

    def verdict(self) -> str:
        """What was removed, and what that changed of the held-out pairs and texts.

        Returns:
            One sentence.
        """
        first, last = self.history.iloc[0], self.history.iloc[-1]
        return (
            f"Without {int(last['removed']):,} channels the rms of ΔLL on held-out pairs "
            f"{movement(first['rms'], last['rms'])} nats, and the perplexity of held-out texts "
            f"{movement(first['perplexity'], last['perplexity'], digits=2)}; the first sentence is preferred in "
            f"{figure(last['preferred'], digits=1)} % of the pairs, was {figure(first['preferred'], digits=1)} %."
        )

    def blocks(self) -> Iterator[Block]:
        """The verdict, what was tried, and flags."""
        yield self.verdict()
        rows = [
            (
                figure(int(row["removed"])),
                "yes" if row["kept"] else "no",
                *(figure(row[name], digits=2) for name in ("predicted perplexity", "perplexity")),
                *(figure(row[name]) for name in ("predicted rms", "rms")),
                f"{figure(row['preferred'], digits=1)} %",
            )
            for _, row in self.history.iterrows()
        ]
        heads = ("removed", "kept", "predicted", "perplexity", "predicted", "rms of ΔLL", "first preferred")
        title = "Held-out texts and pairs; predicted: of the perplexity there, and of the rms on the pairs chosen by."
        yield TextTable(heads, rows, title=title)
        yield from flag_lines(self.flags)


@torch.inference_mode(False)  # there nothing has a slope
def prune_for_pairs(
    model: nn.Module,
    pairs: SentencePairs,
    texts: Iterable[Any],
    *,
    held_out: SentencePairs,
    held_out_texts: Iterable[Any],
    perplexity_rise: float = 0.05,
    agreeing: float = 0.75,
    chunks: int = 8,
    pruning_ratio: float = 0.05,
    ignored_layers: Sequence[str] = (),
    pruner_options: PrunerOptions = None,
    after_step: Callable[[nn.Module], Any] | None = None,
    progress: bool = True,
) -> PrunedForPairs:
    """Remove from a copy of a language model what tells pairs of sentences apart, as far as it holds on held-out ones.

    Channels go in the order of ``PairDamageImportance``, as long as it predicts a gain. They are closed chunk by chunk,
    and the held-out pairs and texts measured each time; a chunk that doesn't lower the rms of ΔLL there, or takes the
    perplexity beyond the bound, is opened again. What was kept is removed, and the pruned network measured. Ours.

    The held-out pairs have a part in choosing: for a figure to publish measure the network once more, on others.

    Args:
        model: The causal language model; untouched.
        pairs: By which channels are chosen.
        texts: Batches of (inputs, labels) with labels (N, T) as ``next_token_labels`` gives them, by which channels are
            chosen.
        held_out: Pairs by which chunks are kept or not.
        held_out_texts: Texts on which the perplexity is measured.
        perplexity_rise: By which the perplexity may rise there: 0.05 is 5 %.
        agreeing: Which share of the folds of the pairs has to gain; see ``fairtrim.criteria.PairDamage``.
        chunks: In how many the channels are tried.
        pruning_ratio: Share of the channels that may go at most.
        ignored_layers: Names of layers whose outputs stay; the layer that gives the scores is one of them anyway.
        pruner_options: Further arguments of ``BasePruner``, or a function of the network that gives them, such as
            ``fairtrim_adapters.huggingface.pruning_options``.
        after_step: What is done to the network after removing, such as ``fairtrim_adapters.huggingface.update_sizes``.
        progress: Show progress bars.

    Returns:
        The network and its figures; print it.

    Raises:
        InputError: An argument or the data is wrong, or nothing can be pruned.
        UnsupportedModelError: The network can't be scored, copied or pruned.

    Example:
        >>> class Bigrams(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.up, self.out = nn.Embedding(8, 4), nn.Linear(4, 16), nn.Linear(16, 8)
        ...     def forward(self, input_ids, attention_mask=None):
        ...         return self.out(torch.tanh(self.up(self.embed(input_ids))))
        >>> draws = torch.Generator().manual_seed(0)
        >>> pairs = [SentencePairs.of_tokens([[1, k % 5 + 3] for k in range(10)], [[2, k % 5 + 3] for k in range(10)])
        ...          for _ in range(2)]
        >>> ids = torch.randint(0, 8, (6, 5), generator=draws)
        >>> texts = [({"input_ids": ids}, torch.cat([ids[:, 1:], torch.full((6, 1), -100)], 1))]
        >>> done = prune_for_pairs(Bigrams(), pairs[0], texts, held_out=pairs[1], held_out_texts=texts, chunks=2,
        ...                        pruning_ratio=0.3, ignored_layers=["embed"], progress=False)
        >>> done.model.up.out_features == 16 - len(done.removed.get("up", []))
        True
    """
    import pandas as pd

    require_number("perplexity_rise", perplexity_rise, above=0, remedy=", such as 0.05 for 5 %")
    require_number("chunks", chunks, at_least=1, whole=True)
    require_number("pruning_ratio", pruning_ratio, above=0, below=1, remedy=", a share of the channels")
    if not isinstance(held_out, SentencePairs):
        raise InputError(f"held_out is a {type(held_out).__name__}; expected fairtrim.SentencePairs")
    for name, given in (("texts", texts), ("held_out_texts", held_out_texts)):
        if isinstance(given, Iterator) or not isinstance(given, Iterable):
            raise InputError(f"{name} is a {type(given).__name__}; expected a DataLoader or a list of batches")
    importance = PairDamageImportance(
        pairs, perplexity_rise=perplexity_rise, agreeing=agreeing, folds=min(8, len(pairs)), after_step=after_step
    )
    network = ScoredNetwork(copied_network(model).eval())
    with preserved_random_state(texts), preserved_random_state(held_out_texts):
        before = _measured(network, held_out, held_out_texts)
        batch = next(iter(iterate_batches(texts, network.device, max_batches=1, progress=False)))
        pruner = pruner_of_levels(
            network,
            batch,
            [pruning_ratio],
            importance,
            ignored_layers=ignored_layers,
            pruner_options={"global_pruning": True} if pruner_options is None else pruner_options,
            whole_layers=True,
        )
        frozen = frozen_parameters(network.model)
        importance.fit(pruner, texts, progress=progress)
        plan, table = importance.plan_, importance.pair_damage_
        chosen = _gaining(importance.selection_, sum(pool.quota or 0 for pool in plan.pools))
        rows = [_row(0, before, before.perplexity, _rms_of(table.loss, table.sensitive_groups), True)]
        kept: list[int] = []
        now = before
        for part in np.array_split(np.array(chosen, dtype=int), min(chunks, max(1, len(chosen)))):
            if not len(part):
                continue
            tried = [*kept, *part.tolist()]
            channels = _channels(tried, plan)
            closed = {group.name: torch.ones(group.size, device="cpu") for group in plan.groups}
            for name, units in channels.items():
                closed[name][units] = 0
            with explicit_gates(network.model, plan.groups, closed):
                figures = _measured(network, held_out, held_out_texts)
            good = figures.rms < now.rms and figures.perplexity <= before.perplexity * (1 + perplexity_rise)
            change = table.predict(channels)
            of_texts = [g for g, group in enumerate(table.sensitive_groups) if group[0] == "texts"]
            predicted = before.perplexity * _perplexity(float(change[of_texts].mean()))
            rms = _rms_of(table.loss + change, table.sensitive_groups)
            rows.append(_row(len(tried), figures, predicted, rms, good))
            if good:
                kept, now = tried, figures
        removed = _channels(kept, plan)
        for name, units in removed.items():
            remove_units(pruner.DG, pruner, plan, name, units)
        tell_heads(network.model, pruner)
        if after_step is not None:
            after_step(network.model)
        freeze(network.model, frozen)
        network.model.zero_grad()
        final = _measured(network, held_out, held_out_texts)
    last = rows[max(k for k, row in enumerate(rows) if row["kept"])]
    rows.append(_row(len(kept), final, last["predicted perplexity"], last["predicted rms"], True))
    return PrunedForPairs(network.model.eval(), removed, pd.DataFrame(rows), tuple(_flags(kept, chosen)))


def _gaining(selection: Selection, most: int) -> list[int]:
    """The first channels of the order, up to the first that is predicted to gain nothing."""
    order = selection.order.tolist()[:most]
    worse = [k for k, column in enumerate(order) if selection.change[column] >= 0]
    return order[: worse[0]] if worse else order


def _channels(columns: Sequence[int], plan: PruningPlan) -> dict[str, list[int]]:
    chosen: dict[str, list[int]] = {}
    for column in columns:
        name = plan.columns.layer_of(column)
        chosen.setdefault(name, []).append(column - plan.columns.section(name).start)
    return chosen


def _rms_of(squares: Tensor, groups: Sequence[Any]) -> float:
    of_pairs = [g for g, group in enumerate(groups) if group[0] == "pairs"]
    return math.sqrt(max(0.0, float(squares[of_pairs].mean())))


def _measured(network: ScoredNetwork, pairs: SentencePairs, texts: Iterable[Any]) -> _Figures:
    """One pass over the pairs and one over the texts, each token counted once."""
    sums = []  # of losses and of tokens, read at the end
    with preserved_model(network.model), torch.no_grad():
        differences = [
            pair_differences(network.model, batch.inputs).flatten().cpu().double()
            for batch in iterate_batches(pairs.loader(), network.device, progress=False)
        ]
        for batch in iterate_batches(texts, network.device, progress=False):
            scores = network.scores(batch, positions=True)
            counted = batch.target != NOT_LABELLED
            sums.append((sums_of_token_losses(scores, batch.target, counted).sum(), counted.sum()))
    losses, counts = (torch.stack(values).tolist() for values in zip(*sums, strict=True))
    total, n_tokens = sum(losses), sum(counts)
    if not n_tokens:
        raise InputError("held_out_texts hold no labelled token; expected texts of two tokens or more")
    return _Figures(_perplexity(total / n_tokens), torch.cat(differences))


def _perplexity(loss: float) -> float:
    """Of a token's mean loss; infinite where that is beyond all numbers, as in a network that closing broke."""
    return float(torch.tensor(loss, dtype=torch.float64, device="cpu").exp())


def _row(removed: int, figures: _Figures, perplexity: float, rms: float, kept: bool) -> dict[str, Any]:
    return {
        "removed": removed,
        "predicted perplexity": perplexity,
        "perplexity": figures.perplexity,
        "predicted rms": rms,
        "rms": figures.rms,
        "preferred": figures.preferred,
        "kept": kept,
    }


def _flags(kept: Sequence[int], chosen: Sequence[int]) -> Iterator[str]:
    if not chosen:
        yield "no channel is predicted to lower ΔLL within the bound: the network is the one that was given"
    elif not kept:
        yield "no chunk lowered ΔLL of held-out pairs within the bound: the network is the one that was given"
    else:
        yield "chunks were kept by the held-out pairs and texts, which flatters: measure once more on others"
