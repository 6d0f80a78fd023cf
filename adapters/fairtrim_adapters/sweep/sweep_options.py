"""Settings that all runs of a sweep share: how networks are pruned, and how they are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import nn

from fairtrim import InputError, PostProcessor
from fairtrim.arguments import did_you_mean, require_number
from fairtrim.comparison.latency import FEWEST_ROUNDS
from fairtrim.data.data_splits import DataSplits
from fairtrim.files.run_settings import described, plain_settings
from fairtrim.network.batchnorm import batchnorm_layers
from fairtrim_adapters.fairlearn.measurements import check_metrics
from fairtrim_adapters.fairlearn.responses import Metric
from fairtrim_adapters.torch_pruning.graph.pruner_options import PrunerOptions, check_ignored_layers
from fairtrim_adapters.torch_pruning.prune_copy import Training, refits, trains
from fairtrim_adapters.torch_pruning.reconstruction.output import OutputRecalibration, check_recalibration

__all__ = ["DEFAULT_PRUNING_RATIOS", "MeasuringOptions", "PruningOptions", "Settings", "SweepOptions"]

DEFAULT_PRUNING_RATIOS = (0.25, 0.5, 0.75)


class PruningOptions(TypedDict, total=False):
    """How each network of a sweep is pruned.

    Attributes:
        fine_tuning: Epochs on the ``train`` split after pruning, settings of ``fairtrim.fine_tune`` such as
            ``{"epochs": 5, "learning_rate": 1e-4}``, or one's own loop ``fine_tuning(network, seed)``; default 0.
        iterative_steps: In how many steps to prune, default 1; scores are computed again before each.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        pruner_options: Further arguments of Torch-Pruning's ``BasePruner``, e.g. ``{"global_pruning": True}``, or a
            function of the network that gives them.
        reconstruct: Whether what reads removed channels is refitted on the scoring data, without a label; default:
            where there is a scoring or training split.
        recalibrate: Whether BatchNorm statistics are computed again after pruning, where nothing is refitted or
            fine-tuned; default True.
        recalibrate_output: Whether at last the output layer is fitted to the labels of the scoring data,
            ``"output"``, or for two classes its threshold alone, ``"threshold"``; default neither.

    Example:
        >>> options: PruningOptions = {"iterative_steps": 3, "fine_tuning": {"epochs": 2, "learning_rate": 1e-4}}
    """

    fine_tuning: Training
    iterative_steps: int
    ignored_layers: Sequence[str]
    pruner_options: PrunerOptions
    reconstruct: bool | None
    recalibrate: bool
    recalibrate_output: OutputRecalibration | None


class MeasuringOptions(TypedDict, total=False):
    """How each network of a sweep is measured.

    Attributes:
        metrics: Further metrics by name, as MetricFrame takes them.
        n_boot: Bootstrap samples for the 95 % intervals, default 200; None for no intervals.
        latency_rounds: How often each network is timed, beside the dense one, default 30; 0 for not at all.
        latency_batch_size: Samples of the timed forward pass, default 32; at most a batch of the test data.

    Example:
        >>> options: MeasuringOptions = {"n_boot": None, "latency_rounds": 0}
    """

    metrics: Mapping[str, Metric] | None
    n_boot: int | None
    latency_rounds: int
    latency_batch_size: int


class SweepOptions(PruningOptions, MeasuringOptions, total=False):
    """What all runs of a sweep share: ``PruningOptions`` and ``MeasuringOptions``.

    Example:
        >>> options: SweepOptions = {"iterative_steps": 3, "n_boot": None}
    """


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs of a sweep share, checked. See ``SweepOptions``."""

    splits: DataSplits
    post_processors: Mapping[str, PostProcessor]
    fine_tuning: Training = 0
    iterative_steps: int = 1
    ignored_layers: Sequence[str] = ()
    pruner_options: PrunerOptions = None
    reconstruct: bool | None = None
    recalibrate: bool = True
    recalibrate_output: OutputRecalibration | None = None
    metrics: Mapping[str, Metric] | None = None
    n_boot: int | None = 200
    latency_rounds: int = 30
    latency_batch_size: int = 32

    @classmethod
    def of(cls, splits: DataSplits, post_processors: Mapping[str, PostProcessor], options: SweepOptions) -> Settings:
        """The settings that a user gave."""
        return cls(splits=splits, post_processors=post_processors, **options)

    def __post_init__(self) -> None:
        require_number("iterative_steps", self.iterative_steps, at_least=1, whole=True)
        if self.n_boot is not None:
            require_number("n_boot", self.n_boot, at_least=1, whole=True, remedy=", or None")
        if self.latency_rounds != 0:
            few = ", or 0 for no latencies (fewer rounds have no interval)"
            require_number("latency_rounds", self.latency_rounds, at_least=FEWEST_ROUNDS, whole=True, remedy=few)
        require_number("latency_batch_size", self.latency_batch_size, at_least=1, whole=True)
        if trains(self.fine_tuning) and not callable(self.fine_tuning):
            self.splits.need("train", f"fine_tuning={self.fine_tuning}")
        elif isinstance(self.fine_tuning, Mapping):
            raise InputError(
                f"fine_tuning={self.fine_tuning} would have no effect; expected epochs of at least 1, or 0"
            )
        if self.post_processors:
            self.splits.need("validation", f"post-processor {next(iter(self.post_processors))!r}")
        check_recalibration(self.recalibrate_output)
        if self.recalibrate_output is not None:
            self.splits.need("scoring", f"recalibrate_output={self.recalibrate_output!r}")
        refits(self.reconstruct, self.splits)
        check_metrics(self.metrics)
        check_ignored_layers(self.ignored_layers)

    def check_network(self, network: nn.Module) -> None:
        """Refuse what would fail after hours of training."""
        names = [name for name, _ in network.named_modules() if name]
        for name in self.ignored_layers:
            if name not in names:
                raise InputError(
                    f"ignored_layers holds {name!r}{did_you_mean(name, names)}; expected names of the network's "
                    f"layers: {names[:20]}"
                )
        if self.recalibrate and not self.refitted and not trains(self.fine_tuning) and batchnorm_layers(network):
            self.splits.need("scoring", "recalibrating BatchNorm (turn it off with recalibrate=False)")

    @property
    def refitted(self) -> bool:
        """Whether pruned networks are refitted."""
        return refits(self.reconstruct, self.splits)

    @property
    def of_measuring(self) -> dict[str, Any]:
        """What must be the same for any run to be taken up again."""
        return {
            "data": self.splits.name,
            "metrics": sorted(self.metrics or ()),
            "n_boot": self.n_boot,
            "latency": [self.latency_rounds, self.latency_batch_size],
            "calling": plain_settings(self.splits.calling),
            "loss_fn": described(self.splits.loss_fn),
        }

    @property
    def of_pruning(self) -> dict[str, Any]:
        """What must be the same for a pruned network to be taken up again."""
        tuned, options = self.fine_tuning, self.pruner_options
        return {
            "fine_tuning": described(tuned) if callable(tuned) else plain_settings(tuned),
            "iterative_steps": self.iterative_steps,
            "ignored_layers": list(self.ignored_layers),
            "pruner_options": described(options) if callable(options) else plain_settings(options),
            "reconstruct": self.refitted,
            "recalibrate": self.recalibrate,
            "recalibrate_output": self.recalibrate_output,
        }
