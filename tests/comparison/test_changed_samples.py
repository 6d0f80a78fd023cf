"""Samples whose label changes, against a loop over single samples."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChangedSamples, InputError, UnsupportedModelError, changed_samples, predict
from fairtrim.comparison.changed_samples import changed_between

SEX, RACE = ["Female", "Male", "Nobody"], ["Black", "Other", "White"]
NAMES = {"sex": SEX, "race": RACE}
N, D = 53, 4


def _linear(n_scores: int, seed: int, n_features: int = D) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Linear(n_features, n_scores, dtype=torch.float64)  # so that kernels agree far beyond what is asserted
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def _data(n_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_classes)
    x = torch.randn(N, D, generator=generator).double()
    target = torch.randint(0, n_classes, (N,), generator=generator)
    codes = torch.stack([torch.randint(0, 2, (N,), generator=generator), torch.arange(N) % 3], 1)
    return x, target, codes


def _probabilities(network: nn.Module, sample: Tensor) -> list[float]:
    """Of one sample, by the definition."""
    scores = [float(score) for score in network(sample.unsqueeze(0))[0].tolist()]
    scores = [0.0, *scores] if len(scores) == 1 else scores
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def _oracle(reference: nn.Module, model: nn.Module, x: Tensor, target: Tensor) -> list[tuple[int, int, int, int, Any]]:
    found = []
    for row in range(len(x)):
        before, after = _probabilities(reference, x[row]), _probabilities(model, x[row])
        labels = before.index(max(before)), after.index(max(after))
        if labels[0] != labels[1]:
            y = int(target[row])
            found.append((row, y, *labels, (before[y], after[y])))
    return sorted(found, key=lambda entry: entry[4][1] - entry[4][0])


def _changed(n_scores: int = 3, **options: Any) -> tuple[ChangedSamples, tuple[Tensor, Tensor, Tensor]]:
    x, target, codes = _data(max(2, n_scores))
    loader = DataLoader(TensorDataset(x, target, codes), batch_size=7)
    settings = {"sensitive_names": NAMES, "progress": False, **options}
    return changed_samples(_linear(n_scores, 0), _linear(n_scores, 1), loader, **settings), (x, target, codes)


@pytest.mark.parametrize("n_scores", [1, 2, 3, 5])
def test_changed_samples_equal_a_loop_over_samples(n_scores: int) -> None:
    changed, (x, target, codes) = _changed(n_scores)
    expected = _oracle(_linear(n_scores, 0), _linear(n_scores, 1), x, target)
    assert 5 < len(expected) < N and len(changed) == len(expected)
    assert list(zip(changed.row, changed.target, changed.before, changed.after, strict=True)) == [
        entry[:4] for entry in expected
    ]
    np.testing.assert_allclose(changed.probability_before, [entry[4][0] for entry in expected], rtol=1e-12)
    np.testing.assert_allclose(changed.probability_after, [entry[4][1] for entry in expected], rtol=1e-12)
    assert changed.probability_before.dtype == changed.probability_after.dtype == np.float64
    assert changed.row.dtype == changed.target.dtype == changed.before.dtype == changed.after.dtype == np.int64
    assert list(changed.fall) == sorted(changed.fall, reverse=True)
    assert torch.equal(changed.inputs, x[changed.row]) and changed.inputs.device.type == "cpu"
    assert changed.sensitive["sex"].tolist() == [SEX[codes[row, 0]] for row in changed.row]
    assert changed.sensitive["race"].tolist() == [RACE[codes[row, 1]] for row in changed.row]
    assert changed.n_samples == N
    counted = Counter((SEX[a], RACE[b]) for a, b in codes.tolist())
    assert changed.people == counted and list(changed.people) == sorted(counted)


def test_one_logit_and_two_scores_are_one_task() -> None:
    x, target, _ = _data(2)
    one, two = _linear(1, 3), _linear(2, 4)
    as_two = nn.Linear(D, 2, dtype=torch.float64)
    with torch.no_grad():
        as_two.weight.copy_(torch.cat([torch.zeros(1, D), one.weight]))
        as_two.bias.copy_(torch.cat([torch.zeros(1), one.bias]))
    batch = [(x, target.float(), target)]
    left, right = (changed_samples(network, two, batch, progress=False) for network in (one, as_two))
    assert len(left) > 5 and left.row.tolist() == right.row.tolist()
    np.testing.assert_allclose(left.probability_before, right.probability_before, rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 53])
def test_batches_do_not_matter(batch_size: int) -> None:
    x, target, codes = _data(3)
    loader = DataLoader(TensorDataset(x, target, codes), batch_size=batch_size)
    changed = changed_samples(_linear(3, 0), _linear(3, 1), loader, sensitive_names=NAMES, progress=False)
    expected, _ = _changed(3)
    assert changed.row.tolist() == expected.row.tolist() and changed.people == expected.people
    np.testing.assert_allclose(changed.fall, expected.fall, rtol=1e-12)
    torch.testing.assert_close(changed.inputs, expected.inputs, rtol=0, atol=0)


def test_order_of_equal_falls_is_that_of_the_loader() -> None:
    x = torch.ones(70, 1)
    batches = [(x[:40], torch.arange(40) % 2), (x[40:], torch.arange(30) % 2)]  # half of them fall, half rise
    changed = changed_samples(nn.Identity(), _negative(), batches, progress=False)
    assert changed.row.tolist() == [*range(1, 70, 2), *range(0, 70, 2)] and len(set(changed.fall)) == 2


def _negative() -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(-1.0)
    return network


# By group.


def test_by_group_equals_a_loop() -> None:
    changed, (x, target, codes) = _changed(3)
    table = changed.by_group()
    labels = {seed: _linear(3, seed)(x).argmax(1).tolist() for seed in (0, 1)}
    groups = [f"{SEX[a]}, {RACE[b]}" for a, b in codes.tolist()]
    assert table.index.tolist() == [*sorted(set(groups)), "everybody"] and table.index.name == "sensitive_group"
    for name, row in table.iterrows():
        members = [i for i in range(N) if name in (groups[i], "everybody")]
        before, after = ([labels[seed][i] for i in members] for seed in (0, 1))
        y = [int(target[i]) for i in members]
        triples = list(zip(y, before, after, strict=True))
        assert row["people"] == len(members)
        assert row["changed"] == sum(b != a for _, b, a in triples)
        assert row["share"] == pytest.approx(row["changed"] / len(members))
        assert row["gained"] == sum(b != t == a for t, b, a in triples)
        assert row["lost"] == sum(b == t != a for t, b, a in triples)
    everybody = table.loc["everybody"]
    assert 0 < everybody["gained"] + everybody["lost"] < everybody["changed"]  # some go from wrong to wrong
    correct = {
        seed: np.mean([label == t for label, t in zip(labels[seed], target.tolist(), strict=True)]) for seed in labels
    }
    assert correct[1] - correct[0] == pytest.approx((everybody["gained"] - everybody["lost"]) / N)
    assert all(table[column].dtype.kind == "i" for column in ("people", "changed", "gained", "lost"))


def test_groups_in_which_nothing_changed() -> None:
    x = torch.tensor([[1.0], [0.0], [-1.0]])  # the sign of 0 doesn't change
    changed = changed_samples(nn.Identity(), _negative(), [(x, torch.ones(3), ["b", "a", "10"])], progress=False)
    assert changed.people == {"10": 1, "a": 1, "b": 1} and changed.groups == ["b", "10"]
    assert changed.by_group()["share"].to_dict() == {"10": 1.0, "a": 0.0, "b": 1.0, "everybody": 2 / 3}
    assert changed.gained.tolist() == [False, True] and changed.lost.tolist() == [True, False]


def test_without_sensitive_features() -> None:
    x = torch.tensor([[1.0], [2.0], [-1.0]])
    changed = changed_samples(
        nn.Identity(), _negative(), [(x[:1], torch.ones(1)), (x[1:], torch.ones(2))], progress=False
    )
    assert changed.sensitive == {} and changed.people == {"everyone": 3}
    assert changed.by_group().index.tolist() == ["everybody"] and changed.by_group().loc["everybody", "changed"] == 3
    assert changed.groups == ["everyone"] * 3


def test_a_group_may_be_called_everyone() -> None:
    x = torch.tensor([[1.0], [0.0]])
    changed = changed_samples(nn.Identity(), _negative(), [(x, torch.ones(2), ["everyone", "a"])], progress=False)
    assert changed.by_group()["changed"].to_dict() == {"a": 0, "everyone": 1, "everybody": 1}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_nothing_changed(batch_size: int) -> None:
    x, target, codes = _data(3)
    network = _linear(3, 0)
    loader = DataLoader(TensorDataset(x, target, codes), batch_size=batch_size)
    changed = changed_samples(network, copy.deepcopy(network), loader, sensitive_names=NAMES, progress=False)
    assert len(changed) == 0 and tuple(changed.inputs.shape) == (0, D) and changed.n_samples == N
    assert {name: values.shape for name, values in changed.sensitive.items()} == {"sex": (0,), "race": (0,)}
    assert changed.by_group()["changed"].sum() == 0 and len(changed.by_group()) == 7
    frame = changed.to_frame()
    assert len(frame) == 0 and {"row", "fall", "sex", "feature_3"} <= set(frame.columns)


# The frame.


def test_frame_of_tabular_inputs() -> None:
    changed, (x, _, _) = _changed(3)
    frame = changed.to_frame(["age", "hours", "education", "gain"])
    first = ["row", "target", "before", "after", "probability_before", "probability_after", "fall"]
    assert frame.columns.tolist() == [*first, "sex", "race", "age", "hours", "education", "gain"]
    np.testing.assert_array_equal(frame[["age", "hours", "education", "gain"]].to_numpy(), x[frame["row"].tolist()])
    np.testing.assert_allclose(frame["probability_before"] - frame["probability_after"], frame["fall"])
    assert frame["fall"].is_monotonic_decreasing
    assert changed.to_frame().columns.tolist()[-4:] == [f"feature_{d}" for d in range(D)]
    assert _changed(3, keep_inputs=False)[0].to_frame().columns.tolist() == [*first, "sex", "race"]


def test_frame_of_images_has_no_features() -> None:
    x = torch.randn(6, 2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    network = nn.Sequential(nn.Flatten(), _linear(2, 0, 30))
    changed = changed_samples(
        network, nn.Sequential(nn.Flatten(), _linear(2, 1, 30)), [(x, [0, 1] * 3)], progress=False
    )
    assert len(changed) and "fall" in changed.to_frame() and not any("feature" in c for c in changed.to_frame())
    assert torch.equal(changed.inputs, x[changed.row])
    with pytest.raises(InputError, match=r"the inputs have shape \(\d, 2, 3, 5\); expected a tensor \(N, D\)"):
        changed.to_frame(["a"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "2 feature_names for 4 features; expected as many"),
        (["sex", "b", "c", "fall"], r"the columns \['fall', 'sex'\] would occur twice; expected other feature_names"),
        (["a", "a", "c", "d"], r"the columns \['a'\] would occur twice"),
    ],
)
def test_names_that_do_not_fit(names: list[str], message: str) -> None:
    changed, _ = _changed(3)
    with pytest.raises(InputError, match=message):
        changed.to_frame(names)


def test_names_of_inputs_that_were_not_kept() -> None:
    changed, _ = _changed(3, keep_inputs=False)
    assert changed.inputs is None
    with pytest.raises(InputError, match="feature_names are given, but the inputs were not kept"):
        changed.to_frame(["a", "b", "c", "d"])


# Inputs of any structure.


class Pair(nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return self.weight * scale * (a.sum((1, 2)) + b)


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_inputs_keep_their_structure(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 2, 3, generator=generator), torch.randn(5, generator=generator)
    parts = [slice(0, 2), slice(2, 3), slice(3, 5)]
    if form == "tuple":
        batches: list[Any] = [((a[s], b[s]), torch.ones(len(b[s]))) for s in parts]
    else:
        batches = [{"a": a[s], "b": b[s], "scale": 2.0, "labels": torch.ones(len(b[s]))} for s in parts]
    changed = changed_samples(Pair(1.0), Pair(-1.0), batches, progress=False)
    assert sorted(changed.row) == list(range(5))
    kept = changed.inputs if form == "tuple" else (changed.inputs["a"], changed.inputs["b"])
    assert torch.equal(kept[0], a[changed.row]) and torch.equal(kept[1], b[changed.row])
    assert isinstance(changed.inputs, tuple if form == "tuple" else dict)
    if form == "dict":
        assert changed.inputs["scale"] is None
        with pytest.raises(InputError, match="the inputs are no tensor; expected a tensor"):
            changed.to_frame(["a"])


def test_inputs_of_another_length_in_each_batch() -> None:
    batches = [((torch.ones(2, length, 1), torch.zeros(2)), torch.ones(2)) for length in (3, 4)]
    with pytest.raises(
        InputError, match=r"shapes \[\(3, 1\), \(\)\] in the first batch and \[\(4, 1\), \(\)\] in batch 1"
    ):
        changed_samples(Pair(1.0), Pair(-1.0), batches, progress=False)
    changed = changed_samples(Pair(1.0), Pair(-1.0), batches, keep_inputs=False, progress=False)
    assert len(changed) == 4 and changed.inputs is None


def test_memory_grows_with_the_changed_samples_only() -> None:
    """No kept tensor is a view that holds a batch."""
    changed, _ = _changed(3)
    assert changed.inputs.untyped_storage().nbytes() == len(changed) * D * changed.inputs.element_size()


# Manners.


class Draws(nn.Module):
    """Draws at random, counts its calls in a buffer, and behaves differently in training."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.5)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(3)
        return self.inner(self.dropout(x))  # type: ignore[no-any-return]


