"""The commands ``prune`` and ``smallest``; what they do is in the packages they call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from fairtrim import InputError, predict, save_pruned
from fairtrim.data.batches import slice_samples
from fairtrim.devices import model_device
from fairtrim_adapters.sweep import DataSplits
from fairtrim_adapters.sweep.named_methods import criteria_by_label

from .bounds import parse_bounds
from .options import (
    Bootstrap,
    Checkpoint,
    Data,
    FineTuning,
    Global,
    Ignore,
    IterativeSteps,
    Model,
    Onnx,
    Output,
    PrunerSettings,
    Quiet,
    RecalibrateOutput,
    Reconstruct,
    Seed,
    exported,
    network_files,
    output_recalibration,
    pruner_options_of,
)
from .tables import audit_rows, audit_text
from .targets import data_of, networks_of

__all__ = ["prune", "smallest"]

_DEFAULT = "mean-damage"
Criterion = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        metavar="NAME[:SETTING=VALUE,...]",
        help="Listed below.",
        show_default=f"{_DEFAULT}, compensated unless --no-reconstruct",
    ),
]


def _share(option: str, of: str) -> Any:
    return typer.Option(option, help=f"In place of a ratio: share of the {of} to keep.")


def prune(
    model: Model,
    data: Data,
    output: Output,
    criterion: Criterion = None,
    pruning_ratio: Annotated[
        float | None, typer.Option("--pruning-ratio", help="Share of the channels to remove.", show_default="0.5")
    ] = None,
    macs: Annotated[float | None, _share("--macs", "multiply-accumulates")] = None,
    parameters: Annotated[float | None, _share("--parameters", "parameters")] = None,
    latency: Annotated[float | None, _share("--latency", "measured time")] = None,
    checkpoint: Checkpoint = None,
    iterative_steps: IterativeSteps = 1,
    fine_tuning: FineTuning = 0,
    ignore: Ignore = None,
    global_pruning: Global = False,
    pruner_options: PrunerSettings = None,
    reconstruct: Reconstruct = None,
    recalibrate_output: RecalibrateOutput = None,
    onnx: Onnx = None,
    bootstrap: Bootstrap = 200,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Prune a network, say what was removed and who pays, and write it.

    With --macs, --parameters or --latency channels go until the network is that small, judged after a refit per cost
    saved unless --criterion says otherwise; the people of the validation split, or where there is none the test people,
    choose between one, two and four steps. Exit code 1 if no network is that small; the nearest is written.
    """
    from fairtrim_adapters.torch_pruning import prune_copy, prune_to

    budget: Any = {n: v for n, v in (("macs", macs), ("parameters", parameters), ("latency", latency)) if v is not None}
    if budget:
        _stands_alone(f"--{next(iter(budget))}", pruning_ratio, fine_tuning or None, recalibrate_output)
    network_files(output, onnx)
    if criterion is None and not budget:
        criterion = _DEFAULT if reconstruct is False else f"{_DEFAULT}:compensated=true"
    importance = _importance(criterion, seed)
    splits = data_of(data)
    if fine_tuning:
        splits.need("train", "--fine-tuning")
    networks = _networks(model, checkpoint, splits, seed)
    network = list(networks.values())[-1]
    settings: Any = {
        "ignored_layers": ignore or [],
        "pruner_options": pruner_options_of(pruner_options, global_pruning),
        "random_state": seed,
        "progress": not quiet,
    }
    if budget:
        result = prune_to(
            network,
            splits.need("scoring", "a budget"),
            _example(network, splits),
            **budget,
            importance=importance,
            held_out=_judges(splits),
            steps="auto" if iterative_steps == 1 else iterative_steps,
            reconstruct=reconstruct is not False,
            **settings,
            **_reading(splits),
        )
        pruned = result.model
        typer.echo(f"{_who_judged(splits)}\n{result}\n")
    else:
        pruned = prune_copy(
            network,
            importance,
            splits,
            0.5 if pruning_ratio is None else pruning_ratio,
            fine_tuning=fine_tuning,
            iterative_steps=iterative_steps,
            reconstruct=reconstruct,
            recalibrate_output=output_recalibration(recalibrate_output),
            **settings,
        )
        if hasattr(importance, "report"):
            typer.echo(str(importance.report()) + "\n")
    _written(pruned, networks, splits, output, onnx, bootstrap, seed, quiet)
    if budget and not result.within_budget:
        raise typer.Exit(1)


