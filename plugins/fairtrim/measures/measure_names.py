"""The names of bias measures: Fairlearn's, and AIF360's and others that mean the same."""

from __future__ import annotations

from collections.abc import Sequence

from fairtrim.arguments import did_you_mean
from fairtrim.errors import InputError

__all__ = ["BIAS_MEASURE_NAMES", "SAME_MEASURES", "canonical_measure", "refuse_other_measure"]

BIAS_MEASURE_NAMES = (
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "average_odds_difference",
    "equalized_odds_difference",
    "accuracy_score_difference",
)
"""Fairlearn's; ``average_odds_difference`` is AIF360's."""

SAME_MEASURES = {
    "statistical_parity_difference": "demographic_parity_difference",
    "mean_difference": "demographic_parity_difference",
    "selection_rate_difference": "demographic_parity_difference",
    "true_positive_rate_difference": "equal_opportunity_difference",
}
"""Other names of the same: AIF360's, and Fairlearn's own second ones. Signs are those of whoever asks: a largest
difference between groups, or where two sides are named unprivileged minus privileged."""

_OTHER = {
    "accuracy_difference": "is called 'accuracy_score_difference'",
    "average_abs_odds_difference": (
        "is the mean of two absolute differences; the nearest are 'equalized_odds_difference', the larger of the two, "
        "and 'average_odds_difference', in which they can cancel each other"
    ),
    "average_odds_error": (
        "is the mean of two absolute differences; the nearest are 'equalized_odds_difference', the larger of the two, "
        "and 'average_odds_difference', in which they can cancel each other"
    ),
    "error_rate_difference": "is 'accuracy_score_difference' with the other sign; expected that",
    "zero_one_loss_difference": "is 'accuracy_score_difference' with the other sign; expected that",
    "false_negative_rate_difference": "is 'equal_opportunity_difference' with the other sign; expected that",
    "false_positive_rate_difference": (
        "is one of the two differences of 'equalized_odds_difference', which bounds both; expected that"
    ),
    "true_negative_rate_difference": (
        "is, with the other sign, one of the two differences of 'equalized_odds_difference', which bounds both; "
        "expected that"
    ),
    "disparate_impact": "is a ratio; the nearest difference is 'demographic_parity_difference'",
    "demographic_parity_ratio": "is a ratio; the nearest difference is 'demographic_parity_difference'",
    "disparate_impact_ratio": "is a ratio; the nearest difference is 'demographic_parity_difference'",
    "equal_opportunity_ratio": "is a ratio; the nearest difference is 'equal_opportunity_difference'",
    "equalized_odds_ratio": "is a ratio; the nearest difference is 'equalized_odds_difference'",
    "generalized_equalized_odds_difference": (
        "is of scores, not of decisions; the nearest is 'equalized_odds_difference'"
    ),
}
"""What means something else, or its negative: how it does, and which measure is nearest."""


def refuse_other_measure(name: str) -> None:
    """Refuse the name of a measure of Fairlearn or AIF360 that is none of ours, in words that name the nearest.

    Args:
        name: Of a measure.

    Raises:
        InputError: It is one of those.

    Example:
        >>> refuse_other_measure("equalized_odds_difference")
    """
    if name in _OTHER:
        raise InputError(f"measure={name!r} {_OTHER[name]}")


def canonical_measure(name: str, others: Sequence[str] = ()) -> str:
    """The one name of a bias measure, for whichever of its names is given.

    Args:
        name: Fairlearn's name, or AIF360's.
        others: Further names that are allowed, as they are.

    Returns:
        A name of ``BIAS_MEASURE_NAMES``, or of the others.

    Raises:
        InputError: There is no such measure.

    Example:
        >>> canonical_measure("statistical_parity_difference"), canonical_measure("equalized_odds_difference")
        ('demographic_parity_difference', 'equalized_odds_difference')
    """
    refuse_other_measure(name)
    known = [*BIAS_MEASURE_NAMES, *others]
    measure = SAME_MEASURES.get(name, name)
    if measure not in known:
        raise InputError(
            f"measure={name!r} is not a bias measure{did_you_mean(name, [*known, *SAME_MEASURES])}; expected one of "
            f"{known}"
        )
    return measure
