"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from fairtrim import InputError
from fairtrim.devices import model_device
from fairtrim.measures.measure_names import SAME_MEASURES
from fairtrim_adapters.huggingface import pruning_options
from fairtrim_adapters.huggingface.sizes import holds_transformers
from fairtrim_adapters.pareto import Direction
from fairtrim_adapters.sweep import DataSplits
from fairtrim_adapters.torch_pruning.reconstruction.output import OutputRecalibration

from .targets import load_object

__all__ = [
    "NETWORK",
    "Bootstrap",
    "Checkpoint",
    "Checkpoints",
    "Data",
    "Device",
    "FineTuning",
    "Global",
    "Ignore",
    "IterativeSteps",
    "Model",
    "Onnx",
    "Output",
    "Prune",
    "PrunerSettings",
    "Quiet",
    "RecalibrateOutput",
    "Reconstruct",
    "Seed",
    "exported",
    "network_files",
    "objectives_of",
    "output_recalibration",
    "pruner_options_for",
    "pruner_options_of",
    "writable",
]

NETWORK = "MODULE:FUNCTION|FOLDER"
Model = Annotated[
    str,
    typer.Option(
        "--model", metavar=NETWORK, help="Gives the trained, dense network; or a folder, of a language model."
    ),
]
Data = Annotated[str, typer.Option("--data", metavar="MODULE:FUNCTION", help="Gives the data.")]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option("--checkpoint", metavar="[NAME=]PATH", help="A pruned or repaired network; may be repeated."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="PATH", help="A network to start from, in place of the dense."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|cuda|cuda:1|mps|...",
        help="Where the networks run.",
        show_default="where --model leaves them: the CPU, unless it moves them",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]
Bootstrap = Annotated[int, typer.Option("--bootstrap", help="Samples for the 95 % intervals; 0 for none.")]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="Where to write the network; of a folder, a name without suffix is a folder.",
    ),
]
Prune = Annotated[
    str | None,
    typer.Option(
        "--prune",
        metavar="PART[,PART...]",
        help="Of a transformer of Hugging Face: intermediate (feed-forward channels), heads, head_dims, hidden.",
        show_default="intermediate",
    ),
]
Onnx = Annotated[Path | None, typer.Option("--onnx", metavar="PATH", help="Write it as ONNX, too.")]
Ignore = Annotated[
    list[str] | None, typer.Option("--ignore", metavar="LAYER", help="A layer whose outputs stay; may be repeated.")
]
PrunerSettings = Annotated[
    str | None,
    typer.Option("--pruner-options", metavar="MODULE:FUNCTION", help="Gives BasePruner's options: f(network)."),
]
Global = Annotated[
    bool, typer.Option("--global/--local", help="Rank the channels of all layers together, or each layer's by itself.")
]
IterativeSteps = Annotated[
    int,
    typer.Option(
        "--iterative-steps", help="In how many steps to prune, scored again before each and refitted after it."
    ),
]
Reconstruct = Annotated[
    bool | None,
    typer.Option(
        "--reconstruct/--no-reconstruct",
        help="Refit what reads removed channels, without labels.",
        show_default="where the data have a scoring or train split",
    ),
]
RecalibrateOutput = Annotated[
    str | None,
    typer.Option(
        "--recalibrate-output",
        metavar="output|threshold",
        help="At last fit the output layer, or for two classes its threshold, to the scoring data's labels.",
    ),
]
FineTuning = Annotated[int, typer.Option("--fine-tuning", metavar="EPOCHS", help="After pruning.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no notes.")]


def pruner_options_of(target: str | None, global_pruning: bool) -> Any:
    """What the sweep takes as options of Torch-Pruning's pruner.

    Args:
        target: ``module:function`` of a function of the network, or None.
        global_pruning: Whether the channels of all layers are ranked together.

    Returns:
        Options, or a function of the network that gives them.

    Raises:
        InputError: There is no such function.
    """
    if target is None:
        return {"global_pruning": True} if global_pruning else {}
    function = load_object(target, "--pruner-options")
    if not callable(function):
        raise InputError(
            f"--pruner-options {target!r} is a {type(function).__name__}; expected a function of the network"
        )
    return (lambda network: {**function(network), "global_pruning": True}) if global_pruning else function


