"""The training loop trains, repeats itself and leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    TensorDataset,
    WeightedRandomSampler,
)

from fairtrim import InputError, UnsupportedModelError
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.network.fine_tuning import fine_tune, reinitialized
from fairtrim.network.losses import contrastive_loss
from tests.networks import CASES
from tests.snapshot import Snapshot

CPU = torch.device("cpu")


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _toy(n_samples: int = 30, seed: int = 5) -> DataLoader[Any]:
    x = torch.randn(n_samples, 4, generator=_generator(seed), dtype=torch.float64)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long()), batch_size=7, shuffle=True)


def _mlp(seed: int = 0, *layers: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 9), *layers, nn.ReLU(), nn.Linear(9, 3)).double()


def _loss(model: nn.Module, loader: DataLoader[Any]) -> float:
    x, y = loader.dataset.tensors  # type: ignore[attr-defined]
    return F.cross_entropy(model(x), y).item()


def _same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def test_training_reduces_the_loss_and_leaves_flags_and_randomness() -> None:
    model, loader = _mlp(0, nn.BatchNorm1d(9), nn.Dropout(0.1)).eval(), _toy()
    model[1].train()
    model[0].bias.requires_grad_(False)
    frozen, before = model[0].bias.clone(), _loss(model.eval(), loader)
    model[1].train()
    snapshot = Snapshot(model)
    epochs: list[int] = []
    assert fine_tune(model, loader, epochs=4, learning_rate=0.03, after_epoch=epochs.append, progress=False) is model
    assert epochs == [0, 1, 2, 3]
    assert snapshot._state() == snapshot.state
    assert torch.equal(torch.get_rng_state(), snapshot.random[2])
    assert all(p.grad is None for p in model.parameters()) and torch.equal(frozen, model[0].bias)
    assert int(model[1].num_batches_tracked) == 4 * 5  # BatchNorm was in training mode, whatever its flag
    assert _loss(model.eval(), loader) < 0.7 * before


def test_training_repeats_itself() -> None:
    """Same generator seed, same weights, dropout included, wherever the global random state stands."""
    loader, models = _toy(), [_mlp(0, nn.Dropout(0.5)) for _ in range(3)]
    for k, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        torch.manual_seed(k)
        fine_tune(model, loader, epochs=2, random_state=_generator(seed), progress=False)
    assert _same(models[0], models[1]) and not _same(models[0], models[2])


def test_training_equals_a_loop_by_hand() -> None:
    """Adam, a learning rate that falls by equal steps to 0, and the contrastive term of the mined samples."""
    loader, (model, other) = _toy(), (_mlp(), _mlp())
    conflicting = torch.arange(30) % 4 == 0
    options = {"sample_weights": 1.0 + 3 * conflicting, "contrastive_weight": 0.3, "conflicting": conflicting}
    fine_tune(model, loader, epochs=2, learning_rate=0.02, random_state=_generator(), progress=False, **options)
    generator, samples, optimizer = _generator(), IndexedSamples(loader), torch.optim.Adam(other.parameters(), lr=0.02)
    step = 0
    for _ in range(2):
        torch.randint(2**31, (), generator=generator)  # the seed of the epoch's dropout
        for indices, batch in samples.shuffled(CPU, generator, options["sample_weights"]):
            features = other[:2](batch.inputs)
            loss = F.cross_entropy(other[2](features), batch.target)
            loss = loss + 0.3 * contrastive_loss(features, batch.target, conflicting[indices])
            optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_no_epoch_changes_nothing() -> None:
    model = _mlp()
    before = Snapshot(model)
    fine_tune(model, _toy(), epochs=0, progress=False)
    before.assert_unchanged()


def test_batch_of_one_does_not_meet_batchnorm() -> None:
    model = _mlp(0, nn.BatchNorm1d(9))
    fine_tune(model, _toy(15), epochs=1, progress=False)  # 7 + 7 + 1
    assert int(model[1].num_batches_tracked) == 2
    plain = _mlp()
    calls: list[int] = []
    plain.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    fine_tune(plain, _toy(15), epochs=1, progress=False)
    assert calls == [7, 7, 1]


def test_forward_function_output_and_loss_of_the_user() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 9), "head": nn.Linear(9, 3)}).double()
    batches: list[int] = []

    def loss_fn(scores: Tensor, target: Tensor) -> Tensor:
        batches.append(len(target))
        return F.cross_entropy(scores, target)

    before = model["body"].weight.detach().clone()
    fine_tune(
        model,
        _toy(),
        loss_fn=loss_fn,
        forward_fn=lambda m, x: (x, m["head"](m["body"](x).relu())),
        output_transform=lambda output: output[1],
        conflicting=torch.arange(30) < 5,
        contrastive_weight=0.1,
        progress=False,
    )
    assert batches == [7, 7, 7, 7, 2] and not torch.equal(before, model["body"].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"contrastive_weight": 0.1}, "contrastive_weight needs conflicting="),
        ({"sample_weights": torch.ones(29)}, "expected one finite weight"),
        ({"loss_fn": lambda s, t: s.sum() * torch.nan}, "the loss of batch 0 is nan; lower the learning rate"),
        (
            {"contrastive_weight": 0.1, "conflicting": torch.arange(30) < 5, "feature_layer": "body"},
            r"feature_layer='body' is not a module of the network; its linear layers are \['0', '2'\]",
        ),
    ],
)
def test_training_refuses(options: dict[str, Any], message: str) -> None:
    model = _mlp().eval()
    before = Snapshot(model)
    with pytest.raises(InputError, match=message):
        fine_tune(model, _toy(), progress=False, **options)
    before.assert_unchanged()


@pytest.mark.parametrize("name", ["mlp", "plain", "residual", "group norm"])
def test_reinitialized(name: str) -> None:
    """Other weights, the same architecture, statistics of BatchNorm as at the start; by the generator alone."""
    model = CASES[name].model().eval()
    next(model.parameters()).requires_grad_(False)
    before = Snapshot(model)
    fresh, again, other = (reinitialized(model, _generator(seed)) for seed in (1, 1, 2))
    before.assert_unchanged()
    assert str(fresh) == str(model) and all(p.requires_grad for p in fresh.parameters())
    assert _same(fresh, again) and not _same(fresh, other)
    for key, value in fresh.named_parameters():
        assert value.shape == model.get_parameter(key).shape
        assert not torch.equal(value, model.get_parameter(key)), key
    for module in fresh.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean.abs().max() == 0 and int(module.num_batches_tracked) == 0


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.head = nn.Parameter(torch.zeros(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.shift)


@pytest.mark.parametrize(
    ("model", "names"), [(Bare(), "'Bare'"), (nn.Sequential(nn.Linear(4, 4), Bare()), "'1'")], ids=["itself", "inside"]
)
def test_bare_parameters_can_t_be_drawn_anew(model: nn.Module, names: str) -> None:
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match=rf"the layers \[{names}\] .*pass network="):
        reinitialized(model, _generator())
    before.assert_unchanged()


class Augmented(Dataset[Any]):
    """Draws from all three libraries."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = random.random(), float(np.random.rand()), float(torch.rand(()))
        return torch.tensor(draws), index % 2


