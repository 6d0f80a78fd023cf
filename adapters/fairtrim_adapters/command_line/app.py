"""The commands and their options; what they do is in the packages they call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fairtrim import POST_PROCESSORS, InputError, save_pruned
from fairtrim_adapters.fairlearn.flags import FEWEST
from fairtrim_adapters.fairlearn.measurements import joined_flags
from fairtrim_adapters.sweep.named_methods import DEFAULT_CRITERIA, post_processors_by_label
from fairtrim_adapters.sweep.sweep_options import DEFAULT_PRUNING_RATIOS

from .audits import audited
from .bounds import Bound, judge, parse_bounds
from .examples import example
from .gate import flags_of, shut
from .language import is_language, no_language
from .methods import ListingGroup, listing
from .options import (
    NETWORK,
    Bootstrap,
    Checkpoint,
    Checkpoints,
    Data,
    Device,
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
    objectives_of,
    output_recalibration,
    pruner_options_of,
    writable,
)
from .pruning import prune, smallest
from .tables import audit_rows, audit_text, sweep_text
from .targets import data_of, load_object, made_on, networks_of

__all__ = ["app"]

# 1 had no positives and negatives, without which check can't tell; 2 had other names of gaps; 3 no rates of each class
_AUDIT_VERSION = 4

app = typer.Typer(
    name="fairtrim",
    cls=ListingGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Compress and repair networks with the people they serve in view.

    MODULE:FUNCTION names a function of yours, in a module or a file (path/to/file.py:function). The one of --model
    gives a trained torch network, the one of --data fairtrim_adapters.sweep.DataSplits or a dict of loaders: test,
    and scoring, validation, train where they are needed. A checkpoint is what prune or repair wrote.

    A causal language model may be given as a folder that save_pretrained wrote; its data are texts with the next
    token at each as the label (fairtrim_adapters.huggingface.text_loader), and pairs of sentences.

    \b
    Exit codes:
      0    done, and every bound holds
      1    a bound of check, or of repair --require-bound, failed, check can't tell, or
           prune can't get as small as asked
      2    the command line, the data or the network is wrong
      3    something failed that was not foreseen; --debug, anywhere, shows where
      130  interrupted
    """,
)


def _version(asked: bool) -> None:
    if asked:
        from fairtrim import __version__

        typer.echo(f"fairtrim {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show notes of every run and step; may stand anywhere.")
    ] = False,
) -> None:
    pass


