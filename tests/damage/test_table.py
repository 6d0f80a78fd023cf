"""A damage table by name, in tidy form, of larger groups and with small ones pulled toward everybody."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tables import random_table


def test_pooling_and_shrinking_groups() -> None:
    table = random_table({"x": 2})
    pooled = table.pooled([[0, 2], [1]], ["a or c", "b"])
    torch.testing.assert_close(pooled.damage[0], (5 * table.damage[0] + 2 * table.damage[2]) / 7)
    assert pooled.counts.tolist() == [7.0, 11.0]
    shrunk = table.shrunk(10.0)
    everybody = table.shares @ table.damage
    torch.testing.assert_close(shrunk.damage[2], (2 * table.damage[2] + 10 * everybody) / 12)
    torch.testing.assert_close(table.shrunk(0).interactions, table.interactions)
    removal = {"x": [0, 1]}
    torch.testing.assert_close(
        shrunk.predict(removal)[0], (5 * table.predict(removal)[0] + 10 * table.shares @ table.predict(removal)) / 15
    )


def test_table_by_name_and_in_tidy_form() -> None:
    table = random_table({"x": 2, "y": 3})
    torch.testing.assert_close(table["y"], table.damage[:, 2:])
    assert "y" in table and "z" not in table
    frame = table.to_frame()
    assert list(frame.columns[:4]) == ["layer", "channel", "sensitive_group", "damage"]
    assert len(frame) == 15
    row = frame[(frame.layer == "y") & (frame.channel == 1) & (frame.sensitive_group == "c")].iloc[0]
    assert row.damage == pytest.approx(float(table["y"][2, 1]))
    assert row.first_order + row.second_order == pytest.approx(row.damage)


def test_the_verdict_tells_of_a_rise_only_where_there_is_one() -> None:
    damage = torch.tensor([[0.1, 0.3], [0.5, 0.7], [-1.0, 0.0]])
    hurt = replace(random_table({"x": 2}), slope=-damage, curvature=torch.zeros_like(damage))
    scored = "2 channels of 1 layers, scored for 3 sensitive groups: removing one raises "
    assert hurt.verdict() == f"{scored}the mean loss of b most, by 0.6 on average."
    assert replace(hurt, slope=damage.abs()).verdict() == f"{scored}nobody's mean loss on average."
    assert "1,500,000" in str(replace(hurt, counts=torch.tensor([1.5e6, 7, 2])))
