"""Reports of networks at hand."""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairtrim import InputError, predict
from fairtrim_adapters.report import Report, report_networks
from fairtrim_adapters.report.contents import Figure
from fairtrim_adapters.report.methods import method_of
from fairtrim_adapters.sweep import POST_PROCESSORS
from fairtrim_adapters.torch_pruning import IMPORTANCES, MeanDamageImportance
from fairtrim_adapters.torch_pruning.importances.torch_pruning_importances import TORCH_PRUNING_CRITERIA
from tests.registries import keep
from tests.report_cases import (
    HAS_JINJA,
    HAS_MATPLOTLIB,
    NETWORKS,
    QUICK,
    batches,
    in_json,
    missing,
    needs_matplotlib,
    network,
    plain,
)


def test_latency_is_told_only_if_it_was_timed(report: Report) -> None:
    dense = report.networks[0]
    assert dense.latency_ms is not None and dense.latency_ms.value is not None and dense.latency_ms.value > 0
    assert dense.latency_ratio == Figure(1.0, 1.0, 1.0)
    assert "latency, ms" in report.to_markdown()
    without = report_networks(NETWORKS, {"test": batches()}, **QUICK)
    assert without.timing is None and all(entry.latency_ms is None for entry in without.networks)
    assert "latency, ms" not in without.to_markdown()


def test_methods_are_looked_up(report: Report) -> None:
    worst, mine, parity = report.methods
    assert (worst.kind, worst.standing, worst.settings) == ("criterion", "ours", {"selection": "single"})
    assert "most hurt" in worst.does
    assert mine.does == "not described here"
    assert parity.kind == "post-processor" and "penalty" in parity.does
    assert report.seeds == (3,) and report.settings == {"fine-tuning": "none"}
    assert report.networks[1].facts == {"criterion": "worst-group:selection=single", "pruning ratio": "0.5"}


def test_every_method_describes_itself() -> None:
    for kind, names in {
        "criterion": [*TORCH_PRUNING_CRITERIA, *IMPORTANCES],
        "post-processor": POST_PROCESSORS,
    }.items():
        for name in names:
            method = method_of(kind, name)
            assert method.does != "not described here" and method.standing, name
    unlearning = method_of("post-processor", "counterfactual-unlearning")
    assert unlearning.source == "FMD: Chen and others, NeurIPS 2023" and "; form 'published' as" in unlearning.standing


def test_a_class_that_says_nothing_is_not_described_by_its_parent() -> None:
    @IMPORTANCES.named("silent")
    class Silent(MeanDamageImportance):
        pass

    assert method_of("criterion", "silent").does == "not described here"
    assert IMPORTANCES.remove("silent") is Silent


def test_a_label_of_the_name_of_what_can_t_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "nowhere.at.all:Thing", "any")
    twice = [EntryPoint("twice", f"{package}:Thing", "any") for package in ("one", "other")]
    for registry in (IMPORTANCES, POST_PROCESSORS):
        keep(registry, monkeypatch)
    monkeypatch.setattr("fairtrim.registry.entry_points", lambda group: [broken, *twice])
    for kind in ("criterion", "post-processor"):
        for label in ("broken", "twice"):
            assert method_of(kind, label, {"epsilon": 0.1}).does == "not described here"
    assert method_of("criterion", "worst-group: my own").does == "not described here"


@pytest.mark.parametrize("n_classes", [2, 3])
def test_one_person_one_network(n_classes: int) -> None:
    one = [(torch.ones(1, 5), torch.tensor([1]), ["only <one> | of *them*"])]
    found = report_networks({"a": network(0, n_classes)}, {"test": one}, n_boot=2, **QUICK)
    assert found.data.counts == {"only <one> | of *them*": tuple(int(k == 1) for k in range(n_classes))}
    assert found.networks[0].overall["accuracy"].value in (0.0, 1.0)
    assert ("true_positive_rate" in found.networks[0].overall) == (n_classes == 2)
    assert ("true_positive_rate_of_2" in found.networks[0].overall) == (n_classes == 3)
    assert not missing(found, "Rates of single classes")
    assert ("against the rest" in found.to_markdown()) == (n_classes == 3)
    assert in_json(found) == plain(found)
    assert found.to_markdown().startswith("## ")
    if HAS_JINJA:
        assert "only &lt;one&gt; | of *them*" in found.to_html()


