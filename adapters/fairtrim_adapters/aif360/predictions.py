"""What a network says of an AIF360 dataset, as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairtrim import InputError
from fairtrim.arguments import require_number
from fairtrim.comparison.predictions import predict
from fairtrim.data.batches import ForwardFunction
from fairtrim.devices import floating_type
from fairtrim.measures.scores import labels_of, positive_margin
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork

from .datasets import LabelledDataset, check_dataset, classes_of, feature_names_of, inputs_of

__all__ = ["predict_dataset", "scores_of", "to_dataset"]

_Scores = Tensor | npt.NDArray[np.floating[Any]]


def to_dataset(dataset: LabelledDataset, scores: _Scores) -> LabelledDataset:
    """A dataset with a network's predictions, to hand to AIF360's metrics and post-processors.

    Args:
        dataset: The dataset that the network was given; left as it is.
        scores: What it returned, row by row: logits (N, K), for two labels also one logit (N, 1) or (N,).

    Returns:
        A copy, shallow as AIF360's are: ``labels`` is the label with the largest score (the favorable one where the
        logit is positive), ``scores`` is the probability of the favorable label, of several that one of them is
        right; both (N, 1) float64. The rest is the dataset's. With more than two labels a probability above 0.5 is not
        the decision, which the largest single score makes.

    Raises:
        InputError: There are more or fewer classes or rows than the dataset has, or scores that are not finite.

    Example:
        >>> from fairtrim_adapters.aif360 import from_tensors
        >>> dataset = from_tensors(
        ...     torch.eye(2), torch.tensor([1, 0]), feature_names=["x", "sex"], protected_attributes=["sex"]
        ... )
        >>> predicted = to_dataset(dataset, torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        >>> predicted.labels.tolist(), predicted.scores.round(2).tolist()
        ([[0.0], [1.0]], [[0.5], [0.88]])
    """
    check_dataset(dataset)
    logits = torch.as_tensor(scores, device="cpu").detach().double()
    logits = logits[:, None] if logits.ndim == 1 else logits
    n_rows = len(dataset.features)
    classes, favorable = classes_of(dataset)
    n_classes = len(classes)
    if logits.ndim != 2 or len(logits) != n_rows:
        raise InputError(
            f"the scores have shape {tuple(logits.shape)} for {n_rows} rows; expected ({n_rows}, {n_classes})"
            + (", or one logit each" if n_classes == 2 else "")
        )
    if n_classes > 2 and logits.shape[1] != n_classes:
        raise InputError(
            f"the scores are of {logits.shape[1]} classes; expected {n_classes}, one for each of the dataset's labels "
            f"{classes.tolist()}"
        )
    if n_classes == 2:
        odds = positive_margin(logits)
    else:
        odds = logits[:, favorable].logsumexp(1) - logits[:, ~favorable].logsumexp(1)
    n_bad = int((~torch.isfinite(odds)).sum())
    if n_bad:
        raise InputError(f"the scores of {n_bad} of {n_rows} rows are not finite; look at the network and its inputs")
    predicted = dataset.copy()
    # temporarily_ignore(), which ClassificationMetric calls, would else leave the copy blind to its labels; of more
    # than two classes it has left the dataset itself so
    predicted.ignore_fields = set(dataset.ignore_fields) - {"labels", "scores"}
    predicted.labels = classes[labels_of(logits).numpy()].reshape(-1, 1)
    predicted.scores = odds.sigmoid().numpy().reshape(-1, 1)
    return predicted


def scores_of(network: ScoredNetwork, inputs: Tensor, batch_size: int) -> npt.NDArray[np.float64]:
    """Scores of a network, (N, K)."""
    batches = [
        (part, torch.zeros(len(part), dtype=torch.int64, device="cpu")) for part in torch.split(inputs, batch_size)
    ]
    options: dict[str, Any] = {"forward_fn": network.forward_fn, "output_transform": network.output_transform}
    return predict(network.model, batches, progress=False, **options).scores["model"]


def predict_dataset(
    model: nn.Module,
    dataset: LabelledDataset,
    *,
    features: Sequence[str] | None = None,
    batch_size: int = 1024,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
) -> LabelledDataset:
    """Any network's predictions for a dataset: the ``dataset_pred`` of AIF360.

    Args:
        model: The network, run in eval mode and left as it was; it takes features in the type of its parameters.
        dataset: The dataset; left as it is.
        features: Names of the features that the network takes, in its order; None for all.
        batch_size: Samples a forward pass.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Returns:
        A copy with new ``labels`` and ``scores``, as ``to_dataset`` makes it.

    Raises:
        InputError: The dataset lacks a feature or holds values that are not finite, or the network doesn't return a
            score for each label, or one logit for two, for each row.

    Example:
        >>> from fairtrim_adapters.aif360 import from_tensors
        >>> dataset = from_tensors(
        ...     torch.eye(2), torch.tensor([1, 0]), feature_names=["x", "sex"], protected_attributes=["sex"]
        ... )
        >>> predict_dataset(nn.Identity(), dataset).labels.tolist()
        [[0.0], [1.0]]
    """
    check_dataset(dataset)
    require_number("batch_size", batch_size, at_least=1, whole=True)
    inputs = inputs_of(dataset, feature_names_of(dataset, features), floating_type(model))
    return to_dataset(dataset, scores_of(ScoredNetwork(model, forward_fn, output_transform), inputs, batch_size))
