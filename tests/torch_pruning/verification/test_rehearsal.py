"""Removal on trial: a network that would not run, or be another one, is found out before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairtrim import InputError, UnsupportedModelError
from fairtrim_adapters.sweep import DataSplits, prune_copy
from fairtrim_adapters.torch_pruning import MeanDamageImportance, WorstGroupImportance, describe_layer, forget_layer
from fairtrim_adapters.torch_pruning.graph.undoing import Held, undone
from fairtrim_adapters.torch_pruning.verification.rehearsal import Rehearsal, left_out

N, D = 20, 12


class Odd(nn.Module):
    """A plain first layer, and behind a second something that Torch-Pruning's trace doesn't show."""

    def __init__(self, odd: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (
            nn.Linear(7, 10),
            nn.Linear(10, D),
            nn.Linear(D, D),
            nn.Linear(D, 3),
        )
        self.frozen = nn.Linear(7, D).requires_grad_(False)
        self.matrix = nn.Parameter(torch.randn(D, D) / 4)
        self.register_buffer("shift", torch.randn(D))
        self.attribute = torch.randn(D)
        self.aux = nn.Linear(D, 3)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.odd(self, x, self.second(self.first(x).relu()).relu()).relu())


def _with_aux(m: Any, x: Tensor, k: Tensor) -> Tensor:
    return k + 0.1 * m.aux(k).sum(1, keepdim=True) if m.training else k


def _without_graph(m: Any, x: Tensor, k: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(m.third(k))
    return k * gate


BREAKS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "frozen layer in a sum": lambda m, x, k: k + m.frozen(x),
    "the network's own input in a sum": lambda m, x, k: k + F.pad(x, (0, D - x.shape[1])),
    "buffer of a number for each channel": lambda m, x, k: k - m.shift,
    "plain tensor of a number for each channel": lambda m, x, k: k * m.attribute,
    "gate under no_grad": _without_graph,
    "product with a bare parameter": lambda m, x, k: k @ m.matrix,
    "weights of a layer read by another operation": lambda m, x, k: k + F.linear(x, m.frozen.weight),
    "a head that only training mode runs": _with_aux,
    "a branch on the number of channels": lambda m, x, k: k if k.shape[1] == D else 3 * k + 1,
    "an assertion on the number of channels": lambda m, x, k: k.view(len(k), D),
    "Fourier transform": lambda m, x, k: torch.fft.fft(k, dim=1).real,
    "cumulative sum": lambda m, x, k: k.cumsum(1),
    "product with a matrix of no layer": lambda m, x, k: (
        k @ torch.linspace(-1, 1, k.shape[1] ** 2).to(k).view(k.shape[1], -1)
    ),
    "differences of neighbours": lambda m, x, k: k - torch.roll(k, 1, 1),
    "sorted channels": lambda m, x, k: k.sort(1).values,
}


def _people(n: int = N, seed: int = 1) -> list[tuple[Tensor, Tensor, list[str]]]:
    x = torch.randn(n, 7, generator=torch.Generator().manual_seed(seed))
    return [(x, torch.arange(n) % 3, ["ab"[k % 2] for k in range(n)])]


def _odd(odd: Callable[[Any, Tensor, Tensor], Tensor]) -> Odd:
    torch.manual_seed(0)
    return Odd(odd).double()


def _pruner(model: Any, importance: Any, **options: Any) -> tp.pruner.BasePruner:
    arguments = {"pruning_ratio": 0.5, "ignored_layers": [model.head, model.aux, model.frozen], **options}
    return tp.pruner.BasePruner(model, _people()[0][0][:2].double(), importance=importance, **arguments)


def _doubled(people: list[Any]) -> list[Any]:
    return [(x.double(), y, a) for x, y, a in people]


def _state(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [(id(t), t._version, tuple(t.shape), t.requires_grad) for t in tensors],
        [(module.training, sorted(vars(module))) for module in model.modules()],
        [(getattr(m, "in_features", 0), getattr(m, "out_features", 0)) for m in model.modules()],
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("kind", BREAKS)
def test_a_group_that_can_t_go_is_left_and_the_network_runs(kind: str) -> None:
    model = _odd(BREAKS[kind]).train()
    importance = WorstGroupImportance(progress=False)
    pruner = _pruner(model, importance)
    model.train()
    before = _state(model)
    with pytest.warns(UserWarning, match="fairtrim leaves these dependency groups as they are: .*second"):
        importance.fit(pruner, _doubled(_people()))
    assert _state(model) == before
    assert "first" not in importance.plan_.unscored
    pruner.step()
    assert model.first.out_features == 5
    x = _doubled(_people())[0][0]
    for training in (False, True):
        assert model.train(training)(x).shape == (N, 3)


def test_a_branch_that_only_the_step_reaches_is_refused_before_anything_changes() -> None:
    model = _odd(lambda m, x, k: k if k.shape[1] > 8 else 10 * k + 3)
    importance = WorstGroupImportance(progress=False)
    pruner = _pruner(model, importance)
    before = _state(model)
    with pytest.raises(UnsupportedModelError, match="which was not so without fewer of them: it may branch"):
        importance.fit(pruner, _doubled(_people()))
    assert _state(model) == before
    with pytest.raises(RuntimeError, match="no scores yet"):
        pruner.step()
    collecting = WorstGroupImportance(model=model, loader=_doubled(_people()), progress=False)
    with pytest.raises(UnsupportedModelError, match="it may branch"):
        _pruner(model, collecting).step()
    assert _state(model)[:3] == before[:3]


@pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning", "ignore:None of the inputs:UserWarning")
def test_a_re_entrant_checkpoint_is_refused_in_words() -> None:
    model = _odd(lambda m, x, k: k + checkpoint(m.third, k, use_reentrant=True))
    importance = MeanDamageImportance(progress=False)
    pruner = _pruner(model, importance)
    before = _state(model)
    with pytest.raises(UnsupportedModelError, match="use_reentrant=False"):
        importance.fit(pruner, _doubled(_people()))
    assert _state(model) == before


@pytest.mark.parametrize("kind", ["buffer of a number for each channel", "a head that only training mode runs"])
def test_nothing_is_left_where_every_group_is_odd(kind: str) -> None:
    model = _odd(BREAKS[kind])
    importance = MeanDamageImportance(progress=False)
    pruner = _pruner(model, importance, ignored_layers=[model.head, model.aux, model.frozen, model.first])
    before = _state(model)
    with pytest.raises(UnsupportedModelError, match=r"no dependency group of this network can be scored.*second"):
        importance.fit(pruner, _doubled(_people()))
    assert _state(model) == before


TOLERATED: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "length": lambda m, x, k: F.normalize(k, dim=1),
    "softmax": lambda m, x, k: k.softmax(1),
    "functional layer norm": lambda m, x, k: F.layer_norm(k, k.shape[1:]),
    "mean": lambda m, x, k: k - k.mean(1, keepdim=True),
    "largest": lambda m, x, k: k / k.amax(1, keepdim=True).clamp_min(1e-6),
}


@pytest.mark.parametrize("kind", TOLERATED)
@pytest.mark.parametrize("seed", range(3))
def test_a_norm_that_the_host_doesn_t_know_is_no_fault(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = Odd(TOLERATED[kind]).double()
    importance = WorstGroupImportance(progress=False)
    pruner = _pruner(model, importance)
    importance.fit(pruner, _doubled(_people(seed=seed)))
    pruner.step()
    assert (model.first.out_features, model.second.out_features) == (5, 6)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(7, 10), nn.Linear(10, 3), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).relu()
        return self.head(h), self.other(h)


def test_a_head_that_is_not_in_the_loss_is_named() -> None:
    model = TwoHeads()
    importance = MeanDamageImportance(progress=False, output_transform=lambda out: out[0])
    pruner = tp.pruner.BasePruner(
        model, torch.randn(2, 7), importance=importance, pruning_ratio=0.5, ignored_layers=[model.head, model.other]
    )
    with pytest.warns(UserWarning, match=r"the loss doesn't depend on them: 'other' \(channels of 'body'\)"):
        importance.fit(pruner, _people())
    both = MeanDamageImportance(progress=False, output_transform=lambda out: torch.cat(out, 1))
    both.fit(pruner, _people())  # in the loss: nothing to say


class OnlyTrained(nn.Module):
    """A layer beside the others, that only training mode runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.beside = nn.Linear(7, 10), nn.Linear(10, 3), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.body(x).relu())
        return scores + self.beside(x) if self.training else scores


