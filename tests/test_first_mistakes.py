"""Mistakes of the first hour: each gets one line that says what was given, what is expected and what to do.

The page ``docs/guides/if_it_says.md`` quotes these lines: see the last test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_pruning as tp
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import FairtrimError, ParityFineTuning, load_pruned, recalibrate_batchnorm, save_pruned
from fairtrim_adapters.command_line import main
from fairtrim_adapters.fairlearn import compare_models, metric_frame, plot_comparison
from fairtrim_adapters.plots import plot_damage, plot_trade_off
from fairtrim_adapters.sweep import sweep
from fairtrim_adapters.torch_pruning import WorstGroupImportance, prune_copy, prune_to, reconstructed, smallest
from tests.snapshot import Snapshot

ROOT = Path(__file__).parent.parent
N = 40
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
HALF: Any = 1.5
WORDS = ["yes" if label else "no" for label in Y.tolist()]
GROUPS = ["a", "b"] * (N // 2)
FRAME = pd.DataFrame(X.numpy(), columns=["age", "hours", "gain", "loss"])
TWO = DataLoader(TensorDataset(X, Y), batch_size=10)
SPLITS: dict[str, Any] = {"test": [(X, Y, GROUPS)], "scoring": [(X, Y, GROUPS)], "validation": [(X, Y, GROUPS)]}


def people(inputs: Any = X, target: Any = Y, sensitive: Any = GROUPS) -> list[Any]:
    return [(inputs, target, sensitive)]


def network(end: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), *([] if end is None else [end])]
    return nn.Sequential(*layers)


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.end = network(), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.body(x))


def pruner_of(model: nn.Sequential, importance: Any, *, ratio: Any = 0.5, steps: int = 1) -> Any:
    ignored = [layer for layer in model if isinstance(layer, nn.Linear)][-1:]
    return tp.pruner.BasePruner(
        model, X[:1], importance, pruning_ratio=ratio, iterative_steps=steps, ignored_layers=ignored
    )


def fit(loader: Any, *, ratio: Any = 0.5, **options: Any) -> Any:
    importance = WorstGroupImportance()
    return importance.fit(pruner_of(network(), importance, ratio=ratio), loader, progress=False, **options)


def compared(loader: Any, model: Any = None, **options: Any) -> Any:
    models = {"dense": network() if model is None else model}
    return compare_models(models, loader, progress=False, **{"n_boot": None, **options})


def repaired(loader: Any, model: Any = None, **settings: Any) -> Any:
    return ParityFineTuning(**settings).repair(network() if model is None else model, loader, progress=False)


def pruned(loader: Any, model: Any = None, example_inputs: Any = X[:1], **options: Any) -> Any:
    given = network() if model is None else model
    return prune_to(given, loader, example_inputs, progress=False, **{"macs": 0.5, **options})


Act = Callable[[Any], Any]


def _fitting(model: Any) -> Act:
    importance = WorstGroupImportance()
    pruner = pruner_of(model, importance)
    return lambda loader: importance.fit(pruner, loader, progress=False)


def _refitting(model: Any) -> Act:
    pruner = pruner_of(model, tp.importance.GroupMagnitudeImportance())

    def act(loader: Any) -> None:
        with reconstructed(pruner, loader, progress=False):
            raise AssertionError("the step was reached")

    return act


# What takes a network and a loader; a pruner is made first, by Torch-Pruning, which doesn't leave everything as it was
WAYS: dict[str, Callable[[Any], Act]] = {
    "fit": _fitting,
    "compare_models": lambda model: lambda loader: compared(loader, model),
    "repair": lambda model: lambda loader: repaired(loader, model),
    "prune_to": lambda model: lambda loader: pruned(loader, model),
    "reconstructed": _refitting,
}

# Loaders: what is in them, and the words of the message, of all ways or of those that are named ----------------------

_TO_TENSORS = ("batch 0: the inputs are a", "torch.tensor(values, dtype=torch.float32)")
_OF_LOADER = ("batch 0 of the loader is", "expected (inputs, target) or (inputs, target, sensitive)")
_NUMBERED = ("the target is", "makes no tensor", "LabelEncoder")
_FROM_0 = ("labels reach from 1 to 2; expected 0 to 1", "count them from 0, target - 1")
_JUDGES = ("fit", "compare_models", "repair", "prune_to")

LOADERS: dict[str, tuple[Callable[[], Any], Sequence[str], Sequence[str]]] = {
    "a frame with words": (
        lambda: people(FRAME.assign(job="nurse")),
        (*_TO_TENSORS, "whose columns job hold no numbers"),
        ("fit", "compare_models", "prune_to", "reconstructed"),
    ),
    "a frame, to repair": (
        lambda: people(FRAME),
        ("the inputs hold a DataFrame; expected tensors", "torch.tensor(frame.to"),
        ("repair",),
    ),
    "lists": (lambda: people(X.tolist()), _TO_TENSORS, ("fit", "compare_models", "prune_to", "reconstructed")),
    "float64": (
        lambda: people(X.double()),
        ("batch 0: the inputs are float64 and the network is float32", "inputs.to(torch.float32)"),
        tuple(WAYS),
    ),
    "a column too many": (
        lambda: people(torch.cat([X, X[:, :1]], dim=1)),
        ("batch 0: the inputs have shape (40, 5), and layer '0', a Linear, takes 4 features", "was trained on"),
        tuple(WAYS),
    ),
    "NaN in the inputs": (lambda: people(X.where(X < 2, torch.nan)), ("finite", "inputs"), _JUDGES),
    "one-hot labels": (lambda: people(target=torch.eye(2)[Y]), ("target.argmax(1)",), _JUDGES),
    "labels in words": (lambda: people(target=WORDS), _NUMBERED, tuple(WAYS)),
    "labels from 1": (lambda: people(target=Y + 1), _FROM_0, _JUDGES),
    "labels -1 and 1": (lambda: people(target=2 * Y - 1), ("reach from -1 to 1", "(target > 0).long()"), _JUDGES),
    "labels as floats": (
        lambda: people(target=Y.float()),
        ("the target is torch.float32", "expects integer labels (N,): ", "pass target.flatten().long()"),
        ("fit", "prune_to"),
    ),
    "no target": (lambda: DataLoader(TensorDataset(X), batch_size=20), (*_OF_LOADER, "a list of 1"), tuple(WAYS)),
    "one batch for a loader": (lambda: (X, Y, GROUPS), (*_OF_LOADER, "one batch is [(inputs, target)]"), tuple(WAYS)),
    "a path": (lambda: "people.csv", ("loader is a str; expected a DataLoader",), tuple(WAYS)),
    "a frame for a loader": (lambda: FRAME, ("loader is a DataFrame; expected a DataLoader",), tuple(WAYS)),
    "a dataset": (lambda: TensorDataset(X, Y), ("loader is a TensorDataset; expected a DataLoader",), tuple(WAYS)),
    "nobody": (list, ("the loader gave no sample; pass a loader with at least one batch",), tuple(WAYS)),
    "used up": (lambda: iter([]), ("the loader gave no sample", "an iterator runs dry"), ("fit", "compare_models")),
    "a generator": (
        lambda: (batch for batch in people()),
        ("loader is a generator", "expected a DataLoader or a list of batches"),
        ("prune_to", "reconstructed"),
    ),
    "None among the samples": (
        lambda: DataLoader([(x, y, None) for x, y in zip(X, Y, strict=True)], batch_size=20),  # type: ignore[arg-type]
        ("the loader can't put samples together", "collate_fn"),
        tuple(WAYS),
    ),
    "no sensitive features": (
        lambda: TWO,
        ("(inputs, target)", "expected (inputs, target, sensitive)", "sensitive_features= "),
        ("fit", "compare_models", "repair"),
    ),
    "ages": (
        lambda: people(sensitive=torch.linspace(18, 80.5, N)),
        ("sensitive feature 'sensitive' holds 19", "fairtrim.SensitiveBins"),
        _JUDGES,
    ),
    "a group that is missing": (
        lambda: people(sensitive=[None, *GROUPS[1:]]),
        ("sensitive feature 'sensitive' is missing for 1 of 40", "a name of its own"),
        ("fit", "compare_models", "repair"),
    ),
    "one group": (
        lambda: people(sensitive=["a"] * N),
        ("of the sensitive group 'a'; expected at least two",),
        ("repair",),
    ),
}

# Networks ------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[Callable[[], Any], Sequence[str], Sequence[str]]] = {
    "that return a tuple": (
        lambda: Ending(lambda z: (z, z)),
        ("the network returned a tuple; expected a tensor of scores (N, K)", "lambda output: output[0]"),
        ("compare_models", "repair", "prune_to"),
    ),
    "that return a dict": (
        lambda: Ending(lambda z: {"out": z, "hidden": z}),
        ("the network returned a dict of ['out', 'hidden']", "lambda output: output['out']"),
        ("compare_models", "repair", "prune_to"),
    ),
    "that return labels": (
        lambda: Ending(lambda z: z.argmax(1)),
        ("the network returned torch.int64, which are labels or counts", "leave argmax"),
        ("compare_models",),
    ),
    "that end in softmax": (
        lambda: network(nn.Softmax(1)),
        ("the network returns probabilities", "leave it to the loss (cross_entropy)"),
        ("fit",),
    ),
    "that end in softmax, to repair": (
        lambda: network(nn.Softmax(1)),
        ("the network has no linear head", "expected logits. If it ends in a softmax or sigmoid"),
        ("repair",),
    ),
    "as a path": (
        lambda: "model.pt",
        ("is a str; expected a torch.nn.Module: make the network and load its weights first",),
        ("compare_models", "repair", "prune_to"),
    ),
    "as a state dict": (
        lambda: network().state_dict(),
        ("expected a torch.nn.Module", "load_state_dict(...)"),
        ("compare_models", "repair", "prune_to"),
    ),
    "as a class": (
        lambda: Ending,
        ("is a type; expected a torch.nn.Module, not its class: Ending(...)",),
        ("compare_models", "repair", "prune_to"),
    ),
    "of scikit-learn": (
        LogisticRegression,
        ("is a LogisticRegression; expected a torch.nn.Module: scikit-learn's",),
        ("compare_models", "repair", "prune_to"),
    ),
}

_CASES = [
    pytest.param(way, words, given, None, id=f"{name}-{way}")
    for name, (given, words, ways) in LOADERS.items()
    for way in ways
] + [
    pytest.param(way, words, people, given, id=f"networks {name}-{way}")
    for name, (given, words, ways) in NETWORKS.items()
    for way in ways
]


@pytest.mark.parametrize(("way", "words", "loader", "model"), _CASES)
def test_loaders_and_networks(
    way: str, words: Sequence[str], loader: Callable[[], Any], model: Callable[[], Any] | None
) -> None:
    given: Any = network() if model is None else model()
    act = WAYS[way](given)
    before = Snapshot(given) if isinstance(given, nn.Module) else None
    with pytest.raises(FairtrimError) as caught:
        act(loader())
    assert_says(caught.value, words)
    if before is not None:
        before.assert_unchanged()


def assert_says(error: BaseException, words: Sequence[str]) -> None:
    """One line with these words."""
    said = str(error)
    assert "\n" not in said
    for word in words:
        assert word in said, said


# Arguments -----------------------------------------------------------------------------------------------------


def _stepped(importance: Any, *, steps: int = 1, fitted: bool = False) -> None:
    pruner = pruner_of(network(), importance, steps=steps)
    if fitted:
        importance.fit(pruner, people(), progress=False)
    for _ in range(steps):
        pruner.step()


def _of_another_network() -> None:
    _stepped(WorstGroupImportance(model=network(), loader=people()))


def _with_pruner_of(importance: Any) -> None:
    with reconstructed(network(), people(), progress=False):
        raise AssertionError("it began")


ARGUMENTS: dict[str, tuple[Callable[[], Any], Sequence[str]]] = {
    "ratio in per cent": (
        lambda: fit(people(), ratio=40),
        ("pruning_ratio=40; expected at least 0, below 1, the share of the channels to remove",),
    ),
    "a budget in per cent": (lambda: pruned(people(), macs=50), ("macs=50; expected above 0, below 1", "may be left")),
    "a budget in words": (lambda: pruned(people(), macs="50%"), ("macs='50%'; expected a finite number", "below 1")),
    "no budget": (lambda: pruned(people(), macs=None), ("got no budget; expected exactly one of macs=",)),
    "a drop in per cent": (
        lambda: smallest(network(), people(), X[:1], held_out=people(), max_drop={"accuracy": 5}, progress=False),
        ("max_drop['accuracy'] is 5; expected a share: 0.05 for 5 points",),
    ),
    "a shape for example_inputs": (
        lambda: pruned(people(), example_inputs=(1, 4)),
        ("example_inputs is a tuple without a tensor (N, ...)", "inputs[:1]"),
    ),
    "example_inputs of another width": (
        lambda: pruned(people(), example_inputs=torch.randn(1, 5)),
        ("example_inputs: the inputs have shape (1, 5), and layer '0'", "takes 4 features"),
    ),
    "a batch for example_inputs": (
        lambda: pruned(people(), example_inputs=[X, Y]),
        ("example_inputs: the inputs are a list of 2, which are the arguments of the network's forward",),
    ),
    "importance by name": (
        lambda: pruned(people(), importance="worst-group"),
        ("importance is 'worst-group'; expected an importance, e.g. WorstGroupImportance()", "IMPORTANCES[name]()"),
    ),
    "importance as a class": (
        lambda: pruned(people(), importance=WorstGroupImportance),
        ("importance is the class WorstGroupImportance; expected an importance",),
    ),
    "importance with a path": (
        lambda: WorstGroupImportance(model="model.pt", loader=people()),  # type: ignore[arg-type]
        ("model is a str; expected a torch.nn.Module",),
    ),
    "importance not fitted": (
        lambda: _stepped(WorstGroupImportance()),
        ("WorstGroupImportance has no scores yet; call importance.fit(pruner, loader) before pruner.step()",),
    ),
    "one fit for two steps": (
        lambda: _stepped(WorstGroupImportance(), steps=2, fitted=True),
        ("the network has changed, or the pruner gone on", "again before each pruner.step()"),
    ),
    "importance of another network": (_of_another_network, ("with another model= than the pruner's; pass the same",)),
    "fit with the network": (
        lambda: WorstGroupImportance().fit(network(), people()),
        ("got a Sequential; expected the pruner: importance.fit(pruner, loader)",),
    ),
    "reconstructed with the network": (
        lambda: _with_pruner_of(None),
        ("got a Sequential; expected the pruner: with reconstructed(pruner, loader): pruner.step()",),
    ),
    "a layer by one name": (
        lambda: pruned(people(), ignored_layers="2"),
        ("ignored_layers is the string '2'; expected a list: ['2']",),
    ),
    "device= of fit": (
        lambda: fit(people(), device="cuda"),
        ("unknown argument 'device' (all runs where the network is: model.to(device) before the call",),
    ),
    "device= of prune_to": (lambda: pruned(people(), device="cuda"), ("prune_to has no 'device'", "model.to(device)")),
    "a criterion misspelt": (
        lambda: sweep(network(), SPLITS, "worst_group", 0.5, progress=False),
        ("criterion 'worst_group' is unknown (did you mean 'worst-group'?)",),
    ),
    "a criterion's name for prune_copy": (
        lambda: prune_copy(network(), "worst-group", SPLITS, 0.5),  # type: ignore[arg-type]
        ("importance is 'worst-group'; expected an importance",),
    ),
    "a post-processor misspelt": (
        lambda: sweep(network(), SPLITS, "magnitude", 0.5, post_processors="parity_finetuning", progress=False),
        ("post-processor 'parity_finetuning' is unknown (did you mean 'parity-fine-tuning'?)",),
    ),
    "a measure misspelt": (
        lambda: repaired(people(), measure="equalized_odd_difference"),
        ("is not a bias measure (did you mean 'equalized_odds_difference'?)",),
    ),
    "epsilon above 1": (lambda: repaired(people(), epsilon=5), ("epsilon=5, margin=0.01; expected 0 <= margin <",)),
    "epsilon in words": (lambda: repaired(people(), epsilon="0.1"), ("epsilon='0.1'; expected a finite number",)),
    "a group that nobody is of": (
        lambda: repaired(people(), privileged="Male"),
        ("privileged='Male' is not a sensitive group in the data; known: ['a', 'b']",),
    ),
    "no bootstrap samples": (
        lambda: compared(people(), n_boot=0),
        ("n_boot=0; expected at least 1 bootstrap sample, or None",),
    ),
    "half a bootstrap sample": (lambda: metric_frame(network(), people(), n_boot=HALF), ("n_boot=1.5; expected a wh",)),
    "a list of networks": (
        lambda: compare_models([network()], people()),  # type: ignore[arg-type]
        ("models is list; expected networks by name: {'dense': ..., 'pruned': ...}",),
    ),
    "metrics by name": (
        lambda: compared(people(), metrics={"accuracy": "accuracy"}),
        ("metrics holds 'accuracy': 'accuracy'; expected a name and a function", "get_scorer('accuracy')"),
    ),
    "too few sensitive features": (
        lambda: compared(TWO, sensitive_features=GROUPS[1:]),
        ("sensitive_features has 39 rows and the loader's dataset 40 samples; expected one row a sample",),
    ),
    "a column's name": (
        lambda: compared(TWO, sensitive_features="sex"),
        ("sensitive_features is the string 'sex'; expected the values, e.g. frame['sex']",),
    ),
    "sensitive features twice": (
        lambda: compared(people(), sensitive_features=GROUPS),
        ("the loader has sensitive features, and sensitive_features was given; expected them once",),
    ),
    "recalibrating a path": (
        lambda: recalibrate_batchnorm("model.pt", people()),  # type: ignore[arg-type]
        ("model is a str; expected a torch.nn.Module",),
    ),
    "a picture of a network": (
        lambda: plot_comparison(network()),  # type: ignore[arg-type]
        ("got a Sequential; expected a Comparison, which compare_models gives",),
    ),
    "a picture of an importance": (
        lambda: plot_damage(WorstGroupImportance()),
        ("got a WorstGroupImportance; expected a DamageTable, which collect_damage, or importance.damage_, gives",),
    ),
    "a picture of a repair": (
        lambda: plot_trade_off(["threshold"]),  # type: ignore[arg-type]
        ("got a list; expected repairs by name: {'threshold': repair, ...}",),
    ),
}


@pytest.mark.parametrize("mistake", ARGUMENTS)
def test_arguments(mistake: str) -> None:
    made, words = ARGUMENTS[mistake]
    with pytest.raises(FairtrimError) as caught:
        made()
    assert_says(caught.value, words)


def test_a_device_for_a_comparison() -> None:
    """Of functions that refuse as Python does."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'device' \(all runs where the network is"):
        compared(people(), device="cuda")


