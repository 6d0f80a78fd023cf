"""Processes that share the samples give every copy of the network the same weights, those of all samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import FairtrimError
from fairtrim.processes import Processes
from fairtrim.reconstruction import Reconstruction, reconstruct
from fairtrim.reconstruction import passes as passes_module
from fairtrim.reconstruction import refit as refit_module
from fairtrim.reconstruction.least_squares import Ridge
from tests.reconstruction.test_refit import X, _residual_pair
from tests.shares import in_processes


def _together(
    shares: list[list[tuple[Tensor, ...]]], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[list[nn.Module], list[Reconstruction]]:
    dense, pruned, readers = _residual_pair(X)
    models = [copy.deepcopy(pruned) for _ in shares]
    handed: dict[int, Processes] = {}
    monkeypatch.setattr(refit_module, "Processes", lambda distributed, model: handed[distributed])

    def work(rank: int) -> Callable[[Processes], Reconstruction | FairtrimError]:
        def run(processes: Processes) -> Reconstruction | FairtrimError:
            handed[rank] = processes
            original = copy.deepcopy(dense)
            try:
                return reconstruct(
                    models[rank], original, shares[rank], readers, distributed=rank, progress=False, **options
                )
            except FairtrimError as error:  # raised when all have ended: the first to raise would stop the others
                return error

        return run

    results = in_processes([work(rank) for rank in range(len(shares))])
    done = [result for result in results if isinstance(result, Reconstruction)]
    if len(done) < len(results):
        raise next(result for result in results if not isinstance(result, Reconstruction))
    return models, done


@pytest.mark.parametrize("form", ["moments", "rows"])
@pytest.mark.parametrize("cut", [0, 30])
def test_processes_give_the_same_weights(cut: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "rows":
        monkeypatch.setattr("fairtrim.reconstruction.least_squares.MAX_UNKNOWNS", 20)
        monkeypatch.setattr(passes_module, "MAX_UNKNOWNS", 20)
        monkeypatch.setattr(passes_module, "MAX_ROWS", 400)
    group = torch.arange(80) % 3
    rows = [torch.arange(cut), torch.arange(cut, 80)]
    shares: list[list[tuple[Tensor, ...]]] = [
        [(X[part], torch.zeros(len(part)), group[part]) for part in own.split(16)] if len(own) else [] for own in rows
    ]
    models, done = _together(shares, monkeypatch, weigh_groups=True)
    assert done[0] == done[1] and not any(layer.why for layer in done[0].layers)
    if form == "moments":
        assert [layer.rows for layer in done[0].layers] == [80 * 42, 80 * 42]
    for name, value in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], value), name


def test_together_they_fit_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_module, "RIDGES", [Ridge(0.01, "own")])  # each holds out other samples
    with monkeypatch.context() as patch:
        models, done = _together([[(X[:40], torch.zeros(40))], [(X[40:], torch.zeros(40))]], patch)
    dense, pruned, readers = _residual_pair(X)
    alone = reconstruct(pruned, dense, [(X, torch.zeros(80))], readers, progress=False)
    assert [layer.rows for layer in done[0].layers] == [layer.rows for layer in alone.layers]
    for name, value in pruned.state_dict().items():
        torch.testing.assert_close(models[0].state_dict()[name], value)


def test_when_one_cannot_read_its_samples_all_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = X[:40].clone()
    bad[3] = torch.inf
    with pytest.raises(FairtrimError) as failed:
        _together([[(X[40:], torch.zeros(40))], [(bad, torch.zeros(40))]], monkeypatch)
    assert "process 1 of 2 failed" in str(failed.value) and "NaN or infinity" in str(failed.value)
