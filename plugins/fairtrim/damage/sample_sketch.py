"""A sketch of the samples, for joint selection over more channels than Gram matrices have room for.

The Gram matrix M_g = Σ_n w_gn s_n s_nᵀ of a sensitive group g needs C² numbers. A sketch keeps m ≪ N rows in its place:
each sample's row √w s is added, with a random sign, to one of m sums, and the sums' own Gram matrix is M_g on average
(the count sketch of Charikar, Chen and Farach-Colton, 2002; its use here is ours). While a group has at most m rows
none is added to another, and nothing is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.processes import Processes

__all__ = ["SampleSketch", "SketchedRows"]

SELECTION_ROWS = 2048
"""Rows a sensitive group that joint selection sees."""

HELD_OUT_ROWS = 1024
"""Rows of a second, independent sketch that judges what was selected on the first: greedy selection would
otherwise count the first one's errors in its own favour."""

_SUMS_FOR_THE_ERROR = 256  # of which all pairs are looked at, to see how far the estimate is off


class SketchedRows:
    """Signed sums of rows that come in batches, for one sensitive group.

    Args:
        n_sums: m.
        name: Of the signs: sketches of different names err independently of each other.

    Attributes:
        sums: (min(m, rows so far), C), or None before the first.
        n_rows: How many rows went in.
    """

    def __init__(self, n_sums: int, name: str) -> None:
        self.sums: Tensor | None = None
        self.n_rows = 0
        self._n_sums, self._name = n_sums, name

    def add(self, rows: Tensor) -> None:
        """Add rows.

        Args:
            rows: (rows, C).
        """
        for start in range(0, len(rows), self._n_sums):
            self._add(rows[start : start + self._n_sums])

    def _add(self, rows: Tensor) -> None:
        # signs depend on how many rows went before only, not on how they were cut into batches
        first = max(0, self._n_sums - self.n_rows)
        if first < len(rows):
            signs = self._signs(self._name, self.n_rows + first, len(rows) - first).to(rows.dtype)
            signs = to_device(signs, rows.device)
            rows = rows * torch.cat([signs.new_ones(first), signs])[:, None]
        start = self.n_rows % self._n_sums
        self.n_rows += len(rows)
        self._make_room(rows)
        assert self.sums is not None
        before_end = rows[: self._n_sums - start]
        self.sums[start : start + len(before_end)] += before_end
        if len(before_end) < len(rows):
            self.sums[: len(rows) - len(before_end)] += rows[len(before_end) :]

    def _signs(self, name: str, position: int, number: int) -> Tensor:
        first, last = position // self._n_sums, (position + number - 1) // self._n_sums
        drawn = []
        for block in range(first, last + 1):
            seed = int.from_bytes(hashlib.sha256(f"{name}/{block}".encode()).digest()[:4], "big")
            drawn.append(
                torch.randint(0, 2, (self._n_sums,), generator=torch.Generator().manual_seed(seed), device="cpu")
            )
        offset = position - first * self._n_sums
        return torch.cat(drawn)[offset : offset + number] * 2 - 1

    def _make_room(self, rows: Tensor) -> None:
        needed = min(self.n_rows, self._n_sums)
        present = 0 if self.sums is None else len(self.sums)
        if self.sums is not None:
            self.sums = self.sums.to(rows)  # what was restored lies on the CPU
        if present >= needed:
            return
        room = rows.new_zeros(min(self._n_sums, max(needed, 2 * present)), rows.shape[1])
        if self.sums is not None:
            room[:present] = self.sums
        self.sums = room

    def filled(self, n_columns: int) -> Tensor:
        """The sums that hold rows.

        Args:
            n_columns: C.

        Returns:
            (min(m, rows), C) on the CPU.
        """
        if self.sums is None:
            return torch.zeros(0, n_columns, device="cpu")
        return self.sums[: min(self.n_rows, self._n_sums)].cpu()

    def merged(self, processes: Processes, n_columns: int) -> SketchedRows:
        """The sketch of the rows of all processes.

        Args:
            processes: All of which call this.
            n_columns: C.

        Returns:
            A sketch that is exact where all rows together are at most m.
        """
        counts = [int(n) for n in processes.exchange(self.n_rows)]
        total = SketchedRows(self._n_sums, self._name)
        total.n_rows = sum(counts)
        mine = torch.zeros(min(self._n_sums, total.n_rows), n_columns, dtype=torch.float64, device="cpu")
        before = sum(counts[: processes.rank])
        filled = self.filled(n_columns).double()
        if len(filled):
            # like rows that come after those of the processes before: sums that are shared get signs of their own
            places = before + torch.arange(len(filled), device="cpu")
            signs = self._signs(f"{self._name}/merged", 0, len(filled)).to(filled)
            signs[places < self._n_sums] = 1
            mine[places % self._n_sums] = filled * signs[:, None]
        total.sums = processes.sum(mine)
        return total


