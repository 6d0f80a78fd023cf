"""What is absent from a report is said to be."""

from __future__ import annotations

import torch

from fairtrim_adapters.report import Report, report_networks
from tests.report_cases import (
    NETWORKS,
    QUICK,
    batches,
    missing,
)


def test_what_was_not_measured_follows_from_what_is_there(report: Report) -> None:
    bare = report_networks(NETWORKS, {"test": batches()}, n_boot=None, **QUICK)
    assert missing(bare, "no network was timed") and not missing(report, "no network was timed")
    assert missing(report, "Latency on other hardware")
    assert missing(bare, "Uncertainty over people") and not missing(report, "Uncertainty over people")
    assert missing(bare, "no seed was recorded") and missing(report, "(one seed)")
    several = report_networks(NETWORKS, {"test": batches()}, method={"seeds": [0, 1]}, **QUICK)
    assert not missing(several, "(one seed)") and missing(several, "each is one training")
    assert missing(bare, "Crossings of sensitive features: only ")
    small = [n for n in "FMX" if report.data.people[n] < 100]
    assert missing(report, f"fewer than 100 people: their figures are mostly chance: F ({report.data.people['F']})")
    assert 0 < len(small) < 3
    assert not missing(report, "nobody of") and not missing(report, "Rates of single classes")
    large = report_networks(NETWORKS, {"test": batches(901)}, n_boot=None, **QUICK)
    assert not missing(large, "fewer than 100 people")
    assert missing(bare, "Calibration") and missing(bare, "Validity of the labels")


def test_crossings_and_nobody() -> None:
    x, target = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1, 0, 0])
    people = {"sex": ["F", "F", "M", "M", "M", "M"], "age": ["old", "old", "old", "young", "old", "young"]}
    found = report_networks(NETWORKS, {"test": [(x, target, people)]}, n_boot=3, **QUICK)
    assert found.data.people == {"F, old": 2, "M, old": 2, "M, young": 2}
    assert found.data.sensitive_features == ("sex", "age")
    assert missing(found, "nobody of the data belongs to: F, young.")
    assert missing(found, "only the crossings of sex, age are shown")
    assert missing(found, "nobody of: M, old: class 1.")
    assert ("empty cell", "") in [(flag.kind, flag.network) for flag in found.flags]
