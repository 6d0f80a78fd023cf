"""FairPrune as published: single weights masked by group saliency, again and again, until a fairness target is met.

Wu, Zeng, Xu, Shi and Hu (MICCAI 2022, arXiv 2203.02110). Nothing is retrained, and no network gets smaller: weights are
zeros.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import prune

from fairtrim.arguments import few_of, require_flag, require_number
from fairtrim.criteria import GroupSaliency
from fairtrim.damage.loss_expansion import Curvature
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.data.batches import ForwardFunction, LossFunction
from fairtrim.data.sensitive_groups import GroupName, SensitiveNames, match_groups
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.data.validation_set import ValidationSet
from fairtrim.errors import InputError
from fairtrim.measures.class_sums import CLASS_SUMS, class_sum
from fairtrim.measures.group_counts import GroupCounts, bias, canonical_measure, performance, rates
from fairtrim.measures.objective import Objective, labels_given
from fairtrim.network.copied_network import copied_network
from fairtrim.network.probability_scores import label_scores
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.network.weight_masks import in_shapes_of, mask_weights
from fairtrim.preservation import preserved_random_state
from fairtrim.printing import Block, Printed, TextTable, figure, flag_lines, movement, percent
from fairtrim.progress import progress_bar
from fairtrim.repair.figures import Figure, figures_of, group_label, moved

__all__ = ["GroupSaliencyPruning", "MaskingStep", "prune_by_group_saliency"]

Stopped = Literal["target met", "pruning ratio reached", "no negative score left", "constant classifier"]

_Sides = tuple[tuple[GroupName, ...], tuple[GroupName, ...]]

_ROWS, _GROUPS, _NAME = 12, 4, 40  # that are printed
_CERTAIN = NormalDist().inv_cdf(0.975)
"""Standard errors that two accuracies differ by, for their order to be told from chance."""


class MaskingStep(NamedTuple):
    """The network after one iteration, judged by people.

    Attributes:
        iteration: 0 for the network as it was given.
        pruning_ratio: Share of the weights that are masked.
        gaps: The measure asked for and Eopp0, Eopp1, Eodd, by name; NaN where nobody of a group tells.
        accuracy: Of everybody.
        group_accuracy: Of each sensitive group.
        constant: Whether everybody gets the same label, so that all gaps are 0 and mean nothing.

    Example: see ``prune_by_group_saliency``, which makes them.
    """

    iteration: int
    pruning_ratio: float
    gaps: Mapping[str, float]
    accuracy: float
    group_accuracy: Mapping[GroupName, float]
    constant: bool


@dataclass(frozen=True)
class GroupSaliencyPruning(Printed):
    """A network with masked weights, and how it came to them; print it.

    Attributes:
        model: A copy of the given network with masks of ``torch.nn.utils.prune``; ``save_pruned`` bakes them in.
        stopped: Why the loop ended.
        measure: What was to be brought down.
        target: To at most this; None for no target.
        privileged: The groups whose harm counted in favour.
        unprivileged: The groups that were spared.
        history: The network as it was given, and one entry an iteration.
        figures: What the judging people see, before and after, with 95 % intervals.
        flags: What a user should know: a constant classifier, a gap that fell while every group lost accuracy, a target
            that is not met, sides that can't be told from chance.
        n_weights: Of all layers that were ranked.
        people: How many judged.

    Example: see ``prune_by_group_saliency``, which makes them.
    """

    model: nn.Module
    stopped: Stopped
    measure: str
    target: float | None
    privileged: tuple[GroupName, ...]
    unprivileged: tuple[GroupName, ...]
    history: tuple[MaskingStep, ...]
    figures: tuple[Figure, ...]
    flags: tuple[str, ...]
    n_weights: int
    people: int
    _template: nn.Module = field(repr=False)
    _masked_in: Mapping[str, Tensor] = field(repr=False)

    @property
    def target_met(self) -> bool:
        """Whether there was a target, and the network meets it."""
        return self.stopped == "target met"

    def model_at(self, iteration: int) -> nn.Module:
        """The network after an earlier iteration.

        Args:
            iteration: One of the history.

        Returns:
            Another copy; ``model`` stays as it is.

        Raises:
            InputError: There was no such iteration.

        Example: see ``prune_by_group_saliency``.
        """
        if iteration not in range(len(self.history)):
            raise InputError(f"iteration={iteration!r}; expected 0 to {len(self.history) - 1}")
        return _masked(self._template, self._masked_in, iteration)

    def verdict(self) -> str:
        """What masking did to the measure and to the accuracies, whether the target is met, and who judged.

        Returns:
            One sentence.
        """
        first, last = self.history[0], self.history[-1]
        met = "met" if self.target_met else "not met"
        target = "" if self.target is None else f", target of {self.target:g} {met}"
        change = {group: last.group_accuracy[group] - was for group, was in first.group_accuracy.items()}
        worst = min(change, key=lambda group: change[group])
        return (
            f"Without {percent(last.pruning_ratio)} of the weights {self.measure} "
            f"{movement(first.gaps[self.measure], last.gaps[self.measure])}{target}, and accuracy "
            f"{movement(first.accuracy, last.accuracy)}; worst for {group_label(worst)} "
            f"({figure(change[worst], sign=True)}), judged on {self.people:,} people."
        )

    def blocks(self) -> Iterator[Block]:
        """The verdict, why the loop ended, the gap and accuracies on the way, and flags."""
        yield self.verdict()
        last = self.history[-1]
        masked = f"{round(last.pruning_ratio * self.n_weights):,} of {self.n_weights:,} weights masked"
        yield "\n".join(
            [
                f"{masked} in {last.iteration} iterations; stopped: {self.stopped}",
                f"privileged: {_named(self.privileged)}; unprivileged: {_named(self.unprivileged)}",
            ]
        )
        yield self._table()
        yield from flag_lines(self.flags)

    def _table(self) -> TextTable:
        """The gap beside the accuracies of everybody and of the first groups."""
        groups = list(self.history[0].group_accuracy)
        constant = any(step.constant for step in self.history)
        end = len(self.history) - 1
        rows = []
        for step in (self.history[k] for k in dict.fromkeys(round(end * k / (_ROWS - 1)) for k in range(_ROWS))):
            cells = [figure(value) for value in (step.gaps[self.measure], step.accuracy)]
            cells += [figure(step.group_accuracy[group]) for group in groups[:_GROUPS]]
            said = ["constant" if step.constant else ""] if constant else []
            rows.append([figure(step.iteration), percent(step.pruning_ratio), *cells, *said])
        of_groups = [textwrap.shorten(group_label(group), _NAME, placeholder="…") for group in groups[:_GROUPS]]
        heads = ["iteration", "masked", self.measure, "everybody", *of_groups, *(["labels"] if constant else [])]
        more = f" (and {len(groups) - _GROUPS} more groups)" if len(groups) > _GROUPS else ""
        return TextTable(heads, rows, title=f"{self.measure}, and the accuracy of everybody and of each group{more}:")


def prune_by_group_saliency(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    privileged: Any = None,
    unprivileged: Any = None,
    beta: float = 0.33,
    measure: str = "eopp1",
    target: float | None = None,
    pruning_ratio: float = 0.35,
    iterative_steps: int = 35,
    only_negative: bool = False,
    held_out: Iterable[Any] | ValidationSet | None = None,
    curvature: Curvature = "auto",
    loss_fn: LossFunction = F.cross_entropy,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
    sensitive_features: Any = None,
    held_out_sensitive_features: Any = None,
    sensitive_names: SensitiveNames | None = None,
    progress: bool = True,
) -> GroupSaliencyPruning:
    """FairPrune as published: mask the weights of smallest s_i and score anew, until a target is met.

    s_i = ½ θ_i² (h_i^unprivileged − β h_i^privileged), h_i^g the diagonal curvature of the group's mean loss. The score
    is signed: weights that serve the privileged alone are negative and go first. One ranking over the weights of all
    linear and convolution layers, as the paper prunes globally; biases, normalisation layers, embeddings and weights
    that several layers share stay. A masked weight stays masked and is not scored again.

    In a published re-run all of the effect came from weights with a negative score, the first 2 % or so; what goes
    beyond them closes gaps by losing accuracy, up to a constant classifier, whose gap is 0. The absolute accuracies of
    all groups stand beside the gap, and both are flagged.

    Args:
        model: The trained network; untouched. It has scores (N, K), or one logit with a ``loss_fn`` for it.
        loader: Calibration people, (inputs, target, sensitive), read once an iteration.
        privileged: The privileged groups: a value, a crossing as a tuple, a dict feature -> value, or a list of them.
            Default, for two groups: the one whose accuracy is the higher, among the people who judge, as in the paper.
        unprivileged: The unprivileged ones; default all others, pooled.
        beta: β in (0, 1).
        measure: What the target is for: ``"eopp0"``, ``"eopp1"``, ``"eodd"`` (sums over classes, the largest over pairs
            of groups; the last is 0, too, where everything said of one group is right and all of the other wrong), or
            a measure of ``BIAS_MEASURES``.
        target: Stop when the measure is at most this, and the network not constant; None goes on to the ratio.
        pruning_ratio: Stop at this share of the weights, in (0, 1).
        iterative_steps: Iterations until then; each masks an equal share.
        only_negative: Stop when no weight with a negative score is left, and mask no other.
        held_out: Other people who judge; default those of ``loader``, to whom the masks are fitted.
        curvature: ``"exact"``, ``"empirical"`` or ``"auto"``, as for ``squared_gradients``.
        loss_fn: Loss of scores and target.
        forward_fn: How to call the network.
        output_transform: Finds the scores in what it returns.
        sensitive_features: Of a loader of (inputs, target), one row a sample; see ``with_sensitive_features``.
        held_out_sensitive_features: The same of ``held_out``.
        sensitive_names: Names of the sensitive features, and of their values.
        progress: Show a progress bar.

    Returns:
        The masked network, and how it came to be. Under ``torch.distributed`` each process computes alone.

    Raises:
        InputError: A setting is out of range, the sides are not named and can't be found, a group has nobody whom the
            measure needs, or the network has no such weights, or masks already.
        UnsupportedModelError: The network can't be copied, or its samples can't be told apart.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = network[0].weight.copy_(torch.tensor([[0.1, 0.05], [-0.1, -0.05]]))
        >>> x = torch.tensor([[3.0, 1.0], [-3.0, -1.0], [-0.6, 1.0], [0.6, -1.0]])  # the first input misleads b
        >>> people = [(x, torch.tensor([0, 1, 0, 1]), ["a", "a", "b", "b"])]
        >>> found = prune_by_group_saliency(network, people, pruning_ratio=0.5, iterative_steps=1, progress=False)
        >>> found.privileged, found.stopped, found.model[0].weight_mask.tolist()
        (('a',), 'pruning ratio reached', [[0.0, 1.0], [0.0, 1.0]])
        >>> [step.gaps["eopp1"] for step in found.history], found.model_at(0)[0].weight.equal(network[0].weight)
        ([2.0, 0.0], True)
    """
    measure = canonical_measure(measure, tuple(CLASS_SUMS))
    if target is not None:
        require_number("target", target, at_least=0)
    require_number("pruning_ratio", pruning_ratio, above=0, below=1)
    require_number("iterative_steps", iterative_steps, at_least=1, whole=True)
    require_flag("only_negative", only_negative)
    criterion = GroupSaliency(privileged, unprivileged, beta)
    _refuse_masks(model)
    loader = with_sensitive_features(loader, sensitive_features)
    held_out = with_sensitive_features(held_out, held_out_sensitive_features, argument="held_out_sensitive_features")
    with preserved_random_state(), torch.inference_mode(False), torch.no_grad():
        people = loader if held_out is None else held_out
        if not isinstance(people, ValidationSet):
            people = ValidationSet.from_loader(people, sensitive_names=sensitive_names, progress=progress)
        template = copied_network(model)
        network = ScoredNetwork(copied_network(model), forward_fn, output_transform)
        network.check()
        weights = _weights(network.model)
        n_weights = sum(weight.numel() for weight in weights.values())
        judge = _Judge(network, people, measure)
        history, before = [judge.step(0, 0.0)], judge.given
        criterion, flags = _with_sides(criterion, people, list(history[0].group_accuracy.values()))
        sides = _side_names(criterion, people.groups, people.features)
        masked_in = torch.zeros(n_weights, dtype=torch.int32, device="cpu")
        stopped = _ended(history[0], measure, target)
        goals = _goals(n_weights, pruning_ratio, iterative_steps)
        with progress_bar(goals, description="masking weights", shown=progress, unit="step") as bar:
            for iteration, goal in enumerate(bar, 1):
                if stopped is not None:
                    break
                scores, sides = _scores(
                    network, loader, weights, criterion, curvature=curvature, loss_fn=loss_fn, names=sensitive_names
                )
                masked = masked_in > 0
                chosen = scores.masked_fill(masked, torch.inf).argsort(stable=True)[: goal - int(masked.sum())]
                chosen = chosen[scores[chosen] < 0] if only_negative else chosen
                if not len(chosen):
                    stopped = "no negative score left"
                    break
                masked_in[chosen] = iteration
                for name, when in in_shapes_of(weights, masked_in).items():
                    weights[name].masked_fill_((when > 0).to(weights[name].device), 0)
                history.append(judge.step(iteration, float((masked_in > 0).double().mean())))
                stopped = _ended(history[-1], measure, target)
        figures = judge.figures(before)
        of_layers = in_shapes_of(weights, masked_in)
        privileged, unprivileged = sides
        return GroupSaliencyPruning(
            model=_masked(template, of_layers, len(history) - 1),
            stopped=stopped or "pruning ratio reached",
            measure=measure,
            target=target,
            privileged=privileged,
            unprivileged=unprivileged,
            history=tuple(history),
            figures=figures,
            flags=(*flags, *_elsewhere(sides, people.groups), *_flags(history, figures, measure, target)),
            n_weights=n_weights,
            people=len(people),
            _template=template,
            _masked_in=of_layers,
        )


def _refuse_masks(model: nn.Module) -> None:
    if prune.is_pruned(model):
        raise InputError(
            "the network has masks of torch.nn.utils.prune; expected one without: torch.nn.utils.prune.remove(layer, "
            "'weight') bakes them in"
        )


def _goals(n_weights: int, pruning_ratio: float, iterative_steps: int) -> list[int]:
    """How many weights are masked after each iteration that masks any."""
    steps = range(1, iterative_steps + 1)
    return sorted({max(1, round(n_weights * pruning_ratio * step / iterative_steps)) for step in steps})


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are ranked, by name."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    found = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        # attention reads the weight of its last layer past its hooks, which would leave an old mask in it
        ranked = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, NonDynamicallyQuantizableLinear)
        if ranked and weight is not None and owners[id(weight)] == 1:
            found[f"{name}.weight".removeprefix(".")] = weight
    if not found:
        raise InputError(
            "the network has no linear or convolution layer with a weight of its own; expected some to mask: take "
            "parametrizations off with torch.nn.utils.parametrize.remove_parametrizations"
        )
    return found


def _masked(template: nn.Module, masked_in: Mapping[str, Tensor], iteration: int) -> nn.Module:
    """A copy with the masks of an iteration on the layers that have any."""
    kept = {name: (when == 0) | (when > iteration) for name, when in masked_in.items()}
    with torch.inference_mode(False):
        model = copied_network(template)
        mask_weights(model, {name: keep for name, keep in kept.items() if not bool(keep.all())})
    return model


def _scores(
    network: ScoredNetwork,
    loader: Iterable[Any],
    weights: Mapping[str, Tensor],
    criterion: GroupSaliency,
    *,
    curvature: Curvature,
    loss_fn: LossFunction,
    names: SensitiveNames | None,
) -> tuple[Tensor, _Sides]:
    """s_i of the network as it is masked so far, (W,), and the groups of both sides."""
    table, squares = squared_gradients(
        network.model,
        loader,
        curvature=curvature,
        parameters=list(weights),
        distributed=False,
        loss_fn=loss_fn,
        forward_fn=network.forward_fn,
        output_transform=network.output_transform,
        sensitive_names=names,
        progress=False,
    )
    criterion.check(table)
    score = criterion.bind(table)
    saliency = (0.5 * weight.cpu().double().square() * squares[name] for name, weight in weights.items())
    scores = torch.cat([score(of_groups).flatten() for of_groups in saliency])
    return scores, _side_names(criterion, table.sensitive_groups, table.features)


class _Judge:
    """Judges the network by some people.

    Attributes:
        given: The labels it gave them last, (N, K), or (N, 1) for two classes.
    """

    given: Tensor

    def __init__(self, network: ScoredNetwork, people: ValidationSet, measure: str) -> None:
        self._network, self._people, self._measure = network, people, measure

    def step(self, iteration: int, pruning_ratio: float) -> MaskingStep:
        """The network as it is now."""
        people = self._people
        batches = people.batches(1024, self._network.device)
        watch = iteration == 0
        given = [label_scores("the network", self._network, batch, watch=watch) for _, batch in batches]
        scores = torch.cat(given).cpu().double()
        if not bool(torch.isfinite(scores).all()):
            raise InputError("the network gives scores that are not finite; expected finite ones")
        if iteration == 0:
            people.check(self._measure, max(2, scores.shape[1]))
        self.given = labels_given(scores)
        counts = GroupCounts.of(self.given, people.target, people.group, n_groups=people.n_groups, weight=people.weight)
        names = dict.fromkeys([self._measure, *CLASS_SUMS])
        of_groups = rates("accuracy_score_difference", counts)[0].tolist()
        return MaskingStep(
            iteration,
            pruning_ratio,
            {name: float((class_sum if name in CLASS_SUMS else bias)(name, counts)) for name in names},
            float(performance("accuracy", counts)),
            dict(zip(people.groups, of_groups, strict=True)),
            bool((self.given == self.given[:1]).all()),
        )

    def figures(self, before: Tensor) -> tuple[Figure, ...]:
        """Labels that were given before beside those given now."""
        measure = "accuracy_score_difference" if self._measure in CLASS_SUMS else self._measure
        return figures_of(Objective(measure), self._people, before, self.given)


def _ended(step: MaskingStep, measure: str, target: float | None) -> Stopped | None:
    """Whether there is nothing more to do; a constant classifier, whose gaps are 0, has not met a target."""
    if step.constant:
        return "constant classifier"
    return "target met" if target is not None and step.gaps[measure] <= target else None


def _with_sides(
    criterion: GroupSaliency, people: ValidationSet, accuracy: Sequence[float]
) -> tuple[GroupSaliency, list[str]]:
    """The criterion with a privileged side, found by the groups' accuracies if none was named; and a flag."""
    if criterion.privileged is not None:
        return criterion, []
    numbers = torch.bincount(people.group, minlength=people.n_groups).tolist()
    told = [
        f"{group_label(group)} {share:.3f} ({n:,} people)"
        for group, share, n in zip(people.groups, accuracy, numbers, strict=True)
    ]
    if people.n_groups != 2 or accuracy[0] == accuracy[1]:
        raise InputError(
            f"no privileged side was named; accuracies of {people.n_groups} groups are {few_of(told)}; expected "
            "two groups of different ones, or privileged= the group, or a list of those, whose harm counts in favour"
        )
    variance = sum(share * (1 - share) / n for share, n in zip(accuracy, numbers, strict=True))
    found = replace(criterion, privileged=people.groups[int(accuracy[1] > accuracy[0])])
    text = f"{group_label(found.privileged)} was taken for privileged, by accuracy: {', '.join(told)}"
    chance = abs(accuracy[0] - accuracy[1]) <= _CERTAIN * math.sqrt(variance)
    return found, [text + ("; that may be chance: name privileged=" if chance else "")]


