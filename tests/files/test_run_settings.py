"""Settings of a run as JSON holds them: what differs is told apart."""

from __future__ import annotations

import json
from functools import partial

import torch

from fairtrim.files.run_settings import described


def test_losses_are_told_apart() -> None:
    smooth, sharp = (partial(torch.nn.functional.cross_entropy, label_smoothing=s) for s in (0.1, 0.0))
    weighted, other = (torch.nn.CrossEntropyLoss(weight=torch.tensor(w)) for w in ([1.0, 2.0], [1.0, 3.0]))
    first, second = (lambda s, t: (s - t).square().sum(1)), (lambda s, t: (s - t).abs().sum(1))
    for one, two in ((smooth, sharp), (weighted, other), (first, second)):
        assert described(one) == described(one) != described(two)
        json.dumps(described(one))
