"""Reports of sweeps: means over seeds, the Pareto set, flags."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fairtrim import InputError, ThresholdSelection
from fairtrim_adapters.report import report_sweep
from fairtrim_adapters.report.contents import Figure, Flag
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.report_cases import (
    HAS_JINJA,
    Page,
    in_json,
    markdown_tables,
    missing,
    needs_matplotlib,
    plain,
)
from tests.sweep_cases import network, quick, splits


def test_a_sweep_is_told_by_means_over_seeds(swept: tuple[Path, pd.DataFrame]) -> None:
    folder, table = swept
    found = report_sweep(folder, pictures=False)
    assert len(found.networks) == 2 * (1 + 2) and found.seeds == (0, 4)
    for entry in found.networks:
        criterion, ratio, repair = (entry.facts[name] for name in ("criterion", "pruning ratio", "post-processor"))
        runs = table[
            (table["criterion"] == criterion)
            & (table["pruning_ratio"] == float(ratio))
            & (table["post_processor"] == repair)
        ]
        assert len(runs) == 2 == entry.n_seeds
        for metric in ("accuracy", "worst_group_accuracy", "equalized_odds_difference"):
            figure = entry.overall[metric]
            assert figure.value == pytest.approx(runs[metric].mean())
            assert figure.low == pytest.approx(runs[f"{metric}_low"].mean())
            assert figure.change == pytest.approx(runs[f"{metric}_change"].mean())
            assert (figure.lowest, figure.highest) == pytest.approx((runs[metric].min(), runs[metric].max()))
        for group in "FMX":
            value = entry.by_group[group]["true_positive_rate"].value
            assert value == pytest.approx(runs[f"true_positive_rate[{group}]"].mean())
        assert entry.latency_ms is not None and entry.latency_ms.value == pytest.approx(runs["latency_ms"].mean())
    assert found.data.people == {g: int(table[f"people[{g}]"].iloc[0]) for g in "FMX"}
    assert found.data.n_people == 230 and found.n_boot == 10 and found.timing is not None
    assert found.timing.batch_size == 32 and found.timing.rounds == 6
    assert found.runs is not None and len(found.runs.rows) == len(table)
    assert {method.name: method.settings.get("epsilon") for method in found.methods}["moved"] == "0.2"
    assert in_json(found) == plain(found)
    assert not missing(found, "(one seed)") and not missing(found, "no network was timed")
    assert missing(found, "How many people of each label")


def test_the_pareto_set_of_a_sweep(swept: tuple[Path, pd.DataFrame]) -> None:
    found = report_sweep(swept[0], objectives={"accuracy": "max", "parameters": "min"}, pictures=False)
    points = [(-float(str(n.overall["accuracy"].value)), n.parameters) for n in found.networks]
    for entry, point in zip(found.networks, points, strict=True):
        beaten = any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points)
        assert entry.pareto == (not beaten)
    table = markdown_tables(found.to_markdown())["Over everybody, with the gaps between sensitive groups"]
    shown = {n.name for n in found.networks if n.pareto} | {"dense"}
    names = [line[0][0] for line in table[1:]] if table[0][0] == ["Network"] else [lines[0] for lines in table[0][1:]]
    assert set(names) == shown and len(names) == len(shown)
    outside = markdown_tables(found.to_markdown())["Networks that are not in the Pareto set"]
    assert len(outside) > 1


def test_flags_of_runs_are_taken_apart() -> None:
    run = {"seed": 1, "criterion": "magnitude", "pruning_ratio": 0.5, "parameters": 4, "accuracy": 0.5}
    run |= {
        "worst_group_accuracy": 0.5,
        "people[a]": 3,
        "people[b]": 2,
        "accuracy[a]": 0.5,
        "accuracy[b]": float("nan"),
    }
    flags = (
        "empty cell: a: nobody of class 0; constant classifier: everybody is given label 1; gaps mean nothing; "
        "levelling down: accuracy score difference fell; the bound was not met; the search stopped early"
    )
    table = pd.DataFrame(
        [
            {**run, "post_processor": "none", "flags": "empty cell: a: nobody of class 0"},
            {**run, "post_processor": "mine", "flags": flags},
            {
                **run,
                "post_processor": "other",
                "flags": "constant classifier: everybody is given label 0; gaps mean nothing",
            },
        ]
    )
    found = report_sweep(table, facts={"versions": {"torch": "2"}, "latency": {"n_jobs": 2}}, pictures=False)
    assert list(found.flags) == [
        Flag("empty cell", "", "a: nobody of class 0"),
        Flag("constant classifier", "magnitude, 50 %, mine", "everybody is given label 1; gaps mean nothing", 1),
        Flag("levelling down", "magnitude, 50 %, mine", "accuracy score difference fell", 1),
        Flag("post-processor", "magnitude, 50 %, mine", "the bound was not met; the search stopped early", 1),
        Flag("constant classifier", "magnitude, 50 %, other", "everybody is given label 0; gaps mean nothing", 1),
    ]
    assert "⚑ constant classifier" in found.to_markdown()
    assert found.networks[0].by_group == {"a": {"accuracy": Figure(0.5)}, "b": {}}
    assert missing(found, "no network was timed") and missing(found, "(one seed)")
    assert found.versions == {"torch": "2"} and not missing(found, "Versions")
    assert missing(report_sweep(table, pictures=False), "Versions of the software")


@needs_matplotlib
def test_a_sweep_with_pictures(swept: tuple[Path, pd.DataFrame]) -> None:
    from matplotlib import pyplot

    found = report_sweep(swept[0])
    choices = ["worst-group-accuracy", "equalized-odds-difference"]
    names = [*choices, *(f"{name}-moved" for name in choices), "groups-accuracy", "groups-true-positive-rate"]
    assert [picture.name for picture in found.pictures] == names
    assert pyplot.get_fignums() == []
    dense = swept[1][swept[1]["criterion"] == "dense"]
    assert report_sweep(dense).pictures == ()
    if HAS_JINJA:
        page = Page(found.to_html())
        assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
            p.description for p in found.pictures
        ]
        runs = page.tables["Every run: figures over everybody, and each sensitive group's accuracy"]
        assert len(runs) == 1 + len(swept[1]) and ["accuracy[F]"] in runs[0] and ["accuracy low"] not in runs[0]
        first = swept[1].iloc[0]
        told = [first["criterion"], f"{first['pruning_ratio']:.3f}", first["post_processor"], str(first["seed"])]
        assert runs[1][0] == [", ".join(told)]


def test_methods_are_those_that_labels_stand_for(tmp_path: Path) -> None:
    criteria = {
        "worst-group: mine": "magnitude",
        "magnitude": lambda: WorstGroupImportance(),
        "single": "worst-group:selection=single",
    }
    repairs = {"parity-fine-tuning: 2": "threshold-selection:epsilon=0.2", "moved": ThresholdSelection(epsilon=0.3)}
    table = quick(network(), splits(), criteria, 0.5, post_processors=repairs, folder=tmp_path)
    found = {(method.kind, method.name): method for method in report_sweep(tmp_path, pictures=False).methods}
    assert "small weights" in found["criterion", "worst-group: mine"].does
    assert found["criterion", "magnitude"].does == "not described here"
    assert found["criterion", "single"].settings == {"selection": "single"}
    for label, epsilon in (("parity-fine-tuning: 2", "0.2"), ("moved", "0.3")):
        method = found["post-processor", label]
        assert method.does == ThresholdSelection.does and method.settings["epsilon"] == epsilon
    alone = report_sweep(table, pictures=False).methods
    assert [method.does for method in alone if ": " in method.name] == ["not described here"] * 2


def test_a_sweep_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished sweep"):
        report_sweep(tmp_path, pictures=False)
    with pytest.raises(InputError, match="criterion"):
        report_sweep(pd.DataFrame({"seed": [0]}), pictures=False)
    with pytest.raises(InputError, match="; 'ratio' is called 'pruning_ratio' now; expected"):
        report_sweep(pd.DataFrame({"seed": [0], "ratio": [0.5]}), pictures=False)
    whole = {"seed": [0], "criterion": ["dense"], "pruning_ratio": [0.0], "post_processor": ["none"], "parameters": [3]}
    with pytest.raises(InputError, match="people"):
        report_sweep(pd.DataFrame({**whole, "accuracy": [0.5]}), pictures=False)
