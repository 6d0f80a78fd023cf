"""What a layer loses with an input when its weights may be refitted, input after input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fairtrim.damage.input_moments import ReaderMoments

__all__ = ["Elimination", "eliminations"]

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

MAX_DOUBLE_INPUTS = 2048
"""A wider layer is kept in single precision."""

_WAITING = 64  # products of rank one that wait to be added up as one

_SHARE_TO_KEEP = 0.85  # of fewer inputs left than this the matrices are made smaller

_FEWEST_INPUTS = 128  # below, smaller matrices save nothing


class _Corrected:
    """A matrix less a growing product of low rank, which is added up only now and then: most of it is never read."""

    def __init__(self, base: Floats) -> None:
        self._base = base
        self._left = np.empty((base.shape[0], _WAITING), dtype=base.dtype)
        self._right = np.empty((base.shape[1], _WAITING), dtype=base.dtype)
        self._waiting = 0

    def rows(self, index: Indices) -> Floats:
        n = self._waiting
        rows: Floats = self._base[index] - self._left[index, :n] @ self._right[:, :n].T
        return rows

    def columns(self, index: Indices) -> Floats:
        n = self._waiting
        columns: Floats = self._base[:, index] - self._left[:, :n] @ self._right[index, :n].T
        return columns

    def subtract(self, left: Floats, right: Floats) -> None:
        """Take away left rightᵀ, (rows, p) and (columns, p)."""
        p = left.shape[1]
        if self._waiting + p > _WAITING:
            self._base -= self._left[:, : self._waiting] @ self._right[:, : self._waiting].T
            self._waiting = 0
        if p > _WAITING:
            self._base -= left @ right.T
            return
        self._left[:, self._waiting : self._waiting + p] = left
        self._right[:, self._waiting : self._waiting + p] = right
        self._waiting += p

    def clear_rows(self, index: Indices) -> None:
        self._base[index] = 0
        self._left[index, : self._waiting] = 0

    def whole(self) -> Floats:
        whole: Floats = self._base - self._left[:, : self._waiting] @ self._right[:, : self._waiting].T
        return whole


class Elimination:
    """One block of a layer, W x, whose inputs go unit by unit while the others take over what they can.

    With A = E[x xᵀ], a ridge ρ and H = (A + ρ)⁻¹ over the inputs that are left, a unit B is replaced by its ridge
    regression on the others, and leaves Σ_ot w_Bᵀ R w_B for R = E[rest restᵀ] = H_BB⁻¹ − ρ H_BB⁻¹ (H²)_BB H_BB⁻¹.
    Then W ← W − W_B H_BB⁻¹ H_B: and H ← H − H_:B H_BB⁻¹ H_B:. Kept are H, H², K = Wᵀ W and W.

    Args:
        weight: W, (O, E, T).
        moments: A, (E, E).
        mean: What A was centred at, (E,).
        units: Inputs of each unit, (U, inputs a unit).
        ridge: ρ > 0.

    Attributes:
        whole: What each unit gives the layer, its mean included: Σ_ot w_Bᵀ E[x_B x_Bᵀ] w_B, (U,).
    """

    def __init__(self, weight: Floats, moments: Floats, mean: Floats, units: Indices, ridge: float) -> None:
        n_outputs, n_inputs, self._taps = weight.shape
        dtype = np.float64 if n_inputs <= MAX_DOUBLE_INPUTS else np.float32
        inverse = _inverse(moments + ridge * np.eye(n_inputs))
        flat = np.ascontiguousarray(weight.transpose(0, 2, 1)).reshape(n_outputs * self._taps, n_inputs)
        matrices = inverse, inverse.T @ inverse, flat.T @ flat  # of a matrix and itself, half of it is computed
        self._units, self._ridge = units, ridge
        self._here = np.ones(len(units), dtype=bool)
        self._inputs = np.arange(n_inputs)  # those that the matrices still hold
        self._left = np.ones(n_inputs, dtype=bool)  # of these, which are left
        self._n_inputs = n_inputs
        at = units[:, :, None], units[:, None, :]
        self._corners = [matrix[at] for matrix in matrices]  # of every unit, (U, B, B) each
        of_units = moments[at] + mean[at[0]] * mean[at[1]]
        self.whole: Floats = (self._corners[2] * of_units).sum((1, 2))
        self._inverse, self._square, self._products = (_Corrected(m.astype(dtype, copy=False)) for m in matrices)
        self._weight = _Corrected(flat.astype(dtype))

    @property
    def inverse(self) -> Floats:
        """H; rows and columns of inputs that are gone are 0."""
        held = self._inverse.whole()
        whole = np.zeros((self._n_inputs, self._n_inputs), dtype=held.dtype)
        whole[np.ix_(self._inputs, self._inputs)] = held
        return whole

    @property
    def weight(self) -> Floats:
        """W as it is now, (O, E, T)."""
        held = self._weight.whole()
        whole = np.zeros((len(held), self._n_inputs), dtype=held.dtype)
        whole[:, self._inputs] = held
        return whole.reshape(-1, self._taps, whole.shape[1]).transpose(0, 2, 1)

    def left_over(self) -> Floats:
        """What each unit gives the layer that the others can't, (U,); 0 for those that are gone."""
        inverse, square, products = self._corners
        if self._units.shape[1] == 1:
            h = np.where(self._here, inverse[:, 0, 0], 1.0)
            found = products[:, 0, 0] * (1 / h - self._ridge * square[:, 0, 0] / (h * h))
        else:
            h = np.where(self._here[:, None, None], inverse, np.eye(self._units.shape[1]))
            g = np.linalg.inv(h)
            found = ((g - self._ridge * (g @ square @ g)) * products).sum((1, 2))
        left: Floats = np.where(self._here, np.maximum(found, 0), 0)
        return left

    def remove(self, unit: int) -> None:
        """Take a unit away, and let the others take over."""
        index = self._units[unit]
        u, s, k = (matrix.rows(index) for matrix in (self._inverse, self._square, self._products))
        h = u / u[:, index] if len(index) == 1 else np.linalg.solve(u[:, index], u)
        after_s, after_k = s - s[:, index] @ h, k - k[:, index] @ h
        self._weight.subtract(self._weight.columns(index), h.T)
        self._subtract(0, self._inverse, [u], [h])
        self._subtract(1, self._square, [s, h], [h, after_s])
        self._subtract(2, self._products, [k, h], [h, after_k])
        self._here[unit] = False
        self._left[index] = False
        if len(self._left) > _FEWEST_INPUTS and self._left.sum() < _SHARE_TO_KEEP * len(self._left):
            self._compact()

    def _compact(self) -> None:
        """Let the matrices hold only inputs that are left."""
        stays = self._left
        matrices = self._inverse, self._square, self._products
        self._inverse, self._square, self._products = (
            _Corrected(matrix.whole()[np.ix_(stays, stays)]) for matrix in matrices
        )
        self._weight = _Corrected(self._weight.whole()[:, stays])
        place = np.cumsum(stays) - 1
        self._units = np.where(self._here[:, None], place[self._units], 0)  # of a unit that is gone nothing is read
        self._inputs, self._left = self._inputs[stays], np.ones(int(stays.sum()), dtype=bool)

    def drop_outputs(self, outputs: Indices) -> None:
        """Forget outputs of the layer that are gone."""
        index = (outputs[:, None] * self._taps + np.arange(self._taps)).ravel()
        rows = self._weight.rows(index)
        self._subtract(2, self._products, [rows], [rows])
        self._weight.clear_rows(index)

    def _subtract(self, number: int, matrix: _Corrected, left: Sequence[Floats], right: Sequence[Floats]) -> None:
        """Take away Σ leftᵀ right from a matrix and from its corners."""
        for a, b in zip(left, right, strict=True):
            matrix.subtract(a.T, b.T)
            if self._units.shape[1] == 1:
                at = self._units[:, 0]
                self._corners[number][:, 0, 0] -= (a[:, at] * b[:, at]).sum(0)
            else:
                self._corners[number] -= np.einsum("pui,puj->uij", a[:, self._units], b[:, self._units])


