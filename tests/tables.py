"""Damage tables of random figures."""

from __future__ import annotations

import torch

from fairtrim import DamageTable


def random_table(sizes: dict[str, int], names: tuple[str, ...] = ("a", "b", "c"), seed: int = 0) -> DamageTable:
    generator = torch.Generator().manual_seed(seed)
    n_columns = sum(sizes.values())
    rows = torch.randn(len(names), 29, n_columns, dtype=torch.float64, generator=generator)
    gram = rows.transpose(1, 2) @ rows / 29
    return DamageTable(
        sensitive_groups=names,
        features=("team",),
        sizes=sizes,
        counts=torch.tensor([5.0, 11.0, 2.0, 7.0][: len(names)], dtype=torch.float64),
        loss=torch.rand(len(names), dtype=torch.float64, generator=generator),
        slope=torch.randn(len(names), n_columns, dtype=torch.float64, generator=generator),
        curvature=torch.diagonal(gram, dim1=1, dim2=2).clone(),
        interactions=gram,
    )
