"""Options without effect, and arguments that are wrong: refused in words before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from fairtrim import (
    AdversarialFineTuning,
    CounterfactualUnlearning,
    FairtrimError,
    InputError,
    ParityFineTuning,
    RandomPerturbation,
    ThresholdSelection,
    ValidationSet,
    fine_tune,
)
from fairtrim.arguments import require_number
from fairtrim.mining import EpochEnsemble, GeneralizedCrossEntropyMiner, LossMiner, MinedSamples, Miner
from fairtrim_adapters.sweep import DataSplits, sweep
from fairtrim_adapters.sweep.named_methods import post_processors_by_label
from fairtrim_adapters.torch_pruning import (
    AccumulatedConfidence,
    AccumulatedConfidenceImportance,
    ContrastiveImportance,
    DamageImportance,
    WorstGroupImportance,
    dcwp,
    denp,
)
from fairtrim_adapters.torch_pruning.prune_copy import prune_copy
from tests.recipe_cases import nested
from tests.snapshot import Snapshot

N = 40
FLAGS = torch.arange(N) % 7 == 0
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
PEOPLE: list[Any] = [(X, Y, ["a", "b"] * (N // 2))]
LOADER: DataLoader[Any] = DataLoader(TensorDataset(X, Y), batch_size=10)


def _network(n_classes: int = 2) -> Any:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, n_classes))


class NeverMiner(Miner):
    def mine(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        raise AssertionError("mined before the arguments were looked at")


# Options without effect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ThresholdSelection(epsilon=0.9), ParityFineTuning(), RandomPerturbation(trials=1)])
def test_names_beside_a_validation_set(method: Any) -> None:
    people = ValidationSet.from_loader(PEOPLE, progress=False)
    names = {"sensitive": {"a": "A", "b": "B"}}
    model = _network()
    before = Snapshot(model)
    for more in ({}, {"selection_loader": people}):
        with pytest.raises(InputError, match=r"no effect on a ValidationSet.*ValidationSet.from_loader\(loader, sens"):
            method.repair(model, people, sensitive_names=names, progress=False, **more)
    before.assert_unchanged()
    method.repair(model, PEOPLE, sensitive_names=names, progress=False)
    named = ValidationSet.from_loader(PEOPLE, sensitive_names=names, progress=False)
    if method.edits_on_data:
        method.repair(model, named, selection_loader=PEOPLE, sensitive_names=names, progress=False)


IDLE: dict[str, tuple[Callable[[], Any], str]] = {
    "epochs of one layer": (
        lambda: ParityFineTuning(epochs=3, learning_rate=0.1),
        "epochs=3 and learning_rate=0.1 would have no effect: expected layers='all' with it",
    ),
    "ridge of all layers": (lambda: ParityFineTuning(layers="all", ridge=0.1), "ridge=0.1 would have no effect"),
    "unlearning's epochs": (lambda: CounterfactualUnlearning(epochs=3), "epochs=3 would have no effect"),
    "damping of all layers": (lambda: CounterfactualUnlearning(layers="all", damping=0.2), "damping=0.2 would have no"),
    "sides without groups": (lambda: CounterfactualUnlearning(privileged="a"), "privileged='a' would have no effect"),
    "limits without pairs": (
        lambda: CounterfactualUnlearning(measure="equalized_odds_difference", max_cross_entropy_rise=0.1),
        "max_cross_entropy_rise=0.1 would have no effect",
    ),
    "names without people": (
        lambda: ContrastiveImportance(FLAGS, sensitive_names=["sex"]),
        "sensitive_names= would have no effect on ContrastiveImportance: it tells samples apart by mined=",
    ),
    "names of the mined": (
        lambda: AccumulatedConfidenceImportance(FLAGS, sensitive_names=["sex"]),
        "sensitive_names= would have no effect on AccumulatedConfidenceImportance",
    ),
    "a folder without a pass": (lambda: ContrastiveImportance(FLAGS, folder="sums"), "folder= would have no effect"),
    "batches that are drawn": (
        lambda: ContrastiveImportance(FLAGS, max_batches=3),
        "max_batches= would .* iterations=",
    ),
    "gates of no gates": (
        lambda: ContrastiveImportance(FLAGS, form="first-order", iterations=10, cost="macs"),
        "iterations=10 and cost='macs' would have no effect: form='first-order' learns no gates",
    ),
    "two criteria": (
        lambda: AccumulatedConfidenceImportance(FLAGS, beta=0.5, criterion=WorstGroupImportance().criterion),
        "beta=0.5 would have no effect beside criterion=",
    ),
    "interactions of single channels": (
        lambda: DamageImportance(lambda damage: damage[0], selection="single", interactions="sketched"),
        "interactions='sketched' would have no effect",
    ),
    "flags without a term": (
        lambda: fine_tune(_network(), LOADER, conflicting=FLAGS, progress=False),
        "conflicting= would have no effect without contrastive_weight=",
    ),
    "features without a term": (
        lambda: fine_tune(_network(), LOADER, feature_layer="2", progress=False),
        "feature_layer= would have no effect without contrastive_weight=",
    ),
    "a seed that is the run's": (
        lambda: post_processors_by_label("parity-fine-tuning:random_state=3"),
        "random_state is the seed of the run",
    ),
    "a rate of no training": (
        lambda: sweep(
            _network(),
            {"test": PEOPLE, "scoring": PEOPLE},
            "magnitude",
            0.5,
            fine_tuning={"epochs": 0, "learning_rate": 0.1},
        ),
        "'learning_rate': 0.1} would have no effect; expected epochs",
    ),
    "an importance with data of its own": (
        lambda: prune_copy(
            (model := _network()), WorstGroupImportance(model=model, loader=PEOPLE), DataSplits(test=PEOPLE), 0.5
        ),
        "WorstGroupImportance was made with model= and loader=, which would have no effect",
    ),
}


@pytest.mark.parametrize("kind", IDLE)
def test_options_without_effect(kind: str) -> None:
    make, message = IDLE[kind]
    with pytest.raises(InputError, match=message):
        make()


def test_a_share_beside_people_who_select() -> None:
    with pytest.raises(InputError, match=r"selection_share=0\.3 would have no effect: selection_loader= says who"):
        ParityFineTuning(selection_share=0.3).repair(_network(), PEOPLE, selection_loader=PEOPLE, progress=False)


@pytest.mark.parametrize("option", [{"folder": "sums"}, {"sensitive_names": ["sex"]}, {"max_batches": 2}])
def test_options_without_effect_in_fit(option: dict[str, Any]) -> None:
    model = _network()
    importance = ContrastiveImportance(FLAGS, iterations=2, progress=False)
    pruner = tp.pruner.BasePruner(model, X[:2], importance, pruning_ratio=0.5, ignored_layers=[model[2]])
    with pytest.raises(InputError, match=f"{next(iter(option))}= would have no effect"):
        importance.fit(pruner, LOADER, **option)
    importance.fit(pruner, LOADER, **dict.fromkeys(option))  # None asks for nothing


def test_what_an_importance_was_made_with_counts_in_a_sweep() -> None:
    """Its own loss, and not the data's; and names that the data have for others are not handed to it."""
    seen: list[str] = []

    def own(scores: Tensor, target: Tensor) -> Tensor:
        seen.append("own")
        return F.cross_entropy(scores, target)

    data = DataSplits(test=PEOPLE, scoring=PEOPLE, sensitive_names={"sensitive": {"a": "A", "b": "B"}})
    prune_copy(_network(), WorstGroupImportance(loss_fn=own), data, 0.5, progress=False)
    assert seen
    unlabelled = AccumulatedConfidenceImportance(FLAGS)
    mined = DataSplits(test=PEOPLE, scoring=LOADER, sensitive_names={"sensitive": {"a": "A", "b": "B"}})
    prune_copy(_network(), unlabelled, mined, 0.5, progress=False)
    assert unlabelled.selection_.order.numel()


