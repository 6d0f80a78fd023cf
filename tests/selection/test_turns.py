"""What is left is taken at once as it would be one by one."""

from __future__ import annotations

import pytest
import torch

from fairtrim.damage.channel_groups import ChannelColumns
from fairtrim.selection import Floor, Pool
from fairtrim.selection.turns import Turns

SIZES = {"x": 9, "y": 7, "z": 4}


def _turns(quotas: tuple[int | None, int | None]) -> Turns:
    pools = [Pool(("x", "y"), quotas[0]), Pool(("z",), quotas[1])]
    floors = [Floor("x", 3), Floor("x", 2, (0, 1, 2)), Floor("y", 4)]
    return Turns(ChannelColumns(SIZES), pools, floors, [Floor("x", 6), Floor("z", 2)])


@pytest.mark.parametrize("quotas", [(6, 1), (0, 0), (16, 4), (14, None), (None, None)])
@pytest.mark.parametrize("seed", range(4))
def test_the_rest_is_taken_as_one_by_one(seed: int, quotas: tuple[int | None, int | None]) -> None:
    """Against an argmin a pick; whole numbers, so that many are alike."""
    values = torch.randint(0, 5, (20,), generator=torch.Generator().manual_seed(seed)).double()
    slow, fast = _turns(quotas), _turns(quotas)
    expected = []
    while len(expected) < 20:
        pick = int(values.masked_fill(slow.closed(), torch.inf).argmin())
        assert not slow.closed()[pick]
        slow.take(pick)
        expected.append(pick)
    assert list(fast.rest(values)) == expected
    assert bool(fast.closed().all()) and fast.beyond == slow.beyond


def test_a_column_may_be_taken_before_the_rest() -> None:
    turns = _turns((6, 1))
    turns.take(3)
    turns.take(17)
    rest = list(turns.rest(-torch.arange(20.0)))
    assert sorted(rest) == sorted(set(range(20)) - {3, 17})
