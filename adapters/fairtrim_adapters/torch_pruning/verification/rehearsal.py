"""Prune on trial, run the network, and put everything back: what can't be seen on Torch-Pruning's graph shows here.

Torch-Pruning follows a trace of one pass. What the trace doesn't show (a frozen layer, a buffer with a number for each
channel, a branch on a size, a head that only training mode runs, an operation that mixes channels) breaks the network
after the channels have gone, or makes of it something else than the closed gates predict. So the channels go on trial
first: the network runs a real batch in eval and in training mode, and its scores are compared with those of the network
as it is with the gates of the same channels closed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fairtrim import ChannelGroup, UnsupportedModelError
from fairtrim.damage.channel_groups import channel_sites
from fairtrim.damage.gates import explicit_gates, hooked_gates
from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.precision import full_precision
from fairtrim.preservation import undisturbed
from fairtrim_adapters.torch_pruning.graph.dependency_groups import module_expression
from fairtrim_adapters.torch_pruning.graph.head_counts import tell_heads
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan, removed_units
from fairtrim_adapters.torch_pruning.graph.removing import remove_units
from fairtrim_adapters.torch_pruning.graph.undoing import Held, undone

from .kept_channels import channels_pass, copy_of_layer, norms_over_kept
from .permutation import permuted_channels
from .trial_run import Run, at_least_two, failing, same_shape

__all__ = ["Rehearsal", "left_out"]

SHARE_ON_TRIAL = 8
"""One channel in so many goes on trial, so that a norm over channels, whose scale changes, hides no other fault."""

TOLERATED = 4.0
"""What removal may differ from closed gates by, as a share of what closing does, where the order of the channels
doesn't matter to anything between the layers: all of it and more, in small layers, where a norm or a threshold that
Torch-Pruning doesn't know looks at fewer channels."""

TOLERATED_IN_ORDER = 0.1
"""The same where it does: neighbours of a channel may have a little to say (local response norm), and no more."""

DRAWS = 3


def left_out(names: Sequence[str], attempt: Callable[[Sequence[str]], None]) -> dict[str, str]:
    """Find the names with which ``attempt`` fails, by themselves or beside those before them, each with the reason.

    With the others it succeeds.

    Example:
        >>> def attempt(names):
        ...     if "b" in names:
        ...         raise UnsupportedModelError("b is odd")
        >>> left_out(["a", "b", "c"], attempt)
        {'b': 'b is odd'}
    """
    try:
        attempt(names)
    except UnsupportedModelError as error:
        if len(names) == 1:
            return {names[0]: str(error)}
    else:
        return {}
    reasons = {}
    for name in names:
        try:
            attempt([name])
        except UnsupportedModelError as error:
            reasons[name] = str(error)
    together: list[str] = []
    rest = [name for name in names if name not in reasons]
    try:
        if rest:
            attempt(rest)
    except UnsupportedModelError:
        for name in rest:
            try:
                attempt([*together, name])
            except UnsupportedModelError as error:
                reasons[name] = str(error)
            else:
                together.append(name)
    return reasons


