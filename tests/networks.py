"""Small networks, one for each way in which channels are coupled. Sizes are pairwise different."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan, plan_of_pruner


class Residual(nn.Module):
    """Two producers of one set of channels, which is consumed twice; in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.first, self.first_norm = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.second, self.second_norm = nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.stem(x)))
        y = F.relu_(self.first_norm(self.first(x)))
        x = F.relu(x + self.second_norm(self.second(y)), inplace=True)
        return self.head(x.mean((2, 3)))


class Concatenation(nn.Module):
    """A consumer whose input holds the channels of three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.norm, self.mix, self.head = nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x).relu()
        x = self.norm(torch.cat([a, b, self.c(a)], 1)).relu()
        return self.head(self.mix(x).relu().mean((2, 3)))


class Split(nn.Module):
    """One producer whose channels go to two consumers by halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().split([self.a.in_channels, self.b.in_channels], 1)
        return self.head(torch.cat([self.a(a).relu(), self.b(b).relu()], 1).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate computed from the channels that it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(2, 6, 3), nn.Linear(6, 4), nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        gate = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block with fused query, key and value, token inputs (N, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv, self.project = (
            nn.Linear(3, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 24),
            nn.Linear(8, 8),
        )
        self.norm2, self.up, self.down, self.head = nn.LayerNorm(8), nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 3)
        self.num_heads = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (t.reshape(t.shape[0], t.shape[1], self.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        # a fixed scale: pruning head dimensions would change 1/√d, which no gate can know
        y = ((q @ k.transpose(2, 3)) * 0.5).softmax(-1) @ v
        x = x + self.project(y.transpose(1, 2).flatten(2))
        x = x + self.down(self.up(self.norm2(x)).relu())
        return self.head(x.mean(1))


class SeparateHeads(nn.Module):
    """Attention with a layer each for query, key and value; ``n_shared`` heads share a key and a value."""

    def __init__(self, n_shared: int = 1) -> None:
        super().__init__()
        self.embed, self.head, self.n_shared = nn.Linear(3, 7), nn.Linear(7, 3), n_shared
        self.query, self.project = nn.Linear(7, 8), nn.Linear(8, 7)
        self.key, self.value = nn.Linear(7, 8 // n_shared), nn.Linear(7, 8 // n_shared)
        self.num_heads = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        heads = self.num_heads, self.num_heads // self.n_shared, self.num_heads // self.n_shared
        q, k, v = (
            layer(x).reshape(x.shape[0], x.shape[1], n, -1).transpose(1, 2)
            for layer, n in zip((self.query, self.key, self.value), heads, strict=True)
        )
        k, v = (t.repeat_interleave(self.n_shared, 1) if self.n_shared > 1 else t for t in (k, v))
        y = ((q @ k.transpose(2, 3)) * 0.5).softmax(-1) @ v
        return self.head((x + self.project(y.transpose(1, 2).flatten(2))).mean(1))


def _separate_heads(model: Any) -> dict[str, Any]:
    return {"num_heads": {model.query: 2, model.key: 2 // model.n_shared, model.value: 2 // model.n_shared}}


class Shared(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.twice(self.twice(x).relu()).relu())


class LogitsOutput:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Wrapped(nn.Module):
    """Returns its scores in a tuple, a dict or an object."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.body, self.head, self.form = nn.Linear(4, 5), nn.Linear(5, 3), form

    def forward(self, x: Tensor) -> Any:
        logits = self.head(self.body(x).relu())
        return {"tuple": (logits, x), "dict": {"logits": logits}, "object": LogitsOutput(logits)}[self.form]


def _plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


def _depthwise() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, groups=6, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 5, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def _grouped() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 5, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def _group_norm() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def _one_dimensional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 5, 3),
        nn.PReLU(5),
        nn.ConvTranspose1d(5, 6, 2, stride=2),
        nn.ReLU(),
        nn.Conv1d(6, 4, 3),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@dataclass(frozen=True)
class Case:
    """A network and the shape of one sample.

    Attributes:
        make: Builds it.
        shape: Shape of a sample.
        exact: Whether closing gates equals removing channels; not where a LayerNorm or GroupNorm takes its
            statistics over channels.
        options: Further arguments of the pruner, given the network.
        transform: output_transform, where one is needed.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    exact: bool = True
    options: Callable[[Any], dict[str, Any]] = field(default=lambda model: {})
    transform: Callable[[Any], Tensor] | None = None

    def model(self, seed: int = 0) -> nn.Module:
        """The network in float64, its norms with statistics that are not the initial ones."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make().double()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
                    nn.init.uniform_(module.running_mean, -0.3, 0.3)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)
                if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
                    if module.weight is not None:
                        nn.init.uniform_(module.weight, 0.5, 1.5)
                    if getattr(module, "bias", None) is not None:
                        nn.init.uniform_(module.bias, -0.5, 0.5)
        return model

    def head(self, model: nn.Module) -> nn.Module:
        return model[-1] if isinstance(model, nn.Sequential) else model.head

    def pruner(self, model: nn.Module, importance: Any = None, **options: Any) -> tp.pruner.BasePruner:
        arguments = {
            "importance": importance,
            "ignored_layers": [self.head(model)],
            "pruning_ratio": 0.4,
            "in_channel_groups": {},
            "out_channel_groups": {},
            "output_transform": self.transform,
            **self.options(model),
            **options,
        }
        return tp.pruner.BasePruner(model, torch.randn(2, *self.shape, dtype=torch.float64), **arguments)

    def plan(self, model: nn.Module) -> PruningPlan:
        return plan_of_pruner(self.pruner(model))

    def batch(self, n_samples: int, n_classes: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n_samples, *self.shape, dtype=torch.float64, generator=generator)
        return x, torch.randint(0, n_classes, (n_samples,), generator=generator)


SHARED_KEYS = Case(lambda: SeparateHeads(2), (5, 3), exact=False, options=_separate_heads)

CASES = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "plain": Case(_plain, (2, 6, 6)),
    "residual": Case(Residual, (2, 5, 4)),
    "concatenation": Case(Concatenation, (2, 4, 5)),
    "split": Case(Split, (2, 4, 5)),
    "depthwise": Case(_depthwise, (2, 5, 4)),
    "grouped": Case(_grouped, (2, 5, 4)),
    "squeeze-excite": Case(SqueezeExcite, (2, 5, 6)),
    "group norm": Case(_group_norm, (2, 5, 4), exact=False),
    "one-dimensional": Case(_one_dimensional, (2, 9)),
    "attention": Case(Attention, (5, 3), exact=False, options=lambda model: {"num_heads": {model.qkv: 2}}),
    "separate heads": Case(SeparateHeads, (5, 3), exact=False, options=_separate_heads),
    "shared": Case(Shared, (4,)),
    "dict output": Case(lambda: Wrapped("dict"), (4,), transform=lambda output: output["logits"]),
    "object output": Case(lambda: Wrapped("object"), (4,), transform=lambda output: output.logits),
    "tuple output": Case(lambda: Wrapped("tuple"), (4,), transform=lambda output: output[0]),
}
