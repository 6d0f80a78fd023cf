"""FairPrune's loop over single weights against the oracle's saliencies and plain figures, iteration by iteration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    GroupSaliencyPruning,
    InputError,
    ValidationSet,
    load_pruned,
    prune_by_group_saliency,
    save_pruned,
)
from fairtrim.oracle import oracle_squared_gradients
from fairtrim.selection.group_saliency_pruning import _flags
from tests.networks import CASES
from tests.plain_measures import EXACT, plain_bias, plain_class_sum
from tests.snapshot import Snapshot

masks: Any = prune
BETA = 0.4
GROUPS = torch.tensor([7, 3, 3, 5, 7, 3, 7, 3, 3, 7, 5, 3, 3])


def _people(name: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """13 people of three groups in batches, the last of one."""
    x, y = CASES[name].batch(13)
    return [(x[rows], y[rows], GROUPS[rows]) for rows in torch.arange(13).split([5, 7, 1])]


def _held_out(name: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """People of every label in every group."""
    x, _ = CASES[name].batch(27, seed=2)
    return [(x, torch.arange(27) % 3, torch.tensor([3, 5, 7]).repeat_interleave(9))]


def _everybody(n: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """People of all three labels in each of the three groups."""
    x, _ = CASES["mlp"].batch(n, seed=seed)
    return [(x, torch.arange(n) % 3, torch.tensor([3, 5, 7])[torch.arange(n) // 3 % 3])]


def _deciding(model: nn.Module, x: Tensor) -> nn.Module:
    """The network with scores that differ among people, so that few masks don't make it constant."""
    head = list(model.modules())[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.mul_(4)
        head.bias.sub_(copy.deepcopy(model).eval()(x).mean(0))
    return model.eval()


def _baked(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "weight_mask"):
            masks.remove(module, "weight")
    return model


def _ranked(model: nn.Module) -> list[str]:
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    return [name for name, _ in model.named_parameters() if name in {f"{layer}.weight" for layer in layers}]


def _scores(model: nn.Module, batches: Any, privileged: str = "7", others: tuple[str, ...] = ("3", "5")) -> Tensor:
    """½ θ² (h_unprivileged − β h_privileged) of every weight, by the oracle."""
    names, squares = oracle_squared_gradients(model, batches)
    n = {name: float((torch.cat([a for *_, a in batches]) == int(name)).sum()) for name in names}
    pooled = sum(n[other] for other in others)
    parts = []
    for weight in _ranked(model):
        h = dict(zip(names, squares[weight], strict=True))
        unprivileged = sum(n[other] / pooled * h[other] for other in others)
        parts.append(
            (0.5 * model.get_parameter(weight).detach() ** 2 * (unprivileged - BETA * h[privileged])).flatten()
        )
    return torch.cat(parts)


def _kept(model: nn.Module, ranked: list[str]) -> Tensor:
    layers = [model.get_submodule(name.rpartition(".")[0]) for name in ranked]
    return torch.cat([getattr(m, "weight_mask", torch.ones_like(m.weight)).flatten().bool() for m in layers])


def _pruned(model: nn.Module, batches: Any, **options: Any) -> GroupSaliencyPruning:
    return prune_by_group_saliency(model, batches, **{"privileged": 7, "beta": BETA, "progress": False, **options})


@pytest.mark.parametrize(("name", "ratio"), [("mlp", 0.2), ("plain", 0.05)])
@pytest.mark.parametrize("only_negative", [False, True])
def test_every_iteration_masks_the_weights_of_smallest_score(name: str, ratio: float, only_negative: bool) -> None:
    """Scored anew on the network as masked so far; a property, so that near-ties don't matter."""
    batches, held_out = _people(name), _held_out(name)
    model = _deciding(CASES[name].model(), held_out[0][0])
    options: dict[str, Any] = {"pruning_ratio": ratio, "iterative_steps": 4, "only_negative": only_negative}
    found = _pruned(model, batches, held_out=held_out, **options)
    ranked = _ranked(model)
    n_weights = sum(model.get_parameter(weight).numel() for weight in ranked)
    assert found.n_weights == n_weights
    assert len(found.history) > 2
    for iteration in range(1, len(found.history)):
        before, after = found.model_at(iteration - 1), found.model_at(iteration)
        was, now = _kept(before, ranked), _kept(after, ranked)
        assert not bool((now & ~was).any())  # what is masked stays masked
        scores = _scores(_baked(before), batches)
        tolerance = 1e-9 * float(scores.abs().max())
        masked = scores[was & ~now]
        assert float(masked.max()) <= float(scores[now].min()) + tolerance
        n_masked = int((~now).sum())
        assert found.history[iteration].pruning_ratio == n_masked / n_weights
        assert n_masked == round(n_weights * ratio * iteration / 4) or only_negative
        assert float(masked.max()) < tolerance or not only_negative
    if found.stopped == "no negative score left":
        now = _kept(found.model, ranked)
        assert float(_scores(_baked(found.model), batches)[now].min()) >= -tolerance


@pytest.mark.parametrize("measure", ["eopp1", "eodd", "equalized_odds_difference"])
def test_history_is_what_plain_loops_see(measure: str) -> None:
    model, held_out = CASES["mlp"].model(), _everybody(60, 4)
    found = _pruned(model, _everybody(45, 3), held_out=held_out, measure=measure, pruning_ratio=0.9, iterative_steps=5)
    ((x, y, a),) = held_out
    for step in found.history:
        given = found.model_at(step.iteration)(x).argmax(1)
        right = (given == y).double()
        assert step.accuracy == pytest.approx(float(right.mean()), **EXACT)
        of_groups = {str(g): float(right[a == g].mean()) for g in (3, 5, 7)}
        assert step.group_accuracy == pytest.approx(of_groups, **EXACT)
        for name, gap in step.gaps.items():
            columns = {"given": given, "target": y, "group": a // 2 - 1}
            plain = (
                plain_bias(name, **columns, n_groups=3, n_classes=3)
                if name == "equalized_odds_difference"
                else plain_class_sum(name, **columns)
            )
            assert gap == pytest.approx(plain, **EXACT)
        assert step.constant == (len(set(given.tolist())) == 1)
    assert found.people == 60 and measure in found.history[0].gaps


def test_stops_at_the_first_iteration_that_meets_the_target() -> None:
    people = _everybody(90, 5)
    model = _deciding(CASES["mlp"].model(), people[0][0])
    full = _pruned(model, people, pruning_ratio=0.4, iterative_steps=4)
    gaps = [step.gaps["eopp1"] for step in full.history]
    assert len(full.history) == 5 and max(gaps) - min(gaps) > 0.1
    target = (max(gaps[1:]) + min(gaps[1:])) / 2
    stopped = _pruned(model, people, pruning_ratio=0.4, iterative_steps=4, target=target)
    first = next(k for k, step in enumerate(full.history) if step.gaps["eopp1"] <= target and not step.constant)
    assert stopped.target_met and stopped.stopped == "target met"
    assert stopped.history == full.history[: first + 1]
    x = people[0][0]
    torch.testing.assert_close(stopped.model(x), full.model_at(first)(x), rtol=0, atol=0)
    never = _pruned(model, people, pruning_ratio=0.1, iterative_steps=1, target=0.0)
    assert any(flag.startswith("target not met: eopp1 is") for flag in never.flags)
    as_given = _pruned(model, people, target=2.0)
    assert as_given.target_met and len(as_given.history) == 1 and "no weight is masked" in as_given.flags
    assert not prune.is_pruned(as_given.model)


def test_a_constant_classifier_has_not_met_the_target() -> None:
    model = nn.Sequential(nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.copy_(torch.tensor([0.1, 0.0]))
    x, y = torch.tensor([[1.0], [-1.0], [2.0], [-3.0], [1.0]]), torch.tensor([0, 1, 0, 1, 1])
    people = [(x, y, ["a", "a", "b", "b", "b"])]
    found = prune_by_group_saliency(
        model, people, privileged="a", target=0.0, pruning_ratio=0.9, iterative_steps=1, progress=False
    )
    assert found.stopped == "constant classifier" and not found.target_met
    assert found.history[-1].constant and found.history[-1].gaps["eopp1"] == 0.0
    assert found.flags[0].startswith("constant classifier: everybody gets the same label")
    assert next(line for line in str(found).splitlines() if line.startswith("1 ")).endswith("constant")


def test_a_gap_that_fell_while_every_group_lost_is_flagged() -> None:
    """The first input decides; it serves the privileged most, so its weights are negative, and nobody gains."""
    half = torch.arange(400) // 2 % 200
    sign = torch.arange(400) % 2 * -2.0 + 1
    of_b, k = torch.arange(400) >= 200, half % 20
    right = torch.where(of_b & (k >= 16), -1.0, 1.0)
    other = torch.where(k < torch.where(of_b, 11, 12), 1.0, -1.0)
    x = torch.stack([torch.where(of_b, 0.1, 3.0) * sign * right, torch.where(of_b, 0.1, 1.0) * sign * other], 1)
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, 0.001], [-0.1, -0.001]]))
    people = [(x, (sign < 0).long(), [("a", "b")[int(b)] for b in of_b])]
    found = prune_by_group_saliency(model, people, pruning_ratio=0.5, iterative_steps=1, progress=False)
    assert found.privileged == ("a",) and found.unprivileged == ("b",)
    assert found.history[-1].gaps["eopp1"] < found.history[0].gaps["eopp1"]
    assert "levelling down: eopp1 fell while every group lost accuracy" in found.flags
    assert any(flag.startswith("accuracy fell by more than its error for a (-0.4") for flag in found.flags)
    back = list(_flags(found.history[::-1], found.figures, "eopp1", None))
    assert back[0].startswith("eopp1 rose from")


