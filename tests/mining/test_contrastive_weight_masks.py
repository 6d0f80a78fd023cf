"""Gates of single weights against loops and hand-written Adam, and masks that are the closed gates."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, UnsupportedModelError, fine_tune, load_pruned, save_pruned
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining.contrastive_objective import ContrastiveObjective
from fairtrim.mining.contrastive_weight_masks import gumbel_sigmoid, learn_weight_masks, masked_network
from tests.snapshot import Snapshot

CPU = torch.device("cpu")
N = 13
FLAGS = torch.arange(N) % 3 == 1
Y = torch.arange(N) % 2


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _loader(*size: int, batch_size: int = 5) -> DataLoader[Any]:
    x = torch.randn(N, *size, generator=_generator(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, Y), batch_size=batch_size, shuffle=True)


def _network() -> nn.Sequential:
    """Of a convolution, a BatchNorm and a linear layer, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = (nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2))
        return nn.Sequential(*layers).double()


OBJECTIVE = ContrastiveObjective(conflicting=FLAGS)
SHORT: dict[str, Any] = {"iterations": 4, "learning_rate": 0.3, "progress": False}


def test_gumbel_sigmoid() -> None:
    """Zeros and ones with P(1) = σ(π); the slope is s (1 − s) of the relaxed draw, at the same noise."""
    logits = torch.tensor([-2.0, 0.0, 1.5, 60.0, -60.0], dtype=torch.float64, requires_grad=True)
    uniform = torch.rand(4001, 5, generator=_generator(), dtype=torch.float64)
    gates = gumbel_sigmoid(logits, uniform)
    assert set(gates.detach().unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(gates.detach().mean(0), torch.sigmoid(logits.detach()), rtol=0, atol=0.03)
    slope = torch.autograd.grad(gates.sum(0).sum(), logits)[0]
    for c, pi in enumerate(logits.tolist()):
        relaxed = [1 / (1 + math.exp(-pi) * (1 - u) / u) for u in uniform[:, c].tolist()]
        assert slope[c].item() == pytest.approx(sum(s * (1 - s) for s in relaxed), rel=1e-9)


def test_draws_at_the_ends_have_no_slope_and_no_nan() -> None:
    logits = torch.zeros(2, requires_grad=True)
    gates = gumbel_sigmoid(logits, torch.tensor([0.0, 1 - 2**-24]))
    (slope,) = torch.autograd.grad(gates.sum(), logits)
    assert gates.tolist() == [0.0, 1.0] and slope.isfinite().all() and slope[0] == 0


def _contrast(features: Tensor, labels: Tensor, flags: Tensor, temperature: float) -> Tensor:
    """L_con, term by term."""
    z = [row / row.norm() for row in features]
    anchors = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [j for j in others if labels[j] == labels[i] and flags[j]]
        total = sum((torch.exp(z[i] @ z[a] / temperature) for a in others), start=torch.zeros(()))
        terms = [torch.log(torch.exp(z[i] @ z[j] / temperature) / total) for j in positives]
        if terms:
            anchors.append(sum(terms, start=torch.zeros(())) / len(terms))
    return -sum(anchors, start=torch.zeros(())) / len(anchors) if anchors else features.sum() * 0


def _logits_by_hand(model: Any, loader: DataLoader[Any], steps: int, rate: float, cost: float, upweight: float) -> Any:
    """The method restated: one weight after another, Adam written out, BatchNorm of the batch's own statistics."""
    names, generator = ["0.weight", "4.weight"], _generator()
    weights = {name: model.get_parameter(name).detach() for name in names}
    n_weights = sum(weight.numel() for weight in weights.values())
    pi = {name: torch.full_like(weight, 1.5) for name, weight in weights.items()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    samples, chances = IndexedSamples(loader), torch.where(FLAGS, upweight, 1.0).double()
    batches = (entry for _ in range(steps) for entry in samples.shuffled(CPU, generator, chances))
    for t in range(1, steps + 1):
        indices, batch = next(batches)
        noise = {}
        for name in names:
            u = torch.rand(pi[name].shape, generator=generator).double()
            noise[name] = torch.log(u / (1 - u))
        masks = {name: (pi[name] + noise[name] > 0).double().requires_grad_() for name in names}
        conv, head = (masks[name] * weights[name] for name in names)
        hidden = F.conv1d(batch.inputs, conv, model[0].bias.detach())
        mean, variance = hidden.mean((0, 2)), hidden.var((0, 2), unbiased=False)
        normal = (hidden - mean[:, None]) / (variance[:, None] + model[1].eps).sqrt()
        features = (normal * model[1].weight.detach()[:, None] + model[1].bias.detach()[:, None]).relu().flatten(1)
        scores = features @ head.T + model[4].bias.detach()
        own = scores.softmax(1)[torch.arange(len(scores)), batch.target]
        loss = -own.log().mean() + 0.3 * _contrast(features, batch.target, FLAGS[indices], 0.2)
        slopes = torch.autograd.grad(loss, list(masks.values()))
        for name, slope in zip(names, slopes, strict=True):
            for place in torch.cartesian_prod(*(torch.arange(n) for n in pi[name].shape)).tolist():
                at = tuple(place)
                p, g = pi[name][at].item(), noise[name][at].item()
                relaxed, open_ = 1 / (1 + math.exp(-p - g)), 1 / (1 + math.exp(-p))
                gradient = slope[at].item() * relaxed * (1 - relaxed) + cost / n_weights * open_ * (1 - open_)
                first[name][at] = 0.9 * first[name][at] + 0.1 * gradient
                second[name][at] = 0.999 * second[name][at] + 0.001 * gradient**2
                m, v = first[name][at].item() / (1 - 0.9**t), second[name][at].item() / (1 - 0.999**t)
                pi[name][at] = p - rate * m / (math.sqrt(v) + 1e-8)
    return pi


def test_learned_masks_equal_a_restatement() -> None:
    """In float64, with the same draws, beyond the first epoch."""
    model, loader = _network(), _loader(2, 4)
    objective = ContrastiveObjective(conflicting=FLAGS, upweight=7.0, contrastive_weight=0.3, temperature=0.2)
    settings: dict[str, Any] = {"random_state": _generator(), "progress": False, "cost_weight": 0.9}
    learned = learn_weight_masks(model, loader, objective, iterations=5, learning_rate=0.4, **settings)
    expected = _logits_by_hand(model, loader, steps=5, rate=0.4, cost=0.9, upweight=7.0)
    assert learned.keys() == expected.keys()
    for name, pi in expected.items():
        torch.testing.assert_close(learned[name], pi, rtol=1e-6, atol=1e-7)
        assert pi.std() > 0.1


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_the_network_stays(batchnorm: Any) -> None:
    model = _network().train()
    model[1].eval()
    F.cross_entropy(model(_loader(2, 4).dataset[0][0][None]), Y[:1]).backward()
    model[0].bias.requires_grad_(False)
    before = Snapshot(model)
    keys = [*model.state_dict()]
    logits = learn_weight_masks(model, _loader(2, 4), OBJECTIVE, batchnorm=batchnorm, **SHORT)
    masked_network(model, logits)
    before.assert_unchanged()
    assert [*model.state_dict()] == keys and isinstance(model[0].weight, nn.Parameter)
    assert {name: pi.shape for name, pi in logits.items()} == {"0.weight": (3, 2, 2), "4.weight": (2, 9)}
    assert all(pi.dtype == torch.float64 and bool(pi.isfinite().all()) for pi in logits.values())


def test_an_error_leaves_the_weights_in_place() -> None:
    def fails(scores: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    model = _network()
    before = Snapshot(model)
    with pytest.raises(RuntimeError, match="no loss"):
        learn_weight_masks(model, _loader(2, 4), ContrastiveObjective(conflicting=FLAGS, loss_fn=fails), **SHORT)
    before.assert_unchanged()
    assert isinstance(model[0].weight, nn.Parameter)


def test_the_mode_of_batchnorm_counts_and_train_is_the_default() -> None:
    default, train, evaluated = (
        learn_weight_masks(_network(), _loader(2, 4), OBJECTIVE, **SHORT, **more)
        for more in ({}, {"batchnorm": "train"}, {"batchnorm": "eval"})
    )
    assert torch.equal(default["0.weight"], train["0.weight"])
    assert not torch.allclose(default["0.weight"], evaluated["0.weight"], atol=1e-3)


def test_masks_are_the_closed_gates(tmp_path: Any) -> None:
    """The copy computes with zeros there, stays so in a fine-tuning, and is baked in by ``save_pruned``."""
    model = _network()
    logits = {
        "0.weight": torch.linspace(-0.5, 1, 12).reshape(3, 2, 2),
        "4.weight": torch.tensor([0.0, -0.1, 2.0]).repeat(6).reshape(2, 9),
    }
    before = Snapshot(model)
    sparse: Any = copy.deepcopy(masked_network(model, logits))
    before.assert_unchanged()
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for name, pi in logits.items():
            by_hand.get_parameter(name)[pi < 0] = 0
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(sparse.eval()(x), by_hand.eval()(x), rtol=1e-12, atol=1e-12)
    fine_tune(sparse, _loader(2, 4), epochs=2, learning_rate=0.1, progress=False)
    for name, pi in logits.items():
        layer = sparse.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(layer.weight == 0, pi < 0)
    assert not torch.allclose(sparse[4].weight, by_hand[4].weight)
    save_pruned(tmp_path / "sparse", sparse)
    loaded = load_pruned(tmp_path / "sparse", _network())
    torch.testing.assert_close(loaded.eval()(x), sparse.eval()(x))


def test_masks_go_where_the_weights_are() -> None:
    """Logits are on the CPU, whatever the network's device."""
    sparse: Any = masked_network(nn.Linear(3, 2, device="meta"), {"weight": torch.ones(2, 3)})
    assert sparse.weight_mask.device == sparse.weight_orig.device == torch.device("meta")


@pytest.mark.parametrize(("sparsity", "n_closed"), [(0.0, 0), (0.5, 5), (0.8, 8)])
def test_a_share_closes_the_smallest_over_all_layers(sparsity: float, n_closed: int) -> None:
    """Ties too: exactly so many go."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1))
    logits = {
        "0.weight": torch.tensor([[1.0, 1.0], [1.0, 9.0], [1.0, 1.0]]),
        "1.weight": torch.tensor([[-1.0, 1.0, 8.0]]),
        "2.weight": torch.tensor([[7.0]]),
    }
    if sparsity == 0.8:
        with pytest.warns(UserWarning, match=r"every weight of .*2\.weight is closed"):
            sparse: Any = masked_network(model, logits, sparsity=sparsity)
    else:
        sparse = masked_network(model, logits, sparsity=sparsity)
    masks = torch.cat([layer.weight_mask.flatten() for layer in sparse])
    assert int((masks == 0).sum()) == n_closed
    closed = torch.cat([pi.flatten() for pi in logits.values()])[masks == 0]
    assert n_closed == 0 or (closed.min() == -1 and closed.max() == (7 if sparsity == 0.8 else 1))


class Shared(nn.Module):
    """An embedding and an output layer of one weight, a layer that is not called, and a recurrence of none."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(2, 4), nn.Linear(4, 4)
        self.head, self.unused = nn.Linear(4, 2, bias=False), nn.Linear(4, 4)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x)).relu())


