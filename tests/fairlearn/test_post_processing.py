"""RepairedClassifier beside ThresholdOptimizer, and as a citizen of scikit-learn and skorch."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from fairlearn.metrics import MetricFrame, demographic_parity_difference, selection_rate
from fairlearn.postprocessing import ThresholdOptimizer
from scipy.sparse import dok_matrix
from sklearn.base import clone, is_classifier
from sklearn.compose import make_column_transformer
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import _num_samples, check_is_fitted
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import Tensor, nn

from fairtrim import InputError, ParityFineTuning, SensitiveBins, ThresholdSelection, UnsupportedModelError
from fairtrim_adapters.fairlearn import RepairedClassifier, metric_frame, post_processing


def _people(n_people: int = 1200, n_classes: int = 2, seed: int = 0) -> tuple[Any, Any, Any]:
    """Features, of which the first is shared unevenly between men and women; labels that lean on it; sex."""
    rng = np.random.default_rng(seed)
    male = rng.random(n_people) < 0.6
    X = rng.normal(size=(n_people, 4))
    X[:, 0] += 0.9 * male
    score = X[:, 0] + 0.7 * X[:, 1] + 0.5 * rng.normal(size=n_people)
    y = np.digitize(score, np.quantile(score, np.arange(1, n_classes) / n_classes))
    return X, y, np.where(male, "Male", "Female")


def _module(n_outputs: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n_outputs)).to(dtype)


def _trained(n_outputs: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    return copy.deepcopy(_trained_once(n_outputs, dtype))


@cache
def _trained_once(n_outputs: int, dtype: torch.dtype) -> nn.Module:
    X, y, _ = _people(n_classes=max(2, n_outputs), seed=1)
    x, target, module = torch.tensor(X, dtype=dtype), torch.tensor(y), _module(n_outputs, dtype=dtype)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        scores = module(x)
        if n_outputs == 1:
            nn.functional.binary_cross_entropy_with_logits(scores[:, 0], target.to(dtype)).backward()
        else:
            nn.functional.cross_entropy(scores, target).backward()
        optimizer.step()
    return module.train()


class Net(NeuralNetClassifier):
    """Reproducible by itself; scores for Fairlearn in float64, see ThresholdOptimizer under pandas 3."""

    def fit(self, X: Any, y: Any, **options: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().fit(X, y, **options)

    def get_loss(self, y_pred: Any, y_true: Any, **options: Any) -> Any:
        return super().get_loss(y_pred[0] if isinstance(y_pred, tuple) else y_pred, y_true, **options)

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(X).astype(np.float64)


def _net(**options: Any) -> Net:
    settings: dict[str, Any] = {"criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.Adam, "lr": 0.02}
    settings |= {"max_epochs": 4, "verbose": 0, "train_split": None}
    return Net(**({"module": _module()} | settings | options))


def _quick(**settings: Any) -> ParityFineTuning:
    """Few candidates, one split: folds are the searches' and the comparisons', which take the default."""
    return ParityFineTuning(**({"penalties": (0.0, 2.0, 50.0), "selection_share": 0.5} | settings))


def _gap(y: Any, given: Any, sex: Any) -> float:
    return float(demographic_parity_difference(y, given, sensitive_features=sex))


@pytest.fixture
def routing() -> Iterator[None]:
    with sklearn.config_context(enable_metadata_routing=True):
        yield


# ---------------------------------------------------------------------------------------------- beside Fairlearn


@pytest.mark.slow
def test_beside_threshold_optimizer() -> None:
    X, y, sex = _people(2400)
    x = X.astype(np.float32)
    (x_test, y_test), sex_test = _people(2400, seed=2)[:2], _people(2400, seed=2)[2]
    x_test = x_test.astype(np.float32)
    net = _net().fit(x, y)
    constrained = ThresholdOptimizer(estimator=net, objective="balanced_accuracy_score", prefit=True)
    constrained.fit(x, y, sensitive_features=sex)
    repaired = RepairedClassifier(estimator=net, post_processor=ParityFineTuning(epsilon=0.08), prefit=True)
    repaired.fit(x, y, sensitive_features=sex)
    given = {
        "as trained": net.predict(x_test),
        "thresholds": constrained.predict(x_test, sensitive_features=sex_test, random_state=0),
        "repaired": repaired.predict(x_test),
    }
    gap = {name: _gap(y_test, labels, sex_test) for name, labels in given.items()}
    right = {name: balanced_accuracy_score(y_test, labels) for name, labels in given.items()}
    assert gap["as trained"] > 0.25
    assert gap["thresholds"] < 0.1 and gap["repaired"] < 0.1
    # both pay for parity; the one that must not see who is who pays more
    assert right["as trained"] > 0.8 and right["thresholds"] > 0.75 and 0.6 < right["repaired"] < right["as trained"]
    frame = MetricFrame(
        metrics={"accuracy": accuracy_score, "selected": selection_rate},
        y_true=y_test,
        y_pred=given["repaired"],
        sensitive_features=sex_test,
    )
    assert frame.difference()["selected"] == pytest.approx(gap["repaired"])
    # the network by itself, without this class, decides the same
    own = metric_frame(repaired.repair_.model, [(torch.tensor(x_test), torch.tensor(y_test), sex_test)], progress=False)
    assert own.difference()["selection rate"] == pytest.approx(gap["repaired"])
    # and it can be post-processed further
    both = ThresholdOptimizer(estimator=repaired, objective="balanced_accuracy_score", prefit=True)
    both.fit(x, y, sensitive_features=sex)
    assert _gap(y_test, both.predict(x_test, sensitive_features=sex_test, random_state=0), sex_test) < 0.1


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_a_trained_module(n_outputs: int) -> None:
    n_classes = max(2, n_outputs)
    X, y, sex = _people(n_classes=n_classes)
    module = _trained(n_outputs, torch.float64)  # batches of another size agree far beyond what is asserted
    repaired = RepairedClassifier(module, _quick(epsilon=0.15), prefit=True).fit(X, y, sensitive_features=sex)
    assert repaired.repair_.within_bound
    assert repaired.classes_.tolist() == list(range(n_classes)) and repaired.n_features_in_ == 4
    assert repaired.sensitive_groups_ == ("Female", "Male")
    assert repaired.estimator_ is module and repaired.model_ is repaired.repair_.model
    assert len(repaired.training_rows_) == 0 and repaired.validation_rows_.tolist() == list(range(len(X)))
    with torch.no_grad():
        scores = repaired.model_(torch.tensor(X))
    expected = (scores[:, 0] > 0).long() if n_outputs == 1 else scores.argmax(1)
    np.testing.assert_array_equal(repaired.predict(X), expected.numpy())
    probability = repaired.predict_proba(X)
    assert probability.dtype == np.float64 and probability.shape == (len(X), n_classes)
    np.testing.assert_allclose(probability.sum(1), 1, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(probability.argmax(1), repaired.predict(X))
    decision = repaired.decision_function(X)
    if n_classes == 2:
        np.testing.assert_allclose(torch.tensor(decision).sigmoid(), probability[:, 1], rtol=1e-12)
        np.testing.assert_array_equal(decision > 0, repaired.predict(X) == 1)
    else:
        np.testing.assert_allclose(decision, scores.numpy(), rtol=0, atol=1e-12)
    assert repaired.score(X, y) == accuracy_score(y, repaired.predict(X))


def test_nothing_of_the_callers_is_touched() -> None:
    X, y, sex = _people()
    module, net, generator = _trained(), _net().fit(X.astype(np.float32), _people()[1]), torch.Generator()
    state, trained = copy.deepcopy(module.state_dict()), copy.deepcopy(net.module_.state_dict())
    given = X.copy()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), generator.get_state()
    for estimator, prefit in ((module, True), (net, True), (net, False)):
        processor = _quick(epsilon=0.2, random_state=generator)
        repaired = RepairedClassifier(estimator, processor, prefit=prefit).fit(X, y, sensitive_features=sex)
        assert repaired.post_processor is processor and not repaired.model_.training
        repaired.predict_proba(X)
    after = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), generator.get_state()
    assert torch.equal(before[0], after[0]) and torch.equal(before[3], after[3]) and before[2] == after[2]
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(given, X)
    assert module.training
    for found, expected in ((module.state_dict(), state), (net.module_.state_dict(), trained)):
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------------------------------------- skorch


def test_a_skorch_net_is_trained_on_a_part_and_repaired_on_the_rest() -> None:
    X, y, sex = _people()
    method = _quick(epsilon=0.2, selection_share=None)
    first = RepairedClassifier(_net(), method, validation_share=0.3).fit(X, y, sensitive_features=sex)
    rows = np.concatenate([first.training_rows_, first.validation_rows_])
    assert sorted(rows.tolist()) == list(range(len(X)))
    for value in ("Female", "Male"):
        for label in (0, 1):
            cell = (y == label) & (sex == value)
            assert cell[first.validation_rows_].sum() == pytest.approx(0.3 * cell.sum(), abs=0.51)
    held_out = len(first.validation_rows_)
    assert len(first.repair_.edit_rows) == len(first.repair_.selection_rows) == held_out  # cross-fitted
    assert not hasattr(first.estimator, "module_")
    # the net is what it would be if trained by hand
    part = first.training_rows_
    by_hand = _net().fit(X[part].astype(np.float32), y[part])
    np.testing.assert_array_equal(
        first.estimator_.predict_proba(X.astype(np.float32)), by_hand.predict_proba(X.astype(np.float32))
    )
    assert not np.array_equal(first.estimator_.predict(X.astype(np.float32)), first.predict(X))
    # the same again, however the global states are; another seed is another split
    torch.rand(3)
    np.random.rand(3)
    again = clone(first).fit(X, y, sensitive_features=sex)
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))
    other = clone(first).set_params(random_state=np.random.RandomState(1)).fit(X, y, sensitive_features=sex)
    assert other.validation_rows_.tolist() != first.validation_rows_.tolist()


def test_training_is_reproducible_without_the_nets_help() -> None:
    X, y, sex = _people(600)
    net = NeuralNetClassifier(nn.Linear, module__in_features=4, module__out_features=2, max_epochs=1, verbose=0)
    net.set_params(criterion=nn.CrossEntropyLoss, iterator_train__shuffle=True, train_split=None)
    scores = [
        RepairedClassifier(net, _quick(epsilon=0.5)).fit(X, y, sensitive_features=sex).predict_proba(X)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*scores)


def test_a_skorch_net_with_one_logit_and_string_labels() -> None:
    X, y, sex = _people()
    words = np.where(y == 1, "yes", "no")
    net = NeuralNetBinaryClassifier(_module(1), optimizer=torch.optim.Adam, lr=0.02, max_epochs=4, verbose=0)
    repaired = RepairedClassifier(net, _quick(epsilon=0.2)).fit(X, words, sensitive_features=sex)
    assert repaired.classes_.tolist() == ["no", "yes"]
    assert set(repaired.predict(X)) == {"no", "yes"}
    assert repaired.score(X, words) > 0.6
    np.testing.assert_array_equal(repaired.predict(X) == "yes", repaired.predict_proba(X)[:, 1] > 0.5)


def test_softmax_in_a_skorch_module_is_refused_with_the_remedy() -> None:
    X, y, sex = _people(200)
    probabilities = nn.Sequential(_module(), nn.Softmax(1))
    remedy = r"criterion=torch\.nn\.CrossEntropyLoss and leave the softmax out"
    untrained = NeuralNetClassifier(probabilities, verbose=0, max_epochs=1)
    trained = clone(untrained).fit(X.astype(np.float32), y)
    for net, prefit in ((untrained, False), (trained, True)):  # the first one before any training
        with pytest.raises(UnsupportedModelError, match=remedy):
            RepairedClassifier(net, _quick(), prefit=prefit).fit(X, y, sensitive_features=sex)
    with pytest.raises(UnsupportedModelError, match="ends in a softmax or sigmoid, leave that to the loss"):
        RepairedClassifier(probabilities, _quick(), prefit=True).fit(X, y, sensitive_features=sex)


def test_skorch_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skorch", None)  # importing it is an error
    spec = importlib.util.spec_from_file_location(
        f"{post_processing.__package__}.without_skorch", post_processing.__file__
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    X, y, sex = _people(300)
    repaired = module.RepairedClassifier(_trained(), _quick(epsilon=0.5), prefit=True)
    assert repaired.fit(X, y, sensitive_features=sex).predict(X).shape == (300,)


# ---------------------------------------------------------------------------------------------- forms of data


def test_forms_of_features_and_labels() -> None:
    X, y, sex = _people()
    X = X.astype(np.float32).astype(np.float64)  # no form loses anything
    module = _trained(dtype=torch.float64)
    frame = pd.DataFrame(X, columns=["age", "hours", "education", "tenure"])

    def fitted(X: Any, y: Any) -> RepairedClassifier:
        return RepairedClassifier(module, _quick(epsilon=0.2), prefit=True).fit(X, y, sensitive_features=sex)

    expected = fitted(X, y).predict_proba(X)
    for features, labels in (
        (frame, pd.Series(y, index=range(5, 5 + len(y)))),
        (X.tolist(), y.tolist()),
        (torch.tensor(X), torch.tensor(y)),
        (torch.tensor(X, dtype=torch.float32, requires_grad=True), pd.Series(y == 1)),
        (X.astype(np.float32), pd.Series(np.where(y == 1, ">50K", "<=50K"))),
        (np.asfortranarray(X), pd.Categorical(np.where(y == 1, "b", "a"))),
    ):
        repaired = fitted(features, labels)
        np.testing.assert_allclose(repaired.predict_proba(features), expected, rtol=0, atol=1e-12)
        assert set(repaired.predict(features)) == set(np.asarray(labels).tolist())
    named = fitted(frame, y)
    assert named.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        named.predict(frame[frame.columns[::-1]])
    # one row, many batches, whole numbers
    small = clone(named).set_params(post_processor__batch_size=7).fit(frame, y, sensitive_features=sex)
    np.testing.assert_allclose(small.predict_proba(frame), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(small.predict_proba(frame.iloc[[3]]), expected[[3]], rtol=0, atol=1e-12)
    assert fitted(X, y).predict([[0, 1, 2, 3]]).shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_networks_own_type(dtype: torch.dtype) -> None:
    X, y, sex = _people(600)
    repaired = RepairedClassifier(_trained(dtype=torch.float64).to(dtype), _quick(epsilon=0.3), prefit=True)
    repaired.fit(X, y, sensitive_features=sex)
    scores = repaired.model_(torch.tensor(X).to(dtype)).detach().double()
    np.testing.assert_array_equal(repaired.decision_function(X), (scores[:, 1] - scores[:, 0]).numpy())
    np.testing.assert_array_equal(repaired.predict(torch.tensor(X).to(dtype)), repaired.predict(X))


class TwoInputs(nn.Module):
    """A category, whose embedding is added to numbers; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(3, 4), nn.Linear(4, 2)

    def forward(self, numbers: Tensor, category: Tensor) -> tuple[Tensor, None]:
        return self.head(torch.relu(numbers + self.table(category))), None