# Recipes, before the mining -----------------------------------------------------------------------------------

BOTH: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt cut": ({"cut": {"share": 0.1}}, r"cut has no 'share' \(did you mean 'share_per_class'\?\)"),
    "a share above one": ({"cut": {"share_per_class": 10}}, "share_per_class=10; expected a share between 0 and 1"),
    "two cuts": ({"cut": {"share_per_class": 0.1, "threshold": 0.5}}, "not several"),
    "a word": ({"cut": {"threshold": "high"}}, "threshold='high'; expected a finite number"),
    "not a number": ({"cut": {"threshold": math.nan}}, "threshold=nan; expected a finite number"),
    "a flag": ({"cut": {"deviations": True}}, "deviations=True; expected a finite number"),
    "no deviations": ({"cut": {"deviations": -3}}, "deviations=-3; expected a positive number"),
    "no dict": ({"cut": 0.1}, "cut is a float; expected a dict"),
    "ratio": ({"pruning_ratio": 1.5}, "pruning_ratio=1.5"),
    "negative ratio": ({"pruning_ratio": -0.2}, "pruning_ratio=-0.2"),
    "undefined ratio": ({"pruning_ratio": math.nan}, "pruning_ratio=nan"),
    "ratio in words": ({"pruning_ratio": "half"}, "pruning_ratio='half'"),
    "half an epoch": ({"epochs": 0.5}, "epochs=0.5; expected a whole number, at least 0"),
    "learning rate": ({"learning_rate": -1e-3}, "learning_rate=-0.001; expected above 0"),
    "undefined learning rate": ({"learning_rate": math.nan}, "learning_rate=nan"),
    "contrast": ({"contrastive_weight": -0.1}, "contrastive_weight=-0.1; expected at least 0"),
    "seed": ({"random_state": 0.5}, "random_state=0.5; expected a whole number"),
    "a class of miners": ({"miner": LossMiner}, "miner is the class LossMiner; expected a Miner, such as"),
    "no miner": ({"miner": 3}, "miner is a int; expected a Miner"),
    "a miner of no name": ({"miner": "los"}, r"miner 'los' is unknown \(did you mean 'loss'"),
    "features": ({"feature_layer": "neck"}, "feature_layer='neck' is not a module"),
    "ignored layers": ({"ignored_layers": ["neck"]}, r"ignored_layers holds \['neck'\]"),
    "a string of layers": ({"ignored_layers": "2"}, r"ignored_layers is the string '2'; expected a list: \['2'\]"),
    "misspelt option": ({"pruner_options": {"global_prunning": True}}, "did you mean 'global_pruning'"),
    "option of ours": (
        {"pruner_options": {"pruning_ratio": 0.5}},
        "pruner_options holds 'pruning_ratio': the ratio is",
    ),
    "options in a list": ({"pruner_options": ["global_pruning"]}, "pruner_options is a list; expected a dict"),
    "layer of an option": ({"pruner_options": {"pruning_ratio_dict": {"neck": 0.5}}}, "has the key 'neck'"),
    "ratio of a layer": ({"pruner_options": {"pruning_ratio_dict": {"0": 1.5}}}, r"pruning_ratio_dict\['0'\]=1.5"),
    "ratio of heads": (
        {"pruner_options": {"head_pruning_ratio": -0.5}},
        "head_pruning_ratio=-0.5; expected at least 0",
    ),
    "no network": ({"model": "resnet"}, "model is a str; expected a trained torch.nn.Module"),
    "features that nothing reads": (
        {"feature_layer": "0", "contrastive_weight": 0.0},
        "feature_layer='0' would have no effect without contrastive_weight=",
    ),
    "progress in words": ({"progress": "no"}, "progress='no'; expected True or False"),
    "a number for a folder": ({"folder": 3}, "folder is a int; expected a path"),
    "a file for a folder": ({"folder": __file__}, "can't be made"),
    "a number for a call": ({"forward_fn": 3}, r"forward_fn is a int; expected a function of \(model, inputs\)"),
    "a word for a transform": ({"output_transform": "logits"}, "output_transform is a str; expected a function"),
    "threshold of three": (
        {"model": _network(3), "recalibrate_output": "threshold"},
        "3 scores, and a threshold divides two classes",
    ),
    "no output layer": (
        {
            "model": nn.Sequential(*_network(), nn.LogSoftmax(1)),
            "ignored_layers": ["2"],
            "contrastive_weight": 0.0,
            "recalibrate_output": "output",
        },
        "the network has no linear head",
    ),
    "samples drawn by weight": (
        {"loader": DataLoader(LOADER.dataset, batch_size=10, sampler=WeightedRandomSampler([1.0] * N, N))},
        "the loader draws by weight",
    ),
    "nothing to train": ({"model": _network().requires_grad_(False)}, "every parameter is frozen"),
    "statistics of one": (
        {
            "model": nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
            "loader": DataLoader(LOADER.dataset, batch_size=1),
        },
        "the network has BatchNorm and the loader batches of one",
    ),
    "nothing to prune": ({"ignored_layers": ["0"]}, "no layer is left that could be pruned"),
    "options that are none": ({"pruner_options": lambda model: 3}, "pruner_options= gave a int; expected a dict"),
    "a number of layers": ({"ignored_layers": 1}, "ignored_layers is a int; expected a list"),
    "probabilities": (
        {"model": nn.Sequential(*_network(), nn.Softmax(1)), "ignored_layers": ["2"], "contrastive_weight": 0.0},
        "the network returns probabilities",
    ),
    "a single score": ({"model": _network(1)}, r"scores of shape \(10, 1\)"),
    "labels of a third class": ({"loader": DataLoader(TensorDataset(X, Y + 1), batch_size=10)}, "labels reach from 1"),
    # flags that are known
    "weight of the mined, in words": (
        {"mined_weight": "much"},
        "mined_weight='much'; expected a finite number, above 0, or 'published'",
    ),
    "no weight of the mined": ({"mined_weight": 0.0}, "mined_weight=0.0; expected above 0"),
    "too few flags": ({"miner": FLAGS[:-1]}, "39 samples are known and the loader's dataset has 40"),
    "numbers for flags": ({"miner": FLAGS.long()}, r"the known flags are int64 of shape \(40,\); expected one boolean"),
    "words for flags": ({"miner": ["yes"] * N}, r"the known flags are <U3 of shape \(40,\); expected one boolean"),
    "flags in a column": ({"miner": FLAGS[:, None].numpy()}, r"bool of shape \(40, 1\); expected one boolean"),
    "nobody": ({"miner": FLAGS & False}, "the known flags say that no sample is bias-conflicting"),
    "everybody": ({"miner": [True] * N}, "the known flags say that all 40 samples are bias-conflicting"),
    "a cut of flags": ({"miner": FLAGS, "cut": {"threshold": 0.5}}, "cut= would have no effect: miner= says which"),
    "mined of other data": (
        {"miner": MinedSamples(torch.rand(N), 1 - Y)},
        "the labels of the known samples are not those of the loader's dataset",
    ),
    "mined of fewer": ({"miner": MinedSamples(torch.rand(3), Y[:3])}, "3 samples are known"),
}
OF_ONE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "steps": (denp, {"iterative_steps": 0}, "iterative_steps=0; expected at least 1"),
    "half a step": (denp, {"iterative_steps": 1.5}, "iterative_steps=1.5; expected a whole number"),
    "final epochs": (denp, {"final_epochs": -1}, "final_epochs=-1; expected at least 0"),
    "an importance, made": (
        denp,
        {"importance": AccumulatedConfidenceImportance(FLAGS)},
        "importance is a AccumulatedConfidenceImportance; expected a function",
    ),
    "a name of an importance": (denp, {"importance": "magnitude"}, "importance is a str; expected a function"),
    "online drops": (
        denp,
        {"online": True, "miner": AccumulatedConfidence(accumulate="drop")},
        "online=True goes on averaging 1 − p, and AccumulatedConfidence gives other scores",
    ),
    "online losses": (denp, {"online": True, "miner": LossMiner()}, "and LossMiner gives other scores here"),
    "online in words": (denp, {"online": "yes"}, "online='yes'; expected True or False"),
    "online, known": (denp, {"online": True, "miner": FLAGS}, "online=True would cut another set than the known flags"),
    "an importance without flags": (
        denp,
        {"importance": WorstGroupImportance},
        r"importance=WorstGroupImportance makes no importance of flags \(N,\)",
    ),
    "a function that makes none": (denp, {"importance": len}, "importance=len makes a int of flags"),
    "a function that makes a wrong one": (
        denp,
        {"importance": lambda flags: ContrastiveImportance(flags, upweight=-1.0)},
        "upweight=-1.0; expected above 0",
    ),
    "gates' learning rate": (
        dcwp,
        {"gate_learning_rate": 0.0},
        "learning_rate=0.0; .* rate at which gates are learned",
    ),
    "weight of the mined": (dcwp, {"upweight": 0.0}, "upweight=0.0; expected above 0"),
    "no iterations": (dcwp, {"iterations": 0}, "iterations=0; expected at least 1"),
    "cost": (dcwp, {"cost": "latency"}, "cost='latency'; expected one of 'channels'"),
    "weight of the cost": (dcwp, {"cost_weight": -1.0}, "cost_weight=-1.0; expected at least 0"),
    "mode of BatchNorm": (dcwp, {"batchnorm": True}, "batchnorm=True; expected one of 'eval', 'train'"),
    "level": (dcwp, {"level": "layer"}, "level='layer'; expected one of 'channel', 'weight'"),
    "what masks can't use": (
        dcwp,
        {"level": "weight", "reconstruct": True, "pruner_options": {"round_to": 2}, "cost": "macs"},
        r"pruner_options, reconstruct, gate_training=\{'cost': ...\} would have no effect with level='weight'",
    ),
    "no weight to mask": (dcwp, {"level": "weight", "ignored_layers": ["0", "2"]}, "calls no linear or convolutional"),
    "a layer without weights": (dcwp, {"level": "weight", "ignored_layers": ["1"]}, r"ignored_layers holds \['1'\]"),
    "no ratio, in words": (dcwp, {"pruning_ratio": 0.0}, "or None for the closed gates"),
}
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    **{f"{kind}, {recipe.__name__}": (recipe, *case) for kind, case in BOTH.items() for recipe in (denp, dcwp)},
    **OF_ONE,
}


