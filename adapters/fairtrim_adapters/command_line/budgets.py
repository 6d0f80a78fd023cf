"""The command ``smallest``, and what ``prune`` does with a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

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
    Global,
    Ignore,
    Model,
    Onnx,
    Output,
    PrunerSettings,
    Quiet,
    Reconstruct,
    Seed,
    exported,
    network_files,
    pruner_options_of,
)
from .tables import audit_rows, audit_text
from .targets import data_of, networks_of

__all__ = ["Criterion", "prune_within", "smallest"]

Criterion = Annotated[
    str | None,
    typer.Option("--criterion", metavar="NAME[:SETTING=VALUE,...]", help="Listed below.", show_default="worst-group"),
]

_REFITTED = "worst-group, judged after the refit per cost saved"


def prune_within(
    budget: dict[str, float],
    model: str,
    data: str,
    output: Path,
    *,
    criterion: str | None,
    steps: int,
    reconstruct: bool | None,
    onnx: Path | None,
    checkpoint: str | None,
    bootstrap: int,
    seed: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Prune to a budget, print it, and write the network.

    Args:
        budget: Share by cost.
        model: As for the command.
        data: As for the command.
        output: Where to.
        criterion: Its name, or None for the default.
        steps: In how many; 1 leaves it open.
        reconstruct: Whether to refit; default yes.
        onnx: As for the command.
        checkpoint: As for the command.
        bootstrap: As for the command.
        seed: As for the command.
        quiet: As for the command.
        options: Of ``prune_to``.

    Raises:
        InputError: Something that was given is wrong.
    """
    from fairtrim_adapters.torch_pruning import prune_to

    def done(network: Any, splits: DataSplits, example: Any, importance: Any) -> Any:
        return prune_to(
            network,
            splits.need("scoring", "a budget"),
            example,
            **budget,
            importance=importance,
            held_out=_judges(splits),
            steps="auto" if steps == 1 else steps,
            reconstruct=reconstruct is not False,
            random_state=seed,
            progress=not quiet,
            **_reading(splits),
            **options,
        )

    _run(done, model, data, output, criterion, checkpoint, onnx, bootstrap, seed, quiet)


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
    criterion: Annotated[
        str | None,
        typer.Option("--criterion", metavar="NAME[:SETTING=VALUE,...]", help="Listed below.", show_default=_REFITTED),
    ] = None,
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
    split.
    """
    from fairtrim_adapters.torch_pruning import smallest as smallest_network

    drops = {bound.metric: bound.value for bound in parse_bounds("max-drop", max_drop or ["accuracy=0.01"])}
    for name in drops:
        if "[" in name:
            raise InputError(f"--max-drop {name!r} names a group; expected a metric, which no group may lose more of")

    def done(network: Any, splits: DataSplits, example: Any, importance: Any) -> Any:
        return smallest_network(
            network,
            splits.need("scoring", "smallest"),
            example,
            held_out=_judges(splits),
            max_drop=drops,
            by=by,  # type: ignore[arg-type]
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

    _run(done, model, data, output, criterion, checkpoint, onnx, bootstrap, seed, quiet)


def _reading(splits: DataSplits) -> dict[str, Any]:
    return {"sensitive_names": splits.sensitive_names, "loss_fn": splits.loss_fn, **splits.calling}


def _judges(splits: DataSplits) -> Iterable[Any]:
    return splits.test if splits.validation is None else splits.validation


def _run(
    done: Callable[[Any, DataSplits, Any, Any], Any],
    model: str,
    data: str,
    output: Path,
    criterion: str | None,
    checkpoint: str | None,
    onnx: Path | None,
    bootstrap: int,
    seed: int,
    quiet: bool,
) -> None:
    """What both commands do before and after."""
    network_files(output, onnx)
    importance = None
    if criterion is not None:
        ((_, make),) = criteria_by_label(criterion).items()
        importance = make(seed)
    splits = data_of(data)
    networks = networks_of(model, [f"given={checkpoint}"] if checkpoint else [], seed)
    # refuse scores that decide nothing before anything is written
    predict(networks, splits.test, max_batches=1, progress=False, **splits.calling)
    network = list(networks.values())[-1]
    example = slice_samples(splits.first_batch("test", model_device(network)).inputs, slice(0, 1))
    result = done(network, splits, example, importance)
    who = "the test people, for there is no validation split" if splits.validation is None else "the validation people"
    typer.echo(f"Measured on {who}\n{result}\n")
    save_pruned(output, result.model)
    networks["pruned"] = result.model
    typer.echo(audit_text(audit_rows(networks, splits, n_boot=bootstrap or None, seed=seed, progress=not quiet)))
    typer.echo(f"network: {output}")
    exported(onnx, result.model, splits)
