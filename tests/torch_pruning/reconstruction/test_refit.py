"""The wrap with the refit itself: what is lost comes back, and faults leave nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim_adapters.torch_pruning import denp, prune_copy, reconstructed
from tests.sweep_cases import network, people, splits
from tests.torch_pruning.reconstruction.refit_cases import Quota, held
from tests.zoo import ALL

QUIET: Any = {"progress": False, "measure": False}
SOME = ("residual", "dense block", "grouped", "depthwise", "attention", "separate heads", "squeeze-excite", "mlp")


def _far(case: Any, model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        outputs = [case.transform(net.eval()(x)) if case.transform else net.eval()(x) for net in (model, dense)]
    return float((outputs[0] - outputs[1]).square().mean())


@pytest.mark.parametrize("name", SOME)
def test_the_network_is_nearer_to_the_dense_one_than_without(name: str) -> None:
    """On samples that the refit didn't see."""
    case = ALL[name]
    dense = case.model()
    x, y = case.batch(300)
    fresh = case.batch(100, seed=9)[0]
    plain, refitted = copy.deepcopy(dense), copy.deepcopy(dense)
    case.pruner(plain, Quota()).step()
    pruner = case.pruner(refitted, Quota())
    with reconstructed(pruner, [(x, y)], **QUIET) as refit:
        pruner.step()
    assert refit.reconstruction is not None and any(layer.ridge for layer in refit.reconstruction.layers)
    assert _far(case, refitted, dense, fresh) < _far(case, plain, dense, fresh)
    assert max(map(len, str(refit).splitlines())) < 100


