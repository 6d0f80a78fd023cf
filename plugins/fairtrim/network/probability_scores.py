"""Scores that are probabilities already, where logits are expected: told apart by their values, or by what made them.

Of a sigmoid's output none is below 0, so that everybody gets label 1; of a softmax's the largest still decides,
but cross-entropy would take another softmax.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fairtrim.data.batches import Batch
from fairtrim.errors import InputError
from fairtrim.preservation import preserved_model

from .scored_network import ScoredNetwork

__all__ = ["ProbabilityScores", "SigmoidWatch", "label_scores", "refuse_shares", "refuse_sigmoid"]

_ROWS_OF_SHARES = 8
"""Rows of logits that sum to 1: one in 10,000 does so by chance, eight never."""
_SCORES_IN_UNIT = 20
"""Single scores of which some are near 0, some near 1, and none beyond."""
_NEAR = 0.05

_SIGMOIDS = frozenset(
    {
        *(torch.sigmoid, torch.sigmoid_, torch.Tensor.sigmoid, torch.Tensor.sigmoid_, torch.special.expit),
        *(F.sigmoid, F.hardsigmoid),
    }
)
_SAME_VALUES = frozenset(
    {
        *("squeeze", "unsqueeze", "view", "view_as", "reshape", "flatten", "unflatten", "ravel", "t", "transpose"),
        *("to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "clone", "contiguous"),
        *("detach", "permute", "__getitem__", "select", "index_select", "narrow"),
    }
)


class ProbabilityScores:
    """Looks at the scores of one batch after another.

    Example:
        >>> seen = ProbabilityScores()
        >>> seen.add(torch.linspace(-3, 3, 60).reshape(20, 3).softmax(1))
        >>> seen.shares, seen.in_unit
        (True, False)
    """

    def __init__(self) -> None:
        self._shares, self._unit = True, True
        self._n_rows = self._n_scores = self._n_inside = self._n_columns = 0
        self.low, self.high = torch.inf, -torch.inf

    @property
    def shares(self) -> bool:
        """Whether all rows have been shares of 1, as those of a softmax are, and enough to be sure."""
        return self._shares and self._n_rows >= _ROWS_OF_SHARES

    @property
    def in_unit(self) -> bool:
        """Whether all scores have lain in [0, 1], from one end to the other, and enough to be sure."""
        spread = self.low <= _NEAR and self.high >= 1 - _NEAR
        # 0 and 1 may as well be decisions, of which > 0 is right
        enough = (self._n_scores if self.low > 0 else self._n_inside) >= _SCORES_IN_UNIT
        return self._unit and spread and enough

    def add(self, scores: Tensor) -> None:
        """Look at one batch, (N, K) or (N, T, K); costs nothing once they are known to be no probabilities."""
        if not (self._shares or self._unit) or not scores.numel():
            return
        if not scores.is_floating_point():
            raise InputError(
                f"the network returned {scores.dtype}, which are labels or counts; expected scores (N, K) in floating "
                "point: leave argmax and thresholds out of the network, or select scores with output_transform"
            )
        rows = scores.detach().reshape(-1, scores.shape[-1])
        low, high = (float(end) for end in torch.stack(rows.aminmax()).tolist())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._unit = self._unit and low >= 0 and high <= 1
        self._n_scores += rows.numel()
        self._n_columns = rows.shape[1]
        self._shares = self._shares and self._unit and rows.shape[1] > 1
        if not self._unit:
            return
        tolerance = max(1e-4, 2 * float(torch.finfo(rows.dtype).eps))
        sums = rows.to(torch.promote_types(torch.float32, rows.dtype)).sum(1)
        inside, beyond, below_one = torch.stack(
            [((rows > 0) & (rows < 1)).sum(), ((sums - 1).abs() > tolerance).sum(), (rows.amax(1) < 1).sum()]
        ).tolist()
        self._n_inside += inside
        self._shares = self._shares and not beyond
        # 1 and zeros may as well be somebody's features
        self._n_rows += below_one if self._shares else 0

    def check_single(self, name: str) -> None:
        """Refuse single scores that have turned out to be probabilities."""
        if self._n_columns == 1 and self.in_unit:
            refuse_sigmoid(name, f"its {self._n_scores} scores lie in [0, 1], from {self.low:.3g} to {self.high:.3g}")


class SigmoidWatch(TorchFunctionMode):
    """Notes which tensors are the output of a sigmoid while a network runs.

    Example:
        >>> with SigmoidWatch() as watch:
        ...     scores = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid(), nn.Flatten(0))(torch.ones(3, 2))
        ...     logits = torch.logit(scores)
        >>> watch.made(scores), watch.made(logits)
        (True, False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def made(self, tensor: Any) -> bool:
        """Whether a sigmoid made it, and nothing has changed its values since."""
        kept = self._made.get(id(tensor))
        return isinstance(tensor, Tensor) and kept is not None and kept[0]() is tensor and kept[1] == tensor._version

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and note its output."""
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        same = name in _SAME_VALUES and bool(args) and self.made(args[0])
        # the version counts what is done in place, to the tensor or a view; one of inference mode has none
        if (func in _SIGMOIDS or same) and isinstance(output, Tensor) and not output.is_inference():
            self._made[id(output)] = weakref.ref(output), output._version
        return output


def _can_be_watched(model: nn.Module) -> bool:
    """The functions of a compiled network can't."""
    return not any(
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or isinstance(module, torch.jit.ScriptModule)
        for module in model.modules()
    )


def label_scores(
    name: str,
    network: ScoredNetwork,
    batch: Batch,
    *,
    positions: bool = False,
    watch: bool = True,
) -> Tensor:
    """Scores of one batch, whose sign or largest one is to be the label; in eval mode, and the network left as it was.

    The inputs lie where the network does.

    With ``positions`` scores (N, T, K) for a target (N, T) will do as well. ``watch`` looks at what makes the scores;
    once a network is enough. The output of a sigmoid is refused.

    Example:
        >>> batch = Batch(torch.zeros(2, 1), torch.tensor([0, 1]), None, 0)
        >>> label_scores("net", ScoredNetwork(nn.Sigmoid(), output_transform=torch.logit), batch).tolist()
        [[0.0], [0.0]]
    """
    watched = watch and _can_be_watched(network.model)
    with preserved_model(network.model), SigmoidWatch() if watched else nullcontext() as seen:
        scores = network.scores(batch, positions=positions)
    if seen is not None and scores.shape[-1] == 1 and seen.made(scores):
        refuse_sigmoid(name, "its single score is the output of a sigmoid")
    return scores


def refuse_sigmoid(name: str, found: str) -> NoReturn:
    """Refuse single scores that are probabilities, known by ``found``, and say what to do."""
    raise InputError(
        f"{name} returns probabilities: {found}, of which none is below 0, so that everybody gets label 1; "
        "expected a logit: leave the sigmoid to the loss (binary_cross_entropy_with_logits), or pass "
        "output_transform=lambda p: torch.logit(p, eps=1e-6)"
    )


def refuse_shares(name: str) -> NoReturn:
    """Refuse scores that are probabilities where a softmax is taken of them, and say what to do."""
    raise InputError(
        f"{name} returns probabilities: the scores of every sample lie in [0, 1] and sum to 1, and softmax would be "
        "taken of them once more; expected scores before softmax: leave it to the loss (cross_entropy), or pass "
        "output_transform=lambda p: p.clamp_min(1e-12).log()"
    )
