"""One line around a step: the same objects, all or nothing, and what the refit is told."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fairtrim import InputError, UnsupportedModelError
from fairtrim.reconstruction import Reader
from fairtrim_adapters.torch_pruning import WorstGroupImportance, reconstructed
from fairtrim_adapters.torch_pruning.reconstruction import wrap
from tests.torch_pruning.reconstruction.refit_cases import Noted, Quota, batches_of, held
from tests.zoo import ALL

QUIET: Any = {"progress": False, "measure": False}
SOME = ("residual", "dense block", "grouped", "flattened", "attention", "separate heads", "vision transformer", "mlp")


def _perceptron() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))


def _people(n: int = 40, seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return x, torch.randint(0, 3, (n,), generator=generator), torch.arange(n) % 2


def _pruner(model: nn.Sequential, importance: Any = None, **options: Any) -> tp.pruner.BasePruner:
    settings: dict[str, Any] = {"pruning_ratio": 0.5, "ignored_layers": [model[-1]], **options}
    magnitude = tp.importance.GroupMagnitudeImportance()
    return tp.pruner.BasePruner(model, torch.ones(1, 4), importance=importance or magnitude, **settings)


@pytest.mark.parametrize("name", [name for name in ALL if name in SOME])
def test_layers_are_the_same_objects_and_the_network_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network comes out as a plain step leaves it; the dense one is at hand with its own numbers."""
    case, noted = ALL[name], Noted(monkeypatch)
    model = case.model()
    dense, layers = copy.deepcopy(model), list(model.modules())
    scores = {kind: case.transform for kind in ("output_transform",) if case.transform is not None}
    pruner = case.pruner(model, Quota())
    with reconstructed(pruner, batches_of(case), **QUIET, **scores) as refit:
        pruner.step()
    assert [id(module) for module in model.modules()] == [id(module) for module in layers]
    assert [reader.module for reader in noted.readers] == [entry.module for entry in refit.kept] != []
    x = case.batch(3)[0]
    model.eval()
    model(x)
    assert noted.dense is not None
    torch.testing.assert_close(noted.dense(x), dense.eval()(x), rtol=0, atol=0)


def test_what_the_twin_shares_is_replaced_and_never_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights cost no second copy; biases and statistics, which a refit may write to, are the twin's own."""
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
    weight, statistics = model[4].weight, model[1].running_mean

    def shift(pruned: nn.Module) -> None:
        with torch.no_grad():
            pruned[4].bias.add_(1)  # type: ignore[index]
            pruned[1].running_mean.add_(1)  # type: ignore[index]

    noted = Noted(monkeypatch, shift)
    magnitude = tp.importance.GroupMagnitudeImportance()
    pruner = tp.pruner.BasePruner(
        model, torch.ones(1, 2, 5, 5), importance=magnitude, pruning_ratio=0.5, ignored_layers=[model[4]]
    )
    bias = model[4].bias.tolist()
    with reconstructed(pruner, [(torch.randn(4, 2, 5, 5), torch.tensor([0, 1, 2, 1]))], **QUIET):
        pruner.step()
    assert noted.dense is not None
    assert noted.dense[4].weight is weight  # type: ignore[index]
    assert noted.dense[4].bias.tolist() == bias  # type: ignore[index]
    torch.testing.assert_close(noted.dense[1].running_mean, statistics)  # type: ignore[index]


class _Stop(BaseException):
    pass


