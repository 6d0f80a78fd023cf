"""The samples whose predicted label a compression or a repair changes, and whom they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fairtrim.data.batches import Batch, ForwardFunction, iterate_batches
from fairtrim.data.labels import require_labels
from fairtrim.data.sensitive_groups import EVERYONE, GroupName, SensitiveEncoder, SensitiveNames
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.errors import InputError
from fairtrim.measures.scores import label_probability, labels_of
from fairtrim.network.probability_scores import ProbabilityScores, label_scores, refuse_shares
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import preserved_random_state

from .predictions import Predictions, labels_of_batch

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ChangedSamples", "changed_between", "changed_samples"]


@dataclass(frozen=True)
class ChangedSamples:
    """The M samples that two networks give different labels, those whose target lost most probability first.

    Attributes:
        row: Position of each sample in the loader, (M,) int64.
        target: Labels, (M,) int64.
        before: Labels that the reference predicts, (M,) int64.
        after: Labels that the other network predicts, (M,) int64.
        probability_before: Probability that the reference gives the target, (M,) float64.
        probability_after: The same of the other network, (M,) float64.
        sensitive: Names of the values of each sensitive feature, (M,) each; empty if the loader has none.
        inputs: The structure of a batch's inputs, with tensors (M, ...) on the CPU; parts that are no tensor with one
            row a sample are None. None if inputs were not kept.
        n_samples: Number of samples that were gone through, changed or not.
        people: How many of them are in each sensitive group, a value or a tuple for a crossing; groups in which nothing
            changed are among them.

    Example:
        >>> batch = (torch.eye(2), torch.tensor([0, 1]), ["a", "b"])
        >>> always_one = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = always_one.weight.zero_(), always_one.bias.copy_(torch.tensor([0.0, 1.0]))
        >>> changed = changed_samples(nn.Identity(), always_one, [batch], progress=False)
        >>> changed.row.tolist(), changed.before.tolist(), changed.after.tolist(), changed.people
        ([0], [0], [1], {'a': 1, 'b': 1})
    """

    row: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    probability_before: npt.NDArray[np.float64]
    probability_after: npt.NDArray[np.float64]
    sensitive: dict[str, npt.NDArray[np.str_]]
    inputs: Any
    n_samples: int
    people: dict[GroupName, int]

    def __len__(self) -> int:
        """M, the number of changed samples."""
        return len(self.row)

    @property
    def fall(self) -> npt.NDArray[np.float64]:
        """How much probability the target lost, (M,); negative where it gained."""
        return self.probability_before - self.probability_after

    @property
    def gained(self) -> npt.NDArray[np.bool_]:
        """Whether a wrong label became the right one, (M,)."""
        gained: npt.NDArray[np.bool_] = (self.before != self.target) & (self.after == self.target)
        return gained

    @property
    def lost(self) -> npt.NDArray[np.bool_]:
        """Whether the right label became a wrong one, (M,)."""
        lost: npt.NDArray[np.bool_] = (self.before == self.target) & (self.after != self.target)
        return lost

    @property
    def groups(self) -> list[GroupName]:
        """Sensitive group of each changed sample, M names; tuples for crossings of several features."""
        return _group_names({name: values.tolist() for name, values in self.sensitive.items()}, len(self))

    def by_group(self) -> pd.DataFrame:
        """How many labels changed in each sensitive group.

        A sample may change from one wrong label to another: such ones are neither gained nor lost.

        Returns:
            Index ``sensitive_group``, crossings joined by a comma, and at last ``everybody`` (alone, if the loader has
            no sensitive feature). Columns: ``people``; ``changed``, their number; ``share``, of the group's people;
            ``gained``, from a wrong label to the right one; ``lost``, from the right one to a wrong one.

        Example:
            >>> batch = (torch.tensor([[-1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1]), ["a", "b", "b"])
            >>> opposite = nn.Linear(1, 1, bias=False)
            >>> with torch.no_grad():
            ...     _ = opposite.weight.fill_(-1.0)
            >>> changed_samples(nn.Identity(), opposite, [batch], progress=False).by_group()
                             people  changed  share  gained  lost
            sensitive_group
            a                     1        1    1.0       0     1
            b                     2        2    1.0       1     1
            everybody             3        3    1.0       1     2
        """
        import pandas as pd

        names = self.groups
        rows = {}
        for group, people in self.people.items():
            if group != EVERYONE or self.sensitive:
                members = np.array([name == group for name in names], dtype=bool)
                rows[group if isinstance(group, str) else ", ".join(group)] = self._counts(members, people)
        rows["everybody"] = self._counts(np.ones(len(self), dtype=bool), self.n_samples)
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("sensitive_group")

    def _counts(self, members: npt.NDArray[np.bool_], people: int) -> dict[str, float]:
        return {
            "people": people,
            "changed": int(members.sum()),
            "share": float(members.sum() / people),
            "gained": int((self.gained & members).sum()),
            "lost": int((self.lost & members).sum()),
        }

    def to_frame(self, feature_names: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a changed sample.

        Args:
            feature_names: What to call the features of tabular inputs (N, D), D names; default ``feature_0`` and so on.

        Returns:
            Columns ``row``, ``target``, ``before``, ``after``, ``probability_before``, ``probability_after`` and
            ``fall``, the sensitive features, and for tabular inputs that were kept the features.

        Raises:
            InputError: Inputs are not tabular but named, there are more or fewer names than features, or two columns
                would have one name.
        """
        import pandas as pd

        columns: list[tuple[str, Any]] = [
            ("row", self.row),
            ("target", self.target),
            ("before", self.before),
            ("after", self.after),
            ("probability_before", self.probability_before),
            ("probability_after", self.probability_after),
            ("fall", self.fall),
        ]
        columns += [(name, values.astype(object)) for name, values in self.sensitive.items()]
        tabular = isinstance(self.inputs, Tensor) and self.inputs.ndim == 2
        if feature_names is not None and not tabular:
            form = f"have shape {tuple(self.inputs.shape)}" if isinstance(self.inputs, Tensor) else "are no tensor"
            form = "were not kept" if self.inputs is None else form
            raise InputError(f"feature_names are given, but the inputs {form}; expected a tensor (N, D) for them")
        if tabular:
            n_features = self.inputs.shape[1]
            names = [f"feature_{d}" for d in range(n_features)] if feature_names is None else list(feature_names)
            if len(names) != n_features:
                raise InputError(f"{len(names)} feature_names for {n_features} features; expected as many")
            columns += [(str(name), self.inputs[:, d].numpy()) for d, name in enumerate(names)]
        repeated = sorted(name for name, times in Counter(name for name, _ in columns).items() if times > 1)
        if repeated:
            raise InputError(
                f"the columns {repeated} would occur twice; expected other feature_names or sensitive_names for them, "
                f"e.g. {repeated[0] + ' (feature)'!r}"
            )
        return pd.DataFrame(dict(columns))


def changed_samples(
    reference: nn.Module,
    model: nn.Module,
    loader: Iterable[Any],
    *,
    sensitive_features: Any = None,
    sensitive_names: SensitiveNames | None = None,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
    keep_inputs: bool = True,
    max_batches: int | None = None,
    progress: bool = True,
) -> ChangedSamples:
    """Find the samples that two networks give different labels, such as a dense and a pruned one.

    They are the *compression-identified exemplars* of Hooker, Courville, Clark, Dauphin, Frome, "What do compressed
    deep neural networks forget?" (2019, arXiv 1911.05248), of one pair of networks instead of two populations of them,
    and told by sensitive group as in Hooker, Moorosi, Clark, Bengio, Denton, "Characterising bias in compressed models"
    (2020, arXiv 2010.03058). A dense network trained with another seed changes labels too: judge the number beside
    that one's.

    One pass over the loader, in eval mode; both networks are left as they were. Memory grows with the changed samples,
    not with all of them.

    Args:
        reference: The network before, e.g. the dense one.
        model: The network after.
        loader: Batches of (inputs, target) or (inputs, target, sensitive), one label a sample.
        sensitive_features: Of a loader of (inputs, target), one row a sample; see ``with_sensitive_features``.
        sensitive_names: Names of the sensitive features, and of their values.
        forward_fn: How to call a network.
        output_transform: How to find the scores in what it returns; for scores at several positions, such as tokens,
            it has to select one.
        keep_inputs: Keep the inputs of the changed samples, to look at them.
        max_batches: Stop after so many batches.
        progress: Show a progress bar.

    Returns:
        The changed samples.

    Raises:
        InputError: The networks tell different numbers of classes, scores are not finite or are probabilities, targets
            are not their labels, or inputs that should be kept have another shape in each batch.

    Example:
        >>> batch = (torch.eye(3), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
        >>> names = {"team": ["red", "blue"]}
        >>> same = changed_samples(nn.Identity(), nn.Identity(), [batch], sensitive_names=names, progress=False)
        >>> len(same), same.people, tuple(same.inputs.shape)
        (0, {'blue': 2, 'red': 1}, (0, 3))
    """
    for name, network in (("reference", reference), ("model", model)):
        if not isinstance(network, nn.Module):
            raise InputError(f"{name} is a {type(network).__name__}; expected a network (torch.nn.Module)")
    before = ScoredNetwork(reference, forward_fn, output_transform)
    networks = {"the reference": before, "the model": before.of(model)}
    devices = {name: network.device for name, network in networks.items()}
    encoder = SensitiveEncoder(sensitive_names)
    loader = with_sensitive_features(loader, sensitive_features)
    people: Counter[GroupName] = Counter()
    parts: list[dict[str, Any]] = []
    kept = _KeptInputs() if keep_inputs else None
    n_samples = 0
    seen: dict[str, ProbabilityScores] = {}
    with preserved_random_state(loader), torch.no_grad():
        for batch in iterate_batches(
            loader, None, max_batches=max_batches, progress=progress, description="comparing labels"
        ):
            batch = replace(batch, target=batch.target.cpu())
            # the inputs go to a device once for both networks
            there = {device: batch.inputs_on(device) for device in set(devices.values())}
            scores = [
                _scores(name, network, there[devices[name]], seen.setdefault(name, ProbabilityScores()))
                for name, network in networks.items()
            ]
            n_classes, of_model = (max(2, one.shape[1]) for one in scores)
            if n_classes != of_model:
                raise InputError(
                    f"the reference tells {n_classes} classes and the model {of_model}; expected networks of one task"
                )
            target = labels_of_batch(batch, None)
            require_labels(target, n_classes, what=f"batch {batch.index}: labels")
            columns = _sensitive_columns(encoder, batch)
            people.update(_group_names(columns, len(batch)))
            was, now = (labels_of(one).numpy() for one in scores)
            rows = (was != now).nonzero()[0]
            probability = [label_probability(one, torch.from_numpy(target)).numpy()[rows] for one in scores]
            parts.append(
                {
                    "row": n_samples + rows,
                    "target": target[rows],
                    "before": was[rows],
                    "after": now[rows],
                    "probability_before": probability[0],
                    "probability_after": probability[1],
                    "sensitive": {name: [column[row] for row in rows] for name, column in columns.items()},
                }
            )
            if kept is not None:
                kept.add(batch, torch.from_numpy(rows))
            n_samples += len(batch)
    for name, scores_of in seen.items():
        scores_of.check_single(name)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "sensitive"}
    order = np.argsort(arrays["probability_after"] - arrays["probability_before"], kind="stable")
    encoder.learn({"features": encoder.features, "groups": list(people), "weighted": False})
    return ChangedSamples(
        **{name: values[order] for name, values in arrays.items()},
        sensitive={
            name: np.asarray([value for part in parts for value in part["sensitive"][name]], dtype=np.str_)[order]
            for name in encoder.features or ()
        },
        inputs=None if kept is None else kept.stacked(torch.from_numpy(order)),
        n_samples=n_samples,
        people={encoder.groups[g]: people[encoder.groups[g]] for g in encoder.order()},
    )


