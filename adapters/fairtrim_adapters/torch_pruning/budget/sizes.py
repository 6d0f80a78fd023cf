"""What a network costs, as shares of what it cost before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fairtrim.arguments import require_number
from fairtrim.comparison.latency import measure_latency
from fairtrim.comparison.network_size import network_size
from fairtrim.data.batches import Batch, tensors_of
from fairtrim.errors import InputError
from fairtrim.network.scored_network import ScoredNetwork

__all__ = ["COSTS", "Budget", "Cost", "Counter", "Shares"]

Cost = Literal["macs", "parameters", "latency"]
COSTS: dict[Cost, str] = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}
"""What a budget can be of, and what it is called in text."""

_ROUNDS = 15  # of a latency


@dataclass(frozen=True)
class Shares:
    """Costs of a network as shares of those of the dense one; the latency only where it is asked for."""

    parameters: float
    macs: float
    latency: float | None = None

    def of(self, cost: Cost) -> float:
        """One of them."""
        share = {"parameters": self.parameters, "macs": self.macs, "latency": self.latency}[cost]
        assert share is not None
        return share


@dataclass(frozen=True)
class Budget:
    """How much of a cost a network may have.

    Attributes:
        cost: Of what.
        share: Of what the dense network has, in (0, 1).
    """

    cost: Cost
    share: float

    @classmethod
    def of(cls, **shares: float | None) -> Budget:
        """The one budget that was given.

        Args:
            shares: By cost; None where there is none.

        Returns:
            It.

        Raises:
            InputError: None or several are given, or it is no share in (0, 1).

        Example:
            >>> Budget.of(macs=0.5, parameters=None)
            Budget(cost='macs', share=0.5)
        """
        given = {name: share for name, share in shares.items() if share is not None}
        if len(given) != 1:
            raise InputError(
                f"got {' and '.join(f'{name}={share:g}' for name, share in given.items()) or 'no budget'}; expected "
                f"exactly one of {', '.join(f'{name}=' for name in shares)}"
            )
        ((cost, share),) = given.items()
        require_number(cost, share, above=0, below=1, remedy=", the share of the network's that may be left")
        return cls(cost, float(share))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.share:.3g} of the {COSTS[self.cost]}"


class Counter:
    """Counts networks that come from one dense network.

    Args:
        dense: It.
        example_inputs: What networks are run on.
        cost: Of what the budget is; latencies are measured only where it is of them.

    Raises:
        InputError: The network costs nothing that could be saved.
    """

    def __init__(self, dense: ScoredNetwork, example_inputs: Any, cost: Cost) -> None:
        self._dense, self._inputs, self._cost = dense, example_inputs, cost
        if not any(tensor.ndim for tensor in tensors_of(example_inputs)):
            raise InputError(
                f"example_inputs is a {type(example_inputs).__name__} without a tensor (N, ...); expected inputs as "
                "the loader gives them, of one sample: inputs[:1]"
            )
        try:
            self._before = self._counted(dense.model)
        except InputError as error:
            raise InputError(f"example_inputs: {str(error).removeprefix('batch 0: ')}") from error
        if not all(self._before):
            raise InputError(
                f"the network has {self._before[0]:g} parameters and {self._before[1]:g} MACs on example_inputs; "
                "expected some of both"
            )

    def shares(self, model: nn.Module) -> Shares:
        """What a network costs now.

        Args:
            model: The pruned network, or one that is pruned on trial.

        Returns:
            Shares of what the dense one costs.
        """
        parameters, macs = self._counted(model)
        latency = None
        if self._cost == "latency":
            timed = measure_latency(
                {"dense": self._dense.model, "pruned": model},
                self._inputs,
                rounds=_ROUNDS,
                forward_fn=self._dense.forward_fn,
                progress=False,
            )
            latency = timed.ratio("pruned").median
        return Shares(parameters / self._before[0], macs / self._before[1], latency)

    def _counted(self, model: nn.Module) -> tuple[float, float]:
        size = network_size(self._dense.of(model), Batch(self._inputs, _target(self._inputs), None, 0))
        return size["parameters"], size["macs"]


def _target(inputs: Any) -> Any:
    """A target of as many samples as there are, which nothing looks at."""
    return torch.zeros(next(len(tensor) for tensor in tensors_of(inputs) if tensor.ndim), device="cpu")
