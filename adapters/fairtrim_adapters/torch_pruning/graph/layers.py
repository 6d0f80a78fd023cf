"""Which axis of a layer's input holds the channels, and which slices of its parameters go with them.

Everything that is known about types of layers is here. Layers of other packages, which Torch-Pruning prunes with
``customized_pruners``, are described in the same words with ``describe_layer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from fairtrim import InputError

__all__ = [
    "LayerDescription",
    "ParameterAxis",
    "describe_layer",
    "describing_type",
    "description_of",
    "forget_layer",
    "parameter_axes",
]


class ParameterAxis(NamedTuple):
    """An axis of a parameter that loses slices with the channels.

    Attributes:
        name: Name of the parameter in its layer; dotted where a submodule holds it.
        axis: The axis.
        blocks: How many times the channels are listed along it, one after the other: 3 for the rows of a fused
            query, key and value, 4 for the gates of an LSTM.

    Example:
        >>> import torch
        >>> class Fused(nn.Module):  # query, key and value as the rows of one weight
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.zeros(3 * 4, 4))
        >>> describe_layer(Fused, output_parameters=[ParameterAxis("weight", axis=0, blocks=3)])
        >>> [(tuple(weight.shape), axis, blocks) for weight, axis, blocks in parameter_axes(Fused(), consumer=False)]
        [((12, 4), 0, 3)]
        >>> forget_layer(Fused)
    """

    name: str
    axis: int
    blocks: int = 1


_Axes = Callable[[Any, bool], list[ParameterAxis]]


@dataclass(frozen=True)
class LayerDescription:
    """What there is to know about a type of layers.

    Attributes:
        channel_axis: Axis of the channels in its first input.
        sample_axis: Axis of the samples there; None asks the layer's ``batch_first``.
        axes: (layer, whether it consumes the channels) -> axes of its parameters that lose slices.
        mixes: It reads all of its input channels though Torch-Pruning prunes inputs and outputs as one (attention).
    """

    channel_axis: int
    sample_axis: int | None
    axes: _Axes
    mixes: bool = False


_DESCRIPTIONS: dict[type[nn.Module], LayerDescription] = {}


def describe_layer(
    layer_type: type[nn.Module],
    *,
    channel_axis: int = -1,
    sample_axis: int = 0,
    input_parameters: Mapping[str, int] | Iterable[ParameterAxis] = (),
    output_parameters: Mapping[str, int] | Iterable[ParameterAxis] = (),
    mixes: bool = False,
) -> None:
    """Describe a type of layers that Torch-Pruning prunes with ``customized_pruners``.

    Whether such a layer consumes channels or passes them on (as norms do) is read from Torch-Pruning's pruner: it
    passes them on if ``prune_in_channels`` and ``prune_out_channels`` are the same function. The description holds for
    subclasses too; describing a type again replaces what was said before.

    Args:
        layer_type: The type.
        channel_axis: Axis of the channels in its first input: 1 for (N, C, H, W), −1 for (N, C) and (N, T, C).
        sample_axis: Axis of the samples there.
        input_parameters: Axis of each parameter that loses slices with input channels; for ``level="weight"``.
        output_parameters: The same for output channels, and for layers that pass channels on.
        mixes: Whether it reads all its input channels though Torch-Pruning prunes inputs and outputs as one.

    Raises:
        InputError: The type is no type of modules, an axis no integer, or the axes of channels and samples the same.

    Example:
        >>> class Conv1D(nn.Module):  # as in Hugging Face's GPT-2: the weight is (in, out)
        ...     pass
        >>> describe_layer(
        ...     Conv1D, channel_axis=-1, input_parameters={"weight": 0}, output_parameters={"weight": 1, "bias": 0}
        ... )
        >>> description_of(Conv1D()).channel_axis
        -1
        >>> forget_layer(Conv1D)
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise InputError(f"layer_type={layer_type!r}; expected a subclass of torch.nn.Module")
    for name, value in (("channel_axis", channel_axis), ("sample_axis", sample_axis)):
        if type(value) is not int:
            raise InputError(f"{name}={value!r}; expected an integer")
    if channel_axis == sample_axis:
        raise InputError(f"channel_axis and sample_axis are both {channel_axis}; expected different axes")
    of_inputs = _checked("input_parameters", input_parameters)
    of_outputs = _checked("output_parameters", output_parameters)
    _DESCRIPTIONS[layer_type] = LayerDescription(
        channel_axis, sample_axis, lambda layer, consumer: of_inputs if consumer else of_outputs, mixes
    )


def forget_layer(layer_type: type[nn.Module]) -> None:
    """Take a description back.

    Args:
        layer_type: The type that was described.

    Raises:
        InputError: It was not.

    Example:
        >>> class Scaled(nn.Linear):
        ...     pass
        >>> describe_layer(Scaled, channel_axis=1, input_parameters={"weight": 1})
        >>> forget_layer(Scaled)
        >>> description_of(Scaled(2, 2)).channel_axis  # that of nn.Linear holds again
        -1
    """
    if layer_type not in _DESCRIPTIONS:
        raise InputError(f"{layer_type!r} was not described; described are {sorted(t.__name__ for t in _DESCRIPTIONS)}")
    del _DESCRIPTIONS[layer_type]


