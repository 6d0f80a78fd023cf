"""Save a pruned network and load it into a fresh, unpruned one: safetensors and JSON, nothing is unpickled.

A state dict alone doesn't fit the unpruned network, because shapes differ. Beside the tensors this stores the
integers that describe shapes (``out_channels``, ``num_heads``, ...) of every module, and sets them on loading:
public attributes that are integers or tuples of integers. Sizes that a module keeps in lists or dicts are not stored.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .atomic_file import file_path, replacing
from .errors import InputError
from .resumption import digest

__all__ = ["load_pruned", "save_pruned"]

FORMAT, VERSION = "fairtrim-pruned", 1

Attribute = int | list[int]


def _attributes(module: nn.Module) -> dict[str, Attribute]:
    """Integers and tuples of integers that a module keeps under a public name."""
    found: dict[str, Attribute] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            found[name] = value
        elif isinstance(value, tuple) and value and all(type(entry) is int for entry in value):
            found[name] = list(value)
    return found


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of the state dict, each stored once, and the names of the others that share them."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"the state dict holds {name!r}, a {type(tensor).__name__}; only tensors can be saved")
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            stored[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return stored, aliases


def save_pruned(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a network's tensors and shapes into one safetensors file, completely or not at all.

    Args:
        path: Where to; an existing file is replaced.
        model: The network, pruned by whatever pruner.

    Raises:
        InputError: There is no network, its state dict holds something that is not a tensor, or the folder doesn't
            exist, or the path is that of a folder.

    Example:
        >>> import tempfile
        >>> small = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pruned(f"{folder}/small.safetensors", small)
        ...     loaded = load_pruned(f"{folder}/small.safetensors", nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
        >>> torch.equal(loaded[0].weight, small[0].weight)
        True
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"got a {type(model).__name__}; expected the network itself: save_pruned(path, model)")
    path = file_path(path, "pruned.safetensors")
    tensors, aliases = _tensors(model)
    modules = {name: attributes for name, module in model.named_modules() if (attributes := _attributes(module))}
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "aliases": aliases, "modules": modules}
    header["digest"] = digest(tensors, json.dumps(header, sort_keys=True))
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={FORMAT: json.dumps(header)})


def load_pruned(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Give a fresh network the shapes and tensors of a saved one, in place.

    Everything is checked before anything changes.

    Args:
        path: File that ``save_pruned`` wrote.
        model: A network of the same class, e.g. the unpruned one; its device is kept.

    Returns:
        The same network.

    Raises:
        InputError: The file is missing, damaged, of another format or version, or of another network.

    Example:
        >>> import tempfile
        >>> small, large = nn.Linear(3, 1), nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pruned(f"{folder}/small.safetensors", small)
        ...     load_pruned(f"{folder}/small.safetensors", large)
        Linear(in_features=3, out_features=1, bias=True)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"got a {type(model).__name__}; expected a fresh network: load_pruned(path, model)")
    header, tensors = _read(Path(path))
    tensors |= {alias: tensors[name] for alias, name in header["aliases"].items() if name in tensors}
    expected = model.state_dict(keep_vars=True)
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    differences = [f"the file lacks {missing[:5]}"] if missing else []
    if surplus:
        differences.append(f"the file holds {surplus[:5]}, which the network doesn't have")
    if differences:
        raise InputError(
            f"{path} is of another network: {' and '.join(differences)}; pass a network of the class that was saved"
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    settings = [
        (modules[name], attribute, value)
        for name, attributes in header["modules"].items()
        for attribute, value in attributes.items()
        if _changes(path, modules, name, attribute, value)
    ]
    for name, tensor in tensors.items():
        if tensor.ndim != expected[name].ndim:
            raise InputError(
                f"{path}: {name!r} has {tensor.ndim} axes, the network's {expected[name].ndim}; pass a network of the "
                "class that was saved"
            )
    _check_shapes(path, header["modules"], modules, tensors)
    source: dict[int, str] = {}
    for name in tensors:
        first = source.setdefault(id(expected[name]), name)
        if not torch.equal(tensors[first], tensors[name]):
            raise InputError(
                f"{path}: {first!r} and {name!r} differ, but the network shares them; pass an untied network"
            )
    replaced: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        owner_name, _, attribute = name.rpartition(".")
        old = expected[name]
        if id(old) not in replaced:
            new = tensor.to(old.device)
            replaced[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        setattr(modules[owner_name], attribute, replaced[id(old)])
    for module, attribute, value in settings:
        setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
    return model


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"{path} doesn't exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path} was not written by save_pruned; load it with safetensors.torch.load_file")
    if header.get("version") != VERSION:
        raise InputError(f"{path} has version {header.get('version')} of the format; this release reads {VERSION}")
    described = header.get("modules"), header.get("aliases")
    if not all(isinstance(entry, dict) for entry in described) or not all(
        isinstance(attributes, dict) for attributes in header["modules"].values()
    ):
        raise InputError(f"{path} is damaged: its header lacks the modules or aliases")
    known = {key: header[key] for key in ("format", "version", "aliases", "modules")}
    if set(header) - set(known) - {"digest"}:
        raise InputError(f"{path} is damaged: its header holds {sorted(set(header) - set(known))} besides")
    # files of the first releases have none
    if "digest" in header and header["digest"] != digest(tensors, json.dumps(known, sort_keys=True)):
        raise InputError(f"{path} is damaged, or was changed since it was written")
    return header, tensors


def _check_shapes(
    path: object, header: dict[str, Any], modules: dict[str, nn.Module], tensors: dict[str, Tensor]
) -> None:
    """Tensors of the common layers must have the shapes that the stored integers say."""
    for name, stored in header.items():
        module, prefix = modules[name], f"{name}." if name else ""
        if isinstance(module, nn.Linear):
            expected: tuple[int, ...] = (stored["out_features"], stored["in_features"])
        elif isinstance(module, nn.modules.conv._ConvNd):
            outer, inner = stored["out_channels"], stored["in_channels"]
            ends = (inner, outer // stored["groups"]) if module.transposed else (outer, inner // stored["groups"])
            expected = (*ends, *stored["kernel_size"])
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            expected = (stored["num_features"],)
        else:
            continue
        weight = tensors.get(f"{prefix}weight")
        if weight is not None and tuple(weight.shape) != expected:
            raise InputError(f"{path} is damaged: {prefix}weight has shape {tuple(weight.shape)}, expected {expected}")


def _changes(path: object, modules: dict[str, nn.Module], name: str, attribute: str, value: Any) -> bool:
    """Whether a stored attribute differs from the network's; only integers over integers are let through."""
    mine = _attributes(modules[name]).get(attribute) if name in modules else None
    sound = type(value) is int or (isinstance(value, list) and all(type(entry) is int for entry in value))
    if mine is None or not sound or type(mine) is not type(value):
        raise InputError(
            f"{path}: {name}.{attribute} = {value!r} has no counterpart in the network ({mine!r}); pass a network of "
            "the class that was saved"
        )
    return mine != value