def test_dicts_and_several_outputs() -> None:
    X, y, sex = _people(600)
    entries = {"numbers": X, "category": np.arange(600) % 3}
    net = _net(module=TwoInputs)
    repaired = RepairedClassifier(net, _quick(epsilon=0.3), output_transform=lambda output: output[0])
    repaired.fit(entries, y, sensitive_features=sex)
    tensors = {"category": torch.arange(600) % 3, "numbers": torch.tensor(X, dtype=torch.bfloat16).double()}
    assert repaired.predict(entries).shape == (600,) and not hasattr(repaired, "n_features_in_")
    assert np.mean(repaired.predict(tensors) == repaired.predict(entries)) > 0.95
    called = RepairedClassifier(
        repaired.estimator_.module_,
        _quick(epsilon=0.3),
        prefit=True,
        forward_fn=lambda network, x: network(x, torch.zeros(len(x), dtype=torch.int64))[0],
    )
    assert called.fit(X, y, sensitive_features=sex).predict(X).shape == (600,)
    for wrong, message in (
        ({"numbers": X}, r"X has the entries \['numbers'\]; expected \['numbers', 'category'\]"),
        ({"numbers": X, "category": np.arange(9)}, r"entries of X have \[600, 9\] rows"),
    ):
        with pytest.raises(InputError, match=message):
            repaired.predict(wrong)