def test_layers_that_eval_mode_never_reaches_are_named() -> None:
    model = OnlyTrained()
    importance = MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(
        model, torch.randn(2, 7), importance=importance, pruning_ratio=0.5, ignored_layers=[model.head]
    )
    with pytest.warns(UserWarning, match=r"eval mode, .*, never reaches \['beside'\]"):
        importance.fit(pruner, _people())
    pruner.step()
    assert model.train()(torch.randn(4, 7)).shape == (4, 3) and model.body.out_features == 5


def test_a_network_that_never_ran_in_training_mode_is_said() -> None:
    class OnlyEval(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training, "export only"
            return super().forward(x)

    model = OnlyEval(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 3))
    importance = MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(
        model, torch.randn(2, 7), importance=importance, pruning_ratio=0.5, ignored_layers=[model[2]]
    )
    with pytest.warns(UserWarning, match="doesn't run in training mode .*AssertionError: export only"):
        importance.fit(pruner, _people())


def test_scores_drawn_at_random_in_eval_mode() -> None:
    model = _odd(lambda m, x, k: F.dropout(k, 0.5, training=True))
    importance = MeanDamageImportance(progress=False)
    pruner = _pruner(model, importance, ignored_layers=[model.head, model.aux, model.frozen, model.first])
    with pytest.raises(UnsupportedModelError, match="drawn at random"):
        importance.fit(pruner, _doubled(_people()))


