"""A copy of a network to edit, so that the caller's own stays as it is."""

from __future__ import annotations

import copy

from torch import nn

from fairtrim.errors import UnsupportedModelError
from fairtrim.placement import require_whole

__all__ = ["copied_network"]


def copied_network(model: nn.Module) -> nn.Module:
    """A copy without gradients, or an error that says why there is none.

    Args:
        model: The network; untouched.

    Returns:
        The copy.

    Raises:
        UnsupportedModelError: It can't be copied, or its weights lie elsewhere.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> copied_network(model).weight is model.weight
        False
    """
    require_whole(model)
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedModelError(
            f"the network can't be copied ({error}); expected one that copy.deepcopy takes: remove weight norms "
            "and tensors kept from a forward pass, and after masks of torch.nn.utils.prune run it once under "
            "torch.no_grad()"
        ) from error
    copied.zero_grad(set_to_none=True)
    return copied
