"""Networks as ONNX files, written only if onnxruntime computes what the network computes.

Pruned and repaired networks are plain modules, so torch's exporter takes them; this module adds the batch axis that may
vary, names of outputs, the comparison, and files that are complete or not there at all.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fairtrim import InputError, UnsupportedModelError
from fairtrim.devices import model_device, to_device
from fairtrim.files.atomic_file import file_path, replacing
from fairtrim.precision import full_precision
from fairtrim.preservation import preserved_model, preserved_random_state

__all__ = ["export_onnx", "onnx_outputs"]

MOST_BYTES = 2**31 - 2**24
"""Weights that fit into one file, whose format ends at 2 GB, beside the graph."""

# Before torch 2.9 it wasn't the default yet, and doesn't get on with later onnxscript: TorchScript's is taken instead.
_HAS_EXPORTER = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)

_LOGGERS = ("torch.onnx", "torch.onnx._internal.exporter._registration", "torch.fx", "onnxscript", "onnx_ir")
_OTHER_SIZES = (1, 3)  # batches that are compared beside the example


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"ONNX files need {name}: pip install 'fairtrim[export]' ({error})") from error


def need_packages(*, check: bool = True) -> None:
    """Refuse before work what can't be exported, or with ``check`` compared, afterwards."""
    for name in ("onnx", "onnxscript", *(["onnxruntime"] if check else [])):
        _imported(name)


def export_onnx(
    path: str | os.PathLike[str],
    model: nn.Module,
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    tolerance: float = 1e-4,
    check: bool = True,
) -> Path:
    """Write a network into one ONNX file, completely or not at all, and compare what onnxruntime makes of it.

    The network is exported in eval mode by ``torch.onnx.export`` and left as it was. Inputs are named as
    the arguments of its ``forward``; outputs ``output``, ``output_0`` and so on for a tuple, or by the keys of a dict.

    Args:
        path: Where to; an existing file is replaced once the new one has passed.
        model: The network, pruned or repaired or neither.
        example_inputs: What it is called with: a tensor (N, ...), a tuple or list of arguments, or a dict of arguments
            by name. What is no tensor is written into the file as it is.
        dynamic_batch: Whether N may vary: the first axis of each tensor in which it is as long as the first tensor's.
        opset: Version of ONNX's operators; None for the exporter's own choice.
        tolerance: Outputs may differ by ``tolerance * (1 + |output|)``.
        check: Whether to compare at the example and, if N may vary, at N = 1 and N = 3.

    Returns:
        The path.

    Raises:
        InputError: A package is missing, the folder doesn't exist, an argument has another form, or the weights need
            more than one file.
        UnsupportedModelError: The network fails on the example, can't be exported, can't be run by onnxruntime, or
            gives other outputs there; the message tells the largest difference.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(2.0), model.bias.fill_(1.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(f"{folder}/network.onnx", model, torch.ones(2, 2))
        ...     onnx_outputs(path, torch.eye(2))["output"].tolist()
        [[3.0], [3.0]]
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"got a {type(model).__name__}; expected the network itself: export_onnx(path, model, inputs)")
    path = file_path(path, "network.onnx")
    if not tolerance >= 0:
        raise InputError(f"tolerance={tolerance!r}; expected at least 0")
    need_packages(check=check)
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if n_bytes > MOST_BYTES:
        raise InputError(
            f"the network's weights take {n_bytes / 2**30:.2f} GiB, and one ONNX file holds less than 2; write several "
            "with torch.onnx.export(..., dynamo=True, external_data=True)"
        )
    inputs = to_device(example_inputs, model_device(model))
    n_samples = _n_samples(inputs)
    # the outputs of a GPU under TF32 are not those of onnxruntime
    with preserved_random_state(), preserved_model(model), torch.no_grad(), full_precision():
        names = _output_names(_run(model, inputs))
        program = _program(model, inputs, n_samples if dynamic_batch else None, names, opset)
        written = {entry.version for entry in program.opset_import if entry.domain in ("", "ai.onnx")}
        if opset is not None and written != {opset}:
            raise InputError(f"opset={opset}, but the exporter wrote {sorted(written)}; expected what it can write")
        with replacing(path) as temporary:
            temporary.write_bytes(program.SerializeToString())
            if check:
                sizes = sorted({*_OTHER_SIZES, n_samples}) if dynamic_batch else [n_samples]
                for size in sizes:
                    _compare(temporary, model, _resized(inputs, n_samples, size), size, tolerance)
    return path


def onnx_outputs(path: str | os.PathLike[str], inputs: Any) -> dict[str, npt.NDArray[Any]]:
    """What onnxruntime computes on the CPU from a network in an ONNX file.

    Args:
        path: The file.
        inputs: A tensor or array (N, ...), a tuple or list of them in the order of the file's inputs, or a dict.

    Returns:
        Outputs by name, in the file's order.

    Raises:
        InputError: onnxruntime is missing, the file is missing or damaged, or the inputs don't fit it.

    Example:
        >>> import tempfile
        >>> class Both(nn.Module):
        ...     def forward(self, x, weight):
        ...         return {"product": x * weight, "sum": x + weight}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(f"{folder}/both.onnx", Both(), (torch.ones(2, 3), torch.ones(2, 3)))
        ...     outputs = onnx_outputs(path, {"x": torch.full((1, 3), 2.0), "weight": torch.full((1, 3), 5.0)})
        >>> {name: values.tolist() for name, values in outputs.items()}
        {'product': [[10.0, 10.0, 10.0]], 'sum': [[7.0, 7.0, 7.0]]}
    """
    runtime = _imported("onnxruntime")
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} doesn't exist; write it with export_onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: what it can't optimise is no concern of ours
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise InputError(f"{path} is damaged or no ONNX file that onnxruntime runs: {_first_line(error)}") from error
    expected = {argument.name: f"{argument.type} {argument.shape}" for argument in session.get_inputs()}
    if isinstance(inputs, Mapping):
        given = {str(name): value for name, value in inputs.items() if isinstance(value, Tensor | np.ndarray)}
        if set(given) != set(expected):
            raise InputError(f"{path} was given inputs {sorted(given)}; expected {expected}")
    else:
        several = inputs if isinstance(inputs, tuple | list) else [inputs]
        tensors = [leaf for leaf in tree_flatten(list(several))[0] if isinstance(leaf, Tensor | np.ndarray)]
        if len(tensors) != len(expected):
            raise InputError(f"{path} was given {len(tensors)} inputs; expected {expected}")
        given = dict(zip(expected, tensors, strict=True))
    try:
        outputs = session.run(None, {name: _array(value) for name, value in given.items()})
    except Exception as error:
        raise InputError(f"{path} doesn't take the inputs: {_first_line(error)}; expected {expected}") from error
    return {output.name: values for output, values in zip(session.get_outputs(), outputs, strict=True)}


def _array(value: Tensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _first_line(error: BaseException) -> str:
    """What went wrong at first, without the exporter's pages about how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _is_batched(leaf: Any, n_samples: int | None) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == n_samples


