"""Tables of the commands: the verdict first, under 100 columns however many networks and groups there are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairtrim.comparison.predictions import Predictions
from fairtrim_adapters.command_line.tables import audit_text, sweep_text
from fairtrim_adapters.fairlearn import measurements


@pytest.mark.parametrize("n_networks", [1, 2, 4])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_an_audit_fits(n_networks: int, n_classes: int) -> None:
    generator = np.random.default_rng(0)
    target = generator.integers(n_classes, size=600)
    names = [f"checkpoint {k} of a name" for k in range(n_networks)]
    label = {name: np.where(generator.random(600) < 0.9 - 0.1 * k, target, 0) for k, name in enumerate(names)}
    people = Predictions(target, label, {}, {"sex": np.array(["Female", "Male"] * 300)}, n_classes)
    rows = {name: {"macs": 16281, **measurements(people, name, names[0], n_boot=20)} for name in names}
    text = audit_text(rows)
    assert max(map(len, text.splitlines())) < 100 and "16,281" in text
    first = " ".join(text.split("\n\n")[0].split())
    if n_networks == 1:
        lowest, group = min((rows[names[0]][f"accuracy[{name}]"], name) for name in ("Female", "Male"))
        assert first == f"One network, {names[0]!r}: its accuracy is lowest for {group}, {lowest:.3f}."
    else:
        loss = max(-100 * rows[names[-1]][f"accuracy_change[{group}]"] for group in ("Female", "Male"))
        assert first.startswith(f"Against {names[0]!r}, ") and f" {loss:.1f}" in first
    row = rows[names[-1]]
    assert f"{row['accuracy[Male]']:.3f} [{row['accuracy_low[Male]']:.3f}, {row['accuracy_high[Male]']:.3f}]" in text
    assert ("Each class against the rest" in text) is (n_classes > 2)


def test_a_sweep_says_who_keeps_the_worst_group() -> None:
    runs = [("dense", 0.0, 0.8), ("magnitude", 0.5, 0.7), ("magnitude", 0.75, 0.5), ("worst-group", 0.75, 0.65)]
    columns = ["criterion", "pruning_ratio", "worst_group_accuracy", "seed"]
    table = pd.DataFrame([(c, r, w + 0.02 * s, s) for c, r, w in runs for s in (0, 1)], columns=columns)
    for name in ("parameters_ratio", "macs_ratio", "latency_ratio", "parameters", "accuracy"):
        table[name] = 1 - table["pruning_ratio"]
    for gap in ("accuracy_score_difference", "equalized_odds_difference", "demographic_parity_difference"):
        table[gap] = 0.1
    table["post_processor"] = "none"
    text = sweep_text(table, None)
    told = "the worst group keeps most accuracy with worst-group, 0.660, least with magnitude, 0.510."
    assert " ".join(text.split()).startswith(f"At a pruning ratio of 0.75 {told}")
    assert max(map(len, text.splitlines())) < 100 and "Means over 2 seeds" in text and text.count("*") >= 2
    repaired = sweep_text(table.assign(post_processor="threshold"), None)
    assert "with worst-group and threshold, 0.660" in " ".join(repaired.split())
    assert sweep_text(table[table["criterion"] == "dense"], None).startswith("Nothing was pruned.\n\n")
    unknown = sweep_text(table.drop(columns="worst_group_accuracy"), {"accuracy": "max"})
    assert unknown.startswith("At a pruning ratio of 0.75 no network has a worst group.\n\n")
