"""Checks of arguments, for whoever wants them before hours of work and not in the middle of it."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from torch import nn

from .errors import InputError

__all__ = [
    "RandomState",
    "Renamed",
    "did_you_mean",
    "drawn_seed",
    "few_of",
    "keyword_names",
    "random_generator",
    "refuse_string",
    "renamed",
    "require_choice",
    "require_flag",
    "require_known",
    "require_network",
    "require_number",
    "require_random_state",
]

RandomState = int | torch.Generator
"""A seed, or a generator that goes on drawing."""

Named = TypeVar("Named", bound=Callable[..., Any])


def few_of(names: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """The first names, and how many others there are.

    Args:
        names: All of them.
        separator: Between two.
        most: How many are named.

    Returns:
        The text.

    Example:
        >>> few_of(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def require_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
    remedy: str = "",
) -> None:
    """Refuse what is no number, not finite or out of range.

    Args:
        name: Of the argument.
        value: What was given.
        at_least: The smallest allowed.
        above: The largest that is too small.
        below: The smallest that is too large.
        whole: Whether it has to be a whole number.
        remedy: More for the message.

    Raises:
        InputError: It is refused.

    Example:
        >>> require_number("steps", 0, at_least=1, whole=True)
        Traceback (most recent call last):
        fairtrim.errors.InputError: steps=0; expected at least 1
    """
    right_type = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if (
        right_type
        and math.isfinite(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (below is None or value < below)
    ):
        return
    bounds = [f"at least {at_least:g}"] if at_least is not None else [f"above {above:g}"] if above is not None else []
    bounds += [f"below {below:g}"] if below is not None else []
    if not right_type or not bounds or not math.isfinite(value):
        bounds.insert(0, "a whole number" if whole else "a finite number")
    raise InputError(f"{name}={value!r}; expected {', '.join(bounds)}{remedy}")


def require_known(what: str, names: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse names that nothing has.

    Args:
        what: Is named.
        names: Those given.
        known: Those there are.

    Raises:
        InputError: One is unknown; the message says which was meant.

    Example:
        >>> require_known("cut", ["shares"], ["share"])
        Traceback (most recent call last):
        fairtrim.errors.InputError: cut has no 'shares' (did you mean 'share'?); expected some of ['share']
    """
    choices = list(known)
    for name in names:
        if name not in choices:
            raise InputError(f"{what} has no {name!r}{did_you_mean(name, choices)}; expected some of {choices}")


def did_you_mean(name: Any, choices: Iterable[str]) -> str:
    """What was probably meant, for a message.

    Args:
        name: What was given.
        choices: What there is.

    Returns:
        Text in brackets, with a space before it; nothing where nothing is near.

    Example:
        >>> did_you_mean("worst_group", ["worst-group", "tail-risk"])
        " (did you mean 'worst-group'?)"
    """
    choices, given = list(choices), str(name).lower()
    if given == "device" and given not in choices:
        return " (all runs where the network is: model.to(device) before the call; batches follow)"
    near = difflib.get_close_matches(given, choices, 1, cutoff=0.6)
    if not near:  # a part of one, in whole words
        near = [choice for choice in choices if _words(given) <= _words(choice)]
    return f" (did you mean {near[0]!r}?)" if len(near) == 1 else ""


def _words(name: str) -> set[str]:
    return set(re.split("[-_ ]", str(name)))


def keyword_names(function: Callable[..., Any], options: type[Any]) -> list[str]:
    """What can be said by keyword alone.

    Args:
        function: Has parameters of its own.
        options: A TypedDict of the others.

    Returns:
        The names, its own first.

    Example:
        >>> from typing import TypedDict
        >>> class Options(TypedDict):
        ...     seed: int
        >>> def draw(loader, *, size=1, **options):
        ...     return size
        >>> keyword_names(draw, Options)
        ['size', 'seed']
    """
    parameters = inspect.signature(function).parameters.values()
    return [*(p.name for p in parameters if p.kind is p.KEYWORD_ONLY), *options.__annotations__]


def require_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse what is not one of a few values.

    Args:
        name: Of the argument.
        value: What was given.
        choices: What is allowed.

    Raises:
        InputError: It is refused.

    Example:
        >>> require_choice("level", "channels", ["channel", "weight"])
        Traceback (most recent call last):
        fairtrim.errors.InputError: level='channels'; expected one of 'channel', 'weight'
    """
    choices = list(choices)
    if value not in choices:
        raise InputError(f"{name}={value!r}; expected one of {', '.join(map(repr, choices))}")


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False, such as a word, which would count as True.

    Args:
        name: Of the argument.
        value: What was given.

    Raises:
        InputError: It is refused.

    Example:
        >>> require_flag("online", "no")
        Traceback (most recent call last):
        fairtrim.errors.InputError: online='no'; expected True or False
    """
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}; expected True or False")


def require_network(name: str, model: object) -> None:
    """Refuse what is no network, such as a path, a state dict, a class or an estimator.

    Args:
        name: Of the argument.
        model: What was given.

    Raises:
        InputError: It is refused; the message says where the network is.

    Example:
        >>> require_network("model", "pruned.pt")
        Traceback (most recent call last):
        fairtrim.errors.InputError: model is a str; expected a torch.nn.Module: make the network and load its weights \
first
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(getattr(model, "module_", None), nn.Module) or hasattr(model, "initialize"):
        remedy = ": of a skorch network pass its .module_, which fit or initialize makes"
    elif isinstance(getattr(model, "model", None), nn.Module):
        remedy = ": pass its .model"
    elif isinstance(model, type) and issubclass(model, nn.Module):
        remedy = f", not its class: {model.__name__}(...)"
    elif isinstance(model, str | os.PathLike):
        remedy = ": make the network and load its weights first"
    elif isinstance(model, Mapping) and any(isinstance(value, torch.Tensor) for value in model.values()):
        remedy = ": make the network and give it these weights first, network.load_state_dict(...)"
    elif hasattr(model, "get_params") and hasattr(model, "fit"):
        remedy = ": scikit-learn's estimators have no channels or layers"
    else:
        remedy = ""
    raise InputError(f"{name} is a {type(model).__name__}; expected a torch.nn.Module{remedy}")


def refuse_string(name: str, value: object) -> None:
    """Refuse one name where names are expected: a string is a sequence, too.

    Args:
        name: Of the argument.
        value: What was given.

    Raises:
        InputError: It is refused.

    Example:
        >>> refuse_string("ignored_layers", "head")
        Traceback (most recent call last):
        fairtrim.errors.InputError: ignored_layers is the string 'head'; expected a list: ['head']
    """
    if isinstance(value, str):
        raise InputError(f"{name} is the string {value!r}; expected a list: [{value!r}]")


def require_random_state(random_state: object) -> None:
    """Refuse what is neither a seed nor a generator; nothing is drawn.

    Args:
        random_state: What was given.

    Raises:
        InputError: It is refused.

    Example:
        >>> require_random_state(0.5)
        Traceback (most recent call last):
        fairtrim.errors.InputError: random_state=0.5; expected a whole number or a torch.Generator
    """
    if isinstance(random_state, torch.Generator):
        return
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer):
        raise InputError(f"random_state={random_state!r}; expected a whole number or a torch.Generator")


def random_generator(random_state: RandomState, device: torch.device | None = None) -> torch.Generator:
    """The source of randomness that an argument names, on the device where the draws are made.

    Args:
        random_state: A seed, or a generator. One of that device is drawn from as it is, and goes on; one of another
            device gives one draw, which seeds the generator returned.
        device: Where the draws are made; default the CPU.

    Returns:
        The generator.

    Raises:
        InputError: It is neither.

    Example:
        >>> random_generator(3).initial_seed()
        3
    """
    require_random_state(random_state)
    device = device or torch.device("cpu")
    if isinstance(random_state, torch.Generator):
        own = random_state.device
        if own.type == device.type and (own.index == device.index or None in (own.index, device.index)):
            return random_state
    return torch.Generator(device).manual_seed(drawn_seed(random_state))


def drawn_seed(random_state: RandomState) -> int:
    """A seed, for what has to begin with the same draws several times.

    Args:
        random_state: The seed, or a generator of any device, of which it takes one draw.

    Returns:
        The seed.

    Raises:
        InputError: It is neither.

    Example:
        >>> drawn_seed(3)
        3
    """
    require_random_state(random_state)
    if isinstance(random_state, torch.Generator):
        # a draw without a device would be made on torch's default device
        return int(torch.randint(2**31, (), generator=random_state, device=random_state.device))
    return int(random_state)


def renamed(**names: str) -> Callable[[Named], Named]:
    """Refuse the old names of arguments, saying the new ones.

    Args:
        names: New name by old name; where an entry of a dict has taken its place, how to write that.

    Returns:
        A decorator of functions and classes.

    Example:
        >>> @renamed(seed="random_state")
        ... def draw(random_state=0):
        ...     return random_state
        >>> draw(seed=1)
        Traceback (most recent call last):
        fairtrim.errors.InputError: draw has no seed=; it is called random_state=
    """

    def decorated(function: Named) -> Named:
        if isinstance(function, type):
            function.__init__ = decorated(function.__init__)  # type: ignore[misc]
            return function

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                owner = function.__qualname__.removesuffix(".__init__").rpartition("<locals>.")[2]
                new = f"{names[old]}=" if names[old].isidentifier() else names[old]
                raise InputError(f"{owner} has no {old}=; it is called {new}")
            return function(*args, **kwargs)

        return cast(Named, checked)

    return decorated


class Renamed:
    """In the place of a method, where it used to be: whoever looks for it reads its new name.

    Args:
        new: Name of the method.

    Example:
        >>> class Miner:
        ...     fit = Renamed("mine")
        >>> Miner().fit
        Traceback (most recent call last):
        AttributeError: Miner has no fit; it is called mine
    """

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__} has no {self._old}; it is called {self.new}")
