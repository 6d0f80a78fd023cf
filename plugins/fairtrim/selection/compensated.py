"""Compensated selection: channels go one by one, each judged by what is left of it once its readers are refitted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fairtrim.criteria import Criterion
from fairtrim.damage.channel_costs import ChannelCosts
from fairtrim.damage.input_moments import ReadInputs
from fairtrim.damage.table import DamageTable
from fairtrim.errors import InputError
from fairtrim.progress import progress_bar

from .elimination import Elimination, Floats, Indices, eliminations
from .ranking import Floor, Pool, Selection, finite
from .turns import Turns

__all__ = ["RIDGE", "CompensatedShares", "compensated_selection", "least_kept"]

RIDGE = 1e-3
"""Of the mean second moment of a layer's inputs."""

SHRINKAGE = 0.25
"""Of η toward 1, times a layer's inputs for each row of its moments: of few rows any input is made up for by chance."""

SHARE_THAT_STAYS = 0.1
"""Of a layer, unless a pruner asks for more: an order of what is left after a refit can't see a layer collapse."""

TIE_WEIGHT = 0.1
"""Of the mean damage beside the criterion: by the worst group alone, whatever hurts only others is free."""


class CompensatedShares:
    """η_c: which share of what its readers get from a channel the channels still there can't give.

    Args:
        inputs: The layers that read channels.
        n_columns: C.
        ridge: As a share of the mean second moment of a layer's inputs.
        shrinkage: Added to η for each input a row of the layer's moments, up to 1; 0 believes the rows it was read on.

    Attributes:
        each: η, (C,) float64; 1 where nothing can make up for a channel.
    """

    def __init__(self, inputs: ReadInputs, n_columns: int, ridge: float = RIDGE, shrinkage: float = SHRINKAGE) -> None:
        self._left = np.zeros(n_columns)
        self._whole = np.zeros(n_columns)
        self._fixed = inputs.unmixed.numpy().copy()
        self._units: list[list[tuple[int, int]]] = [[] for _ in range(n_columns)]
        self._drops: list[list[tuple[int, int]]] = [[] for _ in range(n_columns)]
        self._blocks: list[tuple[Elimination, Indices, float]] = []
        self._of_block: list[Floats] = []
        for reader in inputs.readers:
            # a norm may undo the scale of a layer: its inputs count by their share of what it reads
            total = float((reader.weight.square().sum((1, 3)) * reader.squares).sum())
            scale = 1 / total if total > 0 else 0.0
            chance = min(1.0, shrinkage * reader.columns.shape[1] / reader.n_rows)
            for block, entry in enumerate(eliminations(reader, ridge)):
                columns = reader.columns[block]
                known = columns >= 0
                if entry is None:
                    self._fixed[columns[known]] = True
                    continue
                elimination, of_units = entry
                self._whole[of_units] += scale * elimination.whole
                number = len(self._blocks)
                self._blocks.append((elimination, of_units, scale))
                left = scale * elimination.left_over()
                self._left[of_units] += left + chance * scale * elimination.whole
                self._of_block.append(left)
                for unit, column in enumerate(of_units.tolist()):
                    self._units[column].append((number, unit))
                for output, column in enumerate(reader.outputs[block].tolist()):
                    if column >= 0:
                        self._drops[column].append((number, output))
        self._whole[self._whole == 0] = 1.0
        self.each = torch.empty(n_columns, dtype=torch.float64, device="cpu")
        self._update(np.arange(n_columns))

    def take(self, column: int) -> torch.Tensor:
        """A channel goes, and those that are left take over what they can.

        Args:
            column: Which.

        Returns:
            The channels whose η may be another one now.
        """
        touched = set()
        for number, unit in self._units[column]:
            self._blocks[number][0].remove(unit)
            touched.add(number)
        outputs: dict[int, list[int]] = {}
        for number, output in self._drops[column]:
            outputs.setdefault(number, []).append(output)
        for number, gone in outputs.items():
            self._blocks[number][0].drop_outputs(np.array(gone))
            touched.add(number)
        for number in touched:
            elimination, columns, scale = self._blocks[number]
            left = scale * elimination.left_over()
            self._left[columns] += left - self._of_block[number]
            self._of_block[number] = left
            self._update(columns)
        known = [self._blocks[number][1] for number in touched]
        return torch.from_numpy(np.concatenate(known)) if known else torch.zeros(0, dtype=torch.int64, device="cpu")

    def _update(self, columns: Indices) -> None:
        share = np.maximum(self._left[columns], 0) / self._whole[columns]
        self.each[torch.from_numpy(columns)] = torch.from_numpy(np.where(self._fixed[columns], 1.0, share))


def least_kept(table: DamageTable) -> list[Floor]:
    """Floors against collapse: a tenth of every layer.

    Args:
        table: The damage table.

    Returns:
        A floor for each channel group.
    """
    return [Floor(name, math.ceil(SHARE_THAT_STAYS * size)) for name, size in table.sizes.items()]