def changed_between(
    predictions: Predictions,
    reference: str,
    *,
    inputs: Iterable[Any] | None = None,
    progress: bool = True,
) -> dict[str, ChangedSamples]:
    """The same of predictions that were made already, by each network but the reference: none is run again.

    Example:
        >>> from fairtrim import predict
        >>> batch = (torch.eye(2), torch.tensor([0, 1]), ["a", "b"])
        >>> both = predict({"dense": nn.Identity(), "other": nn.Softmin(dim=1)}, [batch], progress=False)
        >>> changed = changed_between(both, "dense", inputs=[batch], progress=False)["other"]
        >>> changed.row.tolist(), changed.people, tuple(changed.inputs.shape)
        ([0, 1], {'a': 1, 'b': 1}, (2, 2))
    """
    missing = [name for name in predictions.label if name not in predictions.scores]
    if reference not in predictions.label or missing:
        raise InputError(
            f"the predictions are of {list(predictions.label)}, without scores of {missing}; expected {reference!r} "
            "among them, and scores of each"
        )
    before, scores = predictions.label[reference], predictions.scores
    n_classes = max(2, scores[reference].shape[1])
    rows: dict[str, npt.NDArray[np.int64]] = {}
    for name, label in predictions.label.items():
        if (of_model := max(2, scores[name].shape[1])) != n_classes:
            raise InputError(
                f"{reference!r} tells {n_classes} classes and {name!r} {of_model}; expected networks of one task"
            )
        if name != reference:
            rows[name] = (label != before).nonzero()[0]
    columns = {name: values.tolist() for name, values in predictions.sensitive.items()}
    people = Counter(_group_names(columns, len(before)))
    encoder = SensitiveEncoder()
    encoder.learn({"features": list(columns), "groups": list(people), "weighted": False})
    kept = {} if inputs is None else _inputs_of(rows, predictions.target, inputs, progress)
    found: dict[str, ChangedSamples] = {}
    for name, changed in rows.items():
        target = predictions.target[changed]
        both = (torch.from_numpy(scores[network][changed]) for network in (reference, name))
        was, now = (label_probability(one, torch.from_numpy(target)).numpy() for one in both)
        order = np.argsort(now - was, kind="stable")
        at = changed[order]
        found[name] = ChangedSamples(
            row=at,
            target=predictions.target[at],
            before=before[at],
            after=predictions.label[name][at],
            probability_before=was[order],
            probability_after=now[order],
            sensitive={feature: values[at] for feature, values in predictions.sensitive.items()},
            inputs=kept[name].stacked(torch.from_numpy(order)) if kept else None,
            n_samples=len(before),
            people={encoder.groups[g]: people[encoder.groups[g]] for g in encoder.order()},
        )
    return found


