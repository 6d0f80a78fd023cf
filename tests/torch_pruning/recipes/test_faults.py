"""Whatever breaks, and whenever: the network, the pruner and the random states are as before, and a new call works."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.hooks import RemovableHandle

from fairtrim import (
    AdversarialFineTuning,
    AdversarialProjection,
    BiasGradientDescent,
    CounterfactualUnlearning,
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    InputError,
    LayerwiseOptimization,
    LossMiner,
    MisclassifiedMiner,
    ParityFineTuning,
    RandomPerturbation,
    ThresholdSelection,
    UnsupportedModelError,
    ValidationSet,
    collect_damage,
    influence_on_bias,
    load_pruned,
    predict,
    recalibrate_batchnorm,
    save_pruned,
    unlearn_samples,
)
from fairtrim.damage.weight_saliency import collect_weight_saliency
from fairtrim.files.resumption import Resumption
from fairtrim_adapters.torch_pruning import IMPORTANCES, AccumulatedConfidence
from tests.networks import CASES
from tests.recipe_cases import SMALL, Evil, FixedMiner, assert_same_result, data_of_recipes, mlp, run_recipe
from tests.snapshot import Snapshot

CASE = CASES["residual"]
GROUPS = CASE.plan(CASE.model()).groups
N = 22
X, Y = CASE.batch(N)
A = torch.arange(N) % 2


@dataclass
class Fuse:
    """Counts calls and raises at one of them; copies of a network share it."""

    at: int = 0
    error: BaseException | None = None
    calls: int = 0

    def __deepcopy__(self, memo: Any) -> Fuse:
        return self

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            assert self.error is not None
            raise self.error


def _draw() -> float:
    return float(random.random() + np.random.rand() + torch.rand(()))


@dataclass
class Setting:
    """A network in a state of its own, data that draw from every random state, and a fuse at one place."""

    place: str
    n_outputs: int = 3
    fuse: Fuse = field(default_factory=Fuse)

    def __post_init__(self) -> None:
        self.model = CASE.model().train()
        if self.n_outputs != 3:
            with torch.random.fork_rng():
                torch.manual_seed(1)
                self.model.head = nn.Linear(6, self.n_outputs).double()
        self.model.norm.eval()
        self.target = Y % self.n_outputs
        F.cross_entropy(self.model(X[:4]), self.target[:4]).backward()
        self.model.stem.bias.requires_grad_(False)
        self.model.register_forward_pre_hook(self.fuse if self.place == "network" else lambda module, args: None)
        self.model.first.register_forward_hook(lambda module, args, output: _draw() * 0 + output)
        self.dataset = _Samples(self)
        # a data set that draws, in the loader's order; its own generator is watched too
        self.generator = torch.Generator().manual_seed(9)
        self.loader: Any = DataLoader(self.dataset, batch_size=6, shuffle=True, generator=self.generator)
        self.people = ValidationSet(X, self.target, A, ("a", "b"), counterfactual=X.flip(0))

    @property
    def options(self) -> dict[str, Any]:
        if self.place == "loss":
            return {"loss_fn": self._loss}
        return {"forward_fn": self._forward} if self.place == "forward_fn" else {}

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        self.fuse()
        return F.cross_entropy(scores, target)

    def _forward(self, model: nn.Module, inputs: Any) -> Any:
        self.fuse()
        return model(inputs)


class _Samples(Dataset[Any]):
    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if self.setting.place == "data":
            self.setting.fuse()
        return X[index] + 0 * _draw(), self.setting.target[index], A[index]


def _batches(setting: Setting) -> Iterator[tuple[Tensor, ...]]:
    """An iterator that breaks in its ``__next__``, the last of which finds nothing more."""
    for part in torch.arange(N).split(6):
        if setting.place == "data":
            setting.fuse()
        yield X[part] + 0 * _draw(), setting.target[part], A[part]
    if setting.place == "data":
        setting.fuse()


def _flat(tensors: Any) -> Tensor:
    return torch.cat([torch.as_tensor(t).detach().double().flatten() for t in tensors])


Run = Callable[[Setting], Tensor]


def _fit(name: str) -> Run:
    more: dict[str, dict[str, Any]] = {
        "group-saliency": {"privileged": "1"},
        "accumulated-confidence": {"mined": torch.arange(N) % 3 == 0},
        "contrastive": {"mined": torch.arange(N) % 3 == 0, "iterations": 3},
    }

    def run(setting: Setting) -> Tensor:
        importance = IMPORTANCES[name](progress=False, **more.get(name, {}))
        indexed = name in ("accumulated-confidence", "contrastive")
        loader = setting.loader if indexed else _batches(setting)
        fuse, setting.fuse.at = setting.fuse.at, 0  # Torch-Pruning's own forward passes are not what is tried
        pruner = CASE.pruner(setting.model, importance)
        setting.model.train()
        setting.model.norm.eval()
        before = Snapshot(setting.model)
        setting.fuse.at, setting.fuse.calls = fuse, 0
        history = len(pruner.pruning_history())
        try:
            importance.fit(pruner, loader, **setting.options)
        except BaseException:
            assert not hasattr(importance, "selection_")
            raise
        finally:
            assert pruner.importance is importance and pruner.current_step == 0
            assert len(pruner.pruning_history()) == history
            before.assert_unchanged()
        return _flat([importance.selection_.scores])

    return run


def _repair(method: Any) -> Run:
    def run(setting: Setting) -> Tensor:
        repair = method.repair(setting.model, _batches(setting), inplace=False, progress=False, **setting.options)
        return _flat(repair.model.parameters())

    return run


def _miner(miner: Any) -> Run:
    return lambda setting: miner.mine(setting.model, setting.loader, progress=False).scores


def _recalibrate(setting: Setting) -> Tensor:
    fresh = {name: buffer.clone() for name, buffer in setting.model.named_buffers()}
    recalibrate_batchnorm(setting.model, _batches(setting), progress=False, **setting.options)
    found = _flat(setting.model.buffers())
    for name, buffer in setting.model.named_buffers():  # a success changes them, which is no fault
        buffer.copy_(fresh[name])
    return found


ONE_PASS: dict[str, Run] = {
    "collect_damage": lambda s: _flat(
        [collect_damage(s.model, _batches(s), GROUPS, interactions=True, progress=False, **s.options).interactions]
    ),
    "collect_damage, sketched": lambda s: collect_damage(
        s.model, s.loader, GROUPS, interactions="sketched", progress=False, **s.options
    ).damage.flatten(),
    "collect_weight_saliency": lambda s: collect_weight_saliency(
        s.model, _batches(s), GROUPS, progress=False, **s.options
    ).curvature.flatten(),
    "predict": lambda s: _flat([predict(s.model, _batches(s), progress=False, **s.options).scores["model"]]),
    "recalibrate_batchnorm": _recalibrate,
    # pair damage goes over pairs of sentences and over texts, which only language models have
    **{f"fit of {name}": _fit(name) for name in sorted(IMPORTANCES) if name != "pair-damage"},
}
SMALL_STEPS: dict[str, Any] = {"epochs": 1, "epsilon": 0.5}
REPAIRS: dict[str, Any] = {
    "ThresholdSelection": ThresholdSelection(epsilon=0.5),
    "RandomPerturbation": RandomPerturbation(trials=3, epsilon=0.5),
    "LayerwiseOptimization": LayerwiseOptimization(tensors=2, max_evaluations=6, epsilon=0.5),
    "ParityFineTuning, output": ParityFineTuning(penalties=[0.5], epsilon=0.5),
    "ParityFineTuning, all": ParityFineTuning(layers="all", penalties=[0.5], training_batch_size=7, **SMALL_STEPS),
    "BiasGradientDescent": BiasGradientDescent(evaluate_every=2, training_batch_size=7, **SMALL_STEPS),
    "AdversarialProjection": AdversarialProjection(evaluate_every=2, training_batch_size=7, **SMALL_STEPS),
    "AdversarialFineTuning": AdversarialFineTuning(critic_steps=1, actor_steps=2, training_batch_size=7, **SMALL_STEPS),
    "CounterfactualUnlearning, output": CounterfactualUnlearning(counterfactual=lambda x: x.flip(1), strengths=[1.0]),
    "CounterfactualUnlearning, all": CounterfactualUnlearning(
        counterfactual=lambda x: x.flip(1), layers="all", strengths=[1.0], epochs=1, training_batch_size=7
    ),
}
OTHERS: dict[str, Run] = {
    "influence, output": lambda s: influence_on_bias(s.model, s.loader, s.people, progress=False, **s.options).scores,
    "unlearning": lambda s: _flat(
        unlearn_samples(s.model, s.loader, torch.tensor([1, 4]), progress=False, **s.options).parameters()
    ),
    "LossMiner": _miner(LossMiner(epochs=1)),
    "MisclassifiedMiner": _miner(MisclassifiedMiner(epochs=1)),
    "EpochEnsemble": _miner(EpochEnsemble(epochs=1)),
    "GeneralizedCrossEntropyMiner": _miner(GeneralizedCrossEntropyMiner(epochs=1)),
    "AccumulatedConfidence": _miner(AccumulatedConfidence(levels=(0.2, 0.4))),
}
NO_LOSS = ("predict", "recalibrate_batchnorm", "fit of contrastive", "fit of parity-gradient")


def _calls(n_calls: int, most: int = 14) -> list[int]:
    """All of them, or the first, the last, and some between."""
    if n_calls <= most:
        return list(range(1, n_calls + 1))
    spread = np.linspace(1, n_calls, most - 4).round().astype(int).tolist()
    return sorted({1, 2, 3, n_calls - 1, n_calls, *spread})


class BrokenError(RuntimeError):
    pass


def _break_at_every_call(run: Run, place: str, n_outputs: int = 3, most: int = 9) -> None:
    setting = Setting(place, n_outputs)
    setting.fuse.calls = 0
    expected = run(setting)
    n_calls = setting.fuse.calls
    assert n_calls > 0
    for number, call in enumerate(_calls(n_calls, most)):
        setting = Setting(place, n_outputs)
        error = (BrokenError, KeyboardInterrupt)[number % 2](f"call {call} of {n_calls}")
        setting.fuse.calls, setting.fuse.at, setting.fuse.error = 0, call, error
        fitted = run.__qualname__.startswith("_fit")  # takes its own, after Torch-Pruning has traced the network
        before = None if fitted else Snapshot(setting.model)
        drawn = setting.generator.get_state()
        # a fit tells what a network raises without some of its channels, or in training mode, in words of its own
        told = (type(error), UnsupportedModelError, UserWarning) if fitted and number % 2 == 0 else type(error)
        with pytest.raises(told, match=f"call {call} of {n_calls}"):
            run(setting)
        if before is not None:
            before.assert_unchanged()
        assert torch.equal(setting.generator.get_state(), drawn)
        setting.fuse.at = 0
        if number in (0, 3):
            assert torch.equal(run(setting), expected)  # nothing is left of it


@pytest.mark.parametrize("place", ["data", "network", "forward_fn", "loss"])
@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass_over_the_data(name: str, place: str) -> None:
    if place == "loss" and name in NO_LOSS:
        pytest.skip("has no loss of the caller's")
    _break_at_every_call(ONE_PASS[name], place)


@pytest.mark.parametrize("place", ["data", "network", "forward_fn"])
@pytest.mark.parametrize("name", REPAIRS)
def test_repairs(name: str, place: str) -> None:
    _break_at_every_call(_repair(REPAIRS[name]), place, 2, most=7)


@pytest.mark.parametrize("place", ["data", "network"])
@pytest.mark.parametrize("name", OTHERS)
def test_influence_and_miners(name: str, place: str) -> None:
    _break_at_every_call(OTHERS[name], place, 2, most=7)


@pytest.mark.parametrize("name", REPAIRS)
def test_repairs_in_place(name: str) -> None:
    """The caller's own network is worked on: it gets its weights back."""

    def run(setting: Setting) -> Tensor:
        REPAIRS[name].repair(setting.model, _batches(setting), inplace=True, progress=False)
        return _flat(setting.model.parameters())

    setting = Setting("network", 2)
    setting.fuse.calls = 0
    run(setting)
    for call in _calls(setting.fuse.calls, 8):
        setting = Setting("network", 2)
        setting.fuse.calls, setting.fuse.at, setting.fuse.error = 0, call, KeyboardInterrupt()
        before = Snapshot(setting.model)
        with pytest.raises(KeyboardInterrupt):
            run(setting)
        before.assert_unchanged()