def _inverse(matrix: Floats) -> Floats:
    """Of a symmetric matrix, by Cholesky where rounding leaves it positive definite: half of the work."""
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
    inverse: Floats = np.linalg.inv(matrix) if int(info) else torch.cholesky_inverse(factor).numpy()
    return inverse


def eliminations(reader: ReaderMoments, ridge: float) -> list[tuple[Elimination, Indices] | None]:
    """The blocks of a layer, each with the column of every unit; None for a block that can't be described.

    Args:
        reader: The layer.
        ridge: As a share of the mean second moment of an input.

    Returns:
        One entry a block; None where units of a block are of several sizes, or none is in a channel group.
    """
    found: list[tuple[Elimination, Indices] | None] = []
    weight, moments, mean = reader.weight.numpy(), reader.moments.numpy(), reader.mean.numpy()
    scale = float(reader.squares.mean())
    for block, columns in enumerate(reader.columns):
        of_units, counts = np.unique(columns[columns >= 0], return_counts=True)
        if not len(of_units) or (counts != counts[0]).any():
            found.append(None)
            continue
        order = np.argsort(columns, kind="stable")
        units = order[columns[order] >= 0].reshape(len(of_units), counts[0])
        block_ridge = ridge * scale or 1.0
        found.append((Elimination(weight[block], moments[block], mean[block], units, block_ridge), of_units))
    return found
