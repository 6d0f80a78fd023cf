"""The sentence on who pays: of the group that loses most, with a word on chance where its interval asks for it."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from fairtrim_adapters.torch_pruning.reconstruction.group_table import who_pays

ERROR = 0.01


def _measured(changes: dict[str, float], *, kind: str = "accuracy") -> pd.DataFrame:
    rows = [
        {
            "sensitive_group": name,
            "people": 100,
            "accuracy change": math.nan,
            f"{kind} dense": 0.8,
            f"{kind} pruned": 0.8 + change,
            f"{kind} change": change,
            f"{kind} standard error": ERROR,
        }
        for name, change in {**changes, "everybody": sum(changes.values()) / len(changes)}.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("kind", "sign"), [("accuracy", -1), ("loss", 1)])
@pytest.mark.parametrize(("errors", "chance"), [(1.5, True), (2.1, True), (2.6, False)])
def test_a_loss_may_be_chance(kind: str, sign: int, errors: float, chance: bool) -> None:
    # 1.96 errors are beyond chance for one group, 2.39 for the worst of three
    text = who_pays(_measured({"a": 0.0, "b": sign * errors * ERROR, "c": -sign * 0.05}, kind=kind))
    assert f"{kind} of everybody" in text and "worst for b (" in text and text.endswith("judged on 100 people")
    assert ("], which may be chance" in text) == chance
    assert ("which may be chance among 3 groups)" in text) == (errors == 2.1)


def test_no_group_loses_or_there_is_only_one() -> None:
    assert "chance" not in who_pays(_measured({"a": 0.01, "b": 0.02}))
    assert "worst" not in who_pays(_measured({"a": -0.01}))