def test_tokens_stay_whole_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 9, (300, 5), generator=generator)
    y, team = (tokens[:, 0] > 4).long(), torch.arange(300) % 2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(15, 2))
    repaired = RepairedClassifier(network, _quick(epsilon=0.5), prefit=True)
    assert repaired.fit(tokens, y, sensitive_features=team).predict(tokens).shape == (300,)


def test_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 2, 5, 5, generator=generator).numpy()
    y, team = np.arange(200) // 2 % 2, np.arange(200) % 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    repaired = RepairedClassifier(network, _quick(epsilon=0.5), prefit=True)
    assert repaired.fit(images, y, sensitive_features=team).predict_proba(images).shape == (200, 2)


def test_forms_of_sensitive_features() -> None:
    X, y, sex = _people()
    module = _trained()
    code = (sex == "Male").astype(int)

    def fitted(sensitive: Any, **options: Any) -> RepairedClassifier:
        settings = {"epsilon": 0.2, "privileged": options.pop("privileged", None)}
        repaired = RepairedClassifier(module, _quick(**settings), prefit=True, **options)
        return repaired.fit(X, y, sensitive_features=sensitive)

    expected = fitted(sex).predict_proba(X)
    shuffled = pd.Series(sex, index=np.random.default_rng(0).permutation(len(sex)), name="sex")
    for sensitive, groups in (
        (sex.tolist(), ("Female", "Male")),
        (shuffled, ("Female", "Male")),
        (shuffled.astype("category"), ("Female", "Male")),
        (pd.DataFrame({"sex": sex}), ("Female", "Male")),
        ({"sex": sex}, ("Female", "Male")),
        (sex[:, None], ("Female", "Male")),
        (code.astype(float), ("0", "1")),
        (torch.tensor(code), ("0", "1")),
        ({"sex": torch.tensor(code)[:, None]}, ("0", "1")),
        (pd.Series(code, dtype="Int64"), ("0", "1")),
        (code == 1, ("False", "True")),
    ):
        repaired = fitted(sensitive)
        assert repaired.sensitive_groups_ == groups
        np.testing.assert_array_equal(repaired.predict_proba(X), expected)
    named = fitted(code, sensitive_names={"sex": ["Female", "Male"]}, privileged={"sex": "Male"})
    assert named.sensitive_groups_ == ("Female", "Male")
    assert named.repair_.bias_before < 0  # unprivileged minus privileged


