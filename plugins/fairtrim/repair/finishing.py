"""What was chosen, written into a network, judged once more, and what a user should know of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fairtrim.data.validation_set import ValidationSet
from fairtrim.measures.objective import Decisions, Objective, labels_given

from .candidates import Candidates
from .figures import Figure, compared_groups, figures_of, group_label, moved, size_of_bias
from .judging import GroupJudge
from .repaired_network import OperatingPoint, Repair, edited
from .working_copy import changed_names

__all__ = ["Parts", "finished"]

_LARGE_LOSS = 0.1
_KEPT = "the network is kept as it was given"


class Parts(NamedTuple):
    """Who is edited on and who selects, with their rows in the data."""

    edit: ValidationSet
    selection: ValidationSet
    edit_rows: Tensor
    selection_rows: Tensor
    folds: Tensor | None


class _Judged(NamedTuple):
    """What a network decides about the selection people."""

    bias: float
    believed: float
    performance: float
    within: bool
    constant: bool
    given: Tensor

    @classmethod
    def of(cls, decisions: Decisions, given: Tensor) -> _Judged:
        bias, size, useful = (float(x[0]) for x in (decisions.bias, decisions.size, decisions.performance))
        return cls(bias, size, useful, bool(decisions.within[0]), bool(decisions.constant[0]), given)


def _judged(candidates: Candidates, point: OperatingPoint, repaired: nn.Module) -> _Judged:
    """The repaired network, by its own decisions; cross-fitted, by those of networks edited without the people."""
    decisions, scores = candidates.own_decisions(repaired)
    own = _Judged.of(decisions, labels_given(scores))
    if candidates.out_of_fold is None or point.candidate == 0 or own.constant:
        return own
    said = candidates.scores_of(point.candidate)
    said = said - point.margin_threshold if said.shape[1] == 1 else said
    return _Judged.of(candidates.judge(said, own=True), labels_given(said))


def _kept_as_given(
    candidates: Candidates, people: ValidationSet, before: _Judged, after: _Judged, figures: tuple[Figure, ...]
) -> str | None:
    """Why the network stays as it was given.

    It is within the bound, and nothing is better in what a user sees; or nothing is within the bound, and the bias
    falls perhaps where performance or somebody's accuracy falls surely.
    """
    objective = candidates.objective
    published = candidates.performance_floor is not None or objective.confidence is None
    if published:
        return None
    if after.constant and not torch.equal(before.given, after.given):
        return f"{_KEPT}: what was chosen would give everybody the same label"
    if objective.epsilon >= 1 or before.constant:
        return None
    if not before.believed < objective.bound:
        if after.within or after.constant:
            return None
        fall = size_of_bias(objective, people, before.given, after.given, _compared(candidates))
        return None if fall is None else _perhaps_for_sure(objective, fall, figures)
    kept = f"{_KEPT}: " + (
        "it is within the bound" if before.within else "chance explains what its bias is beyond the bound"
    )
    if torch.equal(before.given, after.given):
        return kept
    (useful,) = (f for f in figures if f.name == objective.performance and f.sensitive_group is None)
    losses = [f for f in figures if f.name == "accuracy" and f.change_high < 0]
    if useful.change_low > 0 and not losses:
        return None
    other = f"the best other one would change {objective.performance} by {useful.change:+.3f}"
    if not losses:
        return f"{kept}; {other}, which may be chance"
    return f"{kept}; {other}, and {_worst(losses)}"


def _compared(candidates: Candidates) -> Tensor | None:
    """Which groups the bias is of, (R, G); None for all."""
    estimates = candidates.judge.estimates if isinstance(candidates.judge, GroupJudge) else None
    return None if estimates is None else estimates.compared


def _perhaps_for_sure(objective: Objective, fall: Figure, figures: tuple[Figure, ...]) -> str | None:
    """Why a network that isn't within the bound either is no better: its bias falls perhaps, accuracy surely."""
    if fall.change_high < 0:
        return None
    (useful,) = (f for f in figures if f.name == objective.performance and f.sensitive_group is None)
    losses = [f for f in figures if f.name in (objective.performance, "accuracy") and f.change_high < 0]
    if not losses and (fall.change < 0 or useful.change_low > 0):
        return None
    return (
        f"{_KEPT}: no other is within the bound; the one whose bias is believed to be least would change its size by "
        f"{fall.change:+.3f}, which may be chance, and {_worst(losses or [useful])}"
    )


