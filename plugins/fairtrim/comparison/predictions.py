"""What networks predict, sample by sample, with the sensitive features beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairtrim.arguments import require_network
from fairtrim.data.batches import Batch, ForwardFunction, iterate_batches
from fairtrim.data.labels import require_labels
from fairtrim.data.sensitive_groups import SensitiveEncoder, SensitiveNames
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.errors import InputError
from fairtrim.measures.scores import labels_of
from fairtrim.network.probability_scores import ProbabilityScores, label_scores
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import preserved_random_state

__all__ = ["Predictions", "labels_of_batch", "predict"]


@dataclass(frozen=True)
class Predictions:
    """Targets, predictions of any number of networks, and sensitive features, row by row.

    Attributes:
        target: Labels, (N,) int64.
        label: Predicted labels of each network by name, (N,) int64: the largest score, or for a single logit
            whether it is above 0.
        scores: Class scores of each network by name, (N, K) float64, before softmax; empty if only labels were kept. Of
            a network that ends in a softmax they are the logarithms of what it returns.
        sensitive: Names of the values of each sensitive feature, (N,) each; empty if the loader has none.
        n_classes: K, 2 for a single logit; read off the scores if there are any.

    Example:
        >>> batch = (torch.tensor([[0.0, 2.0, 1.0], [4.0, 0.0, 0.0]]), torch.tensor([2, 0]), ["a", "b"])
        >>> found = predict({"net": nn.Identity()}, [batch], progress=False)
        >>> found.label["net"].tolist(), found.target.tolist(), found.n_classes
        ([1, 0], [2, 0], 3)
        >>> [values.tolist() for values in found.sensitive.values()]
        [['a', 'b']]
    """

    target: npt.NDArray[np.int64]
    label: dict[str, npt.NDArray[np.int64]]
    scores: dict[str, npt.NDArray[np.float64]]
    sensitive: dict[str, npt.NDArray[np.str_]]
    n_classes: int = 2

    def __post_init__(self) -> None:
        sizes = [int(scores.shape[1]) for scores in self.scores.values()]
        object.__setattr__(self, "n_classes", max(self.n_classes, *sizes) if sizes else self.n_classes)


def predict(
    models: nn.Module | Mapping[str, nn.Module],
    loader: Iterable[Any],
    *,
    sensitive_features: Any = None,
    sensitive_names: SensitiveNames | None = None,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
    max_batches: int | None = None,
    progress: bool = True,
) -> Predictions:
    """Run networks over the same batches, in eval mode, and leave them as they were.

    The loader is gone through once, so that rows belong together even if it shuffles. With scores (N, T, K) and labels
    (N, T), each labelled position, e.g. each token, is a row of its own, with the sensitive features of its sample;
    positions with a negative label, such as padding, are left out.

    Args:
        models: One network (named ``model``) or several by name.
        loader: Batches of (inputs, target) or (inputs, target, sensitive).
        sensitive_features: Of a loader of (inputs, target), one row a sample; see ``with_sensitive_features``.
        sensitive_names: Names of the sensitive features, and of their values.
        forward_fn: How to call a network.
        output_transform: How to find the scores in what it returns.
        max_batches: Stop after so many batches.
        progress: Show a progress bar.

    Returns:
        The predictions.

    Raises:
        InputError: There is no network, or something else in its place, scores are not finite, targets are not labels,
            some batches have sensitive features and others none, or single scores are probabilities, of which ``> 0``
            decides nothing.

    Example:
        >>> batch = (torch.eye(2), torch.tensor([0, 1]), ["a", "b"])
        >>> predict(nn.Identity(), [batch], progress=False).label["model"].tolist()
        [0, 1]
    """
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise InputError("no networks to run; expected at least one")
    for name, model in named.items():
        require_network(f"network {name!r}", model)
    networks = {name: ScoredNetwork(model, forward_fn, output_transform) for name, model in named.items()}
    devices = {name: network.device for name, network in networks.items()}
    encoder = SensitiveEncoder(sensitive_names)
    loader = with_sensitive_features(loader, sensitive_features)
    targets: list[npt.NDArray[np.int64]] = []
    collected: dict[str, list[Tensor]] = {name: [] for name in named}
    seen = {name: ProbabilityScores() for name in named}
    sensitive: dict[str, list[str]] = {}
    with preserved_random_state(loader), torch.no_grad():
        for batch in iterate_batches(
            loader, None, max_batches=max_batches, progress=progress, description="predicting"
        ):
            batch = replace(batch, target=batch.target.cpu())
            # the inputs go to a device once for all networks on it
            there = {device: batch.inputs_on(device) for device in set(devices.values())}
            labelled: Tensor | None = None
            for name, network in networks.items():
                watch = not collected[name]
                given = label_scores(f"network {name!r}", network, there[devices[name]], positions=True, watch=watch)
                scores = given.cpu().double()
                if scores.ndim == 3:
                    labelled = batch.target >= 0
                    scores = scores[labelled]
                if not bool(torch.isfinite(scores).all()):
                    raise InputError(
                        f"network {name!r} gave scores that are not finite in batch {batch.index}; expected finite "
                        "ones: look for NaN in the inputs and the weights"
                    )
                seen[name].add(scores.to(given.dtype))
                collected[name].append(scores)
            targets.append(labels_of_batch(batch, labelled))
            if batch.sensitive is None:
                encoder.encode(None, len(batch))  # refuses where other batches have some
            else:
                repeats = [1] * len(batch) if labelled is None else labelled.sum(1).tolist()
                for name, values in encoder.named_columns(batch.sensitive, len(batch)).items():
                    of_rows = [value for value, n in zip(values, repeats, strict=True) for _ in range(n)]
                    sensitive.setdefault(name, []).extend(of_rows)
    scores_of = {name: torch.cat(parts).numpy() for name, parts in collected.items()}
    for name, given_scores in scores_of.items():
        seen[name].check_single(f"network {name!r}")
        if seen[name].shares:
            scores_of[name] = np.log(np.clip(given_scores, np.finfo(np.float64).tiny, None))
    target = np.concatenate(targets)
    n_classes = max(2, *(int(scores.shape[1]) for scores in scores_of.values()))
    if not len(target):
        raise InputError("no position of any sample has a label of at least 0; expected some that have")
    require_labels(target, n_classes)
    return Predictions(
        target=target,
        label={name: labels_of(torch.from_numpy(scores)).numpy() for name, scores in scores_of.items()},
        scores=scores_of,
        sensitive={name: np.asarray(values) for name, values in sensitive.items()},
    )


def labels_of_batch(batch: Batch, labelled: Tensor | None) -> npt.NDArray[np.int64]:
    """Labels of one batch, (N,), or one for each position that ``labelled``, (N, T) bool, has.

    Example:
        >>> labels_of_batch(Batch(torch.ones(2, 3), torch.tensor([0, 1]), None, 0), None).tolist()
        [0, 1]
    """
    target = batch.target if labelled is None else batch.target[labelled]
    if labelled is None and target.numel() != len(batch):
        raise InputError(
            f"batch {batch.index}: the target has shape {tuple(target.shape)}; expected class labels (N,), not one "
            "number for each class: for one-hot targets pass target.argmax(1); several labels a sample have no one "
            "prediction to report: give each label's decisions to fairlearn.metrics.MetricFrame"
        )
    if target.is_floating_point() and not torch.equal(target, target.round()):
        raise InputError(
            f"batch {batch.index}: the target holds fractions; expected class labels. For regression give "
            "the outputs, in float64, to fairlearn.metrics.MetricFrame with a regression metric"
        )
    return target.reshape(-1).long().numpy()
