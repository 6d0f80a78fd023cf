"""Contrastive weight pruning (DCWP) as published: a gate for every single weight, and masks from the gates.

Park, Lee, Lee and Ye, CVPR 2023, arXiv 2210.05247, stage 3. A masked network is no smaller and no faster; gates of
whole channels, which make it so, are in ``contrastive_gates``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.data import DataLoader

from fairtrim.arguments import RandomState, few_of, refuse_string, require_number
from fairtrim.data.batches import Batch
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.network.copied_network import copied_network
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.network.weight_masks import holders_of, in_shapes_of, mask_weights
from fairtrim.placement import require_whole
from fairtrim.preservation import insist, preserved_model, preserved_random_state, remove_hooks

from .contrastive_objective import ContrastiveObjective, GateLearning, learn_logits

__all__ = ["gated_weights", "gumbel_sigmoid", "learn_weight_masks", "masked_network"]


def gumbel_sigmoid(logits: Tensor, uniform: Tensor) -> Tensor:
    """A Bernoulli draw with P(open) = σ(π) and the slope of the relaxed draw: the straight-through Gumbel-sigmoid.

    With the logistic noise g = log u − log(1 − u) the relaxed draw is s = σ(π + g), temperature 1, and the gate is 1
    where s > ½, which is so with probability σ(π).

    Args:
        logits: π.
        uniform: u, draws from [0, 1) of the same shape.

    Returns:
        Zeros and ones.

    Example:
        >>> pi = torch.zeros(2, requires_grad=True)
        >>> gates = gumbel_sigmoid(pi, torch.tensor([0.2, 0.9]))
        >>> gates.detach().tolist(), torch.autograd.grad(gates.sum(), pi)[0]  # s (1 - s), and here s = u
        ([0.0, 1.0], tensor([0.1600, 0.0900]))
    """
    relaxed = torch.sigmoid(logits + uniform.log() - torch.log1p(-uniform))
    return (relaxed > 0.5).to(logits.dtype) + (relaxed - relaxed.detach())


def learn_weight_masks(
    model: nn.Module,
    loader: DataLoader[object] | IndexedSamples,
    objective: ContrastiveObjective,
    *,
    ignored_layers: Sequence[str] = (),
    random_state: RandomState = 0,
    progress: bool = True,
    **learning: Unpack[GateLearning],
) -> dict[str, Tensor]:
    """Logits π of a gate for every weight that minimise E[objective] + λ mean σ(π), weights frozen.

    Gated are the weights, not the biases, of the linear and convolutional layers that the network calls, the first and
    the last among them, as in the authors' code. A weight that several layers share has one gate. Other than there
    P(open) is σ(π), where the authors feed the probability σ(π) itself as a logit, so that at least half of the gates
    are open; and the sparsity term is the mean of σ(π) and not a sum of π (their weight of it is 1e-8 for each gate,
    our 0.1 for all together is that of 10 million).

    Args:
        model: The network; left as it was.
        loader: A DataLoader of (inputs, target, ...); its order is replaced.
        objective: The loss and the mined samples.
        ignored_layers: Names of layers whose weights are not gated.
        random_state: Seed, or a torch.Generator.
        progress: Show a progress bar.
        learning: See ``GateLearning``.

    Returns:
        π by name of the weight, of its shape, float64 on the CPU; open where π ≥ 0. ``masked_network`` takes it.

    Raises:
        InputError: The data or an argument is wrong.
        UnsupportedModelError: No weight can be gated, or one is computed from others.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> y = torch.arange(40) % 2
        >>> loader = DataLoader(TensorDataset(torch.stack([2.0 * y - 1, 2.0 * y - 1], 1), y), batch_size=20)
        >>> model = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))  # of two like inputs one misleads
        >>> objective = ContrastiveObjective(conflicting=torch.arange(40) < 4)
        >>> learning = {"iterations": 60, "learning_rate": 0.1}
        >>> logits = learn_weight_masks(model, loader, objective, progress=False, **learning)
        >>> masked_network(model, logits).weight_mask.tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    samples = loader if isinstance(loader, IndexedSamples) else IndexedSamples(loader)
    network = objective.network(model)
    network.check()
    require_whole(model)
    gated = gated_weights(network, samples.first(network.device), ignored_layers)
    weights = {name: weight.detach() for name, weight in gated.items()}
    holders = holders_of(model, gated)
    settings: GateLearning = {"batchnorm": "train", **learning}

    def masked(gates: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        return _in_place_of(holders, {name: weights[name] * gate.to(weights[name]) for name, gate in gates.items()})

    return learn_logits(
        model,
        samples,
        objective,
        {name: weight.to(torch.promote_types(weight.dtype, torch.float32)) for name, weight in weights.items()},
        masked,
        draw=gumbel_sigmoid,
        random_state=random_state,
        progress=progress,
        **settings,
    )


def masked_network(model: nn.Module, logits: Mapping[str, Tensor], *, sparsity: float | None = None) -> nn.Module:
    """A copy of a network with masks of ``torch.nn.utils.prune``, for any fine-tuning; ``save_pruned`` bakes them in.

    Args:
        model: The network; untouched.
        logits: π by name of the weight, as ``learn_weight_masks`` gives them.
        sparsity: Share of these weights that is closed, those of the smallest π over all layers; None closes exactly
            those with π < 0, the published rule.

    Returns:
        The copy. BatchNorm statistics are still the dense network's: fine-tune, or ``recalibrate_batchnorm``.

    Raises:
        InputError: A name or shape is not the network's, or the share is out of range.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> masked = masked_network(model, {"weight": torch.tensor([[1.5, -0.2, 0.1]])})
        >>> (masked.weight == model.weight).tolist(), masked.weight_mask.tolist()
        ([[True, False, True]], [[1.0, 0.0, 1.0]])
        >>> masked_network(model, {"weight": torch.tensor([[1.5, -0.2, 0.1]])}, sparsity=0.67).weight_mask.tolist()
        [[1.0, 0.0, 0.0]]
    """
    weights = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] == "weight"}
    # a bias, and the weight under a mask, would get none
    wrong = [name for name, pi in logits.items() if name not in weights or weights[name].shape != pi.shape]
    if wrong or not logits:
        raise InputError(
            f"logits of {few_of(wrong) or 'no weight'}; expected those of weights of this network, of their shapes"
        )
    logits = {name: pi.detach().cpu() for name, pi in logits.items()}
    if unclear := [name for name, pi in logits.items() if bool(pi.isnan().any())]:
        raise InputError(f"logits of {few_of(unclear)} hold NaN; expected numbers")
    kept = {name: pi >= 0 for name, pi in logits.items()} if sparsity is None else _largest(logits, sparsity)
    dead = [name for name, keep in kept.items() if not bool(keep.any())]
    if dead:
        warnings.warn(f"every weight of {few_of(dead)} is closed, and nothing passes through there", stacklevel=2)
    sparse = copied_network(model)
    mask_weights(sparse, kept)
    return sparse