def pruner_options_for(
    network: nn.Module,
    target: str | None,
    prune: str | None,
    *,
    global_pruning: bool,
    local_pruning: bool,
    head_ratio: float,
) -> Any:
    """Options of Torch-Pruning's pruner for one network; those of a transformer of Hugging Face come by themselves.

    Args:
        network: Of which a copy is pruned.
        target: ``module:function`` of a function of the network that gives them, or None.
        prune: The parts of a transformer that may go, as ``--prune`` has them, or None.
        global_pruning: Whether the channels of all layers are ranked together.
        local_pruning: Whether they must not be.
        head_ratio: Share of the heads to remove, where heads may go.

    Returns:
        Options, or a function of the network that gives them.

    Raises:
        InputError: There is no such function, or nothing that ``--prune`` could be of.
    """
    local = {"global_pruning": False} if local_pruning else {}
    if target is not None and prune is not None:
        raise InputError("--prune and --pruner-options both say what may go; expected one of them")
    if target is not None or not holds_transformers(network):
        if prune is not None:
            raise InputError(f"--prune {prune}: the network holds no transformer of Hugging Face; leave it out")
        given = pruner_options_of(target, global_pruning)
        return (lambda copied: {**given(copied), **local}) if callable(given) else {**given, **local}
    parts: Any = ["intermediate"] if prune is None else [part.strip() for part in prune.split(",")]
    pruning_options(network, prune=parts)  # refused before anything is read
    heads = {"head_pruning_ratio": head_ratio} if "heads" in parts else {}
    together = {"global_pruning": True} if global_pruning else local
    return lambda copied: {**pruning_options(copied, prune=parts), **heads, **together}


def output_recalibration(text: str | None) -> OutputRecalibration | None:
    """What of the output layer is fitted to labels.

    Args:
        text: ``output`` or ``threshold``, or None.

    Returns:
        The same.

    Raises:
        InputError: It is neither.
    """
    known: dict[str | None, OutputRecalibration | None] = {None: None, "output": "output", "threshold": "threshold"}
    if text not in known:
        raise InputError(f"--recalibrate-output {text!r}; expected output or threshold")
    return known[text]


def writable(path: Path | None, option: str) -> None:
    """Refuse before hours of work what can't be written afterwards.

    Args:
        path: Where to write, or None.
        option: The option it was given with.

    Raises:
        InputError: Its folder doesn't exist or can't be written to, or it is a folder itself.
    """
    if path is None:
        return
    if not path.resolve().parent.is_dir():
        raise InputError(f"{option} {path}: folder {path.parent} doesn't exist; create it first")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; expected the name of a file")
    if not os.access(path.resolve().parent, os.W_OK):
        raise InputError(f"{option} {path}: folder {path.parent} can't be written to; expected another one")


def network_files(output: Path, onnx: Path | None) -> None:
    """Refuse before hours of work what a network can't be written to afterwards.

    Args:
        output: Where to write it.
        onnx: Where to write it as ONNX, or None.

    Raises:
        InputError: A file can't be written, both are one, or a package for ONNX is missing.
    """
    writable(output, "--output")
    writable(onnx, "--onnx")
    if onnx is None:
        return
    if onnx.resolve() == output.resolve():
        raise InputError(f"--onnx {onnx} is the file of --output; expected another name")
    from fairtrim_adapters.onnx_export import need_packages

    need_packages()


def exported(path: Path | None, model: nn.Module, data: DataSplits) -> None:
    """Write a network as ONNX, if that was asked for.

    Args:
        path: Where to, or None.
        model: The network.
        data: Whose first test batch is the example.
    """
    if path is None:
        return
    from fairtrim_adapters.onnx_export import export_onnx

    export_onnx(path, model, data.first_batch("test", model_device(model)).inputs)
    typer.echo(f"ONNX: {path} (equal under onnxruntime)")


def objectives_of(texts: list[str] | None) -> dict[str, Direction] | None:
    """Objectives of the Pareto set.

    Args:
        texts: ``column=max`` or ``column=min``, or None; AIF360's name of a measure is Fairlearn's.

    Returns:
        Directions by column, or None for the usual ones.

    Raises:
        InputError: One has another form.

    Example:
        >>> objectives_of(["accuracy=max", "statistical_parity_difference=min"])
        {'accuracy': 'max', 'demographic_parity_difference': 'min'}
    """
    if not texts:
        return None
    directions: dict[str, Direction] = {"max": "max", "min": "min"}
    objectives: dict[str, Direction] = {}
    for text in texts:
        column, _, direction = text.rpartition("=")
        if not column or direction not in directions:
            raise InputError(f"--objective {text!r}: expected column=max or column=min, e.g. accuracy=max")
        objectives[SAME_MEASURES.get(column, column)] = directions[direction]
    return objectives
