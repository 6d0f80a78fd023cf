"""Which networks were unlearned, for whoever prunes them afterwards."""

from __future__ import annotations

from torch import nn

__all__ = ["note_unlearned", "was_unlearned"]

_NOTE = "_fairtrim_unlearned"


def note_unlearned(model: nn.Module) -> None:
    """Remember in a network that pairs were unlearned from it; copies remember, files don't.

    Args:
        model: The network.
    """
    setattr(model, _NOTE, True)


def was_unlearned(model: nn.Module) -> bool:
    """Whether a network, or a part of it, is known to have been unlearned.

    Args:
        model: The network.

    Returns:
        Whether it is known; one that was loaded from a file is not.

    Example:
        >>> import copy
        >>> network = nn.Linear(2, 2)
        >>> was_unlearned(network), note_unlearned(network), was_unlearned(nn.Sequential(copy.deepcopy(network)))
        (False, None, True)
    """
    return any(hasattr(module, _NOTE) for module in model.modules())