@pytest.mark.parametrize("name", ["collect_damage", "collect_weight_saliency", "fit of worst-group"])
def test_gradients_that_the_callers_code_leaves(name: str) -> None:
    """A way to call the network that also goes backward: after success and after an error."""
    for at in (0, 3):
        setting = Setting("forward_fn")
        fuse = setting.fuse

        def going_back(model: nn.Module, inputs: Any, setting: Setting = setting) -> Any:
            model(inputs).square().sum().backward()
            return Setting._forward(setting, model, inputs)

        setting._forward = going_back  # type: ignore[method-assign]
        before = Snapshot(setting.model)
        fuse.calls, fuse.at, fuse.error = 0, at, KeyboardInterrupt()
        with contextlib.suppress(KeyboardInterrupt):
            ONE_PASS[name](setting)
        assert fuse.calls >= 3
        if name.startswith("collect"):
            before.assert_unchanged()  # a fit checks that by itself


# Workers --------------------------------------------------------------------------------------------------


class _Deadly(Dataset[Any]):
    """Ends its own worker at one sample, as the system does when memory runs out."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if index == 13:
            assert torch.utils.data.get_worker_info() is not None
            os.kill(os.getpid(), signal.SIGKILL)
        return X[index], Y[index], A[index]


DEADLY: dict[str, Callable[[nn.Module, Any], Any]] = {
    "collect_damage": lambda m, loader: collect_damage(m, loader, GROUPS, interactions=True, progress=False),
    "collect_weight_saliency": lambda m, loader: collect_weight_saliency(m, loader, GROUPS, progress=False),
    "predict": lambda m, loader: predict(m, loader, progress=False),
    "recalibrate_batchnorm": lambda m, loader: recalibrate_batchnorm(m, loader, progress=False),
    "miner": lambda m, loader: LossMiner(epochs=1).mine(m, loader, progress=False),
}


@pytest.mark.filterwarnings("ignore")  # Python's and torch's own, about processes that fork
@pytest.mark.parametrize("name", DEADLY)
def test_worker_that_dies(name: str) -> None:
    loader: Any = DataLoader(_Deadly(), batch_size=5, num_workers=1)
    setting = Setting("nowhere")
    before = Snapshot(setting.model)
    with pytest.raises((RuntimeError, OSError), match=r"DataLoader worker|reset by peer"):
        try:
            DEADLY[name](setting.model, loader)
        finally:
            time.sleep(0.3)  # the signal may come after the error
            torch.set_grad_enabled(True)  # or within torch's own no_grad, which then stays
    before.assert_unchanged()


@pytest.mark.parametrize("what", ["random.setstate", "numpy.random.set_state", "torch.set_rng_state", "hook", "flag"])
@pytest.mark.parametrize("name", ["collect_damage", "collect_weight_saliency", "predict", "recalibrate_batchnorm"])
def test_second_error_while_the_first_is_handled(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead worker is noticed twice: by what it doesn't send, and by a signal that comes at any time."""
    if (what == "hook" and name != "collect_damage") or (what == "flag" and name == "predict"):
        pytest.skip("has none while data are read")
    setting = Setting("data")
    before = Snapshot(setting.model)
    setting.fuse.calls, setting.fuse.at, setting.fuse.error = 0, 2, BrokenError()
    signalled = []

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if setting.fuse.calls >= 2 and not signalled:
                signalled.append(what)
                raise KeyboardInterrupt
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        if what == "hook":
            patch.setattr(RemovableHandle, "remove", once(RemovableHandle.remove))
        elif what == "flag":
            patch.setattr(nn.Module, "__setattr__", once(nn.Module.__setattr__))
        else:
            module, _, function = what.rpartition(".")
            owner: Any = {"random": random, "numpy.random": np.random, "torch": torch}[module]
            patch.setattr(owner, function, once(getattr(owner, function)))
        with pytest.raises(KeyboardInterrupt):
            ONE_PASS[name](setting)
    assert signalled
    before.assert_unchanged()


