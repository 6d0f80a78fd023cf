"""Recurrent layers in eval mode: cuDNN would refuse their backward pass, so it is off where they are differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    AdversarialFineTuning,
    AdversarialProjection,
    BiasGradientDescent,
    ChannelGroup,
    ChannelPlace,
    ParityFineTuning,
    RandomPerturbation,
    ValidationSet,
    collect_damage,
    fine_tune,
    influence_on_bias,
    predict,
)
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.network.recurrent_layers import differentiable_recurrence

N = 22
X = torch.randn(N, 4, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, -1, 0] > 0).long()
PEOPLE: Any = [(X, Y, ["a", "b"] * (N // 2))]
LOADER: DataLoader[Any] = DataLoader(TensorDataset(X, Y), batch_size=9)
HIDDEN = ChannelGroup("hidden", 5, (ChannelPlace("head", "input", range(5), range(5), channel_axis=-1),))
QUIET: Any = {"progress": False}
FLAGS = ("enabled", "benchmark", "deterministic", "allow_tf32")


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


RUNS: dict[str, tuple[Callable[[nn.Module], Any], bool]] = {
    "collect_damage": (lambda n: collect_damage(n, PEOPLE, [HIDDEN], **QUIET), True),
    "squared_gradients": (lambda n: squared_gradients(n, PEOPLE, parameters=["head.weight"], **QUIET), True),
    "bias descent": (lambda n: BiasGradientDescent(epochs=1).repair(n, PEOPLE, **QUIET), True),
    "parity": (
        lambda n: ParityFineTuning(layers="all", penalties=(1.0,), epochs=1).repair(n, PEOPLE, **QUIET),
        True,
    ),
    "projection": (lambda n: AdversarialProjection(epochs=1).repair(n, PEOPLE, **QUIET), True),
    "adversarial": (
        lambda n: AdversarialFineTuning(epochs=1, critic_steps=1, actor_steps=1).repair(n, PEOPLE, **QUIET),
        True,
    ),
    "influence": (
        lambda n: influence_on_bias(
            n,
            LOADER,
            ValidationSet.from_loader(PEOPLE, **QUIET),
            measure="accuracy_score_difference",
            **QUIET,
        ),
        False,
    ),
    "perturbation": (lambda n: RandomPerturbation(trials=1).repair(n, PEOPLE, **QUIET), False),
    "predict": (lambda n: predict(n, PEOPLE, **QUIET), False),
    "fine_tune": (lambda n: fine_tune(n, LOADER, epochs=1, **QUIET), False),
}


def _flags() -> tuple[bool, ...]:
    return tuple(getattr(torch.backends.cudnn, name) for name in FLAGS)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of what some steps on 22 people reach
def test_cudnn_is_off_just_where_it_would_refuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen, before = set(), _flags()

    def look(module: nn.Module, *_: Any) -> None:
        differentiated = torch.is_grad_enabled() and not module.training
        assert _flags() == (not differentiated, *before[1:])
        seen.add(differentiated)

    torch.manual_seed(3)
    network = Recurrent(nn.GRU)
    # for every module, as a repair works on a copy without the caller's hooks
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: look(module) if isinstance(module, nn.GRU) else None
    )
    run, differentiates = RUNS[name]
    try:
        run(network)
    finally:
        handle.remove()
    assert (True in seen) is differentiates
    assert _flags() == before


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_only_recurrent_layers_in_eval_mode(kind: type[nn.RNNBase]) -> None:
    for network, off in ((Recurrent(kind).eval(), True), (Recurrent(kind), False), (nn.Linear(3, 2).eval(), False)):
        with differentiable_recurrence(network):
            assert torch.backends.cudnn.enabled is not off
    with pytest.raises(ValueError, match="of the network"), differentiable_recurrence(Recurrent(kind).eval()):
        raise ValueError("of the network")
    assert torch.backends.cudnn.enabled
    with torch.no_grad(), differentiable_recurrence(Recurrent(kind).eval()):
        assert torch.backends.cudnn.enabled


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_damage_on_a_device(kind: type[nn.RNNBase]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    network = Recurrent(kind).eval()
    expected = collect_damage(network, PEOPLE, [HIDDEN], **QUIET).curvature
    found = collect_damage(network.cuda(), PEOPLE, [HIDDEN], **QUIET).curvature
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