@app.command(cls=listing("criterion", "post-processor"), epilog=example("sweep"))
def sweep(
    model: Model,
    data: Data,
    folder: Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Keeps the runs; a sweep goes on there.")],
    criterion: Annotated[
        list[str] | None,
        typer.Option(
            "--criterion",
            metavar="NAME[:SETTING=VALUE,...]",
            help="Listed below; may be repeated.",
            show_default=", ".join(DEFAULT_CRITERIA),
        ),
    ] = None,
    pruning_ratio: Annotated[
        list[float] | None,
        typer.Option(
            "--pruning-ratio",
            help="Share of the channels to remove; may be repeated.",
            show_default=", ".join(map(str, DEFAULT_PRUNING_RATIOS)),
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Number of seeds, 0 to N − 1.")] = 1,
    post_processor: Annotated[
        list[str] | None,
        typer.Option(
            "--post-processor", metavar="NAME[:SETTING=VALUE,...]", help="Listed below; may be repeated; default none."
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option("--train", metavar="MODULE:FUNCTION", help="Trains the network in place: f(network, seed)."),
    ] = None,
    fine_tuning: FineTuning = 0,
    iterative_steps: IterativeSteps = 1,
    ignore: Ignore = None,
    global_pruning: Global = False,
    pruner_options: PrunerSettings = None,
    reconstruct: Reconstruct = None,
    recalibrate_output: RecalibrateOutput = None,
    bootstrap: Bootstrap = 200,
    latency_rounds: Annotated[int, typer.Option("--latency-rounds", help="0 for no latencies.")] = 30,
    device: Device = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Runs at a time; latencies are only true for one.")] = 1,
    objective: Annotated[
        list[str] | None,
        typer.Option("--objective", metavar="COLUMN=max|min", help="Of the Pareto set."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compare criteria, pruning ratios, seeds and post-processors; stopped and called again, it goes on."""
    from fairtrim_adapters import sweep as sweeping

    objectives = objectives_of(objective)
    splits = data_of(data)
    no_language(model, splits, "sweep", "prune it several times, and compare with audit --checkpoint")
    table = sweeping.sweep(
        made_on(model, device),
        splits,
        criterion or DEFAULT_CRITERIA,
        pruning_ratio or DEFAULT_PRUNING_RATIOS,
        seeds,
        post_processors=post_processor,
        train=None if train is None else load_object(train, "--train"),
        fine_tuning=fine_tuning,
        iterative_steps=iterative_steps,
        ignored_layers=ignore or [],
        pruner_options=pruner_options_of(pruner_options, global_pruning),
        reconstruct=reconstruct,
        recalibrate_output=output_recalibration(recalibrate_output),
        n_boot=bootstrap or None,
        latency_rounds=latency_rounds,
        folder=folder,
        n_jobs=jobs,
        progress=not quiet,
    )
    typer.echo(sweep_text(table, objectives))
    others = len(list((folder / "runs").glob("*.safetensors"))) - len(table)
    if others > 0:
        typer.echo(
            f"{others} runs in {folder} are not in this table: of criteria, pruning ratios or seeds not asked for now"
        )
    typer.echo(f"table: {folder / 'sweep.csv'}; pictures: fairtrim report --sweep {folder} --output report.html")


app.command(cls=listing("criterion"), epilog=example("prune"))(prune)
app.command(cls=listing("criterion"), epilog=example("smallest"))(smallest)


@app.command(epilog=example("audit"))
def audit(
    model: Model,
    data: Data,
    checkpoint: Checkpoints = None,
    output: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help="Write the figures, for check --audit.")
    ] = None,
    bootstrap: Bootstrap = 200,
    device: Device = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Show the figures of networks for each sensitive group, against the dense one."""
    from fairtrim.files.atomic_file import write_text
    from fairtrim_adapters.sweep import versions

    writable(output, "--json")
    splits = data_of(data)
    networks = networks_of(model, checkpoint or [], seed, device)
    language = is_language(model, splits)
    audit = audited(networks, splits, language=language, n_boot=bootstrap or None, seed=seed, progress=not quiet)
    typer.echo(audit.text)
    if output is not None:
        content = {
            "format": "fairtrim-audit",
            "version": _AUDIT_VERSION,
            "data": splits.name,
            "versions": versions(),
            "networks": audit.rows,
        }
        write_text(output, json.dumps(content, indent=2) + "\n")
        typer.echo(f"figures: {output}")


@app.command(cls=listing("post-processor"), epilog=example("repair"))
def repair(
    model: Model,
    data: Data,
    output: Output,
    post_processor: Annotated[
        str, typer.Option("--post-processor", metavar="NAME[:SETTING=VALUE,...]", help="Listed below.")
    ] = POST_PROCESSORS.default,
    checkpoint: Checkpoint = None,
    onnx: Onnx = None,
    require_bound: Annotated[
        bool, typer.Option("--require-bound", help="Exit code 1 if the bound is not met on the selection people.")
    ] = False,
    bootstrap: Bootstrap = 200,
    device: Device = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Edit a trained network until a bias measure is within a bound, and write it.

    Needs data with a validation split. Without --require-bound exit code 0 says that it was done, not that the bound
    was met: read the flags, or ask with check.
    """
    network_files(output, onnx)
    ((_, method),) = post_processors_by_label(post_processor).items()
    splits = data_of(data)
    no_language(model, splits, "repair", "see docs/language_models.md for what can be done about pairs of sentences")
    validation = splits.need("validation", f"post-processor {post_processor!r}")
    networks = networks_of(model, [f"given={checkpoint}"] if checkpoint else [], seed, device)
    done = method.set_params(random_state=seed).repair(
        list(networks.values())[-1],
        validation,
        sensitive_names=splits.sensitive_names,
        progress=not quiet,
        **splits.calling,
    )
    typer.echo(f"On the selection people\n{done}\n")
    save_pruned(output, done.model)
    networks["repaired"] = done.model.eval()
    rows = audit_rows(networks, splits, n_boot=bootstrap or None, seed=seed, progress=not quiet)
    rows["repaired"]["flags"] = "; ".join(filter(None, [rows["repaired"]["flags"], joined_flags(done.flags)]))
    typer.echo(audit_text(rows))
    typer.echo(f"network: {output}")
    exported(onnx, done.model, splits)
    if require_bound and not done.within_bound:
        raise typer.Exit(1)


@app.command(epilog=example("report"))
def report(
    output: Annotated[
        list[Path], typer.Option("--output", "-o", metavar="PATH", help=".html, .md or .json; may be repeated.")
    ],
    model: Annotated[str | None, typer.Option("--model", metavar=NETWORK, help="The dense network.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="MODULE:FUNCTION", help="The data.")] = None,
    checkpoint: Checkpoints = None,
    sweep_folder: Annotated[
        Path | None, typer.Option("--sweep", metavar="FOLDER", help="Of a finished sweep, in place of networks.")
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option("--objective", metavar="COLUMN=max|min", help="Of a sweep's Pareto set.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title")] = None,
    bootstrap: Bootstrap = 200,
    device: Device = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained report of networks, or of a sweep: HTML, Markdown for a model card, JSON."""
    for path in output:
        writable(path, "--output")
        if path.suffix not in (".html", ".md", ".json"):
            raise InputError(f"--output {path}: expected a name that ends in .html, .md or .json")
    named: dict[str, Any] = {} if title is None else {"title": title}
    if sweep_folder is not None:
        if model is not None or data is not None or checkpoint:
            raise InputError("--sweep stands alone; expected it, or --model and --data")
        if bootstrap != 200 or seed != 0 or device is not None:
            raise InputError("--bootstrap, --seed and --device have no effect on a finished sweep; leave them out")
        from fairtrim_adapters.report import report_sweep

        made = report_sweep(sweep_folder, objectives=objectives_of(objective), **named)
    elif model is None or data is None:
        raise InputError("nothing to report on; expected --model and --data, or --sweep FOLDER")
    elif objective:
        raise InputError("--objective is of a sweep's Pareto set; expected it with --sweep FOLDER")
    elif is_language(model, splits := data_of(data)):
        from fairtrim_adapters.report import report_language_models

        made = report_language_models(
            networks_of(model, checkpoint or [], seed, device), splits, progress=not quiet, **named
        )
    else:
        from fairtrim_adapters.report import report_networks

        made = report_networks(
            networks_of(model, checkpoint or [], seed, device),
            splits,
            n_boot=bootstrap or None,
            random_state=seed,
            progress=not quiet,
            **named,
        )
    for path in output:
        made.save(path)
        typer.echo(f"report: {path}")


@app.command(epilog=example("check"))
def check(
    model: Annotated[str | None, typer.Option("--model", metavar=NETWORK, help="The dense network.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="MODULE:FUNCTION", help="The data.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="PATH", help="The network to check; default the dense one.")
    ] = None,
    audit_file: Annotated[
        Path | None,
        typer.Option("--audit", metavar="PATH", help="Figures from audit --json, in place of networks."),
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="NAME", help="Which of the audit; default the last.")
    ] = None,
    maximum: Annotated[
        list[str] | None, typer.Option("--max", metavar="METRIC=VALUE", help="The figure is at most this.")
    ] = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--min", metavar="METRIC=VALUE", help="The figure is at least this.")
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option("--max-drop", metavar="METRIC=VALUE", help="It fell by at most this."),
    ] = None,
    max_rise: Annotated[
        list[str] | None,
        typer.Option("--max-rise", metavar="METRIC=VALUE", help="It rose by at most this."),
    ] = None,
    confident: Annotated[
        bool,
        typer.Option("--confident", help="The whole 95 % interval must be within the bound."),
    ] = False,
    min_people: Annotated[
        int, typer.Option("--min-people", min=0, help="Of each sensitive group, or it fails; 0 to take any.")
    ] = FEWEST,
    bootstrap: Bootstrap = 200,
    device: Device = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """A gate for CI: exit code 1, and a line for each, if a bound on a figure fails or these people can't tell.

    They can't if the figure is undefined, the network gives everybody one label, everybody has one label, or a
    sensitive group is smaller than --min-people. Flags of the network are printed, too.

    Metrics are the figures of audit: accuracy, worst_group_accuracy, equalized_odds_difference and so on, or those
    of one sensitive group: 'accuracy[Female]'. Drops and rises are measured from the dense network. Of language models
    they are perplexity, perplexity_ratio (of a group of texts: 'perplexity_ratio[name]'), stereotype_preferred in per
    cent, mean_difference and rms_difference of pairs.
    """
    bounds: list[Bound] = [
        *parse_bounds("max", maximum or []),
        *parse_bounds("min", minimum or []),
        *parse_bounds("max-drop", max_drop or []),
        *parse_bounds("max-rise", max_rise or []),
    ]
    if not bounds:
        raise InputError("no bound to check; expected --max, --min, --max-drop or --max-rise METRIC=VALUE")
    if audit_file is not None:
        if model is not None or data is not None or checkpoint is not None:
            raise InputError("--audit stands alone; expected it, or --model and --data")
        if bootstrap != 200 or seed != 0 or device is not None:
            raise InputError(
                "--bootstrap, --seed and --device belong to fairtrim audit, which made the figures; leave them out"
            )
        rows = _audit(audit_file)
    elif model is None or data is None:
        raise InputError("nothing to check; expected --model and --data, or --audit PATH")
    else:
        splits = data_of(data)
        networks = networks_of(model, [f"checked={checkpoint}"] if checkpoint else [], seed, device)
        language = is_language(model, splits)
        rows = audited(
            networks, splits, language=language, n_boot=bootstrap or None, seed=seed, progress=not quiet
        ).rows
    name = list(rows)[-1] if network is None else network
    if name not in rows:
        raise InputError(f"--network {name!r} is not in the figures; expected one of {list(rows)}")
    relative = [bound for bound in bounds if bound.is_change]
    if relative and name == next(iter(rows)):
        raise InputError(
            f"{relative[0]}: the dense network is what changes are measured from; expected --checkpoint PATH"
        )
    verdicts = judge(bounds, rows[name], confident=confident)
    reasons = shut(bounds, rows[name], next(iter(rows.values())), min_people=min_people)
    failed = [verdict.text for verdict in verdicts if not verdict.holds] + reasons
    for text in failed or [verdict.text for verdict in verdicts]:
        typer.echo(f"{'FAILED' if failed else 'ok'} {text}")
    for flag in flags_of(rows[name]):
        if flag not in reasons:
            typer.echo(f"flag {flag}")
    if failed:
        raise typer.Exit(1)


def _audit(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"--audit {path}: there is no such file; write it with fairtrim audit --json {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--audit {path} is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != "fairtrim-audit" or "networks" not in content:
        raise InputError(f"--audit {path} was not written by fairtrim audit --json")
    if content.get("version") != _AUDIT_VERSION:
        raise InputError(
            f"--audit {path} is of version {content.get('version')}; expected {_AUDIT_VERSION}: write it again with "
            f"fairtrim audit --json {path}"
        )
    rows: dict[str, dict[str, Any]] = content["networks"]
    return rows
