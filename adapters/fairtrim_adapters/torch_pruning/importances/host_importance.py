"""Give any importance, fairtrim's or Torch-Pruning's own, what it looks at before a step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from fairtrim import InputError
from fairtrim.damage.running_sums import RunningSums
from fairtrim.data.batches import ForwardFunction, LossFunction, iterate_batches
from fairtrim.data.sensitive_groups import SensitiveNames
from fairtrim.network.sample_loss import SampleLoss, check_loss_inputs
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import in_mode, preserved_random_state
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph

from .channel_importance import ChannelImportance

__all__ = ["needs_data", "refuse_own_data", "refuse_unscored", "scored"]

_NEED_MORE = (tp.importance.OBDCImportance, tp.importance.ActivationImportance)


def needs_data(importance: tp.importance.Importance) -> bool:
    """Whether an importance looks at samples; those of Torch-Pruning that look at weights only don't.

    Args:
        importance: Any.

    Returns:
        Whether.

    Example:
        >>> needs_data(tp.importance.GroupTaylorImportance()), needs_data(tp.importance.GroupMagnitudeImportance())
        (True, False)
    """
    gradients = (tp.importance.GroupTaylorImportance, tp.importance.GroupHessianImportance)
    return isinstance(importance, (ChannelImportance, *gradients))


def refuse_unscored(importance: tp.importance.Importance) -> None:
    """Refuse an importance whose data nobody collects here.

    Args:
        importance: Any.

    Raises:
        InputError: It is OBDC's, or one on activations.

    Example:
        >>> refuse_unscored(tp.importance.GroupMagnitudeImportance())
    """
    if isinstance(importance, _NEED_MORE):
        raise InputError(
            f"{type(importance).__name__} needs statistics of layers that are not collected here; expected an "
            "importance of fairtrim, or Torch-Pruning's random, magnitude, LAMP, FPGM, BNScale, Taylor or Hessian "
            "importance"
        )


def refuse_own_data(importance: tp.importance.Importance) -> None:
    """Refuse an importance that was made with data of its own, where it is fitted to a copy of the network.

    Args:
        importance: Any.

    Raises:
        InputError: It was.

    Example:
        >>> refuse_own_data(tp.importance.GroupMagnitudeImportance())
    """
    if isinstance(importance, str | type) or not callable(importance):
        given = f"{importance!r}" if isinstance(importance, str) else f"a {type(importance).__name__}"
        given = f"the class {importance.__name__}" if isinstance(importance, type) else given
        raise InputError(
            f"importance is {given}; expected an importance, e.g. WorstGroupImportance(), or of a criterion's name "
            "IMPORTANCES[name]()"
        )
    if isinstance(importance, ChannelImportance) and importance._model is not None:
        raise InputError(
            f"{type(importance).__name__} was made with model= and loader=, which would have no effect: it is fitted "
            "here, to a copy and by the scoring data; leave them out"
        )


def scored(
    importance: tp.importance.Importance,
    pruner: tp.pruner.BasePruner,
    loader: Iterable[Any],
    *,
    loss_fn: LossFunction = F.cross_entropy,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
    sensitive_names: SensitiveNames | None = None,
    progress: bool = True,
) -> None:
    """Give an importance what it needs for the pruner's next step.

    fairtrim's are fitted. For Taylor's the gradient of the summed loss is left in the parameters, as its documentation
    has it; for the Hessian the mean of the squared gradients of single samples (Torch-Pruning 1.6's ``accumulate_grad``
    keeps those of the last sample only, so it is called once, with their root mean square). Random, magnitude, LAMP,
    FPGM and BNScale look at no data, and the loader isn't read. The graph is put in order for every one of them.

    Args:
        importance: Any but OBDC's and those on activations.
        pruner: Whose next step it will score.
        loader: Batches of (inputs, target) or (inputs, target, sensitive).
        loss_fn: Of scores and target.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        sensitive_names: Names of the sensitive features, and of their values.
        progress: Show a progress bar.

    Raises:
        InputError: The importance needs what is not collected here, or the data is wrong.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> taylor = tp.importance.GroupTaylorImportance()
        >>> pruner = tp.pruner.BasePruner(model, torch.ones(1, 3), importance=taylor, ignored_layers=[model[2]])
        >>> scored(taylor, pruner, [(torch.eye(3), torch.tensor([0, 1, 1]))], progress=False)
        >>> tuple(model[0].weight.grad.shape)
        (4, 3)
    """
    refuse_unscored(importance)
    calling: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
    if isinstance(importance, ChannelImportance):
        shared = {"sensitive_names": sensitive_names, "progress": progress, **calling}
        if loss_fn is not F.cross_entropy:  # else the importance's own default
            shared["loss_fn"] = loss_fn
        # what the importance was made with is for it alone, and takes precedence over what all share
        options = {k: v for k, v in shared.items() if k not in importance.idle_options and k not in importance._options}
        importance.fit(pruner, loader, **options)
        return
    correct_graph(pruner.DG)
    network = ScoredNetwork(pruner.model, **calling)
    if isinstance(importance, tp.importance.GroupTaylorImportance):
        _sum_gradients(network, loader, loss_fn, progress)
    elif isinstance(importance, tp.importance.GroupHessianImportance):
        _mean_squares(importance, network, loader, loss_fn, progress)


def _sum_gradients(network: ScoredNetwork, loader: Iterable[Any], loss_fn: LossFunction, progress: bool) -> None:
    """The gradient of the summed loss, in the parameters."""
    network.model.zero_grad()
    with preserved_random_state(loader), in_mode(network.model, training=False), torch.enable_grad():
        for batch in iterate_batches(loader, network.device, progress=progress, description="Taylor scores"):
            scores = network.scores(batch, positions=True)
            check_loss_inputs(loss_fn, scores, batch.target)
            loss = loss_fn(scores, batch.target)
            (loss.mean() * len(batch)).backward()  # type: ignore[no-untyped-call]


def _mean_squares(
    importance: tp.importance.GroupHessianImportance,
    network: ScoredNetwork,
    loader: Iterable[Any],
    loss_fn: LossFunction,
    progress: bool,
) -> None:
    """The mean of the squared gradients of single samples, handed to the importance."""
    model, sample_loss, n_samples = network.model, SampleLoss(loss_fn), 0
    squares: dict[nn.Parameter, RunningSums] = {}
    precise = torch.float64 if network.device.type == "cpu" else torch.float32
    with preserved_random_state(loader), in_mode(model, training=False), torch.enable_grad():
        for batch in iterate_batches(loader, network.device, progress=progress, description="Hessian scores"):
            losses = sample_loss(network.scores(batch, positions=True), batch.target)
            for k, loss in enumerate(losses):
                model.zero_grad()
                loss.backward(retain_graph=k + 1 < len(losses))
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        sums = squares.setdefault(parameter, RunningSums(*parameter.shape, max_bytes=math.inf))
                        sums.add(parameter.grad.to(torch.promote_types(precise, parameter.dtype)).square()[None])
            n_samples += len(losses)
    model.zero_grad()
    for parameter, sums in squares.items():
        parameter.grad = (sums.total(1)[0] / n_samples).sqrt().to(parameter.dtype).to(parameter.device)
    importance.zero_grad()
    importance.accumulate_grad(model)
