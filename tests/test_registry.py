"""Methods by name: those of a room, of several rooms, of a script, and of other packages."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
from torch import nn

import fairtrim
from fairtrim import MINERS, POST_PROCESSORS, InputError, LossMiner, MinedSamples, Miner, ThresholdSelection
from fairtrim.registry import Registry, Standing
from fairtrim_adapters import torch_pruning as adapter
from fairtrim_adapters.torch_pruning import AccumulatedConfidence

REGISTRIES = {"post-processors": POST_PROCESSORS, "miners": MINERS}


@pytest.mark.parametrize("registry", [*REGISTRIES.values(), adapter.IMPORTANCES], ids=[*REGISTRIES, "importances"])
def test_every_method_says_when_to_take_it_and_the_default_is_marked(registry: Registry) -> None:
    text = str(registry).replace("\n  ", " ")
    assert all(method.when for method in registry.known().values())
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    assert set(lines) == set(registry) and all(". Take it " in line for line in lines.values())
    marked = {name for name, line in lines.items() if line.startswith("(default) ")}
    assert marked == ({registry.default} if registry.default else set())
    assert all(len(line) < 100 for line in str(registry).splitlines()) and registry._repr_html_()


def test_a_derived_method_does_not_take_over_when_and_a_wrong_one_is_refused() -> None:
    class Elsewhere(ThresholdSelection):
        name: ClassVar[str] = "elsewhere"
        does: ClassVar[str] = "nothing"
        standing: ClassVar[Standing] = "ours"

    assert Elsewhere.when == "" and ThresholdSelection.when
    with pytest.raises(InputError, match="Often has when=7; expected what stands behind 'take it'"):

        class Often(ThresholdSelection):
            name: ClassVar[str] = "often"
            does: ClassVar[str] = "nothing"
            when: ClassVar[Any] = 7
            standing: ClassVar[Standing] = "ours"


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_every_method_of_the_rooms_is_found_and_describes_itself(registry: Registry) -> None:
    for name, method in registry.items():
        assert method.name == name and method.does and method.standing and not inspect.isabstract(method)
        assert bool(method.source) or method.standing == "baseline", name
        ours = adapter if method is AccumulatedConfidence else fairtrim
        assert getattr(ours, method.__name__) is method


def test_names() -> None:
    assert set(POST_PROCESSORS) == {
        "adversarial-fine-tuning",
        "adversarial-projection",
        "bias-gradient-descent",
        "column-erasure",
        "counterfactual-unlearning",
        "layerwise-optimization",
        "parity-fine-tuning",
        "random-perturbation",
        "threshold-selection",
    }
    assert set(MINERS) == {
        "accumulated-confidence",
        "epoch-ensemble",
        "generalized-cross-entropy",
        "given-confidence",
        "loss",
        "misclassified",
    }
    assert MINERS["accumulated-confidence"] is AccumulatedConfidence
    with pytest.raises(InputError, match=r"post-processor 'parity_finetuning' is unknown \(did you mean 'parity-fine-"):
        POST_PROCESSORS["parity_finetuning"]


def test_a_method_of_one_s_own_is_added_and_removed() -> None:
    @MINERS.named("known")
    class Known(Miner):
        def mine(self, model: nn.Module, loader: Any, *, progress: bool = True) -> MinedSamples:
            raise NotImplementedError

    try:
        assert MINERS["known"] is Known and "known" in list(MINERS)
        with pytest.raises(InputError, match=r"miner name 'known' is taken by .*Known; choose another"):
            MINERS.add(LossMiner, "known")
    finally:
        assert MINERS.remove("known") is Known
    assert "known" not in MINERS
    with pytest.raises(InputError, match="expected a subclass of Miner"):
        MINERS.add(ThresholdSelection)


def test_a_method_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    announced = EntryPoint("elsewhere", "fairtrim.mining.trained_miners:LossMiner", "fairtrim.miners")
    monkeypatch.setattr("fairtrim.registry.entry_points", lambda group: [announced] * (group == "fairtrim.miners"))
    registry = Registry("miner", "fairtrim.mining", Miner, "fairtrim.miners")
    assert registry["elsewhere"] is LossMiner
    own = {"epoch-ensemble", "generalized-cross-entropy", "given-confidence", "loss", "misclassified"}
    assert set(registry) == {"elsewhere", *own}
    assert registry.loaded()["elsewhere"] is LossMiner


def test_a_name_without_a_description() -> None:
    message = "Silent has name='silent', by which registries would offer it, and doesn't say does= beside it"
    with pytest.raises(InputError, match=message):

        class Silent(ThresholdSelection):
            name: ClassVar[str] = "silent"
            standing: ClassVar[Standing] = "ours"


def test_a_standing_that_is_none() -> None:
    with pytest.raises(InputError, match="Great has standing='great'; expected one of 'published', 'reconstruction'"):

        class Great(ThresholdSelection):
            name: ClassVar[str] = "great"
            does: ClassVar[str] = "nothing"
            standing: ClassVar[Any] = "great"


def test_a_property_is_no_name_to_be_offered_by() -> None:
    class Named(LossMiner):
        @property
        def name(self) -> str:  # type: ignore[override]
            return "of this one"

    assert Named().name == "of this one"
