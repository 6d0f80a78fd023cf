"""fairtrim's post-processors as an AIF360 ``Transformer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairtrim import InputError, NotFittedError, PostProcessor, Repair, ValidationSet
from fairtrim.data.batches import ForwardFunction
from fairtrim.devices import floating_type
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork

from .datasets import LabelledDataset, check_dataset, classes_of, feature_names_of, inputs_of
from .library import ClassificationMetric, Transformer
from .predictions import scores_of, to_dataset
from .sides import Groups, check_sides, clauses_of, sides_of, to_validation_set

__all__ = ["NetworkPostProcessing"]

_ALIGNED = (
    *("feature_names", "instance_names", "protected_attribute_names", "favorable_label", "unfavorable_label"),
    *("features", "protected_attributes", "instance_weights"),
)
"""What two datasets of the same people have in common; labels and scores may differ."""

_METRICS = {"demographic_parity_difference": "statistical_parity_difference", "accuracy_score_difference": None}
"""ClassificationMetric's names of the measures that it calls otherwise; None where it means something else."""


def _check_aligned(dataset_true: Any, dataset_pred: Any) -> None:
    check_dataset(dataset_pred, "dataset_pred")
    differs = [
        name for name in _ALIGNED if not np.array_equal(getattr(dataset_true, name), getattr(dataset_pred, name))
    ]
    if differs:
        raise InputError(
            f"dataset_pred differs from dataset_true in {', '.join(differs)}; expected the same rows, with predicted "
            "labels and scores: predict_dataset(model, dataset_true)"
        )


