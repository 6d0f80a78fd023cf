"""The true change of each sensitive group's loss, measured on the scoring data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.data.batches import Batch, slice_samples, tensors_of
from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.preservation import preserved_model, preserved_random_state

from .moments import read_order, standard_errors
from .reading_options import Reading, ReadingOptions
from .table import DamageTable

__all__ = ["MeasuredChange", "measured_change"]

MAX_SAMPLES = 4096
"""Of more samples every second, third, ... is measured."""


@dataclass(frozen=True)
class MeasuredChange:
    """What became of each group's mean loss.

    Attributes:
        change: Loss now minus loss when the table was collected, (G,); NaN where nobody was measured.
        standard_error: Of the change, (G,); NaN for one sample.
        people: How many of each group were measured, (G,).
        n_samples: How many samples were measured in all.
        paired: Whether each sample's losses are compared, or, where the data came in another order, the groups' means.
    """

    change: Tensor
    standard_error: Tensor
    people: Tensor
    n_samples: int
    paired: bool


def measured_change(
    model: nn.Module,
    loader: Iterable[Any],
    table: DamageTable,
    *,
    max_samples: int = MAX_SAMPLES,
    **options: Unpack[ReadingOptions],
) -> MeasuredChange:
    """Measure the samples of a damage table again, after the network was changed: one forward pass.

    Args:
        model: The network as it is now.
        loader: The data that the table was collected from; of several processes, the share of this one.
        table: What was collected before the change.
        max_samples: Measure about so many, evenly spaced over the data.
        options: See ``ReadingOptions``; as for ``collect_damage``.

    Returns:
        The change of each group's mean loss.

    Raises:
        InputError: The table keeps no losses of single samples, or the data are wrong.

    Example:
        >>> from fairtrim import ChannelGroup, ChannelPlace, collect_damage
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> hidden = ChannelGroup("0", 2, (ChannelPlace("1", "input", range(2), range(2), channel_axis=-1),))
        >>> people = [(x, x.sum(1, keepdim=True), ["a", "b"])]
        >>> table = collect_damage(model, people, [hidden], loss_fn=F.mse_loss, progress=False)
        >>> _ = nn.init.zeros_(model[1].weight)
        >>> measured_change(model, people, table, loss_fn=F.mse_loss, progress=False).change.tolist()
        [9.0, 9.0]
    """
    before = table.sample_losses
    if before is None or table.loss_error is None:
        raise InputError("this table keeps no losses of single samples to compare with; collect it with collect_damage")
    reading = Reading.of(options, "measured_change")
    network, sample_loss, encoder = reading.network(model), reading.sample_loss(), reading.encoder()
    device = network.device
    stride = max(1, -(-len(before) // max_samples))
    losses, units, positions, belongs = [], [], [], []
    order, n_read = b"", 0
    with preserved_random_state(loader), preserved_model(model), torch.no_grad():
        for batch in reading.batches(loader, None, "measured change"):
            weights = encoder.encode(batch.sensitive, len(batch), batch.index)
            order = read_order(order, weights)
            chosen = _every(batch, n_read, stride)
            n_read += len(batch)
            if chosen is None:
                continue
            part, places = chosen
            part = Batch(to_device(part.inputs, device), part.target.to(device), None, part.index)
            scores = network.scores(part, positions=True)
            with torch.autocast(device.type, enabled=False):
                of_samples, of_loss = sample_loss.weighted(_floating(scores), part.target)
                losses.append(of_samples.double().cpu())
                units.append(of_loss.double().cpu())
            positions.append(n_read - len(batch) + torch.arange(len(batch))[places])
            belongs.append(weights[places])
    paired = n_read == len(before) and order == table.read_order
    n_groups = len(encoder.groups)
    weights = torch.cat([F.pad(rows, (0, n_groups + 1 - rows.shape[1])) for rows in belongs])
    known = {name: g for g, name in enumerate(encoder.groups)}
    columns = [known.get(name, n_groups) for name in table.sensitive_groups]  # of a group that isn't there: nobody
    # a mean with weights is told in units of their mean, as in the table
    values = torch.cat(losses) / torch.cat(units).mean() - (before[torch.cat(positions)] if paired else 0)
    mean, error, people = _of_groups(values, weights[:, columns])
    if not paired:
        mean, error = mean - table.loss, (error.square() + table.loss_error.square()).sqrt()
    return MeasuredChange(mean, error, people, len(values), paired)


def _floating(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def _every(batch: Batch, before: int, stride: int) -> tuple[Batch, slice] | None:
    """The samples of a batch whose number is a multiple of the stride; None if it has none."""
    first = -before % stride
    if first >= len(batch):
        return None
    if stride == 1 or any(
        tensor.ndim == 0 or len(tensor) != len(batch) for tensor in tensors_of(batch.inputs)
    ):  # what belongs to no single sample can't be taken apart
        return batch, slice(None)
    places = slice(first, None, stride)
    return Batch(slice_samples(batch.inputs, places), batch.target[places], None, batch.index), places


def _of_groups(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard error and number of samples of each group; NaN where there is none."""
    counts = weights.sum(0)
    people = counts.square() / weights.square().sum(0)
    mean = weights.T @ values / counts
    deviations = (values.unsqueeze(1) - mean).square()
    square = (weights * deviations).sum(0) / counts
    error = standard_errors(square.unsqueeze(1), torch.zeros_like(square).unsqueeze(1), people).squeeze(1)
    return mean, error, people.nan_to_num(0)
