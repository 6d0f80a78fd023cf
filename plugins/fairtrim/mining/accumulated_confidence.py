"""Accumulated confidence (DENP): samples that a network gives up first when its capacity goes.

Published is the abstract (Hong, Kim, Joo, Han, Shin, Wald and Lee, IEEE TIP 2026, doi 10.1109/TIP.2026.3687070):
pruning changes each sample's confidence differently, and confidence accumulated over sparsities tells bias-conflicting
from bias-aligned samples. No formula and no code is public: everything here is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim.arguments import drawn_seed, renamed, require_number
from fairtrim.data.batches import LossFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.errors import InputError
from fairtrim.network.copied_network import copied_network
from fairtrim.network.losses import generalized_cross_entropy
from fairtrim.network.scored_network import ScoredNetwork

from .mined_samples import MinedSamples
from .miner import Trace
from .trained_miners import TrainingMiner

__all__ = ["AccumulatedConfidence", "Accumulation", "GradualPruning", "accumulated"]

Accumulation = Literal["confidence", "drop", "correctness"]

GradualPruning = Callable[[nn.Module, IndexedSamples, Sequence[float], torch.Generator], Iterator[float]]
"""``prune(model, samples, levels, generator)`` removes channels of the model, in place, up to the next level at each
step of the iterator, and yields that level. The levels are shares of the channels, increasing."""


def accumulated(trace: Trace, dense: Tensor, accumulate: Accumulation) -> Tensor:
    """Conflict score of every sample from a trace over K sparsities.

    ``"confidence"``: 1 − AC_n with AC_n = (1/K) Σ_k p(y_n | x_n; θ_k); ``"drop"``: (1/K) Σ_k [p(y_n | x_n; θ_0) −
    p(y_n | x_n; θ_k)]; ``"correctness"``: the share of sparsities at which the sample is wrong.

    Args:
        trace: K rows.
        dense: p(y_n | x_n; θ_0) of the unpruned network, (N,).
        accumulate: Which.

    Returns:
        (N,) float64; larger = more likely bias-conflicting.
    """
    if accumulate == "confidence":
        return 1 - trace.probability.mean(0)
    if accumulate == "drop":
        return dense - trace.probability.mean(0)
    return 1 - trace.correct.double().mean(0)


@renamed(seed="random_state")
@dataclass(frozen=True, kw_only=True)
class AccumulatedConfidence(TrainingMiner):
    """Prune a copy of a trained network gradually, retrain it shortly after each level, and add up its confidence.

    Without the short training the scores say little; with it the pruning criterion matters little (random channels
    do). The network may be trained to the end: no epoch has to be chosen. The other settings are those of
    ``TrainingMiner``; ``epochs`` and ``learning_rate`` are of the training after each level, and each repeat takes the
    next ``random_state``.

    Args:
        prune: How to remove channels up to the next level; an adapter of a pruner makes one.
        levels: Shares of the channels, increasing. Beyond the default's .6 a network gives up aligned samples, too.
        loss_fn: Of the training after each level; generalised cross-entropy keeps to the shortcut.
        accumulate: ``"confidence"``, ``"drop"`` or ``"correctness"``; see ``accumulated``. The drop is lower for what
            the network never was sure of, as wrong labels are before it has learned them by heart.
        repeats: How many times to prune from the start, with other random channels and another order of the samples;
            the confidences are averaged over all.
        n_jobs: How many of those at a time, through joblib; None leaves it to ``joblib.parallel_config``, by default
            one. A Dask or Ray cluster is such a configuration.

    Raises:
        InputError: A number or a choice is out of range.
    """

    least_epochs: ClassVar[int] = 0

    prune: GradualPruning
    epochs: int = 1
    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    loss_fn: LossFunction = generalized_cross_entropy
    accumulate: Accumulation = "confidence"
    repeats: int = 1
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.prune):
            raise InputError(f"prune is a {type(self.prune).__name__}; expected a function that removes channels")
        try:
            levels = [float(level) for level in self.levels]
        except (TypeError, ValueError):
            levels = []
        if not levels or levels != sorted(set(levels)) or not levels[0] > 0 or not levels[-1] < 1:
            raise InputError(f"levels={self.levels!r}; expected increasing shares between 0 and 1, both excluded")
        object.__setattr__(self, "levels", tuple(levels))
        if self.accumulate not in ("confidence", "drop", "correctness"):
            raise InputError(f"accumulate={self.accumulate!r}; expected 'confidence', 'drop' or 'correctness'")
        require_number("repeats", self.repeats, at_least=1, whole=True)
        if self.n_jobs is not None:
            require_number("n_jobs", self.n_jobs, whole=True)
        if self.n_jobs == 0:
            raise InputError("n_jobs=0; expected how many run at a time, -1 for one a core, or None")

    @torch.inference_mode(False)  # there nothing has a slope
    def trace(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> tuple[Trace, Tensor]:
        """Confidence of every sample at each level.

        Args:
            model: A trained network; a copy is pruned.
            loader: A DataLoader of (inputs, target, ...).
            progress: Show a progress bar.

        Returns:
            The trace, one row a repeat and level, and the confidence of the unpruned network, (N,).
        """
        from joblib import Parallel, delayed

        ScoredNetwork(model).check()
        dense, _, target = self._seen(model, IndexedSamples(loader))
        seed = drawn_seed(self.random_state)
        repeats = Parallel(n_jobs=self.n_jobs)(
            delayed(self._repeat)(model, loader, seed + r, progress) for r in range(self.repeats)
        )
        rows = [row for of_repeat in repeats for row in of_repeat]
        probability, correct = (torch.stack(column) for column in zip(*rows, strict=True))
        return Trace(probability, correct, target), dense

    def _repeat(
        self, model: nn.Module, loader: DataLoader[Any], seed: int, progress: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Confidence and correctness of every sample at each level of one run, (N,) each."""
        samples, generator = IndexedSamples(loader), torch.Generator().manual_seed(seed)
        shrinking = copied_network(model)
        rows = []
        for _ in self.prune(shrinking, samples, list(self.levels), generator):
            self._train(shrinking, samples, self.loss_fn, generator, progress)
            rows.append(self._seen(shrinking, samples)[:2])
        if len(rows) != len(self.levels):
            raise InputError(f"prune gave {len(rows)} levels; expected one for each of {self.levels}")
        return rows

    def mine(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        """Score every sample; see ``Miner.mine``."""
        trace, dense = self.trace(model, loader, progress=progress)
        of_levels = trace.probability.reshape(self.repeats, -1, len(dense)).mean(0)
        return MinedSamples(
            accumulated(trace, dense, self.accumulate),
            trace.target,
            levels=(0.0, *self.levels),
            confidence=torch.cat([dense[None], of_levels]),
        )