def _checked(name: str, parameters: Mapping[str, int] | Iterable[ParameterAxis]) -> list[ParameterAxis]:
    entries = parameters.items() if isinstance(parameters, Mapping) else parameters
    axes = [ParameterAxis(*entry) for entry in entries]
    for entry in axes:
        if not isinstance(entry.name, str) or type(entry.axis) is not int or type(entry.blocks) is not int:
            raise InputError(f"{name} holds {tuple(entry)}; expected names of parameters and integers for their axes")
    return axes


def description_of(layer: object) -> LayerDescription | None:
    """The description of a layer's type, or of the nearest base that has one; None if there is none."""
    described = describing_type(layer)
    return None if described is None else _DESCRIPTIONS[described]


def describing_type(layer: object) -> type[nn.Module] | None:
    """A layer's own type, or the nearest base that has a description; None if there is none."""
    return next((base for base in type(layer).__mro__ if base in _DESCRIPTIONS), None)


def sample_axis_of(layer: nn.Module) -> int:
    """Axis of the samples in the layer's first input; 0 for layers that are not known."""
    description = description_of(layer)
    if description is None or description.sample_axis is not None:
        return description.sample_axis if description and description.sample_axis is not None else 0
    return 0 if getattr(layer, "batch_first", True) else 1


def parameter_axes(layer: nn.Module, *, consumer: bool) -> list[tuple[Tensor, int, int]]:
    """Parameters of a layer that lose slices with channels: (parameter, axis, blocks); None is left out.

    ``consumer``: whether it consumes the channels, or gives them out (or passes them on).
    """
    description = description_of(layer)
    found = []
    for entry in description.axes(layer, consumer) if description else []:
        owner, _, name = entry.name.rpartition(".")
        try:
            parameter = getattr(layer.get_submodule(owner), name)
        except AttributeError as error:
            raise InputError(
                f"{type(layer).__name__} is described with a parameter {entry.name!r}, which it doesn't have; correct "
                "the call of describe_layer"
            ) from error
        if parameter is not None:
            found.append((parameter, entry.axis, entry.blocks))
    return found


# Layers of torch --------------------------------------------------------------------------------------------


def _convolution(layer: nn.modules.conv._ConvNd, consumer: bool) -> list[ParameterAxis]:
    depthwise = layer.groups == layer.in_channels == layer.out_channels  # its weight is (C, 1, ...) either way
    output_axis = 1 if layer.transposed and not depthwise else 0
    if consumer:
        return [ParameterAxis("weight", 1 - output_axis)]
    return [ParameterAxis("weight", output_axis), ParameterAxis("bias", 0)]


def _linear(layer: nn.Linear, consumer: bool) -> list[ParameterAxis]:
    return [ParameterAxis("weight", 1)] if consumer else [ParameterAxis("weight", 0), ParameterAxis("bias", 0)]


def _layer_norm(layer: nn.Module, consumer: bool) -> list[ParameterAxis]:
    return [ParameterAxis(name, -1) for name, _ in layer.named_parameters(recurse=False)]


def _channel_norm(layer: nn.Module, consumer: bool) -> list[ParameterAxis]:
    return [ParameterAxis("weight", 0), ParameterAxis("bias", 0)]


def _prelu(layer: nn.PReLU, consumer: bool) -> list[ParameterAxis]:
    return [ParameterAxis("weight", 0)] if layer.num_parameters > 1 else []


def _attention(layer: nn.MultiheadAttention, consumer: bool) -> list[ParameterAxis]:
    rows = [ParameterAxis("in_proj_weight", 0, 3), ParameterAxis("in_proj_bias", 0, 3)]
    return [
        *rows,
        ParameterAxis("in_proj_weight", 1),
        *(ParameterAxis(f"out_proj.{name}", axis) for name, axis in (("weight", 0), ("weight", 1), ("bias", 0))),
    ]


def _recurrent(layer: nn.RNNBase, consumer: bool) -> list[ParameterAxis]:
    if consumer:
        return [ParameterAxis(name, 1) for name, _ in layer.named_parameters() if name.startswith("weight_ih_l0")]
    blocks = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    names = [name for name, _ in layer.named_parameters()]
    inner = [ParameterAxis(name, 1) for name in names if name.startswith("weight_hh")]
    return [*(ParameterAxis(name, 0, blocks) for name in names), *inner]


def _describe_torch() -> None:
    norms = nn.modules.batchnorm._NormBase, nn.GroupNorm
    for layer_type, channel_axis, axes in (
        (nn.modules.conv._ConvNd, 1, _convolution),
        (nn.Linear, -1, _linear),
        (nn.Embedding, -1, lambda layer, consumer: [ParameterAxis("weight", 1)]),
        (nn.LayerNorm, -1, _layer_norm),
        (nn.PReLU, 1, _prelu),
        (nn.MultiheadAttention, -1, _attention),
        (nn.RNNBase, -1, _recurrent),
        *((norm, 1, _channel_norm) for norm in norms),
        *(((nn.RMSNorm, -1, _layer_norm),) if hasattr(nn, "RMSNorm") else ()),
    ):
        batch_first = layer_type in (nn.MultiheadAttention, nn.RNNBase)
        _DESCRIPTIONS[layer_type] = LayerDescription(
            channel_axis, None if batch_first else 0, axes, layer_type is nn.MultiheadAttention
        )


_describe_torch()