def _n_samples(inputs: Any) -> int:
    tensors = [leaf for leaf in _leaves(inputs) if isinstance(leaf, Tensor)]
    if not tensors or tensors[0].ndim == 0 or tensors[0].shape[0] == 0:
        found = f"a first tensor of shape {tuple(tensors[0].shape)}" if tensors else "no tensor"
        raise InputError(f"the example inputs hold {found}; expected tensors (N, ...) of at least one sample")
    return int(tensors[0].shape[0])


def _leaves(value: Any) -> list[Any]:
    return tree_flatten(dict(value) if isinstance(value, Mapping) else value)[0]


def _resized(inputs: Any, n_samples: int, size: int) -> Any:
    """The example with its samples repeated, or left out, to another number of them."""
    rows = torch.arange(size, device="cpu") % n_samples

    def resize(leaf: Any) -> Any:
        return leaf[rows.to(leaf.device)] if _is_batched(leaf, n_samples) else leaf

    return tree_map(resize, dict(inputs) if isinstance(inputs, Mapping) else inputs)


class _Call(NamedTuple):
    """What a network is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> _Call:
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        return cls(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})


def _run(model: nn.Module, inputs: Any) -> Any:
    call = _Call.of(inputs)
    try:
        return model(*call.args, **call.kwargs)
    except Exception as error:
        raise UnsupportedModelError(
            f"the network fails on the example inputs: {_first_line(error)}; expected what its forward takes"
        ) from error


def _named_outputs(output: Any, name: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        return [(name or "output", output)]
    if output is None:
        return []
    if isinstance(output, Mapping):
        parts = [(f"{name}_{key}" if name else str(key), entry) for key, entry in output.items()]
    elif isinstance(output, tuple | list):
        parts = [(f"{name or 'output'}_{i}", entry) for i, entry in enumerate(output)]
    else:
        raise UnsupportedModelError(
            f"the network returns a {type(output).__name__}; expected tensors, in tuples, lists or dicts: wrap it in a "
            "module that returns those"
        )
    return [found for part, entry in parts for found in _named_outputs(entry, part)]


def _output_names(output: Any) -> list[str]:
    names = [name for name, _ in _named_outputs(output)]
    if not names or len(set(names)) < len(names):
        raise UnsupportedModelError(f"the network returns tensors named {names}; expected at least one, names distinct")
    return names


def _program(model: nn.Module, inputs: Any, n_samples: int | None, names: list[str], opset: int | None) -> Any:
    """The model as a protobuf; ``n_samples`` is None if it may not vary."""
    if n_samples == 1:  # torch.export takes an axis of length one for one that always is
        inputs, n_samples = _resized(inputs, 1, 2), 2
    call = _Call.of(inputs)
    takes = {name for name, value in call.kwargs.items() if isinstance(value, Tensor)} or set(_parameters(model))
    outputs = [f"output_{name}" if name in takes else name for name in names]  # a name stands for one tensor
    export = _exported if _HAS_EXPORTER else _traced
    try:
        with _quiet():
            return export(model, call, n_samples, outputs, opset)
    except Exception as error:
        raise UnsupportedModelError(
            f"the network can't be exported: {_first_line(error)}; decisions in Python about values of tensors must be "
            "written with torch.where, and a network that fixes the batch size needs dynamic_batch=False"
        ) from error


def _exported(model: nn.Module, call: _Call, n_samples: int | None, names: list[str], opset: int | None) -> Any:
    batch = torch.export.Dim("batch")

    def shape(leaf: Any) -> Any:
        return {0: batch} if _is_batched(leaf, n_samples) else None

    program = torch.onnx.export(
        model,
        call.args,
        kwargs=call.kwargs,
        dynamo=True,
        dynamic_shapes=None if n_samples is None else tree_map(shape, call.kwargs or call.args),
        output_names=names,
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


class _Positional(nn.Module):
    """The network as a function from tensors, which TorchScript can trace, to tensors."""

    def __init__(self, model: nn.Module, call: _Call) -> None:
        super().__init__()
        self.model = model
        leaves, self.structure = tree_flatten((call.args, call.kwargs))
        self.leaves: list[Any] = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.structure)
        return tuple(tensor for _, tensor in _named_outputs(self.model(*args, **kwargs)))


def _traced(model: nn.Module, call: _Call, n_samples: int | None, names: list[str], opset: int | None) -> Any:
    given = [
        (name, leaf) for name, value in zip(_parameters(model), call.args, strict=False) for leaf in _leaves(value)
    ]
    given += [(name, leaf) for name, value in call.kwargs.items() for leaf in _leaves(value)]
    tensors = [(name, leaf) for name, leaf in given if isinstance(leaf, Tensor)]
    function = _Positional(model, call).eval()  # the exporter restores the flag of the outermost
    inputs = [name for name, _ in tensors]
    several = {name for name in inputs if inputs.count(name) > 1}
    inputs = [f"{name}_{i}" if name in several else name for i, name in enumerate(inputs)]
    values = tuple(leaf for _, leaf in tensors)
    axes = dict(zip((*inputs, *names), (*values, *function(*values)), strict=True))
    stored = io.BytesIO()
    torch.onnx.export(
        function,
        values,
        stored,  # type: ignore[arg-type]
        dynamo=False,
        input_names=inputs,
        output_names=names,
        dynamic_axes={name: {0: "batch"} for name, leaf in axes.items() if _is_batched(leaf, n_samples)},
        opset_version=opset,
    )
    return _imported("onnx").load_model_from_string(stored.getvalue())


def _parameters(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings are about its own insides; whether it did well is compared afterwards."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(path: Path, model: nn.Module, inputs: Any, size: int, tolerance: float) -> None:
    expected = [tensor.cpu().double().numpy() for _, tensor in _named_outputs(_run(model, inputs))]
    try:
        found = onnx_outputs(path, inputs)
    except InputError as error:
        raise UnsupportedModelError(
            f"onnxruntime doesn't run what was exported at {size} samples: {_first_line(error)}; pass check=False to "
            "write it nevertheless, or dynamic_batch=False if only the size is the matter"
        ) from error
    for (name, values), wanted in zip(found.items(), expected, strict=True):
        if values.shape != wanted.shape:
            raise UnsupportedModelError(
                f"output {name!r} has shape {values.shape} under onnxruntime and {wanted.shape} in torch at {size} "
                "samples; expected the same: a size may be fixed in the network's code"
            )
        values = values.astype(np.float64)
        if not np.allclose(values, wanted, rtol=tolerance, atol=tolerance, equal_nan=True):
            differences = np.abs(values - wanted)
            largest = float(np.nan_to_num(differences, nan=np.inf).max())
            raise UnsupportedModelError(
                f"output {name!r} differs by up to {largest:.3g} between onnxruntime and torch at {size} samples; "
                f"expected at most {tolerance:g} * (1 + |output|): pass a larger tolerance if that is rounding"
            )