def test_transforms_differ_from_epoch_to_epoch_and_repeat_with_the_seed() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    for seed in (3, 3, 4):
        torch.manual_seed(len(seen))  # the caller's state decides nothing
        random.seed(len(seen))
        fine_tune(
            Watching(3, 2),
            DataLoader(Augmented(), batch_size=4),
            epochs=2,
            random_state=_generator(seed),
            progress=False,
        )
    first, second, again, again_second, other, _ = seen
    assert all(
        not torch.equal(first[:, k], second[:, k]) and not torch.equal(first[:, k], other[:, k]) for k in range(3)
    )
    assert torch.equal(first, again) and torch.equal(second, again_second)


def test_training_that_could_do_nothing_is_refused() -> None:
    loader = DataLoader(_toy().dataset, batch_size=1)
    with pytest.raises(InputError, match="BatchNorm and the loader batches of one"):
        fine_tune(nn.Sequential(nn.BatchNorm1d(3)), loader, progress=False)
    with pytest.raises(InputError, match="every parameter is frozen"):
        fine_tune(_mlp().requires_grad_(False), _toy(), progress=False)
    with pytest.raises(InputError, match="4 mined flags for 30 samples"):
        fine_tune(_mlp(), _toy(), conflicting=torch.ones(4), contrastive_weight=0.1, progress=False)


def test_training_does_not_replace_a_weighted_sampler_in_silence() -> None:
    data = _toy().dataset
    loader = DataLoader(data, batch_size=8, sampler=WeightedRandomSampler([1.0] * len(data), 5))
    with pytest.raises(InputError, match="pass sample_weights= instead"):
        fine_tune(_mlp(), loader, progress=False)


def test_fine_tuning_takes_the_loss_of_each_batch() -> None:
    """Weights that a criterion hides count, and one number a sample is averaged."""
    weight = torch.tensor([1.0, 20.0])
    target = torch.tensor([0] * 16 + [1] * 4)
    loader = DataLoader(TensorDataset(torch.ones(20, 1), target), batch_size=20)

    class Hidden(nn.Module):
        def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(scores, labels, weight=weight)

    def unreduced(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores, labels, reduction="none")

    shares = []
    for loss_fn in (F.cross_entropy, unreduced, nn.CrossEntropyLoss(weight=weight), Hidden()):
        torch.manual_seed(0)
        model = fine_tune(nn.Linear(1, 2), loader, epochs=200, learning_rate=0.1, loss_fn=loss_fn, progress=False)
        shares.append(round(float(model(torch.ones(1, 1)).detach().softmax(1)[0, 1]), 2))
    assert shares == [0.2, 0.2, 0.83, 0.83]  # 4 of 20; 80 of 96


def test_unknown_settings() -> None:
    loader = DataLoader(TensorDataset(torch.eye(4), torch.arange(4) % 2), batch_size=2)
    with pytest.raises(InputError, match=r"fine_tune has no 'epoch' \(did you mean 'epochs'\?\); .*'sample_weights'"):
        fine_tune(nn.Linear(4, 2), loader, epoch=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="fine_tune has no seed=; it is called random_state="):
        fine_tune(nn.Linear(4, 2), loader, seed=1)  # type: ignore[call-arg]
