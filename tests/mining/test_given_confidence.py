"""The network's own confidence, against a loop by hand."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from fairtrim.mining import GivenConfidence
from tests.mining_cases import CASE, data_of, loader_of_shortcut, shortcut
from tests.snapshot import Snapshot


def test_equals_a_loop_by_hand() -> None:
    model, (x, y) = CASE.model().train(), CASE.batch(13)
    before = Snapshot(model)
    halved = GivenConfidence(output_transform=lambda scores: scores / 2).mine(model, data_of(), progress=False)
    mined = GivenConfidence().mine(model, data_of(), progress=False)
    before.assert_unchanged()
    model.eval()
    for found, share in ((mined, 1.0), (halved, 0.5)):
        with torch.no_grad():
            rows = [torch.softmax(share * model(x[n : n + 1]), 1)[0] for n in range(13)]
        torch.testing.assert_close(found.scores, torch.stack([1 - row[y[n]] for n, row in enumerate(rows)]))
        assert torch.equal(found.target, y) and found.cut is None


def test_finds_samples_that_contradict_the_shortcut(trained: nn.Sequential) -> None:
    mined = GivenConfidence().mine(trained, loader_of_shortcut(), progress=False)
    assert roc_auc_score(shortcut()[2], mined.scores) > 0.9