def test_the_callers_network_loader_and_random_state_are_untouched() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().train()
    model[3].weight.requires_grad_(False)
    model(torch.randn(5, 4).double()).sum().backward()
    ((x, y, a),) = _everybody(36, 6)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y, a), batch_size=7, shuffle=True, generator=generator)
    snapshot, state = Snapshot(model), generator.get_state()
    found = _pruned(model, loader, pruning_ratio=0.3, iterative_steps=2)
    snapshot.assert_unchanged()
    assert torch.equal(generator.get_state(), state)
    pruned: Any = found.model
    assert pruned.training and pruned[1].training and not pruned[3].weight_orig.requires_grad
    assert torch.equal(pruned[0].weight_orig, model[0].weight) and pruned[0].weight_orig.grad is None
    assert not hasattr(pruned[2], "weight_mask") and torch.equal(pruned[3].bias, model[3].bias)
    copy.deepcopy(pruned)  # masked weights have no graph, which could not be copied


def test_what_is_ranked() -> None:
    """Not biases, norms, embeddings, weights that layers share, nor attention's last layer, read past its hooks."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.tied = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.tied.weight = self.table.weight
            self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(6)
            self.mix, self.head = nn.Conv1d(6, 5, 2), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.table(x)
            x = self.norm(self.tied(self.attention(x, x, x, need_weights=False)[0])).mT
            return self.head(self.mix(x).tanh().mean(2))

    x = torch.arange(54).view(18, 3) * 5 % 6 * torch.tensor([1, 0, 1])
    x[::2] = x[::2].flip(1)
    model = _deciding(Odd().double(), x)
    people = [(x, torch.arange(18) % 3, torch.tensor([3, 7])[torch.arange(18) // 3 % 2])]
    found = _pruned(model, people, pruning_ratio=0.5, iterative_steps=1)
    masked = {name for name, buffer in found.model.named_buffers()}
    assert found.n_weights == 5 * 6 * 2 + 3 * 5 and masked <= {"mix.weight_mask", "head.weight_mask"}
    assert sum(int((buffer == 0).sum()) for buffer in found.model.buffers()) == 38  # round(75 / 2), to even


def test_save_pruned_bakes_the_masks_in(tmp_path: Path) -> None:
    case, held_out = CASES["plain"], _held_out("plain")
    model = _deciding(case.model(), held_out[0][0])
    found = _pruned(model, _people("plain"), held_out=held_out, pruning_ratio=0.3, iterative_steps=2)
    before = Snapshot(found.model)
    save_pruned(tmp_path / "masked.safetensors", found.model)
    before.assert_unchanged()
    assert prune.is_pruned(found.model)
    loaded = load_pruned(tmp_path / "masked.safetensors", case.model(seed=9))
    x = held_out[0][0]
    torch.testing.assert_close(loaded.eval()(x), found.model.eval()(x), rtol=0, atol=0)
    zeros = sum(int((loaded.get_parameter(name) == 0).sum()) for name in _ranked(loaded))
    assert zeros == round(found.history[-1].pruning_ratio * found.n_weights)


def test_privileged_side_is_found_from_accuracies() -> None:
    x = torch.cat([torch.eye(2).repeat(30, 1), torch.eye(2).repeat(45, 1)])
    y = torch.arange(150) % 2
    y[60:80] = 1 - y[60:80]  # of b, 20 of 90 are not as the network says
    group = ["a"] * 60 + ["b"] * 90
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -0.5], [-0.25, 1.5]]))
    options: dict[str, Any] = {"pruning_ratio": 0.25, "iterative_steps": 1, "progress": False}
    found = prune_by_group_saliency(network, [(x, y, group)], **options)
    assert found.privileged == ("a",) and found.unprivileged == ("b",)
    assert found.flags[0] == "a was taken for privileged, by accuracy: a 1.000 (60 people), b 0.778 (90 people)"
    named = prune_by_group_saliency(network, [(x, y, group)], privileged="b", **options)
    assert named.privileged == ("b",) and not any("taken for" in flag for flag in named.flags)
    y[60:78] = 1 - y[60:78]  # two of 90
    close = prune_by_group_saliency(network, [(x, y, group)], **options)
    assert close.flags[0].endswith("that may be chance: name privileged=")
    y[78:80] = 1 - y[78:80]
    with pytest.raises(InputError, match=r"accuracies of 2 groups are a 1\.000 \(60 people\), b 1\.000 \(90 people\)"):
        prune_by_group_saliency(network, [(x, y, group)], **options)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a word": ({"only_negative": "no"}, "only_negative='no'; expected True or False"),
    "measure": ({"measure": "eodds"}, r"measure='eodds' is not a bias measure \(did you mean 'eodd'\?\)"),
    "target": ({"target": -0.1}, "target=-0.1; expected at least 0"),
    "ratio": ({"pruning_ratio": 1.0}, "pruning_ratio=1.0; expected above 0, below 1"),
    "steps": ({"iterative_steps": 0}, "iterative_steps=0; expected at least 1"),
    "beta": ({"beta": 1.0}, "beta=1.0; expected a number between 0 and 1"),
    "side": ({"privileged": "x"}, "privileged='x' is not a sensitive group in the data"),
    "three groups": ({"privileged": None}, "no privileged side was named; accuracies of 3 groups are 3 0"),
    "both sides": ({"unprivileged": 7}, "overlap in"),
    "everybody": ({"privileged": [3, 5, 7]}, "takes in every sensitive group"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options, message = REFUSED[name]
    model = CASES["mlp"].model()
    snapshot = Snapshot(model)
    with pytest.raises(InputError, match=message):
        _pruned(model, _everybody(45, 3), **options)
    snapshot.assert_unchanged()


def test_refused_networks_and_people() -> None:
    model, people = CASES["mlp"].model(), _everybody(45, 3)
    ((x, y, a),) = people
    with pytest.raises(InputError, match="group '7' has nobody with label 2 in the validation data"):
        _pruned(model, [(x[y + a != 9], y[y + a != 9], a[y + a != 9])])
    with pytest.raises(InputError, match="GroupSaliency compares sensitive groups, but the loader gives none"):
        _pruned(model, [(x, y)], held_out=people)
    with pytest.raises(InputError, match="no linear or convolution layer"):
        _pruned(nn.Sequential(nn.LayerNorm(3)).double(), [(x[:, :3], y, a)])
    with pytest.raises(InputError, match="not finite"):
        _pruned(model, people, output_transform=lambda scores: scores / 0)
    masks.l1_unstructured(model[0], "weight", 0.3)
    with pytest.raises(InputError, match="the network has masks"):
        _pruned(model, people)


def test_a_single_logit_and_a_validation_set() -> None:
    """BCE on one logit: the loop runs, and judges the people it is given."""
    ((x, y, a),) = _everybody(45, 3)
    model = _deciding(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double(), x)
    people = [(x, (y == 1).double(), a)]
    held_out = ValidationSet(x[:30], y[:30] == 1, a[:30] // 2 - 1, ("3", "5", "7"))
    loss: Any = nn.functional.binary_cross_entropy_with_logits
    found = _pruned(
        model, people, held_out=held_out, loss_fn=lambda f, t: loss(f[:, 0], t), pruning_ratio=0.2, iterative_steps=2
    )
    assert found.people == 30 and len(found.history) == 3
    given = found.model(x[:30])[:, 0] > 0
    plain = plain_class_sum("eopp1", given.long(), (y[:30] == 1).long(), a[:30])
    assert found.history[-1].gaps["eopp1"] == pytest.approx(plain, **EXACT)


def test_print_fits_in_a_hundred_columns() -> None:
    ((x, y, _),) = _everybody(84, 3)
    names = [f"a rather long name of a group of people {g}" for g in torch.arange(84) // 3 % 7]
    found = prune_by_group_saliency(
        CASES["mlp"].model(), [(x, y, names)], privileged=names[0], pruning_ratio=0.6, iterative_steps=14,
        measure="equalized_odds_difference", progress=False,
    )  # fmt: skip
    lines = str(found).splitlines()
    assert max(map(len, lines)) < 100 and "(and 3 more groups)" in str(found)
    first = [line.split(" ")[0] for line in lines].index("iteration") + 1
    shown = [int(line.split()[0]) for line in lines[first : lines.index("", first)]]
    assert shown[0] == 0 and shown[-1] == len(found.history) - 1 and len(shown) <= 12
    with pytest.raises(InputError, match="iteration=99; expected 0 to"):
        found.model_at(99)


def test_a_sigmoid_s_output_is_no_score() -> None:
    """Everybody would get label 1, and the network be taken for a constant classifier."""
    ((x, y, a),) = _everybody(45, 3)
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()).double()
    loss: Any = nn.functional.binary_cross_entropy
    with pytest.raises(InputError, match="its single score is the output of a sigmoid"):
        _pruned(model, [(x, (y == 1).double(), a)], loss_fn=lambda f, t: loss(f[:, 0], t))


def test_groups_that_only_rank_or_only_judge_are_told() -> None:
    model, people = CASES["mlp"].model(), _everybody(45, 3)
    ((x, y, a),) = people
    few = [(x[a != 7], y[a != 7], a[a != 7])]
    found = _pruned(model, people, held_out=few, pruning_ratio=0.2, iterative_steps=2, privileged=3)
    assert (found.privileged, found.unprivileged) == (("3",), ("5", "7"))
    assert found.flags[0] == "7: weights are ranked by them too, and nobody of them judges"
    found = _pruned(model, few, held_out=people, pruning_ratio=0.2, iterative_steps=2, privileged=3)
    assert found.unprivileged == ("5",)
    assert found.flags[0].startswith("7: of neither side, so that their harm does not count")
    read: list[int] = []

    def loader() -> Any:
        read.append(1)
        yield from people

    with pytest.raises(InputError, match="privileged=7 is not a sensitive group in the data"):
        _pruned(model, loader(), held_out=few, privileged=7)
    assert not read