def test_labels_of_tokens_are_compared_without_samples() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, -x], dim=-1)

    class Others(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([-x, x], dim=-1)

    batch = (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.randint(0, 2, (4, 3)), list("aabb"))
    found = report_networks({"one": Tokens(), "two": Others()}, {"test": [batch]}, n_boot=None, **QUICK)
    assert found.data.n_people == 12 and found.changed == ()
    assert missing(found, "Which people get another prediction")


def test_changed_samples_are_those_that_differ(report: Report) -> None:
    labels = {name: predict(model, batches(), progress=False).label["model"] for name, model in NETWORKS.items()}
    target = np.concatenate([batch[1].numpy() for batch in batches()])
    group = np.asarray([name for batch in batches() for name in batch[2]])
    assert [changed.network for changed in report.changed] == ["pruned", "other one"]
    for changed in report.changed:
        differs = labels["dense"] != labels[changed.network]
        for name, people, number, share, gained, lost in changed.by_group.rows:
            members = np.ones(len(group), dtype=bool) if name == "everybody" else group == name
            here = differs & members
            assert (people, number) == (members.sum(), here.sum())
            assert share == pytest.approx(here.sum() / members.sum())
            assert gained == (here & (labels[changed.network] == target)).sum()
            assert lost == (here & (labels["dense"] == target)).sum()
        assert changed.samples is not None and len(changed.samples.rows) == min(20, differs.sum())
        for row, who, label, before, after, *_ in changed.samples.rows:
            assert differs[row] and who == group[row] and label == ("no", "yes")[target[row]]
            assert [before, after] == [("no", "yes")[labels[name][row]] for name in ("dense", changed.network)]


def test_samples_of_people_can_be_left_out() -> None:
    data = {"test": batches(), "feature_names": list("abcde")}
    none = report_networks(NETWORKS, data, n_boot=None, samples=0, **QUICK)
    assert all(changed.samples is None for changed in none.changed) and len(none.changed) == 2
    some = report_networks(NETWORKS, data, n_boot=None, samples=4, **QUICK).changed[0].samples
    assert some is not None and len(some.rows) == 4
    x = torch.cat([batch[0] for batch in batches()])
    row = some.rows[0]
    assert row[-1] == ", ".join(f"{n} = {v:.3g}" for n, v in zip("abcde", x[int(str(row[0]))].tolist(), strict=True))


@needs_matplotlib
def test_pictures_of_tables_images_and_damage(tmp_path: Path) -> None:
    from matplotlib import pyplot

    draw = torch.Generator().manual_seed(0)
    images = torch.randn(60, 1, 6, 6, generator=draw)
    data = {"test": [(images, torch.randint(0, 2, (60,), generator=draw), ["a", "b", "b"] * 20)]}
    models = {name: nn.Sequential(nn.Flatten(), network(seed, n_features=36)) for seed, name in enumerate("pq")}
    found = report_networks(models, data, n_boot=5, latency_rounds=0, progress=False)
    assert [picture.section for picture in found.pictures] == ["Sensitive groups"] * 2 + ["Changed predictions"]
    assert found.pictures[-1].network == "q" and not found.pictures[-1].svg
    for picture in found.pictures:
        assert base64.b64decode(picture.png).startswith(b"\x89PNG")
    assert b"<svg" in base64.b64decode(found.pictures[0].svg)
    assert pyplot.get_fignums() == []
    assert in_json(found) == plain(found)
    again = report_networks(models, data, n_boot=5, latency_rounds=0, progress=False)
    assert again.pictures == found.pictures
    text = found.to_markdown(tmp_path / "the pictures")
    linked = re.findall(r"!\[[^\]]+\]\((\S+)\)", text)
    assert len(linked) == 3
    for link, picture in zip(linked, found.pictures, strict=True):
        assert (tmp_path / link.replace("%20", " ")).read_bytes() == base64.b64decode(picture.png)
    assert "3 pictures are left out" in found.to_markdown() and "left out" not in text


@needs_matplotlib
def test_damage_is_drawn() -> None:
    from fairtrim import ChannelGroup, ChannelPlace, collect_damage

    group = ChannelGroup("0", 7, (ChannelPlace("2", "input", range(7), range(7), channel_axis=-1),))
    table = collect_damage(NETWORKS["dense"], batches(), [group], progress=False)
    found = report_networks(NETWORKS, {"test": batches()}, damage=table, n_boot=None, latency_rounds=0, progress=False)
    assert "Predicted damage" in [picture.section for picture in found.pictures]
    assert not missing(found, "no damage table")
    assert missing(report_networks(NETWORKS, {"test": batches()}, n_boot=None, **QUICK), "no damage table")


def test_networks_are_left_as_they_were() -> None:
    models = {name: copy.deepcopy(model).train() for name, model in NETWORKS.items()}
    kept = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    state = torch.get_rng_state()
    report_networks(models, {"test": batches()}, n_boot=3, latency_rounds=6, pictures=HAS_MATPLOTLIB, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    for name, model in models.items():
        assert model.training and all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, kept[name][key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": {}}, "expected networks by name"),
        ({"models": {"a": 3}}, r"models\['a'\] is a int"),
        ({"reference": "densr"}, "'densr' is not one of the networks"),
        ({"n_boot": 0}, "n_boot=0"),
        ({"latency_rounds": 3}, "latency_rounds=3"),
        ({"samples": -1}, "samples=-1"),
        ({"method": [1]}, "method is a list"),
        ({"method": {"prund": {"pruning_ratio": 0.5}}}, "'prund'"),
        ({"method": {"seed": "one"}}, "seeds"),
        ({"damage": 3}, "expected a DamageTable"),
        ({"splits": {"test": batches(), "feature_names": ["a"]}}, "1 feature_names for 5 features"),
        ({"splits": {"test": batches(), "class_names": ["a"]}}, "1 class_names for 2 classes"),
        ({"splits": {"test": [batch[:2] for batch in batches()]}}, "expected .inputs, target, sensitive"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], words: str) -> None:
    arguments = {"models": NETWORKS, "splits": {"test": batches()}, "n_boot": None, **QUICK, **changes}
    with pytest.raises(InputError, match=words):
        report_networks(**arguments)


def test_a_report_runs_each_network_once_over_the_people() -> None:
    rows: dict[str, int] = {}

    class Counted(nn.Linear):
        def __init__(self, name: str) -> None:
            super().__init__(4, 2)
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows[self.name] = rows.get(self.name, 0) + len(x)
            return super().forward(x)

    x = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    batches = [(part, (part[:, 0] > 0).long(), ["a", "b"] * 15) for part in x.split(30)]
    networks = {name: Counted(name) for name in ("dense", "one", "two", "three")}
    made = report_networks(networks, {"test": batches}, latency_rounds=0, pictures=False, n_boot=None, progress=False)
    assert len(made.changed) == 3 and any(change.samples for change in made.changed)
    extra = len(batches[0][0])  # one batch, in which operations are counted
    assert set(rows) == set(networks) and all(900 <= number <= 900 + extra for number in rows.values()), rows


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_report_reads_the_people_once_however_many_networks(number: int) -> None:
    """A first batch for operations and latencies, one pass for all networks, and one to show changed samples."""
    read: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            for i, batch in enumerate(batches()):
                read.append(i)
                yield batch

    networks = {f"network {seed}": network(seed) for seed in range(number)}
    quiet: dict[str, Any] = {"latency_rounds": 6, "pictures": False, "n_boot": None, "progress": False}
    report_networks(networks, {"test": Loader()}, samples=0, **quiet)
    assert read == [0, 0, 1]
    report_networks(networks, {"test": Loader()}, **quiet)
    assert read[3:] == ([0, 0, 1] if number == 1 else [0, 0, 1, 0, 1])