def test_several_sensitive_columns_are_crossed() -> None:
    X, y, sex = _people()
    race = np.where(np.arange(len(X)) % 3 == 0, "Black", "White")
    frame = pd.DataFrame({"sex": sex, "race": race})
    repaired = RepairedClassifier(_trained(), _quick(epsilon=0.25, selection_share=0.5), prefit=True)
    repaired.fit(X, y, sensitive_features=frame)
    crossings = (("Female", "Black"), ("Female", "White"), ("Male", "Black"), ("Male", "White"))
    assert repaired.sensitive_groups_ == crossings
    rows = np.asarray(repaired.repair_.selection_rows)
    gap = MetricFrame(
        metrics=selection_rate,
        y_true=y[rows],
        y_pred=repaired.predict(X)[rows],
        sensitive_features=frame.iloc[rows],
    ).difference()
    assert repaired.repair_.bias == pytest.approx(gap)
    for sensitive in (np.stack([sex, race], 1), list(zip(sex, race, strict=True)), {"sex": sex, "race": race}):
        other = clone(repaired).fit(X, y, sensitive_features=sensitive)
        assert other.sensitive_groups_ == crossings
        np.testing.assert_array_equal(other.predict(X), repaired.predict(X))
    sides = RepairedClassifier(_trained(), _quick(epsilon=0.2, privileged=[("Male", "White")]), prefit=True)
    assert sides.fit(X, y, sensitive_features=frame).repair_.bias_before < 0


