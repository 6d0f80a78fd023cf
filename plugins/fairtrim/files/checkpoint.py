"""Save a pruned network and load it into a fresh, unpruned one: safetensors and JSON, nothing is unpickled.

A state dict alone doesn't fit the unpruned network, because shapes differ. Beside parameters and buffers (those too
that a state dict leaves out) this stores what every module keeps in plain public attributes: sizes such as
``out_channels`` and ``num_heads``, but also whatever else a script has set, because it may matter to what the network
gives; and tensors and arrays of numbers that are neither parameters nor buffers. Training flags and devices stay those
of the network that is loaded into. Objects are not stored; a warning names sets and other data that are not.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod

from fairtrim.errors import InputError
from fairtrim.placement import first_device, require_whole

from .atomic_file import file_path, replacing
from .module_settings import arrays_of, check_free, left_out, settings_of, settings_to_change
from .resumption import digest

__all__ = ["load_pruned", "save_pruned"]

FORMAT, VERSION = "fairtrim-pruned", 2
_READ = (1, 2)
"""Version 1 has the integers of the modules that have some, and neither names of classes nor what state dicts lack."""

_STATELESS = ("torch.nn.modules.activation", "torch.nn.modules.pooling")
"""Where the layers are that a state dict doesn't tell from each other."""


def save_pruned(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a network's tensors and settings into one safetensors file, completely or not at all.

    Masks of ``torch.nn.utils.prune`` are baked into the weights of the file, so that it loads into a network without
    masks; the network itself keeps them. Weight norms, spectral norms and other parametrizations are kept as they are:
    the network that the file is loaded into needs the same ones. A warning names attributes that hold data but can't be
    stored, such as sets: after loading they are what they were in the network that was loaded into.

    Args:
        path: Where to; an existing file is replaced.
        model: The network, pruned by whatever pruner.

    Raises:
        InputError: There is no network, or it is wrapped, or holds something that is no ordinary tensor (quantised,
            not initialised yet, extra state); or the folder doesn't exist, or the path is that of a folder.
        UnsupportedModelError: Its weights are offloaded or sharded.

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
    _refuse_wrapper(model)
    require_whole(model)
    tensors, aliases, beside, kept = _tensors(model)
    if lost := [f"{name}.{key}" if name else key for name, module in model.named_modules() for key in left_out(module)]:
        warnings.warn(
            f"{', '.join(lost)}: not stored, since only numbers, words, flags, None, tuples, lists and dicts of them, "
            "tensors and arrays of numbers are; set them again after loading",
            stacklevel=2,
        )
    modules = list(model.named_modules(remove_duplicate=False))
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "aliases": aliases,
        "beside": beside,
        "kept": kept,
        "empty": [name for name, buffer in _buffers(dict(modules)).items() if buffer is None],
        "modules": {name: settings_of(module) for name, module in modules},
        "classes": {name: type(module).__name__ for name, module in modules},
    }
    header = json.loads(json.dumps(header))  # as it will be read
    header["digest"] = digest(tensors, json.dumps(header, sort_keys=True))
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={FORMAT: json.dumps(header)})


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str], list[str], dict[str, str]]:
    """Tensors, each stored once; the names that share one; buffers that a state dict leaves out; and what is neither.

    The last are plain tensors and arrays, by name with their kind.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= model.named_buffers(remove_duplicate=False)
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    state = model.state_dict()
    for name, value in state.items():
        if name not in tensors:
            raise InputError(
                f"the state dict holds {name!r}, a {type(value).__name__} that is no parameter or buffer; only those "
                "can be saved"
            )
    beside = [name for name in tensors if name not in state]
    for owner, module in model.named_modules(remove_duplicate=False):
        prefix = f"{owner}." if owner else ""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                masked = prefix + hook._tensor_name
                with torch.no_grad():
                    baked = hook.apply_mask(module)  # type: ignore[no-untyped-call]
                del tensors[f"{masked}_orig"], tensors[f"{masked}_mask"]
                tensors[masked] = baked
    kept: dict[str, str] = {}
    for owner, module in model.named_modules(remove_duplicate=False):
        for attribute, value in arrays_of(module).items():
            name = f"{owner}.{attribute}" if owner else attribute
            if name in tensors:
                continue  # a weight that masks are baked into
            kept[name] = "tensor" if isinstance(value, Tensor) else "array"
            if not isinstance(value, Tensor):
                value = torch.as_tensor(value.astype(value.dtype.newbyteorder("="), order="C"), device="cpu")
            tensors[name] = value
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            stored[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return stored, aliases, beside, kept


def _buffers(modules: Mapping[str, nn.Module]) -> dict[str, Tensor | None]:
    """Buffers by name, with those that are None: a forward pass may fill them."""
    return {
        f"{owner}.{name}" if owner else name: buffer
        for owner, module in modules.items()
        for name, buffer in module._buffers.items()
    }


def _check_tensor(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise InputError(f"{name!r} has no shape yet; run one batch through the network first")
    held = tensor.device.type != "meta" and tensor.layout is torch.strided and not tensor.is_quantized
    if not held or type(tensor.detach().cpu()) is not Tensor:
        kind = "quantised" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
        raise InputError(
            f"{name!r} is a {type(tensor).__name__} ({kind}); expected ordinary dense tensors: save before quantising, "
            "and after loading"
        )


def _refuse_wrapper(model: nn.Module) -> None:
    """Names in a wrapper are not those of the network, and of a script nothing can be set."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the network is a torch.jit.ScriptModule; expected the network that was scripted or traced")
    for inner in ("_orig_mod", "module"):
        if type(model).__module__.startswith("torch.") and isinstance(getattr(model, inner, None), nn.Module):
            raise InputError(f"the network is wrapped in {type(model).__name__}; expected itself: model.{inner}")


