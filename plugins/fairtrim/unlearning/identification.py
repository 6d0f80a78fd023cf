"""Which attributes a network's decisions depend on: FMD's first phase, "identify"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, NamedTuple

import torch

from fairtrim.arguments import require_number
from fairtrim.data.batches import ForwardFunction
from fairtrim.data.validation_set import ValidationSet
from fairtrim.devices import map_tensors
from fairtrim.errors import InputError
from fairtrim.measures.scores import label_probability, labels_of
from fairtrim.network.probability_scores import ProbabilityScores, refuse_shares
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state

__all__ = ["AttributeBias", "biased_attributes"]

_Z = NormalDist().inv_cdf(0.975)


class AttributeBias(NamedTuple):
    """How much decisions depend on one attribute.

    Attributes:
        attribute: Its name.
        bias: Mean of |p(y|x) − p(y|x̄)|, x̄ the same person with the attribute flipped.
        low: End of the 95 % interval, over people.
        high: The other.
        flips: Share of decisions that change.
        flips_low: End of its interval.
        flips_high: The other.
        biased: Whether the bias is above δ, with its interval.
        worst_bias: Of an attribute of many values: mean over people of the largest change for another value.
        any_flip: Share of people whose decision changes for at least one other value.

    Example: see ``biased_attributes``, which makes them.
    """

    attribute: str
    bias: float
    low: float
    high: float
    flips: float
    flips_low: float
    flips_high: float
    biased: bool
    worst_bias: float
    any_flip: float


def biased_attributes(
    model: torch.nn.Module,
    people: ValidationSet,
    attributes: Mapping[str, Callable[[Any], Any] | Sequence[Callable[[Any], Any]]],
    delta: float = 0.01,
    *,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
    batch_size: int = 1024,
) -> list[AttributeBias]:
    """Test several attributes, and rank them by counterfactual bias.

    FMD's "identify" (Chen and others, NeurIPS 2023): B(θ) = E|p(y|x) − p(y|x̄)| of each attribute against δ. The
    intervals are ours. Only what an attribute's own columns do is seen: what other columns tell of it is not flipped.

    Args:
        model: The network; untouched.
        people: People with labels, (N,).
        attributes: By name, what flips the attribute in the inputs of a batch of people, e.g. a ``ColumnFlip``; of an
            attribute of many values a sequence, one for each other value (``ColumnFlip.every``), over which changes are
            averaged.
        delta: δ.
        forward_fn: How to call the network.
        output_transform: Finds the scores (N, K) in what it returns.
        batch_size: Samples a forward pass.

    Returns:
        One entry an attribute, the largest bias first.

    Raises:
        InputError: There are no people or no attributes, labels don't fit the network, scores are not finite, or a flip
            changes the number of rows.

    Example:
        >>> from fairtrim import ColumnFlip
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> network = torch.nn.Linear(2, 1)
        >>> with torch.no_grad():
        ...     _ = network.weight.copy_(torch.tensor([[4.0, 0.0]])), network.bias.fill_(-2.0)
        >>> people = ValidationSet(x, torch.tensor([0, 1, 1, 0]), torch.zeros(4), ("all",))
        >>> flips = {"first": ColumnFlip(binary={0: (0.0, 1.0)}), "second": ColumnFlip(binary={1: (0.0, 1.0)})}
        >>> found = biased_attributes(network, people, flips)
        >>> [(entry.attribute, round(entry.bias, 3), entry.flips) for entry in found]
        [('first', 0.762, 1.0), ('second', 0.0, 0.0)]
    """
    require_number("delta", delta, at_least=0, below=1)
    require_number("batch_size", batch_size, at_least=1, whole=True)
    if not attributes or not isinstance(attributes, Mapping):
        raise InputError(f"attributes={attributes!r}; expected flips by name, e.g. {{'sex': ColumnFlip(...)}}")
    if not isinstance(people, ValidationSet):
        raise InputError(
            f"people is a {type(people).__name__}; expected a ValidationSet, e.g. ValidationSet.from_loader(loader, "
            "require_sensitive=False)"
        )
    if not bool(people.mass.any()):
        raise InputError("the people are nobody, or have no weight; expected some, with labels")
    flips_of = {name: list(flip) if isinstance(flip, Sequence) else [flip] for name, flip in attributes.items()}
    if idle := [name for name, flips in flips_of.items() if not flips or not all(map(callable, flips))]:
        raise InputError(f"{idle} have no flips; expected at least one each, e.g. ColumnFlip(...).every()")
    network = ScoredNetwork(model, forward_fn, output_transform)
    network.check()
    share = people.mass / people.mass.sum()

    def scores(side: ValidationSet) -> torch.Tensor:
        with torch.no_grad():
            batches = side.batches(batch_size, network.device)
            given = torch.cat([network.scores(batch) for _, batch in batches])
        given = given.cpu()  # the one wait
        seen = ProbabilityScores()
        seen.add(given)
        seen.check_single("the network")
        if seen.shares:
            refuse_shares("the network")
        return given.double()

    def interval(values: torch.Tensor) -> tuple[float, float, float]:
        mean = float(share @ values)
        one = float(share.square().sum())  # one over the effective number: nothing seen isn't nothing possible
        error = math.sqrt(float((share * (values - mean)).square().sum()) + one**2)
        return mean, max(0.0, mean - _Z * error), min(1.0, mean + _Z * error)

    found = []
    with preserved_random_state(), preserved_model(model):
        here = _finite(scores(people), "the people")
        people.check(None, max(2, here.shape[1]))
        for name, several in flips_of.items():
            flips, changes = [], []
            for flip in several:
                flipped = replace(people, inputs=flip(map_tensors(people.inputs, torch.clone)), counterfactual=None)
                there = _finite(scores(flipped), f"the people with {name!r} flipped")
                changes.append((label_probability(here, people.target) - label_probability(there, people.target)).abs())
                flips.append((labels_of(here) != labels_of(there)).double())
            change, flip_share = torch.stack(changes), torch.stack(flips)
            bias = interval(change.mean(0))
            found.append(
                AttributeBias(
                    name,
                    *bias,
                    *interval(flip_share.mean(0)),
                    biased=bias[1] > delta,
                    worst_bias=float(share @ change.amax(0)),
                    any_flip=float(share @ flip_share.amax(0)),
                )
            )
    return sorted(found, key=lambda entry: -entry.bias)


def _finite(scores: torch.Tensor, whose: str) -> torch.Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise InputError(f"scores of {whose} are not finite; expected finite ones: look at their inputs")
    return scores