def smallest(
    model: Model,
    data: Data,
    output: Output,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            "--max-drop",
            metavar="METRIC=VALUE",
            help="No sensitive group loses more; may be repeated.",
            show_default="accuracy=0.01",
        ),
    ] = None,
    by: Annotated[str, typer.Option("--by", metavar="macs|parameters|latency", help="What should be small.")] = "macs",
    confidence: Annotated[
        float, typer.Option("--confidence", help="That the drop is no larger, group by group; 0 takes it as measured.")
    ] = 0.95,
    grid: Annotated[float, typer.Option("--grid", help="How close in size the search ends.")] = 0.02,
    criterion: Criterion = None,
    checkpoint: Checkpoint = None,
    ignore: Ignore = None,
    global_pruning: Global = False,
    pruner_options: PrunerSettings = None,
    reconstruct: Reconstruct = None,
    onnx: Onnx = None,
    bootstrap: Bootstrap = 200,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Find the smallest network within which no sensitive group loses more than allowed, and write it.

    The people of the validation split judge, or where there is none the test people; channels are chosen by the scoring
    split, judged after a refit per cost saved unless --criterion says otherwise.
    """
    from fairtrim_adapters.torch_pruning import smallest as smallest_network

    drops = {bound.metric: bound.value for bound in parse_bounds("max-drop", max_drop or ["accuracy=0.01"])}
    for name in drops:
        if "[" in name:
            raise InputError(f"--max-drop {name!r} names a group; expected a metric, which no group may lose more of")
    network_files(output, onnx)
    importance = _importance(criterion, seed)
    splits = data_of(data)
    networks = _networks(model, checkpoint, splits, seed)
    network = list(networks.values())[-1]
    cost: Any = by
    result = smallest_network(
        network,
        splits.need("scoring", "smallest"),
        _example(network, splits),
        held_out=_judges(splits),
        max_drop=drops,
        by=cost,
        importance=importance,
        confidence=confidence or None,
        grid=grid,
        ignored_layers=ignore or [],
        pruner_options=pruner_options_of(pruner_options, global_pruning),
        reconstruct=reconstruct is not False,
        random_state=seed,
        progress=not quiet,
        **_reading(splits),
    )
    typer.echo(f"{_who_judged(splits)}\n{result}\n")
    _written(result.model, networks, splits, output, onnx, bootstrap, seed, quiet)


def _stands_alone(budget: str, pruning_ratio: Any, fine_tuning: Any, recalibrate_output: Any) -> None:
    """Refuse what has no meaning beside a budget."""
    for option, given in (
        ("--pruning-ratio", pruning_ratio),
        ("--fine-tuning", fine_tuning),
        ("--recalibrate-output", recalibrate_output),
    ):
        if given is not None:
            raise InputError(f"{option} has no place beside {budget}; leave one of them out")


def _importance(criterion: str | None, seed: int) -> Any:
    if criterion is None:
        return None
    ((_, make),) = criteria_by_label(criterion).items()
    return make(seed)


def _networks(model: str, checkpoint: str | None, splits: DataSplits, seed: int) -> dict[str, nn.Module]:
    networks = networks_of(model, [f"given={checkpoint}"] if checkpoint else [], seed)
    # refuse scores that decide nothing before anything is written
    predict(networks, splits.test, max_batches=1, progress=False, **splits.calling)
    return networks


def _reading(splits: DataSplits) -> dict[str, Any]:
    return {"sensitive_names": splits.sensitive_names, "loss_fn": splits.loss_fn, **splits.calling}


def _judges(splits: DataSplits) -> Iterable[Any]:
    return splits.test if splits.validation is None else splits.validation


def _who_judged(splits: DataSplits) -> str:
    if splits.validation is None:
        return "Measured on the test people, for there is no validation split:"
    return "Measured on the validation people:"


def _example(network: nn.Module, splits: DataSplits) -> Any:
    """One sample to count the network on."""
    return slice_samples(splits.first_batch("test", model_device(network)).inputs, slice(0, 1))


def _written(
    pruned: nn.Module,
    networks: dict[str, nn.Module],
    splits: DataSplits,
    output: Path,
    onnx: Path | None,
    bootstrap: int,
    seed: int,
    quiet: bool,
) -> None:
    """Write the network, and say who pays among the test people."""
    save_pruned(output, pruned)
    networks["pruned"] = pruned
    typer.echo("On the test people:")
    typer.echo(audit_text(audit_rows(networks, splits, n_boot=bootstrap or None, seed=seed, progress=not quiet)))
    typer.echo(f"network: {output}")
    exported(onnx, pruned, splits)