@pytest.mark.parametrize("kind", CASES)
def test_recipes_refuse_before_they_mine(kind: str) -> None:
    recipe, options, message = CASES[kind]
    model = options.get("model", _network())
    before = Snapshot(model if isinstance(model, nn.Module) else nn.Identity())
    with pytest.raises(FairtrimError, match=message):
        recipe(**nested({"model": model, "loader": LOADER, "miner": NeverMiner(), "progress": False, **options}))
    before.assert_unchanged()


CUTS: list[tuple[dict[str, Any], str]] = [
    ({"threshold": "high"}, "threshold='high'; expected a finite number"),
    ({"threshold": math.inf}, "threshold=inf; expected a finite number"),
    ({"share_per_class": True}, "share_per_class=True; expected a finite number, a share between 0 and 1"),
    ({"share_per_class": 10}, "share_per_class=10; expected a share between 0 and 1"),
    ({"deviations": [3]}, re.escape("deviations=[3]; expected a finite number")),
]


@pytest.mark.parametrize(("cut", "message"), CUTS)
def test_cuts(cut: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MinedSamples(torch.rand(10), torch.arange(10) % 2).conflicting(**cut)


MINERS: list[tuple[Any, dict[str, Any], str]] = [
    (LossMiner, {"learning_rate": 0.0}, "learning_rate=0.0; expected above 0"),
    (LossMiner, {"epochs": 1.5}, "epochs=1.5; expected a whole number"),
    (LossMiner, {"network": "resnet"}, "network is a str; expected a function"),
    (GeneralizedCrossEntropyMiner, {"q": 0.0}, "q=0.0; expected above 0"),
    (EpochEnsemble, {"confidence": 1.0}, "confidence=1.0; expected above 0, below 1"),
    (EpochEnsemble, {"cut": -0.1}, "cut=-0.1; expected above 0, below 1"),
    (AccumulatedConfidence, {"learning_rate": -1.0}, "learning_rate=-1.0; expected above 0"),
    (AccumulatedConfidence, {"repeats": 1.5}, "repeats=1.5; expected a whole number"),
]


@pytest.mark.parametrize(("miner", "settings", "message"), MINERS)
def test_miners(miner: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        miner(**settings)


# Ratios -------------------------------------------------------------------------------------------------------

RATIOS = [1.0, 1.5, -0.2, math.nan]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("where", ["pruning_ratio", "pruning_ratio_dict", "head_pruning_ratio"])
@pytest.mark.parametrize("collecting", [False, True])
def test_ratios_of_the_host(where: str, ratio: float, collecting: bool) -> None:
    model = _network()
    value: Any = {model[0]: ratio} if where == "pruning_ratio_dict" else ratio
    more: dict[str, Any] = {"model": model, "loader": PEOPLE} if collecting else {}
    importance = WorstGroupImportance(progress=False, **more)
    pruner = tp.pruner.BasePruner(model, X[:2], importance, ignored_layers=[model[2]], **{where: value})
    before = Snapshot(model)
    with pytest.raises(InputError, match=rf"{where}.*={re.escape(str(ratio))}; expected .*the share of the channels"):
        pruner.step() if collecting else importance.fit(pruner, PEOPLE)
    before.assert_unchanged()
    assert model[0].out_features == 8 and not pruner.pruning_history()


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratios_of_copies_and_sweeps(ratio: float) -> None:
    data = DataSplits(test=PEOPLE, scoring=PEOPLE)
    magnitude = tp.importance.GroupMagnitudeImportance()
    with pytest.raises(InputError, match=f"ratio={ratio}"):
        prune_copy(_network(), magnitude, data, ratio, progress=False)
    with pytest.raises(InputError, match=rf"pruning_ratio_dict\['0'\]={ratio}"):
        prune_copy(
            _network(), magnitude, data, 0.5, pruner_options={"pruning_ratio_dict": {"0": ratio}}, progress=False
        )
    with pytest.raises(InputError, match="expected different shares of the channels between 0 and 1"):
        sweep(_network(), data, "magnitude", ratio, progress=False)


def test_ratios_that_are_fine() -> None:
    model = _network()
    importance = WorstGroupImportance(progress=False)
    settings: dict[str, Any] = {
        "iterative_steps": 2,
        "ignored_layers": [model[2]],
        "pruning_ratio_dict": {model[0]: 0.0},
    }
    pruner = tp.pruner.BasePruner(model, X[:2], importance, pruning_ratio=0.99, **settings)
    importance.fit(pruner, PEOPLE)
    require_number("ratio", torch.tensor(0.5).item(), at_least=0, below=1)


# The critic ---------------------------------------------------------------------------------------------------


def test_the_critic_learns_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    adam = torch.optim.Adam

    def noting(parameters: Any, lr: float) -> Any:
        rates.append(lr)
        return adam(parameters, lr=lr)

    monkeypatch.setattr(torch.optim, "Adam", noting)
    small: dict[str, Any] = {"epochs": 1, "critic_steps": 1, "actor_steps": 1, "epsilon": 0.9}
    AdversarialFineTuning(**small).repair(_network(), PEOPLE, progress=False)
    AdversarialFineTuning(critic_learning_rate=0.5, learning_rate=0.25, **small).repair(
        _network(), PEOPLE, progress=False
    )
    assert rates == [1e-3, 1e-4, 0.5, 0.25]
    for wrong in (0.0, math.nan):
        with pytest.raises(InputError, match=f"critic_learning_rate={wrong}"):
            AdversarialFineTuning(critic_learning_rate=wrong)