# Files ---------------------------------------------------------------------------------------------------------


def _pickled(folder: Path) -> None:
    torch.save(network(), folder / "m.pt")
    load_pruned(folder / "m.pt", network())


def _of_another_class(folder: Path) -> None:
    save_pruned(folder / "m.st", network())
    load_pruned(folder / "m.st", nn.Linear(3, 2))


FILES: dict[str, tuple[Callable[[Path], Any], Sequence[str]]] = {
    "a pickled network": (
        _pickled,
        ("m.pt was written by torch.save; expected a file of save_pruned", "save_pruned(path, model)"),
    ),
    "no safetensors": (
        lambda folder: [(folder / "m.txt").write_text("hello"), load_pruned(folder / "m.txt", network())],
        ("is damaged or no safetensors file", "expected a file of save_pruned"),
    ),
    "a missing file": (lambda folder: load_pruned(folder / "m.st", network()), ("m.st doesn't exist",)),
    "a missing folder": (
        lambda folder: save_pruned(folder / "none" / "m.st", network()),
        ("none doesn't exist; create it first",),
    ),
    "another network": (
        _of_another_class,
        ("is of another network", "pass a network of the class that was saved"),
    ),
    "arguments swapped": (
        lambda folder: save_pruned(network(), folder / "m.st"),  # type: ignore[arg-type]
        ("expected the network itself: save_pruned(path, model)",),
    ),
}