# Recipes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("own_miner", [False, True], ids=["mined", "its own miner"])
@pytest.mark.parametrize("recipe", SMALL)
def test_recipes_go_on_from_wherever_they_broke(recipe: str, own_miner: bool, tmp_path: Path) -> None:
    """At forward passes from the first to the last: in mining, pruning, fine-tuning, and what is noted of it."""
    options: dict[str, Any] = {"random_state": 4, "learning_rate": 0.01, "cut": {"share_per_class": 0.15}}
    if own_miner:
        options["miner"] = None

    def network(fuse: Fuse) -> nn.Sequential:
        model = mlp()
        model.register_forward_pre_hook(fuse)
        return model

    fuse = Fuse()
    whole = run_recipe(recipe, network(fuse), data_of_recipes(), **options)
    n_calls, swallowed = fuse.calls, list[int]()
    for number, call in enumerate(_calls(n_calls, 7 if own_miner else 12)):
        folder = tmp_path / str(call)
        error: BaseException = (BrokenError, KeyboardInterrupt)[number % 2]()
        model = network(Fuse(call, error))
        before = Snapshot(model)
        try:
            run_recipe(recipe, model, data_of_recipes(), folder=folder, **options)
        except type(error):
            pass
        else:
            swallowed.append(call)
        before.assert_unchanged()
        fuse = Fuse()
        assert_same_result(run_recipe(recipe, network(fuse), data_of_recipes(), folder=folder, **options), whole)
        # what was finished is not done again; to take up costs two passes over the data
        assert fuse.calls <= n_calls + 12
    assert len(swallowed) <= 2  # Torch-Pruning's trace, and a trial of several groups, try once more after any error


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("recipe", SMALL)
def test_recipes_go_on_from_every_save(recipe: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"random_state": 4, "learning_rate": 0.01}
    whole = run_recipe(recipe, mlp(), data_of_recipes(), **options)
    save, n_saves = Resumption.save, {"denp": 5, "dcwp": 4}[recipe]  # mining, and each row of the history
    for call in range(1, n_saves + 1):
        folder, fuse = tmp_path / str(call), Fuse(call, KeyboardInterrupt())

        def broken(self: Resumption, *args: Any, fuse: Fuse = fuse) -> None:
            if self._path is None:
                return
            if when == "before":
                fuse()
            save(self, *args)
            if when == "after":
                fuse()

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Resumption, "save", broken)
            run_recipe(recipe, mlp(), data_of_recipes(), folder=folder, **options)
        miner = FixedMiner()
        assert_same_result(run_recipe(recipe, mlp(), data_of_recipes(), folder=folder, miner=miner, **options), whole)
        assert miner.calls == (call == 1 and when == "before")


