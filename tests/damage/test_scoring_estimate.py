"""What scoring is said to take, against shapes, against what it takes, and when it is said."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from fairtrim import InputError, activation_checkpointing, collect_damage, estimate_scoring
from fairtrim.damage import scoring_estimate
from fairtrim.damage.channel_costs import weight_uses
from fairtrim.damage.channel_groups import ChannelGroup, ChannelPlace
from fairtrim.damage.input_moments import input_moments
from tests.large_cases import feed_forward, llama, texts
from tests.networks import CASES
from tests.snapshot import Snapshot

HIDDEN = ChannelGroup("0", 7, (ChannelPlace("2", "input", range(7), range(7), channel_axis=-1),))


def _mlp(device: str = "cpu") -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(device)


def _batch(size: int = 4) -> tuple[Any, ...]:
    return torch.ones(size, 5), torch.arange(size) % 3, ["a"] * size


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_by_hand(device: str) -> None:
    """Two layers keep their inputs; the ReLU's output is the second one's, and the gate's, so that it counts once."""
    model = _mlp(device)
    estimate = estimate_scoring(model, _batch(), [HIDDEN], n_samples=10, n_groups=2, interactions=True)
    assert estimate.n_parameters == 5 * 7 + 7 + 7 * 3 + 3
    assert estimate.weight_bytes == 4 * estimate.n_parameters
    assert estimate.activation_bytes == 4 * 4 * (5 + 7)
    assert estimate.directions == 2 and (estimate.forward_passes, estimate.backward_passes) == (3, 3 * 2 + 1)
    assert (estimate.interactions, estimate.interaction_bytes) == ("exact", 8 * 2 * 7**2)
    assert estimate.moment_bytes == estimate.largest_moment_bytes == 8 * 7**2
    assert estimate.checkpointed_bytes is None and not estimate.checkpointed
    larger = estimate_scoring(model, _batch(8), [HIDDEN])
    assert larger.activation_bytes == 2 * estimate.activation_bytes and larger.forward_passes is None
    assert estimate_scoring(model, _batch(), [HIDDEN], curvature="empirical").directions == 1
    assert estimate_scoring(model, _batch(), [HIDDEN], loss_fn=nn.functional.multi_margin_loss).directions == 3
    assert all(len(line) <= 100 for line in str(estimate).splitlines()) and len(estimate.line()) <= 100


def test_leaves_no_trace() -> None:
    case = CASES["residual"]
    model, groups, batch = case.model().train(), case.plan(case.model()).groups, case.batch(3)
    before = Snapshot(model)
    estimate_scoring(model, batch, groups)
    before.assert_unchanged()


def test_language_model(transformers: Any) -> None:
    """On the meta device about the same; with checkpoints less, by what the blocks keep."""
    model = llama(transformers, num_hidden_layers=5)
    inputs, labels, people = texts()[0]
    batch = ({"input_ids": inputs["input_ids"]}, labels, people)
    here = estimate_scoring(model, batch, feed_forward(model), interactions="sketched", n_samples=7)
    away = estimate_scoring(model.to("meta"), batch, feed_forward(model), interactions="sketched", n_samples=7)
    assert here.checkpointed_bytes is not None and away.checkpointed_bytes is not None
    assert here.activation_bytes == pytest.approx(away.activation_bytes, rel=0.05)
    assert here.checkpointed_bytes == pytest.approx(away.checkpointed_bytes, rel=0.05)
    assert here.checkpointed_bytes < 0.5 * here.activation_bytes
    assert here.peak_bytes > here.weight_bytes + here.activation_bytes + here.score_bytes
    with activation_checkpointing(model):
        inside = estimate_scoring(model, batch, feed_forward(model), interactions="sketched", n_samples=7)
    assert inside.checkpointed and inside.activation_bytes == away.activation_bytes
    assert inside.peak_bytes == away.peak_bytes - away.activation_bytes + away.checkpointed_bytes
    assert (away.forward_passes, inside.forward_passes) == (3, 3 + 3 + 1)
    with pytest.raises(InputError, match="leave attention_mask out"):
        estimate_scoring(model, (inputs, labels, people), feed_forward(model))