# ---------------------------------------------------------------------------------------------- pipelines, searches


def test_a_continuous_feature_is_cut_into_ranges() -> None:
    X, y, _ = _people(300)
    age = pd.Series(40 + 12 * X[:, 0] + X[:, 1], name="age")
    method = _quick(epsilon=1.0, selection_share=0.5)
    repaired = RepairedClassifier(_trained(), method, prefit=True, bins=3).fit(X, y, sensitive_features=age)
    bins = SensitiveBins.of(age, 3)
    assert repaired.sensitive_groups_ == bins.names and clone(repaired).bins == 3
    rows = repaired.repair_.selection_rows.numpy()
    frame = MetricFrame(
        metrics=selection_rate,
        y_true=y[rows],
        y_pred=repaired.predict(X[rows]),
        sensitive_features=np.array(bins.names)[bins(age)[rows].numpy()],
    )
    figures = {f.sensitive_group: f.after for f in repaired.repair_.figures if f.name == "selection rate"}
    assert frame.by_group.to_dict() == pytest.approx({name: figures[name] for name in bins.names})
    assert frame.difference() == pytest.approx(repaired.repair_.bias)
    with pytest.raises(InputError, match=r"holds the fraction .* with bins=10 or fairtrim.SensitiveBins"):
        RepairedClassifier(_trained(), method, prefit=True).fit(X, y, sensitive_features=age)


def test_after_a_scaler() -> None:
    X, y, sex = _people()
    X = X * [1, 100, 0.01, 1]
    pipeline = make_pipeline(StandardScaler(), RepairedClassifier(_net(), _quick(epsilon=0.2)))
    pipeline.fit(X, y, repairedclassifier__sensitive_features=sex)
    assert pipeline.score(X, y) > 0.6
    assert pipeline.predict_proba(X).dtype == np.float64
    assert is_classifier(pipeline)


