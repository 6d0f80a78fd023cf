"""The look at Torch-Pruning's map of channels: wrong maps are refused, right ones never, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from fairtrim_adapters.torch_pruning import MeanDamageImportance


class _Moved(nn.Module):
    """Channels change places between two layers, which Torch-Pruning takes for an elementwise operation."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.move(self.a(x).relu())).relu().mean((2, 3)))


class _Joined(nn.Module):
    """A norm over channels on one side of a concatenation."""

    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(10, 5, 1)
        self.norm, self.head = norm, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.cat([self.norm(self.a(x)), self.b(x)], 1)).relu().mean((2, 3)))


class _Tagger(nn.Module):
    """Scores at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


class _Encoder(nn.Module):
    """A float mask with more positions than channels beside the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 10, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.layer(self.embed(x), src_mask=mask).mean(1))


class _Keeping(nn.Module):
    """A running mean in a plain attribute, one reassigned and one changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.mean, self.level = torch.zeros(1), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        self.level.mul_(0.9).add_(0.1 * float(x.detach().mean()))
        return self.head(x - self.mean)


def _fit(model: Any, x: Tensor, loader: Any, **options: Any) -> tuple[tp.pruner.BasePruner, MeanDamageImportance]:
    importance = MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(
        model, x[:2], importance=importance, pruning_ratio=0.5, ignored_layers=[model.head], **options
    )
    return pruner, importance.fit(pruner, loader)


def _labels(n: int) -> Tensor:
    return torch.arange(n) % 3


@pytest.mark.parametrize(
    "move",
    [
        lambda h: torch.roll(h, 1, 1),
        lambda h: torch.roll(h, 2, 1),  # keeps the parity of every channel
        lambda h: h.flip(1),
        lambda h: h.view(len(h), 4, 2, *h.shape[2:])[:, [1, 0, 3, 2]].reshape(h.shape),
    ],
    ids=["roll 1", "roll 2", "flip", "pairs swapped"],
)
def test_channels_that_change_places_are_left(move: Callable[[Tensor], Tensor]) -> None:
    model, x = _Moved(move), torch.randn(9, 2, 4, 4)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match=r"Torch-Pruning maps the channels of 'a' to the wrong inputs of 'b'"):
        pruner, importance = _fit(model, x, [(x, _labels(9))])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert list(importance.plan_.unscored) == ["a"]
    pruner.step()
    assert (model.a.out_channels, model.b.out_channels) == (8, 3)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 6), nn.BatchNorm2d(6), lambda h: F.normalize(h, dim=1)], ids=["group", "batch", "length"]
)
def test_a_norm_beside_a_plain_branch(norm: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(9, 2, 4, 4)
    pruner, _ = _fit(_Joined(norm), x, [(x, _labels(9))])
    assert pruner.current_step == 0


def test_labels_at_positions_and_a_float_mask() -> None:
    x = torch.randn(6, 5, 4)
    _fit(_Tagger(), x, [(x, torch.randint(0, 3, (6, 5)))])
    _fit(_Tagger(), x, DataLoader(list(zip(x, torch.randint(0, 3, (6, 5)), strict=True)), batch_size=2))  # type: ignore[arg-type]
    tokens, model = torch.randn(6, 12, 3), _Encoder()
    _fit(model, tokens, [(tokens, _labels(6))], out_channel_groups={model.layer.self_attn: 2})


def test_plain_attributes_come_back() -> None:
    model, x = _Keeping().eval(), torch.randn(9, 4)
    _, importance = _fit(model, x, [(x, _labels(9))])
    assert bool(torch.isfinite(importance.selection_.scores).all())
    assert bool(torch.isfinite(model.mean).all()) and bool(torch.isfinite(model.level))


class _Stream(IterableDataset[Any]):
    """Gives every sample once, however often it is asked."""

    def __init__(self, n: int) -> None:
        self._rest = iter([(torch.randn(4), torch.tensor(k % 3)) for k in range(n)])

    def __iter__(self) -> Iterator[Any]:
        return self._rest


class _Wrapped:
    """Hands out one running generator."""

    def __init__(self, batches: list[Any]) -> None:
        self._running = iter(batches)
        self._n = len(batches)

    def __iter__(self) -> Iterator[Any]:
        return self._running

    def __len__(self) -> int:
        return self._n


@pytest.mark.parametrize("kind", ["stream", "running generator", "iterator", "list"])
def test_streams_lose_no_batch(kind: str) -> None:
    x = torch.randn(20, 4)
    batches = list(zip(x.split(5), _labels(20).split(5), strict=True))
    loader: Any = {
        "stream": DataLoader(_Stream(20), batch_size=5),
        "running generator": _Wrapped(batches),
        "iterator": iter(batches),
        "list": batches,
    }[kind]
    _, importance = _fit(_Keeping(), x, loader)
    assert importance.damage_.counts.tolist() == [20]
