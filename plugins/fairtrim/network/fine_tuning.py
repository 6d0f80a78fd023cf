"""A small training loop: enough for the short fine-tunes that recipes need, and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, WeightedRandomSampler

from fairtrim.arguments import RandomState, keyword_names, random_generator, renamed, require_known, require_number
from fairtrim.data.batches import Batch, ForwardFunction, LossFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import to_device
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.placement import require_whole
from fairtrim.preservation import in_mode, seeded
from fairtrim.progress import progress_bar

from .batchnorm import batchnorm_layers
from .copied_network import copied_network
from .held_out import BestEpoch, cells_of, check_held_out, held_out_samples
from .losses import contrastive_loss
from .output_layer import FeatureTap
from .sample_loss import check_loss_inputs
from .scored_network import OutputTransform, ScoredNetwork

__all__ = ["FineTuning", "check_trainable", "complete_settings", "fine_tune", "reinitialized"]


def reinitialized(model: nn.Module, random_state: RandomState) -> nn.Module:
    """A copy of a network with new random weights.

    Args:
        model: The network; every layer with parameters needs ``reset_parameters``, as torch's layers have.
        random_state: Seed, or a torch.Generator.

    Returns:
        The copy.

    Raises:
        UnsupportedModelError: A layer can't be drawn anew, or the network not be copied.
    """
    fresh = copied_network(model)
    stubborn = [
        name or type(module).__name__
        for name, module in fresh.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not hasattr(module, "reset_parameters")
    ]
    if stubborn:
        raise UnsupportedModelError(
            f"the layers {stubborn[:5]} have parameters but no reset_parameters(), so the network can't be trained "
            "from scratch; pass network=, a function that builds a new one"
        )
    with seeded(random_generator(random_state)):
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return fresh.requires_grad_()


class FineTuning(TypedDict, total=False):
    """Settings of the training loop; the same for ``fine_tune``, for recipes and for sweeps.

    Attributes:
        epochs: Passes over N samples; default 1.
        learning_rate: At the start; default 1e-3.
        contrastive_weight: λ_con of ``contrastive_loss``; default 0, which leaves it out.
        feature_layer: Layer whose inputs are the features of the contrastive term; found if None.
        held_out: A share of the samples that the training does not see, drawn in every class, of its mined
            (``conflicting=``) and its other samples alike; after each epoch the network is judged by its accuracy on
            them, the mean over these cells, and the weights of the best epoch are kept, the earliest of equals. Or the
            samples themselves, flags (N,) bool: best those that the network as it is given has not seen, either, for
            it knows by heart what it was trained on. Default None, which trains on all, to the end.

    Example:
        >>> settings: FineTuning = {"epochs": 3, "learning_rate": 1e-2}
        >>> loader = DataLoader([(torch.ones(1), torch.tensor(1))] * 4, batch_size=2)
        >>> isinstance(fine_tune(nn.Linear(1, 2), loader, progress=False, **settings), nn.Linear)
        True
    """

    epochs: int
    learning_rate: float
    contrastive_weight: float
    feature_layer: str | None
    held_out: float | Tensor | None


_DEFAULTS: FineTuning = {
    "epochs": 1,
    "learning_rate": 1e-3,
    "contrastive_weight": 0.0,
    "feature_layer": None,
    "held_out": None,
}


def complete_settings(given: FineTuning | None, defaults: FineTuning | None = None) -> FineTuning:
    """All settings, checked before hours of work; ``defaults`` go before the loop's own.

    Example:
        >>> complete_settings({"epochs": 3}, {"learning_rate": 0.1, "epochs": 5})
        {'epochs': 3, 'learning_rate': 0.1, 'contrastive_weight': 0.0, 'feature_layer': None, 'held_out': None}
    """
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"fine_tuning is a {type(given).__name__}; expected a dict such as {{'epochs': 3}}")
    require_known("fine_tuning", given or {}, FineTuning.__annotations__)
    settings: FineTuning = {**_DEFAULTS, **(defaults or {}), **(given or {})}
    require_number("epochs", settings["epochs"], at_least=0, whole=True)
    require_number("learning_rate", settings["learning_rate"], above=0)
    require_number("contrastive_weight", settings["contrastive_weight"], at_least=0)
    check_held_out(settings["held_out"])
    return settings


@renamed(generator="random_state", seed="random_state")
@torch.inference_mode(False)  # there nothing has a slope
def fine_tune(
    model: nn.Module,
    loader: DataLoader[object] | IndexedSamples,
    *,
    sample_weights: Tensor | None = None,
    loss_fn: LossFunction = F.cross_entropy,
    conflicting: Tensor | None = None,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
    random_state: RandomState = 0,
    after_epoch: Callable[[int], None] | None = None,
    progress: bool = True,
    **fine_tuning: Unpack[FineTuning],
) -> nn.Module:
    """Train a network with Adam, its learning rate falling to zero, on samples drawn by weight.

    Args:
        model: Changed in place; its training flags are restored. Frozen parameters stay as they are, and so do the
            statistics of a BatchNorm whose parameters are frozen.
        loader: A DataLoader of (inputs, target, ...); its order is replaced.
        sample_weights: Sampling weights, (N,), by index in the dataset; None takes every sample once an epoch.
        loss_fn: Loss of scores and target, taken of each batch as it is: weights that it has of its own, and terms over
            pairs of samples, count.
        conflicting: b, the samples mined as bias-conflicting, (N,), for the contrastive term and for ``held_out``.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        random_state: Seed, or a torch.Generator.
        after_epoch: Called with the number of each finished epoch.
        progress: Show a progress bar.
        fine_tuning: See ``FineTuning``.

    Returns:
        The same network.

    Raises:
        InputError: An argument or the data is wrong, a label out of range, or a loss not finite.
        UnsupportedModelError: Its weights are offloaded or sharded.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> y = torch.tensor([1] * 15 + [0] * 5)
        >>> loader = DataLoader(TensorDataset(torch.ones(20, 1), y), batch_size=20)
        >>> model = fine_tune(nn.Linear(1, 2), loader, epochs=100, learning_rate=0.1, progress=False)
        >>> round(model(torch.ones(1, 1)).softmax(1)[0, 1].item(), 2)  # the share of label 1
        0.75
    """
    samples = loader if isinstance(loader, IndexedSamples) else IndexedSamples(loader)
    require_known("fine_tune", fine_tuning, keyword_names(fine_tune, FineTuning))
    settings: FineTuning = {**_DEFAULTS, **fine_tuning}
    _check(settings, conflicting, samples)
    check_trainable(model, samples)
    epochs, contrastive_weight = settings["epochs"], settings["contrastive_weight"]
    network, generator = ScoredNetwork(model, forward_fn, output_transform), random_generator(random_state)
    device, flags = network.device, None if conflicting is None else conflicting.cpu()
    best = _best_epoch(settings["held_out"], network, samples, conflicting, generator)
    seen = None if best is None else ~best.held_out
    n_batches = len(samples) if seen is None else -(-int(seen.sum()) // samples.batch_size)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings["learning_rate"])
    total = max(1, epochs * n_batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
    norms, frozen = _norms(model)
    tap = FeatureTap(model, settings["feature_layer"]) if contrastive_weight else None

    def loss_of(indices: Tensor, batch: Batch) -> Tensor:
        with tap.attached() if tap else nullcontext():
            scores = network.scores(batch.inputs_on(device))
            check_loss_inputs(loss_fn, scores, batch.target)  # where the loader has them: no wait on the CPU
            target = to_device(batch.target, device)
            loss = loss_fn(scores, target).mean()  # of a loss that gives one number a sample
            if tap is not None and flags is not None:
                b = to_device(flags[indices], device)
                loss = loss + contrastive_weight * contrastive_loss(tap.features(scores), target, b)
        return loss

    bar = progress_bar(description="training", total=total, shown=progress, unit="batch")
    try:
        with bar, in_mode(model, training=True):
            for norm in frozen:
                norm.eval()
            for epoch in range(epochs):
                with seeded(generator):  # dropout and transforms
                    for indices, batch in samples.shuffled(None, generator, sample_weights, among=seen):
                        if norms and len(batch) < 2:  # the rest of an epoch; one sample has no statistics
                            continue
                        loss = loss_of(indices, batch)
                        optimizer.zero_grad()
                        loss.backward()  # type: ignore[no-untyped-call]
                        if not bool(torch.isfinite(loss)):  # a device is waited for when it has enough to do
                            raise InputError(
                                f"the loss of batch {batch.index} is {loss.item()}; lower the learning rate"
                            )
                        optimizer.step()
                        schedule.step()
                        bar.update()
                if best is not None:
                    best.judge()
                if after_epoch is not None:
                    after_epoch(epoch)
        if best is not None:
            best.restore()
    finally:
        for parameter in parameters:
            parameter.grad = None
    return model


def _best_epoch(
    held_out: float | Tensor | None,
    network: ScoredNetwork,
    samples: IndexedSamples,
    conflicting: Tensor | None,
    generator: torch.Generator,
) -> BestEpoch | None:
    """What keeps the best epoch, its samples drawn; None where nothing is held out."""
    if held_out is None:
        return None
    with seeded(torch.Generator().manual_seed(0)):  # of transforms: only labels are looked at
        target = torch.cat([batch.target.cpu() for _, batch in samples.in_order(torch.device("cpu"))])
    flags = held_out_samples(held_out, target, conflicting, generator)
    return BestEpoch(network, samples, flags, cells_of(target, conflicting))


def _norms(model: nn.Module) -> tuple[list[_BatchNorm], list[_BatchNorm]]:
    """The BatchNorm layers, and those of them whose parameters are frozen."""
    norms = batchnorm_layers(model, with_statistics=False)
    return norms, [norm for norm in norms if norm.affine and not any(p.requires_grad for p in norm.parameters())]


def check_trainable(model: nn.Module, samples: IndexedSamples) -> None:
    """Refuse a network and data that ``fine_tune`` can't train with, whatever its settings.

    Args:
        model: The network.
        samples: The dataset.

    Raises:
        InputError: The loader draws by weight, every parameter is frozen, or BatchNorm would see batches of one.
        UnsupportedModelError: Its weights are offloaded or sharded.
    """
    require_whole(model)
    if isinstance(samples.loader.sampler, WeightedRandomSampler):
        raise InputError("the loader draws by weight, and its order is replaced here; pass sample_weights= instead")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("every parameter is frozen; expected some with requires_grad=True to train")
    norms, frozen = _norms(model)
    if len(norms) > len(frozen) and samples.batch_size < 2:
        raise InputError("the network has BatchNorm and the loader batches of one, which has no statistics")


def _check(settings: FineTuning, conflicting: Tensor | None, samples: IndexedSamples) -> None:
    """Refuse settings that can't be, or would have no effect."""
    epochs, learning_rate = settings["epochs"], settings["learning_rate"]
    contrastive_weight, feature_layer = settings["contrastive_weight"], settings["feature_layer"]
    if epochs < 0 or learning_rate <= 0:
        raise InputError(f"epochs={epochs}, learning_rate={learning_rate}; expected at least 0 and a positive number")
    if contrastive_weight and conflicting is None:
        raise InputError("contrastive_weight needs conflicting=, the mined samples")
    check_held_out(settings["held_out"], samples.n_samples)
    idle_flags = conflicting is not None and settings["held_out"] is None
    if not contrastive_weight and (idle_flags or feature_layer is not None):
        idle = "conflicting=" if idle_flags else "feature_layer="
        raise InputError(
            f"{idle} would have no effect without contrastive_weight=, the weight of the term that reads it; to show "
            "the mined samples more often pass sample_weights="
        )
    if conflicting is not None:
        samples.check_flags(conflicting)