# Files ----------------------------------------------------------------------------------------------------


def _network(width: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return nn.Sequential(
            nn.Conv2d(2, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.Flatten(),
            nn.Linear(width * 4, 3),
        )


class Checkpoint:
    """A stored network, and what a fresh one looked like before."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "network.safetensors"
        self.saved = _network()
        save_pruned(self.path, self.saved)
        self.data = self.path.read_bytes()
        self.fresh = _network(7)
        self.layers = str(self.fresh)
        self.before = {name: tensor.clone() for name, tensor in self.fresh.state_dict().items()}

    def is_refused(self, data: bytes) -> bool:
        """Whether a file is; if not, it says what the right one says."""
        self.path.write_bytes(data)
        try:
            loaded = load_pruned(self.path, self.fresh)
        except InputError:
            state = self.fresh.state_dict()
            assert str(self.fresh) == self.layers and state.keys() == self.before.keys()
            assert all(torch.equal(tensor, self.before[name]) for name, tensor in state.items())
            return True
        assert str(loaded) == str(self.saved)
        for name, tensor in self.saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
            assert loaded.state_dict()[name].dtype == tensor.dtype
        self.fresh = _network(7)
        return False


class Kept:
    """The file of a recipe or a pass."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "progress.safetensors"
        self.resumption = Resumption(folder, {"seed": 0})
        self.tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])}
        self.resumption.save(3, {"rows": [1, {"x": "y"}]}, self.tensors)
        self.data = self.path.read_bytes()

    def is_refused(self, data: bytes) -> bool:
        self.path.write_bytes(data)
        try:
            progress = self.resumption.load()
        except InputError:
            return True
        assert progress is not None and progress.step == 3 and progress.data == {"rows": [1, {"x": "y"}]}
        for name, tensor in self.tensors.items():
            assert torch.equal(progress.tensors[name], tensor) and progress.tensors[name].dtype == tensor.dtype
        return False


