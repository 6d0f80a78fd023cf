"""Refusals that are true, and their remedies: decisions, work in place, losses of the largest, wrapped metrics."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss, make_scorer, roc_auc_score
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, InputError, collect_damage, predict
from fairtrim.damage.measured_change import measured_change
from fairtrim.devices import to_device
from fairtrim.network.probability_scores import ProbabilityScores, SigmoidWatch
from fairtrim.network.sample_loss import SampleLoss
from fairtrim_adapters.fairlearn import compare_models, metric_frame
from fairtrim_adapters.torch_pruning import MeanDamageImportance, WorstGroupImportance

N = 120
Batches = list[tuple[Tensor, Tensor, list[str]]]


def _people(n_classes: int = 2) -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, generator=generator)
    return [(x, torch.arange(N) % n_classes, ["a" if n % 3 else "b" for n in range(N)])]


def _network(n_scores: int) -> nn.Linear:
    model = nn.Linear(3, n_scores)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-3, 4, parameter.numel()).reshape(parameter.shape))
    return model


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.end = _network(1), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


def test_decisions_are_no_probabilities() -> None:
    model, people = Ending(torch.sigmoid), _people()
    found = predict(model, people, output_transform=lambda p: (p > 0.5).float(), progress=False)
    np.testing.assert_array_equal(found.label["model"], (model.body(people[0][0])[:, 0] > 0).long().numpy())
    seen = ProbabilityScores()
    seen.add(torch.tensor([0.0, 1.0]).repeat(60).unsqueeze(1))
    seen.add(torch.tensor([[0.3]]))
    assert not seen.in_unit


@pytest.mark.parametrize("gain", [1, 30, 1000])
def test_saturated_sigmoids_are_refused_as_before(gain: float) -> None:
    """Some that are exactly 1, and some that are exactly 0."""
    model = Ending(lambda z: 1 / (1 + torch.exp(-gain * (z - z.mean()).clamp(-50 / gain, 50 / gain))))
    with pytest.raises(InputError, match=r"returns probabilities: its 120 scores lie in .* none is below 0"):
        predict(model, _people(), progress=False)
    with pytest.raises(InputError, match="output of a sigmoid, of which none is below 0"):
        predict(Ending(torch.sigmoid), _people(), progress=False)


def _assigned(z: Tensor) -> Tensor:
    p = z.sigmoid()
    p[:] = torch.logit(p)
    return p


def _written_out(z: Tensor) -> Tensor:
    p = z.sigmoid()
    return torch.sub(p, 0.5, out=p)


def _through_a_view(z: Tensor) -> Tensor:
    p = z.sigmoid()
    v = p.squeeze(1)
    v -= 0.5
    return p


def _the_view_itself(z: Tensor) -> Tensor:
    v = z.sigmoid().squeeze(1)
    v -= 0.5
    return v


def _copied(z: Tensor) -> Tensor:
    return z.sigmoid().copy_(z)


@pytest.mark.parametrize("end", [_assigned, _written_out, _through_a_view, _the_view_itself, _copied])
def test_what_is_changed_in_place_is_no_sigmoids_output(end: Callable[[Tensor], Tensor]) -> None:
    model, people = Ending(end), _people()
    found = predict(model, people, progress=False).label["model"]
    np.testing.assert_array_equal(found, (model.body(people[0][0])[:, 0] > 0).long().numpy())


def test_a_sigmoid_in_place_is_known() -> None:
    z = torch.zeros(3, 1)
    with torch.no_grad(), SigmoidWatch() as watch:
        made = [torch.sigmoid_(z), torch.sigmoid(z, out=torch.empty(3, 1)), z.sigmoid().squeeze(1)]
        z_inside = nn.Sequential(nn.Sigmoid(), nn.Flatten(0))(z)
    assert all(map(watch.made, [*made, z_inside]))


GROUP = ChannelGroup("0", 3, (ChannelPlace("0", "input", range(3), range(3), channel_axis=-1),))


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda z, t: F.cross_entropy(z, t, reduction="none").max(),
        lambda z, t: F.cross_entropy(z, t, reduction="none").amax(),
        lambda z, t: F.cross_entropy(z, t, reduction="none").min(),
        lambda z, t: F.cross_entropy(z, t, reduction="none").median(),
        lambda z, t: F.cross_entropy(z, t, reduction="none").sort().values[-1],
    ],
)
def test_a_loss_of_one_sample_of_several(loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    for n_classes in (2, 3):
        with pytest.raises(InputError, match="Expected a loss that is the sum or the"):
            collect_damage(
                nn.Sequential(_network(n_classes)), _people(n_classes), [GROUP], loss_fn=loss_fn, progress=False
            )


def test_the_largest_error_of_numbers() -> None:
    x = torch.tensor([[4.0], [3.0], [1.0]])
    with pytest.raises(InputError, match="Expected a loss that is the sum or the"):
        SampleLoss(lambda z, t: (z - t).square().max())(x, torch.tensor([[0.0], [0.5], [0.75]]))


def test_a_class_that_a_mean_leaves_out_still_may() -> None:
    z, t = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])
    for weight in ([1.0, 0.0], [1.0, 1e-7]):
        hidden = SampleLoss(lambda z, t, w=weight: F.cross_entropy(z, t, weight=torch.tensor(w)))  # type: ignore[misc]
        losses, weights = hidden.weighted(z, t)
        expected = F.cross_entropy(z, t, weight=torch.tensor(weight))
        torch.testing.assert_close(losses.sum() / weights.sum(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(weight=torch.ones(3), reduction="sum"),
        functools.partial(F.cross_entropy, weight=torch.ones(1)),
        nn.NLLLoss(weight=torch.ones(5)),
    ],
)
def test_weights_of_other_classes(loss_fn: Any) -> None:
    with pytest.raises(InputError, match=r"weight= with \d numbers.* gives 2 scores.*one number for each class: pass"):
        collect_damage(nn.Sequential(_network(2)), _people(), [GROUP], loss_fn=loss_fn, progress=False)


def test_weights_of_other_labels() -> None:
    z, t = torch.zeros(4, 2), torch.ones(4, 2)
    with pytest.raises(InputError, match=r"pos_weight= with 3 numbers.*shape \(2,\)"):
        SampleLoss(nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)))(z, t)
    for right in (torch.tensor(2.0), torch.ones(1), torch.ones(2)):
        SampleLoss(nn.BCEWithLogitsLoss(pos_weight=right))(z, t)


@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_sum_to_one(end: nn.Module, dtype: torch.dtype) -> None:
    """Scikit-learn warns of what doesn't, and warnings are errors here."""
    x, y, a = _people(3)[0]
    model = nn.Sequential(_network(3), end).to(dtype)
    figures = metric_frame(model, [(x.to(dtype), y, a)], metrics=log_loss, progress=False)
    assert np.isfinite(figures.overall)