@pytest.mark.parametrize("where", ["in the block", "in the refit", "interrupted"])
@pytest.mark.parametrize("name", ["residual", "mlp", "attention"])
def test_on_an_error_everything_is_as_before(name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ALL[name]
    model = case.model().train()

    def fail(pruned: nn.Module) -> None:
        with torch.no_grad():
            for tensor in (*pruned.parameters(), *pruned.buffers()):
                if tensor.ndim <= 1:  # what a refit may have written to before it failed
                    tensor.add_(1)
        raise _Stop if where == "interrupted" else ValueError("in the refit")

    Noted(monkeypatch, fail)
    pruner = case.pruner(model, Quota())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in model.parameters()]
    model[0].weight.requires_grad_(False) if isinstance(model, nn.Sequential) else None
    before, random = held(model), torch.get_rng_state()
    with (
        pytest.raises(_Stop if where == "interrupted" else ValueError),
        reconstructed(pruner, batches_of(case), **QUIET) as refit,
    ):
        pruner.step()
        if where == "in the block":
            raise ValueError("in the block")
    assert held(model) == before
    assert [id(p.grad) for p in model.parameters()] == [id(gradient) for gradient in gradients]
    assert torch.equal(torch.get_rng_state(), random)
    assert (pruner.current_step, pruner.pruning_history()) == (0, [])
    assert "get_pruning_group" not in vars(pruner.DG)
    assert refit.reconstruction is None and "Not refitted yet" in str(refit)
    Noted(monkeypatch)
    with reconstructed(pruner, batches_of(case), **QUIET):  # the same pruner goes on
        pruner.step()
    assert held(model) != before


def test_interactive_steps_and_single_groups(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Any number of groups inside of one block, some of them left out by hand."""
    caplog.set_level(logging.DEBUG, "fairtrim.torch_pruning")
    noted, model = Noted(monkeypatch), _perceptron()
    pruner = _pruner(model)
    with reconstructed(pruner, [_people()], **QUIET) as refit:
        for group in pruner.step(interactive=True):
            if group[0].dep.target.module is model[0]:
                group.prune()
        pruner.DG.get_pruning_group(model[2], tp.prune_linear_out_channels, [1, 5]).prune()
    assert [(r.module, tuple(r.kept_outputs), r.input_axis) for r in noted.readers] == [
        ("2", (0, 2, 3, 4, 6, 7, 8), None),
        ("4", (0, 1, 2), None),
    ]
    assert [len(entry.inputs) for entry in refit.kept] == [6, 7]
    assert caplog.messages == [f"refit of step 1: {refit.reconstruction}"]


def test_a_block_around_each_of_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is refitted to the network before it; three in one block are refitted to the first."""
    widths = []
    together, apart = _perceptron(), _perceptron()
    noted = Noted(monkeypatch)
    pruner = _pruner(apart, iterative_steps=3)
    for _ in range(3):
        with reconstructed(pruner, [_people()], **QUIET):
            pruner.step()
        assert isinstance(noted.dense, nn.Sequential)
        widths.append((noted.dense[0].out_features, apart[0].out_features))
    assert widths == [(12, 10), (10, 8), (8, 6)]
    pruner = _pruner(together, iterative_steps=3)
    with reconstructed(pruner, [_people()], **QUIET):
        for _ in range(3):
            pruner.step()
    assert isinstance(noted.dense, nn.Sequential)
    assert (noted.dense[0].out_features, together[0].out_features) == (12, 6)
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_ours_by_steps_and_by_negative_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    noted, model, loader = Noted(monkeypatch), _perceptron(), [_people()]
    importance = WorstGroupImportance()
    pruner = _pruner(model, importance)
    with reconstructed(pruner, loader, **QUIET) as refit:
        importance.fit(pruner, loader, progress=False)
        pruner.step()
    assert refit.predicted is not None and list(refit.predicted["sensitive_group"]) == ["0", "1"]
    assert (model[0].out_features, model[2].out_features) == (6, 4)
    pruner = _pruner(model, importance)
    importance.fit(pruner, loader, progress=False)
    with reconstructed(pruner, loader, **QUIET):
        for group in importance.negative_groups(pruner):
            group.prune()
    assert all(isinstance(reader, Reader) for reader in noted.readers)


def test_a_report_knows_whether_the_step_was_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps outside of the block, or inside of one that failed, weren't."""
    Noted(monkeypatch)
    model, loader = _perceptron(), [_people()]
    importance = WorstGroupImportance(compensated=True)
    pruner = _pruner(model, importance, iterative_steps=2)
    importance.fit(pruner, loader, progress=False)
    with pytest.raises(ZeroDivisionError), reconstructed(pruner, loader, **QUIET):
        pruner.step()
        raise ZeroDivisionError
    pruner.step()
    assert _says(importance, "refit is missing", "with reconstructed(pruner, loader)")
    importance.fit(pruner, loader, progress=False)
    with reconstructed(pruner, loader, **QUIET) as refit:
        pruner.step()
        assert _says(importance, "refit is missing")
    assert _says(importance, "go by what is measured") and not _says(importance, "refit is missing")
    assert refit.predicted is not None and "predicted change after a refit" in refit.predicted


def _says(importance: WorstGroupImportance, *words: str) -> bool:
    return any(all(word in flag for word in words) for flag in importance.report().flags)


@pytest.mark.parametrize("compensated", [True, False])
def test_what_was_predicted_is_printed_beside_what_was_measured(compensated: bool) -> None:
    x, y, group = _people()
    names = {"employment": {0: "works-for-the-government-of-a-state", 1: "works-for-the-government-of-a-city"}}
    loader, held_out = [(x, y, group)], [(x + 1e-3, y, group)]
    importance = WorstGroupImportance(compensated=compensated)
    pruner = _pruner(_perceptron(), importance)
    importance.fit(pruner, loader, sensitive_names=names, progress=False)
    with reconstructed(pruner, loader, held_out=held_out, sensitive_names=names, progress=False) as refit:
        pruner.step()
    assert refit.predicted is not None
    assert refit.measured is not None
    told = refit.predicted.set_index("sensitive_group").filter(like="predicted change").iloc[:, 0]
    told = told[refit.measured["sensitive_group"].iloc[:2]]
    lines = str(refit).splitlines()
    text = str(refit).replace("\n", " ")
    assert f"predicted: the change of the mean loss {'after the' if compensated else 'without a'} refit" in text
    header = next(line for line in lines if "predicted" in line.split() and "people" in line.split())
    rows = lines[lines.index(header) + 1 :][:3]
    ends = header.index("predicted") + len("predicted")
    assert [row[:ends].split()[-1] for row in rows] == [*(f"{change:+.3f}" for change in told), "-"]
    assert max(map(len, lines)) < 100


def test_frozen_parameters_stay_frozen_and_gradients_go_with_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    Noted(monkeypatch)
    model = _perceptron()
    pruner = _pruner(model)
    model[2].weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    with reconstructed(pruner, [_people()], **QUIET):
        pruner.step()
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True, True, True]
    for parameter in model.parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, parameter.detach())