FILES = [Checkpoint, Kept]


@pytest.mark.parametrize("kind", FILES)
def test_files_cut_at_any_length(kind: Any, tmp_path: Path) -> None:
    file = kind(tmp_path)
    assert not file.is_refused(file.data)
    header = 8 + int.from_bytes(file.data[:8], "little")
    lengths = {*range(64), *range(0, len(file.data), 31), header - 1, header, header + 1, len(file.data) - 1}
    assert all(file.is_refused(file.data[:length]) for length in sorted(lengths))
    assert file.is_refused(file.data + b"\0") and file.is_refused(file.data * 2)


MASKS = (0x01, 0x20, 0x04, 0xFF, 0x0F, 0x02)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", FILES)
def test_any_changed_byte_is_noticed(kind: Any, first: int, tmp_path: Path) -> None:
    """In the header each byte, in the numbers some; what is let through is the blanks that fill the header up."""
    file = kind(tmp_path)
    header = 8 + int.from_bytes(file.data[:8], "little")
    let_through = []
    for position in (*range(header), *range(header, len(file.data), 37)):
        changed = bytearray(file.data)
        changed[position] ^= MASKS[(position + first) % len(MASKS)]
        if not file.is_refused(bytes(changed)):
            let_through.append(position)
    blank = len(file.data[:header]) - len(file.data[:header].rstrip(b" "))
    assert all(header - blank <= position < header for position in let_through)


@pytest.mark.parametrize("kind", FILES)
def test_nothing_is_unpickled(kind: Any, tmp_path: Path) -> None:
    file = kind(tmp_path)
    (tmp_path / "other").mkdir()
    marker = tmp_path / "other" / "evil"
    torch.save(Evil(marker), tmp_path / "other" / "evil.pt")
    torch.save({"0.weight": torch.ones(2), "x": Evil(marker)}, tmp_path / "other" / "state.pt")
    for name in ("evil.pt", "state.pt"):
        data = (tmp_path / "other" / name).read_bytes()
        assert file.is_refused(data)
        # behind a header of a length that suits
        assert file.is_refused(file.data[:8] + data)
    assert not marker.exists()


def test_versions_and_keys_of_the_header(tmp_path: Path) -> None:
    """Files without a digest, which earlier releases wrote, are read; a key that nobody knows is refused."""
    file = Checkpoint(tmp_path)
    with safe_open(file.path, framework="pt") as opened:
        (text,) = opened.metadata().values()
    assert '"digest"' in text
    digest = text[text.index('"digest"') :].split('"')[3]
    assert len(digest) == 64
    assert file.is_refused(file.data.replace(b"digest", b"digesu"))
