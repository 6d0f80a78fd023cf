"""The true change of each sensitive group's loss, measured on the scoring data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.data.batches import Batch, n_batches_of, slice_samples, tensors_of
from fairtrim.devices import to_device, together_on_cpu
from fairtrim.errors import InputError
from fairtrim.network.sample_loss import SampleLoss
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.placement import is_sharded
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.processes import Processes, check_calls_in_step

from .moments import read_order, standard_errors
from .reading_options import Reading, ReadingOptions
from .table import DamageTable

__all__ = [
    "FEWEST_PEOPLE",
    "MeasuredChange",
    "group_means",
    "losses_of",
    "measured_change",
    "worse_than_predicted",
]

MAX_SAMPLES = 4096
"""Of more samples every second, third, ... is measured."""

FEWEST_PEOPLE = 20
"""Of fewer a standard error says little itself."""

_ERRORS_APART = 3.0

_SHARE_THAT_MATTERS = 0.05  # of the loss before


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
    check_calls_in_step(model, n_batches_of(loader, reading.max_batches))
    stride = max(1, -(-len(before) // max_samples))
    losses, units, positions, belongs = [], [], [], []
    order, n_read = b"", 0
    processes = Processes(None if is_sharded(model) else False, model)  # else each measures by itself
    with processes.together(), preserved_random_state(loader), preserved_model(model), torch.no_grad():
        for batch in processes.attending(reading.batches(loader, None, "measured change")):
            weights = encoder.encode(batch.sensitive, len(batch), batch.index)
            order = read_order(order, weights)
            chosen = _every(batch, n_read, stride)
            n_read += len(batch)
            if chosen is None:
                continue
            part, places = chosen
            inputs, target = to_device([part.inputs, part.target], device)
            part = Batch(inputs, target, None, part.index)
            _, of_samples, of_loss = losses_of(network, sample_loss, part)
            losses.append(of_samples)
            units.append(of_loss)
            positions.append(n_read - len(batch) + torch.arange(len(batch), device="cpu")[places])
            belongs.append(weights[places])
    paired = n_read == len(before) and order == table.read_order
    n_groups = len(encoder.groups)
    weights = torch.cat([F.pad(rows, (0, n_groups + 1 - rows.shape[1])) for rows in belongs])
    known = {name: g for g, name in enumerate(encoder.groups)}
    columns = [known.get(name, n_groups) for name in table.sensitive_groups]  # of a group that isn't there: nobody
    # a mean with weights is told in units of their mean, as in the table
    values = torch.cat(losses) / torch.cat(units).mean() - (before[torch.cat(positions)] if paired else 0)
    mean, error, people = group_means(values, weights[:, columns])
    if not paired:
        mean, error = mean - table.loss, (error.square() + table.loss_error.square()).sqrt()
    return MeasuredChange(mean, error, people, len(values), paired)


def losses_of(network: ScoredNetwork, sample_loss: SampleLoss, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Run a network on a batch that lies on its device.

    Args:
        network: The network.
        sample_loss: The loss.
        batch: The samples.

    Returns:
        The scores, in single precision at least, the loss of every sample and what it is counted in, (N,) float64 on
        the CPU.
    """
    scores = network.scores(batch, positions=True)
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    with torch.autocast(network.device.type, enabled=False):
        losses, units = sample_loss.weighted(scores, batch.target)
    of_samples, of_loss = together_on_cpu(losses, units)
    return scores, of_samples, of_loss


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


def group_means(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of sensitive groups.

    Args:
        values: Of each sample, (N,).
        weights: How much of it each group is, (N, G).

    Returns:
        Mean, its standard error and the number of samples of equal weight, (G,) each; NaN for the mean of nobody, and
        for the error of one sample.

    Example:
        >>> group_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        (tensor([2., 5.]), tensor([1., nan]), tensor([2., 1.]))
    """
    counts = weights.sum(0)
    people = counts.square() / weights.square().sum(0)
    mean = weights.T @ values / counts
    deviations = (values.unsqueeze(1) - mean).square()
    square = (weights * deviations).sum(0) / counts
    error = standard_errors(square.unsqueeze(1), torch.zeros_like(square).unsqueeze(1), people).squeeze(1)
    return mean, error, people.nan_to_num(0)


def worse_than_predicted(
    found: Tensor, predicted: Tensor, error: Tensor, *, people: Tensor, loss: Tensor, mean_loss: float
) -> Tensor:
    """Whether the loss of a sensitive group rose by more than predicted: beyond chance, and by what matters.

    That is by more than three standard errors, by more than half of the larger of the two changes, and by more than a
    twentieth of the loss before.

    Args:
        found: The measured changes, (G,).
        predicted: The predicted ones, (G,).
        error: Standard error of the difference, (G,); NaN where it isn't known.
        people: How many were measured, (G,); of fewer than ``FEWEST_PEOPLE`` nothing is said.
        loss: Mean loss before, (G,).
        mean_loss: Everybody's; of a group without loss anything would matter, so that a tenth of this counts at least.

    Returns:
        (G,) bool; False where a change is NaN.

    Example:
        >>> measured, alike = torch.tensor([0.3, 0.3, 0.3]), torch.ones(3)
        >>> error, people = torch.tensor([0.01, 0.1, 0.01]), torch.tensor([50.0, 50.0, 5.0])
        >>> worse_than_predicted(measured, 0.1 * alike, error, people=people, loss=alike, mean_loss=1.0).tolist()
        [True, False, False]
    """
    losses = loss.abs().clamp_min(0.1 * abs(mean_loss))
    matters = torch.maximum(0.5 * torch.maximum(found.abs(), predicted.abs()), _SHARE_THAT_MATTERS * losses)
    beyond = torch.maximum(_ERRORS_APART * error.nan_to_num(0.0), matters)
    return (found - predicted > beyond) & (people >= FEWEST_PEOPLE)
