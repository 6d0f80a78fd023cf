"""The sentence of a comparison: who loses most, said only beyond chance, whatever there is to say."""

from __future__ import annotations

import math

import pytest

from fairtrim.comparison.verdicts import GroupChange, verdict_of, worst_of

NAN = math.nan


def changes(*values: float, names: str = "abcdef", half: float | None = 0.002) -> list[GroupChange]:
    """Of the groups a, b, ...; with intervals of one width, or none."""
    return [
        GroupChange(name, value) if half is None else GroupChange(name, value, value - half, value + half)
        for name, value in zip(names, values, strict=False)
    ]


@pytest.mark.parametrize(
    ("networks", "sentence"),
    [
        ({"p": changes(-0.058, -0.01)}, "p costs a 5.8 points of accuracy."),
        (
            {"p": changes(-0.01, -0.058), "q": changes(-0.012, 0.02)},
            "p costs b 5.8 points of accuracy and q 1.2 (a).",
        ),
        (
            {"p": changes(-0.05), "q": changes(-0.04), "r": changes(-0.03)},
            "p costs a 5.0 points of accuracy, q 4.0 (a) and r 3.0 (a).",
        ),
        ({"p": changes(-0.05), "q": changes(0.05)}, "p costs a 5.0 points of accuracy; q costs no group accuracy"),
        ({"p": changes(0.0, 0.01, NAN)}, "p costs no group accuracy among these people."),
        ({"p": changes(NAN, NAN)}, "what p costs isn't known, for no group has an accuracy."),
        ({"p": changes(-0.001, 0.0)}, "a loss by p can't be told from chance (largest: a 0.1 points)."),
        ({"p": changes(NAN, -0.02, NAN)}, "p costs b 2.0 points of accuracy."),
        # ties
        ({"p": changes(-0.02, 0.01, -0.02)}, "p costs a and c 2.0 points of accuracy."),
        ({"p": changes(*[-0.02] * 3)}, "p costs each of 3 groups 2.0 points of accuracy."),
        # no intervals
        (
            {"p": changes(-0.0001, half=None)},
            "p costs a 0.01 points of accuracy (as measured: without intervals it can't be told from chance).",
        ),
        ({"p": changes(0.1, half=None)}, "p costs no group accuracy among these people."),
        # the group of the largest loss is small
        (
            {"p": [*changes(-0.02), GroupChange("few", -0.3, -0.7, 0.1)]},
            "p costs a 2.0 points of accuracy (few's 30.0 may be chance).",
        ),
        # many networks
        (
            {name: changes(-0.01 * k) for k, name in enumerate("pqrst", 1)},
            "of 5 networks t costs most: a 5.0 points of accuracy; least: p 1.0 (a); 3 are between.",
        ),
        (
            {**{name: changes(-0.01 * k) for k, name in enumerate("pqrs")}, "few": changes(NAN)},
            "of 5 networks s costs most: a 3.0 points of accuracy; what few costs isn't known, for no group has an "
            "accuracy; 3 are between.",
        ),
        (
            {name: changes(-0.0001 * k) for k, name in enumerate("pqrs", 1)},
            "a loss by none of 4 networks can be told from chance (largest: s, a 0.04 points).",
        ),
        ({name: changes(0.0) for name in "pqrs"}, "none of 4 networks costs a group accuracy among these people."),
        ({name: changes(NAN) for name in "pqrs"}, "what 4 networks cost isn't known, for no group has an accuracy."),
    ],
)
def test_sentences(networks: dict[str, list[GroupChange]], sentence: str) -> None:
    found = verdict_of("dense", networks)
    assert found.startswith(f"Against 'dense', {sentence}") and found.endswith(".")
    assert verdict_of("dense", networks, at="a budget") == f"At a budget, against {found.removeprefix('Against ')}"


def test_the_interval_pays_for_the_choice_of_the_group() -> None:
    """A loss that is told of one group alone isn't, where it is the largest of thirty."""
    loss, others = GroupChange("a", -0.01, -0.0196, -0.0004), [GroupChange(f"g{k}", 0.0, -0.1, 0.1) for k in range(29)]
    assert "costs a 1.0 points" in verdict_of("dense", {"p": [loss]})
    assert "can't be told from chance" in verdict_of("dense", {"p": [loss, *others]})


def test_the_worst_is_one_beyond_chance_if_there_is_one() -> None:
    few, many = GroupChange("few", -0.1, -0.26, 0.06), GroupChange("many", -0.06, -0.07, -0.05)
    gain, nobody = GroupChange("gain", 0.02, -0.01, 0.05), GroupChange("nobody", float("nan"))
    one = GroupChange("one person", -1.0)
    assert worst_of([few, many, gain, nobody, one]) == (many, "")
    assert worst_of([few, gain, nobody]) == (few, ", which may be chance")
    near = GroupChange("near", -0.02, -0.039, -0.001)
    assert worst_of([near]) == (near, "") and worst_of([near, gain]) == (near, ", which may be chance among 2 groups")
    assert worst_of([one, nobody]) == (one, "")  # nothing has an interval: as measured
    assert worst_of([gain, nobody]) == (gain, "") and worst_of([nobody]) is None
