"""Masks of single weights, kept by ``torch.nn.utils.prune``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

__all__ = ["holders_of", "in_shapes_of", "mask_weights"]


def holders_of(model: nn.Module, names: Iterable[str]) -> dict[str, list[nn.Module]]:
    """All layers that hold each weight; several where it is shared.

    Args:
        model: The network.
        names: Of parameters that layers call ``weight``.

    Returns:
        The layers by name of the weight.

    Example:
        >>> model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3))
        >>> model[1].weight = model[0].weight
        >>> holders_of(model, ["0.weight"])
        {'0.weight': [Embedding(3, 2), Linear(in_features=2, out_features=3, bias=True)]}
    """
    weights = {name: model.get_parameter(name) for name in names}
    return {
        name: [module for module in model.modules() if module._parameters.get("weight") is weight]
        for name, weight in weights.items()
    }


def in_shapes_of(weights: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
    """One value for each weight, in the shapes of the layers.

    Args:
        weights: By name, W entries in all.
        values: (W,), in the order of the weights.

    Returns:
        The values by name.

    Example:
        >>> in_shapes_of({"a": torch.ones(1, 2), "b": torch.ones(1)}, torch.arange(3))
        {'a': tensor([[0, 1]]), 'b': tensor([2])}
    """
    parts = torch.split(values, [weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def mask_weights(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Put masks on weights, in every layer that holds them.

    Args:
        model: The network, which changes.
        kept: Which entries of a weight stay, bool of its shape, on any device, by name of the weight.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> mask_weights(model, {"weight": torch.tensor([[True, False]])})
        >>> model.weight_mask.tolist(), float(model.weight[0, 1].detach()) == 0
        ([[1.0, 0.0]], True)
    """
    with torch.no_grad():  # masked weights with a graph could not be copied
        for name, layers in holders_of(model, kept).items():
            for layer in layers:
                mask = kept[name].to(layer.get_parameter("weight"))
                prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]
