"""TF32, half precision and autocast against the float64 oracle: totals of groups, ranks of channels, losses, refits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fairtrim import ChannelGroup, ChannelPlace, collect_damage
from fairtrim.damage.input_moments import input_moments
from fairtrim.damage.measured_change import measured_change
from fairtrim.oracle import measured_damage, oracle_damage
from fairtrim.reconstruction import Reader, reconstruct

N, N_CHANNELS = 60, (12, 17)
ROUNDINGS = 8
"""How many roundings, of the size of the type's, the weights, activations and gradients of the layers add up to."""

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.convolution, _aten.convolution_backward)
_MATRICES = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm)


class TF32(TorchDispatchMode):
    """Factors of products are rounded to ten bits where torch's flags allow it; sums stay in single precision."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        convolutions = func.overloadpacket in _CONVOLUTIONS and torch.backends.cudnn.allow_tf32
        if convolutions or (func.overloadpacket in _MATRICES and torch.get_float32_matmul_precision() != "highest"):
            args = tree_map(_rounded, args)
        return func(*args, **(kwargs or {}))


@contextmanager
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with TF32():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rounded(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    return ((value.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Autocast(nn.Module):
    """A network that casts by itself, as Lightning's and accelerate's do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = N_CHANNELS
    return nn.Sequential(
        *(nn.Conv2d(2, first, 3), nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 5)),
    ).eval()


X = torch.randn(N, 2, 7, 7, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 5
NAMES = ["a", "b", "b"] * (N // 3)
REMOVED = {"2": [0, 3, 4], "4": [1, 2, 8]}


def _groups(prefix: str = "") -> list[ChannelGroup]:
    return [
        ChannelGroup("2", 12, (ChannelPlace(f"{prefix}3", "input", range(12), range(12)),)),
        ChannelGroup("4", 17, (ChannelPlace(f"{prefix}7", "input", range(17), range(17), channel_axis=-1),)),
    ]


def _people(dtype: torch.dtype) -> list[Any]:
    return [(X[k : k + 25].to(dtype), Y[k : k + 25], NAMES[k : k + 25]) for k in (0, 25, 50)]


def _remove(network: nn.Module) -> None:
    with torch.no_grad():
        network.get_submodule("3").weight[:, REMOVED["2"]] = 0
        network.get_submodule("7").weight[:, REMOVED["4"]] = 0


def _moments(network: nn.Module, dtype: torch.dtype, prefix: str = "") -> list[Tensor]:
    with torch.no_grad(), input_moments(network, _groups(prefix)) as moments:
        network(X.to(dtype))
    return [reader.moments for reader in moments.read().readers]


def _refitted(dtype: torch.dtype, network: nn.Module, around: Callable[[], Any], prefix: str = "") -> Tensor:
    """Weights of the last layer, refitted where it reads 14 channels of 17."""
    pruned = copy.deepcopy(network)
    inner = pruned.network if prefix else pruned
    kept = [c for c in range(17) if c not in REMOVED["4"]]
    head = nn.Linear(len(kept), 5).to(dtype)
    with torch.no_grad():
        head.weight.copy_(inner[7].weight[:, kept])
        head.bias.copy_(inner[7].bias)
    inner[6] = nn.Sequential(nn.Flatten(), _Kept(kept))
    inner[7] = head
    with around():
        reconstruct(pruned, network, _people(dtype), [Reader(f"{prefix}7", range(5))], progress=False)
    return head.weight.detach().double()


class _Kept(nn.Module):
    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.channels]


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Kind:
    """How a network comes to compute roughly.

    ``eps``: of the type that factors of products are rounded to; ``around``: what the caller puts around the call.
    """

    eps: float
    make: Callable[[nn.Module], nn.Module] = lambda network: network
    dtype: torch.dtype = torch.float32
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    prefix: str = ""


_BFLOAT16 = torch.finfo(torch.bfloat16).eps
KINDS = {
    "float32": Kind(torch.finfo(torch.float32).eps),
    "TF32": Kind(2.0**-10, around=tf32),
    "float16": Kind(torch.finfo(torch.float16).eps, lambda network: network.half(), torch.float16),
    "bfloat16": Kind(_BFLOAT16, lambda network: network.bfloat16(), torch.bfloat16),
    "autocast": Kind(_BFLOAT16, around=lambda: torch.autocast("cpu", torch.bfloat16)),
    "autocast inside": Kind(_BFLOAT16, Autocast, prefix="network."),
}


@pytest.fixture(scope="module")
def exact() -> Any:
    network = _network().double()
    table = oracle_damage(network, _people(torch.float64), _groups())
    _, change = measured_damage(network, _people(torch.float64), _groups(), [REMOVED], progress=False)
    moments = _moments(network, torch.float64)
    return table, change[0], moments, _refitted(torch.float64, network, nullcontext)


@pytest.mark.parametrize("name", KINDS)
def test_agreement_with_double_precision(name: str, exact: Any) -> None:
    kind, (table, change, moments, refitted) = KINDS[name], exact
    network = kind.make(_network())
    with kind.around():
        found = collect_damage(network, _people(kind.dtype), _groups(kind.prefix), progress=False)
        of_moments = _moments(network, kind.dtype, kind.prefix)
    _remove(network.network if kind.prefix else network)
    with kind.around():
        measured = measured_change(network, _people(kind.dtype), found, progress=False).change
    totals = [t.curvature.sum(1) for t in (found, table)]
    assert float((totals[0] / totals[1] - 1).abs().max()) < kind.eps
    assert _distance(found.curvature, table.curvature) < 2 * kind.eps
    assert _distance(found.slope, table.slope) < ROUNDINGS * kind.eps
    for one, other in ((found.curvature, table.curvature), (found.slope, table.slope)):
        assert min(spearmanr(*of).statistic for of in zip(one, other, strict=True)) > 0.99
    assert float((measured - change).abs().max()) < kind.eps  # of losses of about 1.6
    single = torch.finfo(torch.float32).eps * N  # of sums over N samples
    assert max(_distance(*of) for of in zip(of_moments, moments, strict=True)) < 2 * kind.eps + single
    if name != "TF32":  # the CPU has none, so that a layer's check of what it computes doesn't allow for it
        assert _distance(_refitted(kind.dtype, kind.make(_network()), kind.around, kind.prefix), refitted) < (
            ROUNDINGS * kind.eps
        )
