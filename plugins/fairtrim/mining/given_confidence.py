"""What the network as it is given is unsure of: the baseline that costs one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.utils.data import DataLoader

from fairtrim.data.batches import ForwardFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.network.scored_network import OutputTransform
from fairtrim.registry import Standing

from .mined_samples import MinedSamples
from .miner import Miner, label_probabilities

__all__ = ["GivenConfidence"]


@dataclass(frozen=True, kw_only=True)
class GivenConfidence(Miner):
    """1 − p(y|x) of the network as it is given, without any training.

    Where the network has memorised its training samples, what is left of the confidence says less than a miner that
    trains or prunes.

    Args:
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> x, y = torch.tensor([[-2.0], [-1.0], [2.0]]), torch.tensor([0, 1, 1])
        >>> model = nn.Linear(1, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[-1.0], [1.0]]))  # the log-odds of label 1 are 2x
        >>> mined = GivenConfidence().mine(model, DataLoader(TensorDataset(x, y), batch_size=2), progress=False)
        >>> [round(score, 3) for score in mined.scores.tolist()]  # the second: 1 - 1 / (1 + exp(2))
        [0.018, 0.881, 0.018]
        >>> mined.conflicting().tolist()
        [False, True, False]
    """

    name: ClassVar[str] = "given-confidence"
    does: ClassVar[str] = "mines what the network as it is given is unsure of, without any training"
    when: ClassVar[str] = "first, for it is free; a miner that trains finds more"
    standing: ClassVar[Standing] = "baseline"

    forward_fn: ForwardFunction | None = None
    output_transform: OutputTransform | None = None

    def mine(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        """Score every sample; see ``Miner.mine``."""
        samples = IndexedSamples(loader)
        probability, _, target = label_probabilities(model, samples, self.forward_fn, self.output_transform)
        return MinedSamples(1 - probability, target)
