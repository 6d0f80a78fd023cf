"""What every importance here has in common: reading data, staleness, and scores where Torch-Pruning wants them."""

from __future__ import annotations

import dataclasses
import inspect
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self, Unpack

import numpy as np
import numpy.typing as npt
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import DamageTable, FairtrimError, InputError, NotFittedError, StaleTableError, UnsupportedModelError
from fairtrim.arguments import did_you_mean, require_network
from fairtrim.damage import CollectionOptions
from fairtrim.damage.measured_change import MeasuredChange, measured_change
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.placement import require_whole
from fairtrim.processes import Processes
from fairtrim.registry import Described
from fairtrim.selection.ranking import Pool, Selection, break_ties, negative_columns, ranked
from fairtrim.unlearning.unlearned import was_unlearned
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph, correct_group, correct_pruner
from fairtrim_adapters.torch_pruning.graph.dependency_groups import consumers, group_name
from fairtrim_adapters.torch_pruning.graph.plan import Caller, PruningPlan, caller_of, plan_of_graph, plan_of_pruner
from fairtrim_adapters.torch_pruning.verification.verified import is_stream, verified

from .pruning_report import UNLEARNED_BEFORE, PruningReport, pruning_report

__all__ = ["ChannelImportance", "CollectOptions", "ImportanceOptions", "Normalizer", "negative_values"]

Normalizer = Literal["gaussian", "standarization"] | Callable[[Tensor], Tensor] | None


class CollectOptions(CollectionOptions, total=False):
    """How the data are read; the same for the constructor (self-collecting form) and for ``fit``.

    Those of ``fairtrim.damage.CollectionOptions``, which say how ``fairtrim.collect_damage`` reads them, and one more.

    Attributes:
        after_step: What your script does to the network after each step before it can run, such as writing sizes into
            its modules; done where channels go on trial, too. The number of heads in modules that are named like those
            of timm and Hugging Face needs none.

    Example:
        >>> from fairtrim_adapters.torch_pruning import WorstGroupImportance
        >>> options: CollectOptions = {"sensitive_names": {"sex": ["Female", "Male"]}, "progress": False}
        >>> importance = WorstGroupImportance(**options)  # importance.fit(pruner, loader, **options) takes them, too
    """

    after_step: Callable[[nn.Module], Any] | None


class ImportanceOptions(CollectOptions, total=False):
    """Options of every importance's constructor: ``CollectOptions``, and three that ``ChannelImportance`` describes.

    Example: see ``ChannelImportance``, which takes them one by one.
    """

    model: nn.Module | None
    loader: Iterable[Any] | None
    normalizer: Normalizer


class _Fingerprint:
    """Recognises a network whose parameters or buffers were replaced or changed in place."""

    def __init__(self, model: nn.Module) -> None:
        self._entries = [(weakref.ref(t), t._version, t.shape) for t in self._tensors(model)]

    @staticmethod
    def _tensors(model: nn.Module) -> list[Tensor]:
        return [*model.parameters(), *model.buffers()]

    def matches(self, model: nn.Module) -> bool:
        now = self._tensors(model)
        return len(now) == len(self._entries) and all(
            reference() is tensor and tensor._version == version and tensor.shape == shape
            for tensor, (reference, version, shape) in zip(now, self._entries, strict=True)
        )