@dataclass(frozen=True)
class SampleSketch:
    """Interactions of the channels, for G sensitive groups, from sketches of their samples.

    Attributes:
        selection: Rows that joint selection sees, (m_g, C) for each group of the data, scaled so that their Gram matrix
            is about E_g E_y[s_nc s_nd].
        held_out: Rows of the independent sketch.
        n_rows: How many rows each group had.
        diagonal: E_g E_y[s_nc²] as it is, (groups of the data, C).
        mixing: Rows of a table of pooled or shrunk groups as mixtures of the groups of the data, (G, groups).
    """

    selection: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...]
    n_rows: tuple[int, ...]
    diagonal: Tensor
    mixing: Tensor

    def between(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """Interactions of some channels with others, as joint selection sees them.

        Args:
            rows: Columns of the channels, (b,).
            columns: Of the others, (d,); None for all C.

        Returns:
            (G, b, d), in the precision of the rows, or in float64 of mixtures.
        """
        products = [sums.T[rows] @ (sums if columns is None else sums.T[columns].T) for sums in self.selection]
        of_groups = products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)
        if torch.equal(self.mixing, torch.eye(*self.mixing.shape, dtype=torch.float64, device="cpu")):
            return of_groups
        return torch.einsum("hg,gbd->hbd", self.mixing, of_groups.double())

    def square(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """E_g E_y[(Σ_c s_nc)²] over a set of channels, estimated on the held-out sketch.

        Args:
            columns: The set.

        Returns:
            The estimate and its standard error, (G,) each; the error is 0 where a group's rows fit in.
        """
        estimates, variances = [], []
        for g, n_rows in enumerate(self.n_rows):
            fits = n_rows <= len(self.selection[g])
            chosen = (self.selection if fits else self.held_out)[g][:, columns].double()
            # single channels are known exactly: put them in the place of their own estimate
            pairs = chosen.sum(1).square().sum() - chosen.square().sum()
            estimates.append(self.diagonal[g, columns].sum() + pairs)
            variances.append(0 * pairs if fits else _variance_of_pairs(chosen, n_rows))
        estimate, variance = torch.stack(estimates), torch.stack(variances)
        return self.mixing @ estimate, (self.mixing.square() @ variance).sqrt()

    def mixed(self, mixing: Tensor) -> SampleSketch:
        """The sketch of mixtures of these groups.

        Args:
            mixing: (new groups, G), not negative.

        Returns:
            The sketch; it shares the rows.
        """
        return replace(self, mixing=mixing @ self.mixing)


def _variance_of_pairs(sums: Tensor, n_rows: int) -> Tensor:
    """Variance of Σ_i q(b_i, b_i) over the m signed sums b of rows x, q(x, y) = Σ_c x_c Σ_d y_d − Σ_c x_c y_c.

    Rows of one sum add q(x, y) with a random sign, twice a pair, so that the variance is 2 Σ q(x, y)² over ordered
    pairs of rows in one sum. Pairs of rows in different sums are like them: E[q(b_i, b_j)²] = Σ_{x∈i, y∈j} q(x, y)².
    """
    n_sums, few = len(sums), sums[:_SUMS_FOR_THE_ERROR]
    smaller, larger_ones = divmod(n_rows, n_sums)
    pairs_within = (n_sums - larger_ones) * smaller * (smaller - 1) + larger_ones * (smaller + 1) * smaller
    totals = few.sum(1)
    between = (torch.outer(totals, totals) - few @ few.T).square().fill_diagonal_(0)
    pairs_between = len(few) * (len(few) - 1) * (n_rows / n_sums) ** 2
    return 2 * between.sum() * pairs_within / pairs_between


class Sketches:
    """The sketches of all sensitive groups while samples come in.

    ``rank`` is this process's among those that are merged at the end; more than ``max_bytes`` is refused.
    """

    def __init__(self, n_columns: int, max_bytes: int, rank: int = 0) -> None:
        self._n_columns, self._max_bytes, self._rank = n_columns, max_bytes, rank
        self.groups: list[tuple[SketchedRows, SketchedRows]] = []

    def grow(self, n_groups: int) -> None:
        """Make room for groups that are seen for the first time, so that there are G."""
        while len(self.groups) < n_groups:
            name = f"{self._rank}/{len(self.groups)}"
            self.groups.append(
                (SketchedRows(SELECTION_ROWS, f"{name}/selection"), SketchedRows(HELD_OUT_ROWS, f"{name}/held out"))
            )

    def add(self, group: int, rows: Tensor) -> None:
        """Add rows of one group, (rows, C), times the roots of their weights."""
        for sketch in self.groups[group]:
            sketch.add(rows)
        needed = sum(s.sums.numel() * s.sums.element_size() for pair in self.groups for s in pair if s.sums is not None)
        if needed > self._max_bytes:
            raise InputError(
                f"the sketches of {len(self.groups)} sensitive groups over {self._n_columns} channels need more than "
                f"{self._max_bytes / 2**30:.0f} GiB; use selection='single' (interactions=False), fewer sensitive "
                "groups or more ignored_layers"
            )

    def merged(self, processes: Processes, places: Sequence[int], n_groups: int) -> Sketches:
        """The sketches of the samples of all processes.

        ``places``: where each group of this process stands among all ``n_groups``.
        """
        total = Sketches(self._n_columns, self._max_bytes)
        total.grow(n_groups)
        here = dict(zip(places, self.groups, strict=False))
        total.groups = [
            (own[0].merged(processes, self._n_columns), own[1].merged(processes, self._n_columns))
            for own in (here.get(g, empty) for g, empty in enumerate(total.groups))
        ]
        return total

    def state(self) -> dict[str, Tensor]:
        """Everything in named tensors, to be stored."""
        state = {}
        for g, pair in enumerate(self.groups):
            for name, sketch in zip(("selection", "held_out"), pair, strict=True):
                state[f"{name}.{g}"] = sketch.filled(self._n_columns)
                state[f"{name}.{g}.rows"] = torch.tensor(sketch.n_rows, device="cpu")
        return state

    def restore(self, state: Mapping[str, Tensor], n_groups: int) -> None:
        """Go on from what ``state`` gave."""
        self.grow(n_groups)
        for g, pair in enumerate(self.groups):
            for name, sketch in zip(("selection", "held_out"), pair, strict=True):
                sketch.n_rows = int(state[f"{name}.{g}.rows"])
                sketch.sums = state[f"{name}.{g}"] if sketch.n_rows else None

    def sketch(self, order: list[int], counts: Tensor, curvature: Tensor) -> SampleSketch:
        """Turn sums into means.

        All by the sorted groups: n_g, (G,), and ``curvature``, E_g E_y[s_nc²], (G, C).
        """
        scaled = [
            [pair[which].filled(self._n_columns) / count.sqrt() for which in (0, 1)]
            for pair, count in zip((self.groups[g] for g in order), counts, strict=True)
        ]
        return SampleSketch(
            # channel after channel in memory, as they are read
            selection=tuple(
                rows.to(torch.promote_types(torch.float32, rows.dtype)).T.contiguous().T for rows, _ in scaled
            ),
            held_out=tuple(rows for _, rows in scaled),
            n_rows=tuple(self.groups[g][0].n_rows for g in order),
            diagonal=curvature,
            mixing=torch.eye(len(order), dtype=torch.float64, device="cpu"),
        )
