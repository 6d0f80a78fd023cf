"""What all post-processors share: a trained network and validation people in, a plain repaired network out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from fairtrim.data.batches import ForwardFunction
from fairtrim.data.sensitive_groups import SensitiveNames, match_groups
from fairtrim.data.validation_set import ValidationSet
from fairtrim.errors import InputError
from fairtrim.measures.group_counts import BIAS_MEASURES
from fairtrim.measures.objective import COUNTERFACTUAL_MEASURES, Objective
from fairtrim.preservation import preserved_random_state

from .repaired_network import Repair, edited
from .working_copy import Workspace

__all__ = ["PostProcessor"]


@dataclass(kw_only=True)
class PostProcessor(ABC):
    """A method that repairs a trained network on a small validation set.

    ``get_params`` and ``set_params`` make it a citizen of scikit-learn's ``clone`` and ``GridSearchCV``.

    Args:
        measure: Bias measure, one of ``fairtrim.measures.group_counts.BIAS_MEASURES``; for more than two sensitive
            groups of the worst pair.
        epsilon: Bound on the absolute bias.
        margin: Safety margin: |bias| < epsilon − margin is asked for on the selection people.
        performance: ``balanced_accuracy``, ``accuracy`` or ``f1``.
        privileged: The privileged side; everybody else is then the unprivileged one, and biases have AIF360's sign
            (unprivileged − privileged). None compares every pair of groups.
        selection_share: Share of the people who only select, in (0, 1); the others are edited on. Methods whose edit
            sees no data select on all of them.
        max_seconds: Time budget; checked between candidates, in any thread. None for no limit.
        patience: Stop after so many candidates without a better one. None for no early stop.
        batch_size: Samples a forward pass.
        random_state: Seed, or a torch.Generator.

    Example:
        >>> from fairtrim import RandomPerturbation
        >>> method = RandomPerturbation(epsilon=0.1)
        >>> isinstance(method, PostProcessor), method.set_params(epsilon=0.2).get_params()["epsilon"]
        (True, 0.2)
    """

    measure: str = "statistical_parity_difference"
    epsilon: float = 0.05
    margin: float = 0.01
    performance: str = "balanced_accuracy"
    privileged: Any = None
    selection_share: float = 0.5
    max_seconds: float | None = None
    patience: int | None = None
    batch_size: int = 1024
    random_state: int | torch.Generator = 0

    edits_on_data: ClassVar[bool] = True
    """Whether the edit sees people, who then must not be the ones it is judged by."""
    multiclass: ClassVar[bool] = False
    """Whether the method is defined for more than two classes."""

    @abstractmethod
    def _edit(self, workspace: Workspace) -> None:
        """Change ``workspace.model`` in as many ways as the method knows, and offer each."""

    def _compares_groups(self) -> bool:
        """Whether the measure compares sensitive groups, so that the people need them."""
        return True

    def _prepared(self, people: ValidationSet) -> ValidationSet:
        """The people with whatever else the method needs of them."""
        return people

    def _set_up(self, workspace: Workspace) -> None:
        """Change how the workspace judges, before the first candidate."""
        return

    def check(self) -> None:
        """Refuse settings that can't work.

        Raises:
            InputError: One is out of range.
        """
        self.objective()
        if self.measure in COUNTERFACTUAL_MEASURES and self._compares_groups():
            raise InputError(
                f"measure={self.measure!r} is of counterfactual pairs; {type(self).__name__} expects one of "
                f"{list(BIAS_MEASURES)}: use CounterfactualUnlearning"
            )
        if not 0 < self.selection_share < 1:
            raise InputError(f"selection_share={self.selection_share}; expected a share in (0, 1)")
        if not isinstance(self.random_state, int | np.integer | torch.Generator):
            raise InputError(f"random_state={self.random_state!r}; expected a whole number or a torch.Generator")
        for name in ("max_seconds", "patience", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(
                    f"{name}={value}; expected a positive number" + (" or None" if name != "batch_size" else "")
                )

    def __post_init__(self) -> None:
        self.check()

    def _refuse_idle(self, names: Sequence[str], reason: str) -> None:
        """Refuse settings that somebody chose and that nothing would read."""
        defaults = {entry.name: entry.default for entry in fields(self)}
        chosen = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) != defaults[name]]
        if chosen:
            raise InputError(f"{' and '.join(chosen)} would have no effect: {reason}")

    def objective(self) -> Objective:
        """The objective that these settings describe."""
        return Objective(self.measure, self.epsilon, self.margin, self.performance)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Settings by name, as scikit-learn asks for them.

        Args:
            deep: Ignored; settings are plain values.

        Returns:
            The settings.
        """
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def set_params(self, **settings: Any) -> Self:
        """Change settings.

        Args:
            settings: By name.

        Returns:
            Itself.

        Raises:
            InputError: There is no such setting, or it is out of range; nothing is changed then.
        """
        known = self.get_params()
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise InputError(f"{type(self).__name__} has no setting {unknown}; expected some of {sorted(known)}")
        type(self)(**{**known, **settings})  # refused here before anything changes
        for name, value in settings.items():
            setattr(self, name, value)
        return self

    def fit(
        self,
        model: nn.Module,
        data: Iterable[Any] | ValidationSet,
        *,
        selection_data: Iterable[Any] | ValidationSet | None = None,
        sensitive_names: SensitiveNames | None = None,
        forward_fn: ForwardFunction | None = None,
        output_transform: Callable[[Any], Tensor] | None = None,
        inplace: bool = False,
        progress: bool = True,
    ) -> Repair:
        """Repair a trained network.

        Args:
            model: The trained network, which returns logits (N, 2) or one logit; (N, K) for methods that are defined
                for more classes. Untouched unless ``inplace``. Fine-tuning of all layers leaves frozen parameters as
                they are; the other methods edit what they name. BatchNorm keeps its statistics.
            data: Validation people: a loader of (inputs, target, sensitive) or a ``ValidationSet``; best not the
                training data.
            selection_data: Other people who select the candidate and the threshold; default a share of ``data``.
            sensitive_names: Names of the sensitive features and of their values, for loaders; a ``ValidationSet`` has
                its own.
            forward_fn: How to call the network.
            output_transform: How to find the scores in what it returns.
            inplace: Write the repair into ``model`` itself, at the very end.
            progress: Show progress bars.

        Returns:
            The repair.

        Raises:
            InputError: The people or settings don't allow it: a group or label is missing, scores are not finite, the
                method is not defined for so many classes. The network is as before.
            UnsupportedModelError: The network has no linear head with a bias. The network is as before.
        """
        self.check()
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        sources = [data] if selection_data is None else [data, selection_data]
        if sensitive_names is not None and all(isinstance(source, ValidationSet) for source in sources):
            raise InputError(
                f"sensitive_names={sensitive_names!r} has no effect on a ValidationSet, which names its groups itself; "
                "expected it where the set is made: ValidationSet.from_loader(loader, sensitive_names=...)"
            )

        def people(source: Iterable[Any] | ValidationSet) -> ValidationSet:
            if not isinstance(source, ValidationSet):
                source = ValidationSet.from_loader(
                    source,
                    sensitive_names=sensitive_names,
                    privileged=self.privileged,
                    require_sensitive=self._compares_groups(),
                    progress=progress,
                )
            elif self.privileged is not None:
                composite = source.sides and source.groups[1] == "privileged"  # of several values, whose names are gone
                if (
                    source.sides
                    and not composite
                    and match_groups(self.privileged, source.groups, None, "privileged") != [1]
                ):
                    raise InputError(
                        f"privileged={self.privileged!r}, but in the data the privileged side is {source.groups[1]!r}; "
                        "expected the same, or privileged=None"
                    )
                source = source if source.sides else source.with_sides(self.privileged)
            if len(source) == 0:
                raise InputError("the validation data hold nobody; expected people of every sensitive group and label")
            return self._prepared(source)

        if selection_data is not None:
            self._refuse_idle(["selection_share"], "selection_data= says who selects; leave one of the two out")
        generator = self._generator()
        everyone = people(data)
        if selection_data is not None:
            edit, selection = everyone, people(selection_data)
            if edit.groups != selection.groups:
                raise InputError(
                    f"the selection data have the sensitive groups {list(selection.groups)}; "
                    f"expected {list(edit.groups)}"
                )
            rows = torch.arange(len(edit) if self.edits_on_data else 0), torch.arange(len(selection))
        elif self.edits_on_data:
            rows = everyone.split(1 - self.selection_share, generator)
            edit, selection = everyone.take(rows[0]), everyone.take(rows[1])
        else:
            edit = selection = everyone
            rows = torch.empty(0, dtype=torch.int64), torch.arange(len(everyone))
        for part in (edit, selection):
            part.check_not_empty()
        with preserved_random_state(), torch.inference_mode(False), torch.no_grad():
            workspace = Workspace(
                model,
                edit,
                selection,
                self.objective(),
                generator=generator,
                forward_fn=forward_fn,
                output_transform=output_transform,
                batch_size=self.batch_size,
                max_seconds=self.max_seconds,
                patience=self.patience,
                progress=progress,
            )
            if workspace.n_classes > 2 and not self.multiclass:
                raise InputError(
                    f"the network has {workspace.n_classes} classes and {type(self).__name__} is defined for two; "
                    f"expected two, or one of {_multiclass_methods(PostProcessor)}"
                )
            for part in {id(edit): edit, id(selection): selection}.values():
                part.check(self.measure if self._compares_groups() else None, workspace.n_classes)
            self._set_up(workspace)
            workspace.offer(step="as given")
            before = workspace.own_decisions()
            with torch.enable_grad():
                self._edit(workspace)
            return _finished(workspace, model, rows, before, inplace=inplace)

    def _generator(self) -> torch.Generator:
        if isinstance(self.random_state, torch.Generator):
            return self.random_state
        return torch.Generator().manual_seed(int(self.random_state))


