"""A damage table by name, in tidy form, of larger groups and with small ones pulled toward everybody."""

from __future__ import annotations

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
