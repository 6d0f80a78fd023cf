"""A post-processor beside Fairlearn's ``ThresholdOptimizer``: it repairs the network, and predicts without groups."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, assert_all_finite, check_random_state, get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _num_samples, check_array, check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fairtrim import (
    FairtrimError,
    InputError,
    ParityFineTuning,
    PostProcessor,
    SensitiveBins,
    UnsupportedModelError,
    ValidationSet,
)
from fairtrim.data.batches import ForwardFunction, slice_samples, tensors_of
from fairtrim.data.sensitive_groups import EVERYONE, SensitiveNames
from fairtrim.devices import floating_type
from fairtrim.measures.scores import labels_of
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import every_module_in_eval_mode, preserved_model, seeded

from .estimator_inputs import number_of_samples, sensitive_columns, tensor_of_entry

__all__ = ["RepairedClassifier"]


class RepairedClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that edits a trained network until a bias measure between sensitive groups is within a bound.

    Used like ``fairlearn.postprocessing.ThresholdOptimizer``, with one difference: the sensitive features are needed to
    fit and not to predict, because the repair is written into the weights and the last bias of a copy of the network.
    That has its price: thresholds that know each person's group lose less accuracy for the same parity. A
    post-processor's ``measure="demographic_parity_difference"`` goes with ``constraints="demographic_parity"``,
    ``"equal_opportunity_difference"`` with ``"true_positive_rate_parity"``, ``"equalized_odds_difference"`` with
    ``"equalized_odds"``.

    For torch networks: a module, a skorch net, or a scikit-learn ``Pipeline`` that ends in a skorch net. A network's
    outputs stand for the labels in sorted order, so that for labels ``"no"`` and ``"yes"`` a single logit is that of
    ``"yes"``. They must be logits: in skorch ``criterion=torch.nn.CrossEntropyLoss`` and a module without softmax, or
    ``NeuralNetBinaryClassifier``.

    ``X`` may be an array, a data frame of numbers, a tensor, or a dict of those, which the network gets as keyword
    arguments. Floating-point values take the network's type; whole numbers in an array or a data frame do too, while
    those in a tensor or a dict stay (indices for an ``nn.Embedding``). Before a ``Pipeline``, ``X`` is whatever its
    first step takes.

    With metadata routing, ``set_fit_request(sensitive_features=True)`` brings the sensitive features through pipelines
    and searches.

    Args:
        estimator: The network. A torch module must be trained already, and ``prefit=True``. An estimator in
            ``sklearn.frozen.FrozenEstimator`` counts as ``prefit``; that keeps a fitted skorch net in searches, which
            clone it otherwise and lose its weights.
        post_processor: Any post-processor of fairtrim; None for ``ParityFineTuning()``. Its settings can be searched
            as ``post_processor__epsilon`` and so on.
        prefit: Repair ``estimator`` as it is on all of (X, y), best people whom it was not trained on. Otherwise a
            clone is trained on a part of them and repaired on the rest.
        validation_share: Share of the people who are held out of training, every label and sensitive group alike. The
            post-processor edits and selects on them (``selection_share``). Ignored with ``prefit``.
        sensitive_names: Names of the sensitive features and of their values, for features that come as codes:
            ``["sex", "race"]`` or ``{"sex": ["Female", "Male"]}``. Data frames, series and dicts bring their own.
        bins: The sensitive feature is a continuous one, such as age in years, whose ranges are the groups: 10 for
            deciles, or given ones. See ``fairtrim.ValidationSet.from_loader``.
        forward_fn: How to call the network, ``forward_fn(network, inputs)``.
        output_transform: How to find the scores in what it returns.
        random_state: Of the split and of the training, for whose length the random states of torch, numpy and Python
            are set; int, ``numpy.random.RandomState`` or None. Post-processors have their own.
        progress: Show progress bars of the post-processor.

    Attributes:
        post_processor_: The post-processor that was used, a clone.
        model_: The repaired network, a plain torch module in eval mode.
        repair_: How it was chosen and what else could have been, a ``fairtrim.Repair``; its rows are positions in
            ``validation_rows_``.
        estimator_: The estimator that was repaired, itself unchanged.
        classes_: The K labels, sorted.
        training_rows_: Rows of X that the estimator was trained on here; none with ``prefit``.
        validation_rows_: Rows of X that the network was repaired on.
        sensitive_groups_: Names of the G sensitive groups that fitting saw.
        n_features_in_: Number of columns of X, if it is no dict.
        feature_names_in_: Their names, if X is a data frame with names.
        input_names_: Names of the entries of X, if it is a dict.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(600, 3))
        >>> sex = np.where(X[:, 0] + X[:, 1] > 0, "male", "female")
        >>> y = np.where(X[:, 0] + 0.3 * X[:, 2] > 0, "yes", "no")
        >>> network = nn.Linear(3, 2)  # trained elsewhere
        >>> repaired = RepairedClassifier(network, ParityFineTuning(epsilon=0.1), prefit=True)
        >>> repaired = repaired.fit(X, y, sensitive_features=sex)
        >>> repaired.repair_.within_bound
        True
        >>> repaired.predict(X).shape, repaired.classes_.tolist()
        ((600,), ['no', 'yes'])
    """

    def __init__(
        self,
        estimator: Any,
        post_processor: PostProcessor | None = None,
        *,
        prefit: bool = False,
        validation_share: float = 0.25,
        sensitive_names: SensitiveNames | None = None,
        bins: int | SensitiveBins | None = None,
        forward_fn: ForwardFunction | None = None,
        output_transform: OutputTransform | None = None,
        random_state: int | np.random.RandomState | None = 0,
        progress: bool = False,
    ) -> None:
        self.estimator = estimator
        self.post_processor = post_processor
        self.prefit = prefit
        self.validation_share = validation_share
        self.sensitive_names = sensitive_names
        self.bins = bins
        self.forward_fn = forward_fn
        self.output_transform = output_transform
        self.random_state = random_state
        self.progress = progress

    def set_params(self, **params: Any) -> Self:
        """Change parameters; ``post_processor__…`` of the default post-processor as well.

        Args:
            params: By name.

        Returns:
            Itself.
        """
        if self.post_processor is None and any(name.startswith("post_processor__") for name in params):
            self.post_processor = ParityFineTuning()
        super().set_params(**params)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = getattr(self.post_processor, "multiclass", True)
        if isinstance(_unfrozen(self.estimator), Pipeline):
            tags.input_tags = get_tags(self.estimator).input_tags
        return tags

    def fit(self, X: Any, y: Any, *, sensitive_features: Any) -> Self:
        """Train the network if it is not ``prefit``, and repair it.

        A bound that is not met, or a constant classifier, is a ``ConvergenceWarning``.

        Args:
            X: Features of N people.
            y: Their labels, (N,): any two values; more for post-processors that are defined for them.
            sensitive_features: Their sensitive features: a series, a data frame, a dict of columns, or an array (N,)
                or (N, S); several are crossed. Only here.

        Returns:
            Itself.

        Raises:
            InputError: An argument or the data are not as expected.
            UnsupportedModelError: The network can't be repaired: it has no linear head that returns logits.
        """
        self.post_processor_ = self._checked_post_processor()
        self.estimator_, prefit = self._checked_estimator()
        before = None if prefit else _steps_before(self.estimator_)
        if before is None:
            dtype = floating_type(_network(self.estimator_)) if prefit else torch.get_default_dtype()
            inputs = self._read(X, dtype, reset=True)
            n_samples = number_of_samples(inputs)
        else:  # what those steps make of X is known when they are fitted
            validate_data(self, X, reset=True, skip_check_array=True)
            n_samples = _num_samples(X)

        def part(rows: Tensor) -> Any:
            if before is None:
                return slice_samples(inputs, rows)
            return _safe_indexing(X, rows.numpy())

        codes = self._fit_labels(y, n_samples)
        columns = sensitive_columns(sensitive_features, n_samples, fractions=self.bins is not None)
        people = ValidationSet.from_loader(
            [(torch.arange(n_samples, device="cpu"), codes, columns)],
            sensitive_names=self.sensitive_names,
            bins=self.bins,
            progress=False,
        )
        self.sensitive_groups_ = people.groups
        training, validation = torch.empty(0, dtype=torch.int64, device="cpu"), torch.arange(n_samples, device="cpu")
        if not prefit:
            random_state = check_random_state(self.random_state)
            generator = torch.Generator().manual_seed(int(random_state.randint(2**31 - 1)))
            validation, training = people.split(self.validation_share, generator)
            self._check_labels_left(codes[training], n_samples)
            target = _net_target(self.estimator_, codes[training])
            with seeded(generator):
                self.estimator_ = clone(self.estimator_).fit(part(training), target)
        network = _network(self.estimator_)
        held_out = part(validation)
        if before is not None:
            held_out = self._read(held_out, floating_type(network), reset=False)
        people = replace(people.take(validation), inputs=held_out)
        self.training_rows_, self.validation_rows_ = training.numpy(), validation.numpy()
        self._check_outputs(network, people)
        try:
            self.repair_ = self.post_processor_.repair(
                network,
                people,
                forward_fn=self.forward_fn,
                output_transform=self.output_transform,
                progress=self.progress,
            )
        except UnsupportedModelError as error:
            if not _wants_probabilities(_last_step(self.estimator_)):
                raise
            raise UnsupportedModelError(f"{error}. {_LOGITS}") from error
        self.model_ = self.repair_.model
        every_module_in_eval_mode(self.model_)
        if not self.repair_.within_bound:
            warnings.warn("; ".join(self.repair_.flags), ConvergenceWarning, stacklevel=2)
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The repaired network's decisions: the largest score, or whether the single logit is positive.

        Args:
            X: Features of N people.

        Returns:
            Labels, (N,).
        """
        labels = labels_of(torch.from_numpy(self._scores(X)))
        return np.asarray(self.classes_[labels.numpy()])

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """The repaired network's probabilities, whose largest is its decision.

        Args:
            X: Features of N people.

        Returns:
            (N, K) float64, in the order of ``classes_``.
        """
        scores = torch.from_numpy(self._scores(X))
        if scores.shape[1] == 1:
            return torch.cat([torch.sigmoid(-scores), torch.sigmoid(scores)], 1).numpy()
        return scores.softmax(1).numpy()

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """The repaired network's scores before softmax.

        Args:
            X: Features of N people.

        Returns:
            For two labels how far the second is above the first, (N,): above 0 it is decided. Otherwise (N, K).
        """
        scores = self._scores(X)
        if scores.shape[1] > 2:
            return scores
        return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def _checked_post_processor(self) -> PostProcessor:
        chosen = self.post_processor
        if chosen is not None and not isinstance(chosen, PostProcessor):
            got = f"the class {chosen.__name__}" if isinstance(chosen, type) else f"a {type(chosen).__name__}"
            raise InputError(
                f"post_processor is {got}; expected an instance of one of fairtrim's, e.g. ParityFineTuning(), or None"
            )
        if not 0 < self.validation_share < 1:
            raise InputError(f"validation_share={self.validation_share!r}; expected a share in (0, 1)")
        copied: PostProcessor = ParityFineTuning() if chosen is None else clone(chosen)
        return copied

    def _checked_estimator(self) -> tuple[Any, bool]:
        estimator = _unfrozen(self.estimator)
        prefit = self.prefit or isinstance(self.estimator, FrozenEstimator)
        net = _last_step(estimator)
        if isinstance(estimator, nn.Module):
            if not prefit:
                raise InputError(
                    f"estimator is a torch module, a {type(estimator).__name__}, which can't be trained here; expected "
                    "prefit=True for one that is trained already, or a net that trains it, e.g. "
                    "skorch.NeuralNetClassifier(Module, criterion=torch.nn.CrossEntropyLoss)"
                )
            return estimator, True
        if not _is_skorch_net(net):
            got = f"the class {net.__name__}" if isinstance(net, type) else f"a {type(net).__name__}"
            place = "the last step of estimator" if isinstance(estimator, Pipeline) else "estimator"
            raise InputError(
                f"{place} is {got}, which holds no torch network; expected a trained torch module, a skorch net or a "
                "Pipeline that ends in one; fairlearn.postprocessing.ThresholdOptimizer takes any classifier"
            )
        if prefit and not isinstance(getattr(net, "module_", None), nn.Module):
            raise InputError(
                "prefit=True and the skorch net is not fitted; expected a fitted one: call its fit, or use "
                "prefit=False. clone() and searches forget its weights: wrap it in sklearn.frozen.FrozenEstimator"
            )
        if not prefit and _wants_probabilities(net):
            raise UnsupportedModelError(f"the skorch net's criterion is {_criterion(net).__name__}. {_LOGITS}")
        return estimator, prefit

    def _fit_labels(self, y: Any, n_samples: int) -> Tensor:
        if y is None:
            raise InputError(
                f"{type(self).__name__} requires y to be passed, but the target y is None; expected {n_samples} "
                "labels, one for each row of X"
            )
        labels = column_or_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, warn=True)
        if len(labels) != n_samples:
            raise InputError(f"y has {len(labels)} labels for {n_samples} rows of X; expected as many")
        missing = int(pd.isna(labels).sum())
        if missing:
            raise InputError(f"y is missing for {missing} of {n_samples} people; expected a label for each")
        assert_all_finite(labels, input_name="y", estimator_name=type(self).__name__)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"y has 1 class: everybody's label is {self.classes_.tolist()[0]!r}; expected people of at least two"
            )
        if len(self.classes_) > 2 and not self.post_processor_.multiclass:
            raise InputError(
                "Only binary classification is supported. The type of the target is multiclass: y has "
                f"{len(self.classes_)} labels and {type(self.post_processor_).__name__} is defined for two; expected "
                "two, or a post_processor that is defined for more, e.g. ParityFineTuning()"
            )
        return torch.from_numpy(codes.astype(np.int64))

    def _check_labels_left(self, codes: Tensor, n_samples: int) -> None:
        missing = [label for code, label in enumerate(self.classes_.tolist()) if not bool((codes == code).any())]
        if missing:
            raise InputError(
                f"nobody of the labels {missing} is left to train on when {self.validation_share} of {n_samples} "
                "people are held out; expected some of each: use more people, or a smaller validation_share"
            )

    def _read(self, X: Any, dtype: torch.dtype, *, reset: bool) -> Any:
        """What the network takes, on the CPU."""
        numbers: dict[str, Any] = {"dtype": np.float64 if dtype == torch.float64 else np.float32, "allow_nd": True}
        before = _steps_before(self.estimator_)
        if before is not None:
            made = before.transform(validate_data(self, X, reset=reset, skip_check_array=True))
            made = made.toarray() if issparse(made) else made
            return torch.tensor(check_array(made, estimator=self, input_name="X", **numbers), dtype=dtype, device="cpu")
        if isinstance(X, Dataset | DataLoader):
            raise InputError(
                f"X is a {type(X).__name__}; expected an array, a data frame, a tensor or a dict of those: give a "
                "loader to the post-processor itself, post_processor.repair(network, loader)"
            )
        if isinstance(X, Mapping) and not issparse(X):  # SciPy has a sparse matrix that is a dict
            if reset:
                self.input_names_ = tuple(X)
            elif set(X) != set(self.input_names_):
                raise InputError(f"X has the entries {list(X)}; expected {list(self.input_names_)}, as in fit")
            return {name: tensor_of_entry(values, str(name), dtype, self) for name, values in X.items()}
        if isinstance(X, Tensor):
            X = X.detach().cpu()
            if not X.is_floating_point() and not X.is_complex():
                return torch.tensor(
                    validate_data(self, X.numpy(), reset=reset, dtype=None, allow_nd=True), device="cpu"
                )
            X = X.to(torch.float32).numpy() if X.dtype in (torch.bfloat16, torch.float16) else X.numpy()
        return torch.tensor(validate_data(self, X, reset=reset, **numbers), dtype=dtype, device="cpu")

    def _scores(self, X: Any) -> npt.NDArray[np.float64]:
        check_is_fitted(self)
        inputs = self._read(X, floating_type(self.model_), reset=False)
        scores = self._run(self.model_, inputs, self.post_processor_.batch_size)
        finite = np.isfinite(scores).all(1)
        if not finite.all():
            raise InputError(
                f"the network's scores are not finite for {(~finite).sum()} of {len(scores)} rows of X, first row "
                f"{finite.argmin()}; expected values of the size that it was trained on"
            )
        return scores

    def _run(self, model: nn.Module, inputs: Any, batch_size: int) -> npt.NDArray[np.float64]:
        """Scores of a network, (N, K)."""
        network = ScoredNetwork(model, self.forward_fn, self.output_transform)
        nothing = torch.zeros(number_of_samples(inputs), dtype=torch.int64, device="cpu")
        people = ValidationSet(inputs, nothing, nothing, (EVERYONE,))
        with preserved_model(model), torch.no_grad():
            batches = people.batches(batch_size, network.device)
            parts = [network.scores(batch).cpu().double() for _, batch in batches]
        return torch.cat(parts).numpy()

    def _check_outputs(self, network: nn.Module, people: ValidationSet) -> None:
        inputs = people.take(torch.arange(min(2, len(people)), device="cpu")).inputs
        try:
            n_outputs = self._run(network, inputs, len(people)).shape[1]
        except FairtrimError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = [("N", *tensor.shape[1:]) for tensor in tensors_of(inputs)]
            raise InputError(
                f"the network can't be run on X of shape {shapes}: {error}; expected X as the network takes it, or a "
                "forward_fn that calls it otherwise"
            ) from error
        if max(2, n_outputs) != len(self.classes_):
            raise InputError(
                f"the network has {n_outputs} outputs and y has {len(self.classes_)} labels, {self.classes_.tolist()}; "
                "expected an output for each label, or a single logit for two: every label must occur in y"
            )


_LOGITS = (
    "With NLLLoss, its default, skorch takes probabilities from the module; expected logits, which a threshold can be "
    "written into: use criterion=torch.nn.CrossEntropyLoss and leave the softmax out of the module"
)


def _unfrozen(estimator: Any) -> Any:
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


def _last_step(estimator: Any) -> Any:
    return _unfrozen(estimator.steps[-1][1]) if isinstance(estimator, Pipeline) else estimator


def _steps_before(estimator: Any) -> Any:
    return estimator[:-1] if isinstance(estimator, Pipeline) and len(estimator.steps) > 1 else None


def _is_skorch_net(estimator: Any) -> bool:
    skorch = sys.modules.get("skorch")  # whoever has a net has imported it; it is not needed otherwise
    return skorch is not None and isinstance(estimator, skorch.NeuralNet)


def _network(estimator: Any) -> nn.Module:
    network = estimator if isinstance(estimator, nn.Module) else _last_step(estimator).module_
    assert isinstance(network, nn.Module)
    return network


def _criterion(net: Any) -> type:
    criterion = getattr(net, "criterion", None)
    return criterion if isinstance(criterion, type) else type(criterion)


def _wants_probabilities(net: Any) -> bool:
    return _is_skorch_net(net) and issubclass(_criterion(net), nn.NLLLoss)


def _net_target(estimator: Any, codes: Tensor) -> npt.NDArray[Any]:
    """Labels as the net's loss takes them."""
    of_one_logit = issubclass(_criterion(_last_step(estimator)), nn.BCEWithLogitsLoss)
    return (codes.to(torch.get_default_dtype()) if of_one_logit else codes).numpy()
