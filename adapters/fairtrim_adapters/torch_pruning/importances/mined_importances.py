"""Importances that need no sensitive features: they take the samples that a miner found bias-conflicting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from fairtrim import DamageTable, InputError, collect_damage
from fairtrim.arguments import RandomState, Renamed, random_generator, renamed, require_choice, require_number
from fairtrim.criteria import Criterion, GroupSaliency
from fairtrim.damage.channel_costs import Cost
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import model_device
from fairtrim.mining.contrastive_gates import channel_costs, gate_slopes, learn_gates
from fairtrim.mining.contrastive_objective import ContrastiveObjective, Upweight, check_upweight
from fairtrim.mining.mined_samples import MinedSamples, require_some_mined
from fairtrim.network.losses import negative_margin
from fairtrim.selection import Pool, Selection, joint_selection, negative_columns, ranked, single_selection
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan

from .channel_importance import ChannelImportance, ImportanceOptions, negative_values

__all__ = ["AccumulatedConfidenceImportance", "ContrastiveImportance", "GateTraining"]


_NO_PEOPLE = "it tells samples apart by mined=, not by sensitive features"


def _flags(mined: MinedSamples | Tensor) -> Tensor:
    flags = mined.conflicting() if isinstance(mined, MinedSamples) else mined
    require_some_mined(flags)
    return flags.cpu()


class GateTraining(TypedDict, total=False):
    """How the gates of DCWP are learned; the same for ``ContrastiveImportance`` and ``dcwp``.

    Attributes:
        upweight: Sampling weight of the mined samples; default 80, as in the authors' code. ``"published"``: what they
            take in the fine-tuning, 80, 50, 30 and 10 where 0.5, 1, 2 and 5 % are mined.
        iterations: Steps of Adam; default 2000, as in the authors' code.
        learning_rate: Of the gates; default 1e-2.
        cost: ``"channels"`` (each costs the same; the default), ``"parameters"`` or ``"macs"``.
        cost_weight: λ, what closing every gate is worth in units of the loss; default 0.1.
        batchnorm: Whether BatchNorm normalises by its running statistics, ``"eval"``, the default, or by those of each
            batch, ``"train"``, as in the authors' code.

    Example:
        >>> gates: GateTraining = {"iterations": 300, "cost": "macs"}
        >>> ContrastiveImportance(torch.tensor([True, False]), **gates).cost
        'macs'
    """

    upweight: Upweight
    iterations: int
    learning_rate: float
    cost: Literal["channels"] | Cost
    cost_weight: float
    batchnorm: Literal["eval", "train"]


@renamed(seed="random_state")
class ContrastiveImportance(ChannelImportance):
    """DCWP at the level of channels: learned gates, or the first-order form of the same loss (arXiv 2210.05247).

    The score of ``form="gates"`` is the gate's logit π, so that ``negative_groups(pruner)`` prunes exactly the closed
    gates. Each fit of an iterative pruner learns the gates anew. See ``GateTraining`` for how.

    Args:
        mined: What a miner found, or the flags b by index in the loader's dataset, (N,).
        form: ``"gates"``, ``"first-order"`` (−∂L/∂z, signed) or ``"first-order-magnitude"`` (its absolute value).
        contrastive_weight: λ_con.
        feature_layer: Layer whose inputs are the features of the contrastive term; found if None.
        random_state: Seed of the draws, the same for each fit, or a torch.Generator that goes on.
        options: See ``ImportanceOptions``: ``model``, ``loader``, ``normalizer``, and how the data are read.

    Attributes:
        selection_: Order and scores of the last fit; its ``change`` is π, or the slope.

    Raises:
        InputError: An argument is wrong.

    Example:
        >>> import torch_pruning as tp
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = nn.init.eye_(model[0].weight), model[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        >>> x = torch.tensor([[3.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
        >>> loader = DataLoader(TensorDataset(x, torch.tensor([1, 1, 0])), batch_size=3)
        >>> mined = torch.tensor([True, False, False])  # whom the first channel serves
        >>> importance = ContrastiveImportance(mined, form="first-order", contrastive_weight=0.0)
        >>> pruner = tp.pruner.BasePruner(
        ...     model, x, importance=importance, pruning_ratio=0.5, ignored_layers=[model[2]]
        ... )
        >>> fitted = importance.fit(pruner, loader, progress=False)
        >>> pruner.step()
        >>> model[0].weight.tolist()
        [[1.0, 0.0]]
    """

    name = "contrastive"
    does = "removes first what a contrastive loss on the mined bias-conflicting samples needs least"
    when = "where nobody's group is known, a shortcut is feared, and you train afterwards"
    source = "DCWP: Park, Lee, Lee, Ye, CVPR 2023"
    link = "https://arxiv.org/abs/2210.05247"
    standing = "published"
    remark = "for weights; the form for channels is ours"

    seed = Renamed("random_state")

    idle_options: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("sensitive_features", "sensitive_names"), _NO_PEOPLE),
        "folder": "that keeps the sums of a damage pass, and there is none; set iterations= if it takes long",
        "max_batches": "the samples are drawn by weight; set iterations=",
    }

    def __init__(
        self,
        mined: MinedSamples | Tensor,
        *,
        form: Literal["gates", "first-order", "first-order-magnitude"] = "gates",
        upweight: Upweight = 80.0,
        iterations: int = 2000,
        learning_rate: float = 1e-2,
        cost: Literal["channels"] | Cost = "channels",
        cost_weight: float = 0.1,
        batchnorm: Literal["eval", "train"] = "eval",
        contrastive_weight: float = 0.05,
        feature_layer: str | None = None,
        random_state: RandomState = 0,
        **options: Unpack[ImportanceOptions],
    ) -> None:
        require_choice("form", form, ("gates", "first-order", "first-order-magnitude"))
        require_choice("cost", cost, ("channels", "parameters", "macs"))
        require_choice("batchnorm", batchnorm, ("eval", "train"))
        check_upweight("upweight", upweight)
        require_number("iterations", iterations, at_least=1, whole=True)
        require_number("learning_rate", learning_rate, above=0, remedy=", the rate at which gates are learned")
        require_number("cost_weight", cost_weight, at_least=0)
        require_number("contrastive_weight", contrastive_weight, at_least=0)
        if form != "gates":
            gates = {
                "iterations": (iterations, 2000),
                "learning_rate": (learning_rate, 1e-2),
                "cost": (cost, "channels"),
                "cost_weight": (cost_weight, 0.1),
                "batchnorm": (batchnorm, "eval"),
            }
            idle = [f"{name}={value!r}" for name, (value, default) in gates.items() if value != default]
            if idle:
                raise InputError(f"{' and '.join(idle)} would have no effect: form={form!r} learns no gates")
        super().__init__(**options)
        self.mined, self.form, self.cost, self.cost_weight = mined, form, cost, cost_weight
        self.upweight, self.contrastive_weight = upweight, contrastive_weight
        self.iterations, self.learning_rate, self.random_state = iterations, learning_rate, random_state
        self.feature_layer, self.batchnorm = feature_layer, batchnorm

    def _rank(
        self, model: nn.Module, plan: PruningPlan, loader: Iterable[Any], options: Mapping[str, Any]
    ) -> tuple[Selection, DamageTable | None]:
        samples = IndexedSamples(loader)
        given = {key: options[key] for key in ("loss_fn", "forward_fn", "output_transform") if key in options}
        objective = ContrastiveObjective(
            conflicting=_flags(self.mined),
            upweight=self.upweight,
            contrastive_weight=self.contrastive_weight,
            feature_layer=self.feature_layer,
            **given,
        )
        generator = random_generator(self.random_state)
        progress = bool(options.get("progress", True))
        if self.form == "gates":
            costs = None
            if self.cost != "channels":
                batch = samples.first(model_device(model))
                costs = channel_costs(model, plan.groups, batch, self.cost, forward_fn=options.get("forward_fn"))
            values = learn_gates(
                model,
                samples,
                plan.groups,
                objective,
                iterations=self.iterations,
                learning_rate=self.learning_rate,
                cost_weight=self.cost_weight,
                batchnorm=self.batchnorm,
                costs=costs,
                random_state=generator,
                progress=progress,
            )
        else:
            values = gate_slopes(model, samples, plan.groups, objective, random_state=generator, progress=progress)
        of_channels = torch.cat([values[group.name] for group in plan.groups])
        if self.form == "first-order-magnitude":
            of_channels = of_channels.abs()
        return ranked(of_channels, plan.columns, pools=plan.pools, floors=plan.floors), None

    def _negative(self) -> Tensor:
        return negative_values(self.selection_, self.plan_)


class _Flagged:
    """Batches in the order of the dataset, with who was mined in the place of sensitive features."""

    def __init__(self, samples: IndexedSamples, flags: Tensor, device: torch.device) -> None:
        samples.check_flags(flags)
        self._samples, self._flags, self._device = samples, flags, device

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[tuple[Any, Tensor, dict[str, list[str]]]]:
        for indices, batch in self._samples.in_order(self._device):
            names = ["conflicting" if flag else "others" for flag in self._flags[indices].tolist()]
            yield batch.inputs, batch.target, {"mined": names}


class AccumulatedConfidenceImportance(ChannelImportance):
    """Damage to the mined samples against damage to the others, as a damage table with sample weights (DENP's use (c)).

    A reconstruction. The two groups are the mined and the other samples; the loss is the negative logit margin, which
    has a slope on memorised samples where cross-entropy has none. It is linear in the scores, so the damage is first
    order only, signed, and joint selection adds nothing; with ``loss_fn=torch.nn.functional.cross_entropy`` it does.

    Args:
        mined: What a miner found, or the flags b by index in the loader's dataset, (N,).
        beta: Weight of the damage to the other samples: the score is Δ_mined − β Δ_others.
        criterion: In place of that: any criterion of the two groups ``"conflicting"`` and ``"others"``.
        selection: ``"joint"`` or ``"single"``.
        options: See ``ImportanceOptions``: ``model``, ``loader``, ``normalizer``, and how the data are read.

    Attributes:
        selection_: Order and scores of the last fit.

    Raises:
        InputError: An argument is wrong.

    Example: see ``ContrastiveImportance``; of the same mined samples it keeps the same channel.
    """

    name = "accumulated-confidence"
    does = "removes first what the mined bias-conflicting samples need least, and the others most"
    when = "where nobody's group is known, a shortcut is feared, and you train afterwards"
    source = "DENP: Hong, Kim, Joo, Han, Shin, Wald, Lee, IEEE TIP 2026"
    link = "https://doi.org/10.1109/TIP.2026.3687070"
    standing = "reconstruction"
    remark = "the idea is published, the formulas are not"

    idle_options: ClassVar[Mapping[str, str]] = dict.fromkeys(("sensitive_features", "sensitive_names"), _NO_PEOPLE)

    def __init__(
        self,
        mined: MinedSamples | Tensor,
        *,
        beta: float = 0.3,
        criterion: Criterion | None = None,
        selection: Literal["joint", "single"] = "joint",
        **options: Unpack[ImportanceOptions],
    ) -> None:
        require_choice("selection", selection, ("joint", "single"))
        if criterion is not None and beta != 0.3:
            raise InputError(f"beta={beta} would have no effect beside criterion=; leave one of the two out")
        super().__init__(**options)
        self.mined, self.selection = mined, selection
        self.criterion = criterion if criterion is not None else GroupSaliency("others", "conflicting", beta)

    def _rank(
        self, model: nn.Module, plan: PruningPlan, loader: Iterable[Any], options: Mapping[str, Any]
    ) -> tuple[Selection, DamageTable | None]:
        self._flagged = _Flagged(IndexedSamples(loader), _flags(self.mined), model_device(model))
        table = collect_damage(
            model,
            self._flagged,
            plan.groups,
            interactions=self.selection == "joint",
            curvature="exact",
            # every process reads all samples by their index, so that nothing is to be added up
            **{"loss_fn": negative_margin, **options, "distributed": False},
        )
        return self._select(table, plan, plan.pools), table

    def _what_was_read(self) -> tuple[Iterable[Any], Mapping[str, Any]]:
        return self._flagged, {"loss_fn": negative_margin, **super()._what_was_read()[1]}

    def _select(self, table: DamageTable, plan: PruningPlan, pools: tuple[Pool, ...]) -> Selection:
        select = joint_selection if self.selection == "joint" else single_selection
        return select(table, self.criterion, pools=pools, floors=plan.floors)

    def _negative(self) -> Tensor:
        plan, table = self.plan_, self._table
        assert table is not None
        selection = self._select(table, plan, (Pool(tuple(table.sizes)),))
        return negative_columns(plan.columns, selection, plan.floors, joint=self.selection == "joint")
