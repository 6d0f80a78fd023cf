"""Figures of networks on the test people or texts, as rows and as text, whatever kind of network they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fairtrim.comparison.network_size import network_size
from fairtrim.devices import model_device
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.printing import TextTable, figure
from fairtrim_adapters.sweep import DataSplits

from .language import compared, figures_of_language
from .tables import audit_rows, audit_text

__all__ = ["Audit", "audited"]


@dataclass(frozen=True)
class Audit:
    """What is known of networks.

    Attributes:
        rows: Figures by network, for bounds and JSON.
        text: The same for people to read.
    """

    rows: dict[str, dict[str, Any]]
    text: str


def audited(
    networks: Mapping[str, nn.Module],
    data: DataSplits,
    *,
    language: bool,
    n_boot: int | None,
    seed: int,
    progress: bool,
) -> Audit:
    """Measure networks.

    Args:
        networks: By name; changes are measured from the first.
        data: The splits.
        language: Whether they are language models.
        n_boot: Bootstrap samples, or None; language models need none.
        seed: Of the bootstrap.
        progress: Show progress bars.

    Returns:
        The figures.
    """
    if not language:
        rows = audit_rows(networks, data, n_boot=n_boot, seed=seed, progress=progress)
        return Audit(rows, audit_text(rows))
    batch = data.first_batch("test", model_device(next(iter(networks.values()))))
    sizes = {name: network_size(ScoredNetwork(model), batch) for name, model in networks.items()}
    comparison = compared(networks, data, progress=progress)
    rows = {name: {**sizes[name], **row} for name, row in figures_of_language(comparison).items()}
    heads = {"parameters": "parameters", "macs": f"MACs of {batch.target.shape[1]} tokens"}
    cells = [[head, *(figure(size[key]) for size in sizes.values())] for key, head in heads.items()]
    return Audit(rows, f"{comparison}\n\n{TextTable(['', *sizes], cells, title='Size')}")