def test_a_single_sample_in_front_of_a_norm_over_the_batch() -> None:
    model = nn.Sequential(nn.Linear(7, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)).eval()
    statistics = model[1].running_mean, model[1].running_mean._version
    importance = MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(
        model, torch.randn(2, 7), importance=importance, pruning_ratio=0.5, ignored_layers=[model[3]]
    )
    importance.fit(pruner, [(torch.randn(1, 7), torch.tensor([2]))])
    assert model[1].running_mean is statistics[0] and model[1].running_mean._version == statistics[1]
    pruner.step()
    assert model[0].out_features == 5


# Steps by other importances --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["buffer of a number for each channel", "a head that only training mode runs"])
def test_a_copy_that_would_not_run_is_refused_with_any_importance(kind: str) -> None:
    model = _odd(BREAKS[kind])
    data = DataSplits(test=_doubled(_people()), scoring=_doubled(_people()))
    before = _state(model)
    with pytest.raises(UnsupportedModelError, match="without the channels that a step took from first, second"):
        prune_copy(
            model,
            tp.importance.GroupMagnitudeImportance(),
            data,
            0.5,
            ignored_layers=["aux", "frozen"],
            progress=False,
        )
    assert _state(model)[:3] == before[:3]


class _InPlace(tp.pruner.BasePruningFunc):  # type: ignore[misc]
    """A pruner of one's own that gives a parameter other data in place of another parameter."""

    def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
        kept = [k for k in range(layer.weight.shape[0]) if k not in set(idxs)]
        layer.weight.data = layer.weight.data[kept]
        layer.kept = kept
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.weight.shape[0])

    get_in_channels = get_out_channels


