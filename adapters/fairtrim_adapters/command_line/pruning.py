"""The commands ``prune`` and ``smallest``; what they do is in the packages they call."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from fairtrim import InputError, predict, save_pruned
from fairtrim.data.batches import slice_samples
from fairtrim.devices import model_device
from fairtrim.printing import WIDTH, TextTable, figure
from fairtrim_adapters.sweep import DataSplits
from fairtrim_adapters.sweep.named_methods import criteria_by_label
from fairtrim_adapters.torch_pruning.budget.outcome import PrunedToBudget
from fairtrim_adapters.torch_pruning.importances.registry import IMPORTANCES

from .audits import audited
from .bounds import parse_bounds
from .language import is_language
from .language_folders import check_new_folder, is_folder_output, write_folder
from .options import (
    Bootstrap,
    Checkpoint,
    Data,
    Device,
    FineTuning,
    Global,
    Ignore,
    IterativeSteps,
    Model,
    Onnx,
    Output,
    Prune,
    PrunerSettings,
    Quiet,
    RecalibrateOutput,
    Reconstruct,
    Seed,
    exported,
    network_files,
    output_recalibration,
    pruner_options_for,
)
from .targets import data_of, networks_of

__all__ = ["prune", "smallest"]

_DEFAULT = IMPORTANCES.default
_MOST_HEADS = 0.5  # of those that --prune names, within a budget
_OF_TOKENS = ("loss", "accuracy")
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
    parts: Prune = None,
    global_pruning: Global = False,
    pruner_options: PrunerSettings = None,
    reconstruct: Reconstruct = None,
    recalibrate_output: RecalibrateOutput = None,
    onnx: Onnx = None,
    bootstrap: Bootstrap = 200,
    device: Device = None,
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
    place = _Place.checked(model, output, onnx, global_pruning)
    if criterion is None and not budget:
        criterion = _DEFAULT if reconstruct is False else f"{_DEFAULT}:compensated=true"
    importance = _importance(criterion, seed)
    splits = data_of(data)
    if fine_tuning:
        splits.need("train", "--fine-tuning")
    language = is_language(model, splits)
    networks = _networks(model, checkpoint, splits, seed, device, language)
    network = list(networks.values())[-1]
    ratio = 0.5 if pruning_ratio is None else pruning_ratio
    settings: Any = {
        "ignored_layers": ignore or [],
        "pruner_options": pruner_options_for(
            network,
            pruner_options,
            parts,
            global_pruning=global_pruning,
            local_pruning=place.is_folder,
            head_ratio=_MOST_HEADS if budget else ratio,
        ),
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
        typer.echo(f"{_who_judged(splits, language)}\n{_shown(result, language)}\n")
    else:
        pruned = prune_copy(
            network,
            importance,
            splits,
            ratio,
            fine_tuning=fine_tuning,
            iterative_steps=iterative_steps,
            reconstruct=reconstruct,
            recalibrate_output=output_recalibration(recalibrate_output),
            **settings,
        )
        if hasattr(importance, "report"):
            # of a language model one more pass over the texts takes long, and others are measured below
            typer.echo(f"{importance.report(measure=not language)}\n")
    _written(pruned, place, networks, splits, language, bootstrap, seed, quiet)
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
            help="No sensitive group loses more, of loss: no group's rises more; may be repeated.",
            show_default="accuracy=0.01, of language models loss=0.05",
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
    parts: Prune = None,
    global_pruning: Global = False,
    pruner_options: PrunerSettings = None,
    reconstruct: Reconstruct = None,
    onnx: Onnx = None,
    bootstrap: Bootstrap = 200,
    device: Device = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Find the smallest network within which no sensitive group loses more than allowed, and write it.

    The people of the validation split judge, or where there is none the test people; channels are chosen by the scoring
    split, judged after a refit per cost saved unless --criterion says otherwise.
    """
    from fairtrim_adapters.torch_pruning import smallest as smallest_network

    drops = {bound.metric: bound.value for bound in parse_bounds("max-drop", max_drop or [])}
    for name in drops:
        if "[" in name:
            raise InputError(f"--max-drop {name!r} names a group; expected a metric, which no group may lose more of")
    place = _Place.checked(model, output, onnx, global_pruning)
    importance = _importance(criterion, seed)
    splits = data_of(data)
    language = is_language(model, splits)
    if language and (others := [name for name in drops if name not in _OF_TOKENS]):
        raise InputError(
            f"--max-drop {others[0]!r} is of decisions about people, and this is a language model; expected "
            "loss=0.05, by which the mean loss of a token may rise in the texts of any group"
        )
    networks = _networks(model, checkpoint, splits, seed, device, language)
    network = list(networks.values())[-1]
    cost: Any = by
    result = smallest_network(
        network,
        splits.need("scoring", "smallest"),
        _example(network, splits),
        held_out=_judges(splits),
        max_drop=drops or ({"loss": 0.05} if language else {"accuracy": 0.01}),
        by=cost,
        importance=importance,
        confidence=confidence or None,
        grid=grid,
        ignored_layers=ignore or [],
        pruner_options=pruner_options_for(
            network,
            pruner_options,
            parts,
            global_pruning=global_pruning,
            local_pruning=place.is_folder,
            head_ratio=_MOST_HEADS,
        ),
        reconstruct=reconstruct is not False,
        random_state=seed,
        progress=not quiet,
        **_reading(splits),
    )
    typer.echo(f"{_who_judged(splits, language)}\n{_shown(result, language)}\n")
    _written(result.model, place, networks, splits, language, bootstrap, seed, quiet)


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