def _inputs_of(
    rows: Mapping[str, npt.NDArray[np.int64]], target: npt.NDArray[np.int64], loader: Iterable[Any], progress: bool
) -> dict[str, _KeptInputs]:
    kept = {name: _KeptInputs() for name in rows}
    n_samples = 0
    with preserved_random_state(loader):
        for batch in iterate_batches(loader, None, max_batches=None, progress=progress, description="keeping inputs"):
            batch = replace(batch, target=batch.target.cpu())
            end = n_samples + len(batch)
            if not np.array_equal(labels_of_batch(batch, None), target[n_samples:end]):
                raise InputError(
                    f"batch {batch.index} of the loader has other labels than when the networks predicted; expected "
                    "the same people in the same order each time: shuffle=False"
                )
            for name, inputs in kept.items():
                here = rows[name][(rows[name] >= n_samples) & (rows[name] < end)]
                inputs.add(batch, torch.from_numpy(here - n_samples))
            n_samples = end
    if n_samples != len(target):
        raise InputError(f"the loader gave {n_samples} people, and {len(target)} before; expected the same each time")
    return kept


def _group_names(columns: Mapping[str, list[str]], n_samples: int) -> list[GroupName]:
    if not columns:
        return [EVERYONE] * n_samples
    if len(columns) == 1:
        return list(*columns.values())
    return list(zip(*columns.values(), strict=True))