def load_pruned(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Give a fresh network the shapes, settings and tensors of a saved one, in place.

    Everything is checked before anything changes.

    Args:
        path: File that ``save_pruned`` wrote.
        model: A network of the same class, e.g. the unpruned one; its device, its training flags and what is frozen
            stay as they are.

    Returns:
        The same network.

    Raises:
        InputError: The file is missing, damaged, of another format or version, or of another network, such as one with
            another number of scores.
        UnsupportedModelError: The network's weights are offloaded or sharded.

    Example:
        >>> import tempfile
        >>> small, large = (nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)) for width in (1, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pruned(f"{folder}/small.safetensors", small)
        ...     load_pruned(f"{folder}/small.safetensors", large)[0]
        Linear(in_features=3, out_features=1, bias=True)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"got a {type(model).__name__}; expected a fresh network: load_pruned(path, model)")
    _refuse_wrapper(model)
    require_whole(model)
    header, tensors = _read(Path(path))
    tensors |= {alias: tensors[name] for alias, name in header["aliases"].items() if name in tensors}
    modules = dict(model.named_modules(remove_duplicate=False))
    arrays = {name: (tensors.pop(name), kind) for name, kind in header.get("kept", {}).items() if name in tensors}
    expected: dict[str, Tensor | None] = {**dict(model.named_parameters(remove_duplicate=False)), **_buffers(modules)}
    emptied = [name for name in header.get("empty", ()) if name in _buffers(modules)]
    beside = {name for name in header.get("beside", ()) if name in tensors}
    for name in beside - set(expected):
        del tensors[name]  # a cache that the network hasn't filled
    needed = set(model.state_dict()) - set(emptied)
    _check_names(path, header, needed, set(tensors) - beside - {n for n, tensor in expected.items() if tensor is None})
    try:
        settings = _settings(header, modules)
        device = first_device(model) or torch.device("cpu")
        settings += [_array(name, tensor, kind, modules, device) for name, (tensor, kind) in arrays.items()]
    except InputError as error:
        raise InputError(f"{path}: {error}; pass a network of the class that was saved") from error
    for name, tensor in tensors.items():
        old = expected[name]
        if old is not None and is_lazy(old):
            raise InputError(f"{name!r} of the network has no shape yet; run one batch through it before loading")
        if old is not None and name not in beside and tensor.ndim != old.ndim:
            raise InputError(
                f"{path}: {name!r} has {tensor.ndim} axes, the network's {old.ndim}; pass a network of the class that "
                "was saved"
            )
        if old is not None and old.requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
            raise InputError(f"{path}: {name!r} holds {tensor.dtype}, the network's {old.dtype} with a gradient")
    if "digest" not in header:
        _check_shapes(path, header["modules"], modules, tensors)
    _check_scores(path, header["modules"], modules, tensors)
    source: dict[int, str] = {}
    for name, tensor in tensors.items():
        first = name if expected[name] is None else source.setdefault(id(expected[name]), name)
        same = tensors[first]
        if same is not tensor and (same.dtype is not tensor.dtype or not torch.equal(same, tensor)):
            raise InputError(
                f"{path}: {first!r} and {name!r} differ, but the network shares them; pass an untied network"
            )
    replaced: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        old = expected[name]
        if (first := name if old is None else source[id(old)]) != name:
            replaced[name] = replaced[first]
            continue
        new = tensor.to(device if old is None else old.device, copy=True)  # aligned, as kernels' last digits need it
        replaced[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    for name in (*replaced, *emptied):
        owner, _, attribute = name.rpartition(".")
        setattr(modules[owner], attribute, replaced.get(name))
    for module, changes in settings:
        for attribute, value in changes.items():
            setattr(module, attribute, value)
    return model


def _array(
    name: str, tensor: Tensor, kind: str, modules: Mapping[str, nn.Module], device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    """A plain tensor or an array that is to be set on which module, where the network's own is."""
    owner, _, attribute = name.rpartition(".")
    if (module := modules.get(owner)) is None:
        return nn.Module(), {}  # of a layer that a script added
    value: Tensor | np.ndarray
    if kind == "array" and tensor.dtype is not torch.bfloat16:
        value = np.array(tensor.numpy())
    elif kind == "tensor":
        old = vars(module).get(attribute)
        value = tensor.to(old.device if isinstance(old, Tensor) else device, copy=True)
        if isinstance(old, Tensor) and value.is_floating_point():
            value.requires_grad_(old.requires_grad)
    else:
        raise InputError(f"{name!r} holds {tensor.dtype} and is said to be {kind!r}")
    try:
        return module, {attribute: value} if check_free(module, attribute, value) else {}
    except InputError as error:
        raise InputError(f"{owner or 'the network itself'}: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"{path} is a folder; expected a file" if path.is_dir() else f"{path} doesn't exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, json.JSONDecodeError) as error:
        with path.open("rb") as file:
            pickled = file.read(2) in (b"PK", b"\x80\x02")
        raise InputError(
            f"{path} was written by torch.save; expected a file of save_pruned: load it with torch.load(path, "
            "weights_only=True) into a network of its shapes, and write that with save_pruned(path, model)"
            if pickled
            else f"{path} is damaged or no safetensors file ({error}); expected a file of save_pruned"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path} was not written by save_pruned; load it with safetensors.torch.load_file")
    if header.get("version") not in _READ:
        raise InputError(f"{path} has version {header.get('version')} of the format; this release reads {VERSION}")
    described = header.get("modules"), header.get("aliases")
    if not all(isinstance(entry, dict) for entry in described) or not all(
        isinstance(attributes, dict) for attributes in header["modules"].values()
    ):
        raise InputError(f"{path} is damaged: its header lacks the modules or aliases")
    lists = header.get("beside", []), header.get("empty", [])
    named = header.get("classes", {}), header.get("kept", {})
    if not all(isinstance(entry, dict) for entry in named) or not all(isinstance(entry, list) for entry in lists):
        raise InputError(f"{path} is damaged: its header says something else than names of classes and buffers")
    keys = {"format", "version", "aliases", "modules", "classes", "beside", "kept", "empty"}
    if set(header) - keys - {"digest"}:
        raise InputError(f"{path} is damaged: its header holds {sorted(set(header) - keys)} besides")
    known = {key: header[key] for key in keys if key in header}
    # files of the first releases have none
    if "digest" in header and header["digest"] != digest(tensors, json.dumps(known, sort_keys=True)):
        raise InputError(f"{path} is damaged, or was changed since it was written")
    return header, tensors


def _check_names(path: object, header: Mapping[str, Any], needed: set[str], held: set[str]) -> None:
    """The file and the network must have the same tensors."""
    missing, surplus = sorted(needed - held), sorted(held - needed)
    if not missing and not surplus:
        return
    differences = [f"the file lacks {missing[:5]}"] if missing else []
    if surplus:
        differences.append(f"the file holds {surplus[:5]}, which the network doesn't have")
    remedy = "pass a network of the class that was saved"
    if saved := header.get("classes", {}).get(""):
        remedy += f" ({saved})"
    if any(name.endswith("_mask") for name in missing):
        remedy = "pass one without masks of torch.nn.utils.prune, which save_pruned bakes in"
    elif any(_reparametrised(names) for names in (missing, surplus)):
        remedy = (
            "weight norms, spectral norms and parametrizations must be on both: put the same ones on the network "
            "before loading, or take them off before saving (torch.nn.utils.parametrize.remove_parametrizations)"
        )
    raise InputError(f"{path} is of another network: {' and '.join(differences)}; {remedy}")


def _reparametrised(names: Iterable[str]) -> bool:
    return any(".parametrizations." in f".{name}" or name.endswith(("_orig", "_g", "_v", "_u")) for name in names)


def _settings(header: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> list[tuple[nn.Module, dict[str, Any]]]:
    """What is to be set on which module; everything else than plain attributes of layers that there are is refused."""
    classes = header.get("classes", {})
    found = []
    for name, stored in header["modules"].items():
        if name in modules:
            module, mine = modules[name], type(modules[name])
            saved = classes.get(name, mine.__name__)
            other = mine.__module__ in _STATELESS and hasattr(nn, saved) and saved != mine.__name__
            if other:
                raise InputError(f"{name!r} was a {saved}, the network's is a {mine.__name__}")
            try:
                found.append((module, settings_to_change(module, stored)))
            except InputError as error:
                raise InputError(f"{name or 'the network itself'}: {error}") from error
        elif not _of_the_script(name, modules) and not classes.get(name, "").endswith("Loss"):
            raise InputError(f"layer {name!r} ({classes.get(name, stored)}) has no counterpart in the network")
    for name, module in modules.items():
        sequence = isinstance(modules[name.rpartition(".")[0]], nn.Sequential)
        if classes and name not in classes and sequence:
            raise InputError(f"layer {name!r} ({type(module).__name__}) has no counterpart in the file")
    return found


def _of_the_script(name: str, others: Mapping[str, Any]) -> bool:
    """Whether a layer that the other network lacks hangs on an attribute that its class knows nothing of."""
    parent, _, attribute = name.rpartition(".")
    if parent not in others:
        return _of_the_script(parent, others)
    owner = others[parent]
    return not isinstance(owner, nn.Sequential | nn.ModuleList | nn.ModuleDict) and not hasattr(owner, attribute)


def _check_shapes(
    path: object, header: dict[str, Any], modules: dict[str, nn.Module], tensors: dict[str, Tensor]
) -> None:
    """Tensors of the common layers must have the shapes that the stored integers say."""
    for name, stored in header.items():
        module, prefix = modules.get(name), f"{name}." if name else ""
        try:
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
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise InputError(f"{path} is damaged: it doesn't say what shape {name!r} has") from error
        weight = tensors.get(f"{prefix}weight")
        if weight is not None and tuple(weight.shape) != expected:
            raise InputError(f"{path} is damaged: {prefix}weight has shape {tuple(weight.shape)}, expected {expected}")


def _check_scores(
    path: object, header: Mapping[str, Any], modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> None:
    """The layer that gives the scores must give as many as in the file: nobody prunes it.

    Which layer that is, and which reads which, is not known here. Pruning shows it, though: where outputs went, inputs
    went elsewhere. So a layer with other outputs gives the scores if no layer at all has other inputs; and so does the
    last one if no input went as its outputs did, and every input that went is explained by another layer's outputs.
    """
    named = {module: name for name, module in reversed(list(modules.items()))}  # by its first name
    ends = [(name, *_ends(module, name, header.get(name, {}), tensors)) for module, name in named.items()]
    ends.reverse()
    last = max((position for position, (_, outer, _) in enumerate(ends) if outer), default=-1)
    for position, (name, outer, _) in enumerate(ends):
        went = [
            sizes for k, (_, _, inner) in enumerate(ends) if k != position for sizes in inner if sizes[0] != sizes[1]
        ]
        others = [sizes for k, (_, outer, _) in enumerate(ends) if k != position for sizes in outer]
        for now, stored in outer:
            unexplained = [sizes for sizes in went if not any(_flattened(*sizes, *those) for those in others)]
            readable = bool(went) and (
                position != last or bool(unexplained) or any(_flattened(*sizes, now, stored) for sizes in went)
            )
            if now != stored and not readable:
                raise InputError(
                    f"{path} is of a network with another number of scores: {name or 'the network'} gives {stored} in "
                    f"the file and {now} in the network; pass a network that gives {stored}"
                )


def _flattened(was: int, left: int, now: int, stored: int) -> bool:
    """Whether inputs went as outputs did: as many, or a multiple of them."""
    return was % now == 0 and was // now * stored == left


_Sizes = list[tuple[int, int]]


def _ends(
    module: nn.Module, name: str, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[_Sizes, _Sizes]:
    """Numbers of outputs and of inputs of a layer, in the network and in the file; of unknown layers every size."""
    prefix = f"{name}." if name else ""
    if isinstance(module, nn.Linear):
        names = "out_features", "in_features"
    elif isinstance(module, nn.modules.conv._ConvNd):
        names = "out_channels", "in_channels"
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag | ParametrizationList):
        return [], []
    else:
        mine = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        pairs = [(old, tensors[prefix + key]) for key, old in mine if prefix + key in tensors and old.ndim > 1]
        return [], [sizes for old, new in pairs for sizes in zip(old.shape, new.shape, strict=False)]
    saved = [stored.get(kind) for kind in names]
    weight = tensors.get(f"{prefix}weight")
    if weight is not None and stored.get("groups", 1) == 1:  # what there is, whatever the sizes say
        saved = [*weight.shape[1::-1]] if getattr(module, "transposed", False) else [*weight.shape[:2]]
    outer, inner = (
        [(int(getattr(module, kind)), n)] if type(n) is int else [] for kind, n in zip(names, saved, strict=True)
    )
    return outer, inner
