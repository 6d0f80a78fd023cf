"""What all post-processors share: a trained network and validation people in, a plain repaired network out."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from fairtrim.arguments import (
    RandomState,
    Renamed,
    drawn_seed,
    random_generator,
    renamed,
    require_network,
    require_number,
    require_random_state,
)
from fairtrim.data.batches import ForwardFunction
from fairtrim.data.kept_batches import KEPT_BYTES
from fairtrim.data.sensitive_groups import SensitiveNames, match_groups
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.data.validation_set import ValidationSet
from fairtrim.errors import InputError
from fairtrim.measures.group_counts import BIAS_MEASURES
from fairtrim.measures.objective import COUNTERFACTUAL_MEASURES, Objective
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import preserved_random_state
from fairtrim.registry import Described, Registry

from .candidates import Candidates
from .cross_fitting import OutOfFold
from .finishing import Parts, finished
from .repaired_network import Repair
from .working_copy import WorkingCopy

__all__ = ["POST_PROCESSORS", "PostProcessor"]


@dataclass(kw_only=True)
class PostProcessor(Described, ABC):
    """A method that repairs a trained network on a small validation set.

    One that says what it is can be found by name in ``fairtrim.POST_PROCESSORS``: with ``name``, ``does``, ``standing``
    and the other class variables of ``fairtrim.registry.Described``.

    ``get_params`` and ``set_params`` make it a citizen of scikit-learn's ``clone`` and ``GridSearchCV``.

    Args:
        measure: Bias measure, one of ``fairtrim.measures.group_counts.BIAS_MEASURES``, by Fairlearn's name or AIF360's;
            for more than two sensitive groups of the worst pair.
        epsilon: Bound on the absolute bias.
        margin: Safety margin: |bias| < epsilon − margin is asked for on the selection people.
        confidence: One-sided, that the bias is within the bound for others like them, in (0.5, 1). ``"auto"`` asks for
            0.95 as far as half of epsilon suffices for it, so that few people don't rule out every network. None takes
            the bias as it is measured, and keeps no network for being within the bound, as published.
        performance: ``balanced_accuracy``, ``accuracy`` or ``f1``.
        privileged: The privileged side; everybody else is then the unprivileged one, and biases have AIF360's sign
            (unprivileged − privileged). None compares every pair of groups.
        min_people: A sensitive group of fewer people for a rate is not compared with the bound, and flagged, as long as
            two others are. Without ``confidence`` all are compared.
        selection_share: Share of the people who only select, in (0, 1); the others are edited on. None edits on all,
            and selects on all by networks that were edited without them (cross-fitting), where the method allows it,
            else takes half. Methods whose edit sees no data select on all.
        max_seconds: Time budget; checked between candidates, in any thread. None for no limit.
        patience: Stop after so many candidates without a better one. None for no early stop.
        batch_size: Samples a forward pass.
        kept_bytes: How many bytes of the people's inputs stay where the network lies while candidates are tried, for
            each copy of it; by default 2 GiB, some 3,500 images of 224 pixels. What is beyond goes there batch by batch
            for every candidate.
        random_state: Seed, or a torch.Generator.

    Example:
        >>> from fairtrim import RandomPerturbation
        >>> method = RandomPerturbation(epsilon=0.1)
        >>> isinstance(method, PostProcessor), method.set_params(epsilon=0.2).get_params()["epsilon"]
        (True, 0.2)
    """

    measure: str = "demographic_parity_difference"
    epsilon: float = 0.05
    margin: float = 0.01
    performance: str = "balanced_accuracy"
    privileged: Any = None
    confidence: float | Literal["auto"] | None = "auto"
    min_people: int = 10
    selection_share: float | None = None
    max_seconds: float | None = None
    patience: int | None = None
    batch_size: int = 1024
    kept_bytes: float = KEPT_BYTES
    random_state: RandomState = 0

    fit = Renamed("repair")

    edits_on_data: ClassVar[bool] = True
    """Whether the edit sees people, who then must not be the ones it is judged by."""
    multiclass: ClassVar[bool] = False
    """Whether the method is defined for more than two classes."""

    def _folds(self) -> int:
        """Folds of cross-fitting; 0 if one candidate of another edit says nothing of the same one of this edit."""
        return 0

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if inspect.isfunction(edit := vars(cls).get("_edit")):
            signature = inspect.signature(edit)
            try:
                signature.bind("self", "working", "candidates")
            except TypeError:
                taken = ", ".join(list(signature.parameters)[1:])
                raise InputError(
                    f"{cls.__qualname__}._edit takes ({taken}); expected (working, candidates): see "
                    "docs/adding_a_post_processor.md"
                ) from None

    @abstractmethod
    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        """Change ``working.model`` in as many ways as the method knows, and offer each: ``candidates.offer()``."""

    def _compares_groups(self) -> bool:
        """Whether the measure compares sensitive groups, so that the people need them."""
        return True

    def _prepared(self, people: ValidationSet) -> ValidationSet:
        """The people with whatever else the method needs of them."""
        return people

    def _set_up(self, working: WorkingCopy, candidates: Candidates) -> None:
        """Change how candidates are judged, before the first one."""
        return

    def _note(self, repair: Repair) -> None:
        """Whatever is to be remembered of a repair that is done."""
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
        if self.selection_share is not None and not 0 < self.selection_share < 1:
            raise InputError(f"selection_share={self.selection_share}; expected a share in (0, 1), or None")
        require_number("min_people", self.min_people, at_least=1, whole=True)
        require_random_state(self.random_state)
        require_number("kept_bytes", self.kept_bytes, at_least=0)
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
        return Objective(self.measure, self.epsilon, self.margin, self.performance, self.confidence)

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

    @renamed(data="loader", selection_data="selection_loader")
    def repair(
        self,
        model: nn.Module,
        loader: Iterable[Any] | ValidationSet,
        *,
        selection_loader: Iterable[Any] | ValidationSet | None = None,
        sensitive_features: Any = None,
        selection_sensitive_features: Any = None,
        sensitive_names: SensitiveNames | None = None,
        forward_fn: ForwardFunction | None = None,
        output_transform: OutputTransform | None = None,
        inplace: bool = False,
        progress: bool = True,
    ) -> Repair:
        """Repair a trained network.

        Args:
            model: The trained network, which returns logits (N, 2) or one logit; (N, K) for methods that are defined
                for more classes. Untouched unless ``inplace``. Fine-tuning of all layers leaves frozen parameters as
                they are; the other methods edit what they name. BatchNorm keeps its statistics.
            loader: Validation people: a loader of (inputs, target, sensitive) or a ``ValidationSet``; best not the
                training data.
            selection_loader: Other people who select the candidate and the threshold; default a share of the first.
            sensitive_features: Of a loader of (inputs, target), one row a sample; see ``with_sensitive_features``.
            selection_sensitive_features: The same of the ``selection_loader``.
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
        require_network("model", model)
        generator = random_generator(self.random_state)
        loader = with_sensitive_features(loader, sensitive_features)
        selection_loader = with_sensitive_features(
            selection_loader, selection_sensitive_features, argument="selection_sensitive_features"
        )
        sources = [loader] if selection_loader is None else [loader, selection_loader]
        parts = self._parts(self._read(sources, sensitive_names, progress), generator)
        with preserved_random_state(), torch.inference_mode(False), torch.no_grad():
            network = ScoredNetwork(model, forward_fn, output_transform)

            def working_on(people: ValidationSet, generator: torch.Generator) -> WorkingCopy:
                return WorkingCopy(
                    network,
                    people,
                    generator=generator,
                    batch_size=self.batch_size,
                    kept_bytes=self.kept_bytes,
                    progress=progress,
                )

            own = generator if parts.folds is None else torch.Generator().manual_seed(drawn_seed(generator))
            working = working_on(parts.edit, own)
            self._check_parts(parts, working.n_classes)
            candidates = Candidates(
                working,
                parts.selection,
                self.objective(),
                min_people=self.min_people,
                max_seconds=self.max_seconds,
                patience=self.patience,
            )
            self._set_up(working, candidates)
            candidates.offer(step="as given")
            before = candidates.own_decisions()
            with torch.enable_grad():
                if parts.folds is not None:
                    folds = OutOfFold(parts.folds, parts.edit, working.n_classes)
                    self._cross_fit(folds, working_on, generator)
                    candidates.out_of_fold = folds
                self._edit(working, candidates)
            repair = finished(candidates, model, parts, before, inplace=inplace)
            self._note(repair)
            return repair

    def _cross_fit(
        self,
        folds: OutOfFold,
        working_on: Callable[[ValidationSet, torch.Generator], WorkingCopy],
        generator: torch.Generator,
    ) -> None:
        """Edit a copy for each fold, on everybody else."""
        budget = None if self.max_seconds is None else self.max_seconds / (folds.n_folds + 1)
        for fold in range(folds.n_folds):
            # draws of its own, so that a fold that is stopped early changes no other
            working = working_on(folds.rest(fold), torch.Generator().manual_seed(drawn_seed(generator)))
            working.share, working.stage = 1 - 1 / folds.n_folds, f", fold {fold + 1} of {folds.n_folds}"
            folds.run(working, self._edit, self.objective(), budget)

    def _read(
        self, sources: Sequence[Iterable[Any] | ValidationSet], names: SensitiveNames | None, progress: bool
    ) -> list[ValidationSet]:
        """The people of one loader, or of two."""
        if names is not None and all(isinstance(source, ValidationSet) for source in sources):
            raise InputError(
                f"sensitive_names={names!r} has no effect on a ValidationSet, which names its groups itself; "
                "expected it where the set is made: ValidationSet.from_loader(loader, sensitive_names=...)"
            )
        if len(sources) > 1:
            self._refuse_idle(["selection_share"], "selection_loader= says who selects; leave one of the two out")
        return [self._people(source, names, progress) for source in sources]

    def _people(
        self, source: Iterable[Any] | ValidationSet, names: SensitiveNames | None, progress: bool
    ) -> ValidationSet:
        """The people of a loader, with the sides that ``privileged`` names and whatever else the method needs."""
        if not isinstance(source, ValidationSet):
            source = ValidationSet.from_loader(
                source,
                sensitive_names=names,
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

    def _parts(self, people: Sequence[ValidationSet], generator: torch.Generator) -> Parts:
        """Who is edited on, and who selects."""
        edit, selection, folds = people[0], people[-1], None
        if len(people) > 1:
            if edit.groups != selection.groups:
                raise InputError(
                    f"the selection data have the sensitive groups {list(selection.groups)}; "
                    f"expected {list(edit.groups)}"
                )
            edit_rows, rows = (
                torch.arange(len(edit) if self.edits_on_data else 0, device="cpu"),
                torch.arange(len(selection), device="cpu"),
            )
        elif self.edits_on_data and self._folds() and self.selection_share is None:
            edit_rows = rows = torch.arange(len(edit), device="cpu")
            fewest = int(torch.unique(edit.target[edit.mass > 0], return_counts=True)[1].min())
            folds = edit.folds(max(2, min(self._folds(), fewest)), generator)
        elif self.edits_on_data:
            edit_rows, rows = edit.split(0.5 if self.selection_share is None else 1 - self.selection_share, generator)
            edit, selection = edit.take(edit_rows), edit.take(rows)
        else:
            edit_rows, rows = torch.empty(0, dtype=torch.int64, device="cpu"), torch.arange(len(edit), device="cpu")
        for part in (edit, selection):
            part.check_not_empty()
        return Parts(edit, selection, edit_rows, rows, folds)

    def _check_parts(self, parts: Parts, n_classes: int) -> None:
        """Refuse a network of too many classes, and people whom the measure can't be computed for."""
        if n_classes > 2 and not self.multiclass:
            able = sorted(method.__name__ for method in POST_PROCESSORS.known().values() if method.multiclass)
            raise InputError(
                f"the network has {n_classes} classes and {type(self).__name__} is defined for two; expected two, or "
                f"one of {able}"
            )
        for part in {id(part): part for part in (parts.edit, parts.selection)}.values():
            part.check(self.measure if self._compares_groups() else None, n_classes)
        if parts.folds is not None:
            for fold in range(int(parts.folds.max()) + 1):
                rest = (parts.folds != fold) & (parts.edit.mass > 0)
                parts.edit.take(rest.nonzero().squeeze(1)).check(None, n_classes)


POST_PROCESSORS = Registry(
    "post-processor",
    ("fairtrim.repair", "fairtrim.unlearning"),
    PostProcessor,
    "fairtrim.post_processors",
    default="parity-fine-tuning",
)
"""Post-processors by name, e.g. ``POST_PROCESSORS["parity-fine-tuning"]``; other packages' too, by the entry-point
group ``fairtrim.post_processors``."""
