"""What the gate of each channel does to the bias between sensitive groups: the gradient of a differentiable proxy.

Marcinkevics, Ozkan, Vogt (MLHC 2022): b_c = E_n[Σ_hw a_nc ∂μ/∂a_nc], μ the bias of probabilities. The proxy is made of
ratios of sums over everybody and is no mean over the samples of a batch, so that the sums come first and μ last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.data.labels import whole_labels
from fairtrim.data.sensitive_groups import GroupName, SensitiveEncoder, match_groups
from fairtrim.devices import to_device, together_on_cpu
from fairtrim.errors import InputError
from fairtrim.measures.differentiable_bias import proxy_bias
from fairtrim.measures.group_counts import GroupCounts, canonical_measure, rates
from fairtrim.measures.scores import probabilities
from fairtrim.network.probability_scores import ProbabilityScores, refuse_shares
from fairtrim.network.sample_loss import require_scores_and_labels
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.processes import Processes

from .channel_groups import ChannelColumns, ChannelGroup, channel_sites
from .collection import check_connected, check_independence, refuse_nobody
from .gates import Gates, hooked_gates
from .moments import group_sums, spread
from .reading_options import CollectionOptions, Reading

__all__ = ["ParityGradient", "parity_gradient"]


@dataclass(frozen=True)
class ParityGradient:
    """The bias of the network's probabilities, and its slope in every gate.

    Attributes:
        bias: μ: group 0 minus group 1 for two groups, else the largest difference.
        slopes: ∂μ/∂z_c at z = 1 by the names of the channel groups, (C,) float64 each; b_c is a mean over N samples of
            what this is the sum of. Removing channel c changes μ by −∂μ/∂z_c to first order.
        sensitive_groups: Names of the groups that were compared; of two sides, "unprivileged" and "privileged".

    Example: see ``parity_gradient``.
    """

    bias: float
    slopes: dict[str, Tensor]
    sensitive_groups: tuple[GroupName, ...]


@torch.inference_mode(False)  # there nothing has a slope
def parity_gradient(
    model: nn.Module,
    loader: Iterable[Any],
    channel_groups: Sequence[ChannelGroup],
    measure: str = "demographic_parity_difference",
    *,
    privileged: Any = None,
    **options: Unpack[CollectionOptions],
) -> ParityGradient:
    """Differentiate the bias of all samples together in the gate of every channel, in one pass over the data.

    μ is the bias measure with probabilities in place of decisions; for K > 2 classes one against the rest, and of all
    classes and pairs of groups the largest difference. It costs K − 1 backward passes, none of which computes weight
    gradients.

    Args:
        model: The network, on any one device; it runs in eval mode and is left as it was found.
        loader: Batches of (inputs, target, sensitive), or dicts with ``labels`` and ``sensitive_features``.
        channel_groups: Which channels there are and where they are consumed.
        measure: One of ``fairtrim.measures.group_counts.BIAS_MEASURES``, by Fairlearn's name or AIF360's.
        privileged: The privileged sensitive groups; everybody else is the unprivileged side, and μ unprivileged minus
            privileged. None compares every pair of groups.
        options: How the data are read; see ``fairtrim.damage.CollectionOptions``. ``loss_fn`` and ``folder`` have no
            use here.

    Returns:
        The bias and its slopes, the same in every process.

    Raises:
        InputError: The data or an argument is wrong, or a group has nobody that the measure compares.
        ProcessError: Another process failed.
        UnsupportedModelError: The network can't be scored.

    Example:
        >>> from fairtrim import ChannelPlace
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> x = torch.tensor([[0.0, 0.0], [4.0, -4.0]])  # probability ½ for both, of slope ¼ in the sum of inputs
        >>> hidden = ChannelGroup("0", 2, (ChannelPlace("1", "input", range(2), range(2), channel_axis=-1),))
        >>> found = parity_gradient(model, [(x, torch.tensor([0, 1]), ["a", "b"])], [hidden], progress=False)
        >>> found.bias, found.slopes["0"].tolist()
        (0.0, [-1.0, 1.0])
    """
    measure = canonical_measure(measure)
    for name in ("loss_fn", "folder"):
        if options.get(name) is not None:
            raise InputError(f"{name}= would have no effect on parity_gradient: it sums no losses; leave it out")
    reading, processes = (
        Reading.of(options, "parity_gradient", CollectionOptions),
        Processes(options.get("distributed"), model),
    )
    with processes.together():
        network, encoder = reading.network(model), reading.encoder()
        network.check()
        sites = channel_sites(model, channel_groups)
        columns = ChannelColumns({group.name: group.size for group in channel_groups})
        sums = _Sums(len(columns))
    with (
        processes.together(),
        preserved_random_state(loader),
        preserved_model(model),
        torch.enable_grad(),
        hooked_gates(model, sites, len(columns)) as gates,
    ):
        checked, seen = False, ProbabilityScores()
        batches = reading.batches(loader, network.device, "parity gradient", allow_empty=processes.count > 1)
        for batch in processes.attending(batches):
            if batch.sensitive is None:
                refuse_nobody(batch)
            gates.start(len(batch))
            scores = network.scores(batch)
            target = whole_labels(batch.target, batch.index)
            require_scores_and_labels(torch.isfinite(scores.detach()).all(), target, scores.shape[1])
            seen.add(scores)
            if seen.shares:
                refuse_shares("the network")
            with torch.autocast(network.device.type, enabled=False):  # the caller's is for the network
                if not checked and len(batch) > 1:
                    check_independence(gates, scores, batch)
                sums.add(gates, scores, target, encoder.encode(batch.sensitive, len(batch), batch.index))
                if not checked:
                    check_connected(gates, channel_groups)
                checked = checked or len(batch) > 1
        seen.check_single("the network")
    places = encoder.share(processes)
    of_groups, slopes = sums.merged(processes, places, len(encoder.groups))
    names, sides = _sides(encoder, privileged)
    bias, weights = _bias_and_weights(measure, torch.tensordot(sides, of_groups, dims=1), names)
    total = torch.einsum("spk,sg,gpkc->c", weights, sides, slopes)
    by_name = {group.name: total[columns.section(group.name)] for group in channel_groups}
    return ParityGradient(bias, by_name, names)


class _Sums:
    """Sums over people by sensitive group, and their slopes in the gates; one entry on the class axis for two classes.

    Attributes:
        counts: The four numbers of ``GroupCounts``, of probabilities, (G, 4, K).
        slopes: Of the first two of them, (G, 2, K, C).
    """

    def __init__(self, n_columns: int) -> None:
        self.counts = torch.zeros(0, 4, 1, dtype=torch.float64, device="cpu")
        self.slopes = torch.zeros(0, 2, 1, n_columns, dtype=torch.float64, device="cpu")

    def add(self, gates: Gates, scores: Tensor, target: Tensor, weights: Tensor) -> None:
        """Add the samples of one batch: labels, (N,), and weights, (N, G) on the CPU."""
        leaf = scores.detach().to(torch.promote_types(torch.float32, scores.dtype)).requires_grad_()
        given = probabilities(leaf)
        n_labels = given.shape[1]
        of_groups = weights.to(leaf.dtype)
        member = to_device(of_groups, leaf.device)
        of_label = (target == 1)[:, None] if n_labels == 1 else F.one_hot(target, n_labels)
        cells = torch.stack([of_label.to(leaf), 1 - of_label.to(leaf)], 1)  # (N, 2, K)
        values = torch.cat([cells * given.detach()[:, None], cells], 1)
        slopes = [
            group_sums((member * cells[:, part, label, None]).T.to(slope), slope)
            for label, slope in enumerate(self._slopes(gates, scores, leaf, given))
            for part in range(2)
        ]
        of_samples, *of_gates = together_on_cpu(values, *slopes)
        self._grow(member.shape[1], n_labels)
        self.counts += torch.einsum("ng,npk->gpk", of_groups.double(), of_samples)
        for place, slope in enumerate(of_gates):
            self.slopes[:, place % 2, place // 2] += slope

    @staticmethod
    def _slopes(gates: Gates, scores: Tensor, leaf: Tensor, given: Tensor) -> list[Tensor]:
        """∂p_nk/∂z_c for each label k, (N, C); those of several labels add up to 0."""
        wanted = max(1, given.shape[1] - 1)
        slopes = []
        for label in range(wanted):
            (direction,) = torch.autograd.grad(given[:, label].sum(), leaf, retain_graph=label + 1 < wanted)
            slopes.append(gates.gradients(scores, direction, keep_graph=label + 1 < wanted))
        return slopes if wanted == given.shape[1] else [*slopes, -torch.stack(slopes).sum(0)]

    def _grow(self, n_groups: int, n_labels: int) -> None:
        for name in ("counts", "slopes"):
            sums = getattr(self, name)
            if not len(sums):
                sums = sums.new_zeros(0, sums.shape[1], n_labels, *sums.shape[3:])
            setattr(self, name, torch.cat([sums, sums.new_zeros(n_groups - len(sums), *sums.shape[1:])]))

    def merged(self, processes: Processes, places: Sequence[int], n_groups: int) -> tuple[Tensor, Tensor]:
        """Both sums over the samples of all processes."""
        if processes.count == 1:
            return self.counts, self.slopes
        self._grow(len(self.counts), max(processes.exchange(self.counts.shape[2])))
        counts, slopes = (processes.sum(spread(sums, places, n_groups)) for sums in (self.counts, self.slopes))
        return counts, slopes


def _sides(encoder: SensitiveEncoder, privileged: Any) -> tuple[tuple[GroupName, ...], Tensor]:
    """Names of the groups that are compared, sorted or the two sides, and which of the groups in each, (S, G)."""
    groups = encoder.groups
    if len(groups) < 2:
        raise InputError(f"everybody is of the sensitive group {groups[0]!r}; expected at least two groups to compare")
    if privileged is None:
        order = encoder.order()
        return tuple(groups[g] for g in order), torch.eye(len(groups), dtype=torch.float64, device="cpu")[order]
    chosen = match_groups(privileged, groups, encoder.features, "privileged")
    if len(chosen) == len(groups):
        raise InputError(f"privileged={privileged!r} takes in every sensitive group: {groups}")
    favoured = torch.zeros(len(groups), dtype=torch.float64, device="cpu")
    favoured[chosen] = 1
    return ("unprivileged", "privileged"), torch.stack([1 - favoured, favoured])


def _bias_and_weights(measure: str, of_groups: Tensor, names: Sequence[GroupName]) -> tuple[float, Tensor]:
    """μ, and its slope in the first two of the four numbers, (G, 2, K)."""
    given = of_groups[:, :2].clone().requires_grad_()
    with torch.enable_grad():
        counts = GroupCounts(given[:, 0].T, given[:, 1].T, of_groups[:, 2].T, of_groups[:, 3].T)
        undefined = rates(measure, counts).isnan().any(0).tolist()
        if any(undefined):
            empty = [name for name, flag in zip(names, undefined, strict=True) if flag]
            raise InputError(
                f"the sensitive groups {empty} have nobody for a rate of {measure}; expected people with and without "
                "each label in every group: use more people, merge or drop the groups, or take "
                "demographic_parity_difference"
            )
        bias = proxy_bias(measure, counts)
        (weights,) = torch.autograd.grad(bias, given)
    return float(bias.detach()), weights