def test_channels_that_repeat_others_are_not_missed() -> None:
    """Twelve channels that six others can stand for: without these six the outputs are as before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias):
            parameter[6:] = 2 * parameter[:6]  # the smaller ones go
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(1)).double()
    dense = copy.deepcopy(model)
    magnitude = tp.importance.GroupMagnitudeImportance()
    pruner = tp.pruner.BasePruner(model, x[:1], importance=magnitude, pruning_ratio=0.5, ignored_layers=[model[2]])
    with reconstructed(pruner, [(x, torch.arange(400) % 3)], **QUIET):
        pruner.step()
    assert model[0].out_features == 6
    with torch.no_grad():
        now, before = model(x), dense(x)
    assert float((now - before).square().mean()) < 1e-6 * float(before.var(0).mean())


class _Interrupted:
    """A loader that is interrupted the n-th time it is gone through, after a batch."""

    def __init__(self, batches: list[Any], time: int) -> None:
        self._batches, self._left = batches, time

    def __iter__(self) -> Iterator[Any]:
        self._left -= 1
        for k, batch in enumerate(self._batches):
            if self._left == 0 and k == 1:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("time", [2, 3])
def test_an_interrupt_while_data_are_read_leaves_nothing(time: int) -> None:
    case = ALL["residual"]
    model = case.model()
    x, y = case.batch(60)
    pruner, before = case.pruner(model, Quota()), held(model)
    batches = _Interrupted([(x[:30], y[:30]), (x[30:], y[30:])], time)
    with pytest.raises(KeyboardInterrupt), reconstructed(pruner, batches, progress=False):
        pruner.step()
    assert held(model) == before
    assert pruner.pruning_history() == []


def test_a_network_that_is_random_in_eval_mode_is_refused_and_put_back() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            return self.head(x + 0.1 * torch.randn_like(x))

    model = Noisy()
    magnitude = tp.importance.GroupMagnitudeImportance()
    pruner = tp.pruner.BasePruner(
        model, torch.ones(1, 4), importance=magnitude, pruning_ratio=0.5, ignored_layers=[model.head]
    )
    before = held(model)
    loader = [(torch.randn(50, 4), torch.arange(50) % 3)]
    with pytest.raises(UnsupportedModelError), reconstructed(pruner, loader, **QUIET):
        pruner.step()
    assert held(model) == before


def test_prune_copy_refits_each_step() -> None:
    """The same as blocks by hand."""
    dense, data = network(), splits()
    magnitude = tp.importance.GroupMagnitudeImportance()
    pruned = prune_copy(dense, magnitude, data, 0.5, iterative_steps=2, random_state=4, progress=False)
    by_hand = network()
    pruner = tp.pruner.BasePruner(
        by_hand,
        torch.randn(2, 6),
        importance=magnitude,
        pruning_ratio=0.5,
        iterative_steps=2,
        iterative_pruning_ratio_scheduler=lambda ratio, steps: [0.0, 0.25, 0.5],
        ignored_layers=[by_hand[-1]],
    )
    for _ in range(2):
        with reconstructed(pruner, data.scoring, random_state=4, **QUIET):
            pruner.step()
    for mine, theirs in zip(pruned.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(InputError, match="reconstruct=True needs the split 'scoring'"):
        prune_copy(dense, magnitude, splits(scoring=None, train=None), 0.5, reconstruct=True, progress=False)


@pytest.mark.parametrize("layer", ["output", "threshold"])
def test_the_output_layer_is_recalibrated_at_last(layer: Any) -> None:
    dense, data = network(), splits()
    magnitude = tp.importance.GroupMagnitudeImportance()
    plain, fitted = (
        prune_copy(dense, magnitude, data, 0.8, recalibrate_output=value, progress=False) for value in (None, layer)
    )
    same = [torch.equal(a, b) for a, b in zip(plain.parameters(), fitted.parameters(), strict=True)]
    assert all(same[:-2])

    def right(model: nn.Module) -> float:
        x, y, _ = data.scoring.dataset.tensors
        return float((model(x).argmax(1) == y).double().mean())

    assert right(fitted) >= right(plain)
    with pytest.raises(InputError, match="recalibrate_output='bias'; expected 'output', 'threshold' or None"):
        prune_copy(dense, magnitude, data, 0.5, recalibrate_output="bias", progress=False)  # type: ignore[arg-type]


def test_recipes_offer_both(tmp_path: Any) -> None:
    """A run that goes on in a folder must be of the same settings."""
    loader = people(120, 4)
    options: Any = {
        "iterative_steps": 2,
        "final_epochs": 0,
        "fine_tuning": {"epochs": 0},
        "cut": {"share_per_class": 0.1},
        "progress": False,
    }
    plain = denp(network(), loader, **options)
    both: Any = {"reconstruct": True, "recalibrate_output": "output", "folder": tmp_path}
    refitted = denp(network(), loader, **options, **both)
    assert [p.shape for p in refitted.model.parameters()] == [p.shape for p in plain.model.parameters()]
    assert not torch.equal(refitted.model[3].weight, plain.model[3].weight)
    again = denp(network(), loader, **options, **both)
    for one, other in zip(again.model.parameters(), refitted.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="reconstruct"):
        denp(network(), loader, **options, folder=tmp_path)
    with pytest.raises(InputError, match="reconstruct='yes'; expected True or False"):
        denp(network(), loader, **options, reconstruct="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALL)
def test_every_layer_and_coupling(name: str) -> None:
    """What can be refitted is, what can't says why, and all of it fits on a screen."""
    case = ALL[name]
    model = case.model()
    pruner = case.pruner(model, Quota())
    scores: Any = {} if case.transform is None else {"output_transform": case.transform}
    (x, y), (fresh, of_fresh) = case.batch(60), case.batch(20, seed=9)
    loader, held_out = [(x[:40], y[:40]), (x[40:], y[40:])], [(fresh, of_fresh, torch.arange(20) % 3)]
    with reconstructed(pruner, loader, held_out=held_out, progress=False, **scores) as refit:
        pruner.step()
    assert refit.reconstruction is not None and refit.measured is not None
    assert [layer.module for layer in refit.reconstruction.layers] != []
    assert max(map(len, str(refit).splitlines())) < 100
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