class ChannelImportance(Described, tp.importance.Importance):  # type: ignore[misc]
    """An importance that scores the whole network at once, for the pruner's next step.

    Two ways to feed it. Explicit: construct it, hand it to a pruner, and call ``fit(pruner, loader)`` before each
    ``pruner.step()``. Self-collecting: construct it with ``model=`` and ``loader=``; it fits itself when the
    pruner first asks, and again when the network has changed. Subclasses say how channels are ranked (``_rank``) and
    which of them are better gone (``_negative``); one with a ``name`` also what it ``does`` and its ``standing``,
    and is found by that name (see ``fairtrim.registry.Described``).

    Args:
        model: The network, for the self-collecting form.
        loader: Batches of (inputs, target, sensitive), for the self-collecting form.
        normalizer: None, ``"gaussian"`` or ``"standarization"``, Torch-Pruning's names, or an order-preserving
            function. Others reverse or scramble signed scores and are refused.
        options: See ``CollectOptions``.

    Attributes:
        selection_: Order and scores of the last fit.
        plan_: What Torch-Pruning was going to ask for.

    Raises:
        InputError: An argument is wrong.

    Example:
        >>> import torch_pruning as tp
        >>> from fairtrim_adapters.torch_pruning import WorstGroupImportance
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> people = [(torch.randn(6, 3), torch.arange(6) % 2, ["a", "b", "b"] * 2)]
        >>> importance = WorstGroupImportance(model=model, loader=people, progress=False)  # fits itself at each step
        >>> isinstance(importance, ChannelImportance)
        True
        >>> settings = {"pruning_ratio": 0.5, "iterative_steps": 2, "ignored_layers": [model[2]]}
        >>> pruner = tp.pruner.BasePruner(model, torch.ones(1, 3), importance=importance, **settings)
        >>> pruner.step(), model[0].out_features, pruner.step(), model[0].out_features
        (None, 6, None, 4)
    """

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        loader: Iterable[Any] | None = None,
        normalizer: Normalizer = None,
        **options: Unpack[CollectOptions],
    ) -> None:
        if isinstance(normalizer, str) and normalizer not in ("gaussian", "standarization"):
            raise InputError(
                f"normalizer={normalizer!r} is unknown, or reverses or scrambles signed scores (by dividing by a mean, "
                "sum or element that may be negative); use None, 'gaussian' or 'standarization'"
            )
        if (model is None) != (loader is None):
            raise InputError("the self-collecting form needs both model= and loader=; for the explicit one call fit")
        if model is not None:
            require_network("model", model)
        _check_options(options, type(self), constructing=True)
        self.normalizer = normalizer
        if loader is not None:
            loader = with_sensitive_features(loader, options.pop("sensitive_features", None))
        self._model, self._loader, self._options = model, loader, options

    idle_options: ClassVar[Mapping[str, str]] = {}
    """Options of ``CollectOptions`` that this importance has no use for, and why; they are refused."""

    @abstractmethod
    def _rank(
        self, model: nn.Module, plan: PruningPlan, loader: Iterable[Any], options: Mapping[str, Any]
    ) -> tuple[Selection, DamageTable | None]:
        """Rank the channels of the plan; the table, if there is one, is for the report."""

    @abstractmethod
    def _negative(self) -> Tensor:
        """Columns of the plan's channels that should go whatever the pruner's ratio."""

    # Collecting -------------------------------------------------------------------------------------------

    @torch.inference_mode(False)  # there nothing has a slope
    def fit(self, pruner: tp.pruner.BasePruner, loader: Iterable[Any], **options: Unpack[CollectOptions]) -> Self:
        """Score the network for the pruner's next step, and take that step on trial.

        The network is left as it was found. Call it before each step of an iterative pruner. Groups of channels without
        which the network would not run, in eval or training mode, or would be another one than with their gates closed
        are left as they are, with a warning.

        Args:
            pruner: The pruner; what it ignores and how it ranks is taken into account.
            loader: Batches of (inputs, target) or (inputs, target, sensitive).
            options: See ``CollectOptions``; they take precedence over the constructor's.

        Returns:
            Itself; unchanged, after a warning, where no layer may lose any more channels.

        Raises:
            InputError: The data or an argument is wrong, or nothing can be pruned.
            UnsupportedModelError: The network can't be scored, or would not run after the step.
        """
        _check_options(options, type(self), constructing=False)
        if not isinstance(pruner, tp.pruner.BasePruner):
            raise InputError(f"got a {type(pruner).__name__}; expected the pruner: importance.fit(pruner, loader)")
        reading = {**self._options, **options}
        loader = with_sensitive_features(loader, reading.pop("sensitive_features", None))
        self._collect(pruner.DG, pruner, partial(plan_of_pruner, pruner), loader, reading)
        return self

    def _collect(
        self,
        graph: tp.DependencyGraph,
        pruner: tp.pruner.BasePruner | None,
        planned: Callable[..., PruningPlan],
        loader: Iterable[Any],
        options: Mapping[str, Any],
    ) -> None:
        require_whole(graph.model)
        plan = planned()
        if not plan.groups:
            return
        given, once = loader, is_stream(loader)
        network = ScoredNetwork(graph.model, options.get("forward_fn"), options.get("output_transform"))
        trial = {name: options.get(name) for name in ("after_step", "distributed")}
        plan, rehearsal, loader = verified(graph, pruner, plan, planned, loader, network, **trial)
        reading = {name: value for name, value in options.items() if name != "after_step"}
        before = dict(vars(self))
        try:
            selection, table = self._rank(graph.model, plan, loader, reading)
            if not bool(torch.isfinite(selection.scores).all()):
                raise InputError("the criterion gave scores that are not finite; expected one finite score a channel")
            self.selection_, self.plan_, self._table = selection, plan, table
            self._read, self._read_once = (given, reading), once
            self._columns = _columns_of_inputs(plan)
            self._graph, self._fingerprint = graph, _Fingerprint(graph.model)
            self._history_length = len(graph.pruning_history())
            self._refitted: set[int] = set()
            self._rule: dict[str, int] | None = None
            self._rehearsal = rehearsal
            if pruner is None or not plan.step:
                return
            with Processes(options.get("distributed"), graph.model).together():
                if rehearsal is not None:
                    rehearsal.try_step(plan, self)
        except BaseException:
            self.__dict__ = before
            raise

    # Scoring ----------------------------------------------------------------------------------------------

    def __call__(self, group: tp.Group) -> Tensor | None:
        """Score one dependency group; Torch-Pruning calls this.

        Args:
            group: A dependency group, full or partial.

        Returns:
            (len(group[0].idxs),) float64 on the CPU: finite, distinct; smaller = remove first. None for a group
            that gates can't describe (``plan_.unscored``): Torch-Pruning leaves it as it is.

        Raises:
            NotFittedError: There are no scores, or (StaleTableError) they are out of date.
            UnsupportedModelError: The group has channels that were not scored.
        """
        caller = caller_of(group._DG)
        try:
            return self._score(group, caller)
        except BaseException:
            if caller.pruner is not None and caller.in_step:
                caller.pruner.current_step -= 1  # which was counted before asking; it can be tried again
            raise

    def _score(self, group: tp.Group, caller: Caller) -> Tensor | None:
        remapped = correct_graph(group._DG)
        if caller.pruner is not None:
            correct_pruner(caller.pruner)
        correct_group(group)  # Torch-Pruning will prune from this root
        if remapped:  # Torch-Pruning mapped this group before
            group = group._DG.get_pruning_group(group[0].dep.target.module, group[0].dep.handler, group[0].idxs)
        self._ensure_fitted(group._DG, caller)
        name = group_name(group)
        if name in self.plan_.unscored or (remapped and name not in self.plan_.roots):
            return None  # by its own stale map Torch-Pruning asks for a group that it would pass over by the right one
        position = {root: k for k, root in enumerate(group[0].idxs)}
        scores = np.full(len(position), np.nan)
        all_scores = self.selection_.scores.numpy()
        for module, channels, roots in consumers(group):
            if module in self._columns:
                columns = self._columns[module]
                columns = np.append(columns, np.full(max(0, channels.max() + 1 - len(columns)), -1))[channels]
                scores[[position[root] for root in roots.tolist()]] = np.where(columns < 0, np.nan, all_scores[columns])
        if name in self.plan_.roots:
            # parts of a chunk that meet again reach a reader as one: the map keeps the root channel of one part only
            units = self.plan_.roots[name].units
            places = [(k, units[root]) for root, k in position.items() if root < len(units)]
            known = {unit: scores[k] for k, unit in places if not np.isnan(scores[k])}
            for k, unit in places:
                scores[k] = known.get(unit, np.nan)
        if np.isnan(scores).any():
            missing = [root for root, k in position.items() if np.isnan(scores[k])]
            raise UnsupportedModelError(
                f"{len(missing)} channels of {group[0].dep.target.name} were not scored, e.g. "
                f"{missing[:5]}; was it fitted with another pruner? Fit again with this one"
            )
        if name in self.plan_.heads:
            # their single channels must not take places in Torch-Pruning's ranking of all channels: it removes heads
            # only
            scores += np.ptp(all_scores) + 1
        return self._normalized(torch.from_numpy(scores), name)

    def _normalized(self, scores: Tensor, name: str) -> Tensor:
        if self.normalizer is None:
            return scores
        if self.normalizer == "gaussian":
            normalized = (scores - scores.mean()) / (scores.std(correction=0) + 1e-8)
        elif self.normalizer == "standarization":
            normalized = (scores - scores.min()) / (scores.max() - scores.min() + 1e-8)
        else:
            normalized = self.normalizer(scores)
        levels, position = torch.unique(scores, return_inverse=True)
        values = torch.zeros_like(levels)
        if normalized.shape == scores.shape:
            values[position] = normalized.to(values)  # channels that go as one share a score
        if normalized.shape != scores.shape or bool((values.diff() < 0).any()):
            raise InputError("the normalizer changed the order of the scores or their number; use normalizer=None")
        # Torch-Pruning takes every score up to a threshold: scaling must not make different scores equal, neither in a
        # layer nor between layers, which all end at 0 and 1.
        names = [group.name for group in self.plan_.groups]
        place = names.index(name) if name in names else 0
        return break_ties(values + 1e-12 * place)[position]

    def _ensure_fitted(self, graph: tp.DependencyGraph, caller: Caller) -> None:
        fitted = hasattr(self, "selection_")
        pruner = caller.pruner
        # quotas belong to one step of a pruner, even where the step before removed nothing
        same_step = pruner is None or not caller.in_step or (fitted and pruner.current_step == self.plan_.step)
        if fitted and same_step and self._graph is graph and self._fingerprint.matches(graph.model):
            return
        if self._model is None or self._loader is None:
            if not fitted:
                raise NotFittedError(
                    f"{type(self).__name__} has no scores yet; call importance.fit(pruner, loader) before "
                    "pruner.step(), or construct it with model= and loader="
                )
            raise StaleTableError(
                "the network has changed, or the pruner gone on, since the scores were computed; call "
                "importance.fit(pruner, loader) again before each pruner.step()"
            )
        if self._model is not graph.model:
            raise InputError("this importance was constructed with another model= than the pruner's; pass the same one")
        if pruner is None or (not caller.in_step and pruner.current_step >= pruner.iterative_steps):
            planned = partial(plan_of_graph, graph)
        else:
            planned = partial(plan_of_pruner, pruner, inside_step=caller.in_step)
        self._collect(graph, pruner, planned, self._loader, self._options)

    # Telling ----------------------------------------------------------------------------------------------

    def report(self, *, measure: bool = True) -> PruningReport:
        """What Torch-Pruning removed since the last fit, what it skipped, what that was predicted to do, and does.

        Args:
            measure: Run the network as it is now once more over what was scored, or an evenly spaced sample of it, for
                the true change of each group's loss. Of several processes, each measures its own share.

        Returns:
            The report; print it.

        Raises:
            NotFittedError: There was no fit.
        """
        if not hasattr(self, "selection_"):
            raise NotFittedError("nothing to report: the importance was not fitted")
        history = self._graph.pruning_history()
        removed = history[self._history_length :]
        refitted = self._refitted.issuperset(range(self._history_length, len(history)))
        unknown = self.normalizer is not None and self.plan_.shared_ranking
        rule = {} if unknown else self._rule
        measured = self._measured() if measure else "not measured: measure=False"
        report = pruning_report(self._table, self.selection_, self.plan_, removed, rule, measured, refitted=refitted)
        if removed and was_unlearned(self._graph.model):
            report = dataclasses.replace(report, flags=(*report.flags, UNLEARNED_BEFORE))
        return report

    def _note_refit(self, graph: tp.DependencyGraph, known: int) -> None:
        """Hear that what reads removed channels was refitted, but for the first ``known`` entries of the history."""
        if hasattr(self, "selection_") and graph is self._graph:
            self._refitted.update(range(known, len(graph.pruning_history())))

    def _measured(self) -> MeasuredChange | str:
        loader, options = self._what_was_read()
        if self._table is None:
            return ""
        if self._read_once:
            return "not measured: the loader is a stream or an iterator, which may give its batches only once"
        calling = {name: value for name, value in options.items() if name not in ("distributed", "folder")}
        try:
            return measured_change(self._graph.model, loader, self._table, **calling)
        except FairtrimError as error:
            return f"not measured: {error}"
        except Exception as error:  # whatever a network raises whose sizes aren't what it expects; the report says so
            return f"not measured: the network doesn't run as it is now ({type(error).__name__}: {error})"

    def _what_was_read(self) -> tuple[Iterable[Any], Mapping[str, Any]]:
        """The data of the last fit and how they were read, to be read again."""
        return self._read

    def negative_groups(self, pruner: tp.pruner.BasePruner) -> Iterator[tp.Group]:
        """Prune only what has a negative score, whatever the pruner's ratio.

        This is FairPrune's stopping rule (with joint selection: in its order, as long as each further channel lowers
        the criterion); for learned gates, exactly the closed ones. Every layer keeps a channel.

        Args:
            pruner: The pruner that the importance was fitted with.

        Yields:
            Torch-Pruning's groups; call ``group.prune()`` on each.

        Raises:
            NotFittedError: There are no scores, or they are out of date.
            UnsupportedModelError: The network would not run afterwards.
        """
        self._ensure_fitted(pruner.DG, Caller(pruner))
        negative = self._negative()
        sections = {group.name: self.plan_.columns.section(group.name) for group in self.plan_.groups}
        rule = {n: int(((negative >= s.start) & (negative < s.stop)).sum()) for n, s in sections.items()}

        def groups() -> Iterator[tp.Group]:
            for group in self.plan_.groups:
                section = sections[group.name]
                wanted = negative[(negative >= section.start) & (negative < section.stop)] - section.start
                root = self.plan_.roots[group.name]
                idxs = np.flatnonzero(np.isin(root.units, wanted.numpy())).tolist()
                if idxs:
                    yield pruner.DG.get_pruning_group(root.module, root.pruning_fn, idxs)

        if self._rehearsal is not None:
            self._rehearsal.try_groups(self.plan_, groups)
        self._rule = rule
        yield from groups()