@pytest.mark.usefixtures("routing")
def test_metadata_routing() -> None:
    X, y, sex = _people()
    repaired = RepairedClassifier(_net(), _quick(epsilon=0.2)).set_fit_request(sensitive_features=True)
    pipeline = make_pipeline(StandardScaler(), repaired)
    scores = pipeline.fit(X, y, sensitive_features=sex).predict_proba(X)
    search = GridSearchCV(pipeline, {"repairedclassifier__post_processor__epsilon": [0.2, 0.6]}, cv=2)
    search.fit(X, y, sensitive_features=pd.Series(sex, name="sex"))
    assert search.best_estimator_[-1].sensitive_groups_ == ("Female", "Male")
    # what is not asked for is refused by scikit-learn, not lost
    with pytest.raises(ValueError, match="sensitive_features"):
        make_pipeline(StandardScaler(), RepairedClassifier(_net())).fit(X, y, sensitive_features=sex)
    inner = RepairedClassifier(
        Pipeline([("scale", StandardScaler()), ("to", _to_float32()), ("net", _net())]), _quick()
    )
    inner.set_params(post_processor__epsilon=0.2).set_fit_request(sensitive_features=True)
    assert make_pipeline(inner).fit(X, y, sensitive_features=sex).predict_proba(X).shape == scores.shape


def _to_float32() -> FunctionTransformer:
    return FunctionTransformer(_as_float32)


def _as_float32(values: Any) -> Any:
    return values.astype(np.float32)


@pytest.mark.parametrize("prefit", [False, True])
def test_a_pipeline_that_ends_in_a_net(prefit: bool) -> None:
    """Steps before the net take what no tensor can hold."""
    X, y, sex = _people(800)
    frame = pd.DataFrame(X, columns=["age", "hours", "education", "tenure"])
    frame["job"] = np.where(np.arange(800) % 3 == 0, "nurse", "pilot")
    columns = make_column_transformer(
        (StandardScaler(), ["age", "hours"]), (OneHotEncoder(), ["job"]), sparse_threshold=1.0
    )
    estimator = Pipeline([("columns", columns), ("to", _to_float32()), ("net", _net())])
    if prefit:
        estimator.fit(frame, y)
    repaired = RepairedClassifier(estimator, _quick(epsilon=0.3), prefit=prefit)
    repaired.fit(frame, np.where(y == 1, "yes", "no"), sensitive_features=sex)
    assert repaired.n_features_in_ == 5 and repaired.feature_names_in_.tolist() == list(frame.columns)
    assert (repaired.estimator_ is estimator) == prefit
    made = torch.tensor(np.asarray(repaired.estimator_[:-1].transform(frame).todense()))
    np.testing.assert_array_equal(repaired.predict(frame) == "yes", repaired.model_(made).argmax(1).numpy())
    alone = RepairedClassifier(
        Pipeline([("net", _net().fit(X.astype(np.float32), y))]), _quick(epsilon=0.3), prefit=True
    )
    assert alone.fit(X, y, sensitive_features=sex).predict(X).shape == (800,)


def _within(estimator: RepairedClassifier, X: Any, y: Any) -> float:
    return balanced_accuracy_score(y, estimator.predict(X)) - 10 * max(0.0, estimator.repair_.bias - 0.3)


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("net", "module")), "frozen"]
)
def test_searching_the_bound(kind: str) -> None:
    X, y, sex = _people(900)
    estimator: Any = {
        "net": _net,
        "module": _trained,
        "frozen": lambda: FrozenEstimator(_net().fit(X.astype(np.float32), y)),
    }[kind]()
    repaired = RepairedClassifier(estimator, prefit=kind == "module")  # with the default post-processor
    grid = {"post_processor__epsilon": [0.1, 0.3], "post_processor__penalties": [(0.0, 1.0, 10.0)]}
    search = GridSearchCV(repaired, grid, scoring=_within, cv=2, error_score="raise")
    search.fit(X, y, sensitive_features=sex)
    assert search.best_params_["post_processor__epsilon"] == 0.3
    assert search.predict(X).shape == (900,) and repaired.post_processor is None
    with pytest.raises(InputError, match="cross-validation cuts data frames, series and arrays to each fold"):
        search.fit(X, y, sensitive_features={"sex": sex})


