"""What a command is told to work on: functions by ``module:function``, folders with language models, checkpoints."""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairtrim import FairtrimError, InputError, load_pruned
from fairtrim_adapters.sweep import DataSplits

from .language_folders import read_folder

__all__ = ["data_of", "load_object", "made_on", "networks_of"]

_FORM = "expected module:function or path/to/file.py:function"


def load_object(target: str, option: str) -> Any:
    """Import what ``module:function`` names; the working directory is searched first.

    Args:
        target: ``module:function`` or ``path/to/file.py:function``.
        option: The option it was given with, for messages.

    Returns:
        The object.

    Raises:
        InputError: The form is wrong, or there is no such file, module or function.

    Example:
        >>> load_object("math:sqrt", "--model")(9.0)
        3.0
    """
    place, colon, name = target.rpartition(":")
    if Path(target).is_dir():
        raise InputError(f"{option} {target!r} is a folder; expected module:function or path/to/file.py:function here")
    if not colon or not place or not name:
        raise InputError(f"{option} {target!r}: {_FORM}")
    module = _module(place, target, option)
    if not hasattr(module, name):
        public = [entry for entry in vars(module) if not entry.startswith("_")]
        near = difflib.get_close_matches(name, public, 1)
        meant = f"; did you mean {place}:{near[0]}?" if near else f"; it defines {public[:12]}"
        raise InputError(f"{option} {target!r}: {place} has no {name!r}{meant}")
    return getattr(module, name)


def _module(place: str, target: str, option: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if place.endswith(".py") or "/" in place:
        path = Path(place)
        if not path.is_file():
            raise InputError(f"{option} {target!r}: there is no file {place}, seen from {here}; {_FORM}")
        if str(path.resolve().parent) not in sys.path:
            sys.path.insert(0, str(path.resolve().parent))
        place = path.stem
        loaded = importlib.util.find_spec(place) if place not in sys.modules else sys.modules[place].__spec__
        origin = None if loaded is None else loaded.origin
        if origin is None or not Path(origin).is_file() or not path.samefile(origin):
            raise InputError(
                f"{option} {target!r}: the name {place!r} is that of another module ({origin}); expected a file of "
                "another name"
            )
    try:
        return importlib.import_module(place)
    except SystemExit as error:
        raise InputError(f"{option} {target!r}: importing {place} stopped: {error.code!r}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and place.split(".")[0] == error.name.split(".")[0]:
            near = difflib.get_close_matches(place, [path.stem for path in Path(here).glob("*.py")], 1)
            meant = f"; did you mean {near[0]}?" if near else f"; {_FORM}"
            raise InputError(f"{option} {target!r}: there is no module {place!r}, seen from {here}{meant}") from error
        raise InputError(f"{option} {target!r}: {place} needs {error.name!r}, which is not installed") from error
    except FairtrimError:
        raise
    except Exception as error:
        raise InputError(f"{option} {target!r}: importing {place} raised {_said(error)}") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _called(target: str, option: str, **arguments: Any) -> Any:
    function = load_object(target, option)
    if not callable(function) or isinstance(function, nn.Module):
        return function
    taken = {name: value for name, value in arguments.items() if name in inspect.signature(function).parameters}
    try:
        return function(**taken)
    except FairtrimError:
        raise
    except SystemExit as error:  # what a script says when data are missing
        raise InputError(f"{option} {target!r} stopped: {error.code}") from error
    except Exception as error:
        raise InputError(f"{option} {target!r} raised {_said(error)}") from error


def _network_of(target: str, seed: int) -> nn.Module:
    """The network of a folder, or that a function gives, called with ``seed=`` if it has a parameter of that name."""
    if Path(target).is_dir():
        return read_folder(Path(target), "--model")
    network = _called(target, "--model", seed=seed)
    if not isinstance(network, nn.Module):
        raise InputError(f"--model {target!r} gave a {type(network).__name__}; expected a torch.nn.Module")
    return network.eval()


def _checked_device(name: str) -> torch.device:
    """A device that is there."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError, TypeError) as error:
        raise InputError(
            f"--device {name!r} can't be used by torch {torch.__version__}; expected one of {there}, or install the "
            "build of torch for it"
        ) from error
    return device


def made_on(target: str, device: str | None) -> Any:
    """What gives the networks of a sweep, on a device.

    Args:
        target: ``module:function`` of a network, or of a function that gives one.
        device: Where to, or None.

    Returns:
        The network moved, as a copy, or a function of the same parameters that gives one moved.

    Raises:
        InputError: There is no such function, or no such device.
    """
    there = None if device is None else _checked_device(device)
    made = load_object(target, "--model")
    if isinstance(made, nn.Module):
        return made if there is None else copy.deepcopy(made).to(there)
    if there is None or not callable(made):
        return made

    @functools.wraps(made)
    def moved(*args: Any, **kwargs: Any) -> Any:
        network = made(*args, **kwargs)
        return network.to(there) if isinstance(network, nn.Module) else network

    return moved


def data_of(target: str) -> DataSplits:
    """The data that a function gives.

    Args:
        target: ``module:function``; the function gives ``DataSplits`` or a dict of its arguments.

    Returns:
        The splits.

    Raises:
        InputError: There is no such function, it fails, or gives something else.
    """
    try:
        return DataSplits.of(_called(target, "--data"))
    except InputError as error:
        raise error if "--data" in str(error) else InputError(f"--data {target!r}: {error}") from error


def networks_of(
    model: str, checkpoints: Sequence[str], seed: int = 0, device: str | None = None, *, reference: str = "dense"
) -> dict[str, nn.Module]:
    """The dense network and those of checkpoints, by name.

    Args:
        model: ``module:function`` of the dense network, or a folder with a causal language model.
        checkpoints: ``path`` or ``name=path``, files or folders that ``save_pruned``, ``save_pretrained``, ``fairtrim
            prune`` or ``fairtrim repair`` wrote.
        seed: For the function.
        device: Where to move them, or None for nowhere.
        reference: Name of the dense network.

    Returns:
        Networks by name; a checkpoint without a name is called like its file.

    Raises:
        InputError: A name is taken twice, a file is missing, damaged or of another network, or there is no such device.
    """
    there = None if device is None else _checked_device(device)
    networks = {reference: _network_of(model, seed)}
    for text in checkpoints:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).stem, text
        if name in networks:
            raise InputError(f"--checkpoint {text!r}: the name {name!r} is taken; expected name=path with another name")
        if Path(path).is_dir():
            networks[name] = read_folder(Path(path), "--checkpoint")
        else:
            networks[name] = load_pruned(path, copy.deepcopy(networks[reference])).eval()
    return networks if there is None else {name: network.to(there) for name, network in networks.items()}
