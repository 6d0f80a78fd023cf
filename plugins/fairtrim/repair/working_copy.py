"""Where a post-processor works: a copy of the network to edit and to score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fairtrim.data.batches import Batch
from fairtrim.data.kept_batches import KEPT_BYTES, KeptBatches
from fairtrim.data.validation_set import ValidationSet
from fairtrim.devices import to_device
from fairtrim.errors import UnsupportedModelError
from fairtrim.measures.group_counts import GroupCounts
from fairtrim.measures.scores import label_losses
from fairtrim.network.copied_network import copied_network
from fairtrim.network.output_layer import LinearHead, find_head
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import every_module_in_eval_mode
from fairtrim.progress import progress_bar

__all__ = ["WorkingCopy", "changed_names"]


def changed_names(values: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not as they were; a device is waited for once.

    Example:
        >>> changed_names({"a": torch.ones(2), "b": torch.ones(3)}, {"a": torch.ones(2), "b": torch.zeros(3)})
        ['b']
    """
    if all(value.device.type == "cpu" for value in values.values()):
        return [name for name, value in values.items() if not torch.equal(value, before[name])]
    same = torch.stack([(value.detach() == before[name]).all() for name, value in values.items()]).tolist()
    return [name for name, kept in zip(values, same, strict=True) if not kept]


class WorkingCopy:
    """A copy of a network that a method edits, with the people whom the edit may see.

    Args:
        network: The caller's network; copied.
        people: Whom the edit may see.
        generator: Source of randomness.
        batch_size: Samples a forward pass.
        kept_bytes: Of inputs that stay on the network's device from one candidate to the next.
        progress: Show progress bars.

    Attributes:
        network: The copy, in eval mode, and how to call it.
        head: Its output layer.
        n_classes: K.
        original: The weights as they were given, by name.
        share: Which share of all people these are, where a fold is held out.
        stage: Added to the names of progress bars.

    Raises:
        UnsupportedModelError: The network can't be copied.
    """

    def __init__(
        self,
        network: ScoredNetwork,
        people: ValidationSet,
        *,
        generator: Generator,
        batch_size: int = 1024,
        kept_bytes: float = KEPT_BYTES,
        progress: bool = True,
    ) -> None:
        network.check()
        self.network = network.of(copied_network(network.model))
        self.model.eval()
        every_module_in_eval_mode(self.model)
        self.people, self.generator, self.batch_size, self.progress = people, generator, batch_size, progress
        self.device = self.network.device
        self.share, self.stage = 1.0, ""
        self._kept = KeptBatches(kept_bytes)
        self._beside: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        _, batch = next(people.batches(batch_size, self.device))
        self.head: LinearHead = find_head(self.network, batch)
        self.n_classes = max(2, self.head.module.out_features)
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        self.original = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    @property
    def model(self) -> nn.Module:
        """The copy itself, to be edited."""
        return self.network.model

    def _batches(self, people: ValidationSet) -> Iterator[Batch]:
        """Batches in order, of which the first ones stay on the device."""
        return self._kept.of(people, lambda first: people.batches(self.batch_size, self.device, first=first))

    def scores(self, people: ValidationSet) -> Tensor:
        """Scores of the copy for all of some people, (N, K) float64 on the CPU; they come there together."""
        with torch.no_grad():
            return torch.cat([self.network.scores(batch) for batch in self._batches(people)]).cpu().double()

    def all_features(self, people: ValidationSet) -> Tensor:
        """Penultimate features of the copy for all of some people, (N, D) float64 on the CPU."""
        with torch.no_grad():  # batch by batch: of many people they are large, and asked for once
            parts = [self.head.features(self.network, batch)[0].cpu() for batch in self._batches(people)]
            return torch.cat(parts).double()

    def beside(self, like: Tensor, column: Tensor, rows: Tensor | None = None) -> Tensor:
        """A tensor that stays the same for the run, or rows of it, where another lies and in its precision.

        It goes to a device once. Whole numbers stay whole.
        """
        key = id(column), like.device, like.dtype
        if key not in self._beside:  # with the column itself, so that no id is used again
            self._beside[key] = column, column.to(like if column.is_floating_point() else like.device)
        there = self._beside[key][1]
        return there if rows is None else there[to_device(rows, like.device)]

    def counts(self, given: Tensor, rows: Tensor | None = None) -> GroupCounts:
        """Confusion counts of decisions, or of probabilities, (N, K) or (N, 1), for rows of the people of the edit."""
        people = self.people
        rows = None if rows is None else to_device(rows, given.device)
        return GroupCounts.of(
            given,
            self.beside(given, people.target, rows),
            self.beside(given, people.group, rows),
            n_groups=people.n_groups,
            weight=None if people.weight is None else self.beside(given, people.weight, rows),
        )

    def cross_entropy(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Mean cross-entropy, by weight, of rows of the people of the edit, whose scores are (N, K) or (N, 1)."""
        rows, weight = to_device(rows, scores.device), self.people.weight
        losses = label_losses(scores, self.beside(scores, self.people.target, rows))
        if weight is None:
            return losses.mean()
        own = self.beside(scores, weight, rows)
        return (losses * own).sum() / own.sum()

    def restore(self) -> None:
        """Give the copy its original weights back; optimizers' parameters stay the same objects."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.original[name])
            for buffer, value in self._buffers:
                buffer.copy_(value)

    def use(self, model: nn.Module) -> None:
        """Take another network for the copy, from now on."""
        self.network = self.network.of(model)

    def changed(self) -> dict[str, Tensor]:
        """Parameters that are not as they were given, by name, on the CPU."""
        named = dict(self.model.named_parameters())
        alike: dict[torch.dtype, list[Tensor]] = {}
        names = changed_names(named, self.original)
        if self.device.type == "cpu":
            return {name: named[name].detach().clone() for name in names}
        for name in names:
            alike.setdefault(named[name].dtype, []).append(named[name].detach())
        # a device is waited for once for all of one type
        flat = {dtype: torch.cat([v.flatten() for v in values]).cpu() for dtype, values in alike.items()}
        parts = {dtype: iter(torch.split(flat[dtype], [v.numel() for v in values])) for dtype, values in alike.items()}
        return {name: next(parts[named[name].dtype]).view(named[name].shape) for name in names}

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the caller left trainable."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise UnsupportedModelError("every parameter is frozen; expected some with requires_grad=True to edit")
        if any(parameter.dtype == torch.float16 for parameter in parameters):
            raise UnsupportedModelError(
                "the network is in float16, whose range is too small for fine-tuning; expected float32 or bfloat16: "
                "model.float()"
            )
        return parameters

    def training(
        self, path: Sequence[float], epochs: int, learning_rate: float, description: str
    ) -> Iterator[tuple[float, int, Callable[[Tensor], None]]]:
        """Epochs of Adam on all layers along a path of strengths, from the given weights for each of these.

        Gives the strength, the number of the epoch, and a function that takes a step down a loss.
        """
        parameters = self.trainable()
        with self.bar(len(path) * epochs, description) as bar:
            for strength in path:
                self.restore()
                optimizer = torch.optim.Adam(parameters, lr=learning_rate)

                def step(loss: Tensor, optimizer: torch.optim.Adam = optimizer) -> None:
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()

                for epoch in range(epochs):
                    yield strength, epoch, step
                    bar.update()

    @contextmanager
    def bar(self, total: int, description: str) -> Iterator[Any]:
        """A progress bar."""
        with progress_bar(description=description + self.stage, total=total, shown=self.progress) as shown:
            yield shown