def _networks(
    model: str, checkpoint: str | None, splits: DataSplits, seed: int, device: str | None, language: bool
) -> dict[str, nn.Module]:
    networks = networks_of(model, [f"given={checkpoint}"] if checkpoint else [], seed, device)
    if not language:  # refuse scores that decide nothing before anything is written
        predict(networks, splits.test, max_batches=1, progress=False, **splits.calling)
    return networks


def _reading(splits: DataSplits) -> dict[str, Any]:
    return {"sensitive_names": splits.sensitive_names, "loss_fn": splits.loss_fn, **splits.calling}


def _judges(splits: DataSplits) -> Iterable[Any]:
    return splits.test if splits.validation is None else splits.validation


def _who_judged(splits: DataSplits, language: bool) -> str:
    who = "texts" if language else "people"
    if splits.validation is None:
        return f"Measured on the test {who}, for there is no validation split:"
    return f"Measured on the validation {who}:"


def _example(network: nn.Module, splits: DataSplits) -> Any:
    """One sample to count the network on."""
    return slice_samples(splits.first_batch("test", model_device(network)).inputs, slice(0, 1))


def _shown(result: PrunedToBudget, language: bool) -> str:
    """The result as text; of a language model the loss of the texts of each group, and no rates of labels."""
    if not language:
        return str(result)
    sizes = f"{100 * result.parameters:.1f} % of the parameters, {100 * result.macs:.1f} % of the MACs"
    rows = [
        [
            str(row["sensitive_group"]),
            figure(int(row["people"])),
            figure(row["loss dense"], digits=4),
            figure(row["loss pruned"], digits=4),
            f"{figure(row['loss change'], digits=4, sign=True)} ± {figure(row['loss standard error'], digits=4)}",
        ]
        for _, row in result.measured.iterrows()
    ]
    heads = ["group", "texts", "dense", "pruned", "change ± standard error"]
    stopped = [] if result.stopped_by is None else [f"stopped by {result.stopped_by}"]
    told = [textwrap.fill(line, WIDTH) for line in (*stopped, *(f"! {flag}" for flag in result.flags))]
    return "\n\n".join([sizes, str(TextTable(heads, rows, title="Mean loss of a token")), *told])


@dataclass(frozen=True)
class _Place:
    """Where a network is written: a file, or a folder as the one it came from, and ONNX."""

    output: Path
    source: Path | None
    onnx: Path | None

    @classmethod
    def checked(cls, model: str, output: Path, onnx: Path | None, global_pruning: bool) -> _Place:
        """Refuse before hours of work what can't be written afterwards."""
        if not is_folder_output(model, output):
            network_files(output, onnx)
            return cls(output, None, onnx)
        check_new_folder(output, Path(model), global_pruning=global_pruning)
        if onnx is not None:
            network_files(onnx.with_suffix(".safetensors"), onnx)
        return cls(output, Path(model), onnx)

    @property
    def is_folder(self) -> bool:
        return self.source is not None

    def write(self, pruned: nn.Module) -> None:
        if self.source is None:
            save_pruned(self.output, pruned)
        else:
            write_folder(self.output, pruned, self.source)


def _written(
    pruned: nn.Module,
    place: _Place,
    networks: dict[str, nn.Module],
    splits: DataSplits,
    language: bool,
    bootstrap: int,
    seed: int,
    quiet: bool,
) -> None:
    """Write the network, and say who pays among the test people."""
    place.write(pruned)
    networks["pruned"] = pruned
    typer.echo(f"On the test {'texts' if language else 'people'}:")
    audit = audited(networks, splits, language=language, n_boot=bootstrap or None, seed=seed, progress=not quiet)
    typer.echo(audit.text)
    typer.echo(f"network: {place.output}")
    exported(place.onnx, pruned, splits)
