"""Damage tables of several losses over the same channels, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairtrim.errors import InputError

from .sample_sketch import SampleSketch
from .table import DamageTable

__all__ = ["side_by_side"]


def side_by_side(tables: Mapping[str, DamageTable]) -> DamageTable:
    """Put damage tables of the same channels side by side, so that a criterion sees all their losses at once.

    Each group of each table is a group of the new one, under the crossing (name of its table, name of the group): what
    removing channels does to the pairs of sentences, and what it does to the texts that the same network reads. The
    losses keep their own units. The new table is for ranking and predicting; losses of single samples stay behind.

    Args:
        tables: Tables by name, collected from one network with the same channel groups.

    Returns:
        A table of all their groups.

    Raises:
        InputError: There are no tables, they are of different channels, or keep interactions in different forms.

    Example:
        >>> from fairtrim import ChannelGroup, ChannelPlace, collect_damage
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 1, bias=False))
        >>> hidden = ChannelGroup("0", 2, (ChannelPlace("1", "input", range(2), range(2), channel_axis=-1),))
        >>> x = torch.eye(2)
        >>> calling = {"loss_fn": torch.nn.functional.mse_loss, "progress": False}
        >>> first = collect_damage(model, [(x, x[:, :1])], [hidden], **calling)
        >>> second = collect_damage(model, [(x, x[:, 1:])], [hidden], **calling)
        >>> side_by_side({"first": first, "second": second}).sensitive_groups
        (('first', 'everyone'), ('second', 'everyone'))
    """
    every = list(tables.values())
    if not every:
        raise InputError("there are no tables to put side by side; expected at least one")
    for name, table in tables.items():
        if dict(table.sizes) != dict(every[0].sizes):
            raise InputError(
                f"table {name!r} has the channel groups {dict(table.sizes)} and another {dict(every[0].sizes)}; "
                "expected tables of the same channels"
            )
    groups = tuple((name, _told(group)) for name, table in tables.items() for group in table.sensitive_groups)
    return DamageTable(
        sensitive_groups=groups,
        features=("table", "group"),
        sizes=every[0].sizes,
        counts=torch.cat([table.counts for table in every]),
        loss=torch.cat([table.loss for table in every]),
        slope=torch.cat([table.slope for table in every]),
        curvature=torch.cat([table.curvature for table in every]),
        interactions=_interactions(every),
        people=_together([table.people for table in every]),
        standard_error=_together([table.standard_error for table in every]),
        second_order_error=_together([table.second_order_error for table in every]),
        signed_loss=any(table.signed_loss for table in every),
        loss_error=_together([table.loss_error for table in every]),
        layer_order=every[0].layer_order,
    )


def _told(group: object) -> str:
    return ", ".join(map(str, group)) if isinstance(group, tuple) else str(group)


def _together(tensors: Sequence[Tensor | None]) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known) if len(known) == len(tensors) else None


def _interactions(tables: Sequence[DamageTable]) -> Tensor | SampleSketch | None:
    kept = [table.interactions for table in tables]
    exact = [one for one in kept if isinstance(one, Tensor)]
    sketched = [one for one in kept if isinstance(one, SampleSketch)]
    if len(exact) == len(kept):
        return torch.cat(exact)
    if len(sketched) == len(kept):
        return SampleSketch(
            selection=tuple(rows for sketch in sketched for rows in sketch.selection),
            held_out=tuple(rows for sketch in sketched for rows in sketch.held_out),
            n_rows=tuple(number for sketch in sketched for number in sketch.n_rows),
            diagonal=torch.cat([sketch.diagonal for sketch in sketched]),
            mixing=torch.block_diag(*[sketch.mixing for sketch in sketched]),  # type: ignore[no-untyped-call]
        )
    if exact or sketched:
        raise InputError(
            "some of the tables keep interactions exactly, and others sketched or not at all; expected one "
            "interactions= for all"
        )
    return None