def _side_names(criterion: GroupSaliency, groups: Sequence[GroupName], features: Sequence[str]) -> _Sides:
    """The groups of both sides."""
    privileged = match_groups(criterion.privileged, groups, features, "privileged")
    others = [g for g in range(len(groups)) if g not in privileged]
    if criterion.unprivileged is not None:
        others = match_groups(criterion.unprivileged, groups, features, "unprivileged")
    return tuple(groups[g] for g in privileged), tuple(groups[g] for g in others)


def _elsewhere(sides: Sequence[Sequence[GroupName]], judged: Sequence[GroupName]) -> Iterator[str]:
    """Groups that rank weights and judge none of them, or the other way round."""
    ranking = [group for side in sides for group in side]
    if unjudged := [group for group in ranking if group not in judged]:
        yield f"{_named(unjudged)}: weights are ranked by them too, and nobody of them judges"
    if unranked := [group for group in judged if group not in ranking]:
        yield f"{_named(unranked)}: of neither side, so that their harm does not count; the gap is over them too"


def _flags(
    history: Sequence[MaskingStep], figures: Sequence[Figure], measure: str, target: float | None
) -> Iterator[str]:
    before, after = history[0].gaps[measure], history[-1].gaps[measure]
    constant = history[-1].constant
    if constant:
        yield "constant classifier: everybody gets the same label, gaps mean nothing; see history and model_at"
    elif target is not None and after > target:
        yield f"target not met: {measure} is {after:.4f}; asked for: at most {target:g}"
    if len(history) == 1:
        yield "no weight is masked"
    if round(after, 4) > round(before, 4):
        yield f"{measure} rose from {before:.4f} to {after:.4f}"
    of_groups = [f for f in figures if f.name == "accuracy" and f.sensitive_group is not None]
    if after < before and not constant and all(figure.change_high < 0 for figure in of_groups):
        yield f"levelling down: {measure} fell while every group lost accuracy"
    yield from moved(tuple(figures))


def _named(groups: Sequence[GroupName]) -> str:
    return few_of([group_label(group) for group in groups])