def test_a_shared_weight_has_one_gate() -> None:
    model = Shared()
    loader: DataLoader[Any] = DataLoader(TensorDataset(torch.arange(N) % 2, Y), batch_size=5)
    logits = learn_weight_masks(model, loader, OBJECTIVE, **SHORT)
    assert {name: pi.shape for name, pi in logits.items()} == {"embedding.weight": (2, 4), "body.weight": (4, 4)}
    logits["embedding.weight"][0, 1] = -1.0
    sparse: Any = masked_network(model, logits)
    assert sparse.embedding.weight_orig is sparse.head.weight_orig
    assert sparse.embedding.weight[0, 1] == 0 == sparse.head.weight[0, 1]


def test_layers_that_are_left() -> None:
    logits = learn_weight_masks(_network(), _loader(2, 4), OBJECTIVE, ignored_layers=["4"], **SHORT)
    assert [*logits] == ["0.weight"]


def test_repeats_itself_by_the_generator() -> None:
    runs = [
        learn_weight_masks(_network(), _loader(2, 4), OBJECTIVE, random_state=seed, **SHORT)["0.weight"]
        for seed in (1, _generator(1), 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def _masked() -> nn.Module:
    model = _network()
    prune.random_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    return model


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (
            _network(),
            {"ignored_layers": ["neck"]},
            InputError,
            r"holds \['neck'\]; expected some of 0, 4",
        ),
        (_network(), {"batchnorm": "evaluate"}, InputError, "batchnorm='evaluate'; expected one of 'eval', 'train'"),
        (_network(), {"iterations": 0}, InputError, "iterations=0; expected at least 1"),
        (_network(), {"cost": "macs"}, InputError, "learning has no 'cost'"),
        (_network(), {"loader": _loader(2, 4, batch_size=1)}, InputError, "batchnorm='train' needs batches of at"),
        (_network(), {"ignored_layers": "04"}, InputError, "ignored_layers is the string '04'; expected a list"),
        (_network(), {"ignored_layers": ["0", "4"]}, UnsupportedModelError, "calls no linear or convolutional layer"),
        (_masked(), {}, UnsupportedModelError, r"the weights of 0 are computed from others.*prune\.remove"),
    ],
)
def test_what_is_refused(model: nn.Module, options: dict[str, Any], error: Any, message: str) -> None:
    loader = options.pop("loader", _loader(2, 4))
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        learn_weight_masks(model, loader, OBJECTIVE, **{**SHORT, **options})
    before.assert_unchanged()


