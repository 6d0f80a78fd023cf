"""Sweeps: each row equals the same thing done by hand; a sweep that was cut short ends as if it hadn't been."""

from __future__ import annotations

import copy
import random
from typing import Any

import pandas as pd
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim import InputError, ParityFineTuning, predict
from fairtrim_adapters.fairlearn import measurements
from fairtrim_adapters.sweep import DataSplits, sweep
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.sweep_cases import network, people, quick, same, splits


@pytest.mark.slow
def test_rows_equal_the_same_done_by_hand() -> None:
    dense, data = network(), splits()
    criteria, options = ["magnitude", "worst-group"], {"post_processors": "parity-fine-tuning"}
    table = quick(dense, data, criteria, [0.25, 0.5], reconstruct=False, **options)
    assert len(table) == (1 + 2 * 2) * 2
    assert not table["reconstructed"].any()
    pruned = copy.deepcopy(dense)
    importance = WorstGroupImportance()
    pruner = tp.pruner.BasePruner(
        pruned, torch.randn(2, 6), importance=importance, pruning_ratio=0.5, ignored_layers=[pruned[-1]]
    )
    importance.fit(pruner, data.scoring, sensitive_names=data.sensitive_names, progress=False)
    pruner.step()
    from fairtrim import recalibrate_batchnorm

    recalibrate_batchnorm(pruned, data.scoring, progress=False)
    repaired = ParityFineTuning(random_state=0).repair(
        pruned, data.validation, sensitive_names=data.sensitive_names, progress=False
    )
    models = {"dense": dense, "pruned": pruned, "repaired": repaired.model}
    predictions = predict(models, data.test, sensitive_names=data.sensitive_names, progress=False)
    rows = table.set_index(["criterion", "pruning_ratio", "post_processor"])
    for name, key in {
        "dense": ("dense", 0.0, "none"),
        "pruned": ("worst-group", 0.5, "none"),
        "repaired": ("worst-group", 0.5, "parity-fine-tuning"),
    }.items():
        expected = measurements(predictions, name, "dense", n_boot=10, random_state=0)
        flags = expected.pop("flags")
        row = rows.loc[key]
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, abs=1e-12), (name, column)
        assert row["parameters"] == sum(p.numel() for p in models[name].parameters())
        assert row["flags"].startswith(flags)
    dense_parameters = sum(p.numel() for p in dense.parameters())
    assert rows.loc[("worst-group", 0.5, "none"), "parameters_ratio"] == pytest.approx(
        sum(p.numel() for p in pruned.parameters()) / dense_parameters
    )
    assert rows.loc[("worst-group", 0.5, "none"), "macs"] == 6 * 6 + 6 * 5 + 5 * 2
    assert (rows.xs("dense")["macs_ratio"] == 1).all()


def test_seeds_make_their_own_networks_and_draws() -> None:
    asked: list[int] = []

    def factory(seed: int) -> nn.Module:
        asked.append(seed)
        return network(seed)

    table = quick(factory, splits(), "random", 0.5, seeds=[3, 8])
    assert asked == [3, 8]
    accuracy = table.set_index(["criterion", "seed"])["accuracy"]
    assert accuracy["dense", 3] != accuracy["dense", 8]
    one = quick(network(), splits(), "random", 0.5, seeds=3)
    assert one.query("criterion == 'dense'")["accuracy"].nunique() == 1
    assert one.query("criterion == 'random'")["changed_predictions"].nunique() > 1


def test_training_and_fine_tuning_of_ones_own() -> None:
    calls = []

    def train(model: nn.Module, seed: int) -> None:
        calls.append(("train", seed, model[0].out_features))  # type: ignore[index]

    def finish(model: nn.Module, seed: int) -> None:
        calls.append(("finish", seed, model[0].out_features))  # type: ignore[index]
        with torch.no_grad():
            model[-1].bias.copy_(torch.tensor([100.0, 0.0]))  # type: ignore[index]

    table = quick(network, splits(), "magnitude", 0.5, seeds=[5], train=train, fine_tuning=finish)
    assert calls == [("train", 5, 12), ("finish", 5, 6)]
    assert "constant classifier" in table["flags"].iloc[1] and table["selection_rate"].iloc[1] == 0


