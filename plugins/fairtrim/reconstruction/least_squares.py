"""Ridge regression of what a layer lacks on what it still reads; the ridge is chosen on held-out samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairtrim.damage.running_sums import RunningSums
from fairtrim.devices import has_float64, to_device
from fairtrim.processes import Processes

__all__ = ["MAX_ROWS", "MAX_UNKNOWNS", "RIDGES", "Fit", "MomentSums", "Ridge", "Rows", "Sums", "sums_of"]

MAX_UNKNOWNS = 4096
"""Of one output. Up to so many the moments of the inputs are kept, which at the most takes five matrices of 128 MiB
while they are solved; above, the rows themselves."""

MAX_ROWS = 4096
"""Kept of a layer with more unknowns."""

_SOLVED_WHERE_SUMMED = 512
"""With more unknowns a system is solved on the device where the rows are, if that has float64: then its arithmetic is
worth the waits for it. Reckoned, not measured."""

_SKETCH = 64

_FLOOR = 1e-10  # of the largest second moment: an input that is always 0 must not make the system singular
_OF_FEW_ROWS = 0.1  # over the number of rows: the least strength, or few rows would be fitted exactly


@dataclass(frozen=True)
class Ridge:
    """λ ‖W' − W‖², in units of the mean second moment of the inputs, or of each input's own.

    Example:
        >>> print(Ridge(0.01, "own"))
        0.01 of each input's own
    """

    strength: float
    unit: Literal["mean", "own"]

    def __str__(self) -> str:
        return f"{self.strength:g} of {'the mean' if self.unit == 'mean' else 'each input' + chr(39) + 's own'}"

    def diagonal(self, moments: Tensor, rows: int) -> Tensor:
        """What is added to the second moments, (g, D), of so many rows."""
        return self.weight(rows) * self.scale(moments, rows)

    def weight(self, rows: int) -> float:
        """The strength, and a little where rows are few."""
        return self.strength + _OF_FEW_ROWS / max(rows, 1)

    def scale(self, moments: Tensor, rows: int) -> Tensor:
        """The units, from the inputs' second moments, (g, D).

        An input's own moment counts as if one row of mean size had been seen as well: an input that was hardly ever
        anything but 0 would otherwise get a weight that, where it is, gives enormous outputs.
        """
        floor = _FLOOR * moments.amax(-1, keepdim=True).clamp_min(1e-300)
        mean = moments.mean(-1, keepdim=True)
        unit = moments + mean / max(rows, 1) if self.unit == "own" else mean.expand_as(moments)
        return unit + floor


_STRENGTHS = (1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0)
_LARGE = (3.0, 10.0)  # of language models, whose tokens are few for their inputs
RIDGES = (*(Ridge(s, "mean") for s in _STRENGTHS), *(Ridge(s, "own") for s in (*_STRENGTHS, *_LARGE)))


@dataclass(frozen=True)
class Fit:
    """The best of several ridges.

    Attributes:
        change: W' − W, (g, O / g, D) float64; None where no ridge is better than no change.
        constant: b' − b, (g, O / g), where one is fitted.
        ridge: The best one; None where no change is better.
        before: Squared error on held-out samples as it was, summed over outputs.
        after: With the ridge, fitted on the others.
    """

    change: Tensor | None
    constant: Tensor | None
    ridge: Ridge | None
    before: float
    after: float


class Sums(ABC):
    """Rows of inputs u and of residuals t, weighted, for the fit t ≈ ΔW u + Δb.

    Attributes:
        rows: How many there are, fitted and held out.
    """

    rows: int

    @abstractmethod
    def add(self, inputs: Tensor, residuals: Tensor, weight: Tensor, held: Tensor) -> None:
        """Add rows: (R, g, D), (R, g, O / g) on one device, (R,) and (R,) bool on the CPU."""

    @abstractmethod
    def merge(self, processes: Processes) -> None:
        """Add the rows of the other processes, which all call this."""

    @abstractmethod
    def fit(self, ridges: Sequence[Ridge]) -> Fit:
        """Choose the ridge on the held-out rows and fit all rows with it."""


def _best(ridges: Sequence[Ridge], before: float, error: Callable[[Ridge], float]) -> Ridge | None:
    """The ridge with the smallest error, if it is below that of no change."""
    errors = [(error(ridge), place) for place, ridge in enumerate(ridges)]
    after, place = min(((e, p) for e, p in errors if e == e), default=(before, 0))
    return ridges[place] if after < before else None


class MomentSums(Sums):
    """First and second moments, to float64's precision; those of the fitted and of the held-out rows apart.

    For g groups, D inputs and O / g outputs of each: W solves (E[u uᵀ] + λ diag) Wᵀ = E[u tᵀ], with both moments
    centred where a constant is fitted, which no ridge holds back.

    Args:
        groups: g.
        width: D.
        outputs: O.
        constant: Whether a constant is fitted.

    Example:
        >>> sums = MomentSums(1, 1, 1, constant=True)
        >>> u, held = torch.linspace(0, 10, 1000).view(1000, 1, 1), torch.arange(1000) % 5 == 0
        >>> sums.add(u, 2 * u + 3, torch.ones(1000), held)
        >>> fit = sums.fit([Ridge(0.0, "mean")])
        >>> round(float(fit.change), 2), round(float(fit.constant), 2)
        (2.0, 3.0)
    """

    def __init__(self, groups: int, width: int, outputs: int, *, constant: bool) -> None:
        each = outputs // groups
        self._constant = constant
        self.rows = 0
        self._weight = torch.zeros(2, dtype=torch.float64, device="cpu")
        shapes = (groups, width, width), (groups, width, each), (groups, width), (groups, each), (groups, each)
        self._sums = [RunningSums(*shape, max_bytes=math.inf) for shape in shapes]  # u uᵀ, u tᵀ, u, t, t²
        self._solver = torch.device("cpu")

    def add(self, inputs: Tensor, residuals: Tensor, weight: Tensor, held: Tensor) -> None:  # noqa: D102
        self.rows += len(inputs)
        if inputs.shape[2] > _SOLVED_WHERE_SUMMED and has_float64(inputs.device):
            self._solver = inputs.device
        folds = [members.nonzero().squeeze(1) for members in (~held, held)]
        rows, weights = torch.cat(folds), torch.cat([weight[members] for members in folds])
        lengths = [len(members) for members in folds]
        chosen, factors = (
            to_device(tensor, inputs.device).split(lengths) for tensor in (rows, weights.to(inputs.dtype))
        )
        for fold, members in enumerate(folds):
            u, t = inputs[chosen[fold]].transpose(0, 1), residuals[chosen[fold]].transpose(0, 1)
            w = factors[fold][:, None]
            weighted, targets = u * w, t * w
            self._weight[fold] += weight[members].double().sum()
            across = weighted.transpose(1, 2)
            products = across @ u, across @ t, weighted.sum(1), targets.sum(1), (targets * t).sum(1)
            for running, product in zip(self._sums, products, strict=True):
                running.add(product.unsqueeze(0), fold)

    def merge(self, processes: Processes) -> None:  # noqa: D102
        if processes.count == 1:
            return
        self._weight = processes.sum(self._weight)
        for running in self._sums:
            running.replace(torch.stack([processes.sum(part) for part in running.total(2)]))
        self.rows = int(processes.sum(torch.tensor([self.rows], device="cpu")))

    def fit(self, ridges: Sequence[Ridge]) -> Fit:  # noqa: D102
        if self._solver.type == "cpu":
            RunningSums.to_cpu(self._sums)
        inner, cross, inputs, targets, square = (sums.total(2, self._solver) for sums in self._sums)
        means = _Means(self._weight, inner, cross, inputs, targets, square, self._constant, self.rows)
        ridge, before, after = means.chosen(ridges)
        solved = None if ridge is None else means.system(slice(0, 2)).solve(ridge)
        if solved is None:
            return Fit(None, None, None, before, before)
        return Fit(solved[0].transpose(1, 2), solved[1], ridge, before, after)


@dataclass(frozen=True)
class _Means:
    """Sums over the fitted rows, and over those held out."""

    weight: Tensor
    inner: Tensor
    cross: Tensor
    inputs: Tensor
    targets: Tensor
    square: Tensor
    constant: bool
    rows: int

    def system(self, folds: slice) -> _System:
        """What is solved for the fitted rows, or for all."""
        weight = self.weight[folds].sum()
        inner, cross, inputs, targets = (
            s[folds].sum(0).div_(weight) for s in (self.inner, self.cross, self.inputs, self.targets)
        )
        moments = inner.diagonal(dim1=-2, dim2=-1).clone()
        if self.constant:
            inner.baddbmm_(inputs[:, :, None], inputs[:, None, :], alpha=-1)
            cross.baddbmm_(inputs[:, :, None], targets[:, None, :], alpha=-1)
        return _System(inner, cross, inputs, targets if self.constant else None, moments, self.rows)

    def chosen(self, ridges: Sequence[Ridge]) -> tuple[Ridge | None, float, float]:
        """The best ridge, and the error on the held-out rows before and after."""
        inner, cross, inputs, targets, square = (
            s[1] / self.weight[1] for s in (self.inner, self.cross, self.inputs, self.targets, self.square)
        )
        before = float(square.sum())

        def error(system: _System, ridge: Ridge, sketch: Tensor | None) -> float:
            solved = system.solve(ridge)
            if solved is None:
                return float("nan")
            solution, constant = solved
            aims, means = (cross, targets) if sketch is None else (cross @ sketch, targets @ sketch)
            total = before + float((solution * (inner @ solution - 2 * aims)).sum())
            if constant is not None:
                reached = (inputs[:, None, :] @ solution).squeeze(1)
                total += float((constant * (constant + 2 * reached - 2 * means)).sum())
            return max(total, 0.0)

        system, sketch = self.system(slice(0, 1)), _sketch(cross)
        sketched = system if sketch is None else system.sketched(sketch)
        ridge = _best(ridges, before, lambda ridge: error(sketched, ridge, sketch))
        after = before if ridge is None else error(system, ridge, None)
        return (ridge, before, after) if after < before else (None, before, before)


@dataclass(frozen=True)
class _System:
    """Means over rows: E[u uᵀ], E[u tᵀ], centred where a constant is fitted; E[u], E[t] if one is; E[u²]; how many."""

    inner: Tensor
    cross: Tensor
    inputs: Tensor
    targets: Tensor | None
    moments: Tensor
    rows: int

    def sketched(self, sketch: Tensor) -> _System:
        targets = None if self.targets is None else self.targets @ sketch
        return _System(self.inner, self.cross @ sketch, self.inputs, targets, self.moments, self.rows)

    def solve(self, ridge: Ridge) -> tuple[Tensor, Tensor | None] | None:
        """(g, D, O / g) and (g, O / g); None if the ridge is too small for the precision."""
        matrix = self.inner.clone()
        matrix.diagonal(dim1=-2, dim2=-1).add_(ridge.diagonal(self.moments, self.rows))
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool(info.any()):
            return None
        solution = torch.cholesky_solve(self.cross, factor)
        if self.targets is None:
            return solution, None
        return solution, self.targets - (self.inputs[:, None, :] @ solution).squeeze(1)


def _sketch(cross: Tensor, columns: int = _SKETCH) -> Tensor | None:
    """A random S, (O / g, columns), with E‖e S‖² = ‖e‖²: to compare ridges, so many mixtures of outputs will do."""
    each = cross.shape[-1]
    if each <= 2 * columns:
        return None
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(each, columns, generator=generator, dtype=torch.float64, device="cpu")
    return sketch.div(columns**0.5).to(cross.device)


class Rows(Sums):
    """The rows themselves, of a layer with more inputs than rows: the dual form, a system as large as the rows.

    With K = U diag(unit)⁻¹ Uᵀ: W' − W = Tᵀ (K + n λ)⁻¹ U diag(unit)⁻¹, which takes 4 R D bytes for the rows and 8 R²
    for K, instead of 8 D².

    Args:
        groups: g.
        width: D.
        outputs: O.
        constant: Whether a constant is fitted.
    """

    def __init__(self, groups: int, width: int, outputs: int, *, constant: bool) -> None:
        self._shape = groups, width, outputs // groups
        self._constant = constant
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.rows = 0

    def add(self, inputs: Tensor, residuals: Tensor, weight: Tensor, held: Tensor) -> None:  # noqa: D102
        self.rows += len(inputs)
        self._parts.append((inputs, residuals, weight.double(), held))

    def _joined(self) -> list[Tensor]:
        if self._parts:
            return [torch.cat(parts) for parts in zip(*self._parts, strict=True)]
        groups, width, each = self._shape
        none = torch.zeros(0, dtype=torch.float64, device="cpu")
        return [
            torch.zeros(0, groups, width, device="cpu"),
            torch.zeros(0, groups, each, device="cpu"),
            none,
            none.bool(),
        ]

    def merge(self, processes: Processes) -> None:  # noqa: D102
        if processes.count == 1:
            return
        counts = processes.exchange(self.rows)
        start, whole = sum(counts[: processes.rank]), []
        for part in self._joined():
            spread = torch.zeros(sum(counts), *part.shape[1:], dtype=torch.float64, device="cpu")
            spread[start : start + len(part)] = part.cpu().double()
            whole.append(processes.sum(spread))
        self.rows = sum(counts)
        device = self._parts[0][0].device if self._parts else torch.device("cpu")
        inputs, residuals, weight, held = whole
        self._parts = [(inputs.float().to(device), residuals.float().to(device), weight, held > 0.5)]

    def fit(self, ridges: Sequence[Ridge]) -> Fit:  # noqa: D102
        rows = self._joined()
        device = rows[0].device if has_float64(rows[0].device) else torch.device("cpu")
        inputs, residuals, weight, held = to_device(rows, device)
        inputs, residuals = inputs.transpose(0, 1), residuals.transpose(0, 1).to(weight)
        share = weight / weight.sum()
        moments = torch.stack([(share.to(u) @ u.square()) for u in inputs]).double()
        kernels: dict[str, list[Tensor]] = {}

        def kernel(ridge: Ridge) -> list[Tensor]:
            if ridge.unit not in kernels:
                kernels.clear()  # one kind at a time: they are large
                scales = ridge.scale(moments, self.rows)
                kernels[ridge.unit] = [_kernel(u, scale) for u, scale in zip(inputs, scales, strict=True)]
            return kernels[ridge.unit]

        fitted = torch.where(held, 0.0, weight)
        fitted = fitted / fitted.sum()
        tested = torch.where(held, weight, 0.0)
        tested = tested / tested.sum()
        before = float((tested @ residuals.square()).sum())

        def error(ridge: Ridge) -> float:
            total = 0.0
            for matrix, targets in zip(kernel(ridge), residuals, strict=True):
                solved = _dual(matrix, targets, fitted, ridge.weight(self.rows), self._constant)
                if solved is None:
                    return float("nan")
                total += float((tested @ (targets - solved[1]).square()).sum())
            return total

        ridge = _best(ridges, before, error)
        if ridge is None:
            return Fit(None, None, None, before, before)
        after, changes, constants = error(ridge), [], []
        for g, matrix in enumerate(kernel(ridge)):
            solved = _dual(matrix, residuals[g], share, ridge.weight(self.rows), self._constant)
            if solved is None:
                return Fit(None, None, None, before, before)
            # Σ_r α_r = 0 where a constant is fitted, so that the rows needn't be centred here
            changes.append((solved[0].to(inputs).T @ inputs[g]).double() / ridge.scale(moments, self.rows)[g])
            constants.append(share @ (residuals[g] - (inputs[g] @ changes[g].to(inputs).T).double()))
        return Fit(torch.stack(changes), torch.stack(constants) if self._constant else None, ridge, before, after)


def _kernel(inputs: Tensor, scale: Tensor, block: int = 1024) -> Tensor:
    """U diag(scale)⁻¹ Uᵀ, (R, R) float64, some columns of U at a time."""
    total = torch.zeros(len(inputs), len(inputs), dtype=torch.float64, device=inputs.device)
    for columns, units in zip(torch.split(inputs, block, 1), torch.split(scale, block), strict=True):
        scaled = columns / units.sqrt().to(columns)
        total += (scaled @ scaled.T).double()
    return total


def _dual(
    kernel: Tensor, targets: Tensor, share: Tensor, strength: float, constant: bool
) -> tuple[Tensor, Tensor] | None:
    """Coefficients α of the rows, (R, O), 0 where their share is, and what they predict at every row, (R, O)."""
    if constant:
        row_means = kernel @ share
        kernel = kernel - row_means[:, None] - row_means[None, :] + share @ row_means
        mean = share @ targets
        targets = targets - mean
    used = share.nonzero().squeeze(1)
    root = share[used].sqrt()
    system = root[:, None] * kernel[used][:, used] * root
    system.diagonal().add_(strength + _FLOOR)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info):
        return None
    inner = root[:, None] * torch.cholesky_solve(root[:, None] * targets[used], factor)
    predicted = kernel[:, used] @ inner
    alpha = torch.zeros_like(targets)
    alpha[used] = inner
    if constant:
        alpha -= share[:, None] * alpha.sum(0)
        predicted = predicted + mean
    return alpha, predicted


def sums_of(groups: int, width: int, outputs: int, *, constant: bool) -> Sums:
    """The form that fits in memory.

    Args:
        groups: g.
        width: D.
        outputs: O.
        constant: Whether a constant is fitted.

    Returns:
        Empty sums.
    """
    if width > MAX_UNKNOWNS:
        return Rows(groups, width, outputs, constant=constant)
    return MomentSums(groups, width, outputs, constant=constant)
