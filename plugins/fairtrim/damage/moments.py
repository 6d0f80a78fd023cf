"""Weighted sums of gate gradients over samples, for any number of sensitive groups at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fairtrim.data.sensitive_groups import GroupName, SensitiveEncoder
from fairtrim.devices import to_device, together_on_cpu
from fairtrim.errors import InputError
from fairtrim.network.sample_loss import require_finite_losses
from fairtrim.processes import Processes

from .running_sums import RunningSums
from .sample_sketch import SampleSketch, Sketches

__all__ = [
    "SUMS",
    "Interactions",
    "Moments",
    "group_sums",
    "members_of",
    "read_order",
    "resolved_interactions",
    "spread",
    "standard_errors",
]

Interactions = Literal["exact", "sketched"]

MAX_INTERACTION_BYTES = 4 * 2**30
"""Above this the Gram matrices of joint selection are refused rather than swapped to disk."""

MAX_EXACT_CHANNELS = 4096
"""Up to so many channels pairs are kept exactly, 128 MiB a sensitive group; above, a sketch of the samples."""

ROWS_PER_PRODUCT = 2048
_GROUPS_OF_A_PRODUCT = 32  # up to so many one matrix product is faster than picking each sample's group
_ROWS_PER_GROUP = 256  # a Gram update of fewer rows is bound by memory, not by arithmetic

SUMS = (
    "counts",
    "loss",
    "negative_loss",
    "squared_loss",
    "slope",
    "curvature",
    "squared_weights",
    "squared_damage",
    "squared_second_order",
    "gram",
)
"""What is added up over samples, and kept where a run may be taken up again."""

_SMALL_SUMS = SUMS[:-1]  # on the CPU


def resolved_interactions(interactions: bool | Interactions, n_columns: int) -> Interactions | None:
    """How pairs of channels are kept.

    Args:
        interactions: False for not at all, True for exactly where that is affordable.
        n_columns: C.

    Returns:
        ``"exact"``, ``"sketched"`` or None.

    Raises:
        InputError: It is something else.
    """
    if interactions is True:
        return "exact" if n_columns <= MAX_EXACT_CHANNELS else "sketched"
    if interactions not in (False, "exact", "sketched"):
        raise InputError(f"interactions={interactions!r}; expected False, True, 'exact' or 'sketched'")
    return interactions or None


def group_sums(weights: Tensor, values: Tensor) -> Tensor:
    """Σ_n w_gn v_n for every group, at a cost that doesn't grow with the groups where each sample is in one of them.

    Args:
        weights: w, (G, N).
        values: v, (N, ...), of the same type.

    Returns:
        (G, ...).

    Example:
        >>> group_sums(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), torch.tensor([[1.0], [3.0], [5.0]])).flatten()
        tensor([11.,  3.])
    """
    product = weights.device.type != "cpu" or len(weights) <= _GROUPS_OF_A_PRODUCT
    members = None if product else weights.T.nonzero()
    if members is None or len(members) > weights.shape[1]:
        sums: Tensor = torch.tensordot(weights, values, dims=1)
        return sums
    samples, groups = members.unbind(1)
    weighted = values[samples] * weights[groups, samples].view(-1, *[1] * (values.ndim - 1))
    return values.new_zeros(len(weights), *values.shape[1:]).index_add_(0, groups, weighted)


def members_of(weights: Tensor, numbers: Sequence[int]) -> list[Tensor]:
    """Which samples have a weight in each group, in their order; nobody waits for a device to count them.

    Args:
        weights: w, (G, N).
        numbers: How many samples have one, for each of the G groups.

    Returns:
        Positions of these, G tensors.

    Example:
        >>> [members.tolist() for members in members_of(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), [2, 1])]
        [[0, 2], [1]]
    """
    if weights.device.type == "cpu":
        return [of_group.nonzero().squeeze(1) for of_group in weights]
    order = (weights == 0).float().argsort(dim=1, stable=True)
    return [order[g, :number] for g, number in enumerate(numbers)]


def read_order(so_far: bytes, weights: Tensor) -> bytes:
    """A digest of the samples that were read, in their order: another order gives another one.

    Args:
        so_far: The digest of the batches before.
        weights: Of the samples of a batch in each group, (N, G).

    Returns:
        The digest with this batch.
    """
    return hashlib.sha256(so_far + weights.contiguous().numpy().tobytes()).digest()


def standard_errors(square: Tensor, mean: Tensor, people: Tensor) -> Tensor:
    """Standard errors of means over samples, from the mean square.

    Args:
        square: Mean of the squared values, (G, C).
        mean: Mean of the values, (G, C).
        people: Number of samples of equal weight, (G,).

    Returns:
        (G, C); NaN where a group is one person, whose deviation nothing tells.

    Example:
        >>> square, mean, people = torch.tensor([[5.0], [4.0]]), torch.tensor([[1.0], [2.0]]), torch.tensor([5.0, 1.0])
        >>> standard_errors(square, mean, people).flatten().tolist()
        [1.0, nan]
    """
    others = (people - 1).unsqueeze(1)
    variance = (square - mean.square()).clamp_min(0) / others
    return torch.where(others > 1e-9, variance, torch.nan).sqrt()


def spread(sums: Tensor, places: Sequence[int], n_groups: int) -> Tensor:
    """Put the rows of some groups in their places among all groups.

    Args:
        sums: (groups here, ...).
        places: Where each of them stands.
        n_groups: How many there are in all.

    Returns:
        (n_groups, ...), zero for the groups that are not here.
    """
    total = sums.new_zeros(n_groups, *sums.shape[1:])
    total[list(places)] = torch.cat([sums, sums.new_zeros(len(places) - len(sums), *sums.shape[1:])])
    return total


class Moments:
    """Weighted sums over samples.

    Args:
        n_columns: C.
        interactions: How to keep pairs of channels: ``"exact"`` (Gram matrices), ``"sketched"``, or not at all.
        rank: Of this process; the sketches of several must not err alike.
    """

    def __init__(self, n_columns: int, interactions: Interactions | None = None, rank: int = 0) -> None:
        self.counts = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.loss = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.negative_loss = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.squared_loss = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.slope = torch.zeros(0, n_columns, dtype=torch.float64, device="cpu")
        self.curvature = torch.zeros(0, n_columns, dtype=torch.float64, device="cpu")
        self.squared_weights = torch.zeros(0, dtype=torch.float64, device="cpu")
        self.squared_damage = torch.zeros(0, n_columns, dtype=torch.float64, device="cpu")
        self.squared_second_order = torch.zeros(0, n_columns, dtype=torch.float64, device="cpu")
        self._gram = RunningSums(n_columns, n_columns) if interactions == "exact" else None
        self.sketches = Sketches(n_columns, MAX_INTERACTION_BYTES, rank) if interactions == "sketched" else None
        self._loss_weight = torch.zeros(2, dtype=torch.float64, device="cpu")  # of all samples, and their number
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, weights, and how many have one in each group
        self._sample_losses: list[Tensor] = []
        self._read_order = b""

    @property
    def gram(self) -> Tensor | None:
        """Σ_n w_gn Σ_r rows_nr rows_nrᵀ, (G, C, C), if it is kept."""
        return None if self._gram is None else self._gram.total(len(self.counts))

    @property
    def mean_weight(self) -> float:
        """Mean of w_n over the samples, for a loss that is a mean with weights; 1 for any other.

        Raises:
            InputError: Nobody has a weight.
        """
        total, number = self._loss_weight.tolist()
        if number and not total > 0:
            raise InputError("the loss gives every sample a weight of 0; expected some that count")
        return float(total / number) if number else 1.0

    def weigh(self, weight: Tensor) -> None:
        """Note with which weights the loss takes its mean over the samples of one batch.

        Args:
            weight: w_n, (N,).
        """
        self._loss_weight += torch.tensor(
            [float(weight.cpu().double().sum()), len(weight)], dtype=torch.float64, device="cpu"
        )

    def _check_room(self, n_groups: int) -> None:
        n_columns = self.slope.shape[1]
        needed = 0 if self._gram is None else n_groups * n_columns**2 * 8
        if needed > MAX_INTERACTION_BYTES:
            raise InputError(
                f"joint selection over {n_columns} channels and {n_groups} sensitive groups needs "
                f"{needed / 2**30:.1f} GiB for its Gram matrices (limit {MAX_INTERACTION_BYTES / 2**30:.0f} GiB); use "
                "interactions='sketched', selection='single' (interactions=False), fewer sensitive groups or more "
                "ignored_layers"
            )

    def _grow(self, n_groups: int) -> None:
        missing = n_groups - len(self.counts)
        if missing <= 0:
            return
        self._check_room(n_groups)
        for name in _SMALL_SUMS:
            sums = getattr(self, name)
            setattr(self, name, torch.cat([sums, sums.new_zeros(missing, *sums.shape[1:])]))

    def add(
        self, weights: Tensor, loss: Tensor, slope: Tensor, rows: Tensor, loss_weight: Tensor | None = None
    ) -> None:
        """Add the samples of one batch; what lies on a device comes to the CPU at once, in one copy.

        Args:
            weights: One column for each sensitive group, (N, G) float64 on the CPU.
            loss: ℓ_n, (N,).
            slope: s_nc under the true label, (N, C).
            rows: (N, R, C) with Σ_r rows_nrc rows_nrd = E_y[s_nc(y) s_nd(y)].
            loss_weight: w_n, (N,), for ``weigh``.

        Raises:
            InputError: A loss is not finite.
        """
        of_groups = weights.T.to(slope.dtype)
        on_device = to_device(of_groups, slope.device)
        curvature = rows.square().sum(1)
        second_order = 0.5 * curvature
        # in one product: what each sample adds to the means, and the squares that say how far they can be off
        values = torch.cat([curvature, (second_order - slope).square(), second_order.square()], 1)
        sums = group_sums(on_device, slope), group_sums(on_device, values)
        slopes, others, loss, *loss_weights = together_on_cpu(
            *sums, loss, *([] if loss_weight is None else [loss_weight])
        )
        require_finite_losses(loss)
        self._grow(weights.shape[1])
        self.counts += weights.sum(0)
        self._sample_losses.append(loss)
        self._read_order = read_order(self._read_order, weights)
        self.loss += weights.T @ loss
        self.negative_loss += weights.T @ loss.clamp_max(0)
        self.squared_loss += weights.T @ loss.square()
        self.slope += slopes
        self.squared_weights += weights.square().sum(0)
        for name, part in zip(
            ("curvature", "squared_damage", "squared_second_order"),
            others.tensor_split(3, 1),
            strict=True,
        ):
            getattr(self, name).add_(part)
        for weight in loss_weights:
            self.weigh(weight)
        if self._gram is not None or self.sketches is not None:
            numbers = rows.shape[1] * (of_groups != 0).sum(1)
            self._waiting.append((rows.flatten(0, 1), on_device.repeat_interleave(rows.shape[1], 1), numbers))
            enough = ROWS_PER_PRODUCT
            if self._gram is not None:
                enough = max(enough, _ROWS_PER_GROUP * len(self.counts))
            if sum(len(waiting) for waiting, _, _ in self._waiting) >= enough:
                self.flush()

    def flush(self) -> None:
        """Work off the rows that wait: one product for each sensitive group, or one sum in the sketch."""
        if not self._waiting:
            return
        n_groups = max(len(weights) for _, weights, _ in self._waiting)
        rows = torch.cat([rows for rows, _, _ in self._waiting])
        weights = torch.cat([F.pad(weights, (0, 0, 0, n_groups - len(weights))) for _, weights, _ in self._waiting], 1)
        numbers = torch.stack([F.pad(number, (0, n_groups - len(number))) for _, _, number in self._waiting]).sum(0)
        self._waiting = []
        if self.sketches is not None:
            self.sketches.grow(n_groups)
        for g, members in enumerate(members_of(weights, numbers.tolist())):
            if not len(members):
                continue
            weighted = rows[members] * weights[g, members].sqrt().unsqueeze(1)
            if self.sketches is not None:
                self.sketches.add(g, weighted)
            if self._gram is not None:
                self._gram.add((weighted.T @ weighted).unsqueeze(0), first=g)

    def merged(self, processes: Processes, places: Sequence[int], n_groups: int) -> Moments:
        """The sums over the samples of all processes.

        Args:
            processes: All of which call this.
            places: Where each group of this process stands among all; see ``SensitiveEncoder.share``.
            n_groups: How many there are in all.

        Returns:
            The sums, the same in every process; these where there is one.
        """
        self.flush()
        if processes.count == 1:
            return self
        total = Moments(self.slope.shape[1])
        self._check_room(n_groups)
        for name in _SMALL_SUMS:
            setattr(total, name, processes.sum(spread(getattr(self, name), places, n_groups)))
        if (gram := self.gram) is not None:
            # one group at a time: together they may be gigabytes
            here = dict(zip(places, gram, strict=True))
            blank = gram.new_zeros(gram.shape[1:])
            total._gram = RunningSums(*blank.shape)
            total._gram.replace(torch.stack([processes.sum(here.get(g, blank)) for g in range(n_groups)]))
        if self.sketches is not None:
            total.sketches = self.sketches.merged(processes, places, n_groups)
        total._loss_weight = processes.sum(self._loss_weight)
        total._sample_losses, total._read_order = self._sample_losses, self._read_order  # each process keeps its own
        return total

    def state(self) -> dict[str, Tensor]:
        """Everything in named tensors, to be stored.

        Returns:
            The tensors.
        """
        self.flush()
        state = {name: sums for name in SUMS if (sums := getattr(self, name)) is not None}
        state["loss_weight"] = self._loss_weight
        state["sample_losses"] = self._losses()
        state["read_order"] = torch.tensor(list(self._read_order), dtype=torch.uint8, device="cpu")
        return state if self.sketches is None else {**state, **self.sketches.state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave.

        Args:
            state: The tensors.
        """
        for name in _SMALL_SUMS:
            if name in state:
                setattr(self, name, state[name])
        if self._gram is not None:
            self._gram.replace(state["gram"])
        self._loss_weight = state.get("loss_weight", self._loss_weight)
        self._sample_losses, self._read_order = [state["sample_losses"]], bytes(state["read_order"].tolist())
        if self.sketches is not None:
            self.sketches.restore(state, len(self.counts))

    def _losses(self) -> Tensor:
        return torch.cat([torch.zeros(0, dtype=torch.float64, device="cpu"), *self._sample_losses])

    def means(self, encoder: SensitiveEncoder) -> dict[str, Any]:
        """Turn sums into means, the groups sorted by name, so that the order of the samples leaves no trace.

        Args:
            encoder: Holds the names of the groups in the order of the sums.

        Returns:
            The fields of a damage table but ``sizes``; these sums are used up.

        Raises:
            InputError: A weight column is zero for everybody.
        """
        self.flush()
        empty = [encoder.groups[g] for g in (self.counts == 0).nonzero().flatten().tolist()]
        if empty:
            raise InputError(f"the sensitive groups {empty} have no samples (all weights are 0); leave them out")
        order = encoder.order()
        names: tuple[GroupName, ...] = tuple(encoder.groups[g] for g in order)
        counts = self.counts[order]
        # w_n ℓ_n over the mean weight: the mean over everybody is then the loss of all samples as one batch
        unit = self.mean_weight
        divisor = counts * unit
        means: dict[str, Tensor] = {
            name: sums[order] / divisor.view(-1, *[1] * (sums.ndim - 1))
            for name in ("loss", "slope", "curvature")
            if (sums := getattr(self, name)) is not None
        }
        people = counts.square() / self.squared_weights[order]
        errors = {
            name: standard_errors(sums[order] / (counts * unit**2).unsqueeze(1), mean, people)
            for name, sums, mean in (
                ("standard_error", self.squared_damage, 0.5 * means["curvature"] - means["slope"]),
                ("second_order_error", self.squared_second_order, 0.5 * means["curvature"]),
            )
        }
        interactions: Tensor | SampleSketch | None = None
        if (gram := self.gram) is not None:
            interactions = gram if order == list(range(len(order))) else gram[order]
            interactions /= divisor.view(-1, 1, 1)
        elif self.sketches is not None:
            interactions = self.sketches.sketch(order, divisor, means["curvature"])
        return {
            "sensitive_groups": names,
            "features": encoder.features or (),
            "counts": counts,
            "interactions": interactions,
            "people": people,
            "loss_error": standard_errors(
                (self.squared_loss[order] / (counts * unit**2)).unsqueeze(1), means["loss"].unsqueeze(1), people
            ).squeeze(1),
            "sample_losses": self._losses() / unit,
            "read_order": self._read_order,
            "signed_loss": bool((self.negative_loss < 0).any()),
            **means,
            **errors,
        }