def test_fine_tuning_by_epochs() -> None:
    before, after = (
        quick(network(), splits(), "magnitude", 0.5, reconstruct=False, fine_tuning=epochs) for epochs in (0, 3)
    )
    assert after["accuracy"].iloc[1] > before["accuracy"].iloc[1]


def test_a_refit_is_an_option_and_a_column() -> None:
    """By default where there are data for it."""
    plain, refitted = (quick(network(), splits(), "magnitude", 0.5, reconstruct=value) for value in (False, True))
    same(refitted, quick(network(), splits(), "magnitude", 0.5))
    assert plain["reconstructed"].tolist() == [False, False] and refitted["reconstructed"].tolist() == [False, True]
    assert refitted["changed_predictions"].iloc[1] != plain["changed_predictions"].iloc[1]
    without_data = quick(network(), splits(scoring=None, train=None), "magnitude", 0.5, recalibrate=False)
    same(without_data, quick(network(), splits(), "magnitude", 0.5, reconstruct=False, recalibrate=False))
    with pytest.raises(InputError, match="reconstruct=True needs the split 'scoring'"):
        quick(network(), splits(scoring=None, train=None), "magnitude", 0.5, reconstruct=True)


def test_nothing_of_the_callers_changes() -> None:
    dense, data = network().train(), splits()
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    torch.manual_seed(1)
    random = torch.get_rng_state()
    quick(dense, data, ["random", "taylor", "worst-group"], 0.5, post_processors="threshold-selection", fine_tuning=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())
    assert dense.training and all(parameter.grad is None for parameter in dense.parameters())