def test_heads_are_told_and_after_step_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    Noted(monkeypatch)
    for after_step in (None, lambda model: setattr(model, "num_heads", 1)):
        case = ALL["separate heads"]
        model = case.model()
        pruner = case.pruner(model, Quota(), prune_num_heads=True, head_pruning_ratio=0.5)
        with reconstructed(pruner, batches_of(case), after_step=after_step, **QUIET):
            pruner.step()
        assert model.num_heads == 1


def test_a_network_that_does_not_run_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x).relu().reshape(-1, 6))

    Noted(monkeypatch)
    model = Fixed()
    magnitude = tp.importance.GroupMagnitudeImportance()
    pruner = tp.pruner.BasePruner(
        model, torch.ones(1, 4), importance=magnitude, pruning_ratio=0.5, ignored_layers=[model.head]
    )
    before = held(model)
    with (
        pytest.raises(UnsupportedModelError, match=r"without the channels that the block took from inner, in eval"),
        reconstructed(pruner, [_people()], **QUIET),
    ):
        pruner.step()
    assert held(model) == before


def test_training_inside_of_the_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Noted(monkeypatch)
    model = _perceptron()
    pruner = _pruner(model)
    with (
        pytest.raises(UnsupportedModelError, match="train behind the block"),
        reconstructed(pruner, [_people()], **QUIET),
    ):
        pruner.step()
        with torch.no_grad():
            model[2].weight.mul_(1.1)
    assert model[0].out_features == 12


