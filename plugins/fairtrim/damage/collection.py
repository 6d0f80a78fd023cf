"""Collects a damage table: one pass over the data with gates on every channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fairtrim.data.batches import Batch, n_batches_of
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.files.resumption import fingerprint
from fairtrim.files.run_settings import described
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.processes import Processes, check_calls_in_step

from .channel_groups import ChannelGroup, channel_sites
from .gates import Gates, hooked_gates
from .loss_expansion import Curvature, OutputExpansion, expand_outputs
from .moments import SUMS, Interactions, Moments, resolved_interactions
from .reading_options import CollectionOptions, Reading
from .scoring_estimate import tell_large
from .scoring_run import ScoringRun
from .table import DamageTable

__all__ = ["check_connected", "check_independence", "collect_damage", "refuse_nobody"]


@torch.inference_mode(False)  # there nothing has a slope
def collect_damage(
    model: nn.Module,
    loader: Iterable[Any],
    channel_groups: Sequence[ChannelGroup],
    *,
    curvature: Curvature = "auto",
    interactions: bool | Interactions = False,
    require_sensitive: bool = False,
    **options: Unpack[CollectionOptions],
) -> DamageTable:
    """Score every channel for every sensitive group in one pass over the data.

    The network runs in eval mode, is left as it was found, and sees each sample once. The number of sensitive
    groups costs next to nothing; exact curvature costs K − 1 backward passes for K classes, none of which
    computes weight gradients.

    Args:
        model: The network, on any one device.
        loader: Batches of (inputs, target), (inputs, target, sensitive), or dicts with ``labels``.
        channel_groups: Which channels there are and where they are consumed.
        curvature: ``"exact"``, ``"empirical"`` or ``"auto"`` (exact up to 20 scores a sample).
        interactions: Also collect what joint selection needs. ``"exact"``: the table keeps 8·G·C² bytes, and twice
            that for a moment at the end; ``"sketched"``: a sketch of the samples, at most about 12 KiB·G·C;
            True: exact up to 4,096 channels.
        require_sensitive: Refuse a loader without sensitive features at its first batch; else everybody is one group.
        options: How the data are read: ``loss_fn``, ``forward_fn``, ``output_transform``, ``sensitive_names``, ...; see
            ``fairtrim.damage.CollectionOptions``.

    Returns:
        The damage table, the same in every process.

    Raises:
        InputError: The data or an argument is wrong.
        ProcessError: Another process failed.
        UnsupportedModelError: The network can't be scored, e.g. because its samples are not independent.

    Example:
        >>> from fairtrim import ChannelPlace
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> hidden = ChannelGroup("0", 2, (ChannelPlace("1", "input", range(2), range(2), channel_axis=-1),))
        >>> people = [(x, x.sum(1, keepdim=True), ["a", "b"])]  # without error, so that removing x_c costs x_c²
        >>> table = collect_damage(model, people, [hidden], loss_fn=nn.functional.mse_loss, progress=False)
        >>> table["0"].round(decimals=3).tolist()
        [[1.0, 4.0], [9.0, 0.0]]
    """
    reading = Reading.of(options, "collect_damage", CollectionOptions)
    processes, folder = Processes(options.get("distributed"), model), options.get("folder")
    with processes.together():
        network = reading.network(model)
        network.check()
        device = network.device
        sites = channel_sites(model, channel_groups)
        sizes = {group.name: group.size for group in channel_groups}
        n_columns = sum(sizes.values())
        in_parts = folder is not None or processes.count > 1
        sample_loss, encoder = reading.sample_loss(in_parts=in_parts), reading.encoder()
        pairs = resolved_interactions(interactions, n_columns)
        moments = Moments(n_columns, pairs, processes.rank)
        settings = {
            "network": fingerprint(model) if in_parts else "",
            "sizes": sizes,
            "curvature": curvature,
            "interactions": pairs,
            "sensitive_names": repr(reading.sensitive_names),
            "sensitive_weights": reading.sensitive_weights,
            "loss_fn": described(reading.loss_fn),
            "forward_fn": described(reading.forward_fn),
            "output_transform": described(reading.output_transform),
            "sums": list(SUMS),  # of an earlier release there were fewer
        }
        run = ScoringRun(folder, settings, processes)
    processes.agree(settings)
    check_calls_in_step(model, n_batches_of(loader, reading.max_batches))
    with processes.together():
        run.restore(moments, encoder)
    with (
        processes.together(),
        preserved_random_state(loader),
        preserved_model(model),
        torch.enable_grad(),
        hooked_gates(model, sites, n_columns) as gates,
    ):
        batches = reading.batches(loader, None, "damage table", allow_empty=processes.count > 1)
        checked = told = labelled = False
        for batch in processes.attending(run.unread(batches, device)):
            if require_sensitive and batch.sensitive is None:
                refuse_nobody(batch)
            if not told:
                tell_large(network, loader, batch, channel_groups, reading, curvature=curvature, interactions=pairs)
                told = True
            gates.start(len(batch))
            scores = network.scores(batch, positions=True)
            labelled = labelled or scores.ndim < 3 or bool(sample_loss.labelled(scores, batch.target).any())
            with torch.autocast(device.type, enabled=False):  # the caller's is for the network
                expansion = expand_outputs(scores, batch.target, sample_loss, curvature)
                weights = encoder.encode(batch.sensitive, len(batch), batch.index)
                if not checked and len(batch) > 1:
                    check_independence(gates, scores, batch)
                slope, rows = _gate_moments(gates, scores, expansion)
                if not checked:
                    check_connected(gates, channel_groups)
                checked = checked or len(batch) > 1
                moments.add(weights, expansion.loss, slope, rows, expansion.weight)
            del scores, expansion, slope, rows  # of many classes they would stand beside the next batch's activations
            run.save(moments, encoder)
        if not labelled and processes.count == 1 and folder is None:
            raise InputError(
                f"no position of any sample has a label: all are {sample_loss.ignore_index}; expected some that count"
            )
    places = encoder.share(processes)
    total = moments.merged(processes, places, len(encoder.groups))
    run.finish()
    listed = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    order = tuple(sorted(sizes, key=lambda name: listed.get(name, len(listed))))
    return DamageTable(sizes=sizes, layer_order=order, **total.means(encoder))


def refuse_nobody(batch: Batch) -> None:
    """Refuse a batch without sensitive features."""
    named = f"a dict with {sorted(map(str, batch.inputs))}" if isinstance(batch.inputs, Mapping) else "(inputs, target)"
    raise InputError(
        f"batch {batch.index} of the loader is {named}, without sensitive features, which the criterion compares; "
        "expected (inputs, target, sensitive), a dict with them under 'sensitive_features', sensitive_features= beside "
        "the loader, or a criterion that needs none, such as MeanDamage"
    )


def _gate_moments(gates: Gates, scores: Tensor, expansion: OutputExpansion) -> tuple[Tensor, Tensor]:
    last = len(expansion.directions) - 1
    jacobian = torch.stack(
        [gates.gradients(scores, d, keep_graph=r < last) for r, d in enumerate(expansion.directions)], 1
    )
    slope = torch.einsum("nr,nrc->nc", expansion.slope.to(jacobian.dtype), jacobian)
    rows = torch.einsum("nrj,nrc->njc", expansion.factor.to(jacobian.dtype), jacobian)
    return slope, rows


def check_connected(gates: Gates, channel_groups: Sequence[ChannelGroup]) -> None:
    """Channels that the scores can't be differentiated in would look worthless, and go first."""
    connected = gates.connected
    for group in channel_groups:
        if not any((place.module, place.side) in connected for place in group.places):
            raise UnsupportedModelError(
                f"the scores don't depend on {sorted({place.module for place in group.places})}, which consume the "
                f"channels of {group.name!r}, in a way that can be differentiated; expected layers that are called as "
                "modules, not through their weights, and no detach() behind them. If these layers serve another "
                "output, add them to ignored_layers"
            )


def check_independence(gates: Gates, scores: Tensor, batch: Batch) -> None:
    """The first sample's scores must move no other sample's gates, or per-sample gradients mean nothing."""
    direction = torch.zeros_like(scores)
    each = direction[0].numel()
    direction[0] = torch.arange(1, each + 1, device=direction.device, dtype=direction.dtype).view(direction.shape[1:])
    others = gates.gradients(scores, direction, keep_graph=True)[1:]
    if bool((others != 0).any()):
        n = int((others != 0).any(1).nonzero()[0]) + 1
        raise UnsupportedModelError(
            f"in batch {batch.index} the scores of sample 0 depend on sample {n}; expected independent samples: "
            "look for a BatchNorm that normalises by the batch (track_running_stats=False), or for tensors whose "
            "first axis is not that of the samples"
        )
