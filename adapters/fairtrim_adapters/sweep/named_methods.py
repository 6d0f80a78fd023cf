"""Criteria and post-processors by name, with their settings: ``worst-group:selection=single``."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch_pruning as tp

from fairtrim import POST_PROCESSORS, InputError, PostProcessor
from fairtrim.arguments import did_you_mean
from fairtrim.registry import Described, Registry, what_it_is
from fairtrim_adapters.torch_pruning.importances.registry import IMPORTANCES
from fairtrim_adapters.torch_pruning.importances.torch_pruning_importances import (
    TORCH_PRUNING_CRITERIA,
    TorchPruningCriterion,
)

__all__ = [
    "DEFAULT_CRITERIA",
    "POST_PROCESSORS",
    "CriterionFactory",
    "by_label",
    "criteria_by_label",
    "described_class",
    "parse_named",
    "post_processors_by_label",
    "what_methods_do",
]

DEFAULT_CRITERIA = ("magnitude", "mean-damage", "worst-group")
"""What a sweep compares unless told otherwise."""

CriterionFactory = Callable[[int], tp.importance.Importance]
"""Makes a new importance for a run, from its seed."""

_SEED_OF_THE_RUN = (
    "random_state is the seed of the run; set that in its place, with seeds= of the sweep (--seeds; for prune and "
    "repair --seed)"
)


def parse_named(text: str) -> tuple[str, dict[str, Any]]:
    """Split a name from its settings.

    Args:
        text: ``name`` or ``name:setting=value,setting=value``; values are JSON where they can be read as such, else
            words.

    Returns:
        The name, and the settings.

    Raises:
        InputError: A setting has no value.

    Example:
        >>> parse_named("group-saliency:privileged=Male,beta=0.3")
        ('group-saliency', {'privileged': 'Male', 'beta': 0.3})
    """
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{text!r}: {part!r} is no setting; expected name:setting=value,setting=value")
        try:
            settings[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            settings[key.strip()] = value.strip()
    return name.strip(), settings


_FROM_PYTHON = {"mined": "mined samples", "pairs": "pairs of sentences"}
"""Arguments of constructors that no text can give."""


def _checked(kind: str, text: str, cls: type[Any], settings: Mapping[str, Any]) -> None:
    """Refuse settings that the constructor doesn't have, and those that are missing."""
    parameters = inspect.signature(cls).parameters
    known = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    unknown = [name for name in settings if name not in known and len(known) == len(parameters)]
    if unknown:
        meant = did_you_mean(unknown[0], known)
        raise InputError(f"{kind} {text!r} has no setting {unknown[0]!r}{meant}; expected some of {known}")
    missing = [name for name in known if _required(parameters[name]) and name not in settings]
    given = next((name for name in missing if name in _FROM_PYTHON), None)
    if given is not None:
        raise InputError(
            f"{kind} {text!r} needs the {_FROM_PYTHON[given]}, which a name can't give; in Python pass a function: "
            f"criteria={{{text!r}: lambda: {cls.__name__}({given})}}"
        )
    if missing:
        raise InputError(f"{kind} {text!r} needs {missing[0]}; write '{text.partition(':')[0]}:{missing[0]}=...'")


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _made(kind: str, text: str, cls: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    try:
        return cls(**settings)
    except TypeError as error:  # a word where a number belongs
        raise InputError(
            f"{kind} {text!r} has a setting of the wrong type ({error}); expected what {getattr(cls, '__name__', cls)} "
            "takes, e.g. a number without quotes"
        ) from error


def _found(kind: str, text: str, name: str, choices: Sequence[str]) -> None:
    if name not in choices:
        meant = did_you_mean(name.replace("_", "-"), choices)
        raise InputError(f"{kind} {text!r} is unknown{meant}; expected one of {sorted(set(choices))}")


def by_label(named: str | Sequence[str] | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What each label stands for; names are their own labels.

    Args:
        named: A name, names, a dict of labels and whatever they stand for, or None.

    Returns:
        The dict.

    Example:
        >>> by_label("magnitude"), by_label({"mine": "magnitude"})
        ({'magnitude': 'magnitude'}, {'mine': 'magnitude'})
    """
    if isinstance(named, Mapping):
        return named
    return {text: text for text in ([named] if isinstance(named, str) else named or ())}


def described_class(kind: str, name: str) -> type[Described] | TorchPruningCriterion | None:
    """The class that says what a criterion or a post-processor is.

    Args:
        kind: ``criterion`` or ``post-processor``.
        name: Its name, without settings.

    Returns:
        The class; None for a name that nothing has.

    Example:
        >>> described_class("criterion", "magnitude").standing
        'published'
    """
    return next((registry[name] for registry in _registries(kind) if name in registry), None)


def what_methods_do(kind: str) -> dict[str, str]:
    """What each method does, for a help text.

    Args:
        kind: ``criterion`` or ``post-processor``.

    Returns:
        A line by name, Torch-Pruning's first: what it does, and when to take it; the default's is marked. Those that
        other packages announce say only that, for they aren't loaded for it.

    Example:
        >>> what_methods_do("criterion")["magnitude"].partition(". ")[0]
        'removes channels of small weights first; looks at no data'
    """
    found: dict[str, str] = {}
    for registry in _registries(kind):
        if isinstance(registry, Registry):
            known = registry.known()
            for name, line in registry.lines().items():
                found.setdefault(name, line + (_needs(known[name]) if name in known else ""))
        else:
            found |= {name: what_it_is(method) for name, method in registry.items()}
    return found


def _needs(method: type[Any]) -> str:
    parameters = inspect.signature(method).parameters
    needed = [what for name, what in _FROM_PYTHON.items() if name in parameters and _required(parameters[name])]
    return "".join(f" (needs {what}: from Python)" for what in needed)


def _registries(kind: str) -> tuple[Mapping[str, Any], ...]:
    return (TORCH_PRUNING_CRITERIA, IMPORTANCES) if kind == "criterion" else (POST_PROCESSORS,)


def _named_criterion(text: str) -> CriterionFactory:
    name, settings = parse_named(text)
    _found("criterion", text, name, [*TORCH_PRUNING_CRITERIA, *IMPORTANCES])
    if name in TORCH_PRUNING_CRITERIA:
        if "random_state" in settings:
            raise InputError(f"criterion {text!r}: {_SEED_OF_THE_RUN}")
        if settings:
            raise InputError(f"criterion {text!r}: {name!r} is Torch-Pruning's and takes no settings here")
        if name in IMPORTANCES:
            warnings.warn(
                f"criterion {name!r} is Torch-Pruning's here, not the one of that name in IMPORTANCES; for that one "
                f"pass a function: criteria={{'other': IMPORTANCES[{name!r}]}}",
                stacklevel=4,
            )
        return TORCH_PRUNING_CRITERIA[name].importance
    cls = IMPORTANCES[name]
    _checked("criterion", text, cls, settings)
    _made("criterion", text, cls, settings)  # refused here, before anything runs

    def make(seed: int) -> tp.importance.Importance:
        return cls(**settings)

    return make


def criteria_by_label(
    criteria: str | Sequence[str] | Mapping[str, str | Callable[[], tp.importance.Importance]],
) -> dict[str, CriterionFactory]:
    """Criteria as a user names them.

    Args:
        criteria: A name, names, or a dict of labels and names or functions without arguments that make an importance,
            fairtrim's or Torch-Pruning's.

    Returns:
        Factories by label.

    Raises:
        InputError: A name is unknown, a setting is wrong or missing, or a label is not free.

    Example:
        >>> list(criteria_by_label(["magnitude", "worst-group:selection=single"]))
        ['magnitude', 'worst-group:selection=single']
    """
    named = by_label(criteria)
    if not named:
        raise InputError("no criteria; expected at least one, such as 'worst-group'")
    found: dict[str, CriterionFactory] = {}
    for label, value in named.items():
        if label == "dense":
            raise InputError(
                "a criterion is labelled 'dense', which is what unpruned networks are called; choose another"
            )
        if isinstance(value, str):
            found[label] = _named_criterion(value)
        elif callable(value) and not isinstance(value, tp.importance.Importance):  # which is callable, too
            found[label] = _from_function(label, value)
        else:
            raise InputError(
                f"criterion {label!r} is a {type(value).__name__}; expected a name or a function that makes a new "
                "importance for each run: lambda: WorstGroupImportance()"
            )
    return found


def _from_function(label: str, make: Callable[[], Any]) -> CriterionFactory:
    def importance(seed: int) -> tp.importance.Importance:
        made = make()
        if not isinstance(made, tp.importance.Importance):
            raise InputError(f"criterion {label!r} gave a {type(made).__name__}; expected an importance")
        return made

    return importance


def post_processors_by_label(
    post_processors: str | Sequence[str] | Mapping[str, str | PostProcessor] | None,
) -> dict[str, PostProcessor]:
    """Post-processors as a user names them.

    Args:
        post_processors: A name, names, a dict of labels and names or post-processors, or None.

    Returns:
        Post-processors by label.

    Raises:
        InputError: A name is unknown, a setting is wrong, or a label is ``none``.

    Example:
        >>> post_processors_by_label("parity-fine-tuning:epsilon=0.1")["parity-fine-tuning:epsilon=0.1"].epsilon
        0.1
    """
    named = by_label(post_processors)
    found: dict[str, PostProcessor] = {}
    for label, value in named.items():
        if label == "none":
            raise InputError(
                "a post-processor is labelled 'none', which is what doing nothing is called; choose another"
            )
        if isinstance(value, str):
            name, settings = parse_named(value)
            _found("post-processor", value, name, list(POST_PROCESSORS))
            _checked("post-processor", value, POST_PROCESSORS[name], settings)
            if "random_state" in settings:
                raise InputError(f"post-processor {value!r}: {_SEED_OF_THE_RUN}")
            found[label] = _made("post-processor", value, POST_PROCESSORS[name], settings)
        elif isinstance(value, PostProcessor):
            found[label] = value
        else:
            raise InputError(
                f"post-processor {label!r} is a {type(value).__name__}; expected a name or a PostProcessor"
            )
    return found
