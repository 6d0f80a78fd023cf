"""Cuts and weights of mined samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fairtrim import InputError
from fairtrim.mining import (
    MinedSamples,
)
from fairtrim.mining.mined_samples import require_some_mined

# What was mined -------------------------------------------------------------------------------------------


def _mined(cut: Tensor | None = None) -> MinedSamples:
    """Classes of 10, 7 and 3 samples, mixed."""
    generator = torch.Generator().manual_seed(2)
    target = torch.tensor([0] * 10 + [4] * 7 + [1] * 3)[torch.randperm(20, generator=generator)]
    return MinedSamples(torch.rand(20, generator=generator, dtype=torch.float64), target, cut)


def test_threshold() -> None:
    mined = _mined(torch.zeros(20, dtype=torch.bool))
    level = float(mined.scores.median())
    assert mined.conflicting(threshold=level).tolist() == [s > level for s in mined.scores.tolist()]


@pytest.mark.parametrize(("share", "counts"), [(0.3, (3, 2, 1)), (0.1, (1, 1, 1)), (0.5, (5, 4, 2)), (0.9, (9, 6, 3))])
@pytest.mark.parametrize("tied", [False, True])
def test_share_of_every_class(share: float, counts: tuple[int, ...], tied: bool) -> None:
    """Exact counts, those with the highest scores, at least one; also where all scores are equal."""
    mined = _mined()
    if tied:
        mined = MinedSamples(torch.zeros(20), mined.target)
    chosen = mined.conflicting(share_per_class=share)
    for label, count in zip((0, 4, 1), counts, strict=True):
        members = mined.target == label
        assert int((chosen & members).sum()) == count
        if count < int(members.sum()):
            assert mined.scores[chosen & members].min() >= mined.scores[~chosen & members].max()


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_robust_deviations(k: float) -> None:
    mined = _mined()
    scores, target = mined.scores.numpy(), mined.target.numpy()
    expected = np.zeros(20, dtype=bool)
    for label in (0, 1, 4):
        of_class = scores[target == label]
        median = np.median(of_class)
        deviation = 1.4826 * np.median(np.abs(of_class - median))
        expected[target == label] = of_class > median + k * deviation
    assert mined.conflicting(deviations=k).tolist() == expected.tolist()


def test_robust_deviations_by_hand() -> None:
    """Median 0.2, MAD 0.1: six deviations end at 1.08956; the other class is on another level altogether."""
    scores = torch.tensor([0.0, 0.1, 0.2, 0.3, 1.08, 1.10, 0.2, 5.0, 5.1, 5.2], dtype=torch.float64)
    mined = MinedSamples(scores, torch.tensor([0] * 7 + [1] * 3))
    assert mined.conflicting(deviations=6).nonzero().flatten().tolist() == [5]
    assert mined.conflicting(deviations=5.9).nonzero().flatten().tolist() == [4, 5]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_share_of_the_way_to_the_highest_score(share: float) -> None:
    mined = _mined()
    scores, target = mined.scores.numpy(), mined.target.numpy()
    expected = np.zeros(20, dtype=bool)
    for label in (0, 1, 4):
        of_class = scores[target == label]
        expected[target == label] = of_class > (1 - share) * np.median(of_class) + share * of_class.max()
    assert 0 < expected.sum() < 20
    assert mined.conflicting(fraction_of_range=share).tolist() == expected.tolist()


def test_own_decision_is_the_default_and_gives_way() -> None:
    """Without one the cut is halfway from the median of the class, 0.2 and 5, to its highest score, 2 and 9."""
    cut = torch.arange(20) % 6 == 0
    mined = _mined(cut)
    assert torch.equal(mined.conflicting(), cut)
    assert int(mined.conflicting(share_per_class=0.3).sum()) == 6
    scores = torch.tensor([0.0, 0.1, 0.2, 1.0, 0.2, 1.2, 0.2, 0.0, 2.0, 5.0, 5.0, 9.0, 6.9], dtype=torch.float64)
    without = MinedSamples(scores, torch.tensor([0] * 9 + [3] * 4))
    assert without.conflicting().nonzero().flatten().tolist() == [5, 8, 11]


def test_a_class_without_outliers_has_none() -> None:
    """All the same, or one sample: nothing is beyond the median."""
    scores = torch.tensor([0.3, 0.3, 0.3, 0.9], dtype=torch.float64)
    assert not MinedSamples(scores, torch.tensor([0, 0, 0, 1])).conflicting().any()


@pytest.mark.parametrize("mass", [0.5, 0.2])
def test_mined_samples_get_their_share_of_the_draws(mass: float) -> None:
    mined = _mined(torch.arange(20) % 6 == 0)  # 4 samples
    weights = mined.sample_weights(mass=mass)
    assert weights.dtype == torch.float64
    expected = [20 * (mass / 4 if n % 6 == 0 else (1 - mass) / 16) for n in range(20)]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    other = mined.sample_weights(torch.arange(20) < 3, mass=mass)
    assert float(other[:3].sum() / other.sum()) == pytest.approx(mass)
    counts = torch.zeros(20)
    sampler = mined.sampler(weights, random_state=torch.Generator().manual_seed(0))
    for _ in range(200):
        drawn = torch.tensor(list(sampler))
        assert len(drawn) == 20
        counts += torch.bincount(drawn, minlength=20)
    assert float(counts[::6].sum() / counts.sum()) == pytest.approx(mass, abs=0.03)


def test_sampler_by_default() -> None:
    mined = _mined(torch.arange(20) == 5)
    drawn = torch.tensor([n for _ in range(50) for n in mined.sampler(random_state=torch.Generator().manual_seed(0))])
    left, right = (list(mined.sampler(random_state=torch.Generator().manual_seed(1))) for _ in range(2))
    assert left == right
    assert float((drawn == 5).double().mean()) == pytest.approx(0.5, abs=0.2)


def test_soft_weights() -> None:
    mined = _mined()
    weights = mined.sample_weights(soft=True)
    torch.testing.assert_close(weights, mined.scores / mined.scores.mean())
    shifted = MinedSamples(mined.scores - 0.5, mined.target).sample_weights(soft=True)
    assert float(shifted.min()) == 0 and float(shifted.mean()) == pytest.approx(1)
    with pytest.raises(InputError, match="every score is 0"):
        MinedSamples(torch.zeros(20), mined.target).sample_weights(soft=True)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.conflicting(threshold=0.5, deviations=3), "expected one of threshold=, share_per_class=, dev"),
        (lambda m: m.conflicting(share_per_class=0.5, deviations=3), "not several"),
        (lambda m: m.conflicting(share_per_class=0.0), "share_per_class=0.0; expected a share between 0 and 1"),
        (lambda m: m.conflicting(share_per_class=1.0), "share_per_class=1.0"),
        (lambda m: m.conflicting(deviations=0.0), "deviations=0.0; expected a positive number"),
        (lambda m: m.conflicting(fraction_of_range=1.0), "fraction_of_range=1.0; expected a share between 0 and 1"),
        (lambda m: m.sample_weights(mass=0.0), "mass=0.0; expected a share between 0 and 1"),
        (lambda m: m.sample_weights(mass=1.0), "mass=1.0"),
        (lambda m: m.sample_weights(m.conflicting(threshold=9)), r"no sample was mined.*share_per_class=\.\.\."),
        (lambda m: m.sample_weights(m.conflicting(threshold=-9)), "all 20 samples were mined"),
        (lambda m: m.sampler(), "no sample was mined"),
        (lambda m: require_some_mined(torch.ones(3).bool()), "all 3 samples"),
    ],
)
def test_refuses(ask: Callable[[MinedSamples], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(_mined(torch.zeros(20, dtype=torch.bool)))


def test_scores_that_are_all_the_same_are_no_outliers() -> None:
    scores = torch.full((20,), 1e-9, dtype=torch.float64)
    scores[3] = 2e-9
    assert not MinedSamples(scores, torch.arange(20) % 2).conflicting(deviations=8).any()
    assert not MinedSamples(scores, torch.arange(20) % 2).conflicting().any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (torch.tensor([0, 5]), r"int64 of shape \(2,\); expected one flag for each sample"),
        (torch.ones(20, 1).bool(), r"shape \(20, 1\)"),
        ([True] * 20, "the mined set is list"),
        (torch.arange(19) == 3, "19 flags for 20 samples"),
    ],
)
def test_what_is_no_mined_set(flags: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _mined().sample_weights(flags)


def test_mined_samples_print_in_a_line() -> None:
    assert repr(MinedSamples(torch.tensor([0.5, 0.25]).double(), torch.tensor([0, 1]))) == (
        "MinedSamples(2 samples, 2 classes, scores 0.25 to 0.5)"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64, torch.bool])
def test_scores_of_any_type_are_numbers(dtype: torch.dtype) -> None:
    mined = MinedSamples(torch.tensor([0, 1, 0, 0, 0, 1, 0]).to(dtype), torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert mined.scores.dtype == torch.float64
    assert mined.conflicting().tolist() == [False, True, False, False, False, True, False]


def test_one_sample_in_a_class_is_no_outlier_of_it() -> None:
    mined = MinedSamples(torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([2, 0, 1, 1]))
    assert mined.conflicting(fraction_of_range=0.5).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scores": torch.tensor([0.1, float("nan"), 0.3])}, "and 1 are not finite; expected a finite number"),
        ({"scores": torch.tensor([0.1, float("inf"), 0.3])}, "and 1 are not finite"),
        ({"scores": torch.ones(3, 1)}, r"the scores have shape \(3, 1\)"),
        ({"scores": torch.ones(0), "target": torch.ones(0)}, r"the scores have shape \(0,\)"),
        ({"target": torch.arange(2)}, r"target has shape \(2,\); expected \(3,\)"),
        ({"cut": torch.tensor([True])}, r"cut has shape \(1,\); expected \(3,\)"),
        ({"levels": (0.0, 0.5), "confidence": torch.ones(1, 3)}, r"confidence has shape \(1, 3\); expected \(2, 3\)"),
    ],
)
def test_what_is_no_score_of_each_sample(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MinedSamples(**{"scores": torch.ones(3), "target": torch.arange(3), **given})
