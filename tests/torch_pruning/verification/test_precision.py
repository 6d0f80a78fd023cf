"""Trials under TF32, which is simulated, and in half precision: right removals pass, wrong ones don't."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from fairtrim_adapters.torch_pruning.verification.verified import checked_step

_CONVOLUTIONS = (F.conv2d, torch.conv2d)


def ten_bits(value: Any) -> Any:
    """Rounded to 10 bits of the mantissa, ties to even, as tensor cores read float32 under TF32."""
    bits = value.detach().view(torch.int32)
    rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
    return value + (rounded - value).detach()


class TF32(TorchFunctionMode):
    """As on Ampere and later where it is allowed: products of factors of 10 bits, if a size suits tensor cores.

    What is closed and what is removed then go through different kernels: 8 channels suit, 7 don't.
    """

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always, self.calls = always, 0

    def _allowed(self, convolution: bool) -> bool:
        if self.always:
            return True
        try:
            return torch.backends.cudnn.allow_tf32 if convolution else torch.get_float32_matmul_precision() != "highest"
        except RuntimeError:  # settings of both kinds
            return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        convolution = func in _CONVOLUTIONS
        if (convolution or func is F.linear) and args[1].shape[1] % 4 == 0 and self._allowed(convolution):
            self.calls += 1
            args = (ten_bits(args[0]), ten_bits(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


class Deep(nn.Module):
    """Convolutions and linear layers in a row, and an operation between two of them."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.body = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.GELU())))
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        h = self.operation(self.up(self.body(self.stem(x)).mean((2, 3))))
        scores: Tensor = self.head(self.down(h).tanh())
        return scores


RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda h: h.softmax(1),
    "norm": lambda h: F.layer_norm(h, h.shape[1:]),
}
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "Fourier transform": lambda h: torch.fft.fft(h.float(), dim=1).real.to(h.dtype),
    "cumulative sum": lambda h: h.cumsum(1),
    "a branch on the size": lambda h: h if h.shape[1] == 16 else 3 * h + 1,
}


def prepared(operation: Callable[[Tensor], Tensor], kind: torch.dtype, importance: Any) -> tuple[Any, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Deep(operation).to(kind), torch.randn(9, 4, 5, 5).to(kind)
    return tp.pruner.BasePruner(
        model, x[:1], importance=importance, pruning_ratio=0.5, ignored_layers=[model.head]
    ), x  # fmt: skip


@pytest.mark.parametrize("kind", ["TF32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", [*RIGHT, *WRONG])
@pytest.mark.filterwarnings("ignore:.*fairtrim leaves these dependency groups")
def test_right_removals_pass_and_wrong_ones_don_t(name: str, kind: str) -> None:
    dtype = torch.float32 if kind == "TF32" else getattr(torch, kind)
    importance = WorstGroupImportance(progress=False)
    # even where no setting of torch turns TF32 off, as in kernels of a library of its own
    with TF32(always=True) if kind == "TF32" else nullcontext():
        pruner, x = prepared((RIGHT | WRONG)[name], dtype, importance)
        importance.fit(pruner, [(x, torch.arange(9) % 3, torch.arange(9) % 2)])
    assert list(importance.plan_.unscored) == (["up"] if name in WRONG else [])


def test_trials_see_no_tf32() -> None:
    pruner, x = prepared(RIGHT["softmax"], torch.float32, tp.importance.GroupMagnitudeImportance())
    exact = pruner.model(x).detach()
    with TF32() as simulated:
        rounded = pruner.model(x).detach()
        assert 0 < float((rounded - exact).abs().max()) < 0.05
        calls = simulated.calls
        checked_step(pruner, Batch(x, torch.arange(9) % 3, None, 0), ScoredNetwork(pruner.model))
        assert simulated.calls == calls
        pruner.model(x)
        assert simulated.calls > calls
