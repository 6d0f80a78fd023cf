"""Per-sample squared gradients against the oracle, and FairPrune's score from them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fairtrim import ChannelGroup, ChannelPlace, InputError
from fairtrim.damage.weight_saliency import collect_weight_saliency, squared_gradients
from fairtrim.oracle import oracle_squared_gradients
from tests.networks import CASES, Case


class Everything(nn.Module):
    """Layers without a closed form, shared layers, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.shift = nn.Embedding(6, 5), nn.Parameter(torch.randn(1, 5))
        self.twice, self.norm, self.slope = nn.Linear(5, 5), nn.LayerNorm((4, 5)), nn.PReLU(4)
        self.mix, self.head = nn.Conv1d(4, 6, 3, padding="same"), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x) + self.shift
        x = self.norm(self.twice(self.twice(x).tanh()))
        return self.head(self.mix(self.slope(x)).mean(2))


class Branching(Everything):
    """Asks for values of its input, which vectorised differentiation can't give."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if bool((x >= 0).all()) else super().forward(x.abs())


CASES_HERE = {name: case for name, case in CASES.items() if case.transform is None}


@pytest.mark.parametrize("curvature", ["exact", "empirical"])
@pytest.mark.parametrize("name", [*CASES_HERE, "everything", "branching"])
def test_squared_gradients_equal_the_oracle(name: str, curvature: str) -> None:
    if name in ("everything", "branching"):
        model: nn.Module = (Everything() if name == "everything" else Branching()).double()
        x = torch.randint(0, 6, (7, 4))
        y = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    else:
        model = CASES_HERE[name].model()
        x, y = CASES_HERE[name].batch(7)
    a = torch.tensor([2, 0, 0, 5, 2, 0, 2])
    batches = [(x[:3], y[:3], a[:3]), (x[3:4], y[3:4], a[3:4]), (x[4:], y[4:], a[4:])]
    table, fast = squared_gradients(model, batches, curvature=curvature, progress=False)
    names, slow = oracle_squared_gradients(model, batches, curvature=curvature)
    assert list(table.sensitive_groups) == names == ["0", "2", "5"]
    assert fast.keys() == slow.keys()
    for key, value in slow.items():
        # a key's bias shifts all attention alike: nothing but rounding
        largest = value.abs().max().clamp_min(1e-25)
        assert float((fast[key] - value).abs().max() / largest) <= 1e-9, key


def test_mean_of_squares_and_not_square_of_the_mean() -> None:
    case = CASES["mlp"]
    model, (x, y) = case.model(), case.batch(64)
    _, right = squared_gradients(model, [(x, y)], curvature="empirical", progress=False)
    F.cross_entropy(model(x), y).backward()
    wrong = model[0].weight.grad.square()
    assert float(wrong.sum() / right["0.weight"].sum()) < 0.5
    model.zero_grad()


def test_weight_level_score_is_the_published_sum() -> None:
    """Σ_{i∈c} ½θ_i²h_i over rows, biases and the columns of the next layer, by hand."""
    case = CASES["mlp"]
    model, (x, y) = case.model(), case.batch(9)
    a = torch.arange(9) % 2
    groups = case.plan(model).groups
    table = collect_weight_saliency(model, [(x, y, a)], groups, progress=False)
    _, h = oracle_squared_gradients(model, [(x, y, a)])
    weights = {name: p.detach().square() * h[name] for name, p in model.named_parameters()}
    expected = 0.5 * (weights["0.weight"].sum(2) + weights["0.bias"] + weights["2.weight"].sum(1))
    torch.testing.assert_close(table["0"], expected, rtol=1e-9, atol=1e-16)
    assert table.interactions is None


@pytest.mark.parametrize("case", CASES_HERE.values(), ids=CASES_HERE.keys())
def test_every_weight_counts_once_for_each_channel_it_belongs_to(case: Case) -> None:
    """Summed over channels, a layer's weights count as often as they lie in slices that disappear."""
    model, (x, y) = case.model(), case.batch(5)
    groups = case.plan(model).groups
    table = collect_weight_saliency(model, [(x, y)], groups, progress=False)
    _, h = squared_gradients(model, [(x, y)], progress=False)
    parameters = dict(model.named_parameters())
    expected = 0.0
    for group in groups:
        for place in group.parameters:
            weights = 0.5 * (parameters[place.parameter].detach().square() * h[place.parameter][0])
            for channel in place.channels:
                expected += float(weights.select(place.axis, channel).sum())
    assert float(table.damage.sum()) == pytest.approx(expected, rel=1e-9)


def test_chunks_of_samples_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Everything().double()
    batch = (torch.randint(0, 6, (7, 4)), torch.tensor([0, 1, 2, 2, 1, 0, 1]), torch.arange(7) % 3)
    _, whole = squared_gradients(model, [batch], progress=False)
    for module in ("weight_saliency", "per_sample_gradients"):
        monkeypatch.setattr(f"fairtrim.damage.{module}.CHUNK_BYTES", 1000)  # three samples of the embedding
    _, chunked = squared_gradients(model, [batch], progress=False)
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, rtol=1e-12, atol=1e-18)


def test_weight_that_is_also_used_outside_its_layer() -> None:
    """A tied decoder: the layer's inputs and output gradients tell half of the gradient."""

    class TiedDecoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.head = nn.Linear(4, 5), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.linear(self.encode(x).tanh(), self.encode.weight.t()).tanh())

    model = TiedDecoder().double()
    batches = [(torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 2, 1, 0]))]
    _, fast = squared_gradients(model, batches, progress=False)
    _, slow = oracle_squared_gradients(model, batches)
    for name, value in slow.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-9, atol=1e-16)


def test_only_the_parameters_that_are_asked_for() -> None:
    case = CASES["plain"]
    model, batch = case.model(), case.batch(5)
    _, every = squared_gradients(model, [batch], progress=False)
    _, some = squared_gradients(model, [batch], parameters=["4.weight", "1.bias"], progress=False)
    assert set(some) == {"4.weight", "1.bias"}
    for name, value in some.items():
        torch.testing.assert_close(value, every[name], rtol=0, atol=0)


def test_frozen_parameters_are_scored_too() -> None:
    case = CASES["residual"]
    model, batch = case.model(), case.batch(5)
    _, before = squared_gradients(model, [batch], progress=False)
    model.requires_grad_(False)
    _, after = squared_gradients(model, [batch], progress=False)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


def test_forward_function_and_keyword_inputs() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.head = nn.PReLU(4), nn.Linear(4, 3)

        def forward(self, values: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(self.slope(values * scale))}

    model = Keywords().double()
    x, s, y = torch.randn(5, 4).double(), torch.rand(5, 1).double(), torch.tensor([0, 1, 2, 1, 0])
    _, by_keyword = squared_gradients(model, [({"values": x, "scale": s}, y)], progress=False)
    _, by_function = squared_gradients(
        model, [((x, s), y)], forward_fn=lambda m, inputs: m(scale=inputs[1], values=inputs[0]), progress=False
    )
    assert by_keyword["slope.weight"].abs().sum() > 0
    for name, value in by_keyword.items():
        torch.testing.assert_close(by_function[name], value)


def test_channel_groups_without_parameters() -> None:
    case = CASES["mlp"]
    groups = [ChannelGroup("0", 7, (ChannelPlace("2", "input", range(7), range(7), -1),))]
    with pytest.raises(InputError, match="lists the parameters none"):
        collect_weight_saliency(case.model(), [case.batch(3)], groups, progress=False)