def _multiclass_methods(base: Any) -> list[str]:
    found = []
    for method in base.__subclasses__():
        found += ([method.__name__] if method.multiclass else []) + _multiclass_methods(method)
    return sorted(found)


def _finished(
    workspace: Workspace,
    model: nn.Module,
    rows: tuple[Tensor, Tensor],
    before: tuple[float, float, bool],
    *,
    inplace: bool,
) -> Repair:
    point = workspace.chosen
    assert point is not None
    workspace.restore()
    template, head = workspace.model, workspace.head.name
    for original, copied in zip(model.modules(), template.modules(), strict=True):
        copied.training = original.training
    for mine, theirs in zip(template.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
        mine.grad = None
    repaired = edited(template, head, workspace.states[point.candidate], point.margin_threshold)
    bias, performance, constant = workspace.own_decisions(repaired)
    within = abs(bias) < workspace.objective.bound and not constant
    flags = list(workspace.flags)
    if constant:
        flags.append("constant classifier: everybody gets the same label, gaps mean nothing")
    elif not within:
        what = f"|{workspace.objective.measure}| = {abs(bias):.4f} on the selection people"
        flags.append(f"bound not met: {what}; asked for: below {workspace.objective.bound:g}")
    floor = workspace.performance_floor
    if floor is not None and performance < floor - 1e-9:
        flags.append(f"no candidate has {workspace.objective.performance} of at least {floor:g}")
    if inplace:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in repaired.named_parameters():
                if not torch.equal(value, parameters[name]):
                    parameters[name].copy_(value)
    return Repair(
        model=model if inplace else repaired,
        chosen=point,
        within_bound=within,
        bias=bias,
        performance=performance,
        bias_before=before[0],
        performance_before=before[1],
        flags=tuple(flags),
        history=tuple(workspace.history),
        trade_off=workspace.front(),
        edit_rows=rows[0],
        selection_rows=rows[1],
        objective=workspace.objective,
        _states=workspace.states,
        _template=template,
        _head=head,
    )