@pytest.mark.parametrize("mistake", FILES)
def test_files(mistake: str, tmp_path: Path) -> None:
    made, words = FILES[mistake]
    with pytest.raises(FairtrimError) as caught:
        made(tmp_path)
    assert_says(caught.value, words)


# The command ---------------------------------------------------------------------------------------------------

SCRIPT = """
import torch
from torch import nn
PEOPLE = [(torch.eye(4), torch.arange(4) % 2, ["a", "b", "b", "a"])]
def network():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
def data():
    return {"test": PEOPLE, "scoring": PEOPLE, "validation": PEOPLE}
def loader():
    return PEOPLE
"""
DATA = "--data {file}:data"
GIVEN = f"--model {{file}}:network {DATA}"

COMMANDS: dict[str, tuple[str, str]] = {
    "a checkpoint for a network": (
        f"prune --model m.pt {DATA} --macs 0.5 -o m.st",
        "--model 'm.pt': expected module",
    ),
    "a function misspelt": (
        f"prune --model {{file}}:netwrk {DATA} --macs 0.5 -o m.st",
        "has no 'netwrk'; did you mean",
    ),
    "a loader for the splits": (
        "prune --model {file}:network --data {file}:loader --macs 0.5 -o m.st",
        "the data are a list; expected DataSplits(test=loader, scoring=loader, ...) or a dict",
    ),
    "a budget in per cent": (f"prune {GIVEN} --macs 50 -o m.st", "macs=50.0; expected above 0, below 1"),
    "a missing folder": (f"prune {GIVEN} --macs 0.5 -o none/m.st", "folder none doesn't exist; create it first"),
    "a ratio in per cent": (
        f"sweep {GIVEN} --folder runs --pruning-ratio 40",
        "pruning_ratios=[40.0]; expected different shares of the channels between 0 and 1",
    ),
    "a criterion misspelt": (
        f"sweep {GIVEN} --folder runs --criterion taylr",
        "criterion 'taylr' is unknown (did you mean 'taylor'?)",
    ),
    "no bound": (f"check {GIVEN}", "no bound to check; expected --max, --min, --max-drop or --max-rise"),
    "a bound without a number": (f"check {GIVEN} --max accuracy", "'accuracy': expected metric=number, e.g. --max"),
    "a figure misspelt": (f"check {GIVEN} --max equalised_odds=0.1", "no such figure; did you mean 'equalized_odds_"),
    "no such checkpoint": (f"check {GIVEN} --checkpoint m.st --min accuracy=0.5", "m.st doesn't exist"),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_commands(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    command, words = COMMANDS[mistake]
    monkeypatch.chdir(tmp_path)
    script = tmp_path / f"mistake_{list(COMMANDS).index(mistake)}.py"  # modules of one name would be one
    script.write_text(SCRIPT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert main([*command.format(file=script.name).split(), "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert len(said.splitlines()) == 1


# What isn't refused, because it is unambiguous ------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [FRAME, FRAME.to_numpy(), FRAME.to_numpy(dtype=np.float64)])
def test_frames_and_arrays_of_numbers_are_taken(inputs: Any) -> None:
    model = network()
    found = pruned(people(inputs), model, example_inputs=inputs[:1])
    expected = pruned(people(), model)
    for name, tensor in found.model.state_dict().items():
        torch.testing.assert_close(tensor, expected.model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_shapes_that_go_wrong_inside_are_not_laid_to_the_inputs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        compared(people(), model)


# The page ------------------------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "guides" / "if_it_says.md"
_SAYS = re.compile(r"^\| `(.+?)`(?: \.\.\.)? \|", re.M)


def _messages() -> str:
    """Words of the table above, and of the sources without the ends of their strings."""
    rows = [words for _, words, _ in [*LOADERS.values(), *NETWORKS.values()]]
    rows += [words for _, words in [*ARGUMENTS.values(), *FILES.values()]]
    known = [word for words in rows for word in words] + [words for _, words in COMMANDS.values()]
    sources = [*(ROOT / "plugins").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
    texts = [re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in sources]
    return "\n".join(known + texts)


def test_the_page_quotes_what_is_said() -> None:
    quoted = _SAYS.findall(PAGE.read_text(encoding="utf-8"))
    assert len(quoted) >= 25
    said = _messages()
    parts = {part.strip() for text in quoted for part in text.split("...")}
    assert [part for part in parts if part not in said] == []