class NetworkPostProcessing(Transformer):  # type: ignore[misc]
    """Repair a trained network's weights on validation data, and predict with the repaired network.

    Works like AIF360's post-processors, except that it edits the network instead of its outputs: the protected
    attributes are needed by ``fit`` only. What is predicted follows from the features alone, so leave the protected
    ones out with ``features`` if the network must not see them.

    Of a MulticlassLabelDataset each of the K labels is compared against the rest, and the worst one is the bias, by a
    post-processor that is defined for K classes. AIF360's metrics compare the favorable labels, taken together, with
    all others: of one favorable label that is one of these comparisons, of several none, and ``repair_`` has a flag if
    it is beyond epsilon.

    Args:
        model: The trained network: logits (N, K) in the order of ``DatasetTensors.labels``, of two labels the favorable
            one second, or one logit. It stays as it is.
        post_processor: One of fairtrim's, e.g. ``ParityFineTuning(epsilon=0.05)``; with sides its ``privileged`` must
            be None, because the groups say it.
        unprivileged_groups: As for AIF360's post-processors: a list of dicts. None, like the other one, compares every
            pair of crossings of the protected attributes.
        privileged_groups: The same.
        attributes: Without sides: names of the protected attributes that are crossed; None for all.
        features: Names of the features that the network takes, in its order; None for all, among which AIF360 counts
            the protected attributes.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        progress: Show progress bars.

    Attributes:
        repair_: How the network was repaired, its figures and trade-off curve; ``edit_rows`` and ``selection_rows`` are
            rows of the datasets.
        model_: The repaired network, ``repair_.model``.
        feature_names_: Names of the features that it takes.

    Raises:
        InputError: An argument is not what it should be.

    Example:
        >>> import torch
        >>> from aif360.metrics import ClassificationMetric
        >>> from fairtrim import ParityFineTuning
        >>> from fairtrim_adapters.aif360 import from_tensors
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> dataset = from_tensors(
        ...     x,
        ...     (x[:, 0] + 0.3 * x[:, 2] > 0).long(),
        ...     feature_names=["a", "b", "c"],
        ...     protected_attributes={"sex": x[:, 0] + x[:, 1] > 0},
        ... )
        >>> sides = {"unprivileged_groups": [{"sex": 0}], "privileged_groups": [{"sex": 1}]}
        >>> repairing = NetworkPostProcessing(
        ...     nn.Linear(3, 2), ParityFineTuning(epsilon=0.1), features=["a", "b", "c"], progress=False, **sides
        ... )
        >>> predicted = repairing.fit(dataset).predict(dataset)
        >>> bool(abs(ClassificationMetric(dataset, predicted, **sides).statistical_parity_difference()) < 0.15)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        post_processor: PostProcessor,
        unprivileged_groups: Groups | None = None,
        privileged_groups: Groups | None = None,
        *,
        attributes: Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        forward_fn: ForwardFunction | None = None,
        output_transform: OutputTransform | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model is a {type(model).__name__}; expected a torch.nn.Module (of a skorch net, net.module_)"
            )
        if not isinstance(post_processor, PostProcessor):
            raise InputError(
                f"post_processor is a {type(post_processor).__name__}; expected one of fairtrim's, e.g. "
                "ParityFineTuning()"
            )
        sides = {"unprivileged_groups": unprivileged_groups, "privileged_groups": privileged_groups}
        check_sides(unprivileged_groups, privileged_groups, attributes)
        # names and not objects: AIF360 deep-copies and pickles the metadata with every dataset
        super().__init__(
            model=type(model).__name__,
            post_processor=repr(post_processor),
            **{name: None if groups is None else clauses_of(groups, name) for name, groups in sides.items()},
            attributes=None if attributes is None else list(attributes),
            features=None if features is None else list(features),
        )
        self.model = model
        self.post_processor = post_processor
        self.unprivileged_groups = unprivileged_groups
        self.privileged_groups = privileged_groups
        self.attributes = attributes
        self.features = features
        self.forward_fn = forward_fn
        self.output_transform = output_transform
        self.progress = progress
        self._check_sides_are_ours()

    def _check_sides_are_ours(self) -> None:
        privileged = self.post_processor.privileged
        if privileged is not None and self.unprivileged_groups is not None:
            raise InputError(
                f"the post-processor has privileged={privileged!r}; expected None: unprivileged_groups and "
                "privileged_groups name the sides"
            )

    def fit(
        self,
        dataset_true: LabelledDataset,
        dataset_pred: LabelledDataset | None = None,
        *,
        dataset_selection: LabelledDataset | None = None,
    ) -> NetworkPostProcessing:
        """Repair the network.

        Args:
            dataset_true: Validation people with their true labels; best not the training data. Rows in neither side
                are left out, instance weights count.
            dataset_pred: As for AIF360's post-processors, the same people with predicted labels. The network predicts
                for itself, so that it may be left out; it is only checked to be the same people.
            dataset_selection: Other people, who select among the repaired networks and thresholds; default those of
                ``dataset_true``, or a share of them (``selection_share``).

        Returns:
            Itself.

        Raises:
            InputError: The datasets or settings don't allow it; the message says why.
        """
        self._check_sides_are_ours()
        check_dataset(dataset_true, "dataset_true")
        if dataset_pred is not None:
            _check_aligned(dataset_true, dataset_pred)
        names = feature_names_of(dataset_true, self.features)
        people, rows = self._people(dataset_true, names)
        selection, selection_rows = None, rows
        if dataset_selection is not None:
            check_dataset(dataset_selection, "dataset_selection")
            self._check_features(dataset_selection, names)
            selection, selection_rows = self._people(dataset_selection, names)
        n_scores, labels = self._scores(self.model, people.inputs[:1]).shape[1], classes_of(dataset_true)[0].tolist()
        if max(2, n_scores) != len(labels):
            raise InputError(
                f"the network has {n_scores} classes; expected "
                + ("two, or one logit" if len(labels) == 2 else f"{len(labels)}")
                + f": the labels of the dataset are {labels}"
            )
        repair = self.post_processor.repair(
            self.model,
            people,
            selection_loader=selection,
            forward_fn=self.forward_fn,
            output_transform=self.output_transform,
            progress=self.progress,
        )
        self.repair_: Repair = replace(
            repair, edit_rows=rows[repair.edit_rows], selection_rows=selection_rows[repair.selection_rows]
        )
        self.model_: nn.Module = repair.model
        self.feature_names_: tuple[str, ...] = tuple(names)
        flags = self._flags_of_favorable_sets(dataset_true if selection is None else dataset_selection)
        self.repair_ = replace(self.repair_, flags=(*repair.flags, *flags))
        return self

    def _flags_of_favorable_sets(self, dataset: Any) -> list[str]:
        """A flag if AIF360, which takes several favorable labels together, finds more than the bound on each allows."""
        measure, epsilon = self.repair_.objective.measure, self.repair_.objective.epsilon
        name = _METRICS.get(measure, measure)
        labels, favorable = classes_of(dataset)
        if self.unprivileged_groups is None or favorable.sum() < 2 or not hasattr(ClassificationMetric, name or ""):
            return []
        people = dataset.subset(self.repair_.selection_rows.tolist())
        people.ignore_fields = set(people.ignore_fields)  # which ClassificationMetric edits and subsets share
        sides = {
            argument: clauses_of(getattr(self, argument), argument)
            for argument in ("unprivileged_groups", "privileged_groups")
        }
        found = float(getattr(ClassificationMetric(people, self.predict(people), **sides), str(name))())
        if not abs(found) > epsilon:
            return []
        return [
            f"AIF360 takes the favorable labels {labels[favorable].tolist()} together, of which {name} is {found:+.3f} "
            f"on the people who selected; the bound of {epsilon:g} is asked for of each label against the rest"
        ]

    def predict(self, dataset: LabelledDataset) -> LabelledDataset:
        """Predict with the repaired network; neither labels nor protected attributes are looked at.

        Args:
            dataset: People with the features of ``fit``, in any order; others too if ``features`` were named.

        Returns:
            A copy with new ``labels`` and ``scores``: the network's decisions and its probabilities of the favorable
            label, float64. The threshold is folded into the network, so that 0.5 belongs to these scores.

        Raises:
            NotFittedError: ``fit`` comes first.
            InputError: The dataset has other features.
        """
        if not hasattr(self, "repair_"):
            raise NotFittedError("there is no repaired network yet; call fit(dataset_true) first")
        check_dataset(dataset)
        self._check_features(dataset, self.feature_names_)
        inputs = inputs_of(dataset, self.feature_names_, floating_type(self.model_))
        return to_dataset(dataset, self._scores(self.model_, inputs))

    def fit_predict(
        self, dataset_true: LabelledDataset, dataset_pred: LabelledDataset | None = None
    ) -> LabelledDataset:
        """Repair the network, and predict for the same people.

        Args:
            dataset_true: As for ``fit``.
            dataset_pred: As for ``fit``.

        Returns:
            As of ``predict``.
        """
        return self.fit(dataset_true, dataset_pred).predict(dataset_true)

    def _people(self, dataset: LabelledDataset, names: Sequence[str]) -> tuple[ValidationSet, Tensor]:
        unprivileged, privileged = self.unprivileged_groups, self.privileged_groups
        options: dict[str, Any] = {"features": names, "dtype": floating_type(self.model)}
        people = to_validation_set(dataset, unprivileged, privileged, attributes=self.attributes, **options)
        if unprivileged is None or privileged is None:
            return people, torch.arange(len(people), device="cpu")
        return people, sides_of(dataset, unprivileged, privileged)[0]

    def _scores(self, model: nn.Module, inputs: Tensor) -> npt.NDArray[np.float64]:
        network = ScoredNetwork(model, self.forward_fn, self.output_transform)
        return scores_of(network, inputs, self.post_processor.batch_size)

    def _check_features(self, dataset: Any, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in dataset.feature_names]
        unexpected = [] if self.features is not None else [n for n in dataset.feature_names if n not in names]
        if missing or unexpected:
            found = [f"lacks {missing}"] if missing else []
            found += [f"has unexpected {unexpected}"] if unexpected else []
            raise InputError(
                f"the dataset's features are not those of fit: it {' and '.join(found)}; expected the same names: "
                "encode categories before splitting the data, so that every part has the same columns"
            )