def _largest(logits: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """What stays when a share of all gates is closed, exactly, by the smallest π."""
    require_number("sparsity", sparsity, at_least=0, below=1, remedy=", a share, or None for π ≥ 0")
    everything = torch.cat([pi.flatten() for pi in logits.values()])
    keep = torch.ones(len(everything), dtype=torch.bool, device="cpu")
    keep[everything.argsort(stable=True)[: round(sparsity * len(everything))]] = False
    return in_shapes_of(logits, keep)


def gated_weights(network: ScoredNetwork, batch: Batch, ignored_layers: Sequence[str]) -> dict[str, nn.Parameter]:
    """The weights that get gates: of the linear and convolutional layers that one batch passes through.

    Args:
        network: The network; left as it was.
        batch: The batch.
        ignored_layers: Names of layers whose weights are not gated.

    Returns:
        The weights by name; each once.

    Raises:
        InputError: A name is none of such a layer.
        UnsupportedModelError: There is no weight, or one is computed from others.

    Example:
        >>> network = ScoredNetwork(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> list(gated_weights(network, Batch(torch.ones(5, 3), torch.zeros(5), None, 0), ignored_layers=["2"]))
        ['0.weight']
    """
    refuse_string("ignored_layers", ignored_layers)
    layers = {name: m for name, m in network.model.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
    unknown = [name for name in ignored_layers if name not in layers]
    if unknown:
        raise InputError(f"ignored_layers holds {unknown}; expected some of {few_of([*layers], most=20)}")
    called: set[nn.Module] = set()
    handles = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers.values()]
    try:
        with preserved_random_state(), preserved_model(network.model), torch.no_grad():
            network.scores(batch)
    finally:
        remove_hooks(handles)
    chosen = {name: layer for name, layer in layers.items() if layer in called and name not in ignored_layers}
    computed = [name for name, layer in chosen.items() if "weight" not in layer._parameters]
    if computed:
        raise UnsupportedModelError(
            f"the weights of {few_of(computed)} are computed from others; expected plain parameters: take masks off "
            "with torch.nn.utils.prune.remove(layer, 'weight'), or name these layers in ignored_layers"
        )
    weights = {id(layer.weight): layer.weight for layer in chosen.values()}
    if not weights:
        raise UnsupportedModelError("the network calls no linear or convolutional layer whose weights could be gated")
    return {name: parameter for name, parameter in network.model.named_parameters() if id(parameter) in weights}


@contextmanager
def _in_place_of(holders: Mapping[str, Sequence[nn.Module]], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other tensors in the place of weights, for the length of the block."""
    own = [(layer, name, layer._parameters["weight"]) for name, layers in holders.items() for layer in layers]

    def restore() -> None:
        for layer, _, weight in own:
            layer._parameters["weight"] = weight

    try:
        for layer, name, _ in own:
            layer._parameters["weight"] = weights[name]  # type: ignore[assignment]
        yield
    finally:
        insist(restore)
