"""What channels cost, against the size of networks that were really pruned."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fairtrim import ChannelGroup, ChannelPlace, InputError
from fairtrim.comparison.network_size import network_size
from fairtrim.damage.channel_costs import ChannelCosts, weight_uses
from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.processes import Processes
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner
from tests.networks import CASES
from tests.shares import in_processes

# products of queries and keys belong to no weight
WEIGHTS_ONLY = {name: case for name, case in CASES.items() if name not in ("attention", "separate heads")}


def _costs(case: Any, model: nn.Module, kind: Any) -> tuple[ChannelCosts, Any]:
    pruner = case.pruner(model)
    plan = plan_of_pruner(pruner)
    x, _ = case.batch(3)
    with weight_uses(model) as uses, torch.no_grad():
        model(x[:2])
        model(x[2:])
    return ChannelCosts(model, plan.groups, kind, uses.per_sample(3)), (pruner, plan)


@pytest.mark.parametrize("kind", ["parameters", "macs"])
@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_the_running_total_is_the_size_of_the_pruned_network(name: str, kind: str) -> None:
    """Channels of all groups in turn, until few are left of each and its halves; the total falls by what each costs."""
    case = WEIGHTS_ONLY[name]
    model, (x, y) = case.model(), case.batch(2)
    costs, (_, plan) = _costs(case, model, kind)
    given = costs.copy()
    generator = np.random.default_rng(0)
    removed: dict[str, list[int]] = {group.name: [] for group in plan.groups}
    turns = [(group.name, c) for group in plan.groups for c in generator.permutation(group.size).tolist() if c % 4]

    def size() -> int:
        smaller = copy.deepcopy(model)
        cutter = case.pruner(smaller)
        roots = plan_of_pruner(cutter).roots
        for layer, channels in removed.items():
            idxs = np.flatnonzero(np.isin(roots[layer].units, channels)).tolist()
            if idxs:
                cutter.DG.get_pruning_group(roots[layer].module, roots[layer].pruning_fn, idxs).prune()
        return network_size(ScoredNetwork(smaller, None, case.transform), Batch(x, y, None, 0))[kind]

    assert costs.total == size()
    for number, place in enumerate(generator.permutation(len(turns)).tolist()):
        layer, channel = turns[place]
        column = plan.columns.section(layer).start + channel
        expected = costs.total - float(costs.each[column])
        costs.take(column)
        removed[layer].append(channel)
        assert costs.total == pytest.approx(expected)
        if number % 4 == 3 or number == len(turns) - 1:
            assert costs.total == pytest.approx(size())
    # a copy is counted down apart
    assert given.total > costs.total


def test_weights_of_attention_and_recurrent_layers_are_counted() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
            self.attention, self.recurrent = nn.MultiheadAttention(6, 2, batch_first=True), nn.LSTM(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.norm(self.embed(x))
            h = self.attention(h, h, h)[0]
            return self.recurrent(h)[0]  # type: ignore[no-any-return]

    model = Tokens()
    with weight_uses(model) as uses:
        model(torch.arange(15).reshape(3, 5) % 9)
    assert uses.per_sample(3) == {
        "attention.in_proj_weight": 5.0,
        "attention.out_proj.weight": 5.0,
        "recurrent.weight_ih_l0": 5.0,
        "recurrent.weight_hh_l0": 5.0,
    }
    assert not any(module._forward_hooks for module in model.modules())


def test_a_group_that_costs_nothing_is_dear_for_what_it_saves() -> None:
    """Weights that the network doesn't use: nothing divides by zero."""
    case = CASES["mlp"]
    model = case.model()
    costs = ChannelCosts(model, case.plan(model).groups, "macs", {})
    assert costs.total == 0
    assert bool((costs.each > 0).all())


def test_what_costs_refuse() -> None:
    case = CASES["mlp"]
    model = case.model()
    groups = case.plan(model).groups
    with pytest.raises(InputError, match="kind='latency'; expected one of 'parameters', 'macs'"):
        ChannelCosts(model, groups, "latency")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs uses="):
        ChannelCosts(model, groups, "macs")
    bare = ChannelGroup("0", 7, (ChannelPlace("2", "input", range(7), range(7), channel_axis=-1),))
    with pytest.raises(InputError, match=r"\['0'\] don't say which parameters go"):
        ChannelCosts(model, [bare], "parameters")


def test_processes_count_uses_together() -> None:
    """Samples of several lengths, unevenly shared: the mean over all."""
    model = nn.Sequential(nn.Linear(3, 2))

    def work(processes: Processes, lengths: list[int]) -> dict[str, float]:
        with weight_uses(copy.deepcopy(model)) as uses:
            for length in lengths:
                uses.note("0", model[0], (), torch.ones(1, length, 2))
        return uses.per_sample(len(lengths), processes)

    told = in_processes([partial(work, lengths=[4, 6]), partial(work, lengths=[]), partial(work, lengths=[2])])
    assert told == [{"0.weight": 4.0}] * 3
