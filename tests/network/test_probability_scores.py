"""Networks that return probabilities, wherever logits are expected; and logits that look like them but are none."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, collect_damage
from fairtrim.comparison.changed_samples import changed_samples
from fairtrim.comparison.predictions import predict
from fairtrim.damage.channel_groups import ChannelGroup, ChannelPlace
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import LossMiner
from fairtrim.mining.contrastive_gates import gate_slopes, learn_gates
from fairtrim.mining.contrastive_objective import ContrastiveObjective
from fairtrim.network.losses import generalized_cross_entropy
from fairtrim.network.probability_scores import ProbabilityScores
from fairtrim_adapters.command_line import main
from fairtrim_adapters.fairlearn import compare_models, metric_frame
from fairtrim_adapters.torch_pruning import MeanDamageImportance

GROUP = ChannelGroup("0", 5, (ChannelPlace("2", "input", range(5), range(5), channel_axis=-1),))
SIGMOID = r"returns probabilities: .*expected a logit: .*output_transform=lambda p: torch.logit\(p, eps=1e-6\)"
SHARES = r"returns probabilities: the scores of every sample .* sum to 1.*output_transform=lambda p: .*log\(\)"


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def _people(n: int = 60) -> list[Any]:
    x = torch.randn(n, 3)
    return [(x, (x[:, 0] > 0).long(), ["a", "b"] * (n // 2))]


class Ending(nn.Module):
    """A network with something behind its last layer."""

    def __init__(self, n_scores: int, end: Callable[[Tensor], Tensor] | None = None, gain: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, n_scores))
        self.end, self.gain = end or nn.Identity(), gain

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.gain * self.body(x))


MADE_BY_A_SIGMOID: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.Sigmoid(),
    "function": torch.sigmoid,
    "method": lambda z: z.sigmoid(),
    "in place": lambda z: z.sigmoid_(),
    "one axis less": lambda z: torch.sigmoid(z).squeeze(1),
    "another precision": lambda z: torch.sigmoid(z.double()).float(),
    "hard": F.hardsigmoid,
    "reshaped": lambda z: z.sigmoid().reshape(-1)[:, None],
}


@pytest.mark.parametrize("name", MADE_BY_A_SIGMOID)
@pytest.mark.parametrize("n", [2, 60])
def test_the_output_of_a_sigmoid_is_known_whatever_its_values(name: str, n: int) -> None:
    model, people = Ending(1, MADE_BY_A_SIGMOID[name]), _people(n)
    for call in (
        lambda: predict(model, people, progress=False),
        lambda: metric_frame(model, people, metrics=accuracy_score, progress=False),
        lambda: compare_models({"dense": Ending(1), "pruned": model}, people, progress=False),
        lambda: changed_samples(Ending(1), model, people, progress=False),
    ):
        with pytest.raises(InputError, match=SIGMOID):
            call()
    assert model.training


def test_probabilities_that_something_else_made_are_known_by_their_values() -> None:
    model = Ending(1, lambda z: 1 / (1 + torch.exp(-(z - z.mean()))), gain=100.0)
    for call in (
        lambda: predict(model, _people(), progress=False),
        lambda: changed_samples(model, Ending(1), _people(), progress=False),
    ):
        with pytest.raises(InputError, match=SIGMOID):
            call()


def test_the_remedy_gives_the_labels_that_were_meant() -> None:
    model, people = Ending(1, torch.sigmoid), _people()
    found = predict(model, people, output_transform=lambda p: torch.logit(p, eps=1e-6), progress=False)
    meant = model(people[0][0])[:, 0] > 0.5
    assert 0 < meant.sum() < len(meant) and found.label["model"].tolist() == meant.long().tolist()


LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda z: z,
    "all alike, as of a network that lost everything": lambda z: z * 0 + 0.3,
    "nearly alike": lambda z: 0.5 + 0.01 * z.tanh(),
    "a gate inside": lambda z: z * z.sigmoid(),
    "log-probabilities": F.logsigmoid,
    "a logit of a sigmoid": lambda z: torch.logit(z.sigmoid()),
    "changed in place": lambda z: z.sigmoid().sub_(0.5),
    "positive ones": lambda z: z.abs() + 0.2,
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_not_mistaken(name: str) -> None:
    model = Ending(1, LOGITS[name])
    predict(model, _people(), progress=False)
    changed_samples(model, Ending(1), _people(), progress=False)
    collect_damage(
        nn.Sequential(*model.body), _people(), [GROUP], loss_fn=F.binary_cross_entropy_with_logits, progress=False
    )


@pytest.mark.parametrize("gain", [0.01, 1.0, 100.0])
def test_untrained_networks_are_not_mistaken(gain: float) -> None:
    """Many of them, with few and many samples, whatever their bias."""
    for seed in range(40):
        torch.manual_seed(seed)
        for n_scores in (1, 2, 3):
            model = Ending(n_scores, gain=gain)
            seen = ProbabilityScores()
            seen.add(model(torch.randn(30, 3)))
            assert not seen.shares and not seen.in_unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_classes", [2, 10, 300])
def test_rows_of_a_softmax_are_known(n_classes: int, dtype: torch.dtype) -> None:
    seen = ProbabilityScores()
    for _ in range(8):  # batches of one
        assert not seen.shares
        seen.add(torch.randn(1, n_classes).to(dtype).softmax(1))
    assert seen.shares
    seen.add(torch.randn(4, n_classes).to(dtype))
    assert not seen.shares


def test_one_hot_rows_may_be_features() -> None:
    seen = ProbabilityScores()
    seen.add(torch.eye(40))
    assert not seen.shares


def test_a_softmax_decides_as_its_logits_do() -> None:
    """The labels are the same, and so are the scores up to what a softmax leaves out."""
    model, people = Ending(3, nn.Softmax(1)), _people()
    found = predict(model, people, progress=False)
    model.end = nn.Identity()
    expected = predict(model, people, progress=False)
    assert found.label["model"].tolist() == expected.label["model"].tolist()
    left, right = (torch.from_numpy(p.scores["model"]).softmax(1) for p in (found, expected))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match=SHARES):  # it shows probabilities
        changed_samples(Ending(3), Ending(3, nn.Softmax(1)), people, progress=False)


CROSS_ENTROPIES: dict[str, Any] = {
    "default": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
    "partial": functools.partial(F.cross_entropy, label_smoothing=0.1),
}


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
@pytest.mark.parametrize("batch_size", [60, 3])
def test_cross_entropy_of_probabilities_is_refused(name: str, batch_size: int) -> None:
    model = nn.Sequential(*Ending(2).body, nn.Softmax(1))
    (x, y, a) = _people()[0]
    loader = [(x[s : s + batch_size], y[s : s + batch_size], a[s : s + batch_size]) for s in range(0, 60, batch_size)]
    with pytest.raises(InputError, match=SHARES):
        collect_damage(model, loader, [GROUP], loss_fn=CROSS_ENTROPIES[name], progress=False)
    right = collect_damage(
        model,
        loader,
        [GROUP],
        loss_fn=CROSS_ENTROPIES[name],
        output_transform=lambda p: p.clamp_min(1e-12).log(),
        curvature="exact",
        progress=False,
    )
    expected = collect_damage(
        nn.Sequential(*model[:-1]), loader, [GROUP], loss_fn=CROSS_ENTROPIES[name], curvature="exact", progress=False
    )
    torch.testing.assert_close(right.damage, expected.damage, rtol=1e-4, atol=1e-6)


def test_a_loss_of_probabilities_may_have_them() -> None:
    """What the network was trained with: binary cross-entropy of one, the likelihood of several."""
    people = _people()
    one = nn.Sequential(*Ending(1, gain=1).body, nn.Sigmoid())
    two = nn.Sequential(*Ending(2, gain=1).body, nn.Softmax(1))
    for model, loss in ((one, nn.BCELoss()), (two, lambda p, y: F.nll_loss(p.log(), y))):
        table = collect_damage(model, people, [GROUP], loss_fn=loss, progress=False)
        assert bool(torch.isfinite(table.damage).all())


def test_cross_entropy_of_the_output_of_a_sigmoid_is_refused() -> None:
    model = nn.Sequential(*Ending(1).body, nn.Sigmoid())
    with torch.no_grad():
        model[2].weight.mul_(100)
    for loss in (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))):
        with pytest.raises(InputError, match=SIGMOID):
            collect_damage(model, _people(), [GROUP], loss_fn=loss, progress=False)


def test_importances_refuse_before_anything_changed() -> None:
    model = nn.Sequential(*Ending(2).body, nn.Softmax(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    importance = MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(
        model, torch.randn(2, 3), importance=importance, pruning_ratio=0.5, ignored_layers=[model[2]]
    )
    with pytest.raises(InputError, match=SHARES):
        importance.fit(pruner, _people())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_miners_and_gates_refuse_probabilities() -> None:
    x, y, _ = _people()[0]
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    model = nn.Sequential(*Ending(2).body, nn.Softmax(1))
    with pytest.raises(InputError, match=SHARES):
        LossMiner(epochs=1).mine(model, loader, progress=False)
    samples = IndexedSamples(loader)
    flags = torch.arange(60) < 6
    objective = ContrastiveObjective(conflicting=flags, contrastive_weight=0.0)
    for call in (learn_gates, gate_slopes):
        with pytest.raises(InputError, match=SHARES):
            call(model, samples, [GROUP], objective, progress=False)
    other = ContrastiveObjective(conflicting=flags, contrastive_weight=0.0, loss_fn=generalized_cross_entropy)
    gate_slopes(model, samples, [GROUP], other, progress=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.delitem(sys.modules, "probable", raising=False)
    (tmp_path / "probable.py").write_text(
        "import torch\nfrom torch import nn\nfrom tests.sweep_cases import splits\n"
        "def net(): return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())\n"
        "def people(): return splits()\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["check", "--max", "accuracy_score_difference=1"],
        ["audit"],
        ["prune", "-o", "pruned.safetensors", "--criterion", "magnitude"],
        ["sweep", "--folder", "runs", "--criterion", "magnitude", "--latency-rounds", "0"],
        ["report", "-o", "report.md"],
    ],
    ids=lambda command: command[0],
)
def test_the_command_line_refuses_and_writes_nothing(
    folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    name, *options = command
    assert main([name, "--model", "probable:net", "--data", "probable:people", *options, "-q"]) == 2
    assert "returns probabilities" in capsys.readouterr().err
    assert not list(folder.glob("*.safetensors")) and not list(folder.glob("report*"))
