"""Parity fine-tuning: a penalty on the differences between sensitive groups, along a path of strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.measures.differentiable_bias import balancing_weights, dependence, differences, rank_polynomials
from fairtrim.measures.scores import label_losses, probabilities, sharpened
from fairtrim.registry import Standing

from .candidates import Candidates
from .judging import estimates_of
from .post_processor import PostProcessor
from .working_copy import WorkingCopy

__all__ = ["ParityFineTuning"]

_SHARP = ((5.0, 4.0), (20.0, 4.0), (20.0, 8.0), (20.0, 16.0))
"""The default path's second part: strengths, and how many standard deviations wide scores are made for the rates."""

_WIDE = 8.0
"""The same of the second half of the epochs for each strength, where all layers are trained by the default path."""

_Gaps = Callable[[Tensor, Tensor], Tensor]
"""What is penalised, of the probabilities of some rows."""

_WHITENED = 1024
"""Wider features are taken as they are: whitening costs their number cubed."""


@dataclass(kw_only=True)
class ParityFineTuning(PostProcessor):
    """Fine-tune with a differentiable parity penalty; the recommended default (ours).

    Minimises cross-entropy + penalty · Σ (r_g − r_h)² over the pairs of sensitive groups, r the group rates of the
    bias measure with probabilities in place of decisions, each drawn towards everybody's as far as the given network's
    may be off by chance (see ``fairtrim.measures.group_estimates``). A path over the penalty gives the candidates; each
    starts from the given weights (``layers="all"``) or from the solution before it (``layers="output"``, a nearly
    convex problem on features that are computed once, solved by L-BFGS in float64). Under
    ``performance="balanced_accuracy"`` both classes weigh the same in the cross-entropy. Probabilities may be alike
    between groups whose decisions aren't: the default path goes on with rates that are nearly decisions, of scores that
    are made 4, 8 and 16 standard deviations wide (``width`` in the history), or 8 for the second half of the epochs of
    all layers. Everybody edits and everybody selects, in five folds, or three for all layers (see ``selection_share``).

    Of a continuous feature (``ValidationSet.from_loader(loader, bins=10)``) the groups are its deciles, which judge.
    What is penalised in place of their differences is twice the covariance of the rate with people's ranks by the
    feature, and with the squares of these: see ``fairtrim.measures.differentiable_bias.dependence``.

    Defined for K classes: rates one against the rest, decisions by the largest score, and no threshold.

    Args:
        layers: ``output`` or ``all``.
        penalties: Strengths, in the order in which they are tried; None for a path that suits ``layers``.
        ridge: For ``output``: weight of the squared distance to the given weights, relative to their squared norm.
        epochs: For ``all``: passes over the edit people for each penalty.
        learning_rate: For ``all``: of Adam.
        training_batch_size: For ``all``: samples a step; group rates are those of the batch, so it should be large.

    Example:
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> sensitive = (x[:, 1] + x[:, 0] > 0).long()  # what the network leans on is unevenly shared
        >>> people = [(x, (x[:, 0] + 0.3 * x[:, 2] > 0).long(), sensitive)]
        >>> given = torch.nn.Linear(3, 2)
        >>> repair = ParityFineTuning(epsilon=0.1).repair(given, people, progress=False)
        >>> repair.within_bound
        True
    """

    name: ClassVar[str] = "parity-fine-tuning"
    does: ClassVar[str] = "edits the output layer, or all layers, under a penalty on the bias between sensitive groups"
    when: ClassVar[str] = "first, for rates of groups within a bound; layers='all' where the output layer isn't enough"
    source: ClassVar[str] = "fairtrim"
    standing: ClassVar[Standing] = "ours"

    layers: str = "output"
    penalties: Sequence[float] | None = None
    ridge: float = 1e-4
    epochs: int = 10
    learning_rate: float = 1e-3
    training_batch_size: int = 512

    multiclass: ClassVar[bool] = True

    def _folds(self) -> int:
        return 5 if self.layers == "output" else 3

    def check(self) -> None:
        """Refuse settings that can't work; see ``PostProcessor.check``."""
        super().check()
        if self.layers not in ("output", "all"):
            raise InputError(f"layers={self.layers!r}; expected 'output' or 'all'")
        if self.penalties is not None and (not len(self.penalties) or min(self.penalties) < 0):
            raise InputError(f"penalties={self.penalties}; expected at least one strength, none negative")
        if self.epochs < 1 or self.training_batch_size < 2 or not self.learning_rate > 0 or self.ridge < 0:
            raise InputError(
                f"epochs={self.epochs}, training_batch_size={self.training_batch_size}, "
                f"learning_rate={self.learning_rate}, ridge={self.ridge}; expected at least 1 epoch, batches of at "
                "least 2, a positive learning rate and a ridge of at least 0"
            )
        if self.layers == "output":
            self._refuse_idle(["epochs", "learning_rate", "training_batch_size"], "expected layers='all' with it")
        else:
            self._refuse_idle(["ridge"], "expected layers='output' with it")

    def _path(self) -> tuple[float, ...]:
        if self.penalties is not None:
            return tuple(self.penalties)
        if self.layers == "output":
            return (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
        return (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0)

    def _sample_weights(self, working: WorkingCopy) -> Tensor:
        people = working.people
        if self.performance == "balanced_accuracy":
            return balancing_weights(people.target, working.n_classes, people.weight)
        return people.mass * len(people) / people.mass.sum()

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        weights = self._sample_weights(working)
        gaps = self._gaps(working)
        if self.layers == "output":
            self._fit_output_layer(working, candidates, weights, gaps)
        else:
            self._fit_all_layers(working, candidates, weights, gaps)

    def _loss(
        self,
        working: WorkingCopy,
        scores: Tensor,
        rows: Tensor,
        weights: Tensor,
        penalty: float,
        gaps: _Gaps,
        *,
        width: float | None = None,
    ) -> Tensor:
        losses = label_losses(scores, working.beside(scores, working.people.target, rows))
        loss = (losses * working.beside(losses, weights, rows)).mean()
        if penalty:
            given = probabilities(scores if width is None else sharpened(scores, width))
            loss = loss + penalty * gaps(given, rows).square().sum()
        return loss

    def _gaps(self, working: WorkingCopy) -> _Gaps:
        people = working.people
        if people.continuous is not None:
            columns = people.target, rank_polynomials(people.continuous), people.mass

            def of_values(given: Tensor, rows: Tensor) -> Tensor:
                return dependence(self.measure, given, *(working.beside(given, column, rows) for column in columns))

            return of_values
        shares = None
        if self.confidence is not None:
            estimates = estimates_of(self.objective(), people, working.scores(people), self.min_people)
            shares = None if estimates is None else estimates.shares

        def of_groups(given: Tensor, rows: Tensor) -> Tensor:
            near = None if shares is None else working.beside(given, shares)
            return differences(self.measure, working.counts(given, rows), near)

        return of_groups

    def _fit_output_layer(self, working: WorkingCopy, candidates: Candidates, weights: Tensor, gaps: _Gaps) -> None:
        features = working.all_features(working.people)
        rows = torch.arange(len(features), device="cpu")
        given = working.head.theta()
        scale = self.ridge / given.square().sum().clamp(min=1e-12)
        whitened, unwhitened = _whitened(
            torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype, device="cpu")], 1)
        )
        own = features @ given[:, :-1].T + given[:, -1]
        move = torch.zeros_like(given).requires_grad_(True)
        path: list[tuple[float, float | None]] = [(penalty, None) for penalty in self._path()]
        if self.penalties is None:
            path += _SHARP
        with working.bar(len(path), "parity fine-tuning") as bar:
            for penalty, width in path:
                if candidates.exhausted():
                    break
                optimizer = torch.optim.LBFGS([move], max_iter=100, line_search_fn="strong_wolfe")

                def closure(
                    penalty: float = penalty, width: float | None = width, optimizer: torch.optim.LBFGS = optimizer
                ) -> Tensor:
                    optimizer.zero_grad()
                    loss = self._loss(working, own + whitened @ move.T, rows, weights, penalty, gaps, width=width)
                    loss = loss + scale * unwhitened(move).square().sum()
                    loss.backward()  # type: ignore[no-untyped-call]
                    return loss

                optimizer.step(closure)  # type: ignore[no-untyped-call]
                working.head.write(given + unwhitened(move.detach()))
                candidates.offer(penalty=penalty, **({} if width is None else {"width": width}))
                bar.update()

    def _fit_all_layers(self, working: WorkingCopy, candidates: Candidates, weights: Tensor, gaps: _Gaps) -> None:
        batch_size = max(2, round(self.training_batch_size * working.share))  # as many steps with a fold held out
        training = working.training(self._path(), self.epochs, self.learning_rate, "parity fine-tuning")
        for penalty, epoch, step in training:
            if candidates.exhausted():
                return
            width = _WIDE if self.penalties is None and 2 * epoch >= self.epochs > 1 else None
            for rows, batch in working.people.batches(batch_size, working.device, working.generator):
                if len(rows) >= 2:
                    rows = to_device(rows, working.device)  # once, for all that is taken of the people
                    step(self._loss(working, working.network.scores(batch), rows, weights, penalty, gaps, width=width))
            candidates.offer(penalty=penalty, epoch=epoch, **({} if width is None else {"width": width}))


def _whitened(features: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Features (N, D) without scale and correlation, in which L-BFGS takes a fraction of the steps.

    And what a move (K, D) of weights on them is of weights on the features. Where they are many, or more than people,
    they are taken as they are.
    """
    n_features = features.shape[1]
    if n_features > min(len(features), _WHITENED):
        return features, lambda move: move
    moments = features.T @ features / len(features)
    # far more than rounding needs: along features that hardly vary the ridge would be blown up, and steps end early
    jitter = 1e-4 * moments.diagonal().mean().clamp_min(1e-12)
    identity = torch.eye(n_features, dtype=moments.dtype, device="cpu")
    factor = torch.linalg.solve_triangular(torch.linalg.cholesky(moments + jitter * identity), identity, upper=False)
    return features @ factor.T, lambda move: move @ factor