def negative_values(selection: Selection, plan: PruningPlan) -> Tensor:
    """Columns of the channels whose own value is negative, floors respected.

    Args:
        selection: Of single channels; its ``change`` holds their values.
        plan: What Torch-Pruning was going to ask for.

    Returns:
        Columns of the plan's channels.
    """
    pool = Pool(tuple(plan.columns.sizes))
    free = ranked(selection.change, plan.columns, pools=[pool], floors=plan.floors)
    return negative_columns(plan.columns, free, plan.floors, joint=False)


def _check_options(options: Mapping[str, Any], importance: type[Any], *, constructing: bool) -> None:
    known = sorted(CollectOptions.__annotations__)
    of_constructor = sorted(
        name
        for cls in importance.__mro__
        if "__init__" in vars(cls)
        for name, parameter in inspect.signature(vars(cls)["__init__"]).parameters.items()
        if name != "self" and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    )
    choices = sorted({*known, *of_constructor}) if constructing else known
    for name in options:
        if name in known:
            continue
        if name in of_constructor:
            raise InputError(f"{name} belongs to the constructor: {importance.__name__}({name}=...)")
        raise InputError(f"unknown argument {name!r}{did_you_mean(name, choices)}; expected some of {choices}")
    for name, reason in importance.idle_options.items():
        if options.get(name) is not None:
            raise InputError(f"{name}= would have no effect on {importance.__name__}: {reason}")
    for name in ("loss_fn", "forward_fn", "output_transform"):
        if options.get(name) is not None and not callable(options[name]):
            raise InputError(f"{name}={options[name]!r}; expected a function")


def _columns_of_inputs(plan: PruningPlan) -> dict[str, npt.NDArray[np.int64]]:
    """For each consuming layer, the table's column of each of its input channels (−1: not in the table)."""
    columns: dict[str, npt.NDArray[np.int64]] = {}
    offset = 0
    for group in plan.groups:
        for place in group.places:
            if place.side == "input":
                known = columns.get(place.module, np.empty(0, dtype=np.int64))
                size = max(len(known), max(place.channels) + 1)
                extended = np.full(size, -1, dtype=np.int64)
                extended[: len(known)] = known
                extended[list(place.channels)] = offset + np.asarray(place.group_channels)
                columns[place.module] = extended
        offset += group.size
    return columns
