"""Moments of what layers read, against rows written out."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, InputError, ParameterPlace, collect_damage
from fairtrim.damage.input_moments import InputMoments, ReaderMoments, input_moments
from fairtrim.processes import Processes
from tests.networks import CASES
from tests.shares import in_processes


def _place(module: str, n: int, axis: int = -1, repeat: int = 1, **more: Any) -> ChannelPlace:
    units = [c for c in range(n) for _ in range(repeat)]
    return ChannelPlace(module, "input", range(n * repeat), units, channel_axis=axis, **more)


def _read(model: nn.Module, groups: list[ChannelGroup], *batches: Tensor, **options: Any) -> Any:
    with input_moments(model, groups, **options) as moments, torch.no_grad():
        for batch in batches:
            model(batch)
    return moments.read()


def _only(inputs: Any) -> ReaderMoments:
    (reader,) = inputs.readers
    assert isinstance(reader, ReaderMoments)
    return reader


def _expected(rows: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    mean = rows.mean(0) if centred else torch.zeros_like(rows[0])
    return (rows - mean).T @ (rows - mean) / len(rows), mean


@pytest.mark.parametrize("behind", ["bias", "norm", "nothing"])
def test_moments_of_a_convolution(behind: str) -> None:
    """All positions count, and they are centred where a bias or a BatchNorm behind the layer takes up constants."""
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=behind == "bias")
    model = nn.Sequential(nn.Identity(), layer, nn.BatchNorm2d(4) if behind == "norm" else nn.ReLU()).double().eval()
    x = torch.randn(6, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    reader = _only(_read(model, [ChannelGroup("a", 3, (_place("1", 3, 1),))], x[:5], x[5:]))
    moments, mean = _expected(x.movedim(1, -1).flatten(0, -2), centred=behind != "nothing")
    torch.testing.assert_close(reader.moments[0], moments)
    torch.testing.assert_close(reader.mean[0], mean)
    torch.testing.assert_close(reader.squares[0], x.square().mean((0, 2, 3)))
    torch.testing.assert_close(reader.weight[0], layer.weight.detach().flatten(2))
    assert reader.columns.tolist() == [[0, 1, 2]]
    assert reader.outputs.tolist() == [[-1] * 4]


def test_what_layers_read_of_convolution_groups_parts_and_transposed_layers() -> None:
    grouped, transposed = nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose2d(4, 5, 2)
    model = nn.Sequential(nn.Identity(), grouped, transposed).double()
    parameters = (ParameterPlace("1.weight", 0, range(4), range(4)), ParameterPlace("2.weight", 0, range(4), range(4)))
    groups = [
        ChannelGroup("a", 3, (ChannelPlace("1", "input", (0, 1, 3, 4), (0, 2, 0, 1)),)),
        ChannelGroup("b", 4, (_place("2", 4, 1),), parameters),
    ]
    x = torch.randn(5, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = _read(model, groups, x).readers
    assert first.columns.tolist() == [[0, 2, -1], [0, 1, -1]]
    assert first.outputs.tolist() == [[3, 4], [5, 6]]
    rows = x.movedim(1, -1).flatten(0, -2)
    for block in range(2):
        moments, _ = _expected(rows[:, 3 * block : 3 * block + 3], centred=True)
        torch.testing.assert_close(first.moments[block], moments)
        torch.testing.assert_close(first.weight[block], grouped.weight.detach()[2 * block : 2 * block + 2].flatten(2))
    assert second.columns.tolist() == [[3, 4, 5, 6]]
    torch.testing.assert_close(second.weight[0], transposed.weight.detach().transpose(0, 1).flatten(2))


def test_positions_behind_a_flatten_share_one_mix() -> None:
    linear = nn.Linear(12, 2).double()
    model = nn.Sequential(nn.Flatten(), linear)
    x = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reader = _only(_read(model, [ChannelGroup("a", 4, (_place("1", 4, repeat=3),))], x[:4], x[4:]))
    torch.testing.assert_close(reader.moments[0], _expected(x.movedim(1, -1).flatten(0, 1), centred=True)[0])
    torch.testing.assert_close(reader.weight[0], linear.weight.detach().reshape(2, 4, 3))
    assert reader.columns.tolist() == [[0, 1, 2, 3]]
    # not in a row: one unit of several inputs
    scattered = ChannelGroup("a", 4, (ChannelPlace("1", "input", range(12), [0, 1, 2, 3] * 3, channel_axis=-1),))
    assert _only(_read(model, [scattered], x)).columns.tolist() == [[0, 1, 2, 3] * 3]


def test_linear_layers_whose_weights_are_turned() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x @ self.weight + self.bias
            return y

    layer, groups = Conv1D(), [ChannelGroup("a", 3, (_place("1", 3),))]
    x = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Identity(), layer)
    reader = _only(_read(model, groups, x, input_axes={"1": 0}))
    torch.testing.assert_close(reader.weight[0, :, :, 0].float(), layer.weight.detach().T)
    torch.testing.assert_close(reader.moments[0].float(), _expected(x.flatten(0, 1), centred=True)[0])
    told_nothing = _read(model, groups, x)
    assert told_nothing.readers == ()
    assert told_nothing.unmixed.tolist() == [True] * 3


def test_a_weight_that_is_computed_from_others() -> None:
    """Weight normalisation keeps two parameters and no weight; what comes out of them is the layer's matrix."""
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    hidden = ChannelGroup("0", 4, (ChannelPlace("1", "input", range(4), range(4), channel_axis=-1),))
    model = nn.Sequential(nn.Linear(2, 4), layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    with input_moments(model, [hidden]) as moments:
        model(torch.ones(5, 2))
    torch.testing.assert_close(moments.read().readers[0].weight[0, :, :, 0], layer.weight.detach().double())


def test_layers_that_cannot_make_up_for_a_channel() -> None:
    """A norm, a recurrent layer, a depthwise one, one that isn't called as a module, one that is too wide."""

    class Sneaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.recurrent, self.linear = nn.LayerNorm(3), nn.GRU(3, 2, batch_first=True), nn.Linear(3, 2)
            self.depthwise = nn.Conv1d(3, 6, 1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.recurrent(self.norm(x))[0]
            y: Tensor = hidden + x @ self.linear.weight.T + self.depthwise(x.transpose(1, 2)).transpose(1, 2)[..., :2]
            return y

    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    for name in ("norm", "recurrent", "linear", "depthwise"):
        axis = 1 if name == "depthwise" else -1
        inputs = _read(Sneaky(), [ChannelGroup("a", 3, (_place(name, 3, axis),))], x)
        assert inputs.readers == (), name
        assert inputs.unmixed.tolist() == [True] * 3


def test_a_layer_that_is_too_wide_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairtrim.damage.input_moments.MAX_INPUTS", 3)
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    groups = [ChannelGroup("a", 4, (_place("1", 4),)), ChannelGroup("b", 3, (_place("2", 3),))]
    inputs = _read(model, groups, torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    assert [reader.module for reader in inputs.readers] == ["2"]
    assert inputs.unmixed.tolist() == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("options", "alone"), [({}, True), ({"prune_num_heads": True, "head_pruning_ratio": 0.5}, False)]
)
def test_heads_are_made_up_for_and_their_dimensions_are_not(options: dict[str, Any], alone: bool) -> None:
    """What the other heads give may replace a head; nothing replaces a dimension of a query."""
    case = CASES["separate heads"]
    model = case.model()
    options = {"prune_head_dims": alone, **options}
    plan_groups = [g for g in _plan(case, model, options) if any(place.weight != 1 for place in g.places)]
    (group,) = plan_groups
    with input_moments(model, [group]) as moments, torch.no_grad():
        model(case.batch(5)[0])
    inputs = moments.read()
    assert inputs.unmixed.tolist() == [alone] * group.size
    assert len(inputs.readers) == (0 if alone else 1)
    if not alone:
        assert _only(inputs).columns.tolist() == [[0] * 4 + [1] * 4]


def _plan(case: Any, model: nn.Module, options: dict[str, Any]) -> list[ChannelGroup]:
    from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner

    return list(plan_of_pruner(case.pruner(model, **options)).groups)


def test_many_positions_are_drawn() -> None:
    """Of 900 positions 64 a sample: near the truth, the same again, and no draw from the global generator."""
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 1))
    groups = [ChannelGroup("a", 3, (_place("1", 3, 1),))]
    x = torch.randn(40, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    one, again, other = (_only(_read(model, groups, x, random_state=seed)).moments for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # variance 1 from 2,560 positions: a standard error of .03 beside, .02 off the diagonal
    torch.testing.assert_close(one[0], torch.eye(3, dtype=torch.float64), atol=0.15, rtol=0)


def test_moments_beside_a_damage_table_and_after_an_error() -> None:
    """One pass for both; no hook stays, whatever happens."""
    case = CASES["residual"]
    model, (x, y) = case.model(), case.batch(7)
    groups = case.plan(model).groups
    alone = collect_damage(model, [(x, y)], groups, progress=False)
    with input_moments(model, groups) as moments:
        table = collect_damage(model, [(x, y)], groups, progress=False)
    torch.testing.assert_close(table.damage, alone.damage)
    assert {reader.module for reader in moments.read().readers} == {"first", "second", "head"}
    with pytest.raises(RuntimeError, match=r"shape|size|channels"), input_moments(model, groups):
        model(x[:, :1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with (
        pytest.raises(InputError, match="names module"),
        input_moments(model, [ChannelGroup("a", 1, (_place("no", 1),))]),
    ):
        pass


def test_processes_add_up_what_they_read() -> None:
    """An empty share too; who sees that a norm is behind tells the others."""
    case = CASES["residual"]
    model, (x, _) = case.model(), case.batch(9)
    groups = list(case.plan(model).groups)
    together = _read(model, groups, x)

    def work(processes: Processes, rows: Tensor) -> Any:
        network = copy.deepcopy(model)
        moments = InputMoments(network, groups, {}, torch.Generator())
        with moments.watching(network), torch.no_grad():
            if len(rows):
                network(rows)
        moments.share(processes)
        return moments.read()

    for shares in ((x[:4], x[4:]), (x[:0], x)):
        for inputs in in_processes([partial(work, rows=rows) for rows in shares]):
            for reader, alone in zip(inputs.readers, together.readers, strict=True):
                torch.testing.assert_close(reader.moments, alone.moments)
                np.testing.assert_array_equal(reader.columns, alone.columns)