def _worst(losses: list[Figure]) -> str:
    worst = min(losses, key=lambda figure: figure.change)
    return f"{worst.name} of {group_label(worst.sensitive_group)} by {worst.change:+.3f}"


def finished(
    candidates: Candidates, model: nn.Module, parts: Parts, given: tuple[Decisions, Tensor], *, inplace: bool
) -> Repair:
    """What was chosen, written into a network and judged once more.

    Args:
        candidates: All that was offered.
        model: The caller's network.
        parts: Who edited and who selected.
        given: Decisions and scores of the network as it was given.
        inplace: Write into the caller's network.

    Returns:
        The repair.
    """
    point, objective, working = candidates.chosen, candidates.objective, candidates.working
    assert point is not None
    before = _Judged.of(given[0], labels_given(given[1]))
    working.restore()
    template = working.model
    _made_alike(template, model)
    repaired = edited(template, working.head.name, candidates.states[point.candidate], point.margin_threshold)
    after = _judged(candidates, point, repaired)
    flags = list(candidates.flags)
    compared = _compared(candidates)
    figures = figures_of(objective, parts.selection, before.given, after.given, compared)
    kept = _kept_as_given(candidates, parts.selection, before, after, figures)
    if kept is not None:
        point = OperatingPoint(0, 0.0, before.bias, before.performance, before.believed)
        repaired, after = edited(template, working.head.name, {}, 0.0), before
        figures = figures_of(objective, parts.selection, before.given, after.given, compared)
        flags.append(kept)
    within = after.within and not after.constant
    if isinstance(candidates.judge, GroupJudge):
        flags += candidates.judge.flags(after.given)
    if after.constant:
        flags.append("constant classifier: everybody gets the same label, gaps mean nothing")
    elif not within:
        what = f"|{objective.measure}| = {abs(after.bias):.4f} on the selection people"
        if after.believed < objective.bound:
            what += f" as measured; chance explains all but {after.believed:.4f}"
        elif abs(after.believed - abs(after.bias)) > 1e-12:
            what += f", and {after.believed:.4f} as far as it is believed with what it may be off by"
        flags.append(f"bound not met: {what}; asked for: below {objective.bound:g}")
    flags += moved(figures)
    if before.performance - after.performance > _LARGE_LOSS:
        flags.append(
            f"{objective.performance} fell a lot: nearly constant decisions have little bias, too; see trade_off"
        )
    bias, performance = after.bias, after.performance
    floor = candidates.performance_floor
    if floor is not None and performance < floor - 1e-9:
        flags.append(f"no candidate has {objective.performance} of at least {floor:g}")
    if inplace:
        _write(repaired, model)
    return Repair(
        model=model if inplace else repaired,
        chosen=point,
        within_bound=within,
        bias=bias,
        performance=performance,
        bias_before=before.bias,
        performance_before=before.performance,
        flags=tuple(flags),
        history=tuple(candidates.history),
        trade_off=candidates.front(),
        edit_rows=parts.edit_rows,
        selection_rows=parts.selection_rows,
        objective=objective,
        figures=figures,
        cross_fitted=parts.folds is not None,
        _compared=tuple(parts.selection.groups[g] for g in compared_groups(parts.selection, compared)),
        _states=candidates.states,
        _template=template,
        _head=working.head.name,
    )


def _made_alike(copied: nn.Module, model: nn.Module) -> None:
    """Give a copy the training flags and trainable parameters of the caller's network, and no gradients."""
    for original, module in zip(model.modules(), copied.modules(), strict=True):
        module.training = original.training
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
        mine.grad = None


def _write(repaired: nn.Module, model: nn.Module) -> None:
    """Put the parameters that were changed into the caller's network."""
    parameters = dict(model.named_parameters())
    edited_ones = dict(repaired.named_parameters())
    with torch.no_grad():
        for name in changed_names(edited_ones, parameters):
            parameters[name].copy_(edited_ones[name])