def test_networks_and_random_states_are_left_as_they_were() -> None:
    x, target, codes = _data(3)
    networks = [Draws(_linear(3, seed)).train() for seed in (0, 1)]
    networks[1].dropout.eval()
    networks[1].inner.requires_grad_(False)
    for parameter in networks[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    state = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x, target, codes), batch_size=8, shuffle=True)
    changed = changed_samples(*networks, loader, sensitive_names=NAMES, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [network.training for network in networks] == [True, True]
    assert networks[0].dropout.training and not networks[1].dropout.training
    for network, saved in zip(networks, before, strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, saved[name]), name
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in networks[0].parameters() if p.grad is not None)
    assert all(p.grad is None and not p.requires_grad for p in networks[1].parameters())
    same, _ = _changed(3)  # eval mode: dropout had no part in it; a shuffling loader gives other rows, same people
    assert len(changed) == len(same) and changed.people == same.people
    np.testing.assert_allclose(changed.fall, same.fall, rtol=1e-12)


def test_loader_is_gone_through_once() -> None:
    x, target, codes = _data(3)
    taken = []

    def stream() -> Iterator[Any]:
        for start in range(0, N, 10):
            taken.append(start)
            yield x[start : start + 10], target[start : start + 10], codes[start : start + 10]

    changed = changed_samples(_linear(3, 0), _linear(3, 1), stream(), max_batches=4, progress=False)
    assert taken == [0, 10, 20, 30] and changed.n_samples == 40 and changed.row.max() < 40


