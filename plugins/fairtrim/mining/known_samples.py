"""Bias-conflicting samples that are known already, in the place of a miner: from annotations, or mined before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim.data.batches import ForwardFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.errors import InputError
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork

from .mined_samples import MinedSamples
from .miner import Miner, seen_labels

__all__ = ["KnownFlags", "KnownSamples"]

KnownFlags = Tensor | np.ndarray[Any, np.dtype[np.bool_]] | Sequence[bool]
"""Whether each sample is bias-conflicting, (N,), by index in the dataset."""


@dataclass(frozen=True, eq=False)
class KnownSamples(Miner):
    """Gives what is known: no network is trained and nothing is mined.

    With flags from annotations this is what a user does who knows who is bias-conflicting, and in comparisons the upper
    reference: how far a better miner could get.

    Args:
        known: The flags, or what a miner found before; kept as a tensor (N,) bool or as ``MinedSamples``.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Raises:
        InputError: The flags are not boolean or not (N,), or flag nobody or everybody.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.randn(4, 1), torch.tensor([0, 0, 1, 1])), batch_size=2)
        >>> KnownSamples([False, True, False, False]).mine(nn.Linear(1, 2), loader).conflicting().tolist()
        [False, True, False, False]
    """

    known: KnownFlags | MinedSamples
    forward_fn: ForwardFunction | None = None
    output_transform: OutputTransform | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.known, MinedSamples):
            object.__setattr__(self, "known", _flags(self.known))

    @property
    def flags(self) -> Tensor | None:
        """The flags, (N,) bool; None where there are scores, from which a set can still be cut."""
        return self.known if isinstance(self.known, Tensor) else None

    def mine(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        """What is known, beside the labels of the dataset; see ``Miner.mine``."""
        samples = IndexedSamples(loader)
        n_known = len(self.known.scores if isinstance(self.known, MinedSamples) else self.known)
        if n_known != samples.n_samples:
            raise InputError(
                f"{n_known} samples are known and the loader's dataset has {samples.n_samples}; expected one flag or "
                "score for each, by its index there"
            )
        _, _, target = seen_labels(ScoredNetwork(model, self.forward_fn, self.output_transform), samples)
        if isinstance(self.known, MinedSamples):
            if not torch.equal(self.known.target.cpu(), target):
                raise InputError(
                    "the labels of the known samples are not those of the loader's dataset; expected the same samples "
                    "in the same order"
                )
            return self.known
        flags = self.flags
        assert flags is not None
        return MinedSamples(flags.double(), target, flags.clone())


def _flags(known: Any) -> Tensor:
    try:  # a copy, for torch takes no array that is turned round or read-only
        given = known.detach().cpu() if isinstance(known, Tensor) else np.array(known)
    except ValueError as error:
        raise InputError(
            f"the known flags are no table ({error}); expected one boolean for each sample, (N,)"
        ) from None
    kind = str(given.dtype).removeprefix("torch.")
    if given.ndim != 1 or kind != "bool":
        raise InputError(
            f"the known flags are {kind} of shape {tuple(given.shape)}; expected one boolean for each sample, (N,)"
        )
    flags = torch.as_tensor(given, device="cpu")
    n_flagged = int(flags.sum())
    if n_flagged in (0, len(flags)):
        who = "no sample is" if n_flagged == 0 else f"all {n_flagged} samples are"
        raise InputError(f"the known flags say that {who} bias-conflicting; expected some that are, and others")
    return flags.clone()