def test_clone_parameters_and_pickle() -> None:
    X, y, sex = _people(600)
    repaired = RepairedClassifier(_trained(), _quick(epsilon=0.3), prefit=True, sensitive_names=["sex"])
    assert repaired.get_params()["post_processor__epsilon"] == 0.3
    copied = clone(repaired).set_params(post_processor__epsilon=0.4)
    assert copied.post_processor.epsilon == 0.4 and repaired.post_processor.epsilon == 0.3
    left, right = RepairedClassifier(_trained()), RepairedClassifier(_trained())
    left.set_params(post_processor__epsilon=0.4)  # the default is nobody else's
    assert right.post_processor is None and clone(right).post_processor is None
    assert left.post_processor == ParityFineTuning(epsilon=0.4)
    with pytest.raises(InputError, match=r"no setting \['epsilom'\]"):
        left.set_params(post_processor__epsilom=0.1)
    with pytest.raises(NotFittedError):
        repaired.predict(X)
    repaired.fit(X, y, sensitive_features=sex)
    check_is_fitted(repaired)
    assert not hasattr(clone(repaired), "model_")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(repaired)).predict_proba(X), repaired.predict_proba(X))
    assert "RepairedClassifier" in repr(repaired) and "RepairedClassifier" in repaired._repr_html_()
    assert get_tags(repaired).classifier_tags.multi_class
    assert not get_tags(RepairedClassifier(_trained(), ThresholdSelection())).classifier_tags.multi_class


def test_an_unmet_bound_is_a_warning() -> None:
    X, y, sex = _people(400, n_classes=3)
    strict = ParityFineTuning(epsilon=0.011, penalties=(0.0,))
    with pytest.warns(ConvergenceWarning, match="bound not met"):
        RepairedClassifier(_trained(3), strict, prefit=True).fit(X, y, sensitive_features=sex)


# ---------------------------------------------------------------------------------------------- errors


def _fit(**changes: Any) -> RepairedClassifier:
    X, y, sex = _people(200)
    settings: dict[str, Any] = {"estimator": _trained(), "post_processor": _quick(), "prefit": True}
    settings |= {"X": X, "y": y, "s": sex} | changes
    X, y, sensitive = (settings.pop(name) for name in ("X", "y", "s"))
    return RepairedClassifier(**settings).fit(X, y, sensitive_features=sensitive)