def _scores(
    name: str,
    network: ScoredNetwork,
    batch: Batch,
    seen: ProbabilityScores,
) -> Tensor:
    """Scores of one batch, (N, K) float64; those at several positions, and probabilities, are refused."""
    given = label_scores(name, network, batch, watch=batch.index == 0)
    scores = given.cpu().double()
    if not bool(torch.isfinite(scores).all()):
        raise InputError(f"a network gave scores that are not finite in batch {batch.index}")
    seen.add(scores.to(given.dtype))
    if seen.shares:
        refuse_shares(name)
    return scores


def _sensitive_columns(encoder: SensitiveEncoder, batch: Batch) -> Mapping[str, list[str]]:
    if batch.sensitive is None:
        encoder.encode(None, len(batch))  # refuses if earlier batches had some, and remembers that this one had none
        return {}
    return encoder.named_columns(batch.sensitive, len(batch))


class _KeptInputs:
    """Rows of the inputs of one batch after another, in the structure of the first."""

    def __init__(self) -> None:
        self._structure: Any = None
        self._shapes: list[tuple[int, ...] | None] = []
        self._parts: list[list[Tensor | None]] = []

    def add(self, batch: Batch, rows: Tensor) -> None:
        leaves, structure = tree_flatten(batch.inputs)
        fitting = [leaf if isinstance(leaf, Tensor) and leaf.shape[:1] == (len(batch),) else None for leaf in leaves]
        shapes = [None if leaf is None else tuple(leaf.shape[1:]) for leaf in fitting]
        if self._structure is None:
            self._structure, self._shapes = structure, shapes
        if shapes != self._shapes:
            raise InputError(
                f"the inputs of a sample have shapes {self._shapes} in the first batch and {shapes} in batch "
                f"{batch.index}, so they can't be stacked; pass keep_inputs=False, or a loader that pads all to one "
                "length"
            )
        self._parts.append([None if leaf is None else leaf.detach()[rows].cpu() for leaf in fitting])

    def stacked(self, order: Tensor) -> Any:
        leaves = [None if part[0] is None else torch.cat(part)[order] for part in zip(*self._parts, strict=True)]
        return tree_unflatten(leaves, self._structure)