def test_agrees_with_predict() -> None:
    changed, (x, target, codes) = _changed(5)
    both = predict({"a": _linear(5, 0), "b": _linear(5, 1)}, [(x, target, codes)], progress=False)
    rows = np.flatnonzero(both.label["a"] != both.label["b"])
    assert sorted(changed.row) == rows.tolist()
    assert changed.before.tolist() == both.label["a"][changed.row].tolist()


def test_forward_function_and_output_transform() -> None:
    x, target, _ = _data(3)
    batch = [({"x": x}, target)]
    changed = changed_samples(
        _linear(3, 0),
        _linear(3, 1),
        batch,
        forward_fn=lambda model, inputs: {"scores": model(inputs["x"])},
        output_transform=lambda output: output["scores"],
        progress=False,
    )
    assert changed.row.tolist() == _changed(3)[0].row.tolist()


# What is refused.


def _refused(reference: Any, model: Any, loader: Any, **options: Any) -> None:
    changed_samples(reference, model, loader, progress=False, **options)


def test_refusals() -> None:
    x, target, codes = _data(3)
    a, b = _linear(3, 0), _linear(3, 1)
    with pytest.raises(InputError, match="model is a function; expected a network"):
        _refused(a, lambda x: x, [(x, target)])
    with pytest.raises(InputError, match="reference is a NoneType; expected a network"):
        _refused(None, b, [(x, target)])
    with pytest.raises(
        InputError, match="the reference tells 3 classes and the model 5; expected networks of one task"
    ):
        _refused(a, _linear(5, 1), [(x, target)])
    with pytest.raises(InputError, match="batch 1: labels reach from 0 to 3; expected 0 to 2 for 3 classes"):
        _refused(a, b, [(x, target), (x[:2], torch.tensor([3, 0]))])
    with pytest.raises(InputError, match="batch 0: labels reach from -1 to"):
        _refused(a, b, [(x, target - 1)])
    with pytest.raises(InputError, match="target holds fractions"):
        _refused(a, b, [(x, target + 0.5)])
    with pytest.raises(InputError, match=r"for one-hot targets pass target\.argmax"):
        _refused(a, b, [(x, torch.eye(3)[target])])
    with pytest.raises(InputError, match="a network gave scores that are not finite in batch 1"):
        _refused(a, b, [(x, target), (x * math.nan, target)])
    with pytest.raises(InputError, match="the loader gave no sample"):
        _refused(a, b, [])
    with pytest.raises(InputError, match="max_batches is 0"):
        _refused(a, b, [(x, target)], max_batches=0)
    with pytest.raises(InputError, match="a batch has no sensitive features, although earlier ones had"):
        _refused(a, b, [(x, target, codes), (x, target)])
    with pytest.raises(InputError, match="the sensitive features changed from"):
        _refused(a, b, [(x, target), (x, target, codes)])
    with pytest.raises(InputError, match=r"'sensitive_0' holds 0.*expected codes of groups"):
        _refused(a, b, [(x, target, torch.rand(N, 2))])
    with pytest.raises(InputError, match="'sex' has the value 7, which sensitive_names does not name"):
        _refused(a, b, [(x, target, codes[:, 0] + 7)], sensitive_names={"sex": SEX})


