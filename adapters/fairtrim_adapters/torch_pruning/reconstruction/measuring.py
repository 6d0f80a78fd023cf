"""Loss and accuracy of every sensitive group, before and after, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from fairtrim.damage.measured_change import group_means, losses_of
from fairtrim.damage.reading_options import Reading
from fairtrim.data.batches import Batch, tensors_of
from fairtrim.measures.scores import labels_of
from fairtrim.preservation import preserved_model, preserved_random_state

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EVERYBODY", "measured_by_group", "shares_samples"]

EVERYBODY = "everybody"

_KINDS = ("loss", "accuracy")

_TELLING = 8
"""So many first rows that are the same tell that two batches of different sizes are of the same samples."""


def measured_by_group(
    dense: nn.Module, pruned: nn.Module, loader: Iterable[Any], reading: Reading, *, max_samples: int | None = None
) -> pd.DataFrame:
    """Measure two networks on the same samples, each sample against itself.

    Args:
        dense: The network before.
        pruned: After.
        loader: The samples.
        reading: How data are read and networks called.
        max_samples: Stop after the batch with which so many are reached.

    Returns:
        One row a sensitive group, and ``everybody`` where there are several: people; mean loss and accuracy of the
        dense and the pruned network, the change and its standard error. Accuracy is NaN where targets are no labels.

    Raises:
        InputError: The data are wrong, or don't fit the loss.

    Example:
        >>> identity, opposite = nn.Identity(), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = opposite.weight.copy_(-torch.eye(2))
        >>> people = [(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])]
        >>> table = measured_by_group(identity, opposite, people, Reading(progress=False))
        >>> table[["sensitive_group", "people", "accuracy dense", "accuracy pruned"]].values.tolist()
        [['a', 1.0, 1.0, 0.0], ['b', 1.0, 1.0, 0.0], ['everybody', 2.0, 1.0, 0.0]]
    """
    import pandas as pd

    encoder, sample_loss = reading.encoder(), reading.sample_loss()
    networks = (reading.network(dense), reading.network(pruned))
    device = networks[1].device
    values: list[Tensor] = []
    units: list[Tensor] = []
    belongs: list[Tensor] = []
    n_read = 0
    with preserved_random_state(loader), preserved_model(dense), preserved_model(pruned), torch.no_grad():
        for batch in reading.batches(loader, device, "measuring each group"):
            belongs.append(encoder.encode(batch.sensitive, len(batch), batch.index))
            columns = []
            for network in networks:
                scores, losses, of_loss = losses_of(network, sample_loss, batch)
                columns.append(torch.stack([losses, _right(scores, batch)]))
            units.append(of_loss)
            values.append(torch.stack(columns, 1))  # (loss and accuracy, networks, N)
            n_read += len(batch)
            if max_samples is not None and n_read >= max_samples:
                break
    n_groups = len(encoder.groups)
    weights = torch.cat([F.pad(rows, (0, n_groups - rows.shape[1])) for rows in belongs]).double()
    found = torch.cat(values, 2)
    found[0] /= torch.cat(units).mean()  # a mean with weights is told in units of their mean
    names = [name if isinstance(name, str) else ", ".join(name) for name in encoder.groups]
    if n_groups > 1:
        names, weights = (
            [*names, EVERYBODY],
            torch.cat([weights, torch.ones(len(weights), 1, device="cpu").double()], 1),
        )
    table = pd.DataFrame({"sensitive_group": names, "people": weights.sum(0).numpy()})
    for kind, (before, after) in zip(_KINDS, found, strict=True):
        table[f"{kind} dense"], table[f"{kind} pruned"] = (
            group_means(values, weights)[0].numpy() for values in (before, after)
        )
        change, error, _ = group_means(after - before, weights)
        table[f"{kind} change"], table[f"{kind} standard error"] = change.numpy(), error.numpy()
    return table


def _right(scores: Tensor, batch: Batch) -> Tensor:
    """Whether the label is right, (N,); the share of labelled positions where there are several; else NaN."""
    target = batch.target
    if target.is_floating_point() and not torch.equal(target, target.round()):
        return torch.full((len(batch),), torch.nan, dtype=torch.float64, device="cpu")
    if target.shape != scores.shape[:-1]:
        if target.shape != (len(batch), 1) or scores.ndim != 2:
            return torch.full((len(batch),), torch.nan, dtype=torch.float64, device="cpu")
        target = target[:, 0]
    right, labelled = labels_of(scores.flatten(0, -2)).view(target.shape) == target, target >= 0
    if right.ndim == 1:
        return right.cpu().double()
    counts = torch.stack([(right & labelled).flatten(1).sum(1), labelled.flatten(1).sum(1)]).cpu().double()
    return counts[0] / counts[1]


def shares_samples(one: Any, other: Any) -> bool:
    """Whether two loaders plainly give samples in common: the same data set, batches or first rows.

    Args:
        one: A loader.
        other: Another.

    Returns:
        Whether; False where they may, but it can't be seen without reading them.

    Example:
        >>> batch = (torch.eye(2), torch.tensor([0, 1]))
        >>> shares_samples([batch], [batch]), shares_samples([batch], [(torch.zeros(2, 2), torch.tensor([0, 1]))])
        (True, False)
    """
    if one is other:
        return True
    if isinstance(one, DataLoader) and isinstance(other, DataLoader) and _datasets_overlap(one.dataset, other.dataset):
        return True
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        known = {id(batch) for batch in one}
        if any(id(batch) in known for batch in other):
            return True
    firsts = (_first(one), _first(other))
    return None not in firsts and _same_rows(*firsts)


def _first(loader: Any) -> Any:
    """The first batch of what can be gone through anew; None of anything else."""
    if not isinstance(loader, DataLoader | list | tuple):
        return None
    with preserved_random_state(loader):
        return next(iter(loader), None)


def _datasets_overlap(one: Any, other: Any) -> bool:
    if one is other:
        return True
    of_one, rows_of_one = _base(one)
    of_other, rows_of_other = _base(other)
    if of_one is not of_other:
        return False
    return rows_of_one is None or rows_of_other is None or not rows_of_one.isdisjoint(rows_of_other)


def _base(dataset: Any) -> tuple[Any, set[int] | None]:
    """The data set that subsets are taken of, and which of its rows; None for all."""
    rows: list[int] | None = None
    while isinstance(dataset, Subset):
        indices = [int(k) for k in dataset.indices]
        rows = indices if rows is None else [indices[k] for k in rows]
        dataset = dataset.dataset
    return dataset, None if rows is None else set(rows)


def _same_rows(one: Any, other: Any) -> bool:
    """Whether the inputs of two batches are the same numbers, as far as the shorter one goes."""
    a, b = (tensors_of(batch[0]) if isinstance(batch, list | tuple) else [] for batch in (one, other))
    return bool(a) and len(a) == len(b) and all(_begin_alike(x, y) for x, y in zip(a, b, strict=True))


def _begin_alike(one: Tensor, other: Tensor) -> bool:
    if one.ndim == 0 or one.shape[1:] != other.shape[1:] or one.device != other.device:
        return False
    n = min(len(one), len(other))
    return (len(one) == len(other) or n >= _TELLING) and torch.equal(one[:n], other[:n])