@pytest.mark.slow
def test_several_processes_give_the_same_table() -> None:
    criteria = {"worst-group": WorstGroupImportance, "magnitude": "magnitude"}
    one, two = (quick(network, splits(), criteria, [0.25, 0.5], 2, n_jobs=jobs) for jobs in (1, 2))
    same(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criteria": "worst_group"}, "did you mean 'worst-group'"),
        ({"criteria": "group-saliency"}, "needs privileged"),
        ({"criteria": "contrastive"}, "needs the mined samples"),
        ({"criteria": "magnitude:p=1"}, "takes no settings"),
        ({"criteria": "random:random_state=7"}, "seed of the run; .* seeds= of the sweep"),
        ({"fine_tuning": 0.0001}, "fine_tuning=0.0001; expected a whole number of epochs, settings such as"),
        ({"criteria": []}, "no criteria"),
        ({"criteria": {"dense": "magnitude"}}, "labelled 'dense'"),
        ({"criteria": {"mine": 3}}, "is a int"),
        ({"criteria": {"mine": WorstGroupImportance()}}, "a function that makes"),
        ({"criteria": {"mine": lambda: 3}}, "gave a int"),
        ({"criteria": {"obdc": lambda: object.__new__(tp.importance.OBDCImportance)}}, "needs statistics of layers"),
        ({"post_processors": "parity"}, "unknown"),
        ({"post_processors": "parity-fine-tuning:epsilom=1"}, "did you mean 'epsilon'"),
        ({"post_processors": {"none": "threshold-selection"}}, "labelled 'none'"),
        ({"post_processors": {"x": 1}}, "expected a name or a PostProcessor"),
        ({"pruning_ratios": 1.0}, "between 0 and 1"),
        ({"pruning_ratios": [0.5, 0.5]}, "different shares"),
        ({"pruning_ratios": 0.99}, "leaves no channel"),
        ({"ignored_layers": ["0", "3"]}, "no layer is left"),
        ({"reconstruct": "yes"}, "reconstruct='yes'; expected True, False or None"),
        ({"recalibrate_output": "bias"}, "recalibrate_output='bias'; expected 'output', 'threshold' or None"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"iterative_steps": 0}, "at least 1"),
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"n_boot": 0}, "n_boot=0"),
        ({"latency_rounds": 5}, "at least 6"),
        ({"latency_batch_size": 0}, "at least 1"),
        ({"ignored_layers": "0"}, "expected a list"),
        ({"ignored_layers": ["nowhere"]}, "names of the network's layers"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    given = {"criteria": "magnitude", "pruning_ratios": 0.5, **options}
    with pytest.raises(InputError, match=message):
        quick(network(), splits(), **given)


def test_wrong_data_and_models() -> None:
    for data, message in (
        ({"tests": []}, "did you mean 'test'"),
        ({"scoring": people(9, 0)}, "no 'test'"),
        ([1], "the data are a list"),
        ({"test": iter([1])}, "only once"),
        ({"test": 5}, "expected a DataLoader"),
    ):
        with pytest.raises(InputError, match=message):
            quick(network(), data, "magnitude", 0.5)
    test = people(50, 0)
    for needs, message in (
        ({"criteria": "worst-group"}, "needs the split 'scoring'"),
        ({"criteria": "magnitude", "post_processors": "threshold-selection"}, "needs the split 'validation'"),
        ({"criteria": "magnitude", "fine_tuning": 1}, "needs the split 'train'"),
    ):
        with pytest.raises(InputError, match=message):
            quick(network(), {"test": test}, pruning_ratios=0.5, **needs)
    with pytest.raises(InputError, match="no sensitive features"):
        quick(network(), {"test": [batch[:2] for batch in test], "scoring": test}, "magnitude", 0.5)
    with pytest.raises(InputError, match="factory gave a str"):
        quick(lambda: "network", splits(), "magnitude", 0.5)
    with pytest.raises(InputError, match="model is a str"):
        quick("network", splits(), "magnitude", 0.5)

    class Turning:
        def __init__(self) -> None:
            self.batches, self.random = list(people(150, 0)), random.Random(0)

        def __iter__(self) -> Any:
            self.random.shuffle(self.batches)
            return iter(self.batches)

    with pytest.raises(InputError, match="shuffle=False"):
        quick(network(), splits(test=Turning()), "magnitude", 0.5)


def test_an_error_names_its_run() -> None:
    with pytest.raises(InputError, match=r"criterion 'magnitude', pruning ratio 0.95, post-processor 'none', seed 0"):
        quick(network(), splits(), "magnitude", 0.95)


def test_more_than_two_classes_and_dicts() -> None:
    class OfDicts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(n_classes=3)

        def forward(self, values: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layers(values)}

    def dicts(loader: DataLoader[tuple[Tensor, ...]]) -> list[dict[str, Tensor]]:
        return [{"values": x, "labels": y, "sensitive_features": s} for x, y, s in loader]

    data = DataSplits(scoring=dicts(people(90, 1, 3)), test=dicts(people(110, 2, 3)))
    table = sweep(OfDicts().eval(), data, "worst-group", 0.5, n_boot=5, latency_rounds=6, progress=False)
    of_class = {"true_positive_rate_of_2[1]", "selection_rate_of_0_low[0]", "demographic_parity_difference_change"}
    assert "true_positive_rate" not in table and {"accuracy[0]", "accuracy_low[1]", *of_class} <= set(table)
    assert table["macs"].tolist() == [6 * 12 + 12 * 10 + 10 * 3, 6 * 6 + 6 * 5 + 5 * 3]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"ratios": 0.5}, "pruning_ratios="),
        ({"fine_tune": 1}, "fine_tuning="),
        ({"learning_rate": 0.1}, r"fine_tuning=\{'learning_rate': ...\}"),
        ({"data": {}}, "splits="),
        ({"random_state": 3}, "seeds="),
    ],
)
def test_old_names_say_the_new_one(old: dict[str, Any], new: str) -> None:
    with pytest.raises(InputError, match=f"sweep has no {next(iter(old))}=; it is called {new}"):
        sweep(network(), criteria="magnitude", **old)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"sweep has no 'n_bot' \(did you mean 'n_boot'\?\)"):
        sweep(network(), splits(), "magnitude", n_bot=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"sweep has no 'seed' \(did you mean 'seeds'\?\).*'folder'.*'n_boot'"):
        sweep(network(), splits(), "magnitude", seed=3)  # type: ignore[call-arg]


def test_settings_of_fine_tuning() -> None:
    def tuned(fine_tuning: Any) -> pd.DataFrame:
        return quick(network(), splits(), "magnitude", 0.5, reconstruct=False, fine_tuning=fine_tuning)

    same(tuned(2), tuned({"epochs": 2}))
    slow, slower = (tuned({"epochs": 2, "learning_rate": rate})["accuracy"].iloc[1] for rate in (1e-9, 1e-10))
    assert slow == slower
    with pytest.raises(InputError, match="lower the learning rate"):
        tuned({"epochs": 2, "learning_rate": 1e20})