def test_scores_at_several_positions_are_refused() -> None:
    """One sample has several labels there: which one changed would have no row of its own."""
    x, target = torch.randn(3, 5, D).double(), torch.zeros(3, 5, dtype=torch.long)
    with pytest.raises(
        UnsupportedModelError, match=r"one row for each of 5 positions.*pass output_transform to select"
    ):
        _refused(_linear(3, 0), _linear(3, 1), [(x, target)])


def test_networks_are_left_as_they_were_after_an_error() -> None:
    x, target, _ = _data(3)
    networks = [Draws(_linear(3, seed)).train() for seed in (0, 1)]
    with pytest.raises(InputError, match="not finite in batch 1"):
        _refused(*networks, [(x, target), (x * math.inf, target)])
    assert all(module.training for network in networks for module in network.modules())
    assert all(float(network.calls) == 0 for network in networks)


def test_frames_alone_need_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    changed, _ = _changed(3)
    assert len(changed) > 5
    with pytest.raises(ImportError):
        changed.to_frame()


@pytest.mark.parametrize(("n_scores", "named"), [(1, True), (2, True), (3, True), (3, False)])
def test_predictions_have_the_same_changed_samples(n_scores: int, named: bool) -> None:
    """Without running a network again; the loader is read once for the inputs of all."""
    x, target, codes = _data(max(2, n_scores))
    columns = (x, target, codes) if named else (x, target)
    loader = DataLoader(TensorDataset(*columns), batch_size=7, shuffle=True)
    names = NAMES if named else None
    networks = {"dense": _linear(n_scores, 0), "one": _linear(n_scores, 1), "two": _linear(n_scores, 2)}
    with torch.random.fork_rng():
        found = predict(networks, loader, sensitive_names=names, progress=False)
        several = changed_between(found, "dense", inputs=loader, progress=False)
        assert list(several) == ["one", "two"]
        for name, changed in several.items():
            expected = changed_samples(networks["dense"], networks[name], loader, sensitive_names=names, progress=False)
            assert len(changed) > 0
            pd.testing.assert_frame_equal(changed.to_frame(), expected.to_frame())
            pd.testing.assert_frame_equal(changed.by_group(), expected.by_group())
            assert changed.people == expected.people and list(changed.people) == list(expected.people)
            assert changed.n_samples == expected.n_samples
    assert changed_between(found, "dense", progress=False)["one"].inputs is None


def test_predictions_that_dont_fit_are_refused() -> None:
    x, target, codes = _data(3)
    loader = [(x, target, codes)]
    found = predict({"a": _linear(3, 0), "b": _linear(3, 1)}, loader, progress=False)
    with pytest.raises(InputError, match="shuffle=False"):
        changed_between(found, "a", inputs=[(x, (target + 1) % 3, codes)], progress=False)
    with pytest.raises(InputError, match="gave 40 people, and 53 before"):
        changed_between(found, "a", inputs=[(x[:40], target[:40], codes[:40])], progress=False)
    with pytest.raises(InputError, match=r"without scores of .'a', 'b'."):
        changed_between(dataclasses.replace(found, scores={}), "a", progress=False)
    with pytest.raises(InputError, match="expected 'c' among them"):
        changed_between(found, "c", progress=False)
    both = predict({"a": _linear(3, 0), "b": _linear(4, 1)}, loader, progress=False)
    with pytest.raises(InputError, match="tells 3 classes and 'b' 4"):
        changed_between(both, "a", progress=False)