def compensated_selection(
    table: DamageTable,
    criterion: Criterion,
    inputs: ReadInputs,
    *,
    pools: Sequence[Pool] | None = None,
    floors: Sequence[Floor] = (),
    costs: ChannelCosts | None = None,
    progress: bool = False,
) -> Selection:
    """Remove channels greedily, each time the one that hurts least for what it saves once its readers are refitted.

    A channel's damage is Δ̃_gc = ½ E_g E_y[s_nc²] · η_c: the table's second order, times the share η_c of what its
    readers get from it that the channels still there can't give. After each pick the readers' weights and the inverse
    moments of their inputs are updated, in the form of optimal brain surgeon (Hassibi and Stork, 1993) and ZipLM
    (Kurtic et al., NeurIPS 2023), with one mix of channels for all positions of a kernel. Of few rows a wide layer's
    inputs are made up for by chance, so η is raised by a quarter of the inputs a row. The form is ours. Its total
    is an order, not a forecast: measure what was removed. Beside the criterion a tenth of the mean damage counts, or
    whatever hurts only others than the worst group would be free. Every layer keeps a tenth of its channels as long as
    the quotas allow it.

    Args:
        table: The damage table; its first order isn't used.
        criterion: Maps the groups' damages to one value.
        inputs: Moments of what the layers read; see ``fairtrim.damage.input_moments``.
        pools: What a pruner ranks together and how much it takes; see ``joint_selection``.
        floors: Channels that stay, so that they come last; every layer keeps one.
        costs: What each channel costs; None for one each.
        progress: Show a progress bar if it takes more than two seconds.

    Returns:
        The selection; its scores are the places in the order, its changes those of the criterion by Δ̃.

    Raises:
        InputError: The criterion gives a value that is not finite, the loss has no curvature, or a pool or floor names
            an unknown or a shared layer.

    Example:
        >>> from fairtrim.criteria import MeanDamage
        >>> from fairtrim.damage import ChannelGroup, ChannelPlace, collect_damage
        >>> from fairtrim.damage.input_moments import input_moments
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(3, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.tensor([[0.6, 0.2, 0.6], [0.0, 0.0, 0.0]]))
        >>> hidden = ChannelGroup("0", 3, (ChannelPlace("1", "input", range(3), range(3), channel_axis=-1),))
        >>> x = torch.tensor([[1.0, 2.0, 1.0], [2.0, -1.0, 2.0]]).repeat(50, 1)  # the last channel repeats the first
        >>> y = torch.tensor([0, 1]).repeat(50)
        >>> with input_moments(model, [hidden]) as moments:
        ...     table = collect_damage(model, [(x, y)], [hidden], progress=False)
        >>> table.curvature.argmin().item()  # by itself the second channel is worth least
        1
        >>> compensated_selection(table, MeanDamage(), moments.read()).order.tolist()  # what is repeated costs nothing
        [0, 1, 2]
    """
    criterion.check(table)
    value_of = criterion.bind(table)
    if not bool(table.curvature.any()):
        raise InputError(
            "compensated damage is the second order of the loss, and this loss has none; use one with curvature, such "
            "as cross-entropy, or choose without compensated=True: MeanDamageImportance(), or --criterion mean-damage"
        )
    second_order = 0.5 * table.curvature
    n_columns = second_order.shape[1]
    shares = CompensatedShares(inputs, n_columns)
    turns = Turns(table.columns, pools, floors, least_kept(table))
    costs = None if costs is None else costs.copy()
    mean = TIE_WEIGHT * table.shares
    current = torch.zeros(len(table.sensitive_groups), 1, dtype=torch.float64, device="cpu")
    damage = second_order * shares.each
    tie = mean @ damage
    order: list[int] = []
    change = torch.zeros(n_columns, dtype=torch.float64, device="cpu")
    at_turn = torch.ones(n_columns, dtype=torch.float64, device="cpu")
    value = float(value_of(current)[0])
    bar = progress_bar(description="compensated selection", total=n_columns, shown=progress, unit="channel")
    while True:
        candidates = finite(value_of(current + damage))
        ranked_by = candidates - value + tie
        if costs is not None:
            ranked_by = ranked_by / costs.each
        if turns.beyond or len(order) == n_columns:
            break
        pick = int(torch.argmin(ranked_by.masked_fill_(turns.closed(), torch.inf)))
        change[pick] = candidates[pick] - value
        at_turn[pick] = shares.each[pick]
        value = float(candidates[pick])
        current = current + damage[:, pick : pick + 1]
        turns.take(pick)
        order.append(pick)
        bar.update()
        touched = shares.take(pick)  # the damages of all others are what they were
        damage[:, touched] = second_order[:, touched] * shares.each[touched]
        tie[touched] = mean @ damage[:, touched]
        if costs is not None:
            costs.take(pick)
    # only rounding may still ask for what is left
    rest = list(turns.rest(ranked_by))
    change[rest], at_turn[rest] = candidates[rest] - value, shares.each[rest]
    order += rest
    bar.close()
    return Selection.of_order(order, change, at_turn)
