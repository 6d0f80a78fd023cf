"""A network pruned to a budget, refitted, measured, and in smaller steps where the prediction did not hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from fairtrim.arguments import drawn_seed, require_number
from fairtrim.damage.measured_change import FEWEST_PEOPLE, worse_than_predicted
from fairtrim.errors import InputError
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_random_state, seeded
from fairtrim_adapters.torch_pruning.reconstruction.measuring import EVERYBODY

from .candidates import Candidates
from .measuring import degenerate, measured, of_judges, unjudged
from .outcome import PrunedToBudget
from .preparation import BudgetOptions, Prepared, prepared
from .sizes import COSTS, Budget, Shares

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["history_of", "prune_to"]

_STEPS = (1, 2, 4)
"""In so many steps it is tried, one after the other, as long as what is measured is worse than predicted."""

_NEAR = 0.02
"""A network that is smaller than its budget by more, as a share of the dense one, is flagged."""


@dataclass(frozen=True)
class _Attempt:
    steps: int
    network: ScoredNetwork
    shares: Shares
    within: bool
    predicted: pd.DataFrame
    measured: pd.DataFrame
    reconstruction: Any
    worse: tuple[str, ...]


@torch.inference_mode(False)  # there nothing has a slope
def prune_to(
    model: nn.Module,
    loader: Iterable[Any],
    example_inputs: Any,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    importance: tp.importance.Importance | None = None,
    held_out: Iterable[Any] | None = None,
    steps: Literal["auto"] | int = "auto",
    **options: Unpack[BudgetOptions],
) -> PrunedToBudget:
    """Prune a copy of a network to a budget, refit what reads removed channels, and measure who pays.

    Channels go in the order of the importance until the network, counted after really removing them, is within the
    budget; the largest such network is taken. Then each layer that reads a removed channel is fitted to the outputs it
    had, without a label, and every sensitive group is measured, person by person.

    Where a group of at least 20 people loses more than predicted by three standard errors, and by what matters, the
    removal was beyond the reach of the prediction: it is tried again from the dense network in two and in four steps,
    channels ranked and layers refitted anew in each, and the network is kept whose group that loses most loses least.
    So ``held_out`` has a part in choosing: for a figure to publish measure the network once more on others.

    Every dependency group keeps a tenth of its channels. A budget that this, or an option of the pruner, makes
    impossible gives the nearest network, flagged.

    Args:
        model: The network; untouched.
        loader: Batches of (inputs, target) or (inputs, target, sensitive), by which channels are ranked and layers
            refitted.
        example_inputs: What the network is counted, or timed, on.
        macs: The budget: share of the multiply-accumulate operations that may be left, in (0, 1). Exactly one of these
            three is given.
        parameters: The same of the parameters.
        latency: The same of the measured time of a forward pass.
        importance: fairtrim's or Torch-Pruning's, of which the pruning ratio is searched. Default: the mean
            damage per cost saved, ``compensated`` unless ``reconstruct=False``.
        held_out: Who judges; default those of the loader, flagged.
        steps: In how many steps, or ``"auto"``.
        options: See ``BudgetOptions``.

    Returns:
        The network and its figures; print it.

    Raises:
        InputError: An argument or the data is wrong, or nothing can be pruned.
        UnsupportedModelError: The network can't be scored, pruned or copied.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2))
        >>> people = [(torch.randn(200, 4), torch.arange(200) % 2, ["a", "b"] * 100)]
        >>> magnitude = tp.importance.GroupMagnitudeImportance()
        >>> done = prune_to(network, people, torch.ones(1, 4), macs=0.51, importance=magnitude, progress=False)
        >>> done.model[0].out_features, list(done.measured["sensitive_group"]), network[0].out_features
        (20, ['a', 'b', 'everybody'], 40)
    """
    budget = Budget.of(macs=macs, parameters=parameters, latency=latency)
    if steps != "auto":
        require_number("steps", steps, at_least=1, whole=True, remedy=", or 'auto'")
    seed = drawn_seed(options.get("random_state", 0))
    with seeded(torch.Generator().manual_seed(seed)), preserved_random_state(loader):
        work = prepared(model, loader, example_inputs, budget.cost, importance, held_out, options, seed, "prune_to")
        attempts: list[_Attempt] = []
        for number in _STEPS if steps == "auto" else (steps,):
            attempts.append(_attempt(work, budget, number))
            if not attempts[-1].worse:
                break
        return _outcome(work, budget, attempts)


def _attempt(work: Prepared, budget: Budget, steps: int) -> _Attempt:
    import pandas as pd

    network, fewest = work.dense, None
    predicted: dict[str, float] = {}
    for step in range(1, steps + 1):
        candidates = Candidates(network, work.task, fewest)
        fewest = fewest or candidates.fewest
        amount, within = candidates.reached(budget.cost, 1 - (1 - budget.share) * step / steps)
        if amount == 0 and step == steps == 1:
            raise InputError("nothing can be removed: expected a network with layers that may lose channels")
        shares = candidates.shares(amount)
        for group, change in candidates.predicted(amount).itertuples(index=False):
            predicted[group] = predicted.get(group, 0.0) + change
        network, refitted = candidates.pruned(amount)
    figures = measured(work.dense.model, network.model, work.judges, work.task.reading)
    told = pd.DataFrame({"sensitive_group": list(predicted), "predicted change": list(predicted.values())})
    told = of_judges(told, figures)
    worse = tuple(worse_than_told(figures, told))
    return _Attempt(steps, network, shares, within, told, figures, refitted.reconstruction, worse)


def worse_than_told(figures: pd.DataFrame, told: pd.DataFrame) -> list[str]:
    """The groups whose loss rises by more than predicted.

    Args:
        figures: From ``measured``.
        told: Predicted changes, a row for each sensitive group.

    Returns:
        Their names.
    """
    predicted = dict(zip(told["sensitive_group"], told["predicted change"], strict=True))
    mean_loss = float(figures["loss dense"].iloc[-1])
    rows = figures[figures["sensitive_group"].isin(list(predicted))]
    changes = np.array([predicted[name] for name in rows["sensitive_group"]], dtype=float)
    found, error, people, loss = (
        torch.tensor(rows[name].to_numpy(dtype=float), device="cpu")
        for name in ("loss change", "loss standard error", "people", "loss dense")
    )
    relied_on = torch.tensor(changes, device="cpu").nan_to_num(0.0).clamp_min(0.0)  # gains are not
    worse = worse_than_predicted(found, relied_on, error, people=people, loss=loss, mean_loss=mean_loss)
    return [name for name, beyond in zip(rows["sensitive_group"], worse.tolist(), strict=True) if beyond]


def flags_of(reconstruction: Any) -> tuple[str, ...]:
    """What is to be said of a refit, where there was one."""
    return () if reconstruction is None else tuple(reconstruction.flags)


def _loss_that_counts(figures: pd.DataFrame) -> float:
    """The change of the loss by which networks are compared: that of the group that loses most."""
    groups = figures[(figures["sensitive_group"] != EVERYBODY) & (figures["people"] >= FEWEST_PEOPLE)]
    return float(groups["loss change"].max() if len(groups) else figures["loss change"].iloc[-1])


def history_of(
    number: int, steps: int, shares: Shares, predicted: pd.DataFrame, figures: pd.DataFrame, kept: bool
) -> pd.DataFrame:
    """The rows of one network in a history.

    Args:
        number: Of the network, from 1.
        steps: In how many it was pruned.
        shares: What is left of its costs.
        predicted: For each sensitive group.
        figures: From ``measured``.
        kept: Whether it is the one that is given back.

    Returns:
        A row for each sensitive group.
    """
    import pandas as pd

    changes = dict(zip(predicted["sensitive_group"], predicted["predicted change"], strict=True))
    first = {
        "network": number,
        "steps": steps,
        "kept": kept,
        "macs": shares.macs,
        "parameters": shares.parameters,
        "latency": np.nan if shares.latency is None else shares.latency,
    }
    rows = figures.assign(**{"predicted change": [changes.get(name, np.nan) for name in figures["sensitive_group"]]})
    return pd.concat([pd.DataFrame([first] * len(rows)), rows.reset_index(drop=True)], axis=1)


def _outcome(work: Prepared, budget: Budget, attempts: list[_Attempt]) -> PrunedToBudget:
    # a network beyond the budget is no rival of one within it
    import pandas as pd

    best = min(attempts, key=lambda attempt: (not attempt.within, _loss_that_counts(attempt.measured)))
    history = pd.concat(
        [
            history_of(k + 1, attempt.steps, attempt.shares, attempt.predicted, attempt.measured, attempt is best)
            for k, attempt in enumerate(attempts)
        ],
        ignore_index=True,
    )
    suspicious = degenerate(work.dense.model, best.network.model, work.judges, work.task.reading)
    return PrunedToBudget(
        model=best.network.model,
        budget=budget,
        macs=best.shares.macs,
        parameters=best.shares.parameters,
        latency=best.shares.latency,
        predicted=best.predicted,
        measured=best.measured,
        history=history,
        flags=(
            *work.flags,
            *_flags(budget, best, attempts),
            *unjudged(best.predicted, best.measured),
            *suspicious,
            *flags_of(best.reconstruction),
        ),
        reconstruction=best.reconstruction,
        predicted_of=work.task.predicted_of,
    )


def _flags(budget: Budget, best: _Attempt, attempts: list[_Attempt]) -> list[str]:
    share, cost = best.shares.of(budget.cost), COSTS[budget.cost]
    flags = []
    if not best.within:
        flags.append(
            f"the budget can't be met: with what every layer has to keep the network has {100 * share:.1f} % of the "
            f"{cost}, and this is it; expected a larger budget, fewer ignored_layers, or a higher max_pruning_ratio"
        )
    elif share < budget.share - _NEAR:
        flags.append(f"{100 * share:.1f} % of the {cost} is the nearest size within {100 * budget.share:.3g} %")
    if best.worse:
        tried = ", ".join(str(attempt.steps) for attempt in attempts)
        flags.append(
            f"{', '.join(best.worse)}: measured worse than predicted (steps tried: {tried}): rely on what was "
            "measured; a larger budget, or fine-tuning, may help"
        )
    if len(attempts) > 1:
        flags.append(
            f"chosen among {len(attempts)} networks by the people who were measured, which flatters a little; the "
            "history has them all"
        )
    return flags