class Rehearsal:
    """Trials on one network with one batch; the network and the pruner are as before after each.

    A batch of one sample is taken twice, which norms over a batch want in training mode. ``after_step`` is what the
    caller's script does to the network after each step.
    """

    def __init__(
        self,
        graph: tp.DependencyGraph,
        pruner: tp.pruner.BasePruner | None,
        batch: Batch,
        network: ScoredNetwork,
        after_step: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        self.graph, self.pruner, self.model = graph, pruner, graph.model
        self.batch = at_least_two(batch)
        self.network, self._after_step = network, after_step
        modules = list(self.model.named_modules(remove_duplicate=False))
        self._through = {name for name, module in modules if channels_pass(graph, module)}
        self._held = Held(graph, pruner)
        frozen = [n for n, m in modules if any(not p.requires_grad for p in m.parameters(recurse=False))]
        self._cause = (
            f"Torch-Pruning doesn't see what is frozen: let {frozen[:5]} require gradients while the pruner is made"
            if frozen
            else ""
        )
        self._dense = self._run(watch=True)
        self._training: Run | None = None
        self._same = False
        self._moving: dict[str, set[int]] = {}  # channels that have a say in the scores: others prove nothing
        self.fails_in_training = ""
        try:
            self._training = self._run(training=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a network may raise: then its training mode can't be looked at
            self.fails_in_training = f"{type(error).__name__}: {error}"

    # Before anything goes ------------------------------------------------------------------------------------

    @property
    def only_in_training(self) -> list[str]:
        """Layers with parameters that training mode runs and eval mode doesn't."""
        if self._training is None:
            return []
        extra = self._training.reached - self._dense.reached
        modules = dict(self.model.named_modules())
        return sorted(n for n in extra if n in modules and any(True for _ in modules[n].parameters(recurse=False)))

    def check_gates(self, plan: PruningPlan, names: Collection[str]) -> dict[str, list[str]]:
        """See whether the scores depend on the channels of some groups, where these are consumed.

        Gives for each group the layers that read its channels without having a part in the scores.
        """
        groups = [group for group in plan.groups if group.name in names]
        n_columns = sum(group.size for group in groups)
        sites = channel_sites(self.model, groups)
        with undisturbed(self.model), torch.enable_grad(), hooked_gates(self.model, sites, n_columns) as gates:
            gates.start(len(self.batch))
            scores = self.network.scores(self.batch, positions=True)
            direction = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
            slopes = gates.gradients(scores, direction.expand_as(scores), keep_graph=False).abs().sum(0).cpu()
        for group, of_group in zip(groups, torch.split(slopes, [group.size for group in groups]), strict=True):
            self._moving[group.name] = set(of_group.nonzero().flatten().tolist())
        unread: dict[str, list[str]] = {}
        for group in groups:
            connected = [(place.module, place.side) in gates.connected for place in group.places]
            if not any(connected):
                raise UnsupportedModelError(
                    f"the scores don't depend on {sorted({place.module for place in group.places})}, which consume the "
                    f"channels of {group.name!r}, in a way that can be differentiated; expected layers that are called "
                    "as modules, not through their weights, and no detach() behind them. If these layers serve another "
                    "output, add them to ignored_layers"
                )
            unread[group.name] = sorted(
                {p.module for p, there in zip(group.places, connected, strict=True) if not there and p.side == "input"}
            )
        return {name: readers for name, readers in unread.items() if readers}

    # On trial ------------------------------------------------------------------------------------------------

    def groups_that_fail(
        self, plan: PruningPlan, names: Sequence[str], attend: Callable[[], None] = lambda: None
    ) -> dict[str, str]:
        """Remove one channel in eight of some groups on trial, all at once and, where that goes wrong, one by one.

        Gives the groups without whose channels the network doesn't run, or is another one than with closed gates, each
        with the reason. ``attend`` is called before each trial, as other processes may wait.
        """
        assert self._dense.scores is not None
        if not bool(torch.isfinite(self._dense.scores).all()):
            return {}  # which is refused when it is scored
        names = [name for name in names if name not in plan.untried]
        if not names:
            return {}
        self._same = True

        def attempt(some: Sequence[str]) -> None:
            attend()
            far, moved, noise = self._trial(plan, self._drawn(plan, some))
            self._same = far <= noise < moved

        reasons = left_out(names, attempt)
        rest = [name for name in names if name not in reasons]
        in_order = [] if self._any_order(plan, rest) else [name for name in rest if not self._any_order(plan, [name])]
        for name in in_order if self._same else rest:
            attend()
            draws, tolerated = (DRAWS, TOLERATED_IN_ORDER) if name in in_order else (1, TOLERATED)
            if reason := self._mixed(plan, name, draws, tolerated):
                reasons[name] = reason
        return reasons

    def _mixed(self, plan: PruningPlan, name: str, draws: int, tolerated: float) -> str:
        """Why removal of single channels of a group is not what closing their gates is, or nothing."""
        missed = effect = 0.0
        for draw in range(draws):
            far, moved, noise = self._trial(plan, self._drawn(plan, [name], draw), training=False)
            missed, effect = missed + (far if far > noise else 0.0) ** 2, effect + moved**2
        if missed <= tolerated**2 * effect:
            return ""
        return self._random_in_eval_mode() or (
            "without some of its channels the network is another one than with their gates closed (its scores differ "
            f"by {missed**0.5:.2g} where closing moves them by {effect**0.5:.2g}): an operation between the layers "
            "mixes channels (a Fourier transform, a cumulative sum, a product with a matrix), a branch looks at sizes, "
            "or weights are used a second time. Add the layers that produce the channels to ignored_layers, e.g. "
            f"{module_expression(name)}"
        )

    def _any_order(self, plan: PruningPlan, names: Collection[str]) -> bool:
        """Whether all that happens to the channels of some groups treats them alike, as far as that can be seen."""
        groups = [group for group in plan.groups if group.name in names and plan.producers.get(group.name)]
        with undisturbed(self.model), torch.enable_grad(), ExitStack() as stack:
            for group in groups:
                stack.enter_context(permuted_channels(self.graph, plan, group))
            scores = self._scores()
        assert self._dense.scores is not None
        far, size = _norms(scores - self._dense.scores, scores)
        return far <= self._noise(size)

    def _drawn(self, plan: PruningPlan, names: Collection[str], draw: int = 0) -> dict[str, set[int]]:
        removed = {
            group.name: _on_trial(group, plan, draw, self._moving.get(group.name, set()))
            for group in plan.groups
            if group.name in names
        }
        return {name: units for name, units in removed.items() if units}

    def _trial(
        self, plan: PruningPlan, removed: Mapping[str, Collection[int]], *, training: bool = True
    ) -> tuple[float, float, float]:
        """How far the pruned network is from closed gates, how far these move the scores, and what rounding may do."""
        if not removed:
            return 0.0, 0.0, 0.0
        with undone(self._held):
            with failing(self._removing(removed), self._cause):
                for name, units in removed.items():
                    remove_units(self.graph, self.pruner, plan, name, units)
            scores, norms = self._finished(plan, removed, training=training)
        return self._compared(plan, removed, scores, norms)

    def try_step(self, plan: PruningPlan, importance: tp.importance.Importance) -> None:
        """Take the pruner's next step on trial with an importance, whether the pruner has it yet or not."""
        pruner = self.pruner
        assert pruner is not None

        def step() -> None:
            pruner.importance = importance
            pruner.current_step = plan.step - 1
            pruner.step()

        self._try(plan, step)

    def try_groups(self, plan: PruningPlan, groups: Callable[[], Iterable[tp.Group]]) -> None:
        """Remove groups of Torch-Pruning on trial.

        They come one by one, for each depends on what has gone before. Refused: a network that doesn't run afterwards,
        or is another one than with closed gates where fewer channels could go.
        """

        def remove() -> None:
            for group in groups():
                group.prune()

        self._try(plan, remove)

    def _try(self, plan: PruningPlan, remove: Callable[[], None]) -> None:
        known = len(self.graph.pruning_history())
        with undone(self._held):
            remove()
            removed = removed_units(plan, self.graph.pruning_history()[known:])
            scores, norms = self._finished(plan, removed)
        far, moved, noise = self._compared(plan, removed, scores, norms) if removed else (0.0, 0.0, 0.0)
        if self._same and far > noise and far > TOLERATED * moved:
            raise UnsupportedModelError(
                f"{self._removing(removed)} the network is another one than with their gates closed (its scores differ "
                f"by {far:.2g} where closing moves them by {moved:.2g}), which was not so without fewer of them: it "
                "may branch on their number. Lower the ratio, or add these layers to ignored_layers"
            )

    def take_step(self) -> None:
        """Take the pruner's next step for good, with any importance; where the network doesn't run, put all back."""
        pruner = self.pruner
        assert pruner is not None
        known = len(self.graph.pruning_history())
        with undone(self._held, only_on_error=True):
            pruner.step()
            names = {str(entry[0]) for entry in self.graph.pruning_history()[known:]}
            without = f"without the channels that a step took from {', '.join(sorted(names)) or 'no layer'}"
            with failing(without):
                self._finish()
            self._run_in_both_modes(without)

    # The parts -----------------------------------------------------------------------------------------------

    def _run(self, *, training: bool = False, watch: bool = False) -> Run:
        """One pass, with a graph as when channels are scored: a network may branch on that."""
        reached: set[str] = set()
        precisions: set[torch.dtype] = set()

        def note(module: nn.Module, args: Any, output: Any) -> None:
            leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
            precisions.update(leaf.dtype for leaf in leaves)

        with undisturbed(self.model, training=training), torch.enable_grad(), full_precision(), ExitStack() as stack:
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_pre_hook(lambda *_, name=name: reached.add(name)).remove)
                if watch:
                    stack.callback(module.register_forward_hook(note).remove)
            output = self.network.output(self.batch.inputs, index=self.batch.index)
        try:
            given = replace(self.network, forward_fn=lambda *_: output)
            found = given.scores(self.batch, positions=True).detach()
        except Exception:  # an output of training mode may have another form, in which nobody has said where scores are
            if not training:
                raise
            found = None
        if found is not None and found.is_floating_point():
            precisions.add(found.dtype)
        return Run(found, frozenset(reached), max((torch.finfo(dtype).eps for dtype in precisions), default=0.0))

    def _scores(self) -> Tensor:
        with full_precision():
            return self.network.scores(self.batch, positions=True).detach()

    def _finish(self) -> None:
        """Do to the pruned network what has to be done before it can run."""
        if self._after_step is not None:
            self._after_step(self.model)
        elif self.pruner is not None:
            tell_heads(self.model, self.pruner)

    def _finished(
        self, plan: PruningPlan, removed: Mapping[str, Collection[int]], *, training: bool = True
    ) -> tuple[Tensor, dict[str, Any]]:
        """Do what has to be done after removal, and run the network; buffers and flags that this touches come back."""
        with undisturbed(self.model):
            with failing(self._removing(removed), self._cause):
                self._finish()
            return self._run_pruned(plan, removed, training=training)

    def _run_pruned(
        self, plan: PruningPlan, removed: Mapping[str, Collection[int]], *, training: bool = True
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run the pruned network: its scores, and copies of its norms."""
        scores = self._run_in_both_modes(self._removing(removed), training=training)
        modules = dict(self.model.named_modules(remove_duplicate=False))
        norms = {
            place.module: copy_of_layer(modules[place.module])
            for name in removed
            for place in plan.producers.get(name, ())
            if place.module in self._through
        }
        return scores, norms

    def _run_in_both_modes(self, without: str, *, training: bool = True) -> Tensor:
        """Run the pruned network in eval and in training mode; its scores."""
        with failing(f"{without}, in eval mode,", self._cause):
            pruned = self._run()
        same_shape(f"{without}, in eval mode,", pruned, self._dense)
        if self._training is not None and training:
            extra = self.only_in_training
            where = f"{without}, in training mode," + (
                f" which also runs {extra}, layers that Torch-Pruning didn't see," if extra else ""
            )
            unseen = "Let eval mode run these layers, too, while the pruner is made and channels are scored"
            with failing(where, unseen if extra else self._cause):
                trained = self._run(training=True)
            same_shape(where, trained, self._training)
        assert pruned.scores is not None
        return pruned.scores

    def _compared(
        self,
        plan: PruningPlan,
        removed: Mapping[str, Collection[int]],
        pruned: Tensor,
        norms: Mapping[str, nn.Module],
    ) -> tuple[float, float, float]:
        """How far the pruned network is from closed gates, how far these move the scores, and what rounding may do."""
        groups = [group for group in plan.groups if group.name in removed]
        gates = {group.name: torch.ones(group.size, dtype=torch.float64, device="cpu") for group in groups}
        for name, units in removed.items():
            gates[name][list(units)] = 0
        with (
            undisturbed(self.model),
            torch.enable_grad(),
            explicit_gates(self.model, groups, gates),
            norms_over_kept(self.model, plan, removed, norms),
        ):
            closed = self._scores()
        assert self._dense.scores is not None
        far, moved, size = _norms(pruned - closed, closed - self._dense.scores, pruned)
        return far, moved, self._noise(size)

    def _noise(self, size: float) -> float:
        """What rounding may do to scores of some norm: sums over fewer terms, through many layers."""
        return float(self._dense.precision**0.5) * max(size, torch.finfo(torch.float32).tiny)

    def _random_in_eval_mode(self) -> str:
        """Whether two passes of the network as it is differ."""
        first, second = self._dense.scores, None
        with undisturbed(self.model), torch.enable_grad():
            torch.rand(1, device="cpu"), torch.rand(1, device=self.network.device)
            second = self._scores()
        if first is not None and torch.equal(first, second):
            return ""
        return (
            "the network's scores in eval mode are drawn at random, so that it can't be seen whether the right "
            "channels would go; expected a network that gives the same scores for the same inputs (a dropout that "
            "ignores eval mode?)"
        )

    @staticmethod
    def _removing(removed: Mapping[str, Collection[int]]) -> str:
        names = ", ".join(repr(name) for name in removed)
        number = sum(map(len, removed.values()))
        return f"without {number} channel{'s' * (number != 1)} of {names or 'any layer'}"


def _norms(*tensors: Tensor) -> list[float]:
    """Their norms, in one wait; in float64 on the CPU, which other devices may lack."""
    dtype = torch.float64 if tensors[0].device.type == "cpu" else torch.float32
    found: list[float] = torch.stack([torch.linalg.vector_norm(tensor.to(dtype)) for tensor in tensors]).tolist()
    return found


def _on_trial(group: ChannelGroup, plan: PruningPlan, draw: int, moving: Collection[int]) -> set[int]:
    """Some channels of a group, first those that move the scores, so that every part behind a split keeps one."""
    wanted = max(1, group.size // SHARE_ON_TRIAL)
    everything = set(range(group.size))
    floors = [(set(f.channels or everything), f.minimum) for f in plan.floors if f.layer == group.name]
    removed: set[int] = set()
    for unit in sorted(
        everything, key=lambda unit: (unit not in moving, ((unit + 1) * 0.6180339887 + draw * 0.4142135624) % 1)
    ):
        left = [len(part - removed - {unit}) >= minimum for part, minimum in [(everything, 1), *floors]]
        if len(removed) < wanted and all(left):
            removed.add(unit)
    return removed