def _gaps(values: Any) -> Any:
    values = np.array(values, dtype=object)
    values[3] = None
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": None}, "estimator is a NoneType, which holds no torch network"),
        ({"estimator": LogisticRegression()}, "ThresholdOptimizer takes any classifier"),
        ({"estimator": nn.Linear}, "estimator is the class Linear"),
        ({"estimator": make_pipeline(StandardScaler())}, "the last step of estimator is a StandardScaler"),
        ({"prefit": False}, r"can't be trained here; expected prefit=True .* skorch\.NeuralNetClassifier"),
        ({"estimator": _net()}, r"net is not fitted; .* sklearn\.frozen\.FrozenEstimator"),
        ({"post_processor": ParityFineTuning}, "post_processor is the class ParityFineTuning; expected an instance"),
        ({"post_processor": "parity"}, "post_processor is a str"),
        ({"validation_share": 1.0}, r"validation_share=1\.0; expected a share in \(0, 1\)"),
        ({"validation_share": 0.999, "estimator": _net(), "prefit": False, "X": np.zeros((4, 4)), "y": [0, 1, 0, 1],
          "s": [0, 0, 1, 1]}, r"nobody of the labels \[0, 1\] is left to train on"),
        ({"y": None}, "the target y is None; expected 200 labels"),
        ({"y": np.ones(200)}, r"y has 1 class: everybody's label is 1\.0"),
        ({"y": np.arange(200) % 2 == 0, "X": np.zeros((7, 4))}, "y has 200 labels for 7 rows of X"),
        ({"y": _gaps(np.arange(200) % 2)}, "y is missing for 1 of 200 people"),
        ({"y": np.where(np.arange(200) % 2, 1.0, np.inf)}, "Input y contains infinity"),
        ({"y": np.linspace(0, 1, 200)}, "Unknown label type: continuous"),
        ({"y": np.arange(200) % 3}, r"the network has 2 outputs and y has 3 labels, \[0, 1, 2\]"),
        ({"y": np.arange(200) % 3, "post_processor": ThresholdSelection()}, "ThresholdSelection is defined for two"),
        ({"X": np.full((200, 4), np.nan)}, "Input X contains NaN"),
        ({"X": torch.full((200, 4), torch.inf)}, "Input X contains infinity"),
        ({"X": np.zeros((200, 3))}, r"inputs have shape \(2, 3\), and layer '0', a Linear, takes 4 features"),
        ({"X": torch.zeros(200, 4, dtype=torch.int64)}, "the inputs are int64 and the network is float32"),
        ({"X": {}}, r"entries of X have \[\] rows"),
        ({"X": {"x": np.zeros((200, 4))}}, r"a dict with \['x'\], which the network's forward doesn't take"),
        ({"X": torch.utils.data.TensorDataset(torch.zeros(200, 4))}, "X is a TensorDataset; expected an array"),
        ({"s": None}, r"sensitive_features is a NoneType of 0 dimensions; expected a series"),
        ({"s": np.zeros((200, 2, 2))}, "ndarray of 3 dimensions"),
        ({"s": np.zeros((2, 200))}, r"has the shape \(2, 200\) for 200 rows of X; expected \(200,\) or \(200, S\)"),
        ({"s": pd.Series(["a", "b"] * 50, name="sex")}, r"'sex' has the shape \(100,\) for 200 rows of X"),
        ({"s": {}}, "has no column"),
        ({"s": pd.DataFrame(np.zeros((200, 2)), columns=["a", "a"])}, r"are named \['a', 'a'\]"),
        ({"s": _gaps(["a", "b"] * 100)}, "'sensitive_feature_0' is missing for 1 of 200 people"),
        ({"s": pd.Series(_gaps([0, 1] * 100), dtype="Int64", name="sex")}, "'sex' is missing for 1 of 200 people"),
        ({"s": np.linspace(0, 1, 200)}, r"holds the fraction 0\.005.*SensitiveBins"),
        ({"s": ["a"] * 200}, "everybody in the validation data is of the sensitive group 'a'"),
        ({"s": np.arange(200) % 2, "sensitive_names": {"sex": ["Female"]}}, "has the value 1, which sensitive_names"),
    ],
)  # fmt: skip
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        _fit(**changes)
    assert not isinstance(raised.value, InputError) or "expected" in str(raised.value) or "sensitive_names" in message


def test_errors_of_predict() -> None:
    repaired = _fit(post_processor=_quick(epsilon=0.5))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        repaired.predict([[0.0, 1.0, 2.0, np.nan]])
    with pytest.raises(ValueError, match="X has 3 features, but RepairedClassifier is expecting 4"):
        repaired.predict(np.zeros((2, 3)))
    with pytest.raises(InputError, match="scores are not finite for 1 of 2 rows of X, first row 1"):
        repaired.predict([[0.0] * 4, [3e38, 3e38, -3e38, 3e38]])
    with pytest.raises(TypeError, match="Sparse data was passed"):
        repaired.predict(dok_matrix((2, 4)))
    with pytest.raises(TypeError, match="sensitive_features"):
        repaired.fit(np.zeros((4, 4)), [0, 1, 0, 1])


# ---------------------------------------------------------------------------------------------- scikit-learn's checks


class _AnyShape(NeuralNetClassifier):
    """A linear net that takes its sizes from the data, as the checks need it."""

    def fit(self, X: Any, y: Any, **options: Any) -> Any:
        self.set_params(module__in_features=X.shape[1], module__out_features=len(np.unique(y)))
        return super().fit(X, y, **options)


class _Double(nn.Linear):
    """In float64: a check compares batches of different sizes within 1e-7, which float32 does not hold everywhere."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


class _EveryOther(RepairedClassifier):
    """Sensitive features by position, since the checks give none."""

    def fit(self, X: Any, y: Any) -> Any:
        return super().fit(X, y, sensitive_features=np.arange(_num_samples(X)) % 2)

    def __str__(self) -> str:  # names the tests: the whole would print a set, whose order differs between workers
        return type(self).__name__


def _for_checks() -> _EveryOther:
    net = _AnyShape(
        _Double,
        module__in_features=2,
        module__out_features=2,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.1,
        max_epochs=15,
        batch_size=64,
        train_split=None,
        verbose=0,
    )
    # the checks' data are small, and say nothing of sensitive groups: no bound
    return _EveryOther(net, ParityFineTuning(epsilon=1.0, penalties=(0.0,)), validation_share=0.6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([_for_checks()])
def test_scikit_learn_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
