"""After channels are gone: BatchNorm's statistics again, without labels; the output layer again, with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairtrim.arguments import RandomState, random_generator, require_choice, require_network
from fairtrim.data.batches import Batch, ForwardFunction, iterate_batches
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.data.labels import require_labels, whole_labels
from fairtrim.devices import model_device
from fairtrim.errors import InputError
from fairtrim.measures.scores import label_losses, positive_margin
from fairtrim.measures.threshold_sweep import ThresholdSweep
from fairtrim.placement import require_whole
from fairtrim.preservation import in_mode, insist, preserved_model, preserved_random_state

from .batchnorm import batchnorm_layers
from .held_out import cells_of, held_out_samples
from .output_layer import LinearHead, find_head, fold_threshold
from .scored_network import OutputTransform, ScoredNetwork

__all__ = ["output_layer_to_fit", "recalibrate_batchnorm", "recalibrate_output"]

_HELD_OUT = 5  # one sample in so many
_RIDGES = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
_MAX_ITERATIONS = 200


def recalibrate_batchnorm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward_fn: ForwardFunction | None = None,
    max_batches: int | None = None,
    progress: bool = True,
) -> nn.Module:
    """Replace running means and variances by their averages over a loader, in place.

    Removing channels shifts what the layers behind them see, and the stored statistics no longer fit. Only the
    BatchNorm layers run in training mode; targets are ignored; weights do not change; batches of a single sample,
    which has no variance, are left out.

    Args:
        model: The network; its training flags are restored.
        loader: Batches of (inputs, target[, sensitive]).
        forward_fn: How to call the network.
        max_batches: Stop after so many batches.
        progress: Show a progress bar.

    Returns:
        The same network.

    Raises:
        InputError: The network has no BatchNorm with running statistics, every batch is a single sample, or the
            statistics are not finite.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> batch = (torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
        >>> recalibrate_batchnorm(norm, [batch], progress=False).running_mean
        tensor([2.])
    """
    require_network("model", model)
    norms = batchnorm_layers(model)
    if not norms:
        raise InputError("the network has no BatchNorm with running statistics; there is nothing to recalibrate")
    before = [(norm, norm.momentum, {k: b.detach().clone() for k, b in norm.named_buffers()}) for norm in norms]

    def restore_statistics() -> None:
        for norm, _, buffers in before:
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)

    def restore_momentum() -> None:
        for norm, momentum, _ in before:
            norm.momentum = momentum

    with preserved_random_state(loader), in_mode(model, training=False), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.training = True
            batches = iterate_batches(
                loader, model_device(model), max_batches=max_batches, progress=progress, description="BatchNorm"
            )
            _average(ScoredNetwork(model, forward_fn), norms, batches)
        except BaseException:
            insist(restore_statistics)
            raise
        finally:
            insist(restore_momentum)
    return model


def _average(network: ScoredNetwork, norms: Sequence[_BatchNorm], batches: Iterable[Batch]) -> None:
    """Run the network over the batches, so that every sample counts once."""
    n_samples = 0
    for batch in batches:
        if len(batch) < 2:  # the rest of a loader; one sample has no variance
            continue
        n_samples += len(batch)
        for norm in norms:
            norm.momentum = len(batch) / n_samples
        batch.check_length()
        network.output(batch.inputs, index=batch.index)
    if n_samples == 0:
        raise InputError("every batch holds one sample; statistics need at least two at a time")
    if not bool(torch.stack([torch.isfinite(buffer).all() for norm in norms for buffer in norm.buffers()]).all()):
        raise InputError("the statistics are not finite; check the inputs for NaN and infinity")


@torch.inference_mode(False)  # there nothing has a slope
def recalibrate_output(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layer: Literal["output", "threshold"] = "output",
    balanced: bool = False,
    conflicting: Tensor | None = None,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
    max_batches: int | None = None,
    random_state: RandomState = 0,
    progress: bool = True,
) -> nn.Module:
    """Fit the output layer, or its threshold alone, to labels again, in place; all other layers stay as they are.

    ``"output"``: the last linear layer θ, K scores on D features h, minimises Σ_n w_n ℓ(θ h_n, y_n) + ½ λ Σ_kd m_d
    (θ_kd − θ⁰_kd)², with ℓ cross-entropy, m_d the mean square of feature d and θ⁰ the present weights, by L-BFGS in
    float64; the bias is free. λ is the best of several on every fifth sample, held out, and the layer stays as it is
    where none is better there. ``"threshold"``: of two classes, the bias moves to where the most samples are right.

    With ``conflicting`` this is last-layer retraining (DFR: Kirichenko, Izmailov, Wilson, ICLR 2023), with weights in
    place of their random balanced subsets, and the ridge toward θ⁰ in place of their ℓ1 penalty. As published it takes
    samples that the network was not trained on: pass a loader of such.

    Args:
        model: The network; it ends in a linear layer with a bias, which gives logits.
        loader: Batches of (inputs, labels[, sensitive]).
        layer: What to fit.
        balanced: Let the classes count alike, however many samples each has.
        conflicting: The samples mined as bias-conflicting, (N,) bool by index in the dataset of the DataLoader: lets
            every cell of class and flag count alike, however many samples it has, in place of ``balanced``.
        forward_fn: How to call the network.
        output_transform: Takes the scores out of what it returns.
        max_batches: Stop after so many batches.
        random_state: Draws the held-out samples.
        progress: Show a progress bar.

    Returns:
        The same network.

    Raises:
        InputError: The labels are of one class or not those of the network, features are not finite, or flags are not
            those of the dataset.
        UnsupportedModelError: The network ends in something else. After any error the network is as before.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> model.weight.data, model.bias.data = torch.ones(1, 1), torch.zeros(1)
        >>> batch = (torch.tensor([[1.0], [2.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]))
        >>> recalibrate_output(model, [batch], layer="threshold", progress=False).bias.tolist()
        [-3.0]
    """
    require_choice("layer", layer, ["output", "threshold"])
    generator = random_generator(random_state)
    network = ScoredNetwork(model, forward_fn, output_transform)
    network.check()
    require_whole(model)
    entries = loader if conflicting is None else _in_order(loader, conflicting, balanced)
    with preserved_random_state(loader), preserved_model(model), torch.no_grad():
        batches = iterate_batches(entries, None, max_batches=max_batches, progress=progress, description="output layer")
        head, features, target = _features(network, batches, layer)
    theta = head.theta()
    weight = torch.ones(len(target), dtype=torch.float64, device="cpu")
    flags = None if conflicting is None else conflicting[: len(target)]  # fewer with max_batches
    if balanced or flags is not None:
        cells = cells_of(target, flags)
        weight = 1 / torch.bincount(cells).clamp_min(1).double()[cells]
    weight = weight / weight.sum()
    if layer == "threshold":
        threshold = _best_threshold(features @ theta.T, target, weight)
    else:
        held = torch.zeros(len(target), dtype=torch.bool, device="cpu")
        if flags is not None:  # some of every cell, for the rare ones weigh the most
            held = held_out_samples(1 / _HELD_OUT, target, flags, generator)
        else:
            held[torch.randperm(len(target), generator=generator, device="cpu")[: len(target) // _HELD_OUT]] = True
        refitted = _refitted(theta, features, target, weight, held)
    try:
        if layer == "threshold":
            fold_threshold(head.module, threshold)
        else:
            head.write(refitted)
    except BaseException:
        insist(lambda: head.write(theta))
        raise
    return model


def _in_order(loader: Any, conflicting: Tensor, balanced: bool) -> Iterator[tuple[Any, Tensor]]:
    """The samples in the order of their flags, whatever the loader's own."""
    if balanced:
        raise InputError("balanced=True would have no effect beside conflicting=, which balances classes and flags")
    samples = IndexedSamples(loader)
    if not isinstance(conflicting, Tensor) or conflicting.dtype != torch.bool:
        raise InputError(
            f"conflicting is a {getattr(conflicting, 'dtype', type(conflicting).__name__)}; expected flags, (N,) "
            "torch.bool"
        )
    samples.check_flags(conflicting)
    if not bool(conflicting.any()):
        raise InputError("conflicting flags no sample; expected some, or balanced=True for the classes alone")
    return ((batch.inputs, batch.target) for _, batch in samples.in_order(torch.device("cpu")))


def output_layer_to_fit(network: ScoredNetwork, batch: Batch, layer: Literal["output", "threshold"]) -> LinearHead:
    """The layer that ``recalibrate_output`` would fit, or its refusal, from one batch.

    Args:
        network: The network; left as it was.
        batch: The batch.
        layer: What to fit.

    Returns:
        The layer.

    Raises:
        InputError: There are more than two classes for a threshold.
        UnsupportedModelError: The network ends in something else.
    """
    head = find_head(network, batch)
    if layer == "threshold" and head.module.out_features > 2:
        raise InputError(
            f"the network has {head.module.out_features} scores, and a threshold divides two classes; expected one or "
            "two, or layer='output'"
        )
    return head


def _features(
    network: ScoredNetwork, batches: Iterable[Batch], layer: Literal["output", "threshold"]
) -> tuple[LinearHead, Tensor, Tensor]:
    """The output layer, its inputs with a column of ones, (N, D + 1) float64, and the labels, (N,)."""
    head: LinearHead | None = None
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    device = network.device
    for batch in batches:
        batch.check_length()
        target = whole_labels(batch.target.cpu(), batch.index)
        batch = batch.inputs_on(device)
        head = head or output_layer_to_fit(network, batch, layer)
        features, scores = head.features(network, batch)
        features = features.cpu()
        require_labels(target, scores.shape[1])
        if not bool(torch.isfinite(features).all()):
            raise InputError(f"batch {batch.index}: the features of the output layer are not finite; check the inputs")
        parts.append(features.double())
        labels.append(target)
    assert head is not None  # a loader without samples was refused
    everything, target = torch.cat(parts), torch.cat(labels)
    if len(torch.unique(target)) < 2:
        raise InputError(f"all {len(target)} samples have label {int(target[0])}; expected at least two classes")
    return head, torch.cat([everything, everything.new_ones(len(target), 1)], 1), target


def _best_threshold(scores: Tensor, target: Tensor, weight: Tensor) -> float:
    """On the margin of label 1; the present one, 0, unless another is better, and of equal ones the nearest."""
    margin = positive_margin(scores)
    sweep = ThresholdSweep.of(margin, target, torch.zeros_like(target), n_groups=1, weight=weight)
    counts = sweep.counts
    right = (counts.true_positive + counts.negative - counts.false_positive).flatten()
    now = float(weight @ ((margin > 0).long() == target).double())
    best = float(right.max())
    if best <= now + 1e-12:
        return 0.0
    among = sweep.threshold[right >= best - 1e-12]
    return float(among[among.abs().argmin()])


def _refitted(theta: Tensor, features: Tensor, target: Tensor, weight: Tensor, held: Tensor) -> Tensor:
    """The weights with the ridge that is best on the held-out samples, fitted on all; θ itself if none is better."""
    fitted = ~held
    if int(held.sum()) < 2 or float(weight[fitted].sum()) == 0:
        raise InputError(f"{len(target)} samples are too few to hold some out; expected at least {2 * _HELD_OUT}")
    tested = weight[held] / weight[held].sum()

    def error(candidate: Tensor) -> float:
        return float(tested @ label_losses(features[held] @ candidate.T, target[held]))

    best, ridge, start = error(theta), None, theta
    for strength in _RIDGES:  # each begins where the last ended
        start = _minimum(theta, start, features[fitted], target[fitted], weight[fitted], strength)
        loss = error(start)
        if loss < best:
            best, ridge = loss, strength
    return theta if ridge is None else _minimum(theta, theta, features, target, weight, ridge)


def _minimum(
    present: Tensor, start: Tensor, features: Tensor, target: Tensor, weight: Tensor, strength: float
) -> Tensor:
    """Where the loss with a ridge toward the present weights is smallest, (K, D + 1)."""
    share = weight / weight.sum()
    moments = share @ features.square()
    # in units of each feature, so that the steps are alike
    units = moments.clamp_min(1e-12 * float(moments.max())).sqrt()
    penalized = torch.ones_like(units)
    penalized[-1] = 0.0
    change = ((start - present) * units).clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [change],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = share @ label_losses(features @ (present + change / units).T, target)
        loss = loss + strength / 2 * (penalized * change.square()).sum()
        (change.grad,) = torch.autograd.grad(loss, [change])
        return loss

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return present + change.detach() / units
