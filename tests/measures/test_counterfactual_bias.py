"""Figures of counterfactual pairs against a loop."""

from __future__ import annotations

import pytest
import torch

from fairtrim import (
    InputError,
    counterfactual_bias,
)
from fairtrim.measures.scores import two_or_more
from tests.unlearning_cases import DOUBLE, plain_figures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_outputs", [1, 2, 3, 5])
def test_figures_of_pairs_equal_a_loop(n_outputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n_outputs)
    scores = 2 * torch.randn(23, n_outputs, generator=generator, dtype=dtype)
    flipped = scores + torch.randn(23, n_outputs, generator=generator, dtype=dtype)
    target = torch.randint(0, max(2, n_outputs), (23,), generator=generator)
    bias = counterfactual_bias(scores, flipped, target)
    assert bias.n_pairs == 23
    for name, value in plain_figures(scores, flipped, target).items():
        assert getattr(bias, name) == pytest.approx(value, rel=1e-9), name
    assert 0 < bias.flips < 1
    same = counterfactual_bias(scores, scores, target)
    assert (same.mean_change, same.flips, same.relative_change) == (0, 0, 0)


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_shrinking_the_scores_lowers_the_mean_change_alone(n_outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(37, n_outputs, generator=generator, **DOUBLE)
    flipped = scores + torch.randn(37, n_outputs, generator=generator, **DOUBLE)
    target = (scores[:, 0] > 0).long() if n_outputs == 1 else scores.argmax(1)
    full, small = (counterfactual_bias(size * scores, size * flipped, target) for size in (1.0, 0.01))
    assert small.mean_change < 0.1 * full.mean_change and small.cross_entropy > full.cross_entropy
    assert small.flips == full.flips and small.relative_change == pytest.approx(full.relative_change)


def test_shifting_all_scores_of_a_person_is_no_change() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, shift = (torch.randn(19, width, generator=generator, **DOUBLE) for width in (3, 1))
    bias = counterfactual_bias(scores, scores + shift, scores.argmax(1))
    assert bias.flips == 0
    assert bias.mean_change == pytest.approx(0, abs=1e-12) and bias.relative_change == pytest.approx(0, abs=1e-12)


def test_extreme_scores() -> None:
    bias = counterfactual_bias(torch.tensor([[1e4], [-1e4]]), torch.tensor([[-1e4], [-1e4]]), torch.tensor([1, 1]))
    assert (bias.flips, bias.mean_change, bias.cross_entropy) == (0.5, 0.5, 5000.0)
    flat = counterfactual_bias(torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    assert (flat.flips, flat.relative_change) == (0, 0)  # no spread to divide by


def test_sides_of_different_shapes() -> None:
    with pytest.raises(InputError, match=r"scores are \(4, 2\) and \(4, 1\); expected pairs of one shape"):
        counterfactual_bias(torch.zeros(4, 2), torch.zeros(4, 1), torch.zeros(4).long())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_several_counterfactuals_of_each_person(n_outputs: int, weighted: bool) -> None:
    """The mean over all pairs, and the worst of each person in a loop."""
    generator = torch.Generator().manual_seed(n_outputs)
    scores = 2 * torch.randn(23, n_outputs, generator=generator, **DOUBLE)
    flipped = [scores + torch.randn(23, n_outputs, generator=generator, **DOUBLE) for _ in range(4)]
    target = torch.randint(0, max(2, n_outputs), (23,), generator=generator)
    weight = torch.rand(23, generator=generator, **DOUBLE) if weighted else None
    found = counterfactual_bias(scores, flipped, target, weight)
    alone = [counterfactual_bias(scores, side, target, weight) for side in flipped]
    for name in ("mean_change", "flips", "relative_change", "cross_entropy"):
        assert getattr(found, name) == pytest.approx(sum(getattr(one, name) for one in alone) / 4)
    assert found.n_pairs == 92
    for one in alone:
        assert (one.worst_change, one.any_flip) == pytest.approx((one.mean_change, one.flips))
    shares = torch.ones(23, **DOUBLE) if weight is None else weight
    worst, some = 0.0, 0.0
    for n in range(23):
        sides = [two_or_more(side[n : n + 1])[0] for side in (scores, *flipped)]
        own, *others = ((side.exp() / side.exp().sum())[target[n]] for side in sides)
        worst += float(shares[n] / shares.sum()) * max(abs(float(own - other)) for other in others)
        some += float(shares[n] / shares.sum()) * any(side.argmax() != sides[0].argmax() for side in sides)
    assert (found.worst_change, found.any_flip) == pytest.approx((worst, some))
    assert found.worst_change > found.mean_change and found.any_flip > found.flips
    with pytest.raises(InputError, match="there are no counterfactuals"):
        counterfactual_bias(scores, [], target)