def test_noted_before_it_starts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of a large network, once, if anybody listens; the table is the same."""
    model = _mlp()
    caplog.set_level(logging.INFO, "fairtrim")
    small = collect_damage(model, [_batch(), _batch(3)], [HIDDEN], progress=False)
    assert not caplog.messages
    monkeypatch.setattr(scoring_estimate, "LARGE", 1)
    told = collect_damage(model, [_batch(), _batch(3)], [HIDDEN], progress=False)
    (record,) = caplog.records
    assert record.name == "fairtrim.damage" and record.levelno == logging.INFO
    assert record.getMessage().startswith("7 channels: 2 forward, 5 backward passes; about ")
    assert torch.equal(told.slope, small.slope)
    collect_damage(model, iter([_batch()]), [HIDDEN])
    assert "1 forward, 2 backward passes a batch" in caplog.messages[-1]


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the estimate, which takes a pass, isn't made."""
    monkeypatch.setattr(scoring_estimate, "LARGE", 1)
    monkeypatch.setattr(scoring_estimate, "estimate_scoring", lambda *_, **__: pytest.fail("the estimate was made"))
    collect_damage(_mlp(), [_batch()], [HIDDEN])


class _Stream(IterableDataset[Any]):
    """Samples of which nobody knows how many."""

    def __iter__(self) -> Any:
        x, y, _ = _batch()
        return zip(x, y, strict=True)


def test_a_stream_has_no_length(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(scoring_estimate, "LARGE", 1)
    caplog.set_level(logging.INFO, "fairtrim")
    collect_damage(_mlp(), DataLoader(_Stream(), batch_size=2), [HIDDEN])
    assert "1 forward, 2 backward passes a batch" in caplog.text


def test_the_pass_of_the_estimate_is_counted_by_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is added up beside the table is that of the samples, whether the estimate is told or not."""
    monkeypatch.setattr(scoring_estimate, "LARGE", 1)
    found = []
    for level in (logging.INFO, logging.WARNING):
        model = _mlp()
        caplog.set_level(level, "fairtrim")
        with input_moments(model, [HIDDEN]) as moments, weight_uses(model) as uses:
            collect_damage(model, [_batch(), _batch(3)], [HIDDEN])
        found.append((moments.read().readers[0].n_rows, uses.per_sample(7)))
    assert found[0] == found[1] and found[0][0] == 7


class _Transposed(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_moments_of_inputs_on_the_first_axis() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), _Transposed())
    assert estimate_scoring(model, _batch(), [HIDDEN]).moment_bytes == 8 * 7**2


_MEASURED = """
import os, sys, threading, time
sys.modules["torchvision"] = None
import torch, transformers
from contextlib import nullcontext
from fairtrim import activation_checkpointing, collect_damage, estimate_scoring
from tests.large_cases import feed_forward, llama, texts

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

small = llama(transformers)
collect_damage(small, texts(), feed_forward(small), progress=False)  # so that what libraries need is there
sizes = dict(vocab_size=999, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, max_position_embeddings=128)
model = llama(transformers, **sizes)
batches = texts(6, 128)
for inside in (nullcontext(), activation_checkpointing(model)):
    with inside:
        estimate = estimate_scoring(model, batches[0], feed_forward(model), n_samples=6, n_groups=2)
        before, most, done = resident(), 0, False
        def watch():
            global most
            while not done:
                most = max(most, resident())
                time.sleep(0.001)
        thread = threading.Thread(target=watch)
        thread.start()
        collect_damage(model, batches, feed_forward(model), progress=False)
        done = True
        thread.join()
    print(estimate.peak_bytes - estimate.weight_bytes, most - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_against_what_it_takes(transformers: Any) -> None:
    """Within a factor of two beside the weights, where the allocator gives freed blocks back."""
    paths = os.pathsep.join([str(Path(p).resolve()) for p in sys.path if p] + [str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    figures = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(figures) == 2
    assert all(0.5 * measured < told < 2 * measured for told, measured in figures), figures


def test_told_of_gates_behind_layers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As those of queries and keys are: explicit products, which need to know how many samples there are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    group = ChannelGroup("0", 4, (ChannelPlace("0", "output", range(4), range(4), channel_axis=-1),))
    people = [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]), ["a", "b", "a", "b", "b"])]
    quiet = collect_damage(model, people, [group], progress=False)
    monkeypatch.setattr(scoring_estimate, "LARGE", 1)
    caplog.set_level(logging.INFO, "fairtrim")
    told = collect_damage(model, people, [group], progress=False)
    assert "4 channels" in caplog.text
    assert torch.equal(told.slope, quiet.slope) and torch.equal(told.curvature, quiet.curvature)
