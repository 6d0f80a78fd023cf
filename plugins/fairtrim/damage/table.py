"""The damage table: what removing each channel does to the loss of each sensitive group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fairtrim.data.sensitive_groups import GroupName
from fairtrim.errors import InputError
from fairtrim.measures.shrinkage import own_shares
from fairtrim.printing import Block, Printed, TextTable, count, figure, percent

from .channel_groups import ChannelColumns
from .moments import standard_errors
from .sample_sketch import SampleSketch

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DamageTable"]

_SHOWN, _CHANNELS = 8, 4  # groups, and channels at either end, that are printed


@dataclass(frozen=True)
class DamageTable(Printed):
    """Predicted rise of the mean loss of each sensitive group when channels are removed; print it.

    For group g, channel c and the gate gradients s_nc(y) of sample n under label y,

        Δ_gc = −E_{n∈g}[s_nc] + ½ E_{n∈g} E_{y~p(·|x_n)}[s_nc(y)²],

    and for a set R of channels removed together, whose damages are not independent,

        Δ_g(R) = −Σ_{c∈R} E_g[s_nc] + ½ E_g E_y[(Σ_{c∈R} s_nc(y))²].

    All tensors are float64 on the CPU, in units of the loss (nats for cross-entropy).

    Attributes:
        sensitive_groups: Names of the G groups, sorted; tuples for crossings of several features.
        features: Names of the sensitive features.
        sizes: C of each channel group by name; the columns follow this order.
        counts: n_g, samples (or total weight) of each group, (G,).
        loss: Mean loss of each group in the network as it is, (G,).
        slope: E_g[s_nc], (G, C).
        curvature: E_g E_y[s_nc(y)²], (G, C).
        interactions: E_g E_y[s_nc(y) s_nd(y)], (G, C, C); a sketch of the samples that stands for it, over very many
            channels; or None if they were not collected.
        people: (Σ_n w_gn)² / Σ_n w_gn², which is n_g without weights, (G,); None where it wasn't collected.
        standard_error: Of Δ_gc, that of a mean over samples, (G, C); NaN for a group of one sample; None where it
            wasn't collected.
        second_order_error: Of ½ E_g E_y[s_nc(y)²] alone, (G, C).
        signed_loss: Whether some sample's loss is negative, so that a mean below 0 is possible.
        loss_error: Standard error of ``loss``, (G,).
        sample_losses: Losses of the single samples in the order in which this process read them, (N,).
        read_order: A digest of that order.
        layer_order: Names of the channel groups in the order in which the network lists its modules, the first layers
            first; empty where it wasn't collected.

    Example:
        >>> from fairtrim import ChannelGroup, ChannelPlace, collect_damage
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> hidden = ChannelGroup("0", 3, (ChannelPlace("2", "input", range(3), range(3), channel_axis=-1),))
        >>> batch = (torch.randn(5, 4), torch.tensor([0, 1, 1, 0, 1]), ["a", "b", "a", "a", "b"])
        >>> table = collect_damage(model, [batch], [hidden], progress=False)
        >>> table.sensitive_groups, tuple(table["0"].shape)
        (('a', 'b'), (2, 3))
    """

    sensitive_groups: tuple[GroupName, ...]
    features: tuple[str, ...]
    sizes: Mapping[str, int]
    counts: Tensor
    loss: Tensor
    slope: Tensor
    curvature: Tensor
    interactions: Tensor | SampleSketch | None = None
    people: Tensor | None = None
    standard_error: Tensor | None = None
    second_order_error: Tensor | None = None
    signed_loss: bool = False
    loss_error: Tensor | None = None
    sample_losses: Tensor | None = None
    read_order: bytes = b""
    layer_order: tuple[str, ...] = ()

    @property
    def damage(self) -> Tensor:
        """Δ_gc of every channel by itself, (G, C)."""
        return -self.slope + 0.5 * self.curvature

    @property
    def shares(self) -> Tensor:
        """Share of each group among the samples, (G,); sums to 1."""
        return self.counts / self.counts.sum()

    @property
    def columns(self) -> ChannelColumns:
        """Which column belongs to which channel of which group."""
        return ChannelColumns(self.sizes)

    def __getitem__(self, name: str) -> Tensor:
        """Δ_gc of one channel group, (G, C of that group)."""
        return self.damage[:, self.columns.section(name)]

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    def verdict(self) -> str:
        """How many channels of how many layers were scored, for whom, and whom the mean channel hurts most.

        Returns:
            One sentence.
        """
        n_groups, n_channels = self.damage.shape
        groups = f"{n_groups:,} sensitive groups" if n_groups != 1 else "one sensitive group"
        text = f"{n_channels:,} channels of {len(self.sizes):,} layers, scored for {groups}"
        if not n_channels:
            return f"{text}."
        mean = self.damage.mean(1)
        worst = int(mean.argmax())
        if mean[worst] <= 0:
            return f"{text}: removing one raises nobody's mean loss on average."
        whose = _label(self.sensitive_groups[worst])
        return f"{text}: removing one raises the mean loss of {whose} most, by {mean[worst]:.3g} on average."

    def blocks(self) -> Iterator[Block]:
        """The verdict, the groups, and the channels that hurt somebody most and least."""
        yield self.verdict()
        if not self.damage.numel():
            return
        groups = range(len(self.sensitive_groups))
        rows = []
        for g in groups[:_SHOWN]:
            damage = self.damage[g]
            shown = [f"{float(value):+.3g}" for value in (damage.min(), damage.median(), damage.max())]
            share = percent(float(self.shares[g]))
            name = _label(self.sensitive_groups[g])
            rows.append((name, count(float(self.counts[g])), share, figure(float(self.loss[g])), *shown))
        title = "Mean loss, and predicted change of it when a channel is removed by itself."
        heads = ("group", "people", "share", "loss", "least", "median", "most")
        yield TextTable(heads, rows, title=title)
        if len(groups) > _SHOWN:
            yield f"and {len(groups) - _SHOWN} more groups"
        yield self._channels()
        yield "all of it: table['layer'] (G, C), table.to_frame(), table.predict({layer: channels})"

    def _channels(self) -> TextTable:
        """Those that the worst-hit group would miss most, and least, and of whom that is."""
        worst, whom = self.damage.max(0)
        order = worst.argsort(descending=True, stable=True)
        number = min(_CHANNELS, (len(order) + 1) // 2)
        chosen = [("most", column) for column in order[:number].tolist()]
        chosen += [("least", column) for column in order[number:].tolist()[-number:]]
        rows = []
        for what, column in chosen:
            layer = self.columns.layer_of(column)
            number = column - self.columns.section(layer).start
            whose = _label(self.sensitive_groups[int(whom[column])])
            rows.append((what, whose, layer, str(number), f"{float(worst[column]):+.3g}"))
        heads = ("hurts", "the group it hurts most", "layer", "channel", "damage")
        return TextTable(heads, rows, names=3)

    def predict(self, channels: Mapping[str, Iterable[int]]) -> Tensor:
        """Δ_g(R): predicted rise of each group's mean loss when a set of channels is removed together.

        Args:
            channels: R, channel numbers by group name.

        Returns:
            (G,) in units of the loss.

        Raises:
            InputError: A channel is unknown, or the table was collected without interactions.
        """
        columns = self.columns.selected(channels)
        return -self.slope[:, columns].sum(1) + 0.5 * self._squares(columns)[0]

    def impossible(self, change: Tensor) -> Tensor:
        """Which predicted changes can't come true: a loss doesn't fall below 0, if no sample's is below it.

        The expansion knows nothing of that bound; a change beyond it says that the set is out of its reach.

        Args:
            change: Of each group's mean loss, (G,).

        Returns:
            (G,) bool.
        """
        # what rounding leaves of a loss that vanishes is no contradiction
        below = self.loss + change < -1e-6 * self.loss.abs().clamp_min(1)
        return below & (not self.signed_loss)

    def prediction_error(self, channels: Mapping[str, Iterable[int]]) -> Tensor:
        """Standard error of ``predict`` that comes from the sketch, not from the number of samples.

        Args:
            channels: R, channel numbers by group name.

        Returns:
            (G,) in units of the loss; 0 where the interactions are exact.

        Raises:
            InputError: As for ``predict``.
        """
        return 0.5 * self._squares(self.columns.selected(channels))[1]

    def _squares(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """E_g E_y[(Σ_{c∈R} s_nc(y))²] and its standard error, (G,) each."""
        if self.interactions is None:
            raise InputError(
                "this table holds no interactions, so it can't predict channels that are removed together; "
                "collect it with interactions=True (selection='joint')"
            )
        if isinstance(self.interactions, SampleSketch):
            return self.interactions.square(columns)
        squares = self.interactions[:, columns][:, :, columns].sum((1, 2))
        return squares, torch.zeros_like(squares)

    def interactions_between(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """E_g E_y[s_nc(y) s_nd(y)] of some channels with others.

        Args:
            rows: Columns of the channels c, (b,).
            columns: Of the channels d, (d,); None for all C.

        Returns:
            (G, b, d).

        Raises:
            InputError: They were not collected.
        """
        if self.interactions is None:
            raise InputError("joint selection needs the table's interactions; collect it with interactions=True")
        if isinstance(self.interactions, SampleSketch):
            return self.interactions.between(rows, columns)
        chosen = self.interactions[:, rows]
        return chosen if columns is None else chosen[:, :, columns]

    def pooled(self, groups: Sequence[Sequence[int]], names: Sequence[GroupName]) -> DamageTable:
        """The table of larger sensitive groups: each row the mean over the samples of some rows of this one.

        Args:
            groups: For each new row, the rows that it pools.
            names: Names of the new rows.

        Returns:
            A table of len(groups) rows.
        """
        membership = torch.zeros(len(groups), len(self.sensitive_groups), dtype=torch.float64, device="cpu")
        for row, members in enumerate(groups):
            membership[row, list(members)] = 1
        counts = membership @ self.counts
        mixing = membership * self.counts / counts.unsqueeze(1)
        table = replace(self._mixed(mixing), sensitive_groups=tuple(names), counts=counts)
        if (
            self.people is None
            or self.loss_error is None
            or self.standard_error is None
            or self.second_order_error is None
        ):
            return table
        others = (self.people - 1).unsqueeze(1)
        people = counts.square() / (membership @ (self.counts.square() / self.people))

        def errors(mean: Tensor, of_groups: Tensor) -> Tensor:
            within = (of_groups.square() * others).nan_to_num(0)  # of one person: none
            return standard_errors(mixing @ (within + mean.square()), mixing @ mean, people)

        return replace(
            table,
            people=people,
            loss_error=errors(self.loss.unsqueeze(1), self.loss_error.unsqueeze(1)).squeeze(1),
            standard_error=errors(self.damage, self.standard_error),
            second_order_error=errors(0.5 * self.curvature, self.second_order_error),
        )

    def without_first_order(self) -> DamageTable:
        """The table of ½ E_g E_y[s²] alone, which only rises with what is removed.

        Greedy selection adds up the first order's gains far beyond where they hold; see ``first_order`` of the
        importances.

        Returns:
            A table whose slope is 0.
        """
        return replace(self, slope=torch.zeros_like(self.slope), standard_error=self.second_order_error)

    def shrunk(self, strength: float | Literal["auto"] = "auto") -> DamageTable:
        """Damages of small groups pulled toward everybody's: π_g Δ_g + (1 − π_g) Δ. Ours, not published.

        Args:
            strength: ``"auto"``: π_g by the standard errors, so that a group keeps what tells it apart beyond noise;
                see ``fairtrim.measures.shrinkage.own_shares``. A number κ of samples: π_g = n_g / (n_g + κ).

        Returns:
            A table of the same groups and losses.

        Raises:
            InputError: κ is negative, or the table has no standard errors.
        """
        if strength == "auto":
            if self.standard_error is None or self.people is None:
                raise InputError("this table holds no standard errors to shrink by; pass a number of samples")
            own = own_shares(self.damage, self.standard_error, self.people)
        elif isinstance(strength, int | float) and strength >= 0:
            own = self.counts / (self.counts + strength)
        else:
            raise InputError(f"strength={strength!r}; expected a number of samples of at least 0, or 'auto'")
        if bool((own == 1).all()):
            return self
        mixing = torch.diag(own) + torch.outer(1 - own, self.shares)
        return replace(
            self._mixed(mixing),
            loss=self.loss,
            standard_error=_mixed_errors(mixing, self.standard_error),
            second_order_error=_mixed_errors(mixing, self.second_order_error),
        )

    def _mixed(self, mixing: Tensor) -> DamageTable:
        interactions = self.interactions
        if isinstance(interactions, SampleSketch):
            interactions = interactions.mixed(mixing)
        elif interactions is not None:
            interactions = torch.einsum("hg,gcd->hcd", mixing, interactions)
        return replace(
            self,
            loss=mixing @ self.loss,
            slope=mixing @ self.slope,
            curvature=mixing @ self.curvature,
            interactions=interactions,
        )

    def to_frame(self) -> pd.DataFrame:
        """The single-channel damages in tidy form.

        Returns:
            One row for each (layer, channel, sensitive_group), with the damage and its two terms, and its standard
            error if that was collected.
        """
        import pandas as pd

        layers = [name for name, size in self.sizes.items() for _ in range(size)]
        channels = [channel for size in self.sizes.values() for channel in range(size)]
        frames = [
            pd.DataFrame(
                {
                    "layer": layers,
                    "channel": channels,
                    "sensitive_group": [name] * len(layers),
                    "damage": self.damage[g].numpy(),
                    "first_order": -self.slope[g].numpy(),
                    "second_order": 0.5 * self.curvature[g].numpy(),
                    **({} if self.standard_error is None else {"standard_error": self.standard_error[g].numpy()}),
                }
            )
            for g, name in enumerate(self.sensitive_groups)
        ]
        return pd.concat(frames, ignore_index=True)


def _label(group: GroupName) -> str:
    return group if isinstance(group, str) else ", ".join(map(str, group))


def _mixed_errors(mixing: Tensor, errors: Tensor | None) -> Tensor | None:
    """Of sums over groups that hold different samples."""
    if errors is None:
        return None
    unknown = (mixing != 0).double() @ errors.isnan().double() > 0
    return (mixing.square() @ errors.nan_to_num(0).square()).sqrt().masked_fill(unknown, torch.nan)