class Scaled(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_pruner_of_one_s_own_that_changes_data_in_place() -> None:
    describe_layer(Scaled, channel_axis=-1, input_parameters={"weight": 0}, output_parameters={"weight": 0})
    try:
        model = nn.Sequential(nn.Linear(7, 10), Scaled(10), nn.ReLU(), nn.Linear(10, 3))
        weight, values = model[1].weight, model[1].weight.detach().clone()
        importance = MeanDamageImportance(progress=False)
        pruner = tp.pruner.BasePruner(
            model,
            torch.randn(2, 7),
            importance=importance,
            pruning_ratio=0.5,
            ignored_layers=[model[3]],
            customized_pruners={Scaled: _InPlace()},
        )
        importance.fit(pruner, _people())
        assert model[1].weight is weight and torch.equal(weight, values) and not hasattr(model[1], "kept")
        pruner.step()
        assert model(torch.randn(4, 7)).shape == (4, 3) and len(model[1].weight) == 5
    finally:
        forget_layer(Scaled)


class Sized(nn.Module):
    """Attention whose number of heads is in a config, which a script brings up to date after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(8, 7)
        self.head = nn.Linear(7, 3)
        self.config = type("Config", (), {})()
        self.config.parts = 4

    def forward(self, x: Tensor) -> Tensor:
        shape = len(x), 5, self.config.parts, 2
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))


def test_what_a_script_does_after_each_step_is_done_on_trial() -> None:
    x, y = torch.randn(N, 5, 7), torch.arange(N) % 3

    def fitted(model: Sized, **options: Any) -> tp.pruner.BasePruner:
        importance = MeanDamageImportance(progress=False)
        pruner = tp.pruner.BasePruner(
            model,
            x[:2],
            importance=importance,
            head_pruning_ratio=0.5,
            prune_num_heads=True,
            prune_head_dims=False,
            num_heads=dict.fromkeys((model.q, model.k, model.v), 4),
            ignored_layers=[model.head, model.out],
            out_channel_groups={},
            in_channel_groups={},
        )
        if options:
            options = {"after_step": lambda m: setattr(m.config, "parts", pruner.num_heads[m.q])}
        importance.fit(pruner, [(x, y)], **options)
        return pruner

    with pytest.raises(UnsupportedModelError, match="pass that function as after_step="):
        fitted(Sized())
    model = Sized()
    pruner = fitted(model, after_step=True)
    assert model.config.parts == 4 and pruner.num_heads[model.q] == 4
    pruner.step()
    model.config.parts = pruner.num_heads[model.q]
    assert model(x).shape == (N, 3) and model.config.parts == 2


# The parts ---------------------------------------------------------------------------------------------------


def test_undone_brings_the_very_tensors_back() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    pruner = tp.pruner.BasePruner(
        model,
        torch.randn(2, 2, 2, 2),
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[model[4]],
    )
    before, described = _state(model), str(pruner.DG.module2node)
    twin = copy.deepcopy(model)
    for error in (None, KeyboardInterrupt):
        try:
            with undone(Held(pruner.DG, pruner)):
                pruner.step()
                assert model[0].out_channels == 3 and len(pruner.pruning_history()) == 1
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            pass
        assert _state(model) == before and str(pruner.DG.module2node) == described
        assert pruner.current_step == 0 and pruner.pruning_history() == []
    with undone(Held(pruner.DG, pruner), only_on_error=True):
        pruner.step()
    assert model[0].out_channels == 3
    other = tp.pruner.BasePruner(
        twin,
        torch.randn(2, 2, 2, 2),
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[twin[4]],
    )
    other.step()
    for now, expected in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(now, expected)


def test_of_groups_that_fail_only_together_the_later_is_left() -> None:
    def attempt(names: Any) -> None:
        if {"a", "b"} <= set(names):
            raise UnsupportedModelError("a and b together")

    assert left_out(["a", "b", "c"], attempt) == {"b": "a and b together"}
    assert left_out(["a", "c"], attempt) == {}


def test_memory_that_runs_out_is_no_fault_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _odd(lambda m, x, k: k)
    importance = MeanDamageImportance(progress=False)
    pruner = _pruner(model, importance)

    def run(self: Rehearsal, *args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Rehearsal, "_run_pruned", run)
    before = _state(model)
    with pytest.raises(torch.OutOfMemoryError):
        importance.fit(pruner, _doubled(_people()))
    assert _state(model) == before


def test_a_wrong_label_is_the_data_s_fault() -> None:
    model = _odd(lambda m, x, k: k)
    importance = MeanDamageImportance(progress=False)
    x, _, a = _doubled(_people())[0]
    with pytest.raises(InputError, match="labels reach from 5 to 5"):
        importance.fit(_pruner(model, importance), [(x, torch.full((N,), 5), a)])


# Shortcuts that add channels of zeros --------------------------------------------------------------------------


class PaddedShortcut(nn.Module):
    """Shortcut "A" of residual networks on small images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Conv2d(2, 6, 1),
            nn.Conv2d(6, 7, 1),
            nn.Conv2d(7, 10, 1),
            nn.Linear(10, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        h = self.outer(self.inner(h).relu()) + F.pad(h, (0, 0, 0, 0, 2, 2))
        return self.head(h.relu().mean((2, 3)))


def test_channels_of_zeros_beside_others_are_named() -> None:
    model, x = PaddedShortcut(), torch.randn(N, 2, 3, 4)
    importance = MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(model, x[:2], importance=importance, pruning_ratio=0.5, ignored_layers=[model.head])
    with pytest.warns(UserWarning, match=r"zeros are added beside its channels \(F.pad with 4 channels"):
        importance.fit(pruner, [(x, torch.arange(N) % 3)])
    pruner.step()
    assert (model.stem.out_channels, model.inner.out_channels, model.outer.out_channels) == (6, 3, 10)
    assert model(x).shape == (N, 3)


# The way back ------------------------------------------------------------------------------------------------


class Counting(tp.pruner.BasePruner):  # type: ignore[misc]
    """A pruner of the caller's own, with a count of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.taken = [0]

    def step(self, interactive: bool = False) -> Any:
        self.taken[0] += 1
        return super().step(interactive)


def test_a_pruner_of_one_s_own_class_keeps_its_steps() -> None:
    model = _odd(lambda m, x, k: k)
    importance, other = MeanDamageImportance(progress=False), tp.importance.GroupMagnitudeImportance()
    x = _doubled(_people())[0][0]
    pruner = Counting(
        model,
        x[:2],
        importance=other,
        pruning_ratio=0.5,
        iterative_steps=2,
        ignored_layers=[model.head, model.aux, model.frozen],
    )
    importance.fit(pruner, _doubled(_people()))
    assert pruner.current_step == 0 and pruner.taken == [0] and pruner.importance is other
    pruner.importance = importance
    for width in (7, 5):
        importance.fit(pruner, _doubled(_people()))
        pruner.step()
        assert model.first.out_features == width
    assert pruner.taken == [2]


def test_what_after_step_writes_comes_back() -> None:
    model: Any = nn.Sequential(nn.Linear(7, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    model.sizes, model.names = [8], {"width": 8}
    model.config = type("Config", (), {})()
    model.config.sizes, model.config.width, model.config.array = [8], 8, np.array([8])
    before = _state(model)
    mean = model[1].running_mean.clone()

    def after_step(pruned: Any) -> None:
        width = pruned[0].out_features
        pruned.sizes[0] = pruned.names["width"] = pruned.config.sizes[0] = pruned.config.width = width
        pruned.config.array[0] = width
        pruned.eval()
        pruned[1].running_mean.add_(1)

    importance = MeanDamageImportance(progress=False, after_step=after_step)
    pruner = tp.pruner.BasePruner(
        model, torch.randn(2, 7), importance=importance, pruning_ratio=0.5, ignored_layers=[model[3]]
    )
    model.train()
    importance.fit(pruner, _people())
    assert _state(model)[:3] == before[:3] and torch.equal(model[1].running_mean, mean)
    config = model.config
    assert (model.sizes, model.names) == ([8], {"width": 8})
    assert (config.sizes, config.width, config.array.tolist()) == ([8], 8, [8])


def test_what_hides_a_layer_is_named_where_it_is_known() -> None:
    for kind, words in (
        ("frozen layer in a sum", r"doesn't see what is frozen: let \['frozen'\] require gradients"),
        ("a head that only training mode runs", r"also runs \['aux'\].*Let eval mode run these layers, too"),
    ):
        model = _odd(BREAKS[kind])
        importance = MeanDamageImportance(progress=False)
        with pytest.warns(UserWarning, match=words):
            importance.fit(_pruner(model, importance), _doubled(_people()))


def test_dead_channels_prove_nothing() -> None:
    """Closing them does nothing, nor does removing them, whatever lies behind."""
    torch.manual_seed(0)
    model = Odd(lambda m, x, k: k.cumsum(1)).double()
    with torch.no_grad():
        model.second.bias[[0, 4, 7, 9]] = -100
    importance = MeanDamageImportance(progress=False)
    pruner = _pruner(model, importance)
    with pytest.warns(UserWarning, match="as they are: second: "):
        importance.fit(pruner, _doubled(_people()))