def test_what_is_wrong_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    Noted(monkeypatch)
    model, loader = _perceptron(), [_people()]
    pruner, before = _pruner(model), held(model)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (model, {}, "got a Sequential; expected the pruner: with reconstructed"),
        (pruner, {"max_sample": 3}, r"reconstructed has no 'max_sample' \(did you mean 'max_samples'"),
        (pruner, {"held_out": iter(loader)}, "held_out is a list_iterator, which gives its batches only once"),
    ]
    for given, options, message in wrong:
        with pytest.raises(InputError, match=message), reconstructed(given, loader, **options):
            raise AssertionError("inside of the block")
    model.lock = torch.ones(2, requires_grad=True) * 2  # a result of a computation can't be copied
    with (
        pytest.raises(UnsupportedModelError, match=r"can't be copied .*detach\(\) tensors"),
        reconstructed(pruner, loader, **QUIET),
    ):
        raise AssertionError("inside of the block")
    assert held(model) == before


def test_measured_on_held_out_samples_or_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle of plain loops, in float64."""
    Noted(monkeypatch)
    model, names = _perceptron().double(), {"sex": ["Female", "Male"]}
    dense = copy.deepcopy(model)
    x, y, sex = _people(31, seed=8)
    held_out = [(x[:20].double(), y[:20], sex[:20]), (x[20:].double(), y[20:], sex[20:])]
    loader = [tuple(t.double() if t.is_floating_point() else t for t in _people())]
    pruner = _pruner(model.float())  # Torch-Pruning's example is in float32
    model.double()
    with reconstructed(pruner, loader, held_out=held_out, sensitive_names=names, progress=False) as refit:
        pruner.step()
    assert refit.measured is not None
    rows = refit.measured.set_index("sensitive_group")
    assert list(rows.index) == ["Female", "Male", "everybody"] and "31 held-out samples" in str(refit)
    for name, members in (("Female", sex == 0), ("Male", sex == 1), ("everybody", sex >= 0)):
        before, after = (net(x[members].double()).detach() for net in (dense, model))
        losses = [nn.functional.cross_entropy(s, y[members], reduction="none") for s in (before, after)]
        right = [(s.argmax(1) == y[members]).double() for s in (before, after)]
        assert rows.loc[name, "people"] == members.sum()
        for kind, (first, second) in (("loss", losses), ("accuracy", right)):
            change = second - first
            expected = [first.mean(), second.mean(), change.mean(), change.std() / len(change) ** 0.5]
            found = [rows.loc[name, f"{kind} {what}"] for what in ("dense", "pruned", "change", "standard error")]
            torch.testing.assert_close(torch.tensor(found), torch.stack(expected), rtol=1e-9, atol=1e-12)
    assert max(map(len, str(refit).splitlines())) < 100


def test_samples_of_the_refit_are_said_to_flatter(monkeypatch: pytest.MonkeyPatch) -> None:
    Noted(monkeypatch)
    data = TensorDataset(*_people())
    loader = DataLoader(data, batch_size=16)
    model = _perceptron()
    pruner = _pruner(model)
    with reconstructed(pruner, loader, progress=False) as refit:
        pruner.step()
    assert "! measured on 40 of the samples that layers were refitted on, which flatters" in str(refit) and refit.flags
    for held_out in (loader, DataLoader(data), DataLoader(Subset(data, [1, 2])), DataLoader(data)):
        pruner = _pruner(_perceptron())
        with (
            pytest.warns(UserWarning, match="held_out gives samples that the loader gives, too"),
            reconstructed(pruner, loader, held_out=held_out, progress=False),
        ):
            pruner.step()


def test_targets_that_are_no_labels_are_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    Noted(monkeypatch)
    pruner = _pruner(_perceptron())
    x, _, sex = _people()
    with reconstructed(pruner, [(x, torch.zeros(40, 7, 2), sex)], progress=False) as refit:
        pruner.step()
    assert refit.measured is None and refit.measured_on.startswith("not measured: ")


def test_a_block_without_a_step_is_said_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrap, "reconstruct", None)  # would fail if called
    model = _perceptron()
    pruner, before = _pruner(model), held(model)
    with (
        pytest.warns(UserWarning, match=r"expected pruner.step\(\) inside"),
        reconstructed(pruner, [_people()], **QUIET) as refit,
    ):
        pass
    assert held(model) == before and "Nothing to refit" in str(refit)
