"""Under another default device or type of torch's, and deterministic algorithms, results are as they are without."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    AdversarialFineTuning,
    AdversarialProjection,
    BiasGradientDescent,
    ChannelGroup,
    ChannelPlace,
    ColumnErasure,
    ColumnFlip,
    CounterfactualUnlearning,
    GeneralizedCrossEntropyMiner,
    MisclassifiedMiner,
    ParityFineTuning,
    RandomPerturbation,
    ThresholdSelection,
    ValidationSet,
    changed_samples,
    collect_damage,
    counterfactual_bias,
    fine_tune,
    influence_on_bias,
    predict,
    prune_by_group_saliency,
    recalibrate_output,
    unlearn_samples,
)
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.mining import KnownSamples, MinedSamples
from fairtrim.reconstruction import Reader, reconstruct
from fairtrim_adapters.torch_pruning import WorstGroupImportance, dcwp, prune_to
from tests.pretend_accelerator import Accelerator, PretendAccelerator

ROOT = Path(__file__).parents[1]
N = 60
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
X[:, 2] = (X[:, 2] > 0).float()
Y = (X[:, 0] + 0.7 * X[:, 2] > 0).long()
PEOPLE = [(X[k : k + 23], Y[k : k + 23], ["a", "b", "b", "b", "a"] * 5) for k in (0, 23)]
PEOPLE = [(x, y, names[: len(x)]) for x, y, names in PEOPLE]
LOADER: DataLoader[Any] = DataLoader(TensorDataset(X, Y), batch_size=17)
FLIP = ColumnFlip(binary={2: (0.0, 1.0)})
CONFLICTING = torch.arange(N) % 7 == 2
QUIET: Any = {"progress": False}


class _Kept(nn.Module):
    """ReLU of some of the channels."""

    def __init__(self, channels: Tensor) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.channels].relu()


def _network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).eval().float()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
    return network


_HIDDEN = ChannelGroup("hidden", 5, (ChannelPlace("3", "input", range(5), range(5), channel_axis=-1),))


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


def _repaired(method: Any) -> Callable[[nn.Module], Any]:
    def run(network: nn.Module) -> Any:
        repair = method.repair(network, PEOPLE, **QUIET)
        return _weights(repair.model), repair.bias, repair.bias_before

    return run


def _scores_of(table: Any) -> Any:
    return table.counts, table.curvature


def _refitted(network: nn.Module) -> Any:
    pruned, device = copy.deepcopy(network), next(network.parameters()).device
    kept = torch.tensor([0, 1, 2, 4], device=device)
    pruned[3] = nn.Linear(4, 2, device=device, dtype=torch.float32)
    with torch.no_grad():
        pruned[3].weight.copy_(network[3].weight[:, kept])
        pruned[3].bias.copy_(network[3].bias)
    pruned[2] = _Kept(kept)
    reconstruct(pruned, network, PEOPLE, [Reader("3", [0, 1])], **QUIET)
    return _weights(pruned)


def _pruned(network: nn.Module) -> Any:
    importance = WorstGroupImportance(model=network, loader=PEOPLE, **QUIET)
    device = next(network.parameters()).device
    pruner = tp.pruner.BasePruner(network, X.to(device), importance, pruning_ratio=0.4, ignored_layers=[network[3]])
    pruner.step()
    return _weights(network)


RUNS: dict[str, Callable[[Any], Any]] = {
    "collect_damage": lambda n: _scores_of(collect_damage(n, PEOPLE, [_HIDDEN], interactions=True, **QUIET)),
    "squared_gradients": lambda n: squared_gradients(n, PEOPLE, **QUIET)[1],
    "group saliency": lambda n: _weights(prune_by_group_saliency(n, PEOPLE, iterative_steps=2, **QUIET).model),
    "predict": lambda n: predict(n, PEOPLE, **QUIET).scores,
    "changed_samples": lambda n: changed_samples(n, _opposite(n), PEOPLE, **QUIET).row,
    "fine_tune": lambda n: _weights(
        fine_tune(n, LOADER, epochs=2, held_out=0.3, conflicting=CONFLICTING, contrastive_weight=0.1, **QUIET)
    ),
    "recalibrate_output": lambda n: _weights(recalibrate_output(n, PEOPLE, **QUIET)),
    "reconstruct": _refitted,
    "perturbation": _repaired(RandomPerturbation(trials=3)),
    "parity": _repaired(ParityFineTuning(penalties=(1.0,), selection_share=0.4)),
    "parity of all layers": _repaired(ParityFineTuning(layers="all", penalties=(1.0,), epochs=1)),
    "bias descent": _repaired(BiasGradientDescent(epochs=1)),
    "adversarial": _repaired(AdversarialFineTuning(epochs=1, critic_steps=2, actor_steps=2, training_batch_size=23)),
    "projection": _repaired(AdversarialProjection(epochs=1, training_batch_size=23)),
    "thresholds": _repaired(ThresholdSelection()),
    "erasure": _repaired(ColumnErasure(columns=[2])),
    "unlearning": _repaired(CounterfactualUnlearning(counterfactual=FLIP)),
    "unlearning of all layers": _repaired(CounterfactualUnlearning(counterfactual=FLIP, layers="all", epochs=1)),
    "unlearn_samples": lambda n: _weights(unlearn_samples(n, LOADER, range(3), **QUIET)),
    "influence": lambda n: influence_on_bias(n, LOADER, _people(), measure="accuracy_score_difference", **QUIET).scores,
    "counterfactual_bias": lambda n: counterfactual_bias(_scores(n), -_scores(n), Y),
    "misclassified": lambda n: MisclassifiedMiner(epochs=1).mine(n, LOADER, **QUIET).scores,
    "generalized cross entropy": lambda n: GeneralizedCrossEntropyMiner(epochs=1).mine(n, LOADER, **QUIET).scores,
    "dcwp": lambda n: _weights(
        dcwp(
            n,
            LOADER,
            miner=KnownSamples(CONFLICTING),
            gate_training={"iterations": 2},
            fine_tuning={"epochs": 1},
            **QUIET,
        ).model
    ),
    "pruner": _pruned,
    "prune_to": lambda n: _weights(prune_to(n, PEOPLE, X[:1].to(next(n.parameters()).device), macs=0.6, **QUIET).model),
}


def _scores(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(X.to(next(network.parameters()).device)).cpu()


def _opposite(network: nn.Module) -> nn.Module:
    other = copy.deepcopy(network)
    other[3].weight.detach().neg_()
    return other


def _people(flip: Any = None) -> ValidationSet:
    return ValidationSet.from_loader(PEOPLE, counterfactual=flip, **QUIET)


_QUICK = ("squared_gradients", "perturbation", "unlearn_samples", "misclassified")
_RUNS = pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)


@pytest.mark.parametrize("there", [False, True], ids=["network on the CPU", "network on the device"])
@_RUNS
def test_default_device(pretend: PretendAccelerator, name: str, there: bool) -> None:
    network = _network().to(pretend.device if there else "cpu")
    expected = RUNS[name](copy.deepcopy(network))
    with torch.device(pretend.device):
        found = RUNS[name](network)
    pretend.check_same(found, expected)


@_RUNS
def test_deterministic_algorithms(pretend: PretendAccelerator, name: str, request: pytest.FixtureRequest) -> None:
    network = _network().to(pretend.device)
    expected = RUNS[name](copy.deepcopy(network))
    request.getfixturevalue("deterministic")
    pretend.check_same(RUNS[name](network), expected)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_the_pretend_device_refuses_what_cuda_refuses(pretend: PretendAccelerator) -> None:
    with pytest.raises(RuntimeError, match=r"cumsum.* has no deterministic form"):
        torch.ones(2, device=pretend.device).cumsum(0)
    assert torch.ones(2, device=pretend.device, dtype=torch.int64).cumsum(0).tolist() == [1, 2]


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@_RUNS
def test_default_type(name: str, default_dtype: torch.dtype) -> None:
    network = _network()
    found = RUNS[name](copy.deepcopy(network))
    torch.set_default_dtype(torch.float32)
    Accelerator(torch.device("cpu")).check_same(found, RUNS[name](network))


def test_drawn_samples(pretend: PretendAccelerator) -> None:
    mined = MinedSamples(torch.arange(N) / N, Y)
    expected = list(mined.sampler(random_state=3))
    with torch.device(pretend.device):
        assert list(mined.sampler(random_state=3)) == expected


_FACTORIES = {
    *("tensor", "as_tensor", "asarray", "zeros", "ones", "full", "empty", "arange", "eye", "linspace", "rand"),
    *("randn", "randint", "randperm", "normal", "scalar_tensor", "tril_indices", "triu_indices"),
}


def test_every_tensor_is_made_with_a_device() -> None:
    unclear = re.compile(rf"torch\.({'|'.join(_FACTORIES)})\((?!.*device=)")  # of one line; the tree tells the rest
    wrong = []
    for path in [*(ROOT / "plugins").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        text = path.read_text()
        if not any(unclear.search(line) for line in text.splitlines() if ">>>" not in line and "... " not in line):
            continue
        wrong += [
            f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func).removeprefix("torch.") in _FACTORIES
            and not {keyword.arg for keyword in node.keywords} & {"device", None}
        ]
    assert not wrong, "say device=, for torch's default may be another one: " + "; ".join(wrong)


_COPIES = ("changed_samples", "reconstruct", "pruner")  # of the test itself, which can't be changed; and a host's


@_RUNS
def test_inference_mode(name: str) -> None:
    if name in _COPIES:
        pytest.skip("makes tensors of inference mode by itself")
    network = _network()
    expected = RUNS[name](copy.deepcopy(network))
    with torch.inference_mode():
        found = RUNS[name](network)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    Accelerator(torch.device("cpu")).check_same(found, expected)
