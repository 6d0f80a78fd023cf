"""The data of an experiment: who scores the channels, who is trained and repaired on, and who judges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fairtrim.arguments import did_you_mean, require_known
from fairtrim.errors import InputError
from fairtrim.preservation import preserved_random_state

from .batches import Batch, ForwardFunction, LossFunction, iterate_batches
from .sensitive_groups import SensitiveNames
from .sensitive_loader import with_sensitive_features
from .sentence_pairs import SentencePairs

__all__ = ["DataSplits"]

_LOADERS = ("test", "scoring", "validation", "train")


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """Loaders by what they are for, and how to read them.

    Each loader gives batches of (inputs, target, sensitive) or dicts, and is read many times: a DataLoader or a list of
    batches, not a generator.

    Args:
        test: The people by whom networks are judged, best those who had no part in anything else; in the same order
            each time, so don't shuffle.
        scoring: Who scores the channels; default ``train``. A few thousand are enough.
        validation: Whom post-processors edit and select on.
        train: A DataLoader to fine-tune on.
        sensitive_features: Of loaders of (inputs, target), by split, one row a sample: ``{"test": test_frame["sex"],
            "validation": ...}``; see ``with_sensitive_features``. None once the loaders have them.
        sensitive_names: Names of the sensitive features and of their values.
        loss_fn: Loss of scores and target, for the criteria and for fine-tuning.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        name: What to call the data in reports.
        description: Where they come from, and what the label and the sensitive features are; for reports.
        feature_names: Names of the columns of tabular inputs, for tables of samples.
        class_names: Names of the K classes, for tables and pictures.
        pairs: Pairs of sentences, by which language models are compared too.

    Raises:
        InputError: A loader can be read only once, sensitive features don't fit theirs, or the pairs are none.

    Example:
        >>> import torch
        >>> people = [(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])]
        >>> DataSplits(test=people, name="two people").has("validation")
        False
    """

    test: Iterable[Any]
    scoring: Iterable[Any] | None = None
    validation: Iterable[Any] | None = None
    train: Iterable[Any] | None = None
    sensitive_features: Mapping[str, Any] | None = None
    sensitive_names: SensitiveNames | None = None
    loss_fn: LossFunction = F.cross_entropy
    forward_fn: ForwardFunction | None = None
    output_transform: Callable[[Any], Tensor] | None = None
    name: str = "the data"
    description: str = ""
    feature_names: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    pairs: SentencePairs | None = None

    def __post_init__(self) -> None:
        for name in _LOADERS:
            loader = getattr(self, name)
            if loader is None and name != "test":
                continue
            if not isinstance(loader, Iterable):
                raise InputError(f"{name} is a {type(loader).__name__}; expected a DataLoader or a list of batches")
            if isinstance(loader, Iterator):
                raise InputError(
                    f"{name} is a {type(loader).__name__}, which can be read only once; expected a DataLoader or a list"
                )
        self._give_sensitive_features()
        if not isinstance(self.pairs, SentencePairs | None):
            raise InputError(
                f"pairs is a {type(self.pairs).__name__}; expected SentencePairs, e.g. SentencePairs.of_texts(...)"
            )

    def _give_sensitive_features(self) -> None:
        """Put them beside the batches of their loaders, once."""
        given = {} if self.sensitive_features is None else self.sensitive_features
        if not isinstance(given, Mapping):
            raise InputError(
                f"sensitive_features is a {type(given).__name__}; expected them by split: "
                "{'test': test_frame['sex'], 'scoring': ...}"
            )
        require_known("sensitive_features", given, _LOADERS)
        made = {
            name: with_sensitive_features(getattr(self, name), rows, argument=f"sensitive_features[{name!r}]")
            for name, rows in given.items()
        }
        for name, loader in {**made, "sensitive_features": None}.items():
            object.__setattr__(self, name, loader)

    @classmethod
    def of(cls, value: Any) -> DataSplits:
        """The splits that a user's function gave.

        Args:
            value: A ``DataSplits``, or a dict of its arguments.

        Returns:
            The splits.

        Raises:
            InputError: It is something else, has no ``test``, or an unknown entry.

        Example:
            >>> DataSplits.of({"test": [], "name": "nobody"}).name
            'nobody'
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            if callable(value):
                raise InputError("the data are a function; expected what it gives: call it, e.g. data()")
            raise InputError(
                f"the data are a {type(value).__name__}; expected DataSplits(test=loader, scoring=loader, ...) or a "
                "dict of its arguments"
            )
        known = [entry.name for entry in fields(cls)]
        for key in value:
            if key not in known:
                raise InputError(f"the data have an entry {key!r}{did_you_mean(key, known)}; expected some of {known}")
        if "test" not in value:
            raise InputError(f"the data have {list(value)}, but no 'test'; expected the loader of those who judge")
        return cls(**value)

    def has(self, split: str) -> bool:
        """Whether a split is there.

        Args:
            split: Its name.

        Returns:
            Whether.
        """
        return getattr(self, split) is not None

    def need(self, split: str, what: str) -> Any:
        """A split that something can't do without.

        Args:
            split: ``"scoring"`` (default ``train``), ``"validation"`` or ``"train"``.
            what: Who needs it, for the message.

        Returns:
            The loader.

        Raises:
            InputError: It is missing.
        """
        loader = getattr(self, split)
        if loader is None and split == "scoring":
            loader = self.train
        if loader is None:
            raise InputError(f"{what} needs the split {split!r}; expected DataSplits(test=..., {split}=loader)")
        return loader

    @property
    def calling(self) -> dict[str, Any]:
        """How networks are called: ``forward_fn`` and ``output_transform``."""
        return {"forward_fn": self.forward_fn, "output_transform": self.output_transform}

    def first_batch(self, split: str, device: Any) -> Batch:
        """The first batch of a split; the loader's random state stays.

        Args:
            split: Its name.
            device: Where to.

        Returns:
            The batch.
        """
        loader = self.need(split, "a first batch")
        with preserved_random_state(loader):
            return next(iter(iterate_batches(loader, device, max_batches=1, progress=False)))
