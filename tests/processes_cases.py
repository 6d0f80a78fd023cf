"""What several processes are tested with: a network, shares of the people, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fairtrim import DamageTable, collect_damage
from fairtrim.damage.weight_saliency import collect_weight_saliency
from tests.networks import CASES

CASE = CASES["residual"]
GROUPS = CASE.plan(CASE.model()).groups
N = 60
X, Y = CASE.batch(N)


def removed_sets() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {g.name: torch.randperm(g.size, generator=generator)[:k].tolist() for g in GROUPS if k <= g.size}
        for k in (1, 2, 4)
    ]


def loader_of(rows: Tensor, sensitive: Any, size: int = 7) -> list[tuple[Any, ...]]:
    """Batches of some samples."""
    batches = []
    for part in rows.split(size) if len(rows) else []:
        a = sensitive[part] if isinstance(sensitive, Tensor) else [sensitive[n] for n in part.tolist()]
        batches.append((X[part], Y[part], a))
    return batches


def check_same(table: DamageTable, alone: DamageTable, *, pairs: bool = True) -> None:
    assert table.sensitive_groups == alone.sensitive_groups
    assert table.features == alone.features
    for name in ("counts", "loss", "slope", "curvature"):
        torch.testing.assert_close(getattr(table, name), getattr(alone, name), rtol=1e-6, atol=1e-12, msg=name)
    assert (table.interactions is None) == (alone.interactions is None)
    if pairs and table.interactions is not None:
        for channels in removed_sets():
            torch.testing.assert_close(table.predict(channels), alone.predict(channels), rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(
            table.interactions_between(torch.tensor([3])),
            alone.interactions_between(torch.tensor([3])),
            rtol=1e-6,
            atol=1e-12,
        )


def check_everywhere(tensor: Tensor) -> None:
    told: list[Any] = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(told, tensor.contiguous())
    assert all(torch.equal(other, tensor) for other in told)


ALL = torch.arange(N)
SHARES: dict[str, tuple[Tensor, Tensor]] = {
    "even": (ALL[::2], ALL[1::2]),
    "uneven": (ALL[:49], ALL[49:]),
    "empty first": (ALL[:0], ALL),
    "empty second": (ALL, ALL[:0]),
}
WEIGHTS = torch.rand(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
SENSITIVE: dict[str, Any] = {
    "two groups": ALL % 2,
    "groups that one process sees": ["late" if n > 55 else "early" if n < 4 else "both" for n in range(N)],
    "a group for each": [f"person {7 * n % N}" for n in range(N)],
    "weights": WEIGHTS,
}


class BrokenError(Exception):
    pass


class BrokenLoader(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield self[0]
        raise BrokenError("no such file")


COLLECT: dict[str, Callable[..., Any]] = {
    "gates": lambda model, loader: collect_damage(model, loader, GROUPS, interactions=True, progress=False),
    "weights": lambda model, loader: collect_weight_saliency(model, loader, GROUPS, progress=False),
}