def _own(y: Any, p: Any) -> Any:
    return roc_auc_score(y, p)


def _qualified(y: Any, p: Any) -> Any:
    import sklearn.metrics

    return sklearn.metrics.log_loss(y, p)


def _with_more(y: Any, p: Any, scale: float) -> Any:
    return scale * roc_auc_score(y, p)


class _Callable:
    def __call__(self, y: Any, p: Any) -> Any:
        return roc_auc_score(y, p)


def _closed_over(metric: Any) -> Callable[[Any, Any], Any]:
    return lambda y, p: metric(y, p)


WRAPPERS: dict[str, Callable[..., Any]] = {
    "function": _own,
    "lambda": lambda a, b: roc_auc_score(a, b),
    "qualified": _qualified,
    "partial": functools.partial(_with_more, scale=2.0),
    "object": _Callable(),
    "closure": _closed_over(roc_auc_score),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_own_functions_of_score_metrics(name: str) -> None:
    model, people = _network(2), _people()
    metrics: dict[str, Any] = {"own": WRAPPERS[name], "accuracy": accuracy_score}
    told = "the metric 'own' .* given labels; .*response_method='"
    with pytest.warns(UserWarning, match=told):
        metric_frame(model, people, metrics=metrics, progress=False)
    with pytest.warns(UserWarning, match=told):
        compare_models({"m": model}, people, metrics=metrics, progress=False)
    for given in ("predict", "predict_proba"):  # as errors
        metric_frame(model, people, metrics=metrics, response_method={"own": given}, progress=False)


def test_own_functions_of_labels_are_left_alone() -> None:
    metrics: dict[str, Any] = {
        "own": lambda a, b: accuracy_score(a, b),
        "of scores": make_scorer(_own, response_method="predict_proba"),
        "closed": _closed_over(accuracy_score),
        "known": roc_auc_score,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric_frame(_network(2), _people(), metrics=metrics, progress=False)


def test_metrics_without_their_name() -> None:
    model, people = _network(2), _people()
    with pytest.raises(TypeError, match=r"metric_frame\(\) got a dict after model and loader; .* metrics=\.\.\."):
        metric_frame(model, people, {"auc": roc_auc_score})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"compare_models\(\) got a dict after models and loader; .* metrics=\.\.\."):
        compare_models({"m": model}, people, {"accuracy": accuracy_score})  # type: ignore[call-arg, arg-type]


def test_only_those_who_are_measured_go_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, a = _people()[0]
    loader = [(x[s : s + 10], y[s : s + 10], a[s : s + 10]) for s in range(0, N, 10)]
    model = nn.Sequential(_network(2))
    table = collect_damage(model, loader, [GROUP], progress=False)
    moved: list[int] = []

    def counted(inputs_and_target: Any, device: torch.device) -> Any:
        moved.append(len(inputs_and_target[0]))
        return to_device(inputs_and_target, device)

    monkeypatch.setattr(sys.modules["fairtrim.data.batches"], "to_device", counted)
    monkeypatch.setattr(sys.modules["fairtrim.damage.measured_change"], "to_device", counted)
    found = measured_change(model, loader, table, max_samples=6, progress=False)
    assert sum(moved) == found.n_samples == 6


@pytest.mark.parametrize("shrinkage", [float("nan"), float("inf"), True, False, -1, "much", None, [1]])
def test_shrinkage_that_is_no_number_of_samples(shrinkage: Any) -> None:
    for importance in (MeanDamageImportance, WorstGroupImportance):
        with pytest.raises(InputError, match=r"shrinkage=.*expected .*at least 0 \(samples\), or 'auto'"):
            importance(shrinkage=shrinkage)
    for right in (0, 0.5, np.float32(3), "auto"):
        MeanDamageImportance(shrinkage=right)