@pytest.mark.parametrize(
    ("logits", "sparsity", "message"),
    [
        ({"9.weight": torch.ones(3)}, None, "logits of 9.weight; expected those of weights of this network"),
        ({"0.weight": torch.ones(3)}, None, "logits of 0.weight; expected"),
        ({"0.bias": torch.ones(3)}, None, "logits of 0.bias; expected those of weights"),
        ({"0.weight": torch.full((3, 2, 2), math.nan)}, None, "logits of 0.weight hold NaN"),
        ({}, None, "logits of no weight"),
        ({"0.weight": torch.ones(3, 2, 2)}, 1.0, "sparsity=1.0; expected at least 0, below 1"),
    ],
)
def test_masks_that_are_refused(logits: dict[str, Tensor], sparsity: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        masked_network(_network(), logits, sparsity=sparsity)


def test_weight_under_a_mask_is_refused() -> None:
    """A mask on what another one is computed from would not be there."""
    with pytest.raises(InputError, match=r"logits of 0\.weight_orig; expected those of weights"):
        masked_network(_masked(), {"0.weight_orig": torch.ones(3, 2, 2)})


def test_a_rest_of_one_sample_is_left_out() -> None:
    """13 samples in batches of 4: BatchNorm has no statistics of the last."""
    learn_weight_masks(_network(), _loader(2, 4, batch_size=4), OBJECTIVE, **SHORT)
